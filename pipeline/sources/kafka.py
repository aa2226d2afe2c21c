"""Records of a consumer group's partitions, from Kafka."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.structs import MemberState

from pipeline.errors import BrokerAway
from pipeline.kafka import Presence, client_options, connect, mapped
from pipeline.records import Partition, Record
from pipeline.sources.base import CommittedOffset, GroupNote

JOIN_PATIENCE_S, JOIN_SLICE_MS = 1.0, 50
FETCH_BYTES = 4 * 1024 * 1024  # asked for at once from one partition, at most

# What the client raises for a partition that was revoked since the caller looked; assignment() tells the caller.
_NOT_ASSIGNED = (KeyError, ValueError, kafka_errors.IllegalStateError)


class KafkaSource:
    """A member of a consumer group behind :class:`pipeline.sources.base.Source`.

    Reads committed records only, commits nothing by itself, keeps its membership for ``max_poll_interval_s`` without a
    call of :meth:`poll` (heartbeats run on the client's own thread) and gives up every partition at each rebalance.

    Parameters
    ----------
    bootstrap_servers
        ``host:port``, one or several.
    group, topics
        The consumer group and what it reads. Topics may be created later; they are noticed within 30 s.
    client_id
        Name of this worker in the broker's logs.
    group_instance_id
        Makes this a static member: a new process of the same id takes the partitions without a rebalance.
    session_timeout_s
        Without heartbeats for this long a member counts as dead.
    max_poll_interval_s
        Without :meth:`poll` for this long the client leaves the group by itself.
    call_deadline_s
        Longest a call that asks the broker takes.
    security
        kafka-python's own options for TLS, SASL or a proxy.

    Raises
    ------
    BrokerAway
        No broker answered within the deadline.
    """

    def __init__(
        self,
        bootstrap_servers: str | Sequence[str],
        group: str,
        topics: Iterable[str],
        *,
        client_id: str = "tidewatch",
        group_instance_id: str | None = None,
        session_timeout_s: float = 10.0,
        max_poll_interval_s: float = 300.0,
        call_deadline_s: float = 8.0,
        security: Mapping[str, Any] | None = None,
    ) -> None:
        _hush_unstable_offsets()
        self._call_deadline_s = call_deadline_s
        self._consumer, self._network = connect(
            KafkaConsumer,
            **client_options(bootstrap_servers, client_id, call_deadline_s, security or {}),
            group_id=group,
            group_instance_id=group_instance_id,
            isolation_level="read_committed",  # rule 2: only then are offsets asked for as stable ones
            enable_auto_commit=False,  # rule 9
            auto_offset_reset="none",  # rule 9
            partition_assignment_strategy=(RangePartitionAssignor,),  # rule 7: eager
            session_timeout_ms=int(session_timeout_s * 1000),
            heartbeat_interval_ms=int(session_timeout_s * 1000 / 4),
            max_poll_interval_ms=int(max_poll_interval_s * 1000),
            max_partition_fetch_bytes=FETCH_BYTES,
            metadata_max_age_ms=30_000,
        )
        self._note: GroupNote | None = None  # written on the client's thread, one reference at a time
        self._unplaced: set[Partition] = set()  # assigned, at the placeholder position, not yet sought
        self._stale_answers: set[Partition] = set()
        self._presence = Presence(self._network, call_deadline_s)
        self._closed = False
        self._consumer.subscribe(list(topics), listener=_Notes(self._assigned, self._revoked))

    def poll(self, timeout_s: float, max_records: int) -> Mapping[Partition, Sequence[Record]]:
        """See :meth:`pipeline.sources.base.Source.poll`; while the group rebalances it may take a second longer.

        Raises
        ------
        OffsetsGone
            A position is no longer in the log. It stays there: seek or pause, or the next call raises again.
        BrokerAway
            No broker has been connected for ``call_deadline_s``; every call says so, after its wait, until one is.
        WorkerFenced
            The group gave this member's instance id to another process.
        """
        before = self._note
        try:
            records = self._consumer.poll(timeout_ms=int(timeout_s * 1000), max_records=max_records)
            self._finish_joining()
        except (KeyError, AttributeError, kafka_errors.NoOffsetForPartitionError):
            # The client's thread exchanged the assignment under the client's own feet.
            if self._note is before:
                raise
            return {}
        except kafka_errors.KafkaError as exc:
            raise mapped(exc, "poll") from exc
        note = self._note
        self._presence.check(something_came=bool(records))
        if note is None or note is not before:
            return {}  # fetched under the assignment that is gone; the new one starts paused
        return {Partition(*partition): batch for partition, batch in records.items()}

    def assignment(self) -> GroupNote | None:
        """See :meth:`pipeline.sources.base.Source.assignment`; each assignment is a new object."""
        return self._note

    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, CommittedOffset | None]:
        """See :meth:`pipeline.sources.base.Source.committed`.

        A lookup that timed out stays inside the client, and the next lookup of the same partition is answered by it,
        however old the answer is by then. So the first answer after a timeout is thrown away.
        """
        deadline = time.monotonic() + self._call_deadline_s
        found: dict[Partition, CommittedOffset | None] = {}
        for partition in partitions:
            if partition in self._stale_answers:
                self._lookup(partition, deadline)
                self._stale_answers.discard(partition)
            found[partition] = self._lookup(partition, deadline)
        return found

    def beginning_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """See :meth:`pipeline.sources.base.Source.beginning_offsets`."""
        return self._offsets("beginning_offsets", partitions)

    def end_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """See :meth:`pipeline.sources.base.Source.end_offsets`: an open transaction ends the log."""
        return self._offsets("end_offsets", partitions)

    def offset_at(self, partition: Partition, time_ms: int) -> int:
        """See :meth:`pipeline.sources.base.Source.offset_at`."""
        end = self.end_offsets([partition])[partition]  # first: what comes in between lies behind it
        timeout_ms = int(self._call_deadline_s * 1000)
        try:
            (found,) = self._consumer.offsets_for_times({TopicPartition(*partition): time_ms}, timeout_ms).values()
        except kafka_errors.KafkaError as exc:
            raise mapped(exc, f"offset of {partition} at a time") from exc
        return end if found is None else min(int(found.offset), end)

    def position(self, partition: Partition) -> int | None:
        """See :meth:`pipeline.sources.base.Source.position`; ``None`` where the partition is not assigned."""
        try:
            offset: int | None = self._consumer.position(TopicPartition(*partition), timeout_ms=0)
        except (kafka_errors.KafkaError, KeyError, AttributeError):
            return None
        return offset

    def seek(self, partition: Partition, offset: int) -> None:
        """Continue at ``offset``; does nothing where the partition is no longer assigned."""
        self._unplaced.discard(partition)  # before, so that an assignment in between marks it again
        with suppress(*_NOT_ASSIGNED):
            self._consumer.seek(TopicPartition(*partition), offset)

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Return no records of these; does nothing where a partition is no longer assigned."""
        for partition in partitions:
            with suppress(*_NOT_ASSIGNED):
                self._consumer.pause(TopicPartition(*partition))

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Return records of these again; does nothing where a partition is no longer assigned.

        Nor where it has been assigned anew since it was sought: at the placeholder there is nothing to read.
        """
        for partition in partitions:
            with suppress(*_NOT_ASSIGNED):
                self._consumer.resume(TopicPartition(*partition))
            if partition in self._unplaced:  # looked at afterwards: the callback may come in between
                self.pause([partition])

    def close(self) -> None:
        """Leave the group, waiting at most ``call_deadline_s``; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._note = None
        # In the middle of a join the broker answers no request to leave before the others have joined.
        patience_s = JOIN_SLICE_MS / 1000 if self._is_joining() else self._call_deadline_s
        try:
            self._consumer.close(autocommit=False, timeout_ms=int(patience_s * 1000))
        except kafka_errors.KafkaError:
            self._network.close()  # the broker is away; the group finds out by the session timeout

    def _assigned(self, partitions: Iterable[TopicPartition]) -> None:
        assigned = frozenset(Partition(*partition) for partition in partitions)
        self._unplaced = set(assigned)
        placed = [TopicPartition(*partition) for partition in assigned]
        self._consumer.pause(*placed)
        for partition in placed:
            self._consumer.seek(partition, 0)  # a placeholder, or poll would look for an offset itself
        metadata = self._consumer.group_metadata()
        # Last, so that whoever sees the note finds its partitions paused.
        self._note = GroupNote(metadata.generation_id, metadata, assigned)

    def _revoked(self, partitions: Iterable[TopicPartition]) -> None:
        self._note = None

    def _lookup(self, partition: Partition, deadline: float) -> CommittedOffset | None:
        left_ms = max(1, int((deadline - time.monotonic()) * 1000))
        try:
            found = self._consumer.committed(TopicPartition(*partition), metadata=True, timeout_ms=left_ms)
        except kafka_errors.KafkaError as exc:
            self._stale_answers.add(partition)
            raise mapped(exc, f"committed offset of {partition}") from exc
        return None if found is None else CommittedOffset(found.offset, found.metadata or "")

    def _offsets(self, which: str, partitions: Iterable[Partition]) -> dict[Partition, int]:
        asked = [TopicPartition(*partition) for partition in partitions]
        if not asked:
            return {}
        timeout_ms = int(self._call_deadline_s * 1000)
        try:
            found = getattr(self._consumer, which)(asked, timeout_ms=timeout_ms)
        except (kafka_errors.KafkaError, KeyError) as exc:
            raise (
                mapped(exc, which) if isinstance(exc, kafka_errors.KafkaError) else BrokerAway(f"{which}: {exc}")
            ) from exc
        return {Partition(*partition): offset for partition, offset in found.items()}

    def _is_joining(self) -> bool:
        return bool(self._consumer.group_metadata().state == MemberState.REBALANCING)

    def _finish_joining(self) -> None:
        """Go on polling while the group takes us in, within reason.

        The client throws a join away that ends between two polls, and starts it again; one that new metadata caused it
        forgets altogether, and then neither joins nor sends heartbeats (3.0.12). So it is reminded, and waited for.
        """
        deadline = time.monotonic() + JOIN_PATIENCE_S
        while self._is_joining() and time.monotonic() < deadline:
            self._consumer._coordinator.request_rejoin()
            self._consumer.poll(timeout_ms=JOIN_SLICE_MS)  # nothing to read: what was assigned is paused


class _Notes(ConsumerRebalanceListener):  # type: ignore[misc]  # the client has no type hints
    """Hands assignments on; runs on the client's thread, where no call may wait for a broker (rule 7)."""

    def __init__(
        self,
        assigned: Callable[[Iterable[TopicPartition]], None],
        revoked: Callable[[Iterable[TopicPartition]], None],
    ) -> None:
        self._assigned = assigned
        self._revoked = revoked

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._assigned(assigned)

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._revoked(revoked)

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        self._revoked(lost)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    # While a transaction is pending the client asks again and logs an ERROR each time; waiting is what we want.
    return "UnstableOffsetCommitError" not in record.getMessage()


def _hush_unstable_offsets() -> None:
    logging.getLogger("kafka.coordinator.consumer").addFilter(_is_worth_a_line)
