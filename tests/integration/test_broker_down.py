"""A broker that dies in a commit or while it is read, and one that ends transactions early."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from pipeline.errors import BrokerAway, OutcomeUnknown
from pipeline.records import Partition
from pipeline.servers import EmbeddedKafka, create_topics
from pipeline.sinks.kafka import PARCEL_RECORDS
from pipeline.sources.base import CommittedOffset
from pipeline.sources.kafka import KafkaSource
from tests.fakes import END_TXN
from tests.real_kafka import SHORT_S, Rig, joined, produce, rebuilt, unique, until, visible, written

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKafka]:
    """A broker of this file's own, to be killed; it ends transactions soon after their timeout."""
    quick = {"transaction.abort.timed.out.transaction.cleanup.interval.ms": "300"}
    with EmbeddedKafka(tmp_path_factory.mktemp("kafka"), properties=quick) as running:
        yield running


@pytest.fixture
def own_rig(broker: EmbeddedKafka) -> Iterator[Rig]:
    """On the broker that may be killed."""
    made = Rig(broker.address)
    yield made
    made.close()


def test_a_broker_killed_before_the_offsets_is_survived(own_rig: Rig, broker: EmbeddedKafka) -> None:
    """The client would wait for ever (rule 4): the call ends in time, and after a rebuild work goes on (rule 5)."""
    sink = own_rig.sink()
    sink.commit(own_rig.offsets(1), own_rig.note)
    sink.add(own_rig.outputs, None, b"first try")
    broker.kill()
    started = time.monotonic()
    for _ in range(5000):
        sink.add(own_rig.outputs, None, b"first try, too")  # adding waits for nobody
    assert time.monotonic() - started < SHORT_S
    with pytest.raises(OutcomeUnknown):
        sink.commit(own_rig.offsets(2), own_rig.note)
    assert time.monotonic() - started < 2 * SHORT_S + 1
    with pytest.raises(BrokerAway):
        sink.rebuild()
    broker.start()
    rebuilt(sink)
    assert own_rig.committed() == CommittedOffset(1, "m")
    sink.add(own_rig.outputs, None, b"second try")
    sink.commit(own_rig.offsets(2), own_rig.note)
    assert visible(broker.address, own_rig.outputs) == [b"second try"]


def test_a_broker_killed_before_the_commit_is_survived(own_rig: Rig, broker: EmbeddedKafka) -> None:
    """With the offsets already in the transaction the same holds, and the note is still good afterwards."""
    sink = own_rig.sink()
    sink.add(own_rig.outputs, None, b"first try")
    own_rig.proxy.lose_request(END_TXN, then=broker.kill)
    with pytest.raises(OutcomeUnknown):
        sink.commit(own_rig.offsets(2), own_rig.note)
    broker.start()
    rebuilt(sink)
    assert own_rig.committed() is None
    sink.add(own_rig.outputs, None, b"second try")
    sink.commit(own_rig.offsets(2), own_rig.note)
    assert own_rig.committed() == CommittedOffset(2, "m")
    assert visible(broker.address, own_rig.outputs) == [b"second try"]


def test_a_transaction_past_its_timeout_is_never_called_a_success(own_rig: Rig) -> None:
    """The client's commit can return success with nothing committed (rule 3): outputs would be lost silently."""
    sink = own_rig.sink(call_deadline_s=5.0, transaction_timeout_s=1.0)
    for attempt in (1, 2):  # a timeout is not a rival, however often it strikes
        for _ in range(PARCEL_RECORDS + 10):  # one parcel is sent at once, the rest with the commit
            sink.add(own_rig.outputs, None, b"late")
        until(lambda taken=attempt * (PARCEL_RECORDS + 1): written(own_rig.bootstrap, own_rig.outputs) == taken)
        with pytest.raises(OutcomeUnknown):
            sink.commit(own_rig.offsets(attempt), own_rig.note)
        rebuilt(sink)
        assert own_rig.committed() is None
    sink.add(own_rig.outputs, None, b"in time")
    sink.commit(own_rig.offsets(3), own_rig.note)
    assert visible(own_rig.bootstrap, own_rig.outputs) == [b"in time"]


def test_a_broker_that_dies_and_returns_is_waited_for(broker: EmbeddedKafka) -> None:
    """Kafka away: calls end in time without spinning, absence is said, and reading resumes by itself."""
    topic = unique("t")
    create_topics(broker.address, {topic: 1})
    produce(broker.address, topic, [b"before"])
    place = Partition(topic, 0)
    source = KafkaSource(broker.address, unique("g"), [topic], call_deadline_s=SHORT_S, session_timeout_s=30.0)
    joined(source)
    source.seek(place, 0)
    source.resume([place])
    values: list[bytes | None] = []
    until(lambda: taken(source, place, values) == [b"before"])
    broker.kill()
    used, started = time.process_time(), time.monotonic()
    until(lambda: not answers(source))
    assert time.process_time() - used < 0.5 * (time.monotonic() - started)
    with pytest.raises(BrokerAway):
        source.committed([place])
    with pytest.raises(BrokerAway):
        source.end_offsets([place])
    broker.start()
    produce(broker.address, topic, [b"after"])
    until(lambda: taken(source, place, values) == [b"before", b"after"])
    assert source.committed([place]) == {place: None}
    source.close()


def taken(source: KafkaSource, place: Partition, values: list[bytes | None]) -> list[bytes | None]:
    """Read on, and start again after an assignment, as a worker does."""
    if answers(source, place, values) and source.position(place) == 0:
        source.seek(place, len(values))
        source.resume([place])
    return values


def answers(source: KafkaSource, place: Partition | None = None, values: list[bytes | None] | None = None) -> bool:
    """Poll once; whether the source believes that there is a broker."""
    called = time.monotonic()
    try:
        records = source.poll(0.1, 10)
    except BrokerAway:
        return False
    assert time.monotonic() - called < 2.0
    if place is not None and values is not None:
        values += [record.value for record in records.get(place, ())]
    return True
