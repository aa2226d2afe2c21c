"""The benchmark's topics: made, filled at once or at a rate, read plainly, removed."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from multiprocessing.context import SpawnProcess

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

from pipeline.bench.traffic import Message, Traffic
from pipeline.records import Partition

TICK_S = 0.005

Bootstrap = str | Sequence[str]


def fill(bootstrap: Bootstrap, topic: str, messages: Iterator[Message], count: int) -> None:
    """Produce ``count`` messages as fast as the client does."""
    with _producer(bootstrap) as producer:
        for message in islice(messages, count):
            producer.send(topic, message.value, message.key, partition=message.partition)


@contextmanager
def offering(
    bootstrap: Bootstrap, topic: str, traffic: Traffic, first_round: int, rate: float, count: int
) -> Iterator[SpawnProcess]:
    """A process of its own that sends messages at an even rate; ended when the block is left.

    Parameters
    ----------
    first_round
        Round of ``traffic`` to begin with: the topic holds those before.
    rate, count
        Messages/s, and how many.
    """
    process = multiprocessing.get_context("spawn").Process(
        target=_offer, args=(bootstrap, topic, traffic, first_round, rate, count), daemon=True
    )
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _offer(bootstrap: Bootstrap, topic: str, traffic: Traffic, first_round: int, rate: float, count: int) -> None:
    ready = list(islice(traffic.messages(first_round), count))
    with _producer(bootstrap) as producer:
        began, sent = time.monotonic(), 0
        while sent < len(ready):
            due = int(rate * (time.monotonic() - began))
            for message in ready[sent:due]:
                producer.send(topic, message.value, message.key, partition=message.partition)
            sent = max(sent, due)
            time.sleep(TICK_S)


@contextmanager
def _producer(bootstrap: Bootstrap) -> Iterator[KafkaProducer]:
    producer = KafkaProducer(bootstrap_servers=bootstrap, linger_ms=5, batch_size=64 * 1024, metrics_enabled=False)
    try:
        yield producer
        producer.flush()
    finally:
        producer.close()


def plain_messages(bootstrap: Bootstrap, first: Mapping[Partition, int]) -> Generator[bytes, None, None]:
    """Values of these partitions from these offsets on, one at a time, as the client hands them out."""
    with _plain_consumer(bootstrap, first) as consumer:
        for record in consumer:
            yield record.value


def timestamps_ms(bootstrap: Bootstrap, partition: Partition, begin: int, end: int) -> list[int]:
    """Kafka timestamps of the records from offset ``begin`` to before ``end``."""
    found: list[int] = []
    with _plain_consumer(bootstrap, {partition: begin}) as consumer:
        while len(found) < end - begin:
            for records in consumer.poll(timeout_ms=1000).values():
                found.extend(record.timestamp for record in records)
    return found[: end - begin]


@contextmanager
def _plain_consumer(bootstrap: Bootstrap, first: Mapping[Partition, int]) -> Iterator[KafkaConsumer]:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, group_id=None, metrics_enabled=False)
    try:
        consumer.assign([TopicPartition(*partition) for partition in first])
        for partition, offset in first.items():
            consumer.seek(TopicPartition(*partition), offset)
        yield consumer
    finally:
        consumer.close()


def remove(bootstrap: Bootstrap, topics: Sequence[str], groups: Sequence[str]) -> None:
    """Remove topics and consumer groups."""
    client = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        client.delete_topics(list(topics))
        client.delete_groups(list(groups))
    finally:
        client.close()
