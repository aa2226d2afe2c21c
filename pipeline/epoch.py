"""Milliseconds since the epoch, and the times they stand for; a time that names no zone is UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pipeline.errors import ConfigurationError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)


def since_epoch(time: datetime) -> timedelta:
    """How long after the epoch a time is."""
    return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)) - EPOCH


def iso_time(time_ms: int) -> str:
    """A time as people read it: ISO 8601, UTC, ms."""
    text = (EPOCH + time_ms * MILLISECOND).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def parse_time(text: str) -> int:
    """Milliseconds since the epoch of an ISO 8601 time.

    Raises
    ------
    ConfigurationError
        It is no time.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError as exc:
        raise ConfigurationError(f"{text!r} is no time; write it as 2026-03-01T12:00 (UTC)") from exc
    return since_epoch(time) // MILLISECOND
