"""The hot path: windows of many partitions in, scores and alerts out, rows folded in place.

:meth:`Engine.absorb` is one batch: lay the windows out stream by stream, leave out what is late, cut the rest into
calls of equal length, fold, and hand back what each partition may emit. No Kafka, no Redis, no formula.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.config import HiddenOnSwap
from models.step import Scorer, StepScores
from pipeline.alerts import AlertPlace, Cell, build_alert
from pipeline.errors import StateLost, VersionError
from pipeline.records import (
    CONTROL_FORGET,
    CONTROL_NONE,
    OPENED,
    RESOLVED,
    Alert,
    Bool,
    Committed,
    Float32,
    Int64,
    Partition,
    Scores,
    UInt8,
    Windows,
)
from pipeline.resident import SCRATCH, ResidentRows
from pipeline.settings import Profile
from pipeline.state.codec import Snapshots, decode_many

logger = logging.getLogger(__name__)

CALL_LENGTHS = (64, 16, 4, 1)
"""Observations per call; a window is cut into these, longest first, and cuts change nothing (invariant 1)."""

WARM_UP_OBSERVATIONS = 100
"""Valid observations until a stream's first verdict, and until a rebuilt one is no longer partial (recipe.md)."""

MAX_CALL_ROWS = 8192
"""Feature rows per call: beyond it a call leaves the cache (hot-path.md section 2)."""


@dataclass(frozen=True, slots=True)
class Share:
    """One partition's part of a batch. Windows at or above ``emit_from`` (the committed offset) may give output."""

    partition: Partition
    windows: Windows
    emit_from: int


@dataclass(frozen=True, slots=True)
class Detail:
    """What stands behind the observations of one :class:`Scores`, in its order.

    Attributes
    ----------
    event
        ``(S,)`` uint8: 0 none, 1 opened, 2 updated, 3 resolved.
    evidence, trace
        The fields of :class:`models.step.Evidence` and :class:`models.step.Trace` by name, ``(S, ...)`` each.
    """

    event: UInt8
    evidence: Mapping[str, npt.NDArray[Any]]
    trace: Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Absorbed:
    """What a batch gave: outputs to emit, and counts. ``details`` go with ``scores`` where the engine keeps them."""

    scores: list[Scores]
    details: list[Detail]
    alerts: list[Alert]
    observations: int
    late: int
    missing_values: int
    skipped_windows: int
    silent_observations: int


@dataclass(slots=True)
class _Batch:
    """The folded observations of a batch, a stream's side by side in time order, and their results."""

    window: Int64
    slot: Int64
    index: Int64
    times_ms: Int64
    values: Float32
    fresh: Bool
    late: int
    score: Float32 = field(init=False)
    threshold: Float32 = field(init=False)
    verdict: UInt8 = field(init=False)
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
        self.signal = np.empty(count, np.uint8)
        self.feature = np.empty(count, np.int16)
        self.imputed = np.empty(count, np.float32)

    def cell(self, cell: int, row: int, evidence: Mapping[str, npt.NDArray[Any]], rows: ResidentRows) -> Cell:
        """One observation's results with the evidence behind them."""
        return Cell(
            int(evidence["event"][row]),
            float(self.score[cell]),
            float(self.threshold[cell]),
            int(self.verdict[cell]),
            rows.scorer.signals[int(self.signal[cell])],
            float(self.imputed[cell]),
            evidence,
            row,
        )

    def keep(self, where: Int64, scores: StepScores) -> None:
        """Put the results of one call, (S, N) cells, to the observations ``where`` (S, N)."""
        streams = where.shape[1]
        for name in ("score", "threshold", "verdict", "signal", "feature", "imputed"):
            getattr(self, name)[where] = getattr(scores, name)[:, :streams].cpu().numpy()
        if len(scores.details.n):
            arrays = {f.name: getattr(scores.details, f.name).cpu().numpy() for f in fields(scores.details)}
            rows = np.flatnonzero(arrays["n"] < streams)  # the others are scratch rows
            s, n = arrays["s"][rows], arrays["n"][rows]
            arrays["event"] = np.zeros(len(arrays["n"]), np.uint8)
            arrays["event"][rows] = scores.event[:, :streams].cpu().numpy()[s, n]
            self.evidence.append((where[s, n], rows, arrays))
        if scores.trace is not None:
            traced = {f.name: getattr(scores.trace, f.name)[:, :streams].cpu().numpy() for f in fields(scores.trace)}
            self.traces.append((where, traced))

    def detail(self, cells: Int64) -> Detail:
        """Evidence and trace of these observations, where every call kept them."""
        count = len(self.window)
        evidence = {
            name: _scattered(count, [(where, arrays[name][rows]) for where, rows, arrays in self.evidence])[cells]
            for name in self.evidence[0][2]
            if name not in ("s", "n")
        }
        trace = {
            name: _scattered(count, [(where, arrays[name]) for where, arrays in self.traces])[cells]
            for name in self.traces[0][1]
        }
        return Detail(evidence.pop("event"), evidence, trace)


