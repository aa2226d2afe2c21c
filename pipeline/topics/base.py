"""What commands say about topics, without knowing Kafka's client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from pipeline.records import Partition, Record


@dataclass(frozen=True, slots=True)
class Offset:
    """A place in every partition of a topic, by number."""

    offset: int


@dataclass(frozen=True, slots=True)
class Instant:
    """A place in every partition of a topic: the first record with this Kafka timestamp, or a later one."""

    time_ms: int


Place = Offset | Instant


class Progress(Protocol):
    """Remembers how far topics were read, for whoever reads on after this process."""

    def commit(self, partition: Partition, next_offset: int) -> None:
        """Everything before ``next_offset`` is done with. Raises BrokerAway: then it will be read again."""
        ...


class Follower(Protocol):
    """Reads a topic as it grows; every call may raise :class:`pipeline.errors.BrokerAway`."""

    def at(self, place: Place) -> dict[Partition, int]:
        """Where a place lies in each partition."""
        ...

    def end(self) -> dict[Partition, int]:
        """One past the last committed record of each partition; asks the brokers."""
        ...

    def has_reached(self, ends: Mapping[Partition, int]) -> bool:
        """Whether everything before ``ends`` has been read."""
        ...

    def read(
        self, begin: Mapping[Partition, int], end: Mapping[Partition, int] | None = None
    ) -> Iterator[list[tuple[Partition, Record]]]:
        """Records from ``begin`` on, some at a time; without ``end`` for ever, with empty lists while nothing comes."""
        ...


def by_partition(records: Iterable[tuple[Partition, Record]]) -> dict[Partition, list[Record]]:
    """Each partition's records, in their order."""
    found: dict[Partition, list[Record]] = {}
    for partition, record in records:
        found.setdefault(partition, []).append(record)
    return found
