"""A batch's observations, stream by stream in time order: what the engine folds, and where the results go.

Windows arrive in the order of their records; the scorer wants many streams at once and each stream's observations side
by side. Late observations stay out here, and here it is seen where a stream begins anew. Arrays only, no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from models.step import StepScores
from pipeline.alerts import Cell
from pipeline.records import CONTROL_NONE, Bool, Float32, Int64, UInt8, Windows


@dataclass(frozen=True, slots=True)
class Detail:
    """What stands behind the observations of one :class:`Scores`, in its order.

    Attributes
    ----------
    event
        ``(S,)`` uint8: 0 none, 1 opened, 2 updated, 3 resolved.
    evidence, trace
        The fields of :class:`models.step.Evidence` and what was wanted of :data:`models.step.Trace`, by name, ``(S,
        ...)`` each; no evidence where it was kept of alerts only.
    """

    event: UInt8
    evidence: Mapping[str, npt.NDArray[Any]]
    trace: Mapping[str, npt.NDArray[Any]]


@dataclass(slots=True)
class Observations:
    """The folded observations of a batch, a stream's side by side in time order, and their results."""

    window: Int64
    slot: Int64
    index: Int64
    times_ms: Int64
    values: Float32
    fresh: Bool
    late: int
    controls: list[tuple[int, int]] = field(default_factory=list)
    score: Float32 = field(init=False)
    threshold: Float32 = field(init=False)
    verdict: UInt8 = field(init=False)
    event: UInt8 = field(init=False)
    signal: UInt8 = field(init=False)
    feature: npt.NDArray[np.int16] = field(init=False)
    imputed: Float32 = field(init=False)
    evidence: list[tuple[Int64, Int64, Mapping[str, npt.NDArray[Any]]]] = field(default_factory=list)
    traces: list[tuple[Int64, Mapping[str, npt.NDArray[Any]]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = len(self.window)
        self.score = np.empty(count, np.float32)
        self.threshold = np.empty(count, np.float32)
        self.verdict = np.empty(count, np.uint8)
        self.event = np.empty(count, np.uint8)
        self.signal = np.empty(count, np.uint8)
        self.feature = np.empty(count, np.int16)
        self.imputed = np.empty(count, np.float32)

    def cell(self, cell: int, row: int, evidence: Mapping[str, npt.NDArray[Any]], signals: Sequence[str]) -> Cell:
        """One observation's results with the evidence behind them."""
        return Cell(
            int(self.event[cell]),
            float(self.score[cell]),
            float(self.threshold[cell]),
            int(self.verdict[cell]),
            signals[int(self.signal[cell])],
            float(self.imputed[cell]),
            evidence,
            row,
        )

    def keep(self, where: Int64, scores: StepScores) -> None:
        """Put the results of one call, (S, N) cells, to the observations ``where`` (S, N)."""
        streams = where.shape[1]
        for name in ("score", "threshold", "verdict", "event", "signal", "feature", "imputed"):
            getattr(self, name)[where] = getattr(scores, name)[:, :streams].numpy()
        if len(scores.details.n):
            arrays = {f.name: getattr(scores.details, f.name).numpy() for f in fields(scores.details)}
            rows = np.flatnonzero(arrays["n"] < streams)  # the others are scratch rows
            s, n = arrays["s"][rows], arrays["n"][rows]
            self.evidence.append((where[s, n], rows, arrays))
        if scores.trace:
            traced = {name: kept[:, :streams].cpu().numpy() for name, kept in scores.trace.items()}
            self.traces.append((where, traced))

    def detail(self, cells: Int64, has_evidence: bool) -> Detail:
        """Trace and, where every call kept it of all observations, evidence of these."""
        count = len(self.window)
        evidence = {
            name: _scattered(count, [(where, arrays[name][rows]) for where, rows, arrays in self.evidence])[cells]
            for name in (self.evidence[0][2] if has_evidence else ())
            if name not in ("s", "n")
        }
        trace = {
            name: _scattered(count, [(where, arrays[name]) for where, arrays in self.traces])[cells]
            for name in self.traces[0][1]
        }
        return Detail(self.event[cells], evidence, trace)


@dataclass(frozen=True, slots=True)
class Turn:
    """At most one run of observations for each stream: where it starts in the batch, and how long it is."""

    slot: Int64
    first: Int64
    length: Int64


def _scattered(count: int, parts: Sequence[tuple[Int64, npt.NDArray[Any]]]) -> npt.NDArray[Any]:
    """Results of many calls put to their observations: values of shape where.shape + (...) become (count, ...)."""
    where, values = parts[0]
    whole = np.empty((count, *values.shape[where.ndim :]), values.dtype)
    for where, values in parts:
        whole[where] = values
    return whole


def join(parts: Sequence[Windows]) -> Windows:
    """Windows of several partitions one after another."""
    if len(parts) == 1:
        return parts[0]
    return Windows(
        [stream for part in parts for stream in part.stream_ids],
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("offsets", "record_ms", "lengths", "silent", "control", "times_ms", "values")
        ),
    )


def lay_out(
    windows: Windows, slots: Int64, taken: Bool, header: npt.NDArray[np.void], idle_reset_ms: int
) -> Observations:
    """Observations of the taken windows, stream by stream in time order, without the late ones.

    An observation is fresh where its stream begins anew with it: after a reset record, or after a gap in event time or
    in record time above ``idle_reset_ms`` (protocol.md rule 16).
    """
    order = np.argsort(slots, kind="stable")
    order = order[taken[order]]
    lengths = windows.lengths[order]
    starts = (np.cumsum(windows.lengths) - windows.lengths)[order]
    index = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    source = np.repeat(starts, lengths) + index
    window = np.repeat(order, lengths)
    slot, times = slots[window], windows.times_ms[source]
    first = _first_of_run(slot)
    reset = _begins_anew(windows, slots, order, header, idle_reset_ms)[window] & (index == 0)
    reset |= first & (header["last_event_ms"][slot] < 0)
    on_time = times > _newest_before(times, first | reset, np.where(reset, -1, header["last_event_ms"][slot]))
    if not on_time.all():
        late = np.flatnonzero(~on_time)
        kept = np.delete(np.arange(len(times)), late)
        window, slot, index, times, reset, source = (a[kept] for a in (window, slot, index, times, reset, source))
        first = _first_of_run(slot)
    before = np.where(first, header["last_event_ms"][slot], np.roll(times, 1))
    fresh = reset | ((before >= 0) & (times - before > idle_reset_ms))
    return Observations(window, slot, index, times, windows.values[source], fresh, int((~on_time).sum()))


def _first_of_run(slot: Int64) -> Bool:
    first = np.ones(len(slot), dtype=bool)
    first[1:] = slot[1:] != slot[:-1]
    return first


def _begins_anew(
    windows: Windows, slots: Int64, order: Int64, header: npt.NDArray[np.void], idle_reset_ms: int
) -> Bool:
    """Which windows start a fresh row by a control record before them or by a long silence in record time.

    Record times may run back (a gateway that sends old data): the newest so far counts, in this batch or before it.
    """
    anew = np.zeros(len(windows), dtype=bool)
    slot, record_ms = slots[order], windows.record_ms[order]
    first = _first_of_run(slot)
    before = _newest_before(record_ms, first, header["last_record_ms"][slot])
    control = windows.control[order] != CONTROL_NONE
    after_control = np.roll(control, 1) & ~first
    anew[order] = after_control | ((before >= 0) & (record_ms - before > 2 * idle_reset_ms))
    return anew


def _newest_before(times: Int64, begins: Bool, floor: Int64) -> Int64:
    """The newest time before each in its run; ``floor`` where a run begins."""
    before = np.where(begins, floor, np.roll(times, 1))
    back = times < before
    if back.any():  # rare, and only the runs concerned cost anything
        bounds = np.append(np.flatnonzero(begins), len(times))
        for run in np.unique(np.cumsum(begins)[back]).tolist():
            part = slice(bounds[run - 1], bounds[run])
            before[part] = np.maximum.accumulate(before[part])
    return before


def turns(batch: Observations) -> Iterator[Turn]:
    """Runs of observations to fold, in rounds: a stream that begins anew in mid-batch has more than one."""
    starts = np.flatnonzero(_first_of_run(batch.slot) | batch.fresh)
    if not len(starts):
        return
    lengths = np.diff(np.append(starts, len(batch.slot)))
    first = _first_of_run(batch.slot[starts])
    number = np.arange(len(starts)) - np.maximum.accumulate(np.where(first, np.arange(len(starts)), 0))
    for turn in range(int(number.max()) + 1):
        mine = number == turn
        yield Turn(batch.slot[starts[mine]], starts[mine], lengths[mine])
