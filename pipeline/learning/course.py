"""One profile's slow loop: follow its streams, learn from what is normal, try what was learned, promote or roll back.

    learning ──▶ a candidate in shadow ──▶ promoted, on probation ──▶ confirmed
       ▲              │ no better               │ worse
       └──────────────┴── rejected ◀────────────┴── rolled back

What is learned, and from what, is said in :mod:`pipeline.learning.teaching`; here it is decided what becomes of it. The
learner never touches what serves but by :meth:`pipeline.registry.Registry.serve`. What others serve it goes along with,
weights and settings; where that cannot learn, it rests until something else is served.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import numpy as np

from models.calibration import Effort
from models.config import FoldConfig, HiddenOnSwap
from models.learner import Learned, UpdateReport, renewed
from models.pretrained import Weights
from models.training import Lessons
from models.trial import Trial, TrialResult
from pipeline.errors import CannotLearnError, VersionError
from pipeline.learning.follow import Following
from pipeline.learning.gate import Reason
from pipeline.learning.shadow import Shadow
from pipeline.learning.teaching import Judged, Teaching
from pipeline.profile import Profile
from pipeline.records import CONTROL_NONE, Partition, Windows
from pipeline.registry import Decision, Registry
from pipeline.settings import LearnerSettings

logger = logging.getLogger(__name__)

BY = "learner"
SAMPLED = 64
"""Stretches of the family, at most, that new weights are completed with."""

OUTCOMES = ("promoted", "rejected", "confirmed", "rolled back", "abandoned")
"""Decisions that :attr:`CourseStatus.decided` counts: how trials went."""

OF_A_TRIAL = ("candidate", "held", "followed", *OUTCOMES)


class Phase(Enum):
    """Where a profile's learning stands."""

    LEARNING = "learning"
    SHADOW = "shadow"
    PROBATION = "probation"
    RESTING = "resting"


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
    judged: Mapping[Reason, int]
    decided: Mapping[str, int]
    loss_now: float
    loss_serving: float
    loss_learning: float
    phase: Phase
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

    Attributes
    ----------
    teaching
        What is learned, and from what.

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
        rules: LearnerSettings,
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
        self._decided: Counter[str] = Counter()
        self._updates_at_last = 0
        self._is_forced = self._is_held = False
        self._trial: Trial | None = None
        self._phase = Phase.LEARNING
        current = registry.current(name)
        if current is None:
            raise VersionError(f"profile {name}: the registry names no version to serve")
        self._pointer = current
        self._serving = self._shadow(current)
        self._other: Shadow | None = None
        self.teaching = Teaching(name, self._serving, rules, device)
        if foreign := self._foreign_settings():
            logger.warning("profile=%s version %s is served with %s", name, current, foreign)
        self.teaching.restore(registry.recall(name))
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
        self._registry.remember(self.name, self.teaching.memory())

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
            self._begin_trial(Phase.PROBATION, self._serving.version, last.parent)

    # -- following -----------------------------------------------------------------------------------------------

    def absorb(self, partition: Partition, windows: Windows, is_fresh: bool = True) -> None:
        """Fold windows of one partition: score, cut, teach, and compare where a trial runs.

        Parameters
        ----------
        is_fresh
            ``False`` for what was read before a restart: it makes streams known and fills the reservoir, and counts
            for nothing else.
        """
        windows, given_up = self._following.choose(partition, windows)
        for name in given_up:
            self._forget(name)
            for shadow in self._shadows():
                shadow.forget(name)
        if not len(windows):
            return
        for number in np.flatnonzero(windows.control != CONTROL_NONE).tolist():
            self._forget(windows.stream_ids[number])
        if self._phase is Phase.RESTING:
            return
        absorbed, alarms = self._serving.absorb({partition: windows})
        other_alarms = self._other.absorb({partition: windows})[1] if self._other is not None else 0
        stretches = self.teaching.cut(windows, absorbed.scores)
        if self._trial is not None and is_fresh:
            seconds = sum((each.end_ms - each.begin_ms) / 1000 for each in stretches)
            mine, theirs = (other_alarms, alarms) if self._phase is Phase.SHADOW else (alarms, other_alarms)
            self._trial.watch(seconds, mine, theirs)
        for each in self.teaching.take(stretches, self._serving, self._other, is_fresh):
            if is_fresh:
                self._consider(each)

    def _forget(self, stream_id: str) -> None:
        self.teaching.forget(stream_id)
        for shadow in self._shadows():
            shadow.forecaster.forget(stream_id)

    def _shadows(self) -> list[Shadow]:
        return [self._serving, *([self._other] if self._other is not None else [])]

    def _consider(self, judged: Judged) -> None:
        """A candidate must be better on what is normal; a promoted version must not be worse on what has changed."""
        if judged.drift is not None:
            signal = judged.drift
            figures = {"loss_before": round(signal.before, 4), "loss": round(signal.after, 4), "stretches": signal.at}
            self._note("drift", self._serving.version, None, "the loss of the serving version has risen", figures)
        if self._trial is None or judged.other_loss is None:
            return
        if self._phase is Phase.SHADOW and judged.reason is Reason.NORMAL:
            self._trial.compare(judged.other_loss, judged.loss)
        elif self._phase is Phase.PROBATION and judged.reason in (Reason.NORMAL, Reason.CLOSED):
            self._trial.compare(judged.loss, judged.other_loss)

    # -- learning ------------------------------------------------------------------------------------------------

    @property
    def is_drifting(self) -> bool:
        """As :attr:`Teaching.is_drifting`."""
        return self.teaching.is_drifting

    def wants_to_study(self) -> bool:
        """Whether there is something to learn, and what serves can learn."""
        return self._phase is not Phase.RESTING and self.teaching.wants_to_study()

    def study(self) -> UpdateReport:
        """One update."""
        return self.teaching.study()

    # -- deciding ------------------------------------------------------------------------------------------------

    def decide(self) -> None:
        """Go along with the registry; make a candidate, promote it, confirm it or roll it back, where it is time."""
        self._notice_what_serves()
        if self._phase is Phase.RESTING:
            return
        if self._registry.take_retrain(self.name):
            self._is_forced = True
            self.teaching.study_more()
            self._updates_at_last = self.teaching.updates
            self._note("retrain", self._serving.version, None, "asked for by an operator")
        if self._phase is Phase.SHADOW:
            self._judge_candidate()
        elif self._phase is Phase.PROBATION:
            self._judge_promoted()
        elif self.teaching.updates - self._updates_at_last >= self._rules.candidate_updates:
            self._propose()

    def _notice_what_serves(self) -> None:
        """An operator, or a worker with new settings, may have changed what is served; each change is met once."""
        current = self._registry.current(self.name)
        if current is None or current == self._pointer:
            return
        before, cannot_learn = self._pointer, None
        try:
            self._take_over(current)
        except VersionError as error:
            cannot_learn = error
        self._pointer = current  # not before: a version that cannot be read just now is tried again
        if self._trial is not None:
            self._note("abandoned", self._trial.challenger, self._trial.incumbent, "another version is served")
        if cannot_learn is not None:
            self._end_trial()
            self._phase = Phase.RESTING
            self._note("resting", current, before, f"until another version is served: {cannot_learn}")
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
        self.teaching.begin_pupil(shadow.weights)
        self._switch_to(shadow)
        if shadow.kind != before.kind:
            self.teaching.begin_lessons(shadow)

    def _switch_to(self, shadow: Shadow) -> None:
        """Another version serves."""
        self._serving, self._pointer = shadow, shadow.version
        self.teaching.another_serves()

    def _propose(self) -> None:
        """Make a candidate where progressive validation says that learning helped, or where it was asked for."""
        teaching = self.teaching
        self._updates_at_last = teaching.updates
        gain = teaching.gain()
        if not self._is_forced and not gain >= self._rules.margin:
            return
        parent = self._serving.version
        figures = {"updates": teaching.updates, "progressive_gain": round(gain, 4), "stretches": teaching.stretches}
        about = self._about(parent, figures)
        sample = teaching.sample(SAMPLED)
        series = self._rules.tail_series
        effort = Effort(series, max(4, series // 8), max(4, series // 8), self._rules.tail_observations)
        weights = self._renew(self._serving.weights, teaching.learned(), sample, teaching.updates, effort, about)
        version = self._registry.publish(self.name, weights, self._serving.fold)
        self._is_forced = False
        if version == parent:
            return
        self._other = self._shadow(version)
        self._other.begin_like(self._serving, self._hidden)
        self._begin_trial(Phase.SHADOW, version, parent)
        self._note("candidate", version, parent, "scores in shadow from now on", figures)

    def _about(self, parent: str, figures: Mapping[str, float]) -> dict[str, Any]:
        """What a candidate's manifest says of where it comes from; losses are of stretches not yet learned from."""
        loss_serving, loss_learning = self.teaching.losses()
        losses = {"loss_progressive": loss_learning, "loss_of_parent": loss_serving, **figures}
        begin_ms, end_ms = self.teaching.taught_ms or (0, 0)
        return {
            "made_by": "tidewatch learner",
            "made_at": _utc(self._wall_ms()),
            "parent": parent,
            "data_from": _utc(begin_ms),
            "data_to": _utc(end_ms),
            "streams": len(self.teaching.reservoir.strata()),
            "learning": {"rate": self._rules.rate, "batch": self._rules.batch, "stretch": self._rules.stretch},
            **{name: round(value, 4) for name, value in losses.items() if math.isfinite(value)},
        }

    def _judge_candidate(self) -> None:
        assert self._trial is not None
        assert self._other is not None
        result = self._trial.shadow_result()
        if result is TrialResult.UNDECIDED:
            return
        candidate, parent, figures = self._other.version, self._serving.version, self._trial.figures()
        if result is not TrialResult.BETTER:
            self._note("rejected", candidate, parent, result.value, figures)
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
        self._switch_to(self._other)
        self._other = before
        self._begin_trial(Phase.PROBATION, candidate, parent)
        self.teaching.compare_anew()
        self.teaching.calm_down()

    def _judge_promoted(self) -> None:
        assert self._trial is not None
        assert self._other is not None
        result = self._trial.probation_result()
        if result is TrialResult.UNDECIDED:
            return
        version, parent, figures = self._serving.version, self._other.version, self._trial.figures()
        if result is TrialResult.BETTER:
            self._note("confirmed", version, parent, "not worse than its parent since", figures)
        elif self._registry.is_pinned(self.name):
            self._note("held", version, parent, f"{result.value}, but what is served is pinned", figures)
        else:
            self._registry.serve(self.name, parent)
            self._note("rolled back", version, parent, result.value, figures)
            self._switch_to(self._other)
            self.teaching.begin_pupil(self._serving.weights)
        self._end_trial()

    def _begin_trial(self, phase: Phase, challenger: str, incumbent: str) -> None:
        rules = self._rules
        needed = rules.shadow_stretches if phase is Phase.SHADOW else rules.probation_stretches
        self._phase, self._is_held = phase, False
        self._trial = Trial(challenger, incumbent, needed, rules.margin, self._serving.fold.alarm_every_s)

    def _end_trial(self) -> None:
        self._phase, self._trial, self._other = Phase.LEARNING, None, None
        self._updates_at_last = self.teaching.updates
        self.teaching.compare_anew()
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
        shown = "".join(f" {name}={value:g}" for name, value in (figures or {}).items())
        logger.info("profile=%s %s version=%s: %s%s", self.name, event, version, reason, shown)
        self._registry.note(
            self.name, Decision(self._wall_ms(), event, version, BY, parent, reason, dict(figures or {}))
        )

    def status(self) -> CourseStatus:
        """How it stands."""
        teaching = self.teaching
        loss_serving, loss_learning = teaching.losses()
        return CourseStatus(
            streams=len(self._following),
            closed=sum(name in self._following for name in teaching.gate.closed()),
            reservoir=len(teaching.reservoir),
            updates=teaching.updates,
            stretches=teaching.stretches,
            judged=dict(teaching.gate.judged),
            decided={event: self._decided[event] for event in OUTCOMES},
            loss_now=float(np.mean(teaching.latest)) if teaching.latest else math.nan,
            loss_serving=loss_serving,
            loss_learning=loss_learning,
            phase=self._phase,
            is_drifting=teaching.is_drifting,
            gain=self._trial.gain if self._trial is not None else math.nan,
            version=self._serving.version,
        )


def _changed(ours: FoldConfig, served: FoldConfig) -> str:
    one, two = asdict(ours), asdict(served)
    return ", ".join(f"{name} {two[name]} for {one[name]}" for name in one if one[name] != two[name])


def _utc(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")
