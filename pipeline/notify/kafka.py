"""The notifier's place in the alerts topic: offsets committed under a group's name, without membership.

One process reads all partitions, so there is nothing to share out, and a receiver that takes its time costs no
membership. A second process of the same group would tell everything twice.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Self

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors

from pipeline.clock import Clock
from pipeline.kafka import connect, mapped
from pipeline.notify.notifier import Progress
from pipeline.records import Partition

logger = logging.getLogger(__name__)

RENEW_S = 86_400.0
"""A broker forgets what a group without members has not committed for offsets.retention.minutes, by default a week."""


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
        """Where to go on in each partition; where nothing was committed, at its end, which is committed now.

        A partition without a place in a topic where others have one was added since, and begins at its beginning.
        """
        self._consumer.assign([TopicPartition(*partition) for partition in ends])
        known = {partition: offset for partition in ends if (offset := self._committed(partition)) is not None}
        begun = {partition.topic for partition in known}
        new = {p: 0 if p.topic in begun else end for p, end in ends.items() if p not in known}
        self._commit(new)
        return known | new

    def in_log(self, positions: Mapping[Partition, int], beginning: Mapping[Partition, int]) -> dict[Partition, int]:
        """Positions, none below the beginning of the log; what is passed over is said once, and committed."""
        for partition, offset in positions.items():
            first = beginning[partition]
            if offset < first:
                # At most: markers of transactions take offsets too.
                logger.warning(
                    "at most %d records passed over, no longer in the log: topic=%s partition=%d",
                    first - offset,
                    *partition,
                )
                self.commit(partition, first)
        return {partition: max(offset, beginning[partition]) for partition, offset in positions.items()}

    def commit(self, partition: Partition, next_offset: int) -> None:
        """Everything before ``next_offset`` is done with."""
        self._commit({partition: next_offset})

    def _committed(self, partition: Partition) -> int | None:
        try:
            offset = self._consumer.committed(TopicPartition(*partition), timeout_ms=self._deadline_ms)
        except kafka_errors.KafkaError as exc:
            raise mapped(exc, f"committed offset of {partition}") from exc
        return None if offset is None else int(offset)

    def _commit(self, offsets: Mapping[Partition, int]) -> None:
        """In one request: of a first start's places, half would make the other partitions look added since."""
        asked = {TopicPartition(*partition): OffsetAndMetadata(offset, "", -1) for partition, offset in offsets.items()}
        try:
            self._consumer.commit(asked, timeout_ms=self._deadline_ms)
        except kafka_errors.KafkaError as exc:
            raise mapped(exc, f"commit of {', '.join(map(str, offsets))}") from exc


class Renewed:
    """Progress that is committed again at the start and once a day, so that a quiet partition's is not forgotten.

    Parameters
    ----------
    positions
        Where each partition is read from.

    Raises
    ------
    BrokerAway
        From every call, as ``progress`` does; nothing is noted then.
    """

    def __init__(self, progress: Progress, positions: Mapping[Partition, int], clock: Clock) -> None:
        self._progress, self._positions, self._clock = progress, dict(positions), clock
        self._due_s = clock.monotonic()

    def commit(self, partition: Partition, next_offset: int) -> None:
        """Everything before ``next_offset`` is done with."""
        self._progress.commit(partition, next_offset)
        self._positions[partition] = next_offset
        self.renew()  # a receiver that is away can hold one batch up for days

    def renew(self) -> None:
        """Commit all positions again where a day has passed."""
        if self._clock.monotonic() < self._due_s:
            return
        for partition, offset in self._positions.items():
            self._progress.commit(partition, offset)
        self._due_s = self._clock.monotonic() + RENEW_S
