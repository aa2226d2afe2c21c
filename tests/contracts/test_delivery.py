"""One list of promises for sources and sinks, run over memory and over a real Kafka."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import pytest
from kafka import KafkaAdminClient, TopicPartition

from pipeline.errors import BrokerAway, CommitRefused, OffsetsGone, OutcomeUnknown, WorkerFenced
from pipeline.memory import MemoryBroker
from pipeline.records import Partition, Record
from pipeline.servers import create_topics
from pipeline.sinks.base import Sink
from pipeline.sinks.kafka import KafkaSink
from pipeline.sinks.memory import MemorySink
from pipeline.sources.base import CommittedOffset, GroupNote, Source
from pipeline.sources.kafka import KafkaSource
from pipeline.sources.memory import MemorySource
from tests.fakes import END_TXN, LossyProxy
from tests.real_kafka import joined, produce, unique, until, visible

NOON_MS = 1_772_366_400_000


class World(Protocol):
    """A cluster with this test's own topics and groups."""

    def topic(self, partitions: int = 1) -> str: ...
    def produce(self, topic: str, values: Sequence[bytes], partition: int = 0, timestamp_ms: int = NOON_MS) -> None: ...
    def visible(self, topic: str) -> list[bytes]: ...
    def truncate(self, partition: Partition, before: int) -> None: ...
    def source(self, group: str, topic: str, instance_id: str | None = None) -> Source: ...
    def sink(self, slot: str) -> Sink: ...
    def losing(self, what: str) -> object: ...


class MemoryWorld:
    """Everything in one MemoryBroker."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()

    def topic(self, partitions: int = 1) -> str:
        name = unique("t")
        self.broker.create_topic(name, partitions)
        return name

    def produce(self, topic: str, values: Sequence[bytes], partition: int = 0, timestamp_ms: int = NOON_MS) -> None:
        for value in values:
            self.broker.append(topic, b"k", value, partition, timestamp_ms)

    def visible(self, topic: str) -> list[bytes]:
        return [record.value or b"" for record in self.broker.visible(topic)]

    def truncate(self, partition: Partition, before: int) -> None:
        self.broker.truncate(partition, before)

    def source(self, group: str, topic: str, instance_id: str | None = None) -> Source:
        return MemorySource(self.broker, group, [topic], instance_id)

    def sink(self, slot: str) -> Sink:
        return MemorySink(self.broker, slot)

    @contextmanager
    def losing(self, what: str) -> Iterator[None]:
        """The commit's last request, or the reply to it, is lost."""
        step = {"request": "commit", "reply": "committed transaction"}[what]

        def interrupt(name: str) -> None:
            self.broker.away = self.broker.away or name == step

        self.broker.interrupt = interrupt
        yield
        self.broker.interrupt = lambda name: None
        self.broker.away = False


