"""The Source protocol and its promises: where records come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.records import Partition, Record


@dataclass(frozen=True, slots=True, eq=False)
class GroupNote:
    """The group's word on what is ours, noted inside the assignment callback (protocol.md rule 1).

    Two notes are equal only if they are the same object: a member that rejoins can be given the same generation and
    partitions again, and has forgotten its positions all the same.
    ``metadata`` is the client's own object, handed back unopened with the offsets of a transaction.
    """

    generation: int
    metadata: Any
    partitions: frozenset[Partition]


@dataclass(frozen=True, slots=True)
class CommittedOffset:
    """A committed offset and the string that was committed with it."""

    offset: int
    metadata: str


class Source(Protocol):
    """Records of the partitions a group assigns to this worker.

    All calls come from one thread, and none of them from a callback. Calls that ask a server raise
    :class:`pipeline.errors.BrokerAway` when it does not answer in time; the same call may be repeated.
    """

    def poll(self, timeout_s: float, max_records: int) -> Mapping[Partition, Sequence[Record]]:
        """Records in offset order, committed ones only; empty after ``timeout_s``.

        Never raises for a rebalance: that is noted, and :meth:`assignment` tells. Records of a partition
        that was revoked meanwhile may still come; the caller compares with its own assignment.

        Raises
        ------
        OffsetsGone
            A position is no longer in the log; ``partitions`` names which.
        BrokerAway
            No server has been there for a while; said from time to time, poll on.
        """
        ...

    def assignment(self) -> GroupNote | None:
        """The last noted assignment; ``None`` between a revocation and the next assignment.

        Partitions newly assigned are paused, at a placeholder position: seek and resume them.
        """
        ...

    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, CommittedOffset | None]:
        """Stable committed offsets (waits for pending transactions); ``None`` where there is none."""
        ...

    def beginning_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """First offsets still in the log."""
        ...

    def end_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """Next offsets to be written, as a read-committed reader sees them."""
        ...

    def offset_at(self, partition: Partition, time_ms: int) -> int:
        """Offset of the first record whose Kafka timestamp is not before ``time_ms``; the end where there is none."""
        ...

    def position(self, partition: Partition) -> int | None:
        """Offset of the next record :meth:`poll` would return, if known without asking a server."""
        ...

    def seek(self, partition: Partition, offset: int) -> None:
        """Continue at ``offset``."""
        ...

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Keep membership, return no records of these."""
        ...

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Return records of these again."""
        ...

    def close(self) -> None:
        """Leave the group and close connections. A second call does nothing."""
        ...
