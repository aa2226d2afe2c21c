"""The hot path: windows of many partitions in, scores and alerts out, rows folded in place.

:meth:`Engine.absorb` is one batch: lay the windows out stream by stream, leave out what is late, cut the rest into
calls of equal length, fold, and hand back what each partition may emit (:mod:`pipeline.emission`). No Kafka, no
Redis, no formula.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.config import HiddenOnSwap
from models.step import Scorer, StepScores, Wanted, wants_evidence
from models.tail import WARM_UP
from pipeline.emission import Ending, Endings, FoldedBatch, alerts_of, scores_of
from pipeline.errors import ConfigurationError, DamagedSnapshot, RowAhead, UnknownSnapshot, VersionError
from pipeline.observations import Detail, Observations, join, lay_out, turns
from pipeline.profile import Profile
from pipeline.records import (
    CONTROL_FORGET,
    CONTROL_NONE,
    Alert,
    Bool,
    Committed,
    Int64,
    Partition,
    Scores,
    Windows,
)
from pipeline.resident import SCRATCH, ResidentRows
from pipeline.state.codec import Snapshots, decode_many, without_damaged

logger = logging.getLogger(__name__)

CALL_LENGTHS = (64, 16, 4, 1)
"""Observations per call; a window is cut into these, longest first, and cuts change nothing."""

WARM_UP_OBSERVATIONS = int(WARM_UP)
"""Valid observations until a stream's first verdict, and until a rebuilt one is no longer partial."""

MAX_CALL_ROWS, MIN_CALL_ROWS = 16_384, 2048
"""Feature rows per call on a CPU: beyond the one a call leaves the cache, below the other most of it is overhead."""

MAX_GPU_CALL_ROWS = 1 << 19
"""Feature rows per call on a GPU, which takes a call's memory a second time."""