class KafkaWorld:
    """A real broker; sinks reach it through a proxy."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self.proxy = LossyProxy()
        self._open: list[Source | Sink] = []

    def topic(self, partitions: int = 1) -> str:
        name = unique("t")
        create_topics(self.bootstrap, {name: partitions})
        return name

    def produce(self, topic: str, values: Sequence[bytes], partition: int = 0, timestamp_ms: int = NOON_MS) -> None:
        produce(self.bootstrap, topic, values, partition, timestamp_ms)

    def visible(self, topic: str) -> list[bytes]:
        return visible(self.bootstrap, topic)

    def truncate(self, partition: Partition, before: int) -> None:
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        admin.delete_records({TopicPartition(*partition): before})
        admin.close()

    def source(self, group: str, topic: str, instance_id: str | None = None) -> Source:
        made = KafkaSource(
            self.bootstrap, group, [topic], group_instance_id=instance_id, session_timeout_s=6.0, call_deadline_s=2.0
        )
        self._open.append(made)
        return made

    def sink(self, slot: str) -> Sink:
        made = KafkaSink(self.bootstrap, slot, call_deadline_s=2.0, security={"proxy_url": self.proxy.url})
        self._open.append(made)
        return made

    @contextmanager
    def losing(self, what: str) -> Iterator[None]:
        """The commit's last request, or the reply to it, is lost."""
        {"request": self.proxy.lose_request, "reply": self.proxy.lose_reply}[what](END_TXN)
        yield

    def close(self) -> None:
        for each in self._open:
            each.close()
        self.proxy.close()


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.integration)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Both implementations, one after the other."""
    if request.param == "memory":
        yield MemoryWorld()
        return
    kafka = KafkaWorld(request.getfixturevalue("kafka_bootstrap"))
    yield kafka
    kafka.close()


def read(source: Source, partition: Partition, count: int) -> list[Record]:
    """The next ``count`` records of a partition."""
    records: list[Record] = []

    def enough() -> bool:
        records.extend(source.poll(0.1, 100).get(partition, ()))
        return len(records) >= count

    until(enough)
    return records


def test_outputs_and_offsets_become_visible_together(world: World) -> None:
    """Exactly-once output rests on this: neither ever appears without the other."""
    inputs, outputs, group = world.topic(), world.topic(), unique("g")
    source, sink = world.source(group, inputs), world.sink(unique("s"))
    note = joined(source)
    place = Partition(inputs, 0)
    sink.add(outputs, b"k", b"one")
    sink.add(outputs, None, b"two", 0)
    assert world.visible(outputs) == []
    assert source.committed([place]) == {place: None}
    sink.commit({place: CommittedOffset(7, "meta")}, note)
    assert world.visible(outputs) == [b"one", b"two"]
    assert source.committed([place]) == {place: CommittedOffset(7, "meta")}


def test_aborted_outputs_are_never_visible(world: World) -> None:
    """Work of a revoked partition is repeated by its new owner; both versions visible would be a duplicate."""
    inputs, outputs = world.topic(), world.topic()
    source, sink = world.source(unique("g"), inputs), world.sink(unique("s"))
    note = joined(source)
    sink.abort()
    sink.add(outputs, None, b"forgotten")
    sink.abort()
    sink.add(outputs, None, b"kept")
    sink.commit({Partition(inputs, 0): CommittedOffset(1, "")}, note)
    assert world.visible(outputs) == [b"kept"]


def test_offsets_can_be_committed_without_outputs(world: World) -> None:
    """The origin of a new partition is committed before its first record (rule 9)."""
    inputs = world.topic()
    source, sink = world.source(unique("g"), inputs), world.sink(unique("s"))
    note = joined(source)
    sink.commit({Partition(inputs, 0): CommittedOffset(0, "origin")}, note)
    assert source.committed([Partition(inputs, 0)])[Partition(inputs, 0)] == CommittedOffset(0, "origin")


def test_a_commit_under_an_old_note_is_refused_and_leaves_nothing_behind(world: World) -> None:
    """A member thrown out must not commit (rule 1), neither now nor by its next transaction."""
    inputs, outputs, group = world.topic(2), world.topic(), unique("g")
    first, second, sink = world.source(group, inputs), world.source(group, inputs), world.sink(unique("s"))
    old = joined(first, size=2)
    sink.add(outputs, None, b"zombie")
    new = joined(first, [second], size=1)
    lost = next(iter(old.partitions - new.partitions))
    with pytest.raises(CommitRefused):
        sink.commit({lost: CommittedOffset(99, "zombie")}, old)
    sink.add(outputs, None, b"good")
    kept = next(iter(new.partitions))
    sink.commit({kept: CommittedOffset(1, "good")}, new)
    assert world.visible(outputs) == [b"good"]
    assert first.committed([lost, kept]) == {lost: None, kept: CommittedOffset(1, "good")}


def test_a_note_of_nobody_is_refused(world: World) -> None:
    """Kafka takes offsets of generation -1 from anybody, so the sink must not ask (rule 1)."""
    inputs, outputs = world.topic(), world.topic()
    source, sink = world.source(unique("g"), inputs), world.sink(unique("s"))
    note = joined(source)
    sink.add(outputs, None, b"nobody's")
    with pytest.raises(CommitRefused):
        sink.commit({Partition(inputs, 0): CommittedOffset(5, "")}, GroupNote(-1, note.metadata, note.partitions))
    assert source.committed([Partition(inputs, 0)]) == {Partition(inputs, 0): None}
    assert world.visible(outputs) == []


def test_metadata_round_trips_up_to_its_limit(world: World) -> None:
    """The version history travels in it (rule 10); a longer string would kill the producer."""
    inputs = world.topic()
    source, sink = world.source(unique("g"), inputs), world.sink(unique("s"))
    note, place = joined(source), Partition(inputs, 0)
    sink.commit({place: CommittedOffset(1, "m" * 4096)}, note)
    with pytest.raises(ValueError, match="4096"):
        sink.commit({place: CommittedOffset(2, "m" * 4097)}, note)
    sink.commit({place: CommittedOffset(3, "x" * 4096)}, note)
    assert source.committed([place]) == {place: CommittedOffset(3, "x" * 4096)}


def test_an_assigned_partition_waits_for_seek_and_resume(world: World) -> None:
    """Where to start is the worker's decision, and resuming before it must not read from the placeholder."""
    topic = world.topic()
    world.produce(topic, [b"0", b"1", b"2", b"3"])
    source, place = world.source(unique("g"), topic), Partition(topic, 0)
    note = joined(source)
    assert note.partitions == {place}
    assert source.poll(0.2, 10) == {}
    source.resume([place])
    assert source.poll(0.2, 10) == {}
    source.seek(place, 2)
    source.resume([place])
    assert source.position(place) == 2
    records = read(source, place, 2)
    assert [(record.offset, record.key, record.value) for record in records] == [(2, b"k", b"2"), (3, b"k", b"3")]
    assert source.position(place) == 4


