"""Topics of a Kafka cluster from outside a consumer group. Only a bookmark commits offsets."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors

from pipeline.errors import BrokerAway, ConfigurationError, TidewatchError
from pipeline.kafka import Presence, client_options, connect, mapped
from pipeline.records import Partition, Record
from pipeline.sources.base import CommittedOffset
from pipeline.topics.base import Offset, Place

logger = logging.getLogger(__name__)

UNKNOWN_TOPIC = 3
POLL_S, COORDINATOR_S = 0.2, 0.2
NO_COORDINATOR_YET = (
    kafka_errors.CoordinatorNotAvailableError,
    kafka_errors.CoordinatorLoadInProgressError,
    kafka_errors.NotCoordinatorError,
)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where a cluster is and how to talk to it; every call opens a client of its own and closes it.

    Parameters
    ----------
    bootstrap_servers
        ``host:port``, one or several.
    call_deadline_s
        Longest a call that asks the broker takes.
    security
        kafka-python's own options for TLS, SASL or a proxy.
    notice_s
        How soon a reader notices that a topic has more partitions.
    """

    bootstrap_servers: str | Sequence[str]
    call_deadline_s: float = 8.0
    security: Mapping[str, Any] = field(default_factory=dict)
    notice_s: float = 30.0

    def options(self) -> dict[str, Any]:
        """Options of a client, in kafka-python's names."""
        return client_options(self.bootstrap_servers, "tidewatch", self.call_deadline_s, self.security)

    def create(
        self, partitions: Mapping[str, int], configs: Mapping[str, str] | None = None, replication: int = -1
    ) -> None:
        """Create topics, each with this number of partitions, and wait for their leaders.

        ``replication`` -1 leaves the number of copies to the cluster.

        Raises
        ------
        ConfigurationError
            One exists already, or may not be created.
        BrokerAway
            The cluster does not answer.
        """
        topics = {
            name: {"num_partitions": count, "replication_factor": replication, "configs": dict(configs or {})}
            for name, count in partitions.items()
        }
        with self._admin("create topics") as admin:
            answer = admin.create_topics(topics, raise_errors=False)
            for topic in answer["topics"]:
                if topic["error_code"]:
                    reason = topic["error_message"] or f"error {topic['error_code']}"
                    raise ConfigurationError(f"topic {topic['name']} cannot be created: {reason}")
            admin.wait_for_topics(list(topics), timeout_ms=int(self.call_deadline_s * 1000))

    def topics(self) -> set[str]:
        """Names of all topics."""
        with self._admin("list topics") as admin:
            return set(admin.list_topics())

    def delete(self, topics: Iterable[str]) -> None:
        """Delete topics with everything in them; those that do not exist are passed over."""
        with self._admin("delete topics") as admin:
            answer = admin.delete_topics(list(topics), raise_errors=False)
            for topic in answer["topics"]:
                if topic["error_code"] not in (0, UNKNOWN_TOPIC):
                    raise ConfigurationError(f"topic {topic['name']} is not deleted: {topic.get('error_message')}")

    def delete_group(self, group: str) -> None:
        """Delete a consumer group's offsets; a group that does not exist is passed over.

        Raises
        ------
        ConfigurationError
            It still has members.
        """
        with self._admin("delete group") as admin:
            found = admin.delete_groups([group]).get(group, "OK")
        if found == kafka_errors.NonEmptyGroupError.__name__:
            raise ConfigurationError(f"group {group} still has members")
        if found not in ("OK", kafka_errors.GroupIdNotFoundError.__name__):
            raise BrokerAway(f"group {group} is not deleted: {found}")

    def committed(self, group: str) -> dict[Partition, CommittedOffset]:
        """What a group committed last, for every partition it ever committed.

        Waits for the group's coordinator: a new cluster has none until the first who asks has made it.
        """
        deadline_s = time.monotonic() + self.call_deadline_s
        with self._admin("committed offsets") as admin:
            while True:
                try:
                    found = admin.list_group_offsets({group: None})
                    break
                except NO_COORDINATOR_YET:
                    if time.monotonic() > deadline_s:
                        raise
                    time.sleep(COORDINATOR_S)
        return {
            Partition(*partition): CommittedOffset(offset.offset, offset.metadata or "")
            for partition, offset in found.get(group, {}).items()
        }

    def reader(self, topic: str) -> TopicReader:
        """Reads records of a topic; close it."""
        return TopicReader(self, topic)

    def bookmark(self, group: str) -> Bookmark:
        """Keeps a reader's place under a group's name; close it."""
        return Bookmark(self, group)

    def feeder(self) -> Feeder:
        """Writes records; close it."""
        return Feeder(self)

    @contextmanager
    def _admin(self, doing: str) -> Iterator[Any]:
        known = {name: value for name, value in self.options().items() if name in KafkaAdminClient.DEFAULT_CONFIG}
        admin, _ = connect(KafkaAdminClient, **known)
        try:
            yield admin
        except kafka_errors.KafkaError as exc:
            raise mapped(exc, doing) from exc
        finally:
            admin.close()


