"""One profile's slow loop: follow its streams, learn from what is normal, try what was learned, promote or roll back.

    learning ──▶ a candidate in shadow ──▶ promoted, on probation ──▶ confirmed
       ▲              │ no better               │ worse
       └──────────────┴── rejected ◀────────────┴── rolled back

The learner never touches what serves but by :meth:`pipeline.registry.Registry.serve`. What others serve it follows,
weights and settings; where that cannot learn, it rests until something else is served.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from models.calibration import Effort
from models.config import FoldConfig, HiddenOnSwap
from models.drift import DriftDetector
from models.learner import (
    Learned,
    Pupil,
    Sight,
    Stretches,
    UpdateReport,
    generated_lessons,
    lessons_of,
    renewed,
    without_past,
)
from models.pretrained import Weights
from models.training import Lessons
from pipeline.errors import CannotLearnError, VersionError
from pipeline.learning.cutting import Cutter, Stretch
from pipeline.learning.follow import Following
from pipeline.learning.gate import CLOSED, NORMAL, WARMING_UP, Gate
from pipeline.learning.reservoir import Reservoir
from pipeline.learning.shadow import Shadow
from pipeline.learning.trial import Trial, Verdict
from pipeline.profile import Profile
from pipeline.records import CONTROL_NONE, Partition, Windows
from pipeline.registry import Decision, Registry
from pipeline.settings import Learner as Rules

logger = logging.getLogger(__name__)

BY = "learner"
GENERATED_SHARE = 8
"""One in so many stretches of an update is generated: what the predictor came from."""

HARDER = 4
"""How many times as much is learned from a stretch while the family drifts."""

FRESH_KEPT = 256
LATEST = 32

RESTING = "resting"
PHASES = ("learning", "shadow", "probation", RESTING)
OUTCOMES = ("promoted", "rejected", "confirmed", "rolled back", "abandoned")
"""Decisions that :attr:`CourseStatus.decided` counts: how trials went."""

OF_A_TRIAL = ("candidate", "held", "followed", *OUTCOMES)

Renew = Callable[[Weights, Learned, Sequence[Lessons], int, Effort, dict[str, Any]], Weights]


@dataclass(frozen=True, slots=True)
class CourseStatus:
    """How a profile's learning stands, for metrics; losses are nats per target over the latest stretches.

    ``loss_now`` is the serving version's on whatever its streams say; the other two are of what taught.
    """

    streams: int
    closed: int
    reservoir: int
    updates: int
    stretches: int
    judged: Mapping[str, int]
    decided: Mapping[str, int]
    loss_now: float
    loss_serving: float
    loss_learning: float
    phase: str
    is_drifting: bool
    gain: float
    version: str


class Course:
    """The slow loop of one profile; no Kafka, no waiting.

    Parameters
    ----------
    name, profile, registry
        What is served, and where versions lie.
    rules
        Settings.
    wall_ms
        For the history.
    device, hidden
        As the worker's.
    live_versions
        Versions named in live histories, which must not be removed; ``None`` where they cannot be told now.
    renew
        Makes complete weights around a network that has learned.

    Raises
    ------
    CannotLearnError
        The predictor sees all features at once, or has nothing to learn.
    VersionError
        What is served cannot be loaded, or is of another number of features.
    """

    def __init__(
        self,
        name: str,
        profile: Profile,
        registry: Registry,
        rules: Rules,
        wall_ms: Callable[[], int],
        device: str = "cpu",
        hidden: HiddenOnSwap = "carry",
        live_versions: Callable[[], set[str] | None] = lambda: None,
        renew: Renew = renewed,
    ) -> None:
        self.name, self._profile, self._registry, self._rules = name, profile, registry, rules
        self._wall_ms, self._device, self._hidden = wall_ms, device, hidden
        self._live_versions, self._renew = live_versions, renew
        self._following = Following(rules.max_streams, round(profile.idle_reset_s * 1000))
        self._gate = Gate(rules.lasting_s, rules.max_imputed)
        self._drift = DriftDetector("adwin")
        self._progress: deque[tuple[float, float]] = deque(maxlen=rules.shadow_stretches)
        self._latest: deque[float] = deque(maxlen=LATEST)
        self._credits = 0
        self._harder = 0
        self._updates = self._updates_at_last = 0
        self._stretches = 0
        self._decided: Counter[str] = Counter()
        self._is_forced = self._is_held = False
        self._trial: Trial | None = None
        self._phase = "learning"
        current = registry.current(name)
        if current is None:
            raise VersionError(f"profile {name}: the registry names no version to serve")
        self._pointer = current
        self._serving = self._shadow(current)
        self._other: Shadow | None = None
        self._pupil = self._new_pupil(self._serving.weights)
        self._begin_lessons()
        if foreign := self._foreign_settings():
            logger.warning("profile=%s version %s is served with %s", name, current, foreign)
        self._recall()
        self._resume()

    def _shadow(self, version: str) -> Shadow:
        weights, fold = self._registry.load(self.name, version)
        if len(fold.features) != len(self._profile.features):
            raise VersionError(
                f"profile {self.name}: version {version} is of {len(fold.features)} features, the settings name "
                f"{len(self._profile.features)}"
            )
        try:
            return Shadow(self.name, self._profile, weights, fold, self._rules.max_streams, self._device)
        except ValueError as exc:
            raise CannotLearnError(f"profile {self.name}: version {version} cannot learn: {exc}") from exc

    def _new_pupil(self, weights: Weights) -> Pupil:
        rules = self._rules
        try:
            return Pupil(weights, self._device, rules.rate, min(64, rules.stretch), rules.gradient_norm)
        except ValueError as exc:
            raise CannotLearnError(f"profile {self.name}: its predictor has nothing to learn: {exc}") from exc

    def _begin_lessons(self) -> None:
        """What is cut, kept and rehearsed, as the serving version sees it (:attr:`Shadow.kind`)."""
        rules, serving = self._rules, self._serving
        self._sights: dict[str, Sight] = {}
        self._cutter = Cutter(rules.stretch, serving.fold.interval_s)
        self._reservoir: Reservoir[Stretches] = Reservoir(rules.reservoir)
        self._fresh: deque[Stretches] = deque(maxlen=FRESH_KEPT)
        self._taught_ms: tuple[int, int] | None = None
        generated = generated_lessons(rules.stretch, int(serving.version[:6], 16))
        self._generated = [without_past(each, self._pupil.network) for each in generated]

    def _foreign_settings(self) -> str:
        """In words, where what is served was made with other settings than this learner has; else empty."""
        changed = _changed(self._profile.fold(), self._serving.fold)
        return (
            f"other settings than this learner's ({changed}), and it learns by those: give workers and learner the "
            "same settings file"
            if changed
            else ""
        )

    def remember(self) -> None:
        """Keep what must outlive a restart: else a fault that is going on would be all that streams are known by."""
        self._registry.remember(self.name, {"stretch": self._rules.stretch, "streams": self._gate.memory()})

    def _recall(self) -> None:
        memory = self._registry.recall(self.name)
        if memory.get("stretch") != self._rules.stretch:
            return
        try:
            self._gate.restore(memory["streams"], len(self._profile.features), self._rules.max_streams)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("profile=%s what was known of its streams cannot be used: %s", self.name, error)
            return
        self._gate.doubt_losses()  # states begin anew, and another version may serve

    def _resume(self) -> None:
        """Take up a probation that a restart interrupted; a shadow is not worth taking up."""
        last = next(
            (d for d in reversed(self._registry.history(self.name)) if d.by == BY and d.event in OF_A_TRIAL), None
        )
        if last is None:
            return
        if last.event == "candidate" or (last.event == "promoted" and last.version != self._serving.version):
            self._note("abandoned", last.version, last.parent, "the learner was restarted")
        if last.event == "promoted" and last.version == self._serving.version and last.parent is not None:
            try:
                self._other = self._shadow(last.parent)
            except VersionError as error:
                logger.warning("no probation for version %s: %s", last.version, error)
                return
            self._begin_trial("probation", self._serving.version, last.parent)

    # -- following -----------------------------------------------------------------------------------------------

    def absorb(self, partition: Partition, windows: Windows, is_fresh: bool = True) -> None:
        """Fold windows of one partition: score, cut, judge, and keep what teaches.

        Parameters
        ----------
        is_fresh
            ``False`` for what was read before a restart: it makes streams known and fills the reservoir, and counts
            for nothing else.
        """
        windows, given_up = self._following.choose(partition, windows)
        for name in given_up:
            self._forget(name)
            for shadow in (self._serving, self._other):
                if shadow is not None:
                    shadow.forget(name)
        if not len(windows):
            return
        for number in np.flatnonzero(windows.control != CONTROL_NONE).tolist():
            self._forget(windows.stream_ids[number])
        if self._phase == RESTING:
            return
        absorbed, alarms = self._serving.absorb({partition: windows})
        other_alarms = self._other.absorb({partition: windows})[1] if self._other is not None else 0
        stretches = [each for scores in absorbed.scores for each in self._cutter.add(windows, scores)]
        if self._trial is not None and is_fresh:
            seconds = sum((each.end_ms - each.begin_ms) / 1000 for each in stretches)
            mine, theirs = (other_alarms, alarms) if self._phase == "shadow" else (alarms, other_alarms)
            self._trial.watch(seconds, mine, theirs)
        while stretches:
            turn = {each.stream_id: each for each in reversed(stretches)}
            chosen = list(turn.values())
            taken = {id(each) for each in chosen}
            stretches = [each for each in stretches if id(each) not in taken]
            self._take(chosen, is_fresh)

    def _forget(self, stream_id: str) -> None:
        self._sights.pop(stream_id, None)
        self._cutter.forget(stream_id)
        self._gate.forget(stream_id)
        for each in (self._pupil, self._serving.forecaster, *([self._other.forecaster] if self._other else [])):
            each.forget(stream_id)

    def _take(self, turn: list[Stretch], is_fresh: bool) -> None:
        """Stretches of distinct streams: predicted by every version first, then judged, then kept for learning."""
        names = [each.stream_id for each in turn]
        features = len(self._profile.features)
        lessons = lessons_of(
            [self._sights.setdefault(name, Sight(features, self._serving.has_week)) for name in names],
            np.stack([each.values for each in turn]),
            np.stack([each.times_ms for each in turn]),
            [each.follows_gap for each in turn],
            self._serving.fold.interval_s,
            self._serving.has_clock,
        )
        serving, _ = self._serving.forecaster.predict(names, lessons)
        learning, stretches = self._pupil.predict(names, lessons)
        other = None if self._other is None else self._other.forecaster.predict(names, lessons)[0]
        for number, each in enumerate(turn):
            loss = float(serving[number])
            reason = self._gate.judge(each, loss)
            if is_fresh and reason != WARMING_UP:
                self._watch_drift(loss)
            if is_fresh and other is not None:
                self._compare(reason, loss, float(other[number]))
            if reason != NORMAL or not math.isfinite(loss):
                continue
            mine = stretches.of_stream(number, features)
            self._reservoir.add(each.stream_id, mine)
            begin_ms, end_ms = self._taught_ms or (each.begin_ms, each.end_ms)
            self._taught_ms = min(begin_ms, each.begin_ms), max(end_ms, each.end_ms)
            if is_fresh:
                self._fresh.append(mine)
                self._stretches += 1
                self._credits += HARDER if self._harder else 1
                self._progress.append((loss, float(learning[number])))

    def _compare(self, reason: str, serving: float, other: float) -> None:
        """A candidate must be better on what is normal; a promoted version must not be worse on what has changed."""
        if self._trial is None:
            return
        if self._phase == "shadow" and reason == NORMAL:
            self._trial.compare(other, serving)
        elif self._phase == "probation" and reason in (NORMAL, CLOSED):
            self._trial.compare(serving, other)

    def _watch_drift(self, loss: float) -> None:
        if math.isfinite(loss):
            self._latest.append(loss)
        signal = self._drift.update(loss)
        if signal is None or not signal.is_rise or self._harder:
            return
        self._harder = self._rules.candidate_updates
        self._credits += self._rules.candidate_updates // 2
        self._progress.clear()
        figures = {"loss_before": round(signal.before, 4), "loss": round(signal.after, 4), "stretches": signal.at}
        self._note("drift", self._serving.version, None, "the loss of the serving version has risen", figures)

    # -- learning ------------------------------------------------------------------------------------------------

    @property
    def is_drifting(self) -> bool:
        """Whether the family moved and is not caught up with: the learner may work harder."""
        return self._harder > 0

    def wants_to_study(self) -> bool:
        """Whether there is something to learn that was not learned often enough yet."""
        return self._credits > 0 and len(self._reservoir) > 0 and self._phase != RESTING

    def study(self) -> UpdateReport:
        """One update: half of it fresh, the rest rehearsal from the reservoir and a little of what was generated."""
        batch = self._rules.batch
        fresh = [self._fresh.popleft() for _ in range(min(len(self._fresh), max(1, batch // 2)))]
        generated = batch // GENERATED_SHARE
        lessons = fresh + self._reservoir.sample(max(1, batch - len(fresh) - generated))
        start = self._updates * generated
        lessons += [self._generated[(start + k) % len(self._generated)] for k in range(generated)]
        report = self._pupil.learn(lessons)
        self._updates += 1
        self._credits -= 1
        self._harder = max(0, self._harder - 1)
        return report

    # -- deciding ------------------------------------------------------------------------------------------------

    def decide(self) -> None:
        """Follow the registry; make a candidate, promote it, confirm it or roll it back, where it is time."""
        self._follow_pointer()
        if self._phase == RESTING:
            return
        if self._registry.take_retrain(self.name):
            self._is_forced = True
            self._credits += self._rules.candidate_updates
            self._updates_at_last = self._updates
            self._note("retrain", self._serving.version, None, "asked for by an operator")
        if self._phase == "shadow":
            self._judge_candidate()
        elif self._phase == "probation":
            self._judge_promoted()
        elif self._updates - self._updates_at_last >= self._rules.candidate_updates:
            self._propose()

    def _follow_pointer(self) -> None:
        """An operator, or a worker with new settings, may have changed what is served; each change is met once."""
        current = self._registry.current(self.name)
        if current is None or current == self._pointer:
            return
        before, self._pointer = self._pointer, current
        if self._trial is not None:
            self._note("abandoned", self._trial.challenger, self._trial.incumbent, "another version is served")
        try:
            self._take_over(current)
        except VersionError as error:
            self._end_trial()
            self._phase = RESTING
            self._note(RESTING, current, before, f"until another version is served: {error}")
            return
        foreign = self._foreign_settings()
        self._note("followed", current, before, f"served with {foreign}" if foreign else "another version is served")
        self._end_trial()

    def _take_over(self, version: str) -> None:
        """Go on from another version, with its settings; or raise, and nothing has changed."""
        before = self._serving
        if version == before.version:
            return
        shadow = self._other
        if shadow is None or shadow.version != version:
            shadow = self._shadow(version)
            shadow.begin_like(before, self._hidden)
        self._pupil = self._new_pupil(shadow.weights)
        self._follow(shadow)
        if shadow.kind != before.kind:
            self._begin_lessons()

    def _follow(self, shadow: Shadow) -> None:
        """Another version serves: what the one before it lost is no measure any more."""
        self._serving, self._pointer = shadow, shadow.version
        self._gate.doubt_losses()
        self._drift.reset()

    def _propose(self) -> None:
        """Make a candidate where progressive validation says that learning helped, or where it was asked for."""
        self._updates_at_last = self._updates
        gain = self._progressive_gain()
        if not self._is_forced and not gain >= self._rules.margin:
            return
        parent = self._serving.version
        figures = {"updates": self._updates, "progressive_gain": round(gain, 4), "stretches": self._stretches}
        about = self._about(parent, figures)
        sample = [each.lessons for each in self._reservoir.sample(min(len(self._reservoir), 64))]
        series = self._rules.tail_series
        effort = Effort(series, max(4, series // 8), max(4, series // 8), self._rules.tail_observations)
        weights = self._renew(self._serving.weights, self._pupil.learned(), sample, self._updates, effort, about)
        version = self._registry.publish(self.name, weights, self._serving.fold)
        self._is_forced = False
        if version == parent:
            return
        self._other = self._shadow(version)
        self._other.begin_like(self._serving, self._hidden)
        self._begin_trial("shadow", version, parent)
        self._note("candidate", version, parent, "scores in shadow from now on", figures)

    def _about(self, parent: str, figures: Mapping[str, float]) -> dict[str, Any]:
        """What a candidate's manifest says of where it comes from; losses are of stretches not yet learned from."""
        status = self.status()
        losses = {"loss_progressive": status.loss_learning, "loss_of_parent": status.loss_serving, **figures}
        begin_ms, end_ms = self._taught_ms or (0, 0)
        return {
            "made_by": "tidewatch learner",
            "made_at": _utc(self._wall_ms()),
            "parent": parent,
            "data_from": _utc(begin_ms),
            "data_to": _utc(end_ms),
            "streams": len(self._reservoir.strata()),
            "learning": {"rate": self._rules.rate, "batch": self._rules.batch, "stretch": self._rules.stretch},
            **{name: round(value, 4) for name, value in losses.items() if math.isfinite(value)},
        }

    def _progressive_gain(self) -> float:
        """Nats by which the learning network predicted better, before it learned, of late; NaN without stretches."""
        pairs = np.array([pair for pair in self._progress if math.isfinite(pair[0] + pair[1])])
        return (
            float((pairs[:, 0] - pairs[:, 1]).mean()) if len(pairs) >= self._rules.shadow_stretches // 4 else math.nan
        )

    def _judge_candidate(self) -> None:
        assert self._trial is not None
        assert self._other is not None
        verdict = self._trial.shadow_verdict()
        if verdict is Verdict.UNDECIDED:
            return
        candidate, parent, figures = self._other.version, self._serving.version, self._trial.figures()
        if verdict is not Verdict.BETTER:
            self._note("rejected", candidate, parent, verdict.value, figures)
            self._end_trial()
            return
        if self._registry.is_pinned(self.name):
            if not self._is_held:
                self._note("held", candidate, parent, "better, but what is served is pinned", figures)
            self._is_held = True
            return
        # Noted first: a promotion without a note would have no probation after a crash.
        self._note("promoted", candidate, parent, "predicts better, and raises no more alarms", figures)
        self._registry.serve(self.name, candidate)
        before = self._serving
        self._follow(self._other)
        self._other = before
        self._begin_trial("probation", candidate, parent)
        self._progress.clear()
        self._harder = 0

    def _judge_promoted(self) -> None:
        assert self._trial is not None
        assert self._other is not None
        verdict = self._trial.probation_verdict()
        if verdict is Verdict.UNDECIDED:
            return
        version, parent, figures = self._serving.version, self._other.version, self._trial.figures()
        if verdict is Verdict.BETTER:
            self._note("confirmed", version, parent, "not worse than its parent since", figures)
        elif self._registry.is_pinned(self.name):
            self._note("held", version, parent, f"{verdict.value}, but what is served is pinned", figures)
        else:
            self._registry.serve(self.name, parent)
            self._note("rolled back", version, parent, verdict.value, figures)
            self._follow(self._other)
            self._pupil = self._new_pupil(self._serving.weights)
        self._end_trial()

    def _begin_trial(self, phase: str, challenger: str, incumbent: str) -> None:
        rules = self._rules
        needed = rules.shadow_stretches if phase == "shadow" else rules.probation_stretches
        self._phase, self._is_held = phase, False
        self._trial = Trial(challenger, incumbent, needed, rules.margin, self._serving.fold.alarm_every_s)

    def _end_trial(self) -> None:
        self._phase, self._trial, self._other = "learning", None, None
        self._updates_at_last = self._updates
        self._progress.clear()
        live = self._live_versions()
        if live is not None:
            keep = {*live, self._serving.version}
            removed = self._registry.remove_unused(self.name, keep, self._rules.keep_versions, self._wall_ms() / 1000)
            for version in removed:
                self._note("removed", version, None, "named in no live history")

    def _note(
        self, event: str, version: str, parent: str | None, reason: str, figures: Mapping[str, float] | None = None
    ) -> None:
        self._decided[event] += 1
        logger.info("profile=%s %s version=%s: %s %s", self.name, event, version, reason, dict(figures or {}))
        self._registry.note(
            self.name, Decision(self._wall_ms(), event, version, BY, parent, reason, dict(figures or {}))
        )

    def kept(self) -> dict[str, int]:
        """How many stretches of each stream are kept for rehearsal."""
        return self._reservoir.strata()

    def latest(self, count: int) -> list[float]:
        """The serving version's losses on the latest stretches, whatever they were."""
        return list(self._latest)[-count:]

    def status(self) -> CourseStatus:
        """How it stands."""
        pairs = np.array([pair for pair in self._progress if math.isfinite(pair[0] + pair[1])]).reshape(-1, 2)
        serving, learning = pairs.mean(0).tolist() if len(pairs) else (math.nan, math.nan)
        return CourseStatus(
            streams=len(self._following),
            closed=sum(name in self._following for name in self._gate.closed()),
            reservoir=len(self._reservoir),
            updates=self._updates,
            stretches=self._stretches,
            judged=dict(self._gate.judged),
            decided={event: self._decided[event] for event in OUTCOMES},
            loss_now=float(np.mean(self._latest)) if self._latest else math.nan,
            loss_serving=serving,
            loss_learning=learning,
            phase=self._phase,
            is_drifting=self.is_drifting,
            gain=self._trial.gain if self._trial is not None else math.nan,
            version=self._serving.version,
        )


def _changed(ours: FoldConfig, served: FoldConfig) -> str:
    one, two = asdict(ours), asdict(served)
    return ", ".join(f"{name} {two[name]} for {one[name]}" for name in one if one[name] != two[name])


def _utc(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")
