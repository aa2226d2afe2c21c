"""The slow loop through a real Kafka and Redis: what lasts is learned while all runs on, and a fault never is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import SecretStr

from models.calibration import Effort
from models.learner import Learned
from models.predictor import COMPONENTS, HORIZONS
from models.pretrained import Weights
from models.training import Lessons
from pipeline.__main__ import main
from pipeline.connections import Kafka, Redis
from pipeline.learner_command import build_courses, build_learner
from pipeline.learning.course import Course, Renew
from pipeline.learning.learner import Learner
from pipeline.learning.metrics import LearnerMetrics
from pipeline.records import Partition
from pipeline.registry import Decision, Registry
from pipeline.servers import create_topics
from pipeline.settings import EngineSettings, LearnerSettings, RegistrySettings, Settings
from pipeline.topics.kafka import Cluster
from pipeline.wire import decode_scores, encode_packed
from pipeline.wiring import build_worker
from pipeline.worker import Worker
from tests.builders import START_MS, make_profile
from tests.real_kafka import forget, produce, unique, until, visible

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(400)]

STREAMS, LENGTH, INTERVAL_MS = 4, 32, 600_000
BEFORE, AFTER = 14, 46
"""Stretches before and after the change; 46 are ten days."""

RULES = LearnerSettings(
    stretch=LENGTH, reservoir=128, batch=8, rate=3e-3, cpu_share=1.0, drift_cpu_share=1.0, candidate_updates=48,
    shadow_stretches=12, probation_stretches=16, margin=0.02,
)  # fmt: skip


def _quickly(
    base: Weights, network: Learned, seen: Sequence[Lessons], seed: int, effort: Effort, about: dict[str, Any]
) -> Weights:
    """New weights without the time that pooled tails take."""
    return replace(base, network=network, manifest=about)


def _too_sure(horizons: slice, times: float) -> Renew:
    """As :func:`_quickly`, with forecasts narrower than what was learned: good until something unforeseen comes."""

    def renew(
        base: Weights, network: Learned, seen: Sequence[Lessons], seed: int, effort: Effort, about: dict[str, Any]
    ) -> Weights:
        bias = network["head.bias"].clone()
        bias.view(len(HORIZONS), 3, COMPONENTS)[horizons, 2] -= math.log(times)
        return replace(base, network={**network, "head.bias": bias}, manifest=about)

    return renew


class Rig:
    """A topic, a worker and a learner of one profile, fed a stretch of every stream at a time."""

    worker: Worker
    learner: Learner
    course: Course
    renew: Renew

    def __init__(self, bootstrap: str, redis_url: str, folder: Path, rules: LearnerSettings = RULES) -> None:
        names = {name: unique(name) for name in ("input", "scores", "alerts", "dead")}
        create_topics(bootstrap, dict.fromkeys(names.values(), 1))
        kafka = Kafka(
            bootstrap_servers=(bootstrap,), group=unique("g"), scores_topic=names["scores"],
            alerts_topic=names["alerts"], dead_letter_topic=names["dead"], commit_interval_s=0.2,
        )  # fmt: skip
        profile = make_profile(
            topics=[names["input"]], interval_s=600, light=True, clock=False, alarm_budget="1 per week"
        )
        self.settings = Settings(
            kafka=kafka, redis=Redis(url=SecretStr(redis_url)), engine=EngineSettings(device="cpu", threads=1),
            registry=RegistrySettings(folder=folder), learner=rules, profiles={"p": profile},
        )  # fmt: skip
        self.input, self.scores, self.bootstrap = names["input"], names["scores"], bootstrap
        self.registry, self.at, self.renew = Registry(folder), 0, _quickly

    @contextmanager
    def running(self) -> Iterator[None]:
        """Both at work; stopped at the end of the block."""
        cluster = Cluster(self.bootstrap)
        with ExitStack() as opened:
            self.worker = build_worker(self.settings, lambda stats: None)
            opened.callback(self.worker.stop)
            torch.set_num_threads(1)
            courses = build_courses(self.settings, cluster, lambda *what: self.renew(*what))
            self.learner = build_learner(self.settings, cluster, courses, LearnerMetrics(), opened)
            self.course = courses["p"]
            self._unread = STREAMS * self.at // LENGTH  # a learner reads the last day of Kafka's clock again
            opened.callback(self.learner.stop)
            self._feeder = opened.enter_context(cluster.feeder())
            yield

    def live(self, values: np.ndarray) -> None:
        """The next stretch of every stream, ``values`` (streams, T): written, read, learned from and followed."""
        times = START_MS + INTERVAL_MS * np.arange(self.at, self.at + LENGTH)
        for number, mine in enumerate(values):
            stream = f"s{number}"
            value = encode_packed(stream, times, mine[:, None].astype(np.float32))
            self._feeder.send(self.input, stream.encode(), value)
        self._feeder.flush()
        self.at += LENGTH
        self._unread += STREAMS
        until(self._is_settled)
        self.course.decide()  # not only once a second: how fast the machine is must decide nothing
        until(self._is_settled)

    def _is_settled(self) -> bool:
        """Whether all is read and learned, and the worker serves what the registry names; else a step of both."""
        serving = {state.committed.history[-1][1] for state in self.worker.partitions.values() if state.committed}
        is_learned = self._unread == 0 and not self.course.wants_to_study()
        if is_learned and serving == {self.registry.current("p")}:
            return True
        self._unread -= self.learner.step()
        self.worker.step()
        return False

    def _is_scored(self) -> bool:
        """Whether the worker has committed all that was written; else a step of it."""
        committed = sum(state.committed.offset for state in self.worker.partitions.values() if state.committed)
        if committed == STREAMS * self.at // LENGTH:
            return True
        self.worker.step()
        return False

    def scored(self) -> Counter[str]:
        """Observations scored, by version."""
        until(self._is_scored)
        found: Counter[str] = Counter()
        for batch in map(decode_scores, visible(self.bootstrap, self.scores)):
            found[batch.model_version] += len(batch.score)
        return found


def _family(kind: str, at: int, changed_at: int) -> np.ndarray:
    """The next stretch of four streams: noisy waves that change at ``changed_at`` in a way of their own."""
    t = np.arange(at, at + LENGTH)
    noise = np.random.default_rng(at).standard_normal((STREAMS, LENGTH))
    phase = np.arange(STREAMS)[:, None]
    is_new = at >= changed_at
    wave = np.sin(2 * np.pi * t / 24 + phase) + 0.1 * noise
    if kind == "level shift":
        return wave + (12.0 if is_new else 0.0)
    square = 1.5 * np.sign(np.sin(2 * np.pi * t / 14 + phase)) + 0.1 * noise
    if kind == "new regime":
        return square if is_new else wave
    share = np.clip((t - changed_at) / 800, 0, 1)
    return (1 - share) * wave + share * square


@pytest.mark.parametrize("kind", ["level shift", "new regime", "slow drift"])
def test_error_falls_after_a_promotion_without_a_restart(
    kind: str, kafka_bootstrap: str, redis_url: str, tmp_path: Path
) -> None:
    """A family that changed for good is learned; worker and learner run through it, and every record is scored once."""
    rig = Rig(kafka_bootstrap, redis_url, tmp_path)
    statuses = []
    with rig.running():
        for _ in range(BEFORE):
            rig.live(_family(kind, rig.at, BEFORE * LENGTH))
        first = rig.registry.current("p")
        assert not rig.registry.history("p"), "nothing changes while the family is what it was"
        before = rig.course.status()
        for _ in range(AFTER):
            rig.live(_family(kind, rig.at, BEFORE * LENGTH))
            statuses.append(rig.course.status())
        scored = rig.scored()
    history = rig.registry.history("p")
    promoted = next(decision for decision in history if decision.event == "promoted")
    assert promoted.parent == first
    assert promoted.figures["loss"] < promoted.figures["loss_of_parent"] - RULES.margin
    worst = max(status.loss_now for status in statuses)
    assert worst > before.loss_now + RULES.margin, "the error rose"
    assert statuses[-1].loss_now < worst - RULES.margin, "and fell"
    if kind != "slow drift":
        assert max(status.closed for status in statuses) == STREAMS, "no lesson before it has lasted"
    late = statuses[-1].stretches - statuses[-9].stretches
    assert late >= 4 * STREAMS, "nobody is locked out: at least every other stretch teaches again"
    assert scored[promoted.version] > 0
    assert sum(scored.values()) == (BEFORE + AFTER) * STREAMS * LENGTH
    assert Cluster(rig.bootstrap).committed(f"{rig.settings.kafka.group}-learner")


def test_a_promoted_version_that_does_worse_goes_back(
    kafka_bootstrap: str, redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By itself, from what the streams say; workers follow, and the history has the figures."""
    rules = RULES.model_copy(update={"candidate_updates": 150, "shadow_stretches": 4})
    rig = Rig(kafka_bootstrap, redis_url, tmp_path / "registry", rules)
    rig.renew = _too_sure(slice(2, None), 3.0)  # of what is far: that raises no alarm

    def until_noted(event: str, changed_at: int, most: int) -> Decision:
        for _ in range(most):
            rig.live(_family("new regime", rig.at, changed_at))
            found = [each for each in rig.registry.history("p") if each.event == event]
            if found:
                return found[-1]
        pytest.fail(f"nothing {event} in {[each.event for each in rig.registry.history('p')]}")

    with rig.running():
        first = rig.registry.current("p")
        promoted = until_noted("promoted", BEFORE * LENGTH, 60)
        rolled_back = until_noted("rolled back", 10**6, 8)  # the family changes its mind
        rig.live(_family("new regime", rig.at, 10**6))
        scored = rig.scored()
        decided = rig.course.status().decided
    assert (rolled_back.version, rolled_back.parent) == (promoted.version, first)
    assert rig.registry.current("p") == first
    assert scored.keys() == {first, promoted.version}, "workers served it, and its parent again"
    assert sum(scored.values()) == rig.at * STREAMS
    assert (decided["promoted"], decided["rolled back"]) == (1, 1)
    settings = tmp_path / "t.toml"
    settings.write_text(
        f'[registry]\nfolder = "{tmp_path / "registry"}"\n[profiles.p]\ntopics = ["t"]\nfeatures = ["value"]\n'
    )
    assert main(["models", "history", "--settings", str(settings)]) == 0
    told = capsys.readouterr().out
    for decision in (promoted, rolled_back):
        [line] = [line for line in told.splitlines() if decision.event in line and decision.version in line]
        for name in ("gain", "alarms", "alarms_allowed"):
            assert f"{name}={decision.figures[name]:g}" in told[told.index(line) :]


