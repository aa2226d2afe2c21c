"""The naive loop's states in Redis, and the removal of what a benchmark leaves there."""

from __future__ import annotations

from collections.abc import Iterable

import redis

from pipeline.state.base import StateKey


class RedisHiddenStates:
    """Hidden states of a stream as one value, so that a stream costs one GET and one SET."""

    def __init__(self, url: str, prefix: str) -> None:
        self._client = redis.Redis.from_url(url)
        self._prefix = prefix

    def get(self, stream_id: str) -> bytes | None:
        """One GET."""
        found: bytes | None = self._client.get(self._prefix + stream_id)  # type: ignore[assignment]
        return found

    def set(self, stream_id: str, hidden: bytes) -> None:
        """One SET."""
        self._client.set(self._prefix + stream_id, hidden)

    def close(self) -> None:
        """Remove everything, close the connection."""
        for key in self._client.scan_iter(self._prefix + "*", count=1000):
            self._client.unlink(key)
        self._client.close()


def forget(url: str, keys: Iterable[StateKey]) -> None:
    """Remove these states."""
    with redis.Redis.from_url(url) as client:
        for key in keys:
            client.unlink(str(key))
