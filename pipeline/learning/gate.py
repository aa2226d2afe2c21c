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

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from models.drift import DriftDetector
from models.past import KNOWN_AFTER, Past
from pipeline.learning.cutting import Stretch

SEEN_AFTER_CHANGE = 3
"""Stretches of the new kind that are needed besides their duration."""


class Reason(Enum):
    """Why a stretch teaches, or does not: only ``NORMAL`` teaches."""

    NORMAL = "normal"
    ANOMALOUS = "anomalous"
    WARMING_UP = "warming up"
    IMPUTED = "imputed"
    CLOSED = "closed"


@dataclass(slots=True)
class _Stream:
    past: Past = field(default_factory=Past)
    seen_ms: int = -1
    closed_ms: int | None = None
    closed_stretches: int = 0
    is_confirmed: bool = False
    detector: DriftDetector | None = None

    def close(self, stretch: Stretch) -> None:
        """From this stretch on it may not teach."""
        self.closed_ms, self.closed_stretches, self.is_confirmed = stretch.begin_ms, 0, False
        self.detector = _at_home()

    def open(self) -> None:
        """It may teach again."""
        self.closed_ms, self.detector = None, None


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
        self.judged: Counter[Reason] = Counter()

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

    def judge(self, stretch: Stretch, loss: float) -> Reason:
        """Whether a stretch teaches, or why it does not.

        Parameters
        ----------
        loss
            The serving version's on this stretch, nats per target.
        """
        reason = self._judge(stretch, loss)
        self.judged[reason] += 1
        return reason

    def _judge(self, stretch: Stretch, loss: float) -> Reason:
        stream = self._streams.setdefault(stretch.stream_id, _Stream())
        if stretch.warming_up:
            return Reason.WARMING_UP
        if stretch.imputed > self._max_imputed:
            return Reason.IMPUTED
        strangeness = stream.past.strangeness(stretch.values, loss)
        if stretch.begin_ms <= stream.seen_ms:  # read a second time
            return Reason.ANOMALOUS if stretch.anomalous else Reason.CLOSED if strangeness > 1.0 else Reason.NORMAL
        stream.seen_ms = stretch.end_ms
        if stream.closed_ms is not None:
            self._watch(stream, stretch, strangeness)
            if stream.closed_ms is not None:
                return Reason.CLOSED
        elif strangeness > 1.0 or stretch.anomalous:
            stream.close(stretch)
            return Reason.ANOMALOUS if stretch.anomalous else Reason.CLOSED
        if stretch.anomalous:  # after a change has lasted, single surprises still do not teach
            return Reason.ANOMALOUS
        stream.past.update(stretch.values, loss)
        return Reason.NORMAL

    def _watch(self, stream: _Stream, stretch: Stretch, strangeness: float) -> None:
        """A closed stream opens when it is back, or when what became of it has lasted."""
        assert stream.closed_ms is not None
        if strangeness <= 1.0 and not stretch.anomalous:
            stream.open()
            return
        stream.closed_stretches += 1
        signal = stream.detector.update(min(strangeness, 3.0)) if stream.detector is not None else None
        stream.is_confirmed = stream.is_confirmed or (signal is not None and signal.is_rise)
        closed_ms = stretch.end_ms - stream.closed_ms
        lasted = closed_ms > self._lasting_ms and stream.is_confirmed
        if (lasted or closed_ms > 2 * self._lasting_ms) and stream.closed_stretches >= SEEN_AFTER_CHANGE:
            stream.open()
            stream.past = Past()  # this is what the stream is now


def _at_home() -> DriftDetector:
    """A detector of a stream's strangeness that has seen it as it was before it closed."""
    detector = DriftDetector("page_hinkley", delta=0.1, threshold=2.0)
    for _ in range(KNOWN_AFTER):
        detector.update(0.3)
    return detector