@pytest.mark.parametrize("broken", [[1], [0, 1, 2, 3]], ids=["one stream", "the whole family"])
def test_a_fault_that_lasts_a_day_is_not_learned(
    broken: list[int], kafka_bootstrap: str, redis_url: str, tmp_path: Path
) -> None:
    """The fold gets used to a fault within hours; the weights must not, though the learner restarts in the midst."""
    rig = Rig(kafka_bootstrap, redis_url, tmp_path)
    names = [f"s{number}" for number in broken]

    def live(stretches: int, is_faulty: bool) -> list[int]:
        """How many stretches of each broken stream are kept for learning in the end."""
        for _ in range(stretches):
            values = _family("new regime", rig.at, 10**6)
            if is_faulty:
                values[broken] = 9.0 + 0.3 * _family("new regime", rig.at, 0)[broken]
            rig.live(values)
        return [rig.course.teaching.reservoir.strata()[name] for name in names]

    with rig.running():
        before = live(13, is_faulty=False)
        assert live(2, is_faulty=True) == before
        assert rig.course.status().closed == len(broken)
    with rig.running():
        again = live(3, is_faulty=True)
        assert all(now <= then for now, then in zip(again, before, strict=True))
        assert rig.course.status().closed == len(broken), "26 hours of it by now"
        over = live(5, is_faulty=False)
        assert rig.course.status().closed == 0
        assert all(now > then for now, then in zip(over, again, strict=True)), "healthy streams teach again"


def test_a_learner_whose_place_left_the_log_goes_on_at_its_beginning(
    kafka_bootstrap: str, redis_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was down for longer than the topic keeps records: a gap in a sample, and no reason to end."""
    rig = Rig(kafka_bootstrap, redis_url, tmp_path)
    cluster, place, group = Cluster(kafka_bootstrap), Partition(rig.input, 0), f"{rig.settings.kafka.group}-learner"
    with cluster.bookmark(group) as bookmark:
        bookmark.commit(place, 1)
    times = START_MS + INTERVAL_MS * np.arange(LENGTH)
    produce(kafka_bootstrap, rig.input, [encode_packed("s", times, np.zeros((LENGTH, 1), np.float32))] * 5)
    forget(kafka_bootstrap, place, 3)
    with ExitStack() as opened:
        learner = build_learner(rig.settings, cluster, build_courses(rig.settings, cluster), LearnerMetrics(), opened)
        until(lambda: learner.step() > 0)
        learner.stop()
    assert cluster.committed(group)[place].offset == 5
    [warning] = [message for message in caplog.messages if "no longer in the log" in message]
    assert warning == f"at most 2 records passed over, no longer in the log: topic={rig.input} partition=0"
