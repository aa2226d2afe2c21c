"""From decoded records to outputs: what is folded together, its rows, its scores (protocol.md rules 11 to 14).

:class:`Folding` says what the next batches are and folds one at a time. The worker has it do so, and decides on the
rest: commits, saves, and what an error means. A batch that is folded is ahead of the committed offset: its rows and
partitions have moved on, its records have left the batcher, and its outputs are in the open transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.batcher import Batcher, Piece
from pipeline.clock import Clock
from pipeline.engine import Absorbed, Engine, Share
from pipeline.keeper import Keeper
from pipeline.messages import Messages
from pipeline.partition import PartitionState, next_change, version_at
from pipeline.records import DeadLetter, Partition, StepStats
from pipeline.resident import ResidentRows
from pipeline.sinks.base import Sink
from pipeline.state.base import Load, StateStore


@dataclass(frozen=True, slots=True)
class Batch:
    """Pieces of partitions that are folded together: those of one profile, under one version."""

    profile: str
    version: str
    pieces: list[Piece]


@dataclass(frozen=True, slots=True)
class Folded:
    """What became of a batch.

    Attributes
    ----------
    records
        How many were absorbed, those that became dead letters included.
    record_ms
        Oldest and newest Kafka timestamp among its windows; ``None`` where it had none.
    ended_replay
        Whether a partition has come to its committed offset with it, and is live.
    needs
        What has to come first where nothing was folded: ``commit`` (with saves behind it), or ``saves`` of what is
        committed.
    """

    records: int = 0
    record_ms: tuple[int, int] | None = None
    ended_replay: bool = False
    needs: Literal["commit", "saves"] | None = None


class Folding:
    """Folds what waits in the batcher, batch by batch.

    Parameters
    ----------
    engines
        One for each profile.
    store
        Where the rows of streams are that are not on a device.
    messages
        Writes the outputs.
    batcher
        Where decoded records wait; what is folded leaves it.
    sink
        Takes the outputs, in the open transaction.
    keeper
        Asked whether saves are in flight.
    clock
        For the time that stages take, and the age of unsaved rows.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        store: StateStore,
        messages: Messages,
        batcher: Batcher,
        sink: Sink,
        keeper: Keeper,
        clock: Clock,
    ) -> None:
        self._engines, self._store, self._messages = engines, store, messages
        self._batcher, self._sink, self._keeper, self._clock = batcher, sink, keeper, clock

    def next_batches(self, partitions: Mapping[Partition, PartitionState]) -> list[Batch]:
        """A piece of every partition that has records, by profile and by the version that is theirs (rule 11)."""
        limits, versions = [], {}
        for partition, state in partitions.items():
            if state.is_folding and self._batcher.holds(partition):
                assert state.committed is not None
                at = self._batcher.first_offset(partition)
                version = version_at(state.committed, at)
                assert version is not None, f"{partition}: no version at {at}"
                versions[partition] = (state.profile, version)
                limits.append((partition, next_change(state.committed, at)))
        if not limits:
            return []
        found: dict[tuple[str, str], list[Piece]] = {}
        for piece in self._batcher.peek(limits):
            found.setdefault(versions[piece.partition], []).append(piece)
        return [Batch(profile, version, pieces) for (profile, version), pieces in found.items()]

    def fold(self, batch: Batch, partitions: Mapping[Partition, PartitionState], stats: StepStats) -> Folded:
        """Bring the rows of a batch, fold its windows, add its outputs to the transaction, and move its partitions on.

        Parameters
        ----------
        partitions
            States of all that are assigned; those of the batch advance.
        stats
            Where what was done is counted.

        Raises
        ------
        StoreAway, RegistryAway
            Rows, or the version that made them, cannot be read now; nothing of the batch was folded.
        StaleToken, StateLost, RowAhead, OutcomeUnknown
            Start the partitions again.
        """
        engine, monotonic = self._engines[batch.profile], self._clock.monotonic
        table = engine.table(batch.version)
        table.begin_batch()
        needs = self._carry_over(engine, batch)
        if needs is not None:
            return Folded(needs=needs)
        pieces = _fitting(batch.pieces, table)
        with stats.timed("load", monotonic):
            if not self._load(engine, table, pieces, partitions):
                return Folded(needs="commit")
        shares = [Share(piece.partition, piece.windows, partitions[piece.partition].c) for piece in pieces]
        with stats.timed("score", monotonic):
            absorbed = engine.absorb(table, shares, monotonic())
        letters = [
            letter
            for piece in pieces
            for letter in piece.dead_letters
            if letter.offset >= partitions[piece.partition].c
        ]
        with stats.timed("emit", monotonic):
            self._messages.emit(self._sink, absorbed.scores, absorbed.alerts, letters)
        _count(stats, engine.name, pieces, absorbed, letters)
        return self._done(pieces, partitions)

    def _carry_over(self, engine: Engine, batch: Batch) -> Literal["commit", "saves"] | None:
        """Bring rows to the version that is next in a replay, or say what they need before (rules 12, 14)."""
        versions = {engine.version_of(piece.partition) for piece in batch.pieces}
        if self._keeper.is_saving and versions - {None, batch.version}:
            return "saves"
        if not all(engine.bring_to(piece.partition, batch.version) for piece in batch.pieces):
            return "commit"
        return None

    def _load(
        self,
        engine: Engine,
        table: ResidentRows,
        pieces: Sequence[Piece],
        partitions: Mapping[Partition, PartitionState],
    ) -> bool:
        """Bring what is not resident with one round trip; False where rows must be saved first to make room."""
        missing = {piece.partition: table.missing(piece.partition, piece.windows.stream_ids) for piece in pieces}
        wanted = sum(map(len, missing.values()))
        if not wanted:
            return True
        for piece in pieces:  # what is resident already must survive the eviction
            known = table.slots_of[piece.partition]
            table.slots(piece.partition, [stream for stream in piece.windows.stream_ids if stream in known])
        if not table.make_room(wanted):
            return False
        loads = []
        for partition, streams in missing.items():
            owned = partitions[partition].owned
            if streams and owned is not None:
                loads.append(Load(owned.key, owned.token, owned.seq, streams))
        found = self._store.load_many(loads)
        for load, values in zip(loads, found, strict=True):
            committed = partitions[load.key.partition].committed
            assert committed is not None
            engine.admit(table, committed, load.key.partition, load.stream_ids, values)
        return True

    def _done(self, pieces: Sequence[Piece], partitions: Mapping[Partition, PartitionState]) -> Folded:
        """Take folded pieces out of the batcher, and let their partitions advance."""
        ended_replay = False
        times_ms: list[int] = []
        for piece in pieces:
            state = partitions[piece.partition]
            self._batcher.done(piece)
            ended_replay |= state.advance(piece.end)
            if len(piece.windows):
                oldest, newest = int(piece.windows.record_ms.min()), int(piece.windows.record_ms.max())
                state.newest_record_ms = max(state.newest_record_ms, newest)
                times_ms += (oldest, newest)
        records = sum(len(piece.windows) + len(piece.dead_letters) for piece in pieces)
        return Folded(records, (min(times_ms), max(times_ms)) if times_ms else None, ended_replay)