def test_pause_and_seek_back_repeat_records(world: World) -> None:
    """A replay reads the same records again, and a paused partition stays silent meanwhile."""
    topic = world.topic()
    world.produce(topic, [b"0", b"1", b"2"])
    source, place = world.source(unique("g"), topic), Partition(topic, 0)
    joined(source)
    source.seek(place, 0)
    source.resume([place])
    assert len(read(source, place, 3)) == 3
    source.pause([place])
    source.seek(place, 1)
    assert source.poll(0.2, 10) == {}
    source.resume([place])
    assert [record.offset for record in read(source, place, 2)] == [1, 2]


def test_poll_returns_no_more_than_asked_for(world: World) -> None:
    """The device's bound on uncommitted rows is kept by the number of records taken at once."""
    topic = world.topic()
    world.produce(topic, [b"0", b"1", b"2", b"3", b"4"])
    source, place = world.source(unique("g"), topic), Partition(topic, 0)
    joined(source)
    source.seek(place, 0)
    source.resume([place])
    taken: list[int] = []

    def all_taken() -> bool:
        records = source.poll(0.1, 2).get(place, ())
        assert len(records) <= 2
        taken.extend(record.offset for record in records)
        return len(taken) == 5

    until(all_taken)
    assert taken == [0, 1, 2, 3, 4]


def test_members_share_partitions_and_inherit_them(world: World) -> None:
    """Scale-out and takeover: each partition has one owner, and a leaving member's go to the others."""
    topic, group = world.topic(4), unique("g")
    first, second = world.source(group, topic), world.source(group, topic)
    alone = joined(first, size=4)
    mine = joined(first, [second], size=2)
    theirs = joined(second, [first], size=2)
    assert mine.partitions | theirs.partitions == alone.partitions
    assert not mine.partitions & theirs.partitions
    assert mine.generation > alone.generation
    assert mine is not alone
    second.close()
    assert second.assignment() is None
    assert joined(first, size=4).generation > mine.generation


