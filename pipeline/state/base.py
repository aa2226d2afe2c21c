"""Snapshots and the StateStore protocol: what is remembered between messages, and its promises."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.records import Partition

HEADER = np.dtype(
    [
        ("position", "<i8"),
        ("last_event_ms", "<i8"),
        ("last_record_ms", "<i8"),
        ("onset_offset", "<i8"),
        ("onset_index", "<i8"),
        ("onset_ms", "<i8"),
        ("partial_left", "<i8"),
    ]
)
"""The integers of a snapshot, which float32 cannot hold.

position: next offset to absorb, the row is the fold of the stream's records below it. last_event_ms: event time of the
last folded observation. last_record_ms: Kafka timestamp of the last absorbed record. onset_offset, onset_index,
onset_ms: where the open alert began (record, observation within it, event time). partial_left: valid observations still
to come until the stream has warmed up after an inexact rebuild. -1 stands for "none"; partial_left is then 0.
"""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that is remembered about one stream: its rows and a small header.

    Attributes
    ----------
    layout
        Id of the row layout (16 hex digits).
    model_version
        Version under which the row was last folded (12 hex digits).
    header
        One element of :data:`HEADER`.
    rows
        float32 vector: the F feature rows side by side, then the entity row.
    """

    layout: str
    model_version: str
    header: np.void
    rows: npt.NDArray[np.float32]


class StateKey(NamedTuple):
    """Names one partition's state in the store."""

    group: str
    partition: Partition
    incarnation: str

    def __str__(self) -> str:
        return f"tw:{{{self.group}:{self.partition.topic}:{self.partition.partition}}}:{self.incarnation}"


class Token(NamedTuple):
    """Who may write: the group's generation and random bytes (hex) drawn at each take (protocol.md rule 19)."""

    generation: int
    nonce: str


class Taken(NamedTuple):
    """What a take found: the watermark W (``None``: nothing saved yet, or all lost) and the sequence number."""

    watermark: int | None
    seq: int


class Load(NamedTuple):
    """One partition's share of a round trip of loads."""

    key: StateKey
    token: Token
    acknowledged_seq: int
    stream_ids: Sequence[str]


class StateStore(Protocol):
    """One hash per partition, fenced by a token, every write numbered (protocol.md rules 18 to 21).

    Values are opaque bytes (see ``state/codec.py``). Every call is atomic per key, takes one round trip and raises
    :class:`pipeline.errors.StoreAway` when no answer came: the call may or may not have happened. A limit of
    1000 snapshots and 1 MiB per call to the server is kept inside, except that one ``save`` is one call:
    its caller keeps within :attr:`max_save_rows` and :attr:`max_save_bytes`.
    """

    max_save_rows: int
    max_save_bytes: int

    def check(self) -> None:
        """Refuse a store that may drop keys by itself.

        Raises
        ------
        ConfigurationError
            ``maxmemory-policy`` is not ``noeviction``.
        """
        ...

    def take(self, key: StateKey, token: Token) -> Taken:
        """Become the only writer. Raises StaleToken when a newer generation has it."""
        ...

    def load_many(self, loads: Sequence[Load]) -> list[dict[str, bytes]]:
        """Saved values of the named streams, missing ones absent; one round trip for all partitions.

        Raises
        ------
        StaleToken
            A newer generation took one of the partitions; the error's ``partition`` names it.
        StateLost
            The store's sequence number is behind the acknowledged one, or the hash is gone, or the token differs.
        """
        ...

    def save(
        self,
        key: StateKey,
        token: Token,
        seq: int,
        rows: Mapping[str, bytes],
        deletions: Iterable[str],
        watermark: int | None,
        layout: str = "",
    ) -> int:
        """Write rows, deletions and the watermark as the successor of ``seq``; returns ``seq + 1``.

        A repeat of the same call after a lost reply is recognised by its number and changes nothing.

        Raises
        ------
        StaleToken, StateLost
            As in :meth:`load_many`.
        """
        ...

    def scan(self, key: StateKey, cursor: int, count: int) -> tuple[int, dict[str, bytes]]:
        """A slice of all saved streams, for sweeps and listings; cursor 0 starts and ends the scan. No token."""
        ...

    def peek(self, key: StateKey, stream_ids: Sequence[str]) -> dict[str, bytes]:
        """Saved values of some streams, missing ones absent, for listings: whoever owns them. No token."""
        ...

    def keys(self, group: str) -> list[StateKey]:
        """All partition states of a group, for listings."""
        ...

    def close(self) -> None:
        """Close connections. A second call does nothing."""
        ...
