"""A Kafka in a dictionary: logs, transactions, consumer groups and committed offsets, for one thread.

What :class:`MemoryBroker` promises is what the worker relies on in Kafka, markers in the log and fencing included; the
same list of promises is run over both. It adds what Kafka cannot offer: whatever goes wrong goes wrong exactly where a
script says so (:attr:`MemoryBroker.interrupt`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from pipeline.errors import BrokerAway, OffsetsGone
from pipeline.records import Partition, StoredRecord
from pipeline.sources.base import CommittedOffset, GroupNote


class Membership(NamedTuple):
    """What a note's ``metadata`` is here: the identity a commit is checked against."""

    group: str
    generation: int
    member_id: str
    instance_id: str | None


class Fenced(Exception):
    """A newer producer has the transactional id, or the transaction ran into its timeout."""


class Refused(Exception):
    """The group does not know this member or generation."""


class Displaced(Exception):
    """Another member has this group instance id."""


class Listener(Protocol):
    """A source as the broker sees it."""

    def on_assigned(self, note: GroupNote) -> None:
        """Take note; called whenever the group rebalances, as Kafka's callbacks are."""
        ...


@dataclass(slots=True)
class Transaction:
    """An open or ended transaction."""

    state: str = "open"
    partitions: set[Partition] = field(default_factory=set)
    offsets: dict[tuple[str, Partition], CommittedOffset] = field(default_factory=dict)


@dataclass(slots=True)
class _Entry:
    record: StoredRecord | None  # None: the marker that ends a transaction
    transaction: Transaction | None


@dataclass(slots=True)
class _Log:
    start: int = 0
    entries: list[_Entry] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.start + len(self.entries)

    @property
    def stable_end(self) -> int:
        for index, entry in enumerate(self.entries):
            if entry.transaction is not None and entry.transaction.state == "open":
                return self.start + index
        return self.end


@dataclass(slots=True)
class _Member:
    listener: Listener
    instance_id: str | None
    topics: frozenset[str]
    partitions: frozenset[Partition] = frozenset()


@dataclass(slots=True)
class _Group:
    generation: int = 0
    members: dict[str, _Member] = field(default_factory=dict)
    offsets: dict[Partition, CommittedOffset] = field(default_factory=dict)


@dataclass(slots=True)
class _Slot:
    epoch: int = 0
    transaction: Transaction | None = None