class Engine:
    """The rows of one profile, under every version its partitions need, and the fold over them.

    Parameters
    ----------
    name, profile
        The profile and its name.
    load
        Scorer of a version; raises VersionError where there is none.
    max_streams
        Most resident streams of a version.
    device
        Torch device of the rows.
    hidden
        What becomes of hidden state on a version change: ``carry`` or ``reset``.
    detail
        Keep the evidence of every observation, not of alerts only (for ``explain``).
    """

    def __init__(
        self,
        name: str,
        profile: Profile,
        load: Callable[[str], Scorer],
        max_streams: int,
        device: str = "cpu",
        hidden: HiddenOnSwap = "carry",
        detail: bool = False,
    ) -> None:
        self.name = name
        self.profile = profile
        self.detail = detail
        self._load, self._max_streams, self._device, self._hidden = load, max_streams, device, hidden
        self._scorers: dict[str, Scorer] = {}
        self._tables: dict[str, ResidentRows] = {}
        self._version_of: dict[Partition, str] = {}

    def has_version(self, version: str | None) -> bool:
        """Whether a version can be loaded (a history may name one that is gone)."""
        if version is None:
            return False
        try:
            self._scorer(version)
        except VersionError:
            return False
        return True

    def _scorer(self, version: str) -> Scorer:
        if version not in self._scorers:
            self._scorers[version] = self._load(version)
        return self._scorers[version]

    def rows(self, version: str) -> ResidentRows:
        """The table of a version, made when first asked for."""
        if version not in self._tables:
            self._tables[version] = ResidentRows(self._scorer(version), version, self._max_streams, self._device)
        return self._tables[version]

    def tables(self) -> list[ResidentRows]:
        """All tables in use."""
        return list(self._tables.values())

    def version_of(self, partition: Partition) -> str | None:
        """The version under which a partition's rows are resident; ``None`` before its first record."""
        return self._version_of.get(partition)

    def bring_to(self, partition: Partition, version: str) -> None:
        """Carry a partition's resident rows over to ``version``; nothing to do where they are there (rule 12)."""
        old = self._version_of.get(partition)
        if old == version:
            return
        rows = self.rows(version)
        self._version_of[partition] = version
        if old is not None:
            self._tables[old].move_to(rows, partition, self._hidden)
            if old not in self._version_of.values():
                del self._tables[old], self._scorers[old]

    def drop(self, partition: Partition) -> None:
        """Forget a partition's rows."""
        version = self._version_of.pop(partition, None)
        if version is not None:
            self._tables[version].drop(partition)

    def admit(
        self,
        rows: ResidentRows,
        committed: Committed,
        partition: Partition,
        stream_ids: Sequence[str],
        values: Mapping[str, bytes],
    ) -> None:
        """Give slots to streams: their saved rows, carried to this version where an older one made them, or fresh ones.

        Raises
        ------
        StateLost
            A row is beyond what its partition has folded: the store and Kafka disagree (rule 23).
        """
        unknown = [stream for stream in stream_ids if stream not in values]
        warm_up = WARM_UP_OBSERVATIONS if committed.inexact_from is not None else 0
        rows.admit_fresh(partition, unknown, warm_up)
        known = [stream for stream in stream_ids if stream in values]
        if not known:
            return
        for indices, snapshots in decode_many([values[stream] for stream in known]):
            streams = [known[index] for index in indices]
            headers = snapshots.headers.copy()
            beyond = headers["position"] > committed.offset
            if beyond.any():
                stream = streams[int(np.argmax(beyond))]
                raise StateLost(f"{partition}: the saved row of {stream!r} is beyond the committed offset", partition)
            if committed.inexact_from is not None:
                headers["partial_left"][headers["position"] < committed.inexact_from] = WARM_UP_OBSERVATIONS
            rows.admit(partition, streams, headers, self._carried(snapshots, committed, rows))

    def _carried(self, snapshots: Snapshots, committed: Committed, rows: ResidentRows) -> torch.Tensor:
        """Saved rows ``(N, numbers)`` in this table's layout, through every version between, in their order."""
        numbers = torch.from_numpy(snapshots.rows.copy())
        if snapshots.model_version == rows.version:
            return numbers
        if not self.has_version(snapshots.model_version):
            logger.error("version %s of saved rows is gone: they start afresh", snapshots.model_version)
            return rows.layout.fresh().repeat(len(numbers), 1)
        versions = [name for _, name in committed.history]
        chain = versions[versions.index(snapshots.model_version) + 1 :] if snapshots.model_version in versions else []
        chain = [*chain[: chain.index(rows.version)], rows.version] if rows.version in chain else [rows.version]
        layout = self._scorer(snapshots.model_version).layout
        for version in filter(self.has_version, chain):
            newer = self._scorer(version).layout
            numbers, layout = newer.carry(numbers, layout, self._hidden), newer
        return numbers

    def ended(self, headers: npt.NDArray[np.void], now_ms: int) -> Bool:
        """Which streams ended so long ago that any later record of theirs starts a fresh row (rule 16)."""
        newest = np.maximum(headers["last_event_ms"], headers["last_record_ms"])
        return np.asarray(newest + 2 * self._idle_reset_ms < now_ms)

    def release_ended(self, partition: Partition, stream_ids: Sequence[str]) -> list[str]:
        """Streams of these whose saved rows may be deleted; resident ones give up their slots."""
        version = self._version_of.get(partition)
        return list(stream_ids) if version is None else self._tables[version].release_saved(partition, stream_ids)

    def absorb(self, rows: ResidentRows, shares: Sequence[Share], now_s: float) -> Absorbed:
        """Fold the windows of several partitions, all resident in ``rows``, and say what may be emitted.

        Windows below their row's position are skipped; windows below ``emit_from``, and silent ones, give no output
        (protocol.md rule 13).

        Parameters
        ----------
        now_s
            Monotonic seconds, for the age of unsaved rows only.
        """
        windows = _join([share.windows for share in shares])
        slots = np.concatenate([rows.slots(share.partition, share.windows.stream_ids) for share in shares])
        share_of = np.repeat(np.arange(len(shares)), [len(share.windows) for share in shares])
        taken = windows.offsets >= rows.header["position"][slots]
        partial = rows.header["partial_left"][slots] > 0
        batch = _lay_out(windows, slots, taken, rows.header, self._idle_reset_ms)
        self._fold(rows, batch)
        self._note_positions(rows, windows, slots, taken, batch, now_s)
        emit_from = np.array([share.emit_from for share in shares], dtype=np.int64)[share_of]
        speaks = taken & ~windows.silent & (windows.offsets >= emit_from)
        emitted = self._scores(rows, shares, windows, share_of, speaks, partial, batch)
        alerts = self._alerts(rows, shares, windows, share_of, speaks, partial, batch)
        return Absorbed(
            [scores for scores, _ in emitted],
            [batch.detail(cells) for _, cells in emitted] if self.detail else [],
            alerts,
            observations=len(batch.window) * batch.values.shape[1],
            late=batch.late,
            missing_values=int(np.isnan(batch.values).sum()),
            skipped_windows=int((~taken).sum()),
            silent_observations=int((~speaks[batch.window]).sum()),
        )

    @property
    def _idle_reset_ms(self) -> int:
        return int(self.profile.idle_reset_s * 1000)

    def _fold(self, rows: ResidentRows, batch: _Batch) -> None:
        """Run every stream's observations through the scorer, in calls of equal length."""
        for turn in _turns(batch):
            fresh = batch.fresh[turn.first]
            if fresh.any():
                rows.rows.clear(torch.from_numpy(turn.slot[fresh]))
                rows.header["last_event_ms"][turn.slot[fresh]] = -1
            at, left = turn.first.copy(), turn.length.copy()
            for length in CALL_LENGTHS:
                while len(due := np.flatnonzero(left >= length)):
                    self._call(rows, batch, turn.slot[due], at[due], length)
                    at[due] += length
                    left[due] -= length

    def _call(self, rows: ResidentRows, batch: _Batch, slots: Int64, first: Int64, length: int) -> None:
        """Fold ``length`` observations of each of these streams, in tiles that stay in cache."""
        per_call = max(SCRATCH, MAX_CALL_ROWS // rows.layout.features)
        for start in range(0, len(slots), per_call):
            tile, at = slots[start : start + per_call], first[start : start + per_call]
            where = at[None, :] + np.arange(length)[:, None]  # (S, N)
            padding = -len(tile) % SCRATCH
            padded = np.concatenate([tile, np.arange(padding)]) if padding else tile
            cells = np.concatenate([where, np.repeat(where[:, :1], padding, axis=1)], axis=1) if padding else where
            last_ms = rows.header["last_event_ms"][padded]
            if padding:  # scratch rows repeat the first stream's observations from whatever they hold
                last_ms[-padding:] = -1
            scores = rows.scorer.score(
                rows.rows,
                torch.from_numpy(padded).to(rows.device),
                torch.from_numpy(batch.values[cells]).to(rows.device),
                torch.from_numpy(batch.times_ms[cells]).to(rows.device),
                torch.from_numpy(last_ms).to(rows.device),
                detail=self.detail,
            )
            batch.keep(where, scores)
            rows.header["last_event_ms"][tile] = batch.times_ms[where[-1]]

    def _note_positions(
        self, rows: ResidentRows, windows: Windows, slots: Int64, taken: Bool, batch: _Batch, now_s: float
    ) -> None:
        """Move positions over every window taken, late ones and control records included."""
        rows.forgotten[slots[taken]] = False
        for window in np.flatnonzero(taken & (windows.control != CONTROL_NONE)).tolist():
            if not (taken[window + 1 :] & (slots[window + 1 :] == slots[window])).any():
                rows.rows.clear(torch.from_numpy(slots[window : window + 1]))
                for name in ("last_event_ms", "onset_offset", "onset_index", "onset_ms"):
                    rows.header[name][slots[window]] = -1
                rows.forgotten[slots[window]] = windows.control[window] == CONTROL_FORGET
        rows.mark_absorbed(slots[taken], windows.offsets[taken], now_s)
        np.maximum.at(rows.header["last_record_ms"], slots[taken], windows.record_ms[taken])
        warming = rows.header["partial_left"][batch.slot] > 0
        if warming.any():
            valid = np.bincount(batch.slot[~np.isnan(batch.values).all(axis=1)], minlength=len(rows.header))
            rows.header["partial_left"] = np.maximum(0, rows.header["partial_left"] - valid)

    def _scores(
        self,
        rows: ResidentRows,
        shares: Sequence[Share],
        windows: Windows,
        share_of: Int64,
        speaks: Bool,
        partial: Bool,
        batch: _Batch,
    ) -> list[tuple[Scores, Int64]]:
        """One Scores per partition that has something to say, observations in its records' order, and their cells."""
        spoken = np.flatnonzero(speaks[batch.window])
        spoken = spoken[np.argsort(batch.window[spoken], kind="stable")]
        lengths = np.bincount(batch.window[spoken], minlength=len(windows))
        ends = np.searchsorted(share_of[batch.window[spoken]], np.arange(len(shares)), side="right")
        out = []
        for number, share in enumerate(shares):
            cells = spoken[ends[number - 1] if number else 0 : ends[number]]
            if not len(cells):
                continue
            mine = np.flatnonzero((lengths > 0) & (share_of == number))
            scores = Scores(
                share.partition,
                self.name,
                rows.version,
                rows.scorer.signals,
                [windows.stream_ids[window] for window in mine.tolist()],
                windows.offsets[mine],
                lengths[mine],
                batch.times_ms[cells],
                batch.score[cells],
                batch.threshold[cells],
                batch.verdict[cells],
                batch.signal[cells],
                batch.feature[cells],
                batch.imputed[cells],
                partial[mine],
            )
            out.append((scores, cells))
        return out

    def _alerts(
        self,
        rows: ResidentRows,
        shares: Sequence[Share],
        windows: Windows,
        share_of: Int64,
        speaks: Bool,
        partial: Bool,
        batch: _Batch,
    ) -> list[Alert]:
        """The alert events of this batch, each stream's in time order; onsets are kept in the header."""
        events = [
            (cell, row, arrays)
            for cells, found, arrays in batch.evidence
            for cell, row in zip(cells.tolist(), found.tolist(), strict=True)
            if arrays["event"][row]
        ]
        alerts = []
        for cell, row, arrays in sorted(events, key=lambda event: event[0]):
            window, slot, event = int(batch.window[cell]), int(batch.slot[cell]), int(arrays["event"][row])
            header = rows.header[slot : slot + 1]
            if event == OPENED:
                header["onset_offset"], header["onset_index"] = windows.offsets[window], batch.index[cell]
                header["onset_ms"] = batch.times_ms[cell]
            if speaks[window]:
                place = AlertPlace(
                    shares[int(share_of[window])].partition,
                    windows.stream_ids[window],
                    int(windows.offsets[window]),
                    int(batch.index[cell]),
                    int(batch.times_ms[cell]),
                    int(header["onset_offset"][0]),
                    int(header["onset_index"][0]),
                    int(header["onset_ms"][0]),
                    bool(partial[window]),
                )
                alerts.append(
                    build_alert(self.name, self.profile, rows.version, place, batch.cell(cell, row, arrays, rows))
                )
            if event == RESOLVED:
                header["onset_offset"] = header["onset_index"] = header["onset_ms"] = -1
        return sorted(alerts, key=lambda alert: (alert.partition, alert.offset, alert.index))


@dataclass(frozen=True, slots=True)
class _Turn:
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


def _join(parts: Sequence[Windows]) -> Windows:
    if len(parts) == 1:
        return parts[0]
    return Windows(
        [stream for part in parts for stream in part.stream_ids],
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("offsets", "record_ms", "lengths", "silent", "control", "times_ms", "values")
        ),
    )


