"""What commands say about topics, without knowing Kafka's client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from pipeline.errors import ConfigurationError
from pipeline.records import Partition, Record

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Offset:
    """A place in every partition of a topic, by number."""

    offset: int


@dataclass(frozen=True, slots=True)
class Instant:
    """A place in every partition of a topic: the first record with this Kafka timestamp, or a later one."""

    time_ms: int


Place = Offset | Instant


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


def parse_time(text: str) -> int:
    """Milliseconds since the epoch of an ISO 8601 time; UTC where no zone is given.

    Raises
    ------
    ConfigurationError
        It is no time.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError as exc:
        raise ConfigurationError(f"{text!r} is no time; write it as 2026-03-01T12:00 (UTC)") from exc
    return ((time if time.tzinfo is not None else time.replace(tzinfo=UTC)) - _EPOCH) // timedelta(milliseconds=1)


def parse_place(text: str) -> Place:
    """An offset, where it is a whole number, else a time.

    Raises
    ------
    ConfigurationError
        It is neither.
    """
    text = text.strip()
    return Offset(int(text)) if text.isdigit() else Instant(parse_time(text))