@dataclass(frozen=True, slots=True)
class Share:
    """One partition's part of a batch. Windows at or above ``emit_from`` (the committed offset) may give output."""

    partition: Partition
    windows: Windows
    emit_from: int


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
        What is kept of every observation, not of alerts only (for ``explain`` and ``evaluate``).
    threads
        Tiles of a batch that are folded at the same time on a CPU; torch's own threads come on top.
    """

    def __init__(
        self,
        name: str,
        profile: Profile,
        load: Callable[[str], Scorer],
        max_streams: int,
        device: str = "cpu",
        hidden: HiddenOnSwap = "carry",
        detail: Wanted = False,
        threads: int = 1,
    ) -> None:
        self.name = name
        self.profile = profile
        self.detail = detail
        self._load, self._max_streams, self._device, self._hidden = load, max_streams, device, hidden
        self._scorers: dict[str, Scorer] = {}
        self._tables: dict[str, ResidentRows] = {}
        self._version_of: dict[Partition, str] = {}
        self._on_gpu = device.startswith("cuda")
        self._threads = threads
        self._tilers = ThreadPoolExecutor(threads, f"fold-{name}") if threads > 1 and not self._on_gpu else None

    def has_version(self, version: str | None) -> bool:
        """Whether a version can be loaded (a history may name one that is gone).

        Raises
        ------
        RegistryAway
            It cannot be told now.
        """
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

    def table(self, version: str) -> ResidentRows:
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

    def bring_to(self, partition: Partition, version: str) -> bool:
        """Carry a partition's resident rows over to ``version``; nothing to do where they are there (rule 12).

        None of them may be in flight: what a save in flight acknowledges is a row of the table it was taken from.

        Returns
        -------
        bool
            False where they lack room there, and have to be saved first.
        """
        old = self._version_of.get(partition)
        if old == version:
            return True
        table = self.table(version)
        if old is not None and not self._tables[old].move_to(table, partition, self._hidden):
            return False
        self._version_of[partition] = version
        in_use = set(self._version_of.values())
        for known in (self._tables, self._scorers):
            for unused in known.keys() - in_use:
                del known[unused]
        return True

    def drop(self, partition: Partition) -> None:
        """Forget a partition's rows."""
        version = self._version_of.pop(partition, None)
        if version is not None:
            self._tables[version].drop(partition)

    def admit(
        self,
        table: ResidentRows,
        committed: Committed,
        partition: Partition,
        stream_ids: Sequence[str],
        values: Mapping[str, bytes],
    ) -> None:
        """Give slots to streams: their saved rows, carried to this version where an older one made them, or fresh ones.

        A row that is damaged, or whose version is gone, is given up: its stream starts afresh, flagged until it has
        warmed up.

        Raises
        ------
        RowAhead
            A row is beyond what its partition has committed: the store and Kafka disagree (rule 23).
        """
        unknown = [stream for stream in stream_ids if stream not in values]
        warm_up = WARM_UP_OBSERVATIONS if committed.inexact_from is not None else 0
        table.admit_fresh(partition, unknown, warm_up)
        known = [stream for stream in stream_ids if stream in values]
        if not known:
            return
        try:
            found = list(decode_many([values[stream] for stream in known]))
        except UnknownSnapshot:
            raise
        except DamagedSnapshot:
            values = without_damaged(values)
            table.admit_fresh(partition, [stream for stream in known if stream not in values], WARM_UP_OBSERVATIONS)
            known = [stream for stream in known if stream in values]
            found = list(decode_many([values[stream] for stream in known]))
        for indices, snapshots in found:
            streams = [known[index] for index in indices]
            headers = snapshots.headers.copy()
            beyond = headers["position"] > committed.offset
            if beyond.any():
                at = int(np.argmax(headers["position"]))
                message = f"{partition}: the saved row of {streams[at]!r} is beyond the committed offset"
                raise RowAhead(message, partition, int(headers["position"][at]))
            if committed.inexact_from is not None:
                headers["partial_left"][headers["position"] < committed.inexact_from] = WARM_UP_OBSERVATIONS
            if self.has_version(snapshots.model_version):
                numbers = self._carried(snapshots, committed, table)
            else:
                logger.error("version %s of saved rows is gone: they start afresh", snapshots.model_version)
                headers["partial_left"] = WARM_UP_OBSERVATIONS
                numbers = table.layout.fresh().repeat(len(streams), 1)
            table.admit(partition, streams, headers, numbers)

    def _carried(self, snapshots: Snapshots, committed: Committed, table: ResidentRows) -> torch.Tensor:
        """Saved rows ``(N, numbers)`` in this table's layout, through every version between, in their order."""
        numbers = torch.from_numpy(snapshots.rows.copy())
        if snapshots.model_version == table.version:
            return numbers
        versions = [name for _, name in committed.history]
        chain = versions[versions.index(snapshots.model_version) + 1 :] if snapshots.model_version in versions else []
        chain = [*chain[: chain.index(table.version)], table.version] if table.version in chain else [table.version]
        layout = self._scorer(snapshots.model_version).layout
        for version in filter(self.has_version, chain):
            newer = self._scorer(version).layout
            numbers, layout = newer.carry(numbers, layout, self._hidden), newer
        return numbers

    def ended(self, headers: npt.NDArray[np.void], now_ms: int) -> Bool:
        """Which streams ended so long ago that any later record of theirs starts a fresh row (rule 16).

        Those with an open alert are kept ten times as long: their row is what resolves it, should they come back.
        """
        newest = np.maximum(headers["last_event_ms"], headers["last_record_ms"])
        kept_ms = np.where(headers["onset_offset"] >= 0, 20_000, 2_000) * self.profile.idle_reset_s
        return np.asarray(newest + kept_ms < now_ms)

    def release_ended(self, partition: Partition, stream_ids: Sequence[str]) -> list[str]:
        """Streams of these whose saved rows may be deleted; resident ones give up their slots."""
        version = self._version_of.get(partition)
        return list(stream_ids) if version is None else self._tables[version].release_saved(partition, stream_ids)

    def absorb_fresh(self, parts: Mapping[Partition, Windows], version: str) -> Absorbed:
        """Fold one batch under one version where nothing is loaded or saved: streams without a slot begin afresh.

        Raises
        ------
        ConfigurationError
            There are more streams than slots.
        """
        table = self.table(version)
        table.begin_batch()
        for partition, windows in parts.items():
            self.bring_to(partition, version)
            new = table.missing(partition, windows.stream_ids)
            if not table.make_room(len(new)):
                raise ConfigurationError(f"more than {table.max_streams} streams; raise engine.max_resident_streams")
            table.admit_fresh(partition, new, 0)
        return self.absorb(table, [Share(partition, windows, 0) for partition, windows in parts.items()], 0.0)

    def absorb(self, table: ResidentRows, shares: Sequence[Share], now_s: float) -> Absorbed:
        """Fold the windows of several partitions, all resident in ``table``, and say what may be emitted.

        Windows below their row's position are skipped; windows below ``emit_from``, and silent ones, give no output
        (protocol.md rule 13).

        Parameters
        ----------
        now_s
            Monotonic seconds, for the age of unsaved rows only.
        """
        windows = join([share.windows for share in shares])
        slots = np.concatenate([table.slots(share.partition, share.windows.stream_ids) for share in shares])
        share_of = np.repeat(np.arange(len(shares)), [len(share.windows) for share in shares])
        taken = windows.offsets >= table.header["position"][slots]
        partial = table.header["partial_left"][slots] > 0
        batch = lay_out(windows, slots, taken, table.header, int(table.scorer.config.idle_reset_s * 1000))
        endings: Endings = defaultdict(list)
        self._fold(table, batch, endings)
        self._note_positions(table, windows, slots, taken, batch, endings, now_s)
        emit_from = np.array([share.emit_from for share in shares], dtype=np.int64)[share_of]
        speaks = taken & ~windows.silent & (windows.offsets >= emit_from)
        partitions = [share.partition for share in shares]
        folded = FoldedBatch(table, partitions, windows, batch, share_of, speaks, partial, endings)
        emitted = scores_of(folded, self.name)
        alerts = alerts_of(folded, self.name, self.profile)
        return Absorbed(
            [scores for scores, _ in emitted],
            [batch.detail(cells, wants_evidence(self.detail)) for _, cells in emitted] if self.detail else [],
            alerts,
            observations=len(batch.window),
            late=batch.late,
            missing_values=int(np.isnan(batch.values).sum()),
            skipped_windows=int((~taken).sum()),
            silent_observations=int((~speaks[batch.window]).sum()),
        )

    def _fold(self, table: ResidentRows, batch: Observations, endings: Endings) -> None:
        """Run every stream's observations through the scorer, in calls of equal length."""
        for turn in turns(batch):
            fresh = batch.fresh[turn.first]
            if fresh.any():
                cells = turn.first[fresh]
                _wipe(table, turn.slot[fresh], batch.window[cells], batch.index[cells] - 0.5, endings)
            at, left = turn.first.copy(), turn.length.copy()
            for length in CALL_LENGTHS:
                while len(due := np.flatnonzero(left >= length)):
                    self._call(table, batch, turn.slot[due], at[due], length)
                    at[due] += length
                    left[due] -= length

    def _call(self, table: ResidentRows, batch: Observations, slots: Int64, first: Int64, length: int) -> None:
        """Fold ``length`` observations of each of these streams: on a GPU at once, else in tiles that stay in cache.

        Tiles touch different rows, so threads may share them out: no result depends on it.
        """
        if self._on_gpu:
            per_tile = max(1, MAX_GPU_CALL_ROWS // table.layout.features)
        else:
            per_tile = tile_streams(len(slots), table.layout.features, self._threads)
        tiles = [slice(start, start + per_tile) for start in range(0, len(slots), per_tile)]

        def fold(tile: slice) -> tuple[Int64, StepScores]:
            return self._fold_tile(table, batch, slots[tile], first[tile], length)

        found = map(fold, tiles) if self._tilers is None or len(tiles) < 2 else self._tilers.map(fold, tiles)
        for tile, (where, scores) in zip(tiles, found, strict=True):
            batch.keep(where, scores)
            table.header["last_event_ms"][slots[tile]] = batch.times_ms[where[-1]]

    def _fold_tile(
        self, table: ResidentRows, batch: Observations, slots: Int64, first: Int64, length: int
    ) -> tuple[Int64, StepScores]:
        """Scores of one tile, and where its cells (S, N) lie in the batch."""
        where = first[None, :] + np.arange(length)[:, None]
        padding = 0 if self._on_gpu else -len(slots) % SCRATCH  # a recorded fold has room of its own
        padded = np.concatenate([slots, np.arange(padding)]) if padding else slots
        cells = np.concatenate([where, np.repeat(where[:, :1], padding, axis=1)], axis=1) if padding else where
        last_ms = table.header["last_event_ms"][padded]
        if padding:  # scratch rows repeat the first stream's observations from whatever they hold
            last_ms[-padding:] = -1
        scores = table.scorer.score(
            table.rows,
            torch.from_numpy(padded),
            torch.from_numpy(batch.values[cells]),
            torch.from_numpy(batch.times_ms[cells]),
            torch.from_numpy(last_ms),
            detail=self.detail,
        )
        return where, scores

    def _note_positions(
        self,
        table: ResidentRows,
        windows: Windows,
        slots: Int64,
        taken: Bool,
        batch: Observations,
        endings: Endings,
        now_s: float,
    ) -> None:
        """Move positions over every window taken, late ones and control records included."""
        table.forgotten[slots[taken]] = False
        for window in np.flatnonzero(taken & (windows.control != CONTROL_NONE)).tolist():
            batch.controls.append((int(slots[window]), window))
            if not (taken[window + 1 :] & (slots[window + 1 :] == slots[window])).any():
                _wipe(table, slots[window : window + 1], np.array([window]), np.array([-1.0]), endings)
                table.forgotten[slots[window]] = windows.control[window] == CONTROL_FORGET
        table.mark_absorbed(slots[taken], windows.offsets[taken], now_s)
        np.maximum.at(table.header["last_record_ms"], slots[taken], windows.record_ms[taken])
        warming = table.header["partial_left"][batch.slot] > 0
        if warming.any():
            valid = np.bincount(batch.slot[~np.isnan(batch.values).all(axis=1)], minlength=len(table.header))
            table.header["partial_left"] = np.maximum(0, table.header["partial_left"] - valid)


def _wipe(
    table: ResidentRows, slots: Int64, window: Int64, index: npt.NDArray[np.floating[Any]], endings: Endings
) -> None:
    """Make rows fresh before these windows and indices, and note what those with a past held.

    A new stream has no past, so that the device is waited for only where something ends.
    """
    past = np.flatnonzero(table.header["last_event_ms"][slots] >= 0)
    if len(past):
        peak, severity = (table.layout.columns(name).start for name in ("life.peak", "life.severity"))
        entity = table.rows.entity
        held = entity[torch.from_numpy(slots[past]).to(entity.device)][:, [peak, severity]].tolist()  # device sync
        for at, (worst, grade) in zip(past.tolist(), held, strict=True):
            endings[int(slots[at])].append(Ending(int(window[at]), float(index[at]), worst, int(grade)))
    table.rows.clear(torch.from_numpy(slots))
    table.header["last_event_ms"][slots] = -1


def tile_streams(streams: int, features: int, threads: int) -> int:
    """Streams in a tile: a multiple of 16, with tiles neither too large nor too small, and enough for all threads."""
    rows = streams * features
    fewest = math.ceil(rows / MAX_CALL_ROWS)
    even = threads * math.ceil(fewest / threads)
    tiles = max(fewest, min(even, rows // MIN_CALL_ROWS))
    return max(1, math.ceil(streams / tiles / SCRATCH)) * SCRATCH
