"""What only a real Kafka shows about the sink: brokers that die in a commit, lost replies, timeouts, zombies."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator

import pytest
from kafka import KafkaConsumer, TopicPartition

from pipeline.errors import BrokerAway, ConfigurationError, OutcomeUnknown
from pipeline.records import Partition
from pipeline.servers import EmbeddedKafka, create_topics, free_port
from pipeline.sinks.kafka import KafkaSink
from pipeline.sources.base import CommittedOffset, GroupNote
from pipeline.sources.kafka import KafkaSource
from tests.fakes import END_TXN, TXN_OFFSET_COMMIT, LossyProxy

pytestmark = pytest.mark.integration

DEADLINE_S = 25.0
SHORT_S = 1.5  # call deadline where a call is meant to run into it


def until(condition: Callable[[], bool]) -> None:
    """Ask again until it holds; each condition here asks a server, so this does not spin."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"


def joined(source: KafkaSource) -> GroupNote:
    """Poll until ``source`` owns its partition."""

    def settled() -> bool:
        source.poll(0.1, 10)
        note = source.assignment()
        return note is not None and bool(note.partitions)

    until(settled)
    note = source.assignment()
    assert note is not None
    return note


def visible(bootstrap: str, topic: str) -> list[bytes]:
    """What a read-committed reader finds."""
    reader = KafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_committed", auto_offset_reset="earliest")
    place = TopicPartition(topic, 0)
    reader.assign([place])
    end = reader.end_offsets([place])[place]
    values: list[bytes] = []

    def done() -> bool:
        values.extend(record.value for record in reader.poll(timeout_ms=50).get(place, ()))
        return bool(reader.position(place) >= end)

    until(done)
    reader.close()
    return values


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
    """Input and output topic, a member that owns the input, and what one partition's commit looks like."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self.name = uuid.uuid4().hex[:8]
        self.inputs, self.outputs = f"in-{self.name}", f"out-{self.name}"
        create_topics(bootstrap, {self.inputs: 1, self.outputs: 1})
        self.proxy = LossyProxy()
        self.place = Partition(self.inputs, 0)
        self.source = KafkaSource(
            bootstrap, f"g-{self.name}", [self.inputs], session_timeout_s=30.0, call_deadline_s=5.0
        )
        self.note = joined(self.source)
        self._sinks: list[KafkaSink] = []

    def sink(self, call_deadline_s: float = SHORT_S, transaction_timeout_s: float = 60.0) -> KafkaSink:
        made = KafkaSink(
            self.bootstrap,
            f"s-{self.name}",
            call_deadline_s=call_deadline_s,
            transaction_timeout_s=transaction_timeout_s,
            security={"proxy_url": self.proxy.url},
        )
        self._sinks.append(made)
        return made

    def offsets(self, offset: int) -> dict[Partition, CommittedOffset]:
        return {self.place: CommittedOffset(offset, "m")}

    def committed(self) -> CommittedOffset | None:
        return self.source.committed([self.place])[self.place]

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()
        self.source.close()
        self.proxy.close()


@pytest.fixture
def rig(kafka_bootstrap: str) -> Iterator[Rig]:
    """On the run's broker."""
    made = Rig(kafka_bootstrap)
    yield made
    made.close()


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


def test_without_a_broker_the_constructor_says_so_in_time() -> None:
    """The worker tries again for as long as it takes; each try must end and leave no thread behind."""
    before = threading.active_count()
    started = time.monotonic()
    with pytest.raises(BrokerAway):
        KafkaSink(f"127.0.0.1:{free_port()}", "s", call_deadline_s=SHORT_S)
    assert time.monotonic() - started < SHORT_S + 2
    until(lambda: threading.active_count() <= before)


