"""Which versions live histories name: those must be kept (protocol.md rule 11)."""

from __future__ import annotations

from typing import Protocol

from pipeline.errors import BrokerAway, DecodeError
from pipeline.partition import from_offset
from pipeline.records import Partition
from pipeline.sources.base import CommittedOffset


class Offsets(Protocol):
    """Who knows what a group committed last."""

    def committed(self, group: str) -> dict[Partition, CommittedOffset]:
        """For every partition it ever committed; raises BrokerAway."""
        ...


def versions_in_use(cluster: Offsets, group: str) -> set[str] | None:
    """Versions that a replay of this group's partitions may need; ``None`` where Kafka does not say."""
    try:
        offsets = cluster.committed(group)
    except BrokerAway:
        return None
    found: set[str] = set()
    for offset in offsets.values():
        try:
            found.update(version for _, version in from_offset(offset).history)
        except DecodeError:
            continue  # not ours: start-up will begin anew there
    return found
