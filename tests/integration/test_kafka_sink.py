"""What only a real Kafka shows about the sink: lost replies, limits, zombies."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from pipeline.errors import BrokerAway, ConfigurationError, OutcomeUnknown
from pipeline.servers import create_topics, free_port
from pipeline.sinks.kafka import PARCEL_RECORDS, KafkaSink
from pipeline.sources.base import CommittedOffset
from tests.fakes import TXN_OFFSET_COMMIT
from tests.real_kafka import SHORT_S, Rig, rebuilt, unique, until, visible, written

pytestmark = pytest.mark.integration


@pytest.fixture
def rig(kafka_bootstrap: str) -> Iterator[Rig]:
    """On the run's broker."""
    made = Rig(kafka_bootstrap)
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
    for _ in range(PARCEL_RECORDS):
        zombie.add(rig.outputs, None, b"zombie")
    until(lambda: written(rig.bootstrap, rig.outputs) == PARCEL_RECORDS)
    successor = rig.sink(call_deadline_s=5.0)
    for _ in range(PARCEL_RECORDS):
        successor.add(rig.outputs, None, b"successor")
    until(
        lambda: written(rig.bootstrap, rig.outputs) == 2 * PARCEL_RECORDS + 1
    )  # and the marker that ends the zombie's
    for _ in range(PARCEL_RECORDS):
        zombie.add(rig.outputs, None, b"zombie")
    with pytest.raises(OutcomeUnknown):
        zombie.commit(rig.offsets(9), rig.note)
    successor.commit(rig.offsets(2), rig.note)
    assert rig.committed() == CommittedOffset(2, "m")
    assert visible(rig.bootstrap, rig.outputs) == [b"successor"] * PARCEL_RECORDS


def test_a_record_over_the_limit_stops_the_worker_instead_of_being_tried_for_ever(rig: Rig) -> None:
    """Tried again it would fail again: a person has to raise a limit."""
    sink = rig.sink(call_deadline_s=5.0)
    with pytest.raises(ConfigurationError, match="over the limit"):
        sink.add(rig.outputs, None, bytes(2_000_000))
    small = unique("small")
    create_topics(rig.bootstrap, {small: 1}, {"max.message.bytes": "2000"})
    sink.add(small, None, bytes(100_000))
    with pytest.raises(ConfigurationError, match="MessageSizeTooLarge"):
        sink.commit(rig.offsets(1), rig.note)
    assert rig.committed() is None


def test_thousands_of_outputs_arrive_in_order_and_once(rig: Rig) -> None:
    """Parcels, batches and retries must not show in what a reader sees."""
    sink = rig.sink(call_deadline_s=10.0)
    values = [b"%06d" % number for number in range(5000)]
    for first in range(0, 5000, 1000):
        for value in values[first : first + 1000]:
            sink.add(rig.outputs, b"k", value)
        sink.commit(rig.offsets(first + 1000), rig.note)
    assert visible(rig.bootstrap, rig.outputs) == values
