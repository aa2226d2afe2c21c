"""The Sink protocol and its promises: where outputs and input offsets leave together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from pipeline.records import Partition
from pipeline.sources.base import CommittedOffset, GroupNote

MAX_METADATA_BYTES = 4096
"""A broker's offset.metadata.max.bytes: above it the producer dies (protocol.md rule 10)."""


class Sink(Protocol):
    """Outputs that become visible with the input offsets, or not at all.

    All calls come from one thread. A call returns within its deadline; past it the outcome is unknown.
    """

    def add(self, topic: str, key: bytes | None, value: bytes, partition: int | None = None) -> None:
        """Put one record into the open transaction, opening it where there is none. Does not wait for the broker.

        Raises
        ------
        OutcomeUnknown
            The producer can no longer be used; call :meth:`rebuild`.
        """
        ...

    def commit(self, offsets: Mapping[Partition, CommittedOffset], note: GroupNote) -> None:
        """Flush, check every delivery, send the offsets under ``note``, commit: all or nothing.

        Returning means that everything added since the last commit, and the offsets, are visible.
        Opens a transaction where there is none, so that offsets can be committed alone.

        Raises
        ------
        CommitRefused
            The group refused the offsets; everything added was aborted. Drop all work and start again.
        OutcomeUnknown
            Neither success nor failure; call :meth:`rebuild`, then start every partition again.
        WorkerFenced
            A live process has this worker's name.
        """
        ...

    def abort(self) -> None:
        """Forget everything added since the last commit. Does nothing where no transaction is open.

        Raises
        ------
        OutcomeUnknown
            The producer can no longer be used; call :meth:`rebuild`.
        """
        ...

    def rebuild(self) -> None:
        """A new producer under the same transactional id; what was open is committed or aborted when this returns.

        Raises
        ------
        BrokerAway
            Not now; call again.
        """
        ...

    def close(self) -> None:
        """Close without waiting for anything uncommitted. A second call does nothing."""
        ...


def check_metadata(offsets: Mapping[Partition, CommittedOffset]) -> None:
    """Refuse offsets with more metadata than a broker takes.

    Raises
    ------
    ValueError
        One of them has.
    """
    for partition, committed in offsets.items():
        if len(committed.metadata.encode()) > MAX_METADATA_BYTES:
            raise ValueError(f"metadata of {partition} is over {MAX_METADATA_BYTES} bytes: {committed.metadata!r}")
