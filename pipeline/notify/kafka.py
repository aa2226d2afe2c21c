"""The notifier's place in the alerts topic: offsets committed under a group's name, without membership.

One process reads all partitions, so there is nothing to share out, and a receiver that takes its time costs no
membership. A second process of the same group would tell everything twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors

from pipeline.kafka import connect, mapped
from pipeline.records import Partition


class Bookmark:
    """Committed offsets of one group.

    Parameters
    ----------
    options
        A client's, in kafka-python's names.

    Raises
    ------
    BrokerAway
        From every call: no answer within the deadline.
    """

    def __init__(self, options: Mapping[str, Any], group: str, deadline_s: float) -> None:
        self._deadline_ms = int(deadline_s * 1000)
        self._consumer, _ = connect(KafkaConsumer, **options, group_id=group, enable_auto_commit=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close(autocommit=False)

    def committed(self, ends: Mapping[Partition, int]) -> dict[Partition, int]:
        """Where to go on in each partition; where nothing was committed, at its end, which is committed now."""
        self._consumer.assign([TopicPartition(*partition) for partition in ends])
        found = {}
        for partition, end in ends.items():
            try:
                offset = self._consumer.committed(TopicPartition(*partition), timeout_ms=self._deadline_ms)
            except kafka_errors.KafkaError as exc:
                raise mapped(exc, f"committed offset of {partition}") from exc
            if offset is None:
                self.commit(partition, end)
            found[partition] = end if offset is None else int(offset)
        return found

    def commit(self, partition: Partition, next_offset: int) -> None:
        """Everything before ``next_offset`` is done with."""
        try:
            self._consumer.commit(
                {TopicPartition(*partition): OffsetAndMetadata(next_offset, "", -1)}, timeout_ms=self._deadline_ms
            )
        except kafka_errors.KafkaError as exc:
            raise mapped(exc, f"commit of {partition}") from exc
