"""The slow loop: what may teach, what is kept, when a version changes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from models.calibration import Effort
from models.config import PredictorConfig
from models.learner import Learned, UpdateReport
from models.pretrained import Weights
from models.training import Lessons
from models.trial import Trial, TrialResult
from pipeline.errors import BrokerAway, CannotLearnError, ConfigurationError, RegistryAway
from pipeline.learner_command import build_courses
from pipeline.learning.course import OUTCOMES, Course, CourseStatus, Phase
from pipeline.learning.cutting import Cutter, Stretch
from pipeline.learning.follow import Following
from pipeline.learning.gate import Gate, Reason
from pipeline.learning.learner import Learner
from pipeline.learning.metrics import LearnerMetrics
from pipeline.learning.reservoir import Reservoir
from pipeline.partition import to_offset
from pipeline.profile import Profile
from pipeline.records import CONTROL_FORGET, Committed, Partition, Scores, Windows
from pipeline.registry import Decision, Registry
from pipeline.settings import EngineSettings, LearnerSettings, RegistrySettings, Settings
from pipeline.topics.kafka import Cluster
from pipeline.versions_in_use import versions_in_use
from tests.builders import START_MS, FakeClock, make_profile, tiny_weights

INTERVAL_MS = 600_000
DAY_MS = 86_400_000
LENGTH = 32
STRETCH_MS = LENGTH * INTERVAL_MS
HERE, ELSEWHERE = Partition("input", 0), Partition("input", 1)
QUIET_LOSS = 0.5


# ---------------------------------------------------------------- what may teach


class Judged:
    """A gate, and a stream that says a stretch at a time."""

    def __init__(self, features: int = 1) -> None:
        self.gate = Gate(1.5 * 86_400, 0.1)
        self.features = features
        self.dead: list[int] = []
        self.random = np.random.default_rng(0)
        self.number = 0

    def say(
        self, level: float = 0.0, spread: float = 1.0, loss: float = QUIET_LOSS, stretches: int = 1, **what: Any
    ) -> list[Reason]:
        """Judge stretches of this kind."""
        found = []
        for _ in range(stretches):
            times = START_MS + self.number * STRETCH_MS + INTERVAL_MS * np.arange(LENGTH)
            values = (level + spread * self.random.standard_normal((LENGTH, self.features))).astype(np.float32)
            values[:, self.dead] = np.nan
            imputed = len(self.dead) / self.features
            fields = {"anomalous": 0, "warming_up": 0, "imputed": imputed, "follows_gap": False} | what
            found.append(self.gate.judge(Stretch("s", times, values, **fields), loss))
            self.number += 1
        return found


@pytest.fixture
def stream() -> Judged:
    """A stream that is known."""
    judged = Judged()
    assert judged.say(stretches=20) == [Reason.NORMAL] * 20
    return judged


def test_only_normal_stretches_teach(stream: Judged) -> None:
    """What was anomalous, imputed or not yet judged is named, and left out."""
    assert stream.say(imputed=0.5) == [Reason.IMPUTED]
    assert stream.say(warming_up=3) == [Reason.WARMING_UP]
    assert stream.say(anomalous=1) == [Reason.ANOMALOUS]


def test_a_short_surprise_closes_a_stream_for_as_long_as_it_is_unlike_itself(stream: Judged) -> None:
    """The stretch after an alarm teaches again, if it looks like before."""
    assert stream.say(level=30, anomalous=2) == [Reason.ANOMALOUS]
    assert stream.say() == [Reason.NORMAL]


@pytest.mark.parametrize("fault", [{"level": 9.0}, {"spread": 0.02}, {"spread": 6.0}, {"loss": 3.0}])
def test_a_fault_of_a_day_is_never_learned(stream: Judged, fault: dict[str, float]) -> None:
    """The fold gets used to a fault within hours and alarms no more; the learner must not take that for health."""
    assert stream.say(**fault, anomalous=3) == [Reason.ANOMALOUS]
    a_day = round(DAY_MS / STRETCH_MS)
    assert stream.say(**fault, stretches=a_day) == [Reason.CLOSED] * a_day
    assert stream.say() == [Reason.NORMAL]


def test_a_creeping_fault_without_an_alarm_closes_too(stream: Judged) -> None:
    """Missed faults must not be learned either."""
    assert stream.say(level=6.0) == [Reason.CLOSED]


def test_a_dead_sensor_does_not_keep_the_others_from_being_watched() -> None:
    """It has no level to be known by; a fault of the nine beside it must be seen all the same."""
    stream = Judged(features=10)
    stream.dead = [3]
    assert stream.say(stretches=20) == [Reason.NORMAL] * 20
    kept = json.loads(json.dumps(stream.gate.memory()))
    stream.gate = Gate(1.5 * 86_400, 0.1)
    stream.gate.restore(kept, 10, 4)
    assert stream.say(level=9.0, stretches=2) == [Reason.CLOSED] * 2
    assert stream.say() == [Reason.NORMAL]


def test_a_sensor_that_is_repaired_is_no_fault_and_is_known_by_what_it_says_from_then_on() -> None:
    """Nothing is known of it while it is dead; nor may what was known before it died be lost."""
    stream = Judged(features=10)
    stream.dead = [3]
    stream.say(stretches=20)
    stream.dead = [5]
    assert stream.say(stretches=10) == [Reason.NORMAL] * 10
    for alive in (3, 5):
        stream.dead = [each for each in range(10) if each != alive]
        assert stream.say(level=9.0, imputed=0.0) == [Reason.CLOSED]
        assert stream.say(imputed=0.0) == [Reason.NORMAL]


@pytest.mark.parametrize("change", [{"level": 9.0}, {"spread": 6.0}, {"loss": 3.0}])
def test_a_lasting_change_is_learned_in_the_end(stream: Judged, change: dict[str, float]) -> None:
    """Learning never locks itself out after a shift that stays."""
    found = stream.say(**change, stretches=30)
    first = found.index(Reason.NORMAL)
    assert 1.5 * DAY_MS <= (first + 1) * STRETCH_MS <= 2.2 * DAY_MS
    assert set(found[first:]) == {Reason.NORMAL}
    (((*_, (known, *_)), *_),) = stream.gate.memory().values()
    assert known == [len(found) - first], "known by what it says since, and by nothing before"


def test_a_change_that_no_detector_confirms_is_learned_at_twice_the_time(stream: Judged) -> None:
    """A stream that is only a little strange, and alarms now and then, must not stay out for ever."""
    found = [reason for _ in range(20) for reason in (*stream.say(anomalous=1), *stream.say(level=4.0))]
    first = found.index(Reason.NORMAL)
    assert 2 * 1.5 * DAY_MS <= (first + 1) * STRETCH_MS <= 3.5 * DAY_MS
    assert set(found[first::2]) == {Reason.NORMAL}, "all that do not alarm"


def test_a_small_change_after_one_alarm_is_learned_and_stays_learned(stream: Judged) -> None:
    """The stream must not be closed again by what it has become."""
    stream.say(level=3.5, anomalous=1)
    found = stream.say(level=3.5, stretches=40)
    first = found.index(Reason.NORMAL)
    assert 1.5 * DAY_MS <= (first + 2) * STRETCH_MS <= 2.2 * DAY_MS
    assert set(found[first:]) == {Reason.NORMAL}


def test_a_slow_drift_keeps_teaching(stream: Judged) -> None:
    """What moves slowly is not a fault: the weights should follow it."""
    assert {stream.say(level=0.05 * k)[0] for k in range(100)} == {Reason.NORMAL}


def test_a_restart_in_the_middle_of_a_fault_does_not_take_the_fault_for_health(stream: Judged) -> None:
    """A learner that starts has seen nothing but the fault: what it knew before must outlive it."""
    assert stream.say(level=9.0, anomalous=3) == [Reason.ANOMALOUS]
    assert stream.say(level=9.0) == [Reason.CLOSED]
    kept = json.loads(json.dumps(stream.gate.memory()))
    stream.gate = Gate(1.5 * 86_400, 0.1)
    stream.gate.restore(kept, 1, 1)
    stream.gate.doubt_losses()
    stream.number -= 4
    assert stream.say(stretches=2) == [Reason.NORMAL] * 2, "read again: from before the fault"
    assert stream.say(level=9.0, stretches=2) == [Reason.CLOSED] * 2, "read again: the fault"
    assert stream.say(level=9.0, stretches=2) == [Reason.CLOSED] * 2
    assert stream.say() == [Reason.NORMAL], "over"


def test_a_lasting_change_is_learned_though_the_learner_restarts_again_and_again(stream: Judged) -> None:
    """What outlives a restart is the closure with its beginning, not a new one each time."""
    found = []
    for _ in range(30):
        found += stream.say(level=9.0)
        kept = json.loads(json.dumps(stream.gate.memory()))
        stream.gate = Gate(1.5 * 86_400, 0.1)
        stream.gate.restore(kept, 1, 1)
    assert Reason.NORMAL in found
    assert 1.5 * DAY_MS <= (found.index(Reason.NORMAL) + 1) * STRETCH_MS <= 3.5 * DAY_MS


@pytest.mark.parametrize(
    "memory", [{"s": 1}, {"s": [[], 0, None, 0, False]}, [], {"s": [[[9, [1, 2], [1, 2]]] * 3, 0, None, 0, 0]}]
)
def test_foreign_memory_is_refused(memory: Any) -> None:
    """Half a memory would compare streams with nonsense."""
    with pytest.raises((ValueError, TypeError, AttributeError)):
        Gate(1.0, 0.1).restore(memory, 1, 1)


def test_memory_with_one_count_for_all_features_is_known_again(stream: Judged) -> None:
    """Learners have kept that; an upgrade in the midst of a fault must not end the learner, nor teach it the fault."""
    ((past, *rest),) = stream.gate.memory().values()
    stream.gate.restore({"s": [[[count[0], *moments] for count, *moments in past], *rest]}, 1, 1)
    assert stream.say(level=9.0) == [Reason.CLOSED]


def test_of_more_streams_than_may_be_followed_those_seen_last_are_known_again(stream: Judged) -> None:
    """Streams that are gone must not be handed from restart to restart for ever."""
    (kept,) = stream.gate.memory().values()
    past, seen_ms, *rest = kept
    gate = Gate(1.5 * 86_400, 0.1)
    gate.restore({name: [past, seen_ms + k, *rest] for k, name in enumerate("abcd")}, 1, 2)
    assert set(gate.memory()) == {"c", "d"}


# ---------------------------------------------------------------- what is kept


def test_reservoir_is_bounded_and_shared_out_equally() -> None:
    """A loud stream must not push out the quiet ones it would make the weights forget."""
    reservoir: Reservoir[int] = Reservoir(30, seed=1)
    for k in range(1000):
        reservoir.add("loud", k)
        if k % 50 == 0:
            reservoir.add("quiet", k)
    kept = reservoir.strata()
    assert sum(kept.values()) == len(reservoir) == 30
    assert abs(kept["loud"] - kept["quiet"]) <= 1
    assert len(reservoir.sample(7)) == 7


def test_reservoir_keeps_old_and_new() -> None:
    """Rehearsal against forgetting needs what came long ago, and the present."""
    reservoir: Reservoir[int] = Reservoir(40, seed=1)
    for k in range(400):
        reservoir.add("s", k)
    drawn = reservoir.sample(400)
    assert min(drawn) < 150
    assert max(drawn) > 300
    reservoir.forget("s")
    assert reservoir.sample(3) == []
    assert len(reservoir) == 0


def _windows(streams: Sequence[str], values: np.ndarray, begin: int, offset: int = 0) -> Windows:
    """One window of each stream: ``values`` (N, T, F) from observation ``begin`` on."""
    count, length, features = values.shape
    times = START_MS + INTERVAL_MS * np.arange(begin, begin + length)
    return Windows(
        list(streams),
        np.arange(offset, offset + count),
        np.full(count, times[-1]),
        np.full(count, length),
        np.zeros(count, bool),
        np.zeros(count, np.uint8),
        np.tile(times, count),
        np.ascontiguousarray(values.reshape(-1, features), np.float32),
    )


def _scored(windows: Windows, keep: slice = slice(None)) -> Scores:
    """Scores of the observations ``keep`` of every window, all normal."""
    per = windows.times_ms.reshape(len(windows), -1)[:, keep]
    flat = per.ravel()
    zeros = np.zeros(len(flat), np.float32)
    return Scores(
        HERE, "p", "v", ("none",), windows.stream_ids, windows.offsets, np.full(len(windows), per.shape[1]), flat,
        zeros, zeros, np.zeros(len(flat), np.uint8), np.zeros(len(flat), np.uint8), np.zeros(len(flat), np.int16),
        zeros, np.zeros(len(windows), bool),
    )  # fmt: skip


def test_stretches_do_not_depend_on_how_windows_are_cut() -> None:
    """A stretch is the next 32 observations of its stream, however they came."""
    values = np.arange(96, dtype=np.float32).reshape(1, 96, 1)
    found = []
    for sizes in ((96,), (5, 40, 51), (32, 32, 32)):
        cutter, at, made = Cutter(LENGTH, 600.0), 0, []
        for size in sizes:
            part = _windows(["s"], values[:, at : at + size], at)
            made += cutter.add(part, _scored(part))
            at += size
        found.append([each.values[:, 0].tolist() for each in made])
    assert found[0] == found[1] == found[2]
    assert found[0][2] == list(range(64, 96))


def test_a_pause_ends_a_stretch_and_late_observations_are_not_in_it() -> None:
    """A stretch with a hole would teach a jump that never happened."""
    cutter = Cutter(LENGTH, 600.0)
    values = np.arange(40, dtype=np.float32).reshape(1, 40, 1)
    first = _windows(["s"], values[:, :20], 0)
    assert not cutter.add(first, _scored(first))
    later = _windows(["s"], values, 100, offset=1)
    (made,) = cutter.add(later, _scored(later, slice(4, None)))
    assert made.follows_gap
    assert made.values[:, 0].tolist() == list(range(4, 36))


def _named(names: Sequence[str], begin: int = 0) -> Windows:
    return _windows(names, np.zeros((len(names), 4, 1)), begin)


def test_only_so_many_streams_are_followed_and_forgotten_ones_make_room() -> None:
    """The learner's memory is bounded; a sample is enough for weights that all share."""
    following = Following(2, DAY_MS)
    windows = _named(["a", "b", "c"])
    chosen, given_up = following.choose(HERE, windows)
    assert (chosen.stream_ids, given_up) == (["a", "b"], [])
    windows.control[0] = CONTROL_FORGET
    chosen, given_up = following.choose(HERE, windows)
    assert (chosen.stream_ids, given_up) == (["b", "c"], ["a"])