def test_a_replaced_static_member_cannot_commit(world: World) -> None:
    """A pod started twice under one name: the newer works on, the older must end (rule 19 covers its rows)."""
    topic, outputs, group = world.topic(2), world.topic(), unique("g")
    older, sink = world.source(group, topic, "worker-0"), world.sink(unique("s"))
    note = joined(older, size=2)
    newer = world.source(group, topic, "worker-0")
    taken = joined(newer, size=2)
    assert taken.partitions == note.partitions
    assert taken.generation == note.generation
    sink.add(outputs, None, b"displaced")
    with pytest.raises(WorkerFenced):
        sink.commit({Partition(topic, 0): CommittedOffset(3, "")}, note)
    heir = world.sink(unique("s"))
    heir.commit({Partition(topic, 0): CommittedOffset(1, "heir")}, taken)
    assert newer.committed([Partition(topic, 0)])[Partition(topic, 0)] == CommittedOffset(1, "heir")
    assert world.visible(outputs) == []


def test_a_lost_commit_request_is_unknown_and_then_known_to_have_failed(world: World) -> None:
    """Taken as done it would lose outputs: after the rebuild the committed offset tells (rule 5)."""
    inputs, outputs = world.topic(), world.topic()
    source, sink = world.source(unique("g"), inputs), world.sink(unique("s"))
    note, place = joined(source), Partition(inputs, 0)
    sink.commit({place: CommittedOffset(1, "before")}, note)
    sink.add(outputs, None, b"first try")
    with world.losing("request"), pytest.raises(OutcomeUnknown):
        sink.commit({place: CommittedOffset(2, "after")}, note)
    with pytest.raises(OutcomeUnknown):
        sink.add(outputs, None, b"too early")
    with pytest.raises(OutcomeUnknown):
        sink.commit({place: CommittedOffset(2, "after")}, note)
    sink.rebuild()
    assert source.committed([place]) == {place: CommittedOffset(1, "before")}
    sink.add(outputs, None, b"second try")
    sink.commit({place: CommittedOffset(2, "after")}, note)
    assert world.visible(outputs) == [b"second try"]


def test_a_lost_commit_reply_is_unknown_and_then_known_to_have_succeeded(world: World) -> None:
    """Taken as failed it would repeat outputs: after the rebuild the committed offset tells (rule 5)."""
    inputs, outputs = world.topic(), world.topic()
    source, sink = world.source(unique("g"), inputs), world.sink(unique("s"))
    note, place = joined(source), Partition(inputs, 0)
    sink.add(outputs, None, b"once")
    with world.losing("reply"), pytest.raises(OutcomeUnknown):
        sink.commit({place: CommittedOffset(2, "after")}, note)
    sink.rebuild()
    assert source.committed([place]) == {place: CommittedOffset(2, "after")}
    assert world.visible(outputs) == [b"once"]


def test_committed_waits_for_a_pending_transaction(world: World) -> None:
    """A successor that read the older offset meanwhile would emit everything twice (rule 2)."""
    inputs = world.topic()
    source, sink = world.source(unique("g"), inputs), world.sink(unique("s"))
    note, place = joined(source), Partition(inputs, 0)
    with world.losing("request"), pytest.raises(OutcomeUnknown):
        sink.commit({place: CommittedOffset(2, "")}, note)
    with pytest.raises(BrokerAway):
        source.committed([place])
    sink.rebuild()
    assert source.committed([place]) == {place: None}


def test_a_newer_sink_of_the_same_id_aborts_and_fences_the_older(world: World) -> None:
    """A worker restarted under its name must not wait for its former self; the former self must not win."""
    inputs, outputs, slot = world.topic(), world.topic(), unique("s")
    source, older = world.source(unique("g"), inputs), world.sink(slot)
    note, place = joined(source), Partition(inputs, 0)
    older.add(outputs, None, b"open")
    newer = world.sink(slot)
    with pytest.raises(OutcomeUnknown):
        older.commit({place: CommittedOffset(5, "older")}, note)
    newer.add(outputs, None, b"new")
    newer.commit({place: CommittedOffset(1, "newer")}, note)
    assert source.committed([place]) == {place: CommittedOffset(1, "newer")}
    assert world.visible(outputs) == [b"new"]


