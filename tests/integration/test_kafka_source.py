"""What only a real Kafka shows about the source: deadlines, rebalances, answers that come too late."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

import pytest

from pipeline.errors import BrokerAway, CommitRefused, OutcomeUnknown
from pipeline.records import Partition
from pipeline.servers import create_topics, free_port
from pipeline.sinks.kafka import KafkaSink
from pipeline.sources.base import CommittedOffset
from pipeline.sources.kafka import KafkaSource
from tests.fakes import END_TXN, OFFSET_FETCH, LossyProxy
from tests.real_kafka import SHORT_S, joined, unique, until

pytestmark = pytest.mark.integration


@pytest.fixture
def topic(kafka_bootstrap: str) -> str:
    """A topic of two partitions, this test's own."""
    name = unique("t")
    create_topics(kafka_bootstrap, {name: 2})
    return name


@pytest.fixture
def group() -> str:
    """A group of this test's own."""
    return unique("g")


@pytest.fixture
def proxy() -> Iterator[LossyProxy]:
    """A network that loses what it is told to."""
    lossy = LossyProxy()
    yield lossy
    lossy.close()


def test_without_a_broker_the_constructor_says_so_in_time(group: str) -> None:
    """The worker tries again for as long as it takes; each try must end and leave no thread behind."""
    before = threading.active_count()
    started = time.monotonic()
    with pytest.raises(BrokerAway):
        KafkaSource(f"127.0.0.1:{free_port()}", group, ["t"], call_deadline_s=SHORT_S)
    assert time.monotonic() - started < SHORT_S + 2
    until(lambda: threading.active_count() <= before)


def test_members_that_poll_briefly_still_join(kafka_bootstrap: str, topic: str, group: str) -> None:
    """The client forgets a join that outlasts a poll; a busy worker, polling without waiting, would own nothing."""
    first, second = (KafkaSource(kafka_bootstrap, group, [topic], session_timeout_s=6.0) for _ in range(2))
    mine = joined(first, [second], size=1, timeout_s=0.0)
    theirs = joined(second, [first], size=1, timeout_s=0.0)
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
    note = joined(stuck, size=2)
    taken = joined(heir, size=2)
    assert taken.generation > note.generation
    assert stuck.assignment() is note
    with pytest.raises(CommitRefused):
        sink.commit({Partition(topic, 0): CommittedOffset(5, "stuck")}, note)
    assert heir.committed([Partition(topic, 0)]) == {Partition(topic, 0): None}
    stuck.poll(0.05, 10)
    assert stuck.assignment() is not note
    for each in (heir, stuck, sink):
        each.close()


def test_an_answer_that_came_too_late_is_not_used(
    kafka_bootstrap: str, topic: str, group: str, proxy: LossyProxy
) -> None:
    """The client answers a lookup with an older one that had timed out: outputs would be emitted twice from there."""
    place = Partition(topic, 0)
    source = KafkaSource(kafka_bootstrap, group, [topic], call_deadline_s=SHORT_S, security={"proxy_url": proxy.url})
    sink = KafkaSink(kafka_bootstrap, f"s-{group}")
    note = joined(source, size=2)
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
    note = joined(source, size=2)
    proxy.lose_request(END_TXN)
    with pytest.raises(OutcomeUnknown):
        sink.commit({Partition(topic, 0): CommittedOffset(1, "")}, note)
    caplog.clear()
    with caplog.at_level(logging.ERROR), pytest.raises(BrokerAway):
        source.committed([Partition(topic, 0)])
    assert not [record for record in caplog.records if record.name == "kafka.coordinator.consumer"]
    source.close()
    sink.close()