def test_streams_that_ended_make_room_for_new_ones() -> None:
    """Machines are replaced: a learner that follows only those of its first day would learn from nobody."""
    following = Following(2, DAY_MS)
    following.choose(HERE, _named(["a", "b"]))
    assert following.choose(HERE, _named(["c"], 100))[0].stream_ids == [], "within a day nobody has ended"
    following.choose(HERE, _named(["b"], 140))
    chosen, given_up = following.choose(HERE, _named(["b", "c", "d"], 150))
    assert (chosen.stream_ids, given_up) == (["b", "c"], ["a"])
    assert len(following) == 2


def test_a_name_is_followed_from_one_place_at_a_time(caplog: pytest.LogCaptureFixture) -> None:
    """Two machines called pump-1 in two topics are not one series; people are told once."""
    following = Following(2, DAY_MS)
    following.choose(HERE, _named(["a"]))
    for at in range(3):
        chosen, given_up = following.choose(ELSEWHERE, _named(["a", "b"], at))
        assert (chosen.stream_ids, given_up) == (["b"], [])
        assert following.choose(HERE, _named(["a", "b"], at))[0].stream_ids == ["a"]
    assert len(caplog.messages) == 1
    assert "input-0" in caplog.messages[0]


def test_a_stream_that_moved_is_taken_up_again_once_its_old_place_has_ended() -> None:
    """Partitions are added: what has gone from one and comes in another is given up, and begins anew."""
    following = Following(2, DAY_MS)
    following.choose(HERE, _named(["a"]))
    assert following.choose(ELSEWHERE, _named(["a"], 140))[0].stream_ids == []
    chosen, given_up = following.choose(ELSEWHERE, _named(["a"], 150))
    assert (chosen.stream_ids, given_up) == (["a"], ["a"])
    assert following.choose(HERE, _named(["a"], 150))[0].stream_ids == []
    assert "a" in following
    assert len(following) == 1


