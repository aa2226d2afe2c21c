"""What may teach: the policy that keeps faults out of the shared weights, and lets lasting changes in.

A stretch teaches when it is normal: no anomalous observation, warmed up, few missing values, and like its own stream's
past. A stream that alarmed, or has become unlike itself, is *closed*. The fold's own statistics adapt within hours, so
"no alarm any more" does not mean "the fault is over"; the gate therefore compares with how the stream was before,
frozen at the moment it closed, in three numbers: level, spread, and how well the serving version predicts it.

A closed stream opens again when it is back to what it was; or when the change has *lasted*: longer than ``lasting_s``
of event time, with the shift confirmed by a river detector; or, at twice that time, without the detector. So a fault of
a day is never learned, and nothing is locked out for ever.

A learner that restarts in the middle of a fault would know the stream as broken only; so what the gate knows is kept
(:meth:`Gate.memory`), and what is read a second time is judged and moves nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from models.drift import DriftDetector
from pipeline.learning.cutting import Stretch
from pipeline.records import Float32, Int64

NORMAL, ANOMALOUS, WARMING_UP, IMPUTED, CLOSED = "normal", "anomalous", "warming up", "imputed", "closed"
REASONS = (NORMAL, ANOMALOUS, WARMING_UP, IMPUTED, CLOSED)

Float64 = npt.NDArray[np.float64]

KNOWN_AFTER = 8
"""Stretches until a stream's past says enough to be compared with."""

SIGMAS = 3.0
SPREAD_RATIO = 3.0
LOSS_NATS = 0.5
FOLLOWS = 16
"""Stretches over which the past moves on while the stream is open: a slow drift is followed."""

SEEN_AFTER_CHANGE = 3
"""Stretches of the new kind that are needed besides their duration."""


class Running:
    """Running mean and variance of a vector's numbers, each over about its last :data:`FOLLOWS` values."""

    def __init__(self) -> None:
        self.count: Int64 = np.zeros(1, np.int64)
        self.mean: Float64 = np.zeros(1)
        self.variance: Float64 = np.zeros(1)

    def follow(self, value: Float64) -> None:
        """Move on by one value; what is known of a number that is missing from it (NaN) stays."""
        is_there = np.isfinite(value)
        rate = np.where(is_there, np.maximum(1.0 / (self.count + 1), 1.0 / FOLLOWS), 0.0)
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

        A feature says nothing while it is missing, nor until enough is known of it: a dead sensor does not keep the
        others from being compared, and one that is repaired is no fault.
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

    def follow(self, values: Float32, loss: float) -> None:
        """Move on by a stretch that belongs to it; each feature by what there is of it."""
        level, spread = _level_and_spread(values)
        if math.isfinite(loss):
            self._level.follow(level)
            self._spread.follow(_log(spread, level))
            self._loss.follow(np.array([loss]))

    def doubt_losses(self) -> None:
        """Another version serves: what it loses may differ a little."""
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


@dataclass(slots=True)
class _Stream:
    past: Past = field(default_factory=Past)
    seen_ms: int = -1
    closed_ms: int | None = None
    closed_stretches: int = 0
    is_confirmed: bool = False
    detector: DriftDetector | None = None