def test_of_two_live_sinks_with_one_id_one_is_told_to_end(world: World) -> None:
    """Two processes that take the id from each other for ever would get nothing done."""
    inputs, slot = world.topic(), unique("s")
    source, older, newer = world.source(unique("g"), inputs), world.sink(slot), world.sink(slot)
    note, offsets = joined(source), {Partition(inputs, 0): CommittedOffset(1, "")}
    with pytest.raises(OutcomeUnknown):
        older.commit(offsets, note)
    older.rebuild()
    with pytest.raises(OutcomeUnknown):
        newer.commit(offsets, note)
    newer.rebuild()
    with pytest.raises(WorkerFenced):
        older.commit(offsets, note)
    newer.commit(offsets, note)


def test_a_position_below_the_log_is_said_aloud(world: World) -> None:
    """A replay whose records retention has taken would go on with wrong rows without a word (rule 22)."""
    topic = world.topic(2)
    world.produce(topic, [b"0", b"1", b"2", b"3"])
    world.produce(topic, [b"other"], partition=1)
    source, place, other = world.source(unique("g"), topic), Partition(topic, 0), Partition(topic, 1)
    joined(source, size=2)
    world.truncate(place, 3)
    assert source.beginning_offsets([place, other]) == {place: 3, other: 0}
    source.seek(place, 1)
    source.resume([place])

    def gone() -> bool:
        try:
            return bool(source.poll(0.1, 10)) and False
        except OffsetsGone as error:
            return error.partitions == (place,)

    until(gone)
    source.seek(place, 3)
    assert [record.offset for record in read(source, place, 1)] == [3]


def test_the_first_record_of_a_time_is_found_by_its_timestamp(world: World) -> None:
    """A group that begins at a time begins there in every partition, also in one that it sees late."""
    topic = world.topic()
    place, source = Partition(topic, 0), world.source(unique("g"), topic)
    joined(source)
    assert source.offset_at(place, NOON_MS) == 0
    for seconds in range(3):
        world.produce(topic, [b"a", b"b"], timestamp_ms=NOON_MS + 1000 * seconds)
    assert [source.offset_at(place, NOON_MS + after_ms) for after_ms in (-1, 0, 1, 1000, 2000, 2001)] == [
        0, 0, 2, 2, 4, 6,
    ]  # fmt: skip


def test_an_open_transaction_ends_the_log(world: World) -> None:
    """What is not committed is neither read nor counted as there."""
    inputs, topic = world.topic(), world.topic()
    world.produce(topic, [b"0", b"1"])
    reader, source, sink = world.source(unique("g"), topic), world.source(unique("g"), inputs), world.sink(unique("s"))
    joined(reader)
    note, place = joined(source), Partition(topic, 0)
    sink.add(topic, None, b"pending", 0)
    assert reader.end_offsets([place]) == {place: 2}
    reader.seek(place, 0)
    reader.resume([place])
    assert len(read(reader, place, 2)) == 2
    assert reader.poll(0.2, 10) == {}
    sink.commit({}, note)
    assert [record.value for record in read(reader, place, 1)] == [b"pending"]
    assert reader.end_offsets([place]) == {place: 4}


def test_closing_twice_does_nothing(world: World) -> None:
    """Shutdown runs from several places; an open transaction must not hold up readers until its timeout."""
    inputs, outputs = world.topic(), world.topic()
    source, sink = world.source(unique("g"), inputs), world.sink(unique("s"))
    joined(source)
    sink.add(outputs, None, b"never")
    sink.close()
    sink.close()
    source.close()
    source.close()
    assert world.visible(outputs) == []