def test_reservoir_of_many_strata_that_come_and_go_stays_bounded() -> None:
    """A name costs memory, too."""
    reservoir: Reservoir[int] = Reservoir(5, seed=1)
    for k in range(100):
        reservoir.add(f"s{k}", k)
    assert len(reservoir.strata()) == len(reservoir) == 5


class Diligent:
    """A course that always wants to study, 0.4 s at a time."""

    def __init__(self, clock: FakeClock, is_drifting: bool) -> None:
        self.clock, self.is_drifting, self.spent_s, self.decisions = clock, is_drifting, 0.0, 0

    def wants_to_study(self) -> bool:
        return True

    def study(self) -> UpdateReport:
        self.clock.advance(0.4)
        self.spent_s += 0.4
        return UpdateReport(1.0, 1.0, 0, 0.0, 0)

    def decide(self) -> None:
        """A candidate now and then, which takes a while."""
        self.decisions += 1
        if self.decisions % 50 == 0:
            self.clock.advance(5.0)
            self.spent_s += 5.0

    def remember(self) -> None:
        """Nothing to keep."""


@pytest.mark.parametrize(("is_drifting", "share"), [(False, 0.25), (True, 0.75)])
def test_learning_takes_its_share_of_a_core_and_more_while_the_family_drifts(is_drifting: bool, share: float) -> None:
    """The learner never slows serving: on a shared machine it gets what was agreed, and works harder when it must."""
    clock = FakeClock()
    course = Diligent(clock, is_drifting)
    learner = Learner([], {"p": course}, None, None, clock, 0.25, 0.75)  # type: ignore[dict-item, arg-type]
    begin = clock.now_s
    for _ in range(2000):
        clock.advance(0.1)  # reading and waiting
        learner.step()
    agreed_s = share * (clock.now_s - begin)
    assert 0.95 * agreed_s < course.spent_s < agreed_s + 2.0


