"""Records of a consumer group's partitions, from memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from pipeline.errors import BrokerAway
from pipeline.memory import Displaced, Membership, MemoryBroker, Refused
from pipeline.records import Partition, Record
from pipeline.sources.base import CommittedOffset, GroupNote


class MemorySource:
    """A member of a group of a :class:`pipeline.memory.MemoryBroker` behind :class:`pipeline.sources.base.Source`.

    Joins with the first :meth:`poll`, and again with the next one after it was expelled. Never waits.

    Parameters
    ----------
    broker
        The world it lives in.
    group, topics
        The consumer group and what it reads.
    group_instance_id
        Makes this a static member.
    """

    def __init__(
        self, broker: MemoryBroker, group: str, topics: Iterable[str], group_instance_id: str | None = None
    ) -> None:
        self._broker = broker
        self._group = group
        self._topics = tuple(topics)
        self._instance_id = group_instance_id
        self._membership: Membership | None = None
        self._note: GroupNote | None = None
        self._positions: dict[Partition, int] = {}
        self._paused: set[Partition] = set()
        self._unplaced: set[Partition] = set()
        self._closed = False

    def on_assigned(self, note: GroupNote) -> None:
        """Called by the broker at each rebalance: everything paused, at a placeholder."""
        self._membership = note.metadata
        self._positions = dict.fromkeys(note.partitions, 0)
        self._paused = set(note.partitions)
        self._unplaced = set(note.partitions)
        self._note = note

    def poll(self, timeout_s: float, max_records: int) -> Mapping[Partition, Sequence[Record]]:
        """See :meth:`pipeline.sources.base.Source.poll`."""
        self._broker.interrupt("poll")
        if self._broker.away:
            return {}
        self._join_where_needed()
        records: dict[Partition, Sequence[Record]] = {}
        left = max_records
        for partition in sorted(self._positions.keys() - self._paused):
            batch = list(islice(self._broker.read(partition, self._positions[partition]), left))
            if batch:
                records[partition] = batch
                self._positions[partition] = batch[-1].offset + 1
                left -= len(batch)
            if left == 0:
                break
        return records

    def assignment(self) -> GroupNote | None:
        """See :meth:`pipeline.sources.base.Source.assignment`."""
        return self._note

    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, CommittedOffset | None]:
        """See :meth:`pipeline.sources.base.Source.committed`; a pending transaction raises BrokerAway at once."""
        self._ask("committed")
        return {partition: self._broker.committed(self._group, partition) for partition in partitions}

    def beginning_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """See :meth:`pipeline.sources.base.Source.beginning_offsets`."""
        self._ask("beginning_offsets")
        return {partition: self._broker.bounds(partition)[0] for partition in partitions}

    def end_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """See :meth:`pipeline.sources.base.Source.end_offsets`."""
        self._ask("end_offsets")
        return {partition: self._broker.bounds(partition)[1] for partition in partitions}

    def offset_at(self, partition: Partition, time_ms: int) -> int:
        """See :meth:`pipeline.sources.base.Source.offset_at`."""
        self._ask("offset_at")
        start, end = self._broker.bounds(partition)
        stamped = (record.offset for record in self._broker.read(partition, start) if record.timestamp >= time_ms)
        return next(stamped, end)

    def position(self, partition: Partition) -> int | None:
        """See :meth:`pipeline.sources.base.Source.position`."""
        return self._positions.get(partition)

    def seek(self, partition: Partition, offset: int) -> None:
        """Continue at ``offset``; does nothing where the partition is no longer assigned."""
        if partition in self._positions:
            self._positions[partition] = offset
            self._unplaced.discard(partition)

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Return no records of these."""
        self._paused.update(self._positions.keys() & set(partitions))

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Return records of these again, except of those assigned anew since they were sought."""
        self._paused.difference_update(set(partitions) - self._unplaced)

    def close(self) -> None:
        """Leave the group; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._note = None
        if self._membership is not None:
            self._broker.expel(self._group, self._membership.member_id)

    def expel(self) -> None:
        """Let this member's session run out: the group goes on without it, and it does not know yet."""
        if self._membership is not None:
            self._broker.expel(self._group, self._membership.member_id)

    def _join_where_needed(self) -> None:
        if self._membership is not None:
            try:
                self._broker.check_member(self._membership)
                return
            except Displaced:
                return  # a static member whose place was taken is not told: it goes on reading
            except Refused:
                self._note = None
        self._broker.join(self._group, self, self._topics, self._instance_id)

    def _ask(self, step: str) -> None:
        self._broker.interrupt(step)
        if self._broker.away:
            raise BrokerAway(f"{step}: the broker is away")
