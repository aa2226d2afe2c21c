"""What only a real Kafka shows about the source: deadlines, rebalances, answers that come too late."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka import KafkaProducer

from pipeline.errors import BrokerAway, CommitRefused, OutcomeUnknown
from pipeline.records import Partition, Record
from pipeline.servers import EmbeddedKafka, create_topics, free_port
from pipeline.sinks.kafka import KafkaSink
from pipeline.sources.base import CommittedOffset, GroupNote
from pipeline.sources.kafka import KafkaSource
from tests.fakes import END_TXN, OFFSET_FETCH, LossyProxy

pytestmark = pytest.mark.integration

DEADLINE_S = 20.0
SHORT_S = 1.0  # call deadline where a call is meant to run into it


def until(condition: Callable[[], bool]) -> None:
    """Ask again until it holds; each condition here polls, so this does not spin."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"


def joined(source: KafkaSource, size: int, others: tuple[KafkaSource, ...] = (), timeout_s: float = 0.05) -> GroupNote:
    """Poll until ``source`` owns ``size`` partitions; the others take part in the rebalance."""

    def settled() -> bool:
        for each in (source, *others):
            each.poll(timeout_s, 10)
        note = source.assignment()
        return note is not None and len(note.partitions) == size

    until(settled)
    note = source.assignment()
    assert note is not None
    return note


def produce(bootstrap: str, topic: str, values: list[bytes]) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap)
    for value in values:
        producer.send(topic, value=value, partition=0)
    producer.flush()
    producer.close()


@pytest.fixture
def topic(kafka_bootstrap: str) -> str:
    """A topic of two partitions, this test's own."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    create_topics(kafka_bootstrap, {name: 2})
    return name


@pytest.fixture
def group() -> str:
    """A group of this test's own."""
    return f"g-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def proxy() -> Iterator[LossyProxy]:
    """A network that loses what it is told to."""
    lossy = LossyProxy()
    yield lossy
    lossy.close()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedKafka]:
    """A broker of this test's own, to be killed."""
    with EmbeddedKafka(tmp_path / "kafka") as running:
        yield running


def test_without_a_broker_the_constructor_says_so_in_time(group: str) -> None:
    """The worker tries again for as long as it takes; each try must end and leave no thread behind."""
    before = threading.active_count()
    started = time.monotonic()
    with pytest.raises(BrokerAway):
        KafkaSource(f"127.0.0.1:{free_port()}", group, ["t"], call_deadline_s=SHORT_S)
    assert time.monotonic() - started < SHORT_S + 2
    until(lambda: threading.active_count() <= before)


def test_members_that_poll_briefly_still_join(kafka_bootstrap: str, topic: str, group: str) -> None:
    """The client forgets a join that outlasts a poll; a busy worker polls without waiting and would never own anything."""
    first, second = (KafkaSource(kafka_bootstrap, group, [topic], session_timeout_s=6.0) for _ in range(2))
    mine = joined(first, 1, (second,), timeout_s=0.0)
    theirs = joined(second, 1, (first,), timeout_s=0.0)
    assert mine.partitions | theirs.partitions == {Partition(topic, 0), Partition(topic, 1)}
    first.close()
    second.close()


def test_a_member_that_stops_polling_loses_its_partitions_and_its_commit(
    kafka_bootstrap: str, topic: str, group: str
) -> None:
    """A worker stuck in a batch is thrown out; waking up, it must not commit over its successor (rule 1)."""
    stuck = KafkaSource(kafka_bootstrap, group, [topic], session_timeout_s=6.0, max_poll_interval_s=1.5)
    heir = KafkaSource(kafka_bootstrap, group, [topic], session_timeout_s=6.0)
    sink = KafkaSink(kafka_bootstrap, f"s-{group}")
    note = joined(stuck, 2)
    taken = joined(heir, 2)
    assert taken.generation > note.generation
    assert stuck.assignment() is note
    with pytest.raises(CommitRefused):
        sink.commit({Partition(topic, 0): CommittedOffset(5, "stuck")}, note)
    assert heir.committed([Partition(topic, 0)]) == {Partition(topic, 0): None}
    stuck.poll(0.05, 10)
    assert stuck.assignment() is not note
    for each in (stuck, heir, sink):
        each.close()