# ---------------------------------------------------------------- when a version changes


def _trial(**what: Any) -> Trial:
    return Trial(
        **({"challenger": "b", "incumbent": "a", "needed": 20, "margin": 0.05, "alarm_every_s": 86_400.0} | what)
    )


@pytest.mark.parametrize(
    ("gain", "alarms", "result"),
    [
        (0.2, 1, TrialResult.BETTER),
        (0.02, 0, TrialResult.NO_BETTER),
        (-0.2, 0, TrialResult.NO_BETTER),
        (0.2, 9, TrialResult.MORE_ALARMS),
    ],
)
def test_a_candidate_must_predict_better_by_the_margin_and_alarm_no_more(
    gain: float, alarms: int, result: TrialResult
) -> None:
    """Better prediction that pages people more often is not better."""
    trial, random = _trial(), np.random.default_rng(0)
    assert trial.shadow_result() is TrialResult.UNDECIDED
    for loss in random.normal(1.0, 0.3, 20):
        trial.compare(loss - gain + random.normal(0, 0.01), loss)
        trial.watch(3600.0, 0, 0)
    trial.watch(0.0, alarms, 1)
    assert trial.shadow_result() is result
    assert trial.figures()["alarms_allowed"] == 2


def test_a_gain_within_the_noise_does_not_count() -> None:
    """The mean of a few stretches may favour anybody."""
    trial, random = _trial(), np.random.default_rng(0)
    for noise in random.normal(0.06, 1.0, 20):
        trial.compare(1.0, 1.0 + noise)
    assert trial.shadow_result() is TrialResult.NO_BETTER


