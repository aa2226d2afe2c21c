"""What tests do around a real Kafka: write, read back, join a group, wait."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Sequence

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

from pipeline.errors import BrokerAway
from pipeline.records import Partition
from pipeline.servers import create_topics
from pipeline.sinks.kafka import KafkaSink
from pipeline.sources.base import CommittedOffset, GroupNote, Source
from pipeline.sources.kafka import KafkaSource
from tests.fakes import LossyProxy

DEADLINE_S = 25.0
SHORT_S = 1.0  # call deadline where a call is meant to run into it


def until(condition: Callable[[], bool]) -> None:
    """Ask again until it holds; conditions ask a server or poll, so this does not spin."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"


def unique(what: str) -> str:
    """A name nobody else has."""
    return f"{what}-{uuid.uuid4().hex[:8]}"


def joined(
    source: Source, others: Sequence[Source] = (), size: int | None = None, timeout_s: float = 0.05
) -> GroupNote:
    """Poll until ``source`` owns partitions (``size`` of them); the others take part in the rebalance."""

    def settled() -> bool:
        for each in (source, *others):
            each.poll(timeout_s, 10)
        note = source.assignment()
        return note is not None and (len(note.partitions) == size if size is not None else bool(note.partitions))

    until(settled)
    note = source.assignment()
    assert note is not None
    return note


def produce(
    bootstrap: str, topic: str, values: Iterable[bytes], partition: int = 0, timestamp_ms: int | None = None
) -> None:
    """Write records with the key ``k``, outside any transaction."""
    producer = KafkaProducer(bootstrap_servers=bootstrap)
    for value in values:
        producer.send(topic, value=value, key=b"k", partition=partition, timestamp_ms=timestamp_ms)
    producer.flush()
    producer.close()


def forget(bootstrap: str, partition: Partition, before: int) -> None:
    """Delete what lies before an offset, as retention does."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.delete_records({TopicPartition(*partition): before})
    admin.close()


def add_partitions(bootstrap: str, topic: str, count: int) -> None:
    """Let a topic have so many partitions from now on."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.create_partitions({topic: count})
    admin.wait_for_topics([topic])
    admin.close()


def visible(bootstrap: str, topic: str) -> list[bytes]:
    """What a read-committed reader finds in a topic, by partition and offset."""
    reader = KafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_committed", auto_offset_reset="earliest")
    places = [TopicPartition(topic, number) for number in sorted(reader.partitions_for_topic(topic))]
    reader.assign(places)
    ends = reader.end_offsets(places)
    values: dict[TopicPartition, list[bytes]] = {place: [] for place in places}

    def done() -> bool:
        for place, records in reader.poll(timeout_ms=50).items():
            values[place] += [record.value for record in records]
        return all(reader.position(place) >= ends[place] for place in places)

    until(done)
    reader.close()
    return [value for place in places for value in values[place]]


def written(bootstrap: str, topic: str) -> int:
    """How many offsets of partition 0 are taken, committed or not."""
    reader = KafkaConsumer(bootstrap_servers=bootstrap)
    place = TopicPartition(topic, 0)
    end = int(reader.end_offsets([place])[place])
    reader.close()
    return end


def rebuilt(sink: KafkaSink) -> None:
    """Rebuild as soon as the broker allows it."""

    def done() -> bool:
        try:
            sink.rebuild()
        except BrokerAway:
            return False
        return True

    until(done)


class Rig:
    """One input and one output topic, a member that owns the input, and sinks that reach the broker by a proxy."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self.inputs, self.outputs, self.slot = unique("in"), unique("out"), unique("slot")
        create_topics(bootstrap, {self.inputs: 1, self.outputs: 1})
        self.proxy = LossyProxy()
        self.place = Partition(self.inputs, 0)
        self.source = KafkaSource(bootstrap, unique("g"), [self.inputs], session_timeout_s=30.0, call_deadline_s=5.0)
        self.note = joined(self.source)
        self._sinks: list[KafkaSink] = []

    def sink(self, call_deadline_s: float = SHORT_S, transaction_timeout_s: float = 60.0) -> KafkaSink:
        """Another producer of the same transactional id."""
        made = KafkaSink(
            self.bootstrap,
            self.slot,
            call_deadline_s=call_deadline_s,
            transaction_timeout_s=transaction_timeout_s,
            security={"proxy_url": self.proxy.url},
        )
        self._sinks.append(made)
        return made

    def offsets(self, offset: int) -> dict[Partition, CommittedOffset]:
        """What a commit of the input's partition carries."""
        return {self.place: CommittedOffset(offset, "m")}

    def committed(self) -> CommittedOffset | None:
        """The group's word on the input's partition."""
        return self.source.committed([self.place])[self.place]

    def close(self) -> None:
        """Close everything, and cut the proxy's connections."""
        for sink in self._sinks:
            sink.close()
        self.source.close()
        self.proxy.close()
