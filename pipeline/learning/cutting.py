"""Scored observations of streams, cut into stretches of equal length to be learned from."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from models.config import GAP_INTERVALS
from pipeline.records import ANOMALOUS, WARMING_UP, Float32, Int64, Scores, Windows


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive observations of one stream, and what the serving version said of them.

    Attributes
    ----------
    times_ms, values
        ``(T,)`` and ``(T, F)``, NaN where missing.
    anomalous, warming_up
        How many of the T had that verdict.
    imputed
        Share of missing values.
    follows_gap
        Whether the stream was away before it.
    """

    stream_id: str
    times_ms: Int64
    values: Float32
    anomalous: int
    warming_up: int
    imputed: float
    follows_gap: bool

    @property
    def begin_ms(self) -> int:
        """Event time of the first observation."""
        return int(self.times_ms[0])

    @property
    def end_ms(self) -> int:
        """Event time of the last observation."""
        return int(self.times_ms[-1])


@dataclass(slots=True)
class _Pending:
    """What a stream has said since its last whole stretch."""

    times_ms: list[Int64] = field(default_factory=list)
    values: list[Float32] = field(default_factory=list)
    verdicts: list[np.ndarray] = field(default_factory=list)
    follows_gap: bool = False
    count: int = 0
    last_ms: int = -1


class Cutter:
    """Gathers each stream's observations until they make a stretch.

    Parameters
    ----------
    length
        Observations of a stretch.
    interval_s
        The profile's; a gap in its terms (:mod:`models.fold`) ends what was gathered. ``None``: no pause does.
    """

    def __init__(self, length: int, interval_s: float | None) -> None:
        self._length = length
        self._gap_ms = None if interval_s is None else GAP_INTERVALS * interval_s * 1000
        self._pending: dict[str, _Pending] = {}

    def forget(self, stream_id: str) -> None:
        """Drop what was gathered of a stream."""
        self._pending.pop(stream_id, None)

    def add(self, windows: Windows, scores: Scores) -> list[Stretch]:
        """Take a batch and its scores; returns the stretches that are whole now, each stream's in its order.

        What was not scored (late, repeated, silent) is not there for learning either.
        """
        ends = np.cumsum(windows.lengths)
        place = {int(offset): number for number, offset in enumerate(windows.offsets.tolist())}
        made: list[Stretch] = []
        at = 0
        for stream_id, offset, length in zip(
            scores.stream_ids, scores.offsets.tolist(), scores.lengths.tolist(), strict=True
        ):
            number = place[offset]
            begin, end = int(ends[number] - windows.lengths[number]), int(ends[number])
            times_ms, verdicts = scores.times_ms[at : at + length], scores.verdict[at : at + length]
            at += length
            values = windows.values[begin:end]
            if length < end - begin:
                values = values[np.isin(windows.times_ms[begin:end], times_ms)]
            made += self._gather(stream_id, times_ms, values, verdicts)
        return made

    def _gather(self, stream_id: str, times_ms: Int64, values: Float32, verdicts: np.ndarray) -> list[Stretch]:
        pending = self._pending.setdefault(stream_id, _Pending())
        made = []
        steps = np.diff(times_ms, prepend=pending.last_ms if pending.last_ms >= 0 else times_ms[0])
        breaks = np.flatnonzero(steps > self._gap_ms).tolist() if self._gap_ms is not None else []
        for begin, end in zip([0, *breaks], [*breaks, len(times_ms)], strict=True):
            if begin in breaks:
                pending = self._pending[stream_id] = _Pending(follows_gap=True)
            at = begin
            while at < end:
                until = min(end, at + self._length - pending.count)
                pending.times_ms.append(times_ms[at:until])
                pending.values.append(values[at:until])
                pending.verdicts.append(verdicts[at:until])
                pending.count += until - at
                at = until
                if pending.count == self._length:
                    made.append(_whole(stream_id, pending))
                    pending = self._pending[stream_id] = _Pending()
        pending.last_ms = int(times_ms[-1])
        return made


def _whole(stream_id: str, pending: _Pending) -> Stretch:
    values, verdicts = np.concatenate(pending.values), np.concatenate(pending.verdicts)
    return Stretch(
        stream_id,
        np.concatenate(pending.times_ms),
        values,
        anomalous=int((verdicts == ANOMALOUS).sum()),
        warming_up=int((verdicts == WARMING_UP).sum()),
        imputed=float(np.isnan(values).mean()),
        follows_gap=pending.follows_gap,
    )