def _lay_out(windows: Windows, slots: Int64, taken: Bool, header: npt.NDArray[np.void], idle_reset_ms: int) -> _Batch:
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
    before = np.where(first, header["last_event_ms"][slot], np.roll(times, 1))
    on_time = times > np.where(reset, -1, before)
    if not on_time.all():
        on_time = _on_time(times, first, reset, header["last_event_ms"][slot])
        late = np.flatnonzero(~on_time)
        kept = np.delete(np.arange(len(times)), late)
        window, slot, index, times, reset, source = (a[kept] for a in (window, slot, index, times, reset, source))
        first = _first_of_run(slot)
        before = np.where(first, header["last_event_ms"][slot], np.roll(times, 1))
    fresh = reset | ((before >= 0) & (times - before > idle_reset_ms))
    return _Batch(window, slot, index, times, windows.values[source], fresh, int((~on_time).sum()))


def _first_of_run(slot: Int64) -> Bool:
    first = np.ones(len(slot), dtype=bool)
    first[1:] = slot[1:] != slot[:-1]
    return first


def _begins_anew(
    windows: Windows, slots: Int64, order: Int64, header: npt.NDArray[np.void], idle_reset_ms: int
) -> Bool:
    """Which windows start a fresh row by a control record before them or by a long silence in record time."""
    anew = np.zeros(len(windows), dtype=bool)
    slot, record_ms = slots[order], windows.record_ms[order]
    first = _first_of_run(slot)
    before = np.where(first, header["last_record_ms"][slot], np.roll(record_ms, 1))
    control = windows.control[order] != CONTROL_NONE
    after_control = np.roll(control, 1) & ~first
    anew[order] = after_control | ((before >= 0) & (record_ms - before > 2 * idle_reset_ms))
    return anew


def _on_time(times: Int64, first: Bool, reset: Bool, last_event_ms: Int64) -> Bool:
    """Which observations are later than every earlier one of their stream (rare path: some are not)."""
    on_time = np.ones(len(times), dtype=bool)
    bounds = [*np.flatnonzero(first | reset).tolist(), len(times)]
    for begin, end in pairwise(bounds):
        floor = -1 if reset[begin] else int(last_event_ms[begin])
        newest = np.maximum.accumulate(np.concatenate([[floor], times[begin:end]]))
        on_time[begin:end] = times[begin:end] > newest[:-1]
    return on_time


def _turns(batch: _Batch) -> Iterator[_Turn]:
    """Runs of observations to fold, in rounds: a stream that begins anew in mid-batch has more than one."""
    starts = np.flatnonzero(_first_of_run(batch.slot) | batch.fresh)
    if not len(starts):
        return
    lengths = np.diff(np.append(starts, len(batch.slot)))
    first = _first_of_run(batch.slot[starts])
    number = np.arange(len(starts)) - np.maximum.accumulate(np.where(first, np.arange(len(starts)), 0))
    for turn in range(int(number.max()) + 1):
        mine = number == turn
        yield _Turn(batch.slot[starts[mine]], starts[mine], lengths[mine])
