"""Reading a topic as it grows, against a real Kafka."""

from __future__ import annotations

import pytest

from pipeline.records import Partition
from pipeline.servers import create_topics
from pipeline.topics.kafka import Cluster
from tests.real_kafka import add_partitions, produce, unique, until

pytestmark = pytest.mark.integration


def test_partitions_added_while_a_topic_is_read_are_read_from_their_beginning(kafka_bootstrap: str) -> None:
    """Streams move to them: unread they would look silent to the monitor, and their alerts would not be told."""
    topic = unique("growing")
    create_topics(kafka_bootstrap, {topic: 1})
    produce(kafka_bootstrap, topic, [b"passed over", b"a"])
    with Cluster(kafka_bootstrap, notice_s=0.2).reader(topic) as reader:
        records, found = reader.read({Partition(topic, 0): 1}), list[tuple[int, bytes | None]]()

        def has_come(count: int) -> bool:
            found.extend((partition.partition, record.value) for partition, record in next(records))
            return len(found) == count

        until(lambda: has_come(1))
        add_partitions(kafka_bootstrap, topic, 3)
        produce(kafka_bootstrap, topic, [b"b"], partition=2)
        until(lambda: has_come(2))
        produce(kafka_bootstrap, topic, [b"c"])
        until(lambda: has_come(3))
        assert found == [(0, b"a"), (2, b"b"), (0, b"c")]
        assert reader.end() == {Partition(topic, 0): 3, Partition(topic, 1): 0, Partition(topic, 2): 1}
        assert reader.has_reached(reader.end())
        assert reader.behind() == 0
        produce(kafka_bootstrap, topic, [b"d", b"e"])
        assert reader.behind() == 2
