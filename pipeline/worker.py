"""The worker: start-up, step, shutdown, in the order of effects (protocol.md, "Steps").

One step follows the group, starts partitions, reads, folds, emits, and commits when it is time. Whatever raises doubt
about a commit or about ownership has one way back: drop the rows, start the partition again. Nothing here knows Kafka,
Redis or torch; :mod:`pipeline.wiring` brings them.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.batcher import Batcher, Piece
from pipeline.clock import Clock
from pipeline.engine import Engine
from pipeline.errors import (
    BrokerAway,
    CommitRefused,
    ConfigurationError,
    OffsetsGone,
    OutcomeUnknown,
    OwnershipError,
    RowAhead,
    StaleToken,
    StateLost,
    StoreAway,
    TransientError,
    VersionError,
)
from pipeline.folding import Folded, Folding
from pipeline.keeper import Keeper
from pipeline.messages import Messages
from pipeline.partition import PartitionState, Phase, to_offset, with_version
from pipeline.records import Committed, Partition, Record, StepStats, WorkerStatus
from pipeline.sinks.base import Sink
from pipeline.sources.base import GroupNote, Source
from pipeline.startup import StartUp
from pipeline.state.base import StateStore
from pipeline.status import LogEnds, worker_status

logger = logging.getLogger(__name__)

RETRY_PAUSE_S = 0.5
TARGET_POLL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often the worker commits and saves, and how much it takes at a time.

    Attributes
    ----------
    group, start, commit_interval_s, max_uncommitted_records, max_poll_records
        As in :class:`pipeline.connections.Kafka`.
    save_interval_s, max_watermark_age_s
        As in :class:`pipeline.connections.Redis`.
    min_images_per_commit
        Unsaved rows copied at every commit, where there are so many.
    saves_wait_s
        How long one step waits for saves that a change of versions, or room for rows, depends on.
    stop_deadline_s
        How long a stop waits for the last saves.
    """

    group: str
    start: str
    commit_interval_s: float
    max_uncommitted_records: int
    max_poll_records: int
    save_interval_s: float
    max_watermark_age_s: float
    min_images_per_commit: int = 256
    saves_wait_s: float = 0.5
    stop_deadline_s: float = 30.0


@dataclass(slots=True)
class Uncommitted:
    """What was folded since the last commit: how many records, their oldest and newest Kafka timestamp."""

    records: int = 0
    record_ms: tuple[int, int] | None = None

    def add(self, folded: Folded) -> None:
        """Count a batch in."""
        self.records += folded.records
        if folded.record_ms is not None:
            oldest, newest = self.record_ms or folded.record_ms
            self.record_ms = min(oldest, folded.record_ms[0]), max(newest, folded.record_ms[1])


