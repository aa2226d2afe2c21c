"""Drift: river's detectors on a series of losses or distances, and what they say as a :class:`DriftSignal`.

References
----------
ADWIN: A. Bifet, R. Gavaldà, "Learning from time-changing data with adaptive windowing" (2007). Page-Hinkley: E. S.
Page, "Continuous inspection schemes" (1954), in the form of J. Gama et al. (2013). Both as river implements them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from river import drift

DetectorKind = Literal["adwin", "page_hinkley"]

LEVEL_WINDOW, NOW_WINDOW = 32, 4
"""Values over which the level before a change, and that of the moment, are averaged."""


@dataclass(frozen=True, slots=True)
class DriftSignal:
    """A change in the level of a series.

    Attributes
    ----------
    at
        How many values had been seen, this one included.
    before, after
        The running level, some 32 values wide, and that of the moment, some 4 values wide.
    """

    at: int
    before: float
    after: float

    @property
    def is_rise(self) -> bool:
        """Whether the level went up: a loss that falls is no reason to worry."""
        return self.after > self.before


class DriftDetector:
    """Watches one series of numbers; says when its level has changed.

    Parameters
    ----------
    kind
        ``adwin`` for long series (hundreds of values, any scale), ``page_hinkley`` for short ones (some ten values).
    delta
        ADWIN: the chance of a false alarm; Page-Hinkley: changes of less than this are none.
    threshold
        Page-Hinkley only: sum of deviations at which a change counts.
    """

    def __init__(self, kind: DetectorKind = "adwin", delta: float = 0.002, threshold: float = 3.0) -> None:
        self._kind, self._delta, self._threshold = kind, delta, threshold
        self._detector = self._made()
        self._level = self._now = math.nan
        self._seen = 0

    def _made(self) -> Any:
        if self._kind == "adwin":
            adwin: Any = drift.ADWIN
            return adwin(delta=self._delta, clock=1)
        return drift.PageHinkley(min_instances=4, delta=self._delta, threshold=self._threshold)

    def update(self, value: float) -> DriftSignal | None:
        """Take one value; returns a signal where the level is found to have changed. NaN and infinity are no values."""
        if not math.isfinite(value):
            return None
        before = self._level if self._seen else value
        now = self._now if self._seen else value
        self._seen += 1
        self._level = before + (value - before) / min(self._seen, LEVEL_WINDOW)
        self._now = now + (value - now) / min(self._seen, NOW_WINDOW)
        self._detector.update(value)
        if not self._detector.drift_detected:
            return None
        self._level = self._now
        return DriftSignal(self._seen, before, self._now)

    def reset(self) -> None:
        """Forget everything."""
        self._detector, self._level, self._now, self._seen = self._made(), math.nan, math.nan, 0