def test_probation_ends_early_where_the_loss_or_the_alarms_are_clearly_worse() -> None:
    """A bad version should not serve until a count is full."""
    trial = _trial()
    for k in range(6):
        trial.compare(1.5 + 0.01 * k, 1.0)
    assert trial.probation_result() is TrialResult.WORSE
    loud = _trial()
    loud.watch(60.0, 3, 0)
    assert loud.probation_result() is TrialResult.MORE_ALARMS
    fine = _trial()
    for _ in range(20):
        fine.compare(1.0, 1.0)
    assert fine.probation_result() is TrialResult.BETTER


def test_versions_of_live_histories_are_told_apart_from_foreign_offsets() -> None:
    """Rule 11: what a replay may need must not be deleted; an offset of another program names nothing."""
    ours = to_offset(Committed(7, "i", 0, ((0, "aaa"), (5, "bbb"))))
    offsets = {HERE: ours, Partition("input", 1): replace(ours, metadata="theirs")}
    assert versions_in_use(SimpleNamespace(committed=lambda group: offsets), "g") == {"aaa", "bbb"}

    def away(group: str) -> dict[Partition, Any]:
        raise BrokerAway("no")

    assert versions_in_use(SimpleNamespace(committed=away), "g") is None


# ---------------------------------------------------------------- all of it


def _quickly(
    base: Weights, network: Learned, seen: Sequence[Lessons], seed: int, effort: Effort, about: dict[str, Any]
) -> Weights:
    """New weights without the half minute that pooled tails take."""
    return replace(base, network=network, manifest=about)