class Worker:
    """Scores the partitions its group assigns to it, exactly once.

    Parameters
    ----------
    source, sink, store
        The three servers' sides; all calls come from the thread that calls :meth:`step`.
    engines
        One for each profile.
    profile_of
        Profile of each topic.
    target
        The version a profile should serve now (the registry's pointer).
    messages
        The formats of records and outputs.
    batcher
        Where decoded records wait until they are folded; empty.
    pace, clock
        Rhythm and time.
    listener
        Told what each step did.
    new_id
        Fresh random hex, for incarnations and nonces.

    Attributes
    ----------
    partitions
        Those assigned, and how far each has come.
    keeper
        What is saved when.
    waiting_for
        As in :class:`pipeline.records.WorkerStatus`.
    """

    def __init__(
        self,
        source: Source,
        sink: Sink,
        store: StateStore,
        engines: Mapping[str, Engine],
        profile_of: Mapping[str, str],
        target: Callable[[str], str],
        messages: Messages,
        batcher: Batcher,
        pace: Pace,
        clock: Clock,
        listener: Callable[[StepStats], None],
        new_id: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self._source, self._sink, self._store = source, sink, store
        self._engines, self._profile_of, self._target = engines, profile_of, target
        self._messages, self._batcher, self._pace, self._clock = messages, batcher, pace, clock
        self._listener = listener
        since_ms = clock.wall_ms() if pace.start == "latest" else None
        self._start_up = StartUp(source, store, engines, target, pace.group, since_ms, new_id, clock.monotonic)
        self.keeper = Keeper(store, engines, clock, pace.save_interval_s, pace.min_images_per_commit)
        self._folding = Folding(engines, store, messages, batcher, sink, self.keeper, clock)
        self._ends = LogEnds(source, clock.monotonic)
        self._note: GroupNote | None = None
        self.partitions: dict[Partition, PartitionState] = {}
        self._must_rebuild = False
        self._room_wanted = False
        self._saves_awaited_for: Literal["room", "swap"] | None = None
        self._last_commit_s = clock.monotonic()
        self._target_due_s = 0.0
        self._uncommitted = Uncommitted()
        self._stats = StepStats()
        self.waiting_for: str | None = "assignment"

    # -- one step ------------------------------------------------------------------------------------------------

    def step(self) -> StepStats:
        """Follow the group, start partitions, read, fold and emit, commit; returns what was done.

        Waits at most about a second, for records or for a server that is away. Never raises for anything that waiting
        or starting a partition again can mend.

        Raises
        ------
        WorkerFenced, ConfigurationError
            End the process.
        """
        self._stats = StepStats()
        self.waiting_for = next((s.waits_for for s in self.partitions.values() if s.phase is Phase.ASSIGNED), None)
        try:
            self._recover()
            self._follow_group()
            try:
                self._work()
            except TransientError as error:
                self._wait(error)  # what is done already may still be committed
            if self._commit_is_due():
                self._commit()
        except TransientError as error:
            self._wait(error)
        except OutcomeUnknown as error:
            self._must_rebuild = True
            self._start_over("outcome unknown", error)
        except CommitRefused as error:
            self._start_over("commit refused", error)
        except StateLost as error:
            self._prove_ownership(error)
        except RowAhead as error:
            self._look_again(error)
        except StaleToken as error:
            self._lose(error)
        except OffsetsGone as error:
            self._start_over("offsets gone", error)
        if self.waiting_for is None and self.keeper.is_store_away:
            self.waiting_for = StoreAway.server  # goes on with resident rows, and says so
        self._listener(self._stats)
        return self._stats

    def _work(self) -> None:
        self.keeper.collect(self.partitions)
        self._start_partitions()
        if self._awaits_saves():
            return
        self._swap_versions()
        if self._saves_awaited_for is not None:
            return
        self._read()
        self._fold()
        self.keeper.sweep(self.partitions)

    def stop(self) -> None:
        """Commit, save all, W = c, leave the group: the successor replays nothing. Gives up after a deadline."""
        try:
            self._follow_group()
            if self._note is not None and not self._must_rebuild:
                self._commit(everything=True)
                self.keeper.drain(self.partitions, self._pace.stop_deadline_s)
        except (OwnershipError, BrokerAway, StoreAway) as error:
            logger.warning("stopped without a last commit: %s; the successor replays from the last save", error)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close everything and commit and save nothing: in the middle of a step rows may be ahead of what was told."""
        self.keeper.close()
        self._sink.close()
        self._source.close()
        self._store.close()

    def _wait(self, error: TransientError) -> None:
        """A server or the registry is away: say so, keep membership, try again at the next step."""
        self.waiting_for = error.server
        logger.warning("waiting for %s: %s", self.waiting_for, error)
        self._source.pause(self.partitions)
        with suppress(BrokerAway, OffsetsGone):  # the next poll says either again
            for partition, records in self._source.poll(RETRY_PAUSE_S, 1).items():
                self._source.seek(partition, records[0].offset)  # fetched before the pause: to be read again

    # -- the group -----------------------------------------------------------------------------------------------

    def _follow_group(self) -> None:
        """Drop everything at each rebalance (rule 7): uncommitted work is the new owner's to repeat."""
        note = self._source.assignment()
        if note is self._note:
            return
        self._start_over("rebalance", None)
        self._note = note
        if note is not None:
            self._start_up.follow(note.partitions)
        assigned = sorted(note.partitions) if note is not None else []
        self.partitions = {p: PartitionState(p, self._profile_of[p.topic]) for p in assigned}
        logger.info("assigned partitions=%s generation=%s", len(assigned), note.generation if note else None)

    def _start_over(self, why: str, error: Exception | None) -> None:
        """The one way back (rule 6): forget what is ahead of c, and let start-up find out what is true.

        An open transaction concerns all partitions, so all of them start again when one does.
        """
        if error is not None:
            logger.warning("starting partitions again: %s: %s", why, error)
        if self.partitions:
            self._stats.restarts[why] = self._stats.restarts.get(why, 0) + 1
        if not self._must_rebuild:
            try:
                self._sink.abort()
            except OutcomeUnknown:
                self._must_rebuild = True
        self._uncommitted = Uncommitted()
        self._saves_awaited_for = None
        retry_at_s = self._clock.monotonic() + (RETRY_PAUSE_S if error is not None else 0.0)
        for partition, state in self.partitions.items():
            self._forget(partition, state)
            if state.phase is not Phase.GONE:
                state.back_to_assigned(retry_at_s)
        self._source.pause(self.partitions)

    def _forget(self, partition: Partition, state: PartitionState) -> None:
        self._batcher.drop(partition)
        self._engines[state.profile].drop(partition)
        self.keeper.forget(state)

    def _recover(self) -> None:
        """Rule 5: after an unknown outcome no save and no record until a new producer has ended what was open."""
        if self._must_rebuild:
            self._sink.rebuild()
            self._must_rebuild = False
            logger.info("producer rebuilt")

    def _meant_by(self, error: OwnershipError) -> PartitionState | None:
        return None if error.partition is None else self.partitions.get(error.partition)

    def _lose(self, error: StaleToken) -> None:
        """Somebody newer has a partition's state: let go of it and wait for the group's word."""
        lost = self._meant_by(error)
        self._start_over("stale token", error)
        if lost is not None:
            lost.phase = Phase.GONE

    def _prove_ownership(self, error: StateLost) -> None:
        """``LOST``: an offsets-only commit of c under the noted metadata shows whether the partition is still ours."""
        lost = self._meant_by(error)
        committed = lost.committed if lost is not None else None
        self._start_over("state lost", error)
        if lost is None or committed is None or self._note is None or self._must_rebuild:
            return
        try:
            self._sink.commit({lost.partition: to_offset(committed)}, self._note)
        except CommitRefused:
            lost.phase = Phase.GONE
        except OutcomeUnknown:
            self._must_rebuild = True

    def _look_again(self, error: RowAhead) -> None:
        """Rule 23: start-up reads c again, and knows what it has to reach."""
        ahead = self._meant_by(error)
        self._start_over("row ahead", error)
        if ahead is not None:
            ahead.rows_reach = error.position

    # -- start-up of a partition ---------------------------------------------------------------------------------

    def _start_partitions(self) -> None:
        """Start-up of every assigned partition that is due; one that must wait does not hold up its neighbours."""
        now = self._clock.monotonic()
        due = [s for s in self.partitions.values() if s.phase is Phase.ASSIGNED and now >= s.retry_at_s]
        due.sort(key=lambda state: state.retry_at_s)  # those that a step had no time for before those that failed in it
        if due and self._note is not None:
            away = self._start_up.run(due, self._note, self._commit)
            self._target_due_s = now
            for state, error in away:
                state.back_to_assigned(now + RETRY_PAUSE_S)
                state.waits_for = error.server
                logger.warning("partition %s waits: %s", state.partition, error)

    # -- records -------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Poll when nothing waits; decode at once, so that bad input costs itself only."""
        if len(self._batcher) or self._is_behind_with_saves():
            return
        folding = [p for p, state in self.partitions.items() if state.is_folding]
        self._source.resume(folding)
        with self._stats.timed("poll", self._clock.monotonic):
            timeout_s = 0.02 if self._uncommitted.records else min(0.2, self._pace.commit_interval_s)
            polled = self._source.poll(timeout_s, self._pace.max_poll_records)
        self._follow_group()
        for partition, records in polled.items():
            state = self.partitions.get(partition)
            if state is None or not state.is_folding:
                continue
            expected = (
                [record for record in records if record.offset >= state.next]
                if records[0].offset < state.next
                else records
            )
            if expected:
                self._decode(state, expected)
        for state in self.partitions.values():
            self._pass_gap(state)
        if self._note is None:
            self.waiting_for = "assignment"

    def _decode(self, state: PartitionState, records: Sequence[Record]) -> None:
        with self._stats.timed("decode", self._clock.monotonic):
            windows, letters = self._messages.decode(state.profile, state.partition, records)
        self._stats.records += len(records)
        self._batcher.add(Piece(state.partition, windows, tuple(letters), records[-1].offset + 1))

    def _pass_gap(self, state: PartitionState) -> None:
        """A replay whose last records below c are not in the log (transaction markers, compaction) ends by position."""
        if state.phase is Phase.REPLAYING and not self._batcher.holds(state.partition):
            position = self._source.position(state.partition)
            if position is not None and position >= state.c and state.advance(state.c):
                self._target_due_s = 0.0

    def _is_behind_with_saves(self) -> bool:
        """Whether W is too old to go on: the input pauses while Redis is away too long."""
        if self.keeper.behind_s() < self._pace.max_watermark_age_s:
            return False
        self._wait(StoreAway(f"rows unsaved for more than {self._pace.max_watermark_age_s:g} s"))
        return True

    def _fold(self) -> None:
        """One batch of each profile and version; what is done counts at once, as the next may find a server away."""
        for batch in self._folding.next_batches(self.partitions):
            folded = self._folding.fold(batch, self.partitions, self._stats)
            self._uncommitted.add(folded)
            if folded.ended_replay:
                self._target_due_s = 0.0
            if folded.needs == "commit":
                self._room_wanted = True
            elif folded.needs == "saves":
                self._saves_awaited_for = "room"

    # -- commit and save -----------------------------------------------------------------------------------------

    def _commit_is_due(self) -> bool:
        if self._note is None:
            return False
        waited = self._clock.monotonic() - self._last_commit_s >= self._pace.commit_interval_s
        return waited or self._room_wanted or self._uncommitted.records >= self._pace.max_uncommitted_records

    def _commit(self, extra: Mapping[Partition, Committed] | None = None, everything: bool = False) -> None:
        """Outputs and offsets leave in one transaction; then images of this boundary may be saved.

        Parameters
        ----------
        extra
            Offsets of partitions that are not live yet: new incarnations, and corrected ones.
        everything
            Save every row, and W, of every folding partition (a quiet commit).
        """
        note = self._source.assignment()
        if note is not self._note or note is None or note.generation < 0:
            raise CommitRefused("the assignment changed since the transaction began")
        started = self._clock.monotonic()
        due = {p: replace(s.committed, offset=s.next) for p, s in self.partitions.items() if s.committed and _ahead(s)}
        due.update(extra or {})
        everything = everything or self._room_wanted
        jobs = self.keeper.images(self.partitions, everything)
        if due:
            with self._stats.timed("commit", self._clock.monotonic):
                self._sink.commit({p: to_offset(committed) for p, committed in due.items()}, note)
            self._stats.commits += 1
        for partition, committed in due.items():
            self.partitions[partition].committed = committed
            self.partitions[partition].must_commit = False
        self.keeper.submit(jobs)
        self._note_latency(bool(due))
        self._last_commit_s = started
        if self._room_wanted:
            self._room_wanted = False
            self._saves_awaited_for = "room"

    def _awaits_saves(self) -> bool:
        """Whether folding rests until all that is committed is saved: rows lack room, or a version goes (rules 12, 14).

        One step waits a little; where Redis is away rows that lack room wait for it, and a swap is tried again later.
        """
        if self._saves_awaited_for is None:
            return False
        if self.keeper.drain(self.partitions, self._pace.saves_wait_s):
            is_for_swap, self._saves_awaited_for = self._saves_awaited_for == "swap", None
            if is_for_swap:
                self._swap_versions(is_saved=True)
            return False
        if self.keeper.is_store_away:
            if self._saves_awaited_for == "swap":
                self._saves_awaited_for = None
                return False
            self._wait(StoreAway("rows have to be saved before others find room"))
        return True

    def _note_latency(self, committed: bool) -> None:
        if not committed:
            return
        if self._uncommitted.record_ms is not None:
            now, (oldest, newest) = self._clock.wall_ms(), self._uncommitted.record_ms
            self._stats.latency_s = ((now - oldest) / 1000, (now - newest) / 1000)
        self._uncommitted = Uncommitted()

    # -- versions ------------------------------------------------------------------------------------------------

    def _swap_versions(self, is_saved: bool = False) -> None:
        """Rule 12: at a quiet commit, a partition goes over to the version its profile should serve.

        Parameters
        ----------
        is_saved
            The commit has been: all was saved since, and nothing folded.
        """
        now = self._clock.monotonic()
        if now < self._target_due_s and not is_saved:
            return
        self._target_due_s = now + TARGET_POLL_S
        try:
            targets = {profile: self._target(profile) for profile in self._engines}
        except (TransientError, OSError, ConfigurationError) as error:
            logger.warning("which versions to serve cannot be read, those that are served stay: %s", error)
            return
        due = [s for s in self.partitions.values() if s.phase is Phase.LIVE and _serving(s) != targets[s.profile]]
        if not due or self.keeper.is_store_away:
            return
        if not is_saved:
            self._commit(everything=True)
            if not self.keeper.drain(self.partitions, self._pace.saves_wait_s):
                self._saves_awaited_for = "swap"
                return
        for state in due:
            engine, target = self._engines[state.profile], targets[state.profile]
            if not engine.has_version(target):
                raise VersionError(f"profile {state.profile}: version {target} is to be served and is not there")
            assert state.committed is not None
            logger.info("partition %s: version %s -> %s at %s", state.partition, _serving(state), target, state.next)
            state.committed = with_version(state.committed, state.next, target)
            state.must_commit = True
            if engine.version_of(state.partition) is not None:
                engine.bring_to(state.partition, target)

    def status(self) -> WorkerStatus:
        """How the worker stands, between two steps; asks Kafka for the ends of the logs at most every few seconds."""
        age_s = self.keeper.unsaved_age_s()
        return worker_status(self.partitions, self._engines, self._ends, age_s, self.waiting_for)


def _ahead(state: PartitionState) -> bool:
    return state.phase is Phase.LIVE and (state.next > state.c or state.must_commit)


def _serving(state: PartitionState) -> str:
    assert state.committed is not None
    return state.committed.history[-1][1]
