"""What commands say about topics, without knowing Kafka's client."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pipeline.errors import ConfigurationError

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