class MemoryBroker:
    """Topics, groups and transactions of one in-memory cluster.

    Attributes
    ----------
    away
        While true, every call that asks the broker fails as if nobody answered.
    interrupt
        Called with the name of each step before it happens (``poll``, ``committed``, ``add``, ``offsets``,
        ``commit``, ``committed transaction``, ``abort``, ``rebuild``). It may change the world, set ``away``, or raise
        an error of its own: the process dies here.
    """

    def __init__(self) -> None:
        self.away = False
        self.interrupt: Callable[[str], None] = lambda step: None
        self._logs: dict[Partition, _Log] = {}
        self._groups: dict[str, _Group] = {}
        self._slots: dict[str, _Slot] = {}
        self._members_so_far = 0

    # Topics

    def create_topic(self, topic: str, partitions: int) -> None:
        """Add a topic; one that exists stays as it is."""
        for number in range(partitions):
            self._logs.setdefault(Partition(topic, number), _Log())

    def append(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None = None,
        timestamp_ms: int = 0,
        transaction: Transaction | None = None,
    ) -> int:
        """Write one record and return its offset; without a partition the key chooses."""
        if partition is None:
            partition = zlib.crc32(key or b"") % len(self.partitions_of(topic))
        place = Partition(topic, partition)
        log = self._logs[place]
        offset = log.end
        log.entries.append(_Entry(StoredRecord(offset, timestamp_ms, key, value), transaction))
        if transaction is not None:
            transaction.partitions.add(place)
        return offset

    def partitions_of(self, topic: str) -> list[Partition]:
        """All partitions of a topic, in order."""
        return sorted(place for place in self._logs if place.topic == topic)

    def truncate(self, partition: Partition, before: int) -> None:
        """Forget records below an offset, as retention does."""
        log = self._logs[partition]
        gone = max(0, min(before, log.end) - log.start)
        del log.entries[:gone]
        log.start += gone

    def cut(self, partition: Partition, end: int) -> None:
        """Lose the records from an offset on, as a broker does that had not written them to a disk yet."""
        log = self._logs[partition]
        del log.entries[max(0, end - log.start) :]

    def bounds(self, partition: Partition) -> tuple[int, int]:
        """First offset in the log, and where a read-committed reader stops."""
        log = self._logs[partition]
        return log.start, log.stable_end

    def read(self, partition: Partition, offset: int) -> Iterator[StoredRecord]:
        """Committed records from ``offset`` on, up to the first open transaction.

        Raises
        ------
        OffsetsGone
            ``offset`` is outside the log.
        """
        log = self._logs[partition]
        if not log.start <= offset <= log.end:
            raise OffsetsGone(f"{partition} has no offset {offset}", (partition,))
        for entry in log.entries[offset - log.start : max(0, log.stable_end - log.start)]:
            aborted = entry.transaction is not None and entry.transaction.state == "aborted"
            if entry.record is not None and not aborted:
                yield entry.record

    def visible(self, topic: str) -> list[StoredRecord]:
        """Everything a read-committed reader sees of a topic, by partition and offset."""
        return [record for place in self.partitions_of(topic) for record in self.read(place, self._logs[place].start)]

    # Groups

    def join(self, group: str, listener: Listener, topics: Iterable[str], instance_id: str | None) -> Membership:
        """Become a member; everybody is assigned anew.

        The instance id of a living member means: take its place, its partitions and its generation, without a word to
        it or to anybody.
        """
        state = self._groups.setdefault(group, _Group())
        self._members_so_far += 1
        member_id = f"member-{self._members_so_far}"
        for displaced, member in list(state.members.items()):
            if instance_id is not None and member.instance_id == instance_id:
                del state.members[displaced]
                state.members[member_id] = _Member(listener, instance_id, member.topics, member.partitions)
                self._tell(group, member_id)
                return Membership(group, state.generation, member_id, instance_id)
        state.members[member_id] = _Member(listener, instance_id, frozenset(topics))
        self.rebalance(group)
        return Membership(group, state.generation, member_id, instance_id)

    def expel(self, group: str, member_id: str) -> None:
        """Take a member out without telling it: its session ran out, or it left."""
        if self._groups[group].members.pop(member_id, None) is not None:
            self.rebalance(group)

    def rebalance(self, group: str) -> None:
        """A new generation: ranges of each topic's partitions over the members, in order of their ids."""
        state = self._groups[group]
        state.generation += 1
        shares: dict[str, set[Partition]] = {member_id: set() for member_id in state.members}
        for topic in {topic for member in state.members.values() for topic in member.topics}:
            readers = sorted(m for m, member in state.members.items() if topic in member.topics)
            places = self.partitions_of(topic)
            each, more = divmod(len(places), len(readers))
            for index, reader in enumerate(readers):
                first = index * each + min(index, more)
                shares[reader].update(places[first : first + each + (index < more)])
        for member_id, share in shares.items():
            state.members[member_id].partitions = frozenset(share)
            self._tell(group, member_id)

    def committed(self, group: str, partition: Partition) -> CommittedOffset | None:
        """The stable committed offset.

        Raises
        ------
        BrokerAway
            A transaction that would change it is pending.
        """
        for slot in self._slots.values():
            if slot.transaction is not None and (group, partition) in slot.transaction.offsets:
                raise BrokerAway(f"a transaction with an offset of {partition} is pending")
        return self._groups.setdefault(group, _Group()).offsets.get(partition)

    def move_offset(self, group: str, partition: Partition, committed: CommittedOffset | None) -> None:
        """What an operator's hand does to a group's offsets; ``None`` forgets."""
        offsets = self._groups.setdefault(group, _Group()).offsets
        if committed is None:
            offsets.pop(partition, None)
        else:
            offsets[partition] = committed

    def check_member(self, membership: Membership) -> None:
        """What the broker checks before it takes offsets: identity and generation, never ownership.

        Raises
        ------
        Displaced, Refused
        """
        state = self._groups.get(membership.group, _Group())
        member = state.members.get(membership.member_id)
        if member is None:
            if membership.instance_id is not None and any(
                other.instance_id == membership.instance_id for other in state.members.values()
            ):
                raise Displaced(f"{membership.instance_id} belongs to another member")
            raise Refused(f"unknown member {membership.member_id}")
        if membership.generation != state.generation:
            raise Refused(f"generation {membership.generation} is over, it is {state.generation}")

    # Transactions

    def init_producer(self, transactional_id: str) -> int:
        """A new epoch for the id; what was open under it is aborted."""
        slot = self._slots.setdefault(transactional_id, _Slot())
        self._end(slot, "aborted")
        slot.epoch += 1
        return slot.epoch

    def expire_transaction(self, transactional_id: str) -> None:
        """The transaction timeout passed: abort, and fence whoever had it open."""
        slot = self._slots[transactional_id]
        if slot.transaction is not None:
            self._end(slot, "aborted")
            slot.epoch += 1

    def transaction(self, transactional_id: str, epoch: int) -> Transaction:
        """The open transaction of this producer, begun where there is none. Raises Fenced."""
        slot = self._checked(transactional_id, epoch)
        if slot.transaction is None:
            slot.transaction = Transaction()
        return slot.transaction

    def add_offsets(
        self,
        transactional_id: str,
        epoch: int,
        offsets: Mapping[Partition, CommittedOffset],
        membership: Membership,
    ) -> None:
        """Make offsets part of the open transaction. Raises Fenced, Displaced, Refused."""
        transaction = self.transaction(transactional_id, epoch)
        self.check_member(membership)
        transaction.offsets.update({(membership.group, place): offset for place, offset in offsets.items()})

    def end_transaction(self, transactional_id: str, epoch: int, commit: bool) -> None:
        """Commit or abort. Raises Fenced."""
        self._end(self._checked(transactional_id, epoch), "committed" if commit else "aborted")

    def _checked(self, transactional_id: str, epoch: int) -> _Slot:
        slot = self._slots[transactional_id]
        if slot.epoch != epoch:
            raise Fenced(f"epoch {epoch} of {transactional_id} is over, it is {slot.epoch}")
        return slot

    def _end(self, slot: _Slot, state: str) -> None:
        transaction, slot.transaction = slot.transaction, None
        if transaction is None:
            return
        transaction.state = state
        for place in transaction.partitions:
            self._logs[place].entries.append(_Entry(None, transaction))
        if state == "committed":
            for (group, place), offset in transaction.offsets.items():
                self._groups[group].offsets[place] = offset

    def _tell(self, group: str, member_id: str) -> None:
        state = self._groups[group]
        member = state.members[member_id]
        membership = Membership(group, state.generation, member_id, member.instance_id)
        member.listener.on_assigned(GroupNote(state.generation, membership, member.partitions))