class Family:
    """Four streams that a course follows; it learns all it may."""

    rules = LearnerSettings(
        stretch=LENGTH, reservoir=128, batch=8, rate=1e-2, candidate_updates=24, shadow_stretches=12,
        probation_stretches=24, margin=0.05, keep_versions=1,
    )  # fmt: skip

    def __init__(self, folder: Path, **changes: object) -> None:
        tiny_weights(1).save(folder / "base")
        settings = {"interval_s": 600, "light": True, "clock": False, "alarm_budget": "1 per week"} | changes
        self.profile: Profile = make_profile(predictor=str(folder / "base"), **settings)
        self.registry = Registry(folder / "registry")
        self.first = self.registry.ensure("p", str(folder / "base"), self.profile.fold())
        self.course = self.begun()
        self.at = self.offset = 0

    def begun(self) -> Course:
        """A learner that has just started."""
        return Course("p", self.profile, self.registry, self.rules, lambda: START_MS, live_versions=set, renew=_quickly)

    def live(
        self, kind: str, stretches: int, faulty: Sequence[int] = (), names: Sequence[str] = ("s0", "s1", "s2", "s3")
    ) -> None:
        """Let time pass."""
        for _ in range(stretches):
            t = np.arange(self.at, self.at + LENGTH)
            random = np.random.default_rng(self.at)
            noise = random.standard_normal((4, LENGTH))
            phase = np.arange(4)[:, None]
            if kind == "waves":
                values = np.sin(2 * np.pi * t / 8 + phase) + 0.05 * noise
            else:
                values = 1.3 * np.sign(np.sin(2 * np.pi * t / 22 + phase)) + 0.02 * noise
            values[list(faulty)] += 25.0
            self.course.absorb(HERE, _windows(names, values[..., None], self.at, self.offset))
            self.at, self.offset = self.at + LENGTH, self.offset + 4
            while self.course.wants_to_study():
                self.course.study()
            self.course.decide()

    def events(self) -> list[str]:
        """What the history says."""
        return [decision.event for decision in self.registry.history("p")]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_learned_weights_are_tried_promoted_and_rolled_back(tmp_path: Path) -> None:
    """The whole loop: a candidate in shadow, a promotion, a restart on probation, and the way back by itself."""
    family = Family(tmp_path)
    family.live("waves", 24)
    assert family.events()[:2] == ["candidate", "promoted"]
    promoted = family.registry.history("p")[1]
    assert promoted.parent == family.first
    assert promoted.figures["gain"] >= family.rules.margin
    about = family.registry.load("p", promoted.version)[0].manifest
    assert about["parent"] == family.first
    assert about["loss_progressive"] < about["loss_of_parent"]
    assert about["data_from"].startswith("2023-11-1")
    assert about["data_from"] < about["data_to"]
    assert {"made_at", "streams", "updates", "learning", "row_layout", "code_version"} <= set(about)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_promoted_version_that_turns_out_worse_goes_back(tmp_path: Path) -> None:
    """Rolled back by itself, with figures, also by a learner that was restarted in between."""
    family = Family(tmp_path)
    family.live("waves", 8)
    bad = family.registry.publish("p", _worse(tiny_weights(1)), family.profile.fold())
    family.course = family.begun()
    history = family.registry.history("p")
    family.registry.note("p", replace(_decision(), version=bad, parent=family.first))
    family.registry.serve("p", bad)
    family.course, family.at = family.begun(), family.at + 2000
    family.live("waves", 16)
    after = family.registry.history("p")[len(history) + 1 :]
    assert after[0].event == "rolled back"
    assert (after[0].version, after[0].parent) == (bad, family.first)
    assert family.registry.history("p")[-1].event != "rolled back" or family.registry.current("p") == family.first


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_ongoing_fault_teaches_nothing(tmp_path: Path) -> None:
    """One machine that is broken for a day must not become what all are expected to be."""
    family = Family(tmp_path)
    family.live("waves", 14)
    taught = family.course.status().stretches
    family.live("waves", 5, faulty=[2])
    status = family.course.status()
    assert status.closed == 1
    assert status.stretches == taught + 3 * 5


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_restarted_learner_still_knows_what_its_streams_were(tmp_path: Path) -> None:
    """The whole course: kept beside the versions, read again, and the fault goes on teaching nothing."""
    family = Family(tmp_path)
    family.live("waves", 13)
    family.live("waves", 1, faulty=[2])
    family.course.remember()
    family.course = family.begun()
    family.live("waves", 4, faulty=[2])
    status = family.course.status()
    assert status.judged[Reason.WARMING_UP] == 4 * 4, "rows begin anew"
    family.live("waves", 1, faulty=[2])
    assert family.course.status().stretches == 3
    assert family.course.status().closed == 1


def test_streams_come_and_go_beyond_the_limit(tmp_path: Path) -> None:
    """Machines are replaced for years; the learner neither runs full nor stops following."""
    family = Family(tmp_path)
    family.rules = family.rules.model_copy(update={"max_streams": 4})
    family.course = family.begun()
    for number in range(3):
        family.live("waves", 2, names=[f"generation-{number}-{k}" for k in range(4)])
        assert family.course.status().streams == 4
        family.at += 8 * 144
    assert family.course.status().judged[Reason.WARMING_UP] == 3 * 2 * 4


def test_streams_of_one_name_in_two_partitions_do_not_end_the_learner(tmp_path: Path) -> None:
    """Rows are counted by place and name: at its full number of streams there was one row too few, for ever."""
    family = Family(tmp_path)
    family.rules = family.rules.model_copy(update={"max_streams": 4})
    family.course = family.begun()
    for _ in range(14):
        family.live("waves", 1)
        family.course.absorb(ELSEWHERE, _windows(["s0"], np.full((1, LENGTH, 1), 50.0), family.at - LENGTH))
    assert family.course.teaching.reservoir.strata().keys() == {"s0", "s1", "s2", "s3"}
    assert family.course.status().judged == {Reason.WARMING_UP: 4 * 4, Reason.NORMAL: 4 * 10}, "as if it had not come"
    family.at += 8 * 144  # longer than idle_reset_s
    family.course.absorb(ELSEWHERE, _windows(["s0"], np.zeros((1, LENGTH, 1)), family.at))
    assert family.course.status().judged[Reason.WARMING_UP] == 4 * 4 + 1, "it moved, and began anew"