class Gate:
    """Judges stretches of one profile's streams.

    Parameters
    ----------
    lasting_s
        Event time after which a confirmed change counts as lasting.
    max_imputed
        Largest share of missing values that teaches.
    """

    def __init__(self, lasting_s: float, max_imputed: float) -> None:
        self._lasting_ms, self._max_imputed = lasting_s * 1000, max_imputed
        self._streams: dict[str, _Stream] = {}
        self.judged: Counter[str] = Counter()
        self.reopened: Counter[str] = Counter()

    def closed(self) -> list[str]:
        """Streams closed now, also those that have not been heard of since a restart."""
        return [name for name, stream in self._streams.items() if stream.closed_ms is not None]

    def forget(self, stream_id: str) -> None:
        """The stream begins anew."""
        self._streams.pop(stream_id, None)

    def doubt_losses(self) -> None:
        """Another version serves: its losses are no measure of the old one's. Levels and closures stay."""
        for stream in self._streams.values():
            stream.past.doubt_losses()

    def memory(self) -> dict[str, Any]:
        """What it knows of every stream, in JSON's types, for :meth:`restore`."""
        return {
            name: [each.past.memory(), each.seen_ms, each.closed_ms, each.closed_stretches, each.is_confirmed]
            for name, each in self._streams.items()
        }

    def restore(self, memory: Mapping[str, Any], features: int, most: int) -> None:
        """Know again what :meth:`memory` gave, of the ``most`` streams seen last.

        Without a limit, streams that nobody follows any more would be handed from restart to restart for ever.

        Raises
        ------
        ValueError, TypeError
            It is something else.
        """
        streams = {}
        for name, (past, seen_ms, closed_ms, closed_stretches, is_confirmed) in memory.items():
            known = Past.restored(past)
            if known.features not in (0, features):
                raise ValueError(f"stream {name!r} had {known.features} features")
            detector = None if closed_ms is None else _at_home()
            streams[name] = _Stream(known, seen_ms, closed_ms, closed_stretches, is_confirmed, detector)
        seen_last = sorted(streams, key=lambda name: streams[name].seen_ms, reverse=True)
        self._streams = {name: streams[name] for name in seen_last[:most]}

    def judge(self, stretch: Stretch, loss: float) -> str:
        """One of :data:`REASONS`: only :data:`NORMAL` teaches.

        Parameters
        ----------
        loss
            The serving version's on this stretch, nats per target.
        """
        reason = self._judge(stretch, loss)
        self.judged[reason] += 1
        return reason

    def _judge(self, stretch: Stretch, loss: float) -> str:
        stream = self._streams.setdefault(stretch.stream_id, _Stream())
        if stretch.warming_up:
            return WARMING_UP
        if stretch.imputed > self._max_imputed:
            return IMPUTED
        strangeness = stream.past.strangeness(stretch.values, loss)
        if stretch.begin_ms <= stream.seen_ms:  # read a second time
            return ANOMALOUS if stretch.anomalous else CLOSED if strangeness > 1.0 else NORMAL
        stream.seen_ms = stretch.end_ms
        if stream.closed_ms is not None:
            self._watch(stream, stretch, strangeness)
            if stream.closed_ms is not None:
                return CLOSED
        elif strangeness > 1.0 or stretch.anomalous:
            self._close(stream, stretch)
            return ANOMALOUS if stretch.anomalous else CLOSED
        if stretch.anomalous:  # after a change has lasted, single surprises still do not teach
            return ANOMALOUS
        stream.past.follow(stretch.values, loss)
        return NORMAL

    def _close(self, stream: _Stream, stretch: Stretch) -> None:
        stream.closed_ms, stream.closed_stretches, stream.is_confirmed = stretch.begin_ms, 0, False
        stream.detector = _at_home()

    def _watch(self, stream: _Stream, stretch: Stretch, strangeness: float) -> None:
        """A closed stream opens when it is back, or when what became of it has lasted."""
        assert stream.closed_ms is not None
        if strangeness <= 1.0 and not stretch.anomalous:
            self._open(stream, "back")
            return
        stream.closed_stretches += 1
        signal = stream.detector.update(min(strangeness, 3.0)) if stream.detector is not None else None
        stream.is_confirmed = stream.is_confirmed or (signal is not None and signal.is_rise)
        closed_ms = stretch.end_ms - stream.closed_ms
        lasted = closed_ms > self._lasting_ms and stream.is_confirmed
        if (lasted or closed_ms > 2 * self._lasting_ms) and stream.closed_stretches >= SEEN_AFTER_CHANGE:
            self._open(stream, "lasting")
            stream.past = Past()  # this is what the stream is now

    def _open(self, stream: _Stream, why: str) -> None:
        stream.closed_ms, stream.detector = None, None
        self.reopened[why] += 1


def _at_home() -> DriftDetector:
    """A detector of a stream's strangeness that has seen it as it was before it closed."""
    detector = DriftDetector("page_hinkley", delta=0.1, threshold=2.0)
    for _ in range(KNOWN_AFTER):
        detector.update(0.3)
    return detector


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
