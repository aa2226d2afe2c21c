"""Start-up of a partition, and so its recovery: the one way to know what is true (protocol.md, "Start-up").

1. c and its metadata from the group; where there are none, a new incarnation, committed before the first record.
2. Take the token, and with it W.
3. W below the log start, or versions that are gone: go on where it is possible, and say so.
4. Seek to W; records below c will be absorbed silently.

Where c lies before what is saved, or beyond the end of the log, the partition begins anew, and says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from pipeline.engine import Engine
from pipeline.errors import BrokerAway, DecodeError, StaleToken, TransientError
from pipeline.partition import (
    Ownership,
    PartitionState,
    Phase,
    from_offset,
    next_change,
    version_at,
    with_version,
)
from pipeline.records import Committed, Partition
from pipeline.sources.base import CommittedOffset, GroupNote, Source
from pipeline.state.base import StateKey, StateStore, Token

logger = logging.getLogger(__name__)

RUN_S = 2.0


class Commit(Protocol):
    """The worker's commit: everything that is ahead, and these offsets, in one transaction."""

    def __call__(self, extra: Mapping[Partition, Committed]) -> None:
        """Raises CommitRefused, OutcomeUnknown."""
        ...


class StartUp:
    """Brings assigned partitions to ``replaying`` or ``live``; keeps nothing itself.

    Parameters
    ----------
    source, store, engines, target
        As the worker's.
    group
        The consumer group.
    since_ms
        Where a partition begins that was never committed: ``None``, with its oldest record. Else at its end; but one
        that the first assignment did not hold with its first record of this Kafka timestamp, because producers find an
        added partition before the group does.
    new_id
        Fresh random hex, for incarnations and nonces.
    monotonic
        Seconds, for the time that one run may take.
    """

    def __init__(
        self,
        source: Source,
        store: StateStore,
        engines: Mapping[str, Engine],
        target: Callable[[str], str],
        group: str,
        since_ms: int | None,
        new_id: Callable[[], str],
        monotonic: Callable[[], float],
    ) -> None:
        self._source, self._store, self._engines, self._target = source, store, engines, target
        self._group, self._since_ms, self._new_id, self._monotonic = group, since_ms, new_id, monotonic
        self._first: frozenset[Partition] | None = None

    def follow(self, partitions: frozenset[Partition]) -> None:
        """Take note of an assignment; the first one counts."""
        if self._first is None:
            self._first = partitions

    def run(
        self, due: Sequence[PartitionState], note: GroupNote, commit: Commit
    ) -> list[tuple[PartitionState, TransientError]]:
        """Start these partitions; returns those that must wait for a server, and why.

        What takes longer than :data:`RUN_S` is left to the next run: while a server is away each partition may take a
        call's whole deadline, and the loop has to poll, to beat and to hear signals in between.

        Raises
        ------
        CommitRefused, OutcomeUnknown
            From a commit of new incarnations: all partitions start again.
        """
        away: list[tuple[PartitionState, TransientError]] = []
        found = self._committed(due, away)
        self._begin_incarnations(found, away, commit)
        until_s = self._monotonic() + RUN_S
        for state in due:
            if state.partition not in found or state.committed is None:
                continue
            if self._monotonic() > until_s:
                break
            try:
                self._take(state, note, commit)
            except StaleToken as error:
                logger.warning("partition %s belongs to a newer generation: %s", state.partition, error)
                state.phase = Phase.GONE
            except TransientError as error:
                away.append((state, error))
        return away

    def _committed(
        self, due: Sequence[PartitionState], away: list[tuple[PartitionState, TransientError]]
    ) -> dict[Partition, tuple[PartitionState, CommittedOffset | None]]:
        """Committed offsets; where one cannot be told yet, the others are asked for one by one."""
        try:
            offsets = self._source.committed([state.partition for state in due])
            return {state.partition: (state, offsets[state.partition]) for state in due}
        except BrokerAway as error:
            if len(due) == 1:
                away.append((due[0], error))
                return {}
        found: dict[Partition, tuple[PartitionState, CommittedOffset | None]] = {}
        until_s = self._monotonic() + RUN_S
        for state in due:
            if self._monotonic() > until_s:
                break
            found |= self._committed([state], away)
        return found

    def _begin_incarnations(
        self,
        found: Mapping[Partition, tuple[PartitionState, CommittedOffset | None]],
        away: list[tuple[PartitionState, TransientError]],
        commit: Commit,
    ) -> None:
        """Rule 9: a partition never committed gets an origin, committed before its first record is read.

        An offset without our metadata was set by hand or by another program: what lies before it is folded again from
        the start of the log, and the outputs are flagged until the streams have warmed up (rule 23).
        """
        begun: dict[Partition, Committed] = {}
        for partition, (state, offset) in found.items():
            try:
                state.committed = None if offset is None else from_offset(offset)
            except DecodeError as error:
                logger.warning("partition %s: %s; rebuilding from the start of the log", partition, error)
            if state.committed is None:
                try:
                    begun[partition] = self._new_incarnation(state, offset)
                except TransientError as error:
                    away.append((state, error))
        if begun:
            commit(extra=begun)

    def _new_incarnation(self, state: PartitionState, offset: CommittedOffset | None) -> Committed:
        only = [state.partition]
        beginning = self._source.beginning_offsets(only)[state.partition]
        if offset is not None:
            origin = min(beginning, offset.offset)
        elif self._since_ms is None:
            origin = beginning
        elif self._first is None or state.partition in self._first:
            origin = self._source.end_offsets(only)[state.partition]
        else:
            origin = self._source.offset_at(state.partition, self._since_ms)
        c, inexact = (origin, None) if offset is None else (offset.offset, offset.offset)
        return Committed(c, self._new_id(), origin, ((origin, self._target(state.profile)),), inexact)

    def _take(self, state: PartitionState, note: GroupNote, commit: Commit) -> None:
        """Take the token before any row is read (rule 18), then seek to W and replay up to c."""
        assert state.committed is not None
        key = StateKey(self._group, state.partition, state.committed.incarnation)
        token = Token(note.generation, self._new_id())
        taken = self._store.take(key, token)
        watermark = state.committed.origin if taken.watermark is None else taken.watermark
        end = self._source.end_offsets([state.partition])[state.partition]
        if max(watermark, state.rows_reach) > state.c:
            self._moved_back(state, max(watermark, state.rows_reach), commit)
            return
        if end < state.c:
            why = f"the log ends at {end}, before the committed offset {state.c}: it was cut"
            self._begin_anew(state, end, why, commit)
            return
        start = self._first_available(state, watermark, commit)
        state.owned = Ownership(key, token, taken.seq)
        state.next = start
        state.phase = Phase.REPLAYING if start < state.c else Phase.LIVE
        self._source.seek(state.partition, start)
        self._source.resume([state.partition])
        logger.info(
            "partition %s: committed=%s watermark=%s state=%s", state.partition, state.c, watermark, state.phase.value
        )

    def _moved_back(self, state: PartitionState, saved: int, commit: Commit) -> None:
        """Rule 23: rows were saved that reach beyond c: read c again; if it stays so, it was moved back by hand."""
        again = self._source.committed([state.partition])[state.partition]
        if again is not None and again.offset >= saved:
            state.back_to_assigned()
            return
        why = f"offset {state.c} is below the saved {saved}: offsets were moved back"
        self._begin_anew(state, state.c, why, commit)

    def _begin_anew(self, state: PartitionState, offset: int, why: str, commit: Commit) -> None:
        """A new incarnation that goes on at ``offset``, its rows rebuilt from what the log holds and flagged."""
        old = state.committed
        assert old is not None
        logger.error("partition %s: %s; rebuilding", state.partition, why)
        origin = min(old.origin, offset)
        history = tuple(pair for pair in old.history if pair[0] <= offset)
        history = history or ((origin, self._target(state.profile)),)
        commit(extra={state.partition: Committed(offset, self._new_id(), origin, history, offset)})
        state.back_to_assigned()

    def _first_available(self, state: PartitionState, watermark: int, commit: Commit) -> int:
        """W, or the log start where the records between are gone, or were scored by versions that are (rule 22)."""
        assert state.committed is not None
        committed, engine = state.committed, self._engines[state.profile]
        start = max(watermark, self._source.beginning_offsets([state.partition])[state.partition])
        while start < committed.offset and not engine.has_version(version_at(committed, start)):
            start = min(next_change(committed, start) or committed.offset, committed.offset)
        if not engine.has_version(version_at(committed, start)):
            committed = with_version(committed, start, self._target(state.profile))
        if start > watermark:
            logger.error(
                "partition %s: records %s to %s are needed and gone; scores are partial until streams have warmed up",
                *(state.partition, watermark, start),
            )
            committed = replace(committed, inexact_from=start)
        if start > committed.offset:
            committed = replace(committed, offset=start)
        if committed is not state.committed:
            commit(extra={state.partition: committed})
        return start
