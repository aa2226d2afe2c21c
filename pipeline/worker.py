"""The worker: start-up, step, shutdown, in the order of effects (protocol.md, "Steps").

One step follows the group, starts partitions, reads, folds, emits, and commits when it is time. Whatever raises doubt
about a commit or about ownership has one way back: drop the rows, start the partition again. Nothing here knows Kafka,
Redis or torch; :mod:`pipeline.wiring` brings them.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.batcher import Batcher, Piece
from pipeline.clock import Clock
from pipeline.engine import Engine, Share
from pipeline.errors import (
    BrokerAway,
    CommitRefused,
    ConfigurationError,
    OffsetsGone,
    OutcomeUnknown,
    OwnershipError,
    RegistryAway,
    RowAhead,
    StaleToken,
    StateLost,
    StoreAway,
    TransientError,
    VersionError,
)
from pipeline.keeper import Keeper
from pipeline.messages import Messages
from pipeline.partition import PartitionState, State, next_change, to_offset, version_at, with_version
from pipeline.records import Committed, Partition, Record, StepStats, Windows, WorkerStatus
from pipeline.resident import ResidentRows
from pipeline.sinks.base import Sink
from pipeline.sources.base import GroupNote, Source
from pipeline.startup import StartUp
from pipeline.state.base import Load, StateStore
from pipeline.status import LogEnds, worker_status

logger = logging.getLogger(__name__)

RETRY_PAUSE_S = 0.5
SAVES_WAIT_S = 0.5
TARGET_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the worker commits and saves, and how much it takes at a time (see settings)."""

    group: str
    start: str = "earliest"
    commit_interval_s: float = 0.5
    max_uncommitted_records: int = 20_000
    max_poll_records: int = 5_000
    save_interval_s: float = 5.0
    max_watermark_age_s: float = 60.0
    stop_deadline_s: float = 30.0


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
    messages, pace, clock
        Message formats, rhythm and time.
    listener
        Told what each step did.
    new_id
        Fresh random hex, for incarnations and nonces.
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
        self._keeper = Keeper(store, engines, clock, pace.save_interval_s)
        self._ends = LogEnds(source, clock.monotonic)
        self._note: GroupNote | None = None
        self.partitions: dict[Partition, PartitionState] = {}
        self._must_rebuild = False
        self._room_wanted = False
        self._saves_awaited_for: Literal["room", "swap"] | None = None
        self._last_commit_s = clock.monotonic()
        self._target_due_s = 0.0
        self._oldest_ms: int | None = None
        self._newest_ms: int | None = None
        self._uncommitted = 0
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
        self.waiting_for = next((s.waits_for for s in self.partitions.values() if s.state is State.ASSIGNED), None)
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
        if self.waiting_for is None and self._keeper.is_store_away:
            self.waiting_for = "redis"  # goes on with resident rows, and says so
        self._listener(self._stats)
        return self._stats

    def _work(self) -> None:
        self._keeper.collect(self.partitions)
        self._start_partitions()
        if self._awaits_saves():
            return
        self._swap_versions()
        if self._saves_awaited_for is not None:
            return
        self._read()
        self._fold()
        self._keeper.sweep(self.partitions)

    def stop(self) -> None:
        """Commit, save all, W = c, leave the group: the successor replays nothing. Gives up after a deadline."""
        try:
            self._follow_group()
            if self._note is not None and not self._must_rebuild:
                self._commit(everything=True)
                self._keeper.drain(self.partitions, self._pace.stop_deadline_s)
        except (OwnershipError, BrokerAway, StoreAway) as error:
            logger.warning("stopped without a last commit: %s; the successor replays from the last save", error)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close everything and commit and save nothing: in the middle of a step rows may be ahead of what was told."""
        self._keeper.close()
        self._sink.close()
        self._source.close()
        self._store.close()

    def _wait(self, error: TransientError) -> None:
        """A server or the registry is away: say so, keep membership, try again at the next step."""
        self.waiting_for = _server(error)
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
        self._uncommitted = 0
        self._saves_awaited_for = None
        self._oldest_ms = self._newest_ms = None
        retry_at_s = self._clock.monotonic() + (RETRY_PAUSE_S if error is not None else 0.0)
        for partition, state in self.partitions.items():
            self._forget(partition, state)
            if state.state is not State.GONE:
                state.back_to_assigned(retry_at_s)
        self._source.pause(self.partitions)

    def _forget(self, partition: Partition, state: PartitionState) -> None:
        self._batcher.drop(partition)
        self._engines[state.profile].drop(partition)
        self._keeper.forget(state)

    def _recover(self) -> None:
        """Rule 5: after an unknown outcome no save and no record until a new producer has ended what was open."""
        if self._must_rebuild:
            self._sink.rebuild()
            self._must_rebuild = False
            logger.info("producer rebuilt")

    def _lose(self, error: StaleToken) -> None:
        """Somebody newer has a partition's state: let go of it and wait for the group's word."""
        lost = self.partitions.get(_partition(error.partition)) if error.partition else None
        self._start_over("stale token", error)
        if lost is not None:
            lost.state = State.GONE

    def _prove_ownership(self, error: StateLost) -> None:
        """``LOST``: an offsets-only commit of c under the noted metadata shows whether the partition is still ours."""
        lost = self.partitions.get(_partition(error.partition)) if error.partition else None
        committed = lost.committed if lost is not None else None
        self._start_over("state lost", error)
        if lost is None or committed is None or self._note is None or self._must_rebuild:
            return
        try:
            self._sink.commit({lost.partition: to_offset(committed)}, self._note)
        except CommitRefused:
            lost.state = State.GONE
        except OutcomeUnknown:
            self._must_rebuild = True

    def _look_again(self, error: RowAhead) -> None:
        """Rule 23: start-up reads c again, and knows what it has to reach."""
        ahead = self.partitions.get(_partition(error.partition)) if error.partition else None
        self._start_over("row ahead", error)
        if ahead is not None:
            ahead.rows_reach = error.position

    # -- start-up of a partition ---------------------------------------------------------------------------------

    def _start_partitions(self) -> None:
        """Start-up of every assigned partition that is due; one that must wait does not hold up its neighbours."""
        now = self._clock.monotonic()
        due = [s for s in self.partitions.values() if s.state is State.ASSIGNED and now >= s.retry_at_s]
        due.sort(key=lambda state: state.retry_at_s)  # those that a step had no time for before those that failed in it
        if due and self._note is not None:
            away = self._start_up.run(due, self._note, self._commit)
            self._target_due_s = now
            for state, error in away:
                state.back_to_assigned(now + RETRY_PAUSE_S)
                state.waits_for = _server(error)
                logger.warning("partition %s waits: %s", state.partition, error)

    # -- records -------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Poll when nothing waits; decode at once, so that bad input costs itself only."""
        if len(self._batcher) or self._is_behind_with_saves():
            return
        folding = [p for p, state in self.partitions.items() if state.is_folding]
        self._source.resume(folding)
        with self._timed("poll"):
            timeout_s = 0.02 if self._uncommitted else min(0.2, self._pace.commit_interval_s)
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
        with self._timed("decode"):
            windows, letters = self._messages.decode(state.profile, state.partition, records)
        self._stats.records += len(records)
        self._batcher.add(Piece(state.partition, windows, tuple(letters), records[-1].offset + 1))

    def _pass_gap(self, state: PartitionState) -> None:
        """A replay whose last records below c are not in the log (transaction markers, compaction) ends by position."""
        if state.state is State.REPLAYING and not self._batcher.holds(state.partition):
            position = self._source.position(state.partition)
            if position is not None and position >= state.c:
                self._advance(state, state.c)

    def _is_behind_with_saves(self) -> bool:
        """Whether W is too old to go on: the input pauses while Redis is away too long."""
        if self._keeper.unsaved_age_s() < self._pace.max_watermark_age_s:
            return False
        self._wait(StoreAway(f"rows unsaved for more than {self._pace.max_watermark_age_s:g} s"))
        return True

    # -- folding -------------------------------------------------------------------------------------------------

    def _fold(self) -> None:
        """One batch: pieces of every partition that has records, grouped by profile and version."""
        limits, versions = [], {}
        for partition, state in self.partitions.items():
            if state.is_folding and self._batcher.holds(partition):
                assert state.committed is not None
                at = self._batcher.first_offset(partition)
                version = version_at(state.committed, at)
                assert version is not None, f"{partition}: no version at {at}"
                versions[partition] = (state.profile, version)
                limits.append((partition, next_change(state.committed, at)))
        if not limits:
            return
        groups: dict[tuple[str, str], list[Piece]] = {}
        for piece in self._batcher.peek(limits):
            groups.setdefault(versions[piece.partition], []).append(piece)
        for (profile, version), pieces in groups.items():
            self._fold_group(self._engines[profile], version, pieces)

    def _fold_group(self, engine: Engine, version: str, pieces: list[Piece]) -> None:
        rows = engine.rows(version)
        rows.begin_batch()
        if not self._carry_over(engine, version, pieces):
            return
        pieces = _fitting(pieces, rows)
        with self._timed("load"):
            if not self._load(engine, rows, pieces):
                self._room_wanted = True
                return
        shares = [Share(piece.partition, piece.windows, self.partitions[piece.partition].c) for piece in pieces]
        with self._timed("score"):
            absorbed = engine.absorb(rows, shares, self._clock.monotonic())
        letters = [
            letter
            for piece in pieces
            for letter in piece.dead_letters
            if letter.offset >= self.partitions[piece.partition].c
        ]
        with self._timed("emit"):
            self._messages.emit(self._sink, absorbed.scores, absorbed.alerts, letters)
        for piece in pieces:
            self._batcher.done(piece)
            self._advance(self.partitions[piece.partition], piece.end)
            self._note_times(self.partitions[piece.partition], piece.windows)
        self._uncommitted += sum(len(piece.windows) + len(piece.dead_letters) for piece in pieces)
        self._count(engine.name, absorbed.observations, absorbed.late, absorbed.missing_values)
        self._stats.skipped_windows += absorbed.skipped_windows
        self._stats.silent_observations += absorbed.silent_observations
        self._stats.windows += sum(len(piece.windows) for piece in pieces)
        self._stats.scores[engine.name] = sum(len(scores.score) for scores in absorbed.scores)
        self._stats.alerts.extend(absorbed.alerts)
        self._stats.dead_letters.extend(letters)

    def _carry_over(self, engine: Engine, version: str, pieces: Sequence[Piece]) -> bool:
        """Bring rows to the version that is next in a replay; False where some must be saved first (rules 12, 14)."""
        if self._keeper.is_saving and any(engine.version_of(p.partition) not in (None, version) for p in pieces):
            self._saves_awaited_for = "room"
            return False
        if not all(engine.bring_to(piece.partition, version) for piece in pieces):
            self._room_wanted = True
            return False
        return True

    def _load(self, engine: Engine, rows: ResidentRows, pieces: Sequence[Piece]) -> bool:
        """Bring what is not resident with one round trip; False where rows must be saved first to make room."""
        missing = {piece.partition: rows.missing(piece.partition, piece.windows.stream_ids) for piece in pieces}
        wanted = sum(map(len, missing.values()))
        if not wanted:
            return True
        for piece in pieces:  # what is resident already must survive the eviction
            known = rows.slots_of[piece.partition]
            rows.slots(piece.partition, [stream for stream in piece.windows.stream_ids if stream in known])
        if not rows.make_room(wanted):
            return False
        loads = []
        for partition, streams in missing.items():
            owned = self.partitions[partition].owned
            if streams and owned is not None:
                loads.append(Load(owned.key, owned.token, owned.seq, streams))
        found = self._store.load_many(loads)
        for load, values in zip(loads, found, strict=True):
            state = self.partitions[load.key.partition]
            assert state.committed is not None
            engine.admit(rows, state.committed, load.key.partition, load.stream_ids, values)
        return True

    def _advance(self, state: PartitionState, end: int) -> None:
        state.next = max(state.next, end)
        if state.state is State.REPLAYING and state.next >= state.c:
            state.state = State.LIVE
            self._target_due_s = 0.0
            logger.info("partition %s: live at %s", state.partition, state.next)

    def _note_times(self, state: PartitionState, windows: Windows) -> None:
        if not len(windows):
            return
        oldest, newest = int(windows.record_ms.min()), int(windows.record_ms.max())
        state.newest_record_ms = max(state.newest_record_ms, newest)
        self._oldest_ms = oldest if self._oldest_ms is None else min(self._oldest_ms, oldest)
        self._newest_ms = newest if self._newest_ms is None else max(self._newest_ms, newest)

    def _count(self, profile: str, observations: int, late: int, missing: int) -> None:
        for counts, value in (
            (self._stats.profile_observations, observations),
            (self._stats.late, late),
            (self._stats.missing_values, missing),
        ):
            counts[profile] = counts.get(profile, 0) + value
        self._stats.batch_observations += observations

    # -- commit and save -----------------------------------------------------------------------------------------

    def _commit_is_due(self) -> bool:
        if self._note is None:
            return False
        waited = self._clock.monotonic() - self._last_commit_s >= self._pace.commit_interval_s
        return waited or self._room_wanted or self._uncommitted >= self._pace.max_uncommitted_records

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
        jobs = self._keeper.images(self.partitions, everything)
        if due:
            with self._timed("commit"):
                self._sink.commit({p: to_offset(committed) for p, committed in due.items()}, note)
            self._stats.commits += 1
        for partition, committed in due.items():
            self.partitions[partition].committed = committed
            self.partitions[partition].must_commit = False
        self._keeper.submit(jobs)
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
        if self._keeper.drain(self.partitions, SAVES_WAIT_S):
            is_for_swap, self._saves_awaited_for = self._saves_awaited_for == "swap", None
            if is_for_swap:
                self._swap_versions(is_saved=True)
            return False
        if self._keeper.is_store_away:
            if self._saves_awaited_for == "swap":
                self._saves_awaited_for = None
                return False
            self._wait(StoreAway("rows have to be saved before others find room"))
        return True

    def _note_latency(self, committed: bool) -> None:
        if committed and self._oldest_ms is not None and self._newest_ms is not None:
            now = self._clock.wall_ms()
            self._stats.latency_s = ((now - self._oldest_ms) / 1000, (now - self._newest_ms) / 1000)
        if committed:
            self._oldest_ms = self._newest_ms = None
            self._uncommitted = 0

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
        due = [s for s in self.partitions.values() if s.state is State.LIVE and _serving(s) != targets[s.profile]]
        if not due or self._keeper.is_store_away:
            return
        if not is_saved:
            self._commit(everything=True)
            if not self._keeper.drain(self.partitions, SAVES_WAIT_S):
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
        age_s = self._keeper.unsaved_age_s()
        return worker_status(self.partitions, self._engines, self._ends, age_s, self.waiting_for)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = self._clock.monotonic()
        yield
        self._stats.seconds[stage] = self._stats.seconds.get(stage, 0.0) + self._clock.monotonic() - began


def _partition(pair: tuple[str, int]) -> Partition:
    return Partition(*pair)


def _server(error: TransientError) -> str:
    return {StoreAway: "redis", RegistryAway: "registry"}.get(type(error), "kafka")


def _ahead(state: PartitionState) -> bool:
    return state.state is State.LIVE and (state.next > state.c or state.must_commit)


def _serving(state: PartitionState) -> str:
    assert state.committed is not None
    return state.committed.history[-1][1]


def _fitting(pieces: list[Piece], rows: ResidentRows) -> list[Piece]:
    """As much of the batch as the table can hold at once: at least one window."""
    room = rows.max_streams
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