def _count(
    stats: StepStats, profile: str, pieces: Sequence[Piece], absorbed: Absorbed, letters: Sequence[DeadLetter]
) -> None:
    for counts, value in (
        (stats.profile_observations, absorbed.observations),
        (stats.late, absorbed.late),
        (stats.missing_values, absorbed.missing_values),
        (stats.scores, sum(len(scores.score) for scores in absorbed.scores)),
    ):
        counts[profile] = counts.get(profile, 0) + value
    stats.batch_observations += absorbed.observations
    stats.skipped_windows += absorbed.skipped_windows
    stats.silent_observations += absorbed.silent_observations
    stats.windows += sum(len(piece.windows) for piece in pieces)
    stats.alerts.extend(absorbed.alerts)
    stats.dead_letters.extend(letters)


def _fitting(pieces: Sequence[Piece], table: ResidentRows) -> list[Piece]:
    """As much of the batch as the table can hold at once: at least one window."""
    room = table.max_streams
    kept = []
    for piece in pieces:
        seen: set[str] = set()
        count = 0
        for stream in piece.windows.stream_ids:
            if stream not in seen and len(seen) == room:
                break
            seen.add(stream)
            count += 1
        room -= len(seen)
        if count or not len(piece.windows):
            kept.append(piece.up_to(count) if count < len(piece.windows) else piece)
    return kept