def test_what_is_known_of_streams_does_not_grow_with_every_restart(tmp_path: Path) -> None:
    """Names come and go for years; a stream that nobody follows is neither kept nor shown as closed for ever."""
    family = Family(tmp_path)
    family.rules = family.rules.model_copy(update={"max_streams": 4})
    for number in range(4):
        names = [f"generation-{number}-{k}" for k in range(4)]
        family.course = family.begun()
        assert family.course.status().closed == 0, "nobody is followed yet"
        family.live("waves", 5, names=names)
        family.live("waves", 1, faulty=[0, 1, 2, 3], names=names)
        assert family.course.status().closed == 4
        family.course.remember()
        known = family.registry.recall("p")["streams"]
        assert len(known) <= 2 * 4, "those of one restart before, and those followed"
        assert known.keys() >= set(names)


@pytest.mark.parametrize(
    "predictor", [PredictorConfig("naive", hidden=1), PredictorConfig(hidden=4, scope="stream", features=1)]
)
def test_a_predictor_that_cannot_learn_is_left_to_serve(tmp_path: Path, predictor: PredictorConfig) -> None:
    """One profile of last values must not keep the learner from all others, and says why it stays as it is."""
    profile = make_profile(interval_s=600, light=True, clock=False)
    registry = Registry(tmp_path)
    registry.serve("p", registry.publish("p", Weights.random(predictor, 1), profile.fold()))
    with pytest.raises(CannotLearnError, match="learn"):
        Course("p", profile, registry, Family.rules, lambda: START_MS)


def test_profiles_that_cannot_learn_keep_nobody_from_learning(tmp_path: Path) -> None:
    """The command follows those that can, and ends with a reason only where none can."""
    Weights.random(PredictorConfig("naive", hidden=1), 1).save(tmp_path / "naive")
    tiny_weights(1).save(tmp_path / "tiny")
    profiles = {
        name: make_profile(topics=[name], predictor=str(tmp_path / name), light=True) for name in ("naive", "tiny")
    }
    cluster = Cluster("127.0.0.1:1")
    settings = Settings(
        registry=RegistrySettings(folder=tmp_path / "registry"), engine=EngineSettings(device="cpu"), profiles=profiles
    )
    assert set(build_courses(settings, cluster)) == {"tiny"}
    none = settings.model_copy(update={"profiles": {"naive": profiles["naive"]}})
    with pytest.raises(ConfigurationError, match="none of the profiles"):
        build_courses(none, cluster)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_family_that_moves_is_noticed_and_studied_harder(tmp_path: Path) -> None:
    """river's word on the losses: noted with its figures, and more is learned from each stretch until caught up."""
    family = Family(tmp_path)
    family.live("waves", 24)
    assert "promoted" in family.events(), "it serves what it learned of the waves"
    assert "drift" not in family.events()
    status = family.course.status()
    family.live("squares", 12)
    drift = next(decision for decision in family.registry.history("p") if decision.event == "drift")
    assert drift.figures["loss"] > drift.figures["loss_before"]
    moved = family.course.status()
    assert moved.updates - status.updates > 1.5 * (moved.stretches - status.stretches)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_pinned_versions_stay_and_retraining_can_be_asked_for(tmp_path: Path) -> None:
    """An operator's word counts more than a learner's figures."""
    family = Family(tmp_path)
    family.registry.pin("p", True)
    family.registry.ask_retrain("p")
    family.live("waves", 16)
    events = family.events()
    assert events[0] == "retrain"
    assert {"candidate", "held"} <= set(events)
    assert family.registry.current("p") == family.first


def test_a_version_of_other_settings_is_followed_and_said_once(tmp_path: Path) -> None:
    """A worker with another alarm budget decides what is in force: the learner must neither undo it nor talk on."""
    family = Family(tmp_path)
    family.live("waves", 6)
    kept = family.course.status().reservoir
    daily = family.profile.model_copy(update={"alarm_budget": "1 per day"}).fold()
    version = family.registry.ensure("p", str(tmp_path / "base"), daily)
    assert version != family.first
    family.live("waves", 1)
    assert family.course.status().reservoir > kept, "it goes on with what it has"
    for _ in range(5):
        family.course.decide()
    (told,) = [each for each in family.registry.history("p") if each.event == "followed"]
    assert (told.version, told.parent) == (version, family.first)
    assert "alarm_every_s 86400.0 for 604800.0" in told.reason
    family.registry.ask_retrain("p")
    while "candidate" not in family.events():
        family.live("waves", 1)
    candidate = next(each for each in family.registry.history("p") if each.event == "candidate")
    assert family.registry.load("p", candidate.version)[1] == daily


