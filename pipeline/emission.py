"""From what was folded to scores and alerts: which partition may say what, and where an alert began.

Onsets are kept in the rows' headers, so that a later batch, or a successor, names an open alert as this one does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.alerts import AlertPlace, Cell, build_alert, resolving_cell
from pipeline.observations import Observations
from pipeline.profile import Profile
from pipeline.records import OPENED, RESOLVED, Alert, Bool, Int64, Partition, Scores, Windows
from pipeline.resident import ResidentRows


@dataclass(frozen=True, slots=True)
class Ending:
    """Where in a batch a row was wiped (before this window and index), and the episode that it held until then."""

    window: int
    index: float
    peak: float
    severity: int


Endings = dict[int, list[Ending]]
"""Endings of each slot, in time order."""


@dataclass(frozen=True, slots=True)
class FoldedBatch:
    """A batch after its fold: W windows of several shares, their observations' results, and what may be told.

    Attributes
    ----------
    table
        The rows they were folded into.
    partitions
        Partition of each share.
    windows, batch
        The shares' windows one after another, and their observations with results.
    share_of
        ``(W,)`` index into ``partitions``.
    speaks
        ``(W,)`` whether the window gives output.
    partial
        ``(W,)`` whether its stream has not warmed up again after an inexact rebuild.
    endings
        What the rows held that were wiped.
    """

    table: ResidentRows
    partitions: Sequence[Partition]
    windows: Windows
    batch: Observations
    share_of: Int64
    speaks: Bool
    partial: Bool
    endings: Endings


@dataclass(frozen=True, slots=True)
class Event:
    """What may change a stream's alert: where, when, and what was found there.

    Where a stream begins anew this happens before the observation at ``index``, which then lies half a step below it,
    or before the whole window (-1).
    """

    slot: int
    window: int
    index: float
    time_ms: int
    cell: Cell


@dataclass(frozen=True, slots=True)
class Onset:
    """Where an alert began."""

    offset: int
    index: int
    time_ms: int


def scores_of(folded: FoldedBatch, name: str) -> list[tuple[Scores, Int64]]:
    """One Scores per partition that has something to say, observations in its records' order, and their cells."""
    batch, windows, share_of = folded.batch, folded.windows, folded.share_of
    spoken = np.flatnonzero(folded.speaks[batch.window])
    spoken = spoken[np.argsort(batch.window[spoken], kind="stable")]
    lengths = np.bincount(batch.window[spoken], minlength=len(windows))
    ends = np.searchsorted(share_of[batch.window[spoken]], np.arange(len(folded.partitions)), side="right")
    out = []
    for number, partition in enumerate(folded.partitions):
        cells = spoken[ends[number - 1] if number else 0 : ends[number]]
        if not len(cells):
            continue
        mine = np.flatnonzero((lengths > 0) & (share_of == number))
        scores = Scores(
            partition,
            name,
            folded.table.version,
            folded.table.scorer.signals,
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
            folded.partial[mine],
        )
        out.append((scores, cells))
    return out


def alerts_of(folded: FoldedBatch, name: str, profile: Profile) -> list[Alert]:
    """The alert events of a batch, each stream's in time order; to be called once, as onsets move on in the headers."""
    found = _found(folded)
    anew = _begun_anew(folded, {event.slot for event in found})
    events = sorted(found + anew, key=lambda event: (event.slot, event.window, event.index))
    version = folded.table.version
    alerts = [
        build_alert(name, profile, version, _place(folded, event, onset), event.cell)
        for event, onset in _note_onsets(folded, events)
    ]
    return sorted(alerts, key=lambda alert: (alert.partition, alert.offset, alert.index))


def _found(folded: FoldedBatch) -> list[Event]:
    """What observations opened, updated or resolved."""
    batch, signals = folded.batch, folded.table.scorer.signals
    return [
        Event(
            int(batch.slot[cell]),
            int(batch.window[cell]),
            float(batch.index[cell]),
            int(batch.times_ms[cell]),
            batch.cell(cell, row, evidence, signals),
        )
        for cells, rows, evidence in batch.evidence
        for cell, row in zip(cells.tolist(), rows.tolist(), strict=True)
        if batch.event[cell]
    ]


def _begun_anew(folded: FoldedBatch, changed: set[int]) -> list[Event]:
    """Ends of alerts whose stream begins anew, by a control record or after a long silence; only where one may be open.

    They carry the figures of the row that was wiped: this event may be the only one of the alert that a reader keeps.

    Parameters
    ----------
    changed
        Slots whose alert this batch changes otherwise.
    """
    batch, onsets = folded.batch, folded.table.header["onset_offset"]
    fresh = np.flatnonzero(batch.fresh)
    before = zip(batch.slot[fresh].tolist(), batch.window[fresh].tolist(), batch.index[fresh] - 0.5, strict=True)
    return [
        Event(
            slot,
            window,
            float(index),
            int(folded.windows.record_ms[window]),
            resolving_cell(*_worst_of(folded.endings.get(slot, ()), window, index)),
        )
        for slot, window, index in (*((slot, window, -1.0) for slot, window in batch.controls), *before)
        if slot in changed or onsets[slot] >= 0
    ]


def _note_onsets(folded: FoldedBatch, events: Sequence[Event]) -> list[tuple[Event, Onset]]:
    """Keep in the headers where alerts begin and that they end; events that may be told, and where theirs began."""
    told = []
    for event in events:
        header = folded.table.header[event.slot : event.slot + 1]
        if event.cell.event == OPENED:
            header["onset_offset"], header["onset_index"] = folded.windows.offsets[event.window], int(event.index)
            header["onset_ms"] = event.time_ms
        elif header["onset_offset"][0] < 0:
            continue  # nothing was open
        if folded.speaks[event.window]:
            onset = (int(header[name][0]) for name in ("onset_offset", "onset_index", "onset_ms"))
            told.append((event, Onset(*onset)))
        if event.cell.event == RESOLVED:
            header["onset_offset"] = header["onset_index"] = header["onset_ms"] = -1
    return told


def _place(folded: FoldedBatch, event: Event, onset: Onset) -> AlertPlace:
    return AlertPlace(
        folded.partitions[int(folded.share_of[event.window])],
        folded.windows.stream_ids[event.window],
        int(folded.windows.offsets[event.window]),
        max(0, math.ceil(event.index)),
        event.time_ms,
        onset.offset,
        onset.index,
        onset.time_ms,
        bool(folded.partial[event.window]),
    )


def _worst_of(endings: Sequence[Ending], window: int, index: float) -> tuple[float, int]:
    """Peak and severity of the episode that ends here; a control record's row is wiped with what comes after it.

    Nothing is known where the row had no past: its weights were gone, and it began afresh with its alert open.
    """
    for ending in endings:
        if (ending.window, ending.index) >= (window, index):
            return ending.peak, ending.severity
    return 0.0, 0
