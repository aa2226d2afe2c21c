"""Outputs and input offsets in one transaction, in memory."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from pipeline.errors import BrokerAway, CommitRefused, OutcomeUnknown, TidewatchError, WorkerFenced
from pipeline.memory import Displaced, Fenced, MemoryBroker, Refused
from pipeline.records import Partition
from pipeline.sinks.base import check_metadata
from pipeline.sources.base import CommittedOffset, GroupNote


class MemorySink:
    """A producer of a :class:`pipeline.memory.MemoryBroker` behind :class:`pipeline.sinks.base.Sink`.

    Where the broker is set ``away`` in the middle of a commit the outcome is unknown: before the step ``commit`` the
    transaction stays open, at the step ``committed transaction`` it went through.

    Parameters
    ----------
    broker
        The world it lives in.
    transactional_id
        Names the worker's slot; a new sink of the same id fences the former one.
    """

    def __init__(self, broker: MemoryBroker, transactional_id: str) -> None:
        self._broker = broker
        self._transactional_id = transactional_id
        self._epoch: int | None = None
        self._is_open = False
        self._fenced_in_a_row = 0
        self.rebuild()

    def add(self, topic: str, key: bytes | None, value: bytes, partition: int | None = None) -> None:
        """See :meth:`pipeline.sinks.base.Sink.add`."""
        epoch = self._usable()
        self._broker.interrupt("add")
        try:
            transaction = self._broker.transaction(self._transactional_id, epoch)
        except Fenced as exc:
            raise self._doubt(exc) from exc
        self._is_open = True
        self._broker.append(topic, key, value, partition, transaction=transaction)

    def commit(self, offsets: Mapping[Partition, CommittedOffset], note: GroupNote) -> None:
        """See :meth:`pipeline.sinks.base.Sink.commit`."""
        check_metadata(offsets)
        if note.generation < 0:
            self.abort()
            raise CommitRefused(f"the group's note has generation {note.generation}: not a member")
        epoch = self._usable()
        self._is_open = True
        try:
            self._step("offsets")
            self._broker.add_offsets(self._transactional_id, epoch, offsets, note.metadata)
            self._step("commit")
            self._broker.end_transaction(self._transactional_id, epoch, commit=True)
            self._step("committed transaction")
        except (Displaced, Refused) as exc:
            self.abort()
            if isinstance(exc, Displaced):
                raise WorkerFenced(str(exc)) from exc
            raise CommitRefused(str(exc)) from exc
        except (Fenced, BrokerAway) as exc:
            raise self._doubt(exc) from exc
        self._is_open = False
        self._fenced_in_a_row = 0

    def abort(self) -> None:
        """See :meth:`pipeline.sinks.base.Sink.abort`."""
        if not self._is_open:
            return
        epoch = self._usable()
        try:
            self._step("abort")
            self._broker.end_transaction(self._transactional_id, epoch, commit=False)
        except (Fenced, BrokerAway) as exc:
            raise self._doubt(exc) from exc
        self._is_open = False

    def rebuild(self) -> None:
        """See :meth:`pipeline.sinks.base.Sink.rebuild`."""
        self._epoch = None
        self._is_open = False
        self._step("rebuild")
        self._epoch = self._broker.init_producer(self._transactional_id)

    def close(self) -> None:
        """See :meth:`pipeline.sinks.base.Sink.close`: an open transaction is aborted where the broker can be asked."""
        if self._epoch is not None and self._is_open and not self._broker.away:
            with suppress(Fenced):
                self._broker.end_transaction(self._transactional_id, self._epoch, commit=False)
        self._epoch = None
        self._is_open = False

    def _step(self, name: str) -> None:
        self._broker.interrupt(name)
        if self._broker.away:
            raise BrokerAway(f"{name}: the broker is away")

    def _usable(self) -> int:
        if self._epoch is None:
            raise OutcomeUnknown("the producer was given up; rebuild first")
        return self._epoch

    def _doubt(self, cause: Exception) -> TidewatchError:
        self._epoch = None
        self._is_open = False
        if isinstance(cause, Fenced):
            self._fenced_in_a_row += 1
            if self._fenced_in_a_row > 1:
                return WorkerFenced(f"a live process has the transactional id {self._transactional_id}: {cause}")
        return OutcomeUnknown(str(cause))
