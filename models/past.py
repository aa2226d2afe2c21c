"""How a stream usually is, and how unlike itself a stretch of it is: level, spread, and the loss of a predictor.

Shapes: T time, F features.

References
----------
Running mean and variance: T. Finch, "Incremental calculation of weighted mean and variance" (2009), exponentially
weighted; until there are enough values they all count alike. Limits of three standard deviations on level and spread:
W. A. Shewhart, "Economic control of quality of manufactured product" (1931). Ours are wider, by the spread inside a
stretch and by a factor of it, because the observations of a stretch are no independent sample.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

KNOWN_AFTER = 8
"""Stretches until a stream's past says enough to be compared with."""

SIGMAS = 3.0
SPREAD_RATIO = 3.0
LOSS_NATS = 0.5
MOVES_OVER = 16
"""Stretches over which the past moves on: a slow drift becomes part of it."""


class Running:
    """Running mean and variance of a vector's numbers, each over about its last :data:`MOVES_OVER` values.

    With ``a = max(1 / n, 1 / 16)`` for a number's n-th value: ``off = value - mean``, ``mean += a off``,
    ``variance = (1 - a) (variance + a off²)``.
    """

    def __init__(self) -> None:
        self.count: Int64 = np.zeros(1, np.int64)
        self.mean: Float64 = np.zeros(1)
        self.variance: Float64 = np.zeros(1)

    def update(self, value: Float64) -> None:
        """Move on by one value; what is known of a number that is missing from it (NaN) stays."""
        is_there = np.isfinite(value)
        rate = np.where(is_there, np.maximum(1.0 / (self.count + 1), 1.0 / MOVES_OVER), 0.0)
        off = np.where(is_there, value - self.mean, 0.0)
        self.mean = self.mean + rate * off
        self.variance = (1 - rate) * (self.variance + rate * off**2)
        self.count = self.count + is_there

    def memory(self) -> list[Any]:
        """For :meth:`restored`, in JSON's types."""
        return [self.count.tolist(), self.mean.tolist(), self.variance.tolist()]

    @classmethod
    def restored(cls, memory: list[Any]) -> Running:
        """What :meth:`memory` gave."""
        made = cls()
        count, mean, variance = memory
        made.mean, made.variance = np.array(mean, float), np.array(variance, float)
        # Broadcast, for learners have kept one count for all numbers.
        made.count = np.zeros(len(made.mean), np.int64) + np.array(count, np.int64)
        return made


class Past:
    """How a stream usually is: levels and spreads of its stretches, and the loss on them."""

    def __init__(self) -> None:
        self._level, self._spread, self._loss = Running(), Running(), Running()

    @property
    def features(self) -> int:
        """Of what it has seen; 0 before the first stretch."""
        return len(self._level.mean) if self._loss.count.any() else 0

    @property
    def is_known(self) -> bool:
        """Whether there is enough of it to compare with."""
        return bool(self._loss.count[0] >= KNOWN_AFTER)

    def strangeness(self, values: Float32, loss: float) -> float:
        """How unlike the past a stretch is: above 1 it is another stream. 0 while the past is not known.

        The largest, over features, of level (distance from the mean level over three standard deviations, of levels
        and inside a stretch together) and spread (difference of logarithms over log 3 and three standard deviations),
        and of the loss (rise over half a nat and three standard deviations).

        A feature says nothing while it is missing, nor until enough is known of it: a dead sensor does not keep the
        others from being compared, and one that is repaired is no fault.

        Parameters
        ----------
        values
            ``(T, F)``, NaN where missing.
        loss
            Of a predictor on them, nats per target.
        """
        if not self.is_known or not math.isfinite(loss):
            return 0.0
        level, spread = _level_and_spread(values)
        inside = np.exp(self._spread.mean)
        apart = np.abs(level - self._level.mean) / np.sqrt(self._level.variance + inside**2)
        ratio = np.abs(_log(spread, level) - self._spread.mean)
        usual = math.log(SPREAD_RATIO) + SIGMAS * np.sqrt(self._spread.variance)
        worse = (loss - self._loss.mean) / (LOSS_NATS + SIGMAS * np.sqrt(self._loss.variance))
        own = np.where(self._level.count >= KNOWN_AFTER, np.maximum(apart / SIGMAS, ratio / usual), np.nan)
        return float(np.nanmax(np.concatenate([own, worse])))

    def update(self, values: Float32, loss: float) -> None:
        """Move on by a stretch that belongs to it; each feature by what there is of it."""
        level, spread = _level_and_spread(values)
        if math.isfinite(loss):
            self._level.update(level)
            self._spread.update(_log(spread, level))
            self._loss.update(np.array([loss]))

    def doubt_losses(self) -> None:
        """Another predictor takes over: what it loses may differ a little."""
        self._loss.variance = self._loss.variance + LOSS_NATS**2

    def memory(self) -> list[Any]:
        """For :meth:`restored`, in JSON's types."""
        return [each.memory() for each in (self._level, self._spread, self._loss)]

    @classmethod
    def restored(cls, memory: list[Any]) -> Past:
        """What :meth:`memory` gave."""
        made = cls()
        made._level, made._spread, made._loss = map(Running.restored, memory)
        return made


def _level_and_spread(values: Float32) -> tuple[Float64, Float64]:
    """Mean and standard deviation ``(F,)`` of a stretch, NaN for a feature without any value."""
    known = np.isfinite(values)
    count = known.sum(0)
    filled = np.where(known, values.astype(np.float64), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        level = filled.sum(0) / count
        spread = np.sqrt(np.where(known, (filled - level) ** 2, 0.0).sum(0) / count)
    return level, spread


def _log(spread: Float64, level: Float64) -> Float64:
    """Log spread above the floor under which differences mean nothing (a constant stream has some, too)."""
    return np.asarray(np.log(spread + 1e-4 * np.abs(level) + 1e-8))
