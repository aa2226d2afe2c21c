"""Two versions on the same fresh stretches: which predicts better, and which would have raised more alarms.

References
----------
Both are compared stretch by stretch, so that what is hard for both counts for neither: Student, "The probable error of
a mean" (Biometrika 6, 1908). Each stretch is predicted before anything is learned from it: A. Blum, A. Kalai,
J. Langford, "Beating the hold-out: bounds for k-fold and progressive cross-validation" (1999).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

SURE = 2.0
"""Standard errors by which a difference must stand out."""

EARLY_SHARE = 0.25
"""Share of a probation after which a clear loss ends it."""

BUDGETS = 2.0
"""Alarms that a version may raise in any case, in budgets: so far may the alarm knob be off."""


class TrialResult(Enum):
    """What a comparison comes to."""

    UNDECIDED = "undecided"
    BETTER = "better"
    NO_BETTER = "no better"
    MORE_ALARMS = "more alarms"
    WORSE = "worse"


@dataclass(slots=True)
class Trial:
    """A challenger beside an incumbent.

    Attributes
    ----------
    challenger, incumbent
        Versions.
    needed
        Stretches until it is decided.
    margin
        Nats per target.
    alarm_every_s
        The profile's budget: seconds of event time per stream and false alarm.
    stretches, challenger_loss, incumbent_loss, squares
        How many were compared, the sums of both losses, and that of their squared differences.
    challenger_alarms, incumbent_alarms, watched_s
        Alarms both opened, in how many seconds of event time of all streams together.
    """

    challenger: str
    incumbent: str
    needed: int
    margin: float
    alarm_every_s: float
    stretches: int = 0
    challenger_loss: float = 0.0
    incumbent_loss: float = 0.0
    squares: float = 0.0
    challenger_alarms: int = 0
    incumbent_alarms: int = 0
    watched_s: float = 0.0

    def compare(self, challenger_loss: float, incumbent_loss: float) -> None:
        """Add one stretch that teaches; without a loss of both there is nothing to compare."""
        if math.isfinite(challenger_loss) and math.isfinite(incumbent_loss):
            self.stretches += 1
            self.challenger_loss += challenger_loss
            self.incumbent_loss += incumbent_loss
            self.squares += (incumbent_loss - challenger_loss) ** 2

    def watch(self, seconds: float, challenger_alarms: int, incumbent_alarms: int) -> None:
        """Add event time of streams, and the alarms both opened in it."""
        self.watched_s += seconds
        self.challenger_alarms += challenger_alarms
        self.incumbent_alarms += incumbent_alarms

    @property
    def gain(self) -> float:
        """Nats per target by which the challenger predicts better; NaN before the first stretch."""
        return (self.incumbent_loss - self.challenger_loss) / self.stretches if self.stretches else math.nan

    @property
    def error(self) -> float:
        """Standard error of the gain, stretches taken as independent: ``sqrt((mean(d²) - gain²) / (n - 1))``.

        d are the n differences of the losses, whose mean is the gain; infinite while there are fewer than two.
        """
        if self.stretches < 2:
            return math.inf
        return math.sqrt(max(0.0, self.squares / self.stretches - self.gain**2) / (self.stretches - 1))

    @property
    def allowed_alarms(self) -> int:
        """As many as the incumbent raised, or two budgets: whichever is more."""
        return max(self.incumbent_alarms, math.ceil(BUDGETS * self.watched_s / self.alarm_every_s))

    def shadow_result(self) -> TrialResult:
        """Whether a candidate may be promoted."""
        if self.stretches < self.needed:
            return TrialResult.UNDECIDED
        if not (self.gain >= self.margin and self.gain > SURE * self.error):
            return TrialResult.NO_BETTER
        return TrialResult.MORE_ALARMS if self.challenger_alarms > self.allowed_alarms else TrialResult.BETTER

    def probation_result(self) -> TrialResult:
        """Whether a promoted version stays: ``WORSE`` and ``MORE_ALARMS`` send it back, ``BETTER`` confirms it."""
        if self.challenger_alarms > self.allowed_alarms:
            return TrialResult.MORE_ALARMS
        enough = self.stretches >= max(4, math.ceil(EARLY_SHARE * self.needed))
        if enough and self.gain < -self.margin / 2 and -self.gain > SURE * self.error:
            return TrialResult.WORSE
        return TrialResult.BETTER if self.stretches >= self.needed else TrialResult.UNDECIDED

    def figures(self) -> dict[str, float]:
        """What a decision rests on."""
        per = max(1, self.stretches)
        return {
            "stretches": self.stretches,
            "loss": round(self.challenger_loss / per, 4),
            "loss_of_parent": round(self.incumbent_loss / per, 4),
            "gain": round(self.gain, 4),
            "gain_error": round(self.error, 4),
            "margin": self.margin,
            "alarms": self.challenger_alarms,
            "alarms_of_parent": self.incumbent_alarms,
            "alarms_allowed": self.allowed_alarms,
            "stream_days": round(self.watched_s / 86_400, 2),
        }
