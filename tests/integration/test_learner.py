"""The slow loop through a real Kafka and Redis: a family changes, the error rises, and falls after a promotion."""

from __future__ import annotations

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
from models.pretrained import Weights
from models.training import Lessons
from pipeline.learner_command import build_courses, build_learner
from pipeline.learning.course import Course
from pipeline.learning.learner import Learner
from pipeline.learning.metrics import LearnerMetrics
from pipeline.registry import Registry
from pipeline.servers import create_topics
from pipeline.settings import Engine, Kafka, Redis, Settings
from pipeline.settings import Learner as Rules
from pipeline.settings import Registry as Place
from pipeline.topics.kafka import Cluster, Feeder
from pipeline.wire import decode_scores, encode_packed
from pipeline.wiring import build_worker
from pipeline.worker import Worker
from tests.builders import START_MS, make_profile
from tests.real_kafka import unique, until, visible

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(400)]

STREAMS, LENGTH, INTERVAL_MS = 4, 32, 600_000
BEFORE, AFTER = 14, 34
"""Stretches before and after the change; 34 are seven and a half days."""

RULES = Rules(
    stretch=LENGTH, reservoir=128, batch=8, rate=3e-3, cpu_share=1.0, drift_cpu_share=1.0, candidate_updates=48,
    shadow_stretches=12, probation_stretches=16, margin=0.02,
)  # fmt: skip


def _quickly(
    base: Weights, network: Learned, seen: Sequence[Lessons], seed: int, effort: Effort, about: dict[str, Any]
) -> Weights:
    """New weights without the time that pooled tails take."""
    return replace(base, network=network, manifest=about)


class Rig:
    """A topic, a worker and a learner of one profile, fed a stretch of every stream at a time."""

    def __init__(self, bootstrap: str, redis_url: str, folder: Path) -> None:
        names = {name: unique(name) for name in ("input", "scores", "alerts", "dead")}
        create_topics(bootstrap, dict.fromkeys(names.values(), 1))
        kafka = Kafka(
            bootstrap_servers=(bootstrap,), group=unique("g"), scores_topic=names["scores"],
            alerts_topic=names["alerts"], dead_letter_topic=names["dead"], commit_interval_s=0.2,
        )  # fmt: skip
        profile = make_profile(topics=[names["input"]], interval_s=600, light=True, clock=False)
        self.settings = Settings(
            kafka=kafka, redis=Redis(url=SecretStr(redis_url)), engine=Engine(device="cpu", threads=1),
            registry=Place(folder=folder), learner=RULES, profiles={"p": profile},
        )  # fmt: skip
        self.input, self.scores, self.bootstrap = names["input"], names["scores"], bootstrap
        self.registry, self.at = Registry(folder), 0

    @contextmanager
    def running(self) -> Iterator[tuple[Worker, Learner, Course, Feeder]]:
        """Both at work; stopped at the end of the block."""
        cluster = Cluster(self.bootstrap)
        with ExitStack() as opened:
            worker = build_worker(self.settings, lambda stats: None)
            opened.callback(worker.stop)
            torch.set_num_threads(1)
            courses = build_courses(self.settings, cluster, _quickly)
            learner = build_learner(self.settings, cluster, courses, LearnerMetrics(), opened)
            yield worker, learner, courses["p"], opened.enter_context(cluster.feeder())

    def feed(self, feeder: Feeder, values: np.ndarray) -> None:
        """Write the next stretch of every stream: ``values`` (streams, T)."""
        times = START_MS + INTERVAL_MS * np.arange(self.at, self.at + LENGTH)
        for number, mine in enumerate(values):
            stream = f"s{number}"
            feeder.send(self.input, stream.encode(), encode_packed(stream, times, mine[:, None].astype(np.float32)))
        feeder.flush()
        self.at += LENGTH


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
    with rig.running() as (worker, learner, course, feeder):
        fed = 0

        def stretch() -> None:
            nonlocal fed
            rig.feed(feeder, _family(kind, rig.at, BEFORE * LENGTH))
            fed += STREAMS
            read = 0
            while read < STREAMS:
                read += learner.step()
                worker.step()
            while course.wants_to_study():
                learner.step()
                worker.step()
            until(follows)

        def follows() -> bool:
            """The worker looks for a new version once a second: a fast run would be over before it has."""
            worker.step()
            serving = {state.committed.history[-1][1] for state in worker.partitions.values() if state.committed}
            return serving == {rig.registry.current("p")}

        for _ in range(BEFORE):
            stretch()
        first = rig.registry.current("p")
        assert not rig.registry.history("p"), "nothing changes while the family is what it was"
        before = course.status().loss_now
        statuses = []
        for _ in range(AFTER):
            stretch()
            statuses.append(course.status())
        until(lambda: worker.step().is_idle)
        learner.commit()
    history = rig.registry.history("p")
    promoted = next(decision for decision in history if decision.event == "promoted")
    assert promoted.parent == first
    assert promoted.figures["loss"] < promoted.figures["loss_of_parent"] - RULES.margin
    worst = max(status.loss_now for status in statuses)
    assert worst > before + RULES.margin, "the error rose"
    assert statuses[-1].loss_now < worst - RULES.margin, "and fell"
    if kind != "slow drift":
        assert max(status.closed for status in statuses) == STREAMS, "no lesson before it has lasted"
    scores = [decode_scores(value) for value in visible(rig.bootstrap, rig.scores)]
    assert promoted.version in {batch.model_version for batch in scores}
    assert sum(len(batch.score) for batch in scores) == fed * LENGTH
    assert Cluster(rig.bootstrap).committed(f"{rig.settings.kafka.group}-learner")