def test_a_broker_killed_before_the_offsets_is_survived(own_rig: Rig, broker: EmbeddedKafka) -> None:
    """The client would wait for ever (rule 4): the call ends in time, and after a rebuild work goes on (rule 5)."""
    sink = own_rig.sink()
    sink.commit(own_rig.offsets(1), own_rig.note)
    sink.add(own_rig.outputs, None, b"first try")
    broker.kill()
    started = time.monotonic()
    with pytest.raises(OutcomeUnknown):
        sink.commit(own_rig.offsets(2), own_rig.note)
    assert time.monotonic() - started < SHORT_S + 1
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
    place = Partition(own_rig.outputs, 0)
    for attempt in range(2):  # twice: a timeout is not a rival, however often it strikes
        sink.add(own_rig.outputs, None, b"late", 0)
        sink.commit({}, own_rig.note)
        start = own_rig.source.end_offsets([place])[place]
        for _ in range(300):
            sink.add(own_rig.outputs, None, b"x" * 1000, 0)
        until(lambda start=start: own_rig.source.end_offsets([place])[place] > start)
        with pytest.raises(OutcomeUnknown):
            sink.commit(own_rig.offsets(attempt + 7), own_rig.note)
        rebuilt(sink)
        assert own_rig.committed() is None
    sink.commit(own_rig.offsets(1), own_rig.note)
    assert visible(own_rig.bootstrap, own_rig.outputs) == [b"late", b"late"]


def test_a_lost_reply_to_the_offsets_is_unknown(rig: Rig) -> None:
    """The group may hold the offsets as pending; only the rebuild ends the transaction."""
    sink = rig.sink()
    sink.add(rig.outputs, None, b"first try")
    rig.proxy.lose_reply(TXN_OFFSET_COMMIT)
    with pytest.raises(OutcomeUnknown):
        sink.commit(rig.offsets(2), rig.note)
    rebuilt(sink)
    assert rig.committed() is None
    sink.add(rig.outputs, None, b"second try")
    sink.commit(rig.offsets(2), rig.note)
    assert visible(rig.bootstrap, rig.outputs) == [b"second try"]


def test_a_zombie_in_mid_transaction_does_not_fence_its_successor(rig: Rig) -> None:
    """The client renews the epoch of a fenced producer by itself, and would fence whoever replaced it (rule 8)."""
    zombie = rig.sink(call_deadline_s=5.0)
    zombie.commit(rig.offsets(1), rig.note)
    successor = rig.sink(call_deadline_s=5.0)
    for _ in range(1000):
        zombie.add(rig.outputs, None, b"zombie")
    successor.add(rig.outputs, None, b"successor")
    with pytest.raises(OutcomeUnknown):
        zombie.commit(rig.offsets(9), rig.note)
    successor.commit(rig.offsets(2), rig.note)
    successor.add(rig.outputs, None, b"goes on")
    successor.commit(rig.offsets(3), rig.note)
    assert rig.committed() == CommittedOffset(3, "m")
    assert visible(rig.bootstrap, rig.outputs) == [b"successor", b"goes on"]


def test_a_record_over_the_limit_stops_the_worker_instead_of_being_tried_for_ever(rig: Rig) -> None:
    """Tried again it would fail again: a person has to raise a limit."""
    sink = rig.sink(call_deadline_s=5.0)
    with pytest.raises(ConfigurationError, match="over the limit"):
        sink.add(rig.outputs, None, bytes(2_000_000))
    small = f"small-{rig.name}"
    create_topics(rig.bootstrap, {small: 1}, {"max.message.bytes": "2000"})
    sink.add(small, None, bytes(100_000))
    with pytest.raises(ConfigurationError, match="MessageSizeTooLarge"):
        sink.commit(rig.offsets(1), rig.note)
    assert rig.committed() is None


def test_adding_does_not_wait_for_the_broker(own_rig: Rig, broker: EmbeddedKafka) -> None:
    """The loop goes on while Kafka is away; the commit is where it waits."""
    sink = own_rig.sink()
    broker.kill()
    started = time.monotonic()
    for _ in range(5000):
        sink.add(own_rig.outputs, b"k", b"v" * 100)
    assert time.monotonic() - started < SHORT_S
    with pytest.raises(OutcomeUnknown):
        sink.commit(own_rig.offsets(1), own_rig.note)
    broker.start()
    rebuilt(sink)


def test_thousands_of_outputs_arrive_in_order_and_once(rig: Rig) -> None:
    """Parcels, batches and retries must not show in what a reader sees."""
    sink = rig.sink(call_deadline_s=10.0)
    values = [b"%06d" % number for number in range(5000)]
    for first in range(0, 5000, 1000):
        for value in values[first : first + 1000]:
            sink.add(rig.outputs, b"k", value)
        sink.commit(rig.offsets(first + 1000), rig.note)
    assert visible(rig.bootstrap, rig.outputs) == values