def test_an_answer_that_came_too_late_is_not_used(
    kafka_bootstrap: str, topic: str, group: str, proxy: LossyProxy
) -> None:
    """The client answers a lookup with an older one that had timed out: outputs would be emitted twice from there."""
    place = Partition(topic, 0)
    source = KafkaSource(kafka_bootstrap, group, [topic], call_deadline_s=SHORT_S, security={"proxy_url": proxy.url})
    sink = KafkaSink(kafka_bootstrap, f"s-{group}")
    note = joined(source, 2)
    sink.commit({place: CommittedOffset(1, "old")}, note)
    proxy.hold_reply(OFFSET_FETCH)
    with pytest.raises(BrokerAway):
        source.committed([place])
    assert proxy.holding.is_set()
    sink.commit({place: CommittedOffset(2, "new")}, note)
    proxy.release()
    assert source.committed([place]) == {place: CommittedOffset(2, "new")}
    source.close()
    sink.close()


def test_waiting_for_stable_offsets_is_not_logged_as_an_error(
    kafka_bootstrap: str, topic: str, group: str, proxy: LossyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten errors a second during every takeover would hide the ones that matter."""
    source = KafkaSource(kafka_bootstrap, group, [topic], call_deadline_s=SHORT_S)
    sink = KafkaSink(kafka_bootstrap, f"s-{group}", call_deadline_s=SHORT_S, security={"proxy_url": proxy.url})
    note = joined(source, 2)
    proxy.lose_request(END_TXN)
    with pytest.raises(OutcomeUnknown):
        sink.commit({Partition(topic, 0): CommittedOffset(1, "")}, note)
    caplog.clear()
    with caplog.at_level(logging.ERROR), pytest.raises(BrokerAway):
        source.committed([Partition(topic, 0)])
    assert not [record for record in caplog.records if record.name == "kafka.coordinator.consumer"]
    source.close()
    sink.close()


def test_a_broker_that_dies_and_returns_is_waited_for(broker: EmbeddedKafka, group: str) -> None:
    """Kafka away: calls end in time without spinning, absence is said, and reading resumes by itself."""
    create_topics(broker.address, {"t": 1})
    produce(broker.address, "t", [b"before"])
    place = Partition("t", 0)
    source = KafkaSource(broker.address, group, ["t"], call_deadline_s=SHORT_S, session_timeout_s=30.0)
    note = joined(source, 1)
    source.seek(place, 0)
    source.resume([place])
    values: list[bytes | None] = []

    def read(records: list[Record]) -> None:
        values.extend(record.value for record in records)

    until(lambda: read(list(source.poll(0.1, 10).get(place, ()))) or values == [b"before"])
    broker.kill()
    used = time.process_time()
    started = time.monotonic()
    with pytest.raises(BrokerAway):
        while time.monotonic() - started < DEADLINE_S:
            called = time.monotonic()
            assert source.poll(0.2, 10) == {}
            assert time.monotonic() - called < 2.0
    assert time.process_time() - used < 0.5 * (time.monotonic() - started)
    with pytest.raises(BrokerAway):
        source.committed([place])
    with pytest.raises(BrokerAway):
        source.end_offsets([place])
    broker.start()
    produce(broker.address, "t", [b"after"])

    def resumed() -> bool:
        try:
            records = list(source.poll(0.1, 10).get(place, ()))
        except BrokerAway:
            return False
        if source.assignment() not in (None, note) and source.position(place) == 0:
            source.seek(place, 1)
            source.resume([place])
        read(records)
        return values == [b"before", b"after"]

    until(resumed)
    assert source.committed([place]) == {place: None}
    source.close()