class TopicReader:
    """Committed records of one topic, by range, outside of any group.

    Raises
    ------
    ConfigurationError
        There is no such topic.
    BrokerAway
        No broker answered within the deadline; from every call.
    """

    def __init__(self, cluster: Cluster, topic: str) -> None:
        self._topic, self._deadline_s = topic, cluster.call_deadline_s
        self._consumer, self._network = connect(
            KafkaConsumer,
            **cluster.options(),
            group_id=None,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",
            max_poll_records=5_000,
            metadata_max_age_ms=int(cluster.notice_s * 1000),
        )
        self._presence = Presence(self._network, self._deadline_s)
        try:
            self.partitions = self._partitions()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close connections."""
        self._consumer.close(autocommit=False)

    def beginning(self) -> dict[Partition, int]:
        """First offset of each partition still in the log."""
        return self._offsets("beginning_offsets", self.partitions)

    def end(self) -> dict[Partition, int]:
        """One past the last committed record of each partition."""
        return self._offsets("end_offsets", self.partitions)

    def has_reached(self, ends: Mapping[Partition, int]) -> bool:
        """Whether everything before ``ends`` has been read; markers of transactions count as read."""
        return all(self._position(partition) >= end for partition, end in ends.items())

    def behind(self) -> int:
        """Records between what was read and the ends of the partitions that are read; markers of transactions count."""
        return sum(max(0, end - self._position(partition)) for partition, end in self.end().items())

    def at(self, place: Place) -> dict[Partition, int]:
        """Where a place lies in each partition, kept within what is in the log."""
        beginning, end = self.beginning(), self.end()
        if isinstance(place, Offset):
            found: dict[Partition, int] = dict.fromkeys(self.partitions, place.offset)
        else:
            asked = {TopicPartition(*partition): place.time_ms for partition in self.partitions}
            with self._mapped("offsets for a time"):
                answer = self._consumer.offsets_for_times(asked, timeout_ms=int(self._deadline_s * 1000))
            found = {Partition(*p): end[Partition(*p)] if o is None else o.offset for p, o in answer.items()}
        return {p: min(max(offset, beginning[p]), end[p]) for p, offset in found.items()}

    def read(
        self, begin: Mapping[Partition, int], end: Mapping[Partition, int] | None = None
    ) -> Iterator[list[tuple[Partition, Record]]]:
        """Records from ``begin`` on, some at a time, each partition's in offset order.

        Parameters
        ----------
        begin
            First offset, by partition; a partition without one is not read.
        end
            First offset that is no longer wanted; the iterator ends there. With ``None`` it never ends, yields an empty
            list about every fifth of a second in which nothing came, and goes on with partitions that are added to the
            topic, from their beginning.
        """
        left = {p: end[p] for p in begin if end[p] > begin[p]} if end is not None else None
        with self._mapped("read"):
            self._consumer.assign([TopicPartition(*p) for p in (begin if left is None else left)])
            self._consumer.resume(*self._consumer.paused())  # an assignment keeps what an earlier read has paused
            for partition in begin if left is None else left:
                self._consumer.seek(TopicPartition(*partition), begin[partition])
        while left is None or left:
            if left is None:
                self._take_in_added()
            with self._mapped("read"):
                polled = self._consumer.poll(timeout_ms=int(POLL_S * 1000))
            self._presence.check(something_came=bool(polled))
            found = [(Partition(*p), record) for p, records in polled.items() for record in records]
            if left is not None:
                found = [(p, record) for p, record in found if p in left and record.offset < left[p]]
                self._leave_finished(left)
            if found or left is None:
                yield found

    def _take_in_added(self) -> None:
        """Read partitions that the topic has got since, beside the others; by what the client was told last."""
        told = self._network.cluster.partitions_for_topic(self._topic) or set()
        added = [p for p in sorted(Partition(self._topic, number) for number in told) if p not in self.partitions]
        if not added:
            return
        beginning = self._offsets("beginning_offsets", added)
        with self._mapped("read"):
            self._consumer.assign([*self._consumer.assignment(), *(TopicPartition(*p) for p in added)])
            for partition in added:
                self._consumer.seek(TopicPartition(*partition), beginning[partition])
        self.partitions += tuple(added)

    def _leave_finished(self, left: dict[Partition, int]) -> None:
        """Take partitions that are read up to their end out of ``left``; markers of transactions count as read."""
        for partition in [p for p, end in left.items() if self._position(p) >= end]:
            del left[partition]
            self._consumer.pause(TopicPartition(*partition))

    def _position(self, partition: Partition) -> int:
        with self._mapped("position"):
            return int(self._consumer.position(TopicPartition(*partition), timeout_ms=int(self._deadline_s * 1000)))

    def _partitions(self) -> tuple[Partition, ...]:
        with self._mapped(f"partitions of {self._topic}"):
            known = self._topic in self._consumer.topics()
            found = self._consumer.partitions_for_topic(self._topic) if known else None
        if not found:
            raise ConfigurationError(f"there is no topic {self._topic!r}")
        return tuple(Partition(self._topic, number) for number in sorted(found))

    def _offsets(self, which: str, partitions: Iterable[Partition]) -> dict[Partition, int]:
        asked = [TopicPartition(*partition) for partition in partitions]
        with self._mapped(which):
            found = getattr(self._consumer, which)(asked, timeout_ms=int(self._deadline_s * 1000))
        return {Partition(*partition): offset for partition, offset in found.items()}

    @contextmanager
    def _mapped(self, doing: str) -> Iterator[None]:
        try:
            yield
        except kafka_errors.KafkaError as exc:
            raise mapped(exc, doing) from exc


class Bookmark:
    """A reader's place in topics: offsets committed under a group's name, without membership.

    One process reads all partitions, so there is nothing to share out, and one that takes its time loses no membership.
    A second process of the same group would do everything twice.

    Raises
    ------
    BrokerAway
        From every call: no answer within the deadline.
    """

    def __init__(self, cluster: Cluster, group: str) -> None:
        self._deadline_ms = int(cluster.call_deadline_s * 1000)
        self._consumer, _ = connect(KafkaConsumer, **cluster.options(), group_id=group, enable_auto_commit=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close(autocommit=False)

    def committed(self, ends: Mapping[Partition, int]) -> dict[Partition, int]:
        """Where to go on in each partition; where nothing was committed, at its end, which is committed now.

        A partition without a place in a topic where others have one was added since, and begins at its beginning.
        """
        self._consumer.assign([TopicPartition(*partition) for partition in ends])
        known = {partition: offset for partition in ends if (offset := self._committed(partition)) is not None}
        begun = {partition.topic for partition in known}
        new = {p: 0 if p.topic in begun else end for p, end in ends.items() if p not in known}
        self._commit(new)
        return known | new

    def in_log(self, positions: Mapping[Partition, int], beginning: Mapping[Partition, int]) -> dict[Partition, int]:
        """Positions, none below the beginning of the log; what is passed over is said once, and committed."""
        for partition, offset in positions.items():
            first = beginning[partition]
            if offset < first:
                # At most: markers of transactions take offsets too.
                logger.warning(
                    "at most %d records passed over, no longer in the log: topic=%s partition=%d",
                    first - offset,
                    *partition,
                )
                self.commit(partition, first)
        return {partition: max(offset, beginning[partition]) for partition, offset in positions.items()}

    def commit(self, partition: Partition, next_offset: int) -> None:
        """Everything before ``next_offset`` is done with."""
        self._commit({partition: next_offset})

    def _committed(self, partition: Partition) -> int | None:
        try:
            offset = self._consumer.committed(TopicPartition(*partition), timeout_ms=self._deadline_ms)
        except kafka_errors.KafkaError as exc:
            raise mapped(exc, f"committed offset of {partition}") from exc
        return None if offset is None else int(offset)

    def _commit(self, offsets: Mapping[Partition, int]) -> None:
        """In one request: of a first start's places, half would make the other partitions look added since."""
        asked = {TopicPartition(*partition): OffsetAndMetadata(offset, "", -1) for partition, offset in offsets.items()}
        try:
            self._consumer.commit(asked, timeout_ms=self._deadline_ms)
        except kafka_errors.KafkaError as exc:
            raise mapped(exc, f"commit of {', '.join(map(str, offsets))}") from exc