@pytest.mark.parametrize("change", ["interval", "predictor", "evidence"])
def test_a_version_of_another_kind_is_learned_from_anew(tmp_path: Path, change: str) -> None:
    """What was kept of another interval or for another network teaches wrong things, or ends the learner."""
    family = Family(tmp_path, **({"light": False, "clock": True} if change == "evidence" else {}))
    family.live("waves", 8)
    assert family.course.status().reservoir > 0
    weights, fold = family.registry.load("p", family.first)
    if change == "interval":
        fold = replace(fold, interval_s=300.0)
    elif change == "evidence":
        fold = replace(fold, evidence="jump")
    else:
        weights = Weights.random(PredictorConfig("lstm", hidden=4), 1)
    family.registry.serve("p", family.registry.publish("p", weights, fold))
    family.course.decide()
    assert family.course.status().reservoir == 0
    updates = family.course.status().updates
    family.live("waves", 5, names=("s0", "s1", "s2", "new"))
    status = family.course.status()
    assert status.version == family.registry.current("p")
    if change != "interval":
        assert status.updates > updates


def test_a_served_version_that_cannot_be_read_for_a_moment_is_taken_over_later(tmp_path: Path) -> None:
    """A hiccup of the registry's volume in the second after a promotion must not part the learner from what serves."""
    family = Family(tmp_path)
    family.live("waves", 2)
    second = family.registry.publish("p", tiny_weights(5), family.profile.fold())
    family.registry.serve("p", second)
    weights, aside = tmp_path / "registry" / "p" / "versions" / second / "weights.safetensors", tmp_path / "aside"
    weights.rename(aside)
    weights.mkdir()  # there, and not to be read
    with pytest.raises(RegistryAway):
        family.course.decide()
    weights.rmdir()
    aside.rename(weights)
    family.course.decide()
    assert family.course.status().version == second
    assert family.events()[0] == "followed"


def test_a_version_that_cannot_learn_lets_the_learner_rest_until_another_serves(tmp_path: Path) -> None:
    """Promoted by hand, it must not keep other profiles from learning, nor be complained of every second."""
    family = Family(tmp_path)
    family.live("waves", 4)
    naive = family.registry.publish("p", Weights.random(PredictorConfig("naive", hidden=1), 1), family.profile.fold())
    family.registry.serve("p", naive)
    family.live("waves", 3)
    assert family.events() == ["resting"]
    assert "nothing to learn" in family.registry.history("p")[0].reason
    status = family.course.status()
    assert (status.phase, family.course.wants_to_study()) == (Phase.RESTING, False)
    family.registry.serve("p", family.first)
    family.live("waves", 2)
    assert family.events() == ["resting", "followed"]
    assert family.course.status().phase is Phase.LEARNING
    assert family.course.status().stretches > status.stretches


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_probation_outlives_a_restart_whatever_was_noted_since(tmp_path: Path) -> None:
    """Drift seen, or a retraining asked for, while a version is on probation must not let it off."""
    family = Family(tmp_path)
    family.live("waves", 8)
    bad = family.registry.publish("p", _worse(tiny_weights(1)), family.profile.fold())
    family.registry.note("p", replace(_decision(), version=bad, parent=family.first))
    family.registry.note("p", replace(_decision(), event="drift", version=bad))
    family.registry.serve("p", bad)
    assert family.begun().status().phase is Phase.PROBATION


def test_settings_of_the_learner_do_not_change_what_is_served(tmp_path: Path) -> None:
    """Started with an old file, it must not take back a worker's new settings."""
    tiny_weights(1).save(tmp_path / "tiny")
    profile = make_profile(topics=["t"], predictor=str(tmp_path / "tiny"), light=True)
    daily = profile.model_copy(update={"alarm_budget": "1 per day"})
    registry = Registry(tmp_path / "registry")
    version = registry.ensure("p", str(tmp_path / "tiny"), daily.fold())
    weekly = profile.model_copy(update={"alarm_budget": "1 per week"})
    settings = Settings(
        registry=RegistrySettings(folder=tmp_path / "registry"),
        engine=EngineSettings(device="cpu"),
        profiles={"p": weekly},
    )
    assert build_courses(settings, Cluster("127.0.0.1:1"))["p"].status().version == version
    assert registry.current("p") == version


def test_ends_of_trials_are_counted_from_zero() -> None:
    """An alert on a rollback needs the counter before the first one."""
    metrics = LearnerMetrics(CollectorRegistry())
    decided = dict.fromkeys(OUTCOMES, 0)
    status = CourseStatus(0, 0, 0, 0, 0, {}, decided, 0.0, 0.0, 0.0, Phase.LEARNING, False, 0.0, "v")

    def rollbacks() -> float | None:
        where = {"profile": "p", "event": "rolled_back"}
        return metrics.registry.get_sample_value("anomaly_learner_decisions_total", where)

    metrics.show("p", status, 0)
    assert rollbacks() == 0
    for _ in range(2):
        metrics.show("p", replace(status, decided={**decided, "rolled back": 1}), 0)
    assert rollbacks() == 1


def _worse(weights: Weights) -> Weights:
    return replace(weights, network={name: 3.0 * tensor for name, tensor in weights.network.items()})


def _decision() -> Decision:
    return Decision(START_MS, "promoted", "", "learner")
