"""What a profile learns with: a pupil, its lessons, and what tells whether they teach.

Learning never touches what serves: the version that serves is looked at, through its shadow, and nothing here knows the
registry. What becomes of what was learned is for :mod:`pipeline.learning.course` to decide.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.drift import DriftDetector, DriftSignal
from models.learner import (
    Background,
    Learned,
    Pupil,
    Stretches,
    UpdateReport,
    generated_lessons,
    lessons_of,
    without_past,
)
from models.pretrained import Weights
from models.training import Lessons
from pipeline.errors import CannotLearnError
from pipeline.learning.cutting import Cutter, Stretch
from pipeline.learning.gate import Gate, Reason
from pipeline.learning.reservoir import Reservoir
from pipeline.learning.shadow import Shadow
from pipeline.records import Scores, Windows
from pipeline.settings import LearnerSettings

logger = logging.getLogger(__name__)

GENERATED_SHARE = 8
"""One in so many stretches of an update is generated: what the predictor came from."""

HARDER = 4
"""How many times as much is learned from a stretch while the family drifts."""

FRESH_KEPT = 256
LATEST = 32


@dataclass(frozen=True, slots=True)
class Judged:
    """What was found of a stretch, before it taught.

    Attributes
    ----------
    reason
        The gate's word.
    loss, other_loss
        Of the version that serves, and of the one beside it; nats per target, NaN without a target.
    drift
        Where with this loss the family is found to have moved.
    """

    reason: Reason
    loss: float
    other_loss: float | None
    drift: DriftSignal | None


class Teaching:
    """The pupil of one profile and its lessons.

    Parameters
    ----------
    name
        The profile's, for messages.
    serving
        The version that serves: the pupil begins from it, and lessons are made as it sees them.
    rules
        Settings.
    device
        Where the pupil computes.

    Attributes
    ----------
    gate
        What may teach.
    reservoir
        Stretches kept for rehearsal, by stream.
    latest
        Losses of the version that serves on the latest stretches, whatever they were.
    updates, stretches
        How many there were since the start: of the weights, and fresh ones that taught.
    taught_ms
        Event times of the first and of the last observation that taught; ``None`` before.

    Raises
    ------
    CannotLearnError
        The predictor has nothing to learn.
    """

    def __init__(self, name: str, serving: Shadow, rules: LearnerSettings, device: str) -> None:
        self._name, self._rules, self._device = name, rules, device
        self._features = len(serving.fold.features)
        self.gate = Gate(rules.lasting_s, rules.max_imputed)
        self.latest: deque[float] = deque(maxlen=LATEST)
        self.updates = self.stretches = 0
        self._drift = DriftDetector("adwin")
        self._progress: deque[tuple[float, float]] = deque(maxlen=rules.shadow_stretches)
        self._credits = 0
        self._harder = 0
        self.begin_pupil(serving.weights)
        self.begin_lessons(serving)

    def begin_pupil(self, weights: Weights) -> None:
        """Learn on from these weights; or raise as the constructor does, and nothing has changed."""
        rules = self._rules
        try:
            self._pupil = Pupil(weights, self._device, rules.rate, min(64, rules.stretch), rules.gradient_norm)
        except ValueError as exc:
            raise CannotLearnError(f"profile {self._name}: its predictor has nothing to learn: {exc}") from exc

    def begin_lessons(self, serving: Shadow) -> None:
        """Nothing cut, kept or rehearsed so far is of use to a version of another kind (:attr:`Shadow.kind`)."""
        rules = self._rules
        self._backgrounds: dict[str, Background] = {}
        self._cutter = Cutter(rules.stretch, serving.fold.interval_s)
        self.reservoir: Reservoir[Stretches] = Reservoir(rules.reservoir)
        self._fresh: deque[Stretches] = deque(maxlen=FRESH_KEPT)
        self.taught_ms: tuple[int, int] | None = None
        generated = generated_lessons(rules.stretch, int(serving.version[:6], 16))
        self._generated = [without_past(each, self._pupil.network) for each in generated]

    def another_serves(self) -> None:
        """What the version before it lost is no measure any more."""
        self.gate.doubt_losses()
        self._drift.reset()

    def forget(self, stream_id: str) -> None:
        """The stream begins anew; what it has taught stays."""
        self._backgrounds.pop(stream_id, None)
        self._cutter.forget(stream_id)
        self.gate.forget(stream_id)
        self._pupil.forget(stream_id)

    def memory(self) -> dict[str, Any]:
        """What must outlive a restart, in JSON's types; for :meth:`restore`."""
        return {"stretch": self._rules.stretch, "streams": self.gate.memory()}

    def restore(self, memory: Mapping[str, Any]) -> None:
        """Know again what :meth:`memory` gave; of another length of stretches, or of anything else, nothing."""
        if memory.get("stretch") != self._rules.stretch:
            return
        try:
            self.gate.restore(memory["streams"], self._features, self._rules.max_streams)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("profile=%s what was known of its streams cannot be used: %s", self._name, error)
            return
        self.gate.doubt_losses()  # states begin anew, and another version may serve

    # -- lessons -------------------------------------------------------------------------------------------------

    def cut(self, windows: Windows, scores: Sequence[Scores]) -> list[Stretch]:
        """The stretches that are whole with these windows and what the version that serves said of them."""
        return [each for some in scores for each in self._cutter.add(windows, some)]

    def take(self, stretches: Sequence[Stretch], serving: Shadow, other: Shadow | None, is_fresh: bool) -> list[Judged]:
        """Predict stretches by every version, then judge them, then keep what teaches.

        Parameters
        ----------
        serving, other
            The version that serves, and one beside it.
        is_fresh
            ``False`` for what was read before a restart: it makes streams known and fills the reservoir, and counts
            for nothing else.
        """
        judged, left = [], list(stretches)
        while left:
            turn = list({each.stream_id: each for each in reversed(left)}.values())
            taken = {id(each) for each in turn}
            left = [each for each in left if id(each) not in taken]
            judged += self._take(turn, serving, other, is_fresh)
        return judged

    def _take(self, turn: list[Stretch], serving: Shadow, other: Shadow | None, is_fresh: bool) -> list[Judged]:
        """Stretches of distinct streams, side by side."""
        names = [each.stream_id for each in turn]
        lessons = lessons_of(
            [self._backgrounds.setdefault(name, Background(self._features, serving.has_week)) for name in names],
            np.stack([each.values for each in turn]),
            np.stack([each.times_ms for each in turn]),
            [each.follows_gap for each in turn],
            serving.fold.interval_s,
            serving.has_clock,
        )
        losses, _ = serving.forecaster.predict(names, lessons)
        learning, stretches = self._pupil.predict(names, lessons)
        others = None if other is None else other.forecaster.predict(names, lessons)[0]
        judged = []
        for number, each in enumerate(turn):
            loss = float(losses[number])
            reason = self.gate.judge(each, loss)
            drift = self._watch_drift(loss) if is_fresh and reason is not Reason.WARMING_UP else None
            judged.append(Judged(reason, loss, None if others is None else float(others[number]), drift))
            if reason is not Reason.NORMAL or not math.isfinite(loss):
                continue
            mine = stretches.of_stream(number, self._features)
            self.reservoir.add(each.stream_id, mine)
            begin_ms, end_ms = self.taught_ms or (each.begin_ms, each.end_ms)
            self.taught_ms = min(begin_ms, each.begin_ms), max(end_ms, each.end_ms)
            if is_fresh:
                self._fresh.append(mine)
                self.stretches += 1
                self._credits += HARDER if self._harder else 1
                self._progress.append((loss, float(learning[number])))
        return judged

    def _watch_drift(self, loss: float) -> DriftSignal | None:
        """Learn harder from now on where the loss of the version that serves has risen."""
        if math.isfinite(loss):
            self.latest.append(loss)
        signal = self._drift.update(loss)
        if signal is None or not signal.is_rise or self._harder:
            return None
        self._harder = self._rules.candidate_updates
        self._credits += self._rules.candidate_updates // 2
        self._progress.clear()
        return signal

    # -- learning ------------------------------------------------------------------------------------------------

    @property
    def is_drifting(self) -> bool:
        """Whether the family moved and is not caught up with: the learner may work harder."""
        return self._harder > 0

    def wants_to_study(self) -> bool:
        """Whether there is something to learn that was not learned often enough yet."""
        return self._credits > 0 and len(self.reservoir) > 0

    def study(self) -> UpdateReport:
        """One update: half of it fresh, the rest rehearsal from the reservoir and a little of what was generated."""
        batch = self._rules.batch
        fresh = [self._fresh.popleft() for _ in range(min(len(self._fresh), max(1, batch // 2)))]
        generated = batch // GENERATED_SHARE
        lessons = fresh + self.reservoir.sample(max(1, batch - len(fresh) - generated))
        start = self.updates * generated
        lessons += [self._generated[(start + k) % len(self._generated)] for k in range(generated)]
        report = self._pupil.learn(lessons)
        self.updates += 1
        self._credits -= 1
        self._harder = max(0, self._harder - 1)
        return report

    def study_more(self) -> None:
        """Learn as much again as a candidate takes, from what there is."""
        self._credits += self._rules.candidate_updates

    # -- what came of it -----------------------------------------------------------------------------------------

    def learned(self) -> Learned:
        """The pupil's weights."""
        return self._pupil.learned()

    def sample(self, count: int) -> list[Lessons]:
        """Lessons of the family, some at random."""
        return [each.lessons for each in self.reservoir.sample(min(len(self.reservoir), count))]

    def losses(self) -> tuple[float, float]:
        """Of the version that serves and of the pupil, before it learned, of late; NaN without stretches."""
        pairs = self._compared()
        serving, learning = pairs.mean(0).tolist() if len(pairs) else (math.nan, math.nan)
        return serving, learning

    def gain(self) -> float:
        """Nats by which the pupil predicted better than the version that serves; NaN while there are few stretches.

        This is progressive validation: each stretch is predicted before it is learned from.
        """
        pairs = self._compared()
        enough = len(pairs) >= self._rules.shadow_stretches // 4
        return float((pairs[:, 0] - pairs[:, 1]).mean()) if enough else math.nan

    def _compared(self) -> npt.NDArray[np.float64]:
        """Losses of the version that serves and of the pupil on the stretches that both could predict ``(n, 2)``."""
        return np.array([pair for pair in self._progress if math.isfinite(pair[0] + pair[1])]).reshape(-1, 2)

    def compare_anew(self) -> None:
        """What the pupil gained so far has been made use of, or came to nothing."""
        self._progress.clear()

    def calm_down(self) -> None:
        """The family is caught up with."""
        self._harder = 0