class Feeder:
    """A plain idempotent producer: what commands and examples write with.

    Attributes
    ----------
    ends
        One past the last acknowledged record, by partition; complete after :meth:`flush`.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._deadline_s = cluster.call_deadline_s
        self._producer, _ = connect(
            KafkaProducer,
            **{name: value for name, value in cluster.options().items() if name in KafkaProducer.DEFAULT_CONFIG},
            acks="all",
            enable_idempotence=True,
            linger_ms=5,
            batch_size=128 * 1024,
            max_block_ms=int(cluster.call_deadline_s * 1000),
        )
        self.ends: dict[Partition, int] = {}
        self._failure: Exception | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        timestamp_ms: int | None = None,
        partition: int | None = None,
    ) -> None:
        """Hand a record over. Without ``partition`` its key decides, by murmur2 as in Kafka's own clients.

        Raises
        ------
        BrokerAway, ConfigurationError
            This record, or one before it, cannot be written.
        """
        self._raise_failure()
        try:
            sent = self._producer.send(topic, value, key, partition=partition, timestamp_ms=timestamp_ms)
        except kafka_errors.KafkaError as exc:
            raise mapped(exc, f"write to {topic}") from exc
        sent.add_callback(self._note_end)
        sent.add_errback(self._note_failure)

    def flush(self) -> None:
        """Wait until everything handed over is acknowledged.

        Raises
        ------
        BrokerAway, ConfigurationError
            Something was not.
        """
        try:
            self._producer.flush(timeout=self._deadline_s)
        except kafka_errors.KafkaError as exc:
            raise mapped(exc, "write") from exc
        self._raise_failure()

    def close(self) -> None:
        """Close connections; what is not acknowledged within the deadline is given up."""
        self._producer.close(timeout=self._deadline_s)

    def _note_end(self, sent: Any) -> None:
        partition = Partition(sent.topic, sent.partition)
        self.ends[partition] = max(self.ends.get(partition, 0), sent.offset + 1)

    def _note_failure(self, exc: Exception) -> None:
        self._failure = self._failure or exc

    def _raise_failure(self) -> None:
        if self._failure is not None:
            error: TidewatchError = mapped(self._failure, "write")
            raise error from self._failure
