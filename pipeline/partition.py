"""A partition at this worker: what it is, what it has reached, and what its committed offset carries. No I/O.

    assigned ──▶ (located, taken) ──▶ replaying ──▶ live ──▶ gone
        ▲          c, token and W       below c       │
        └────────── any error, loss or doubt ─────────┘

Located and taken pass within one start-up call, so they need no name here.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from enum import Enum

from pipeline.errors import DecodeError
from pipeline.records import Committed, Partition
from pipeline.sources.base import CommittedOffset
from pipeline.state.base import StateKey, Token

logger = logging.getLogger(__name__)

HISTORY_KEPT = 32
"""Version changes kept in the metadata string, which the broker limits to 4096 bytes (rule 10)."""


class Phase(Enum):
    """Where a partition stands between its assignment and its end (protocol.md, "States of a partition")."""

    ASSIGNED = "assigned"
    REPLAYING = "replaying"
    LIVE = "live"
    GONE = "gone"


@dataclass(slots=True)
class Ownership:
    """Whose the partition's state is in the store, and the number of the last acknowledged write to it.

    The saver counts ``seq`` up as writes are acknowledged; loads require the store to be at least there (rule 20).
    Once it ``is_over``, what waits to be saved for it is given up.
    """

    key: StateKey
    token: Token
    seq: int
    is_over: bool = False


@dataclass(slots=True)
class PartitionState:
    """One assigned partition.

    Attributes
    ----------
    committed
        What the last committed offset says; ``None`` until located.
    next
        Offset of the next record to absorb.
    owned
        Token and sequence number in the store; ``None`` until taken.
    phase
        How far it has come.
    retry_at_s, waits_for
        Monotonic time before which start-up is not tried again, and the server it waits for.
    rows_reach
        A saved row was found to reach so far; start-up expects c there.
    newest_record_ms
        Newest Kafka timestamp seen: the partition's own clock.
    must_commit
        The metadata changed and wants to be committed even without new records.
    """

    partition: Partition
    profile: str
    phase: Phase = Phase.ASSIGNED
    committed: Committed | None = None
    next: int = 0
    owned: Ownership | None = None
    retry_at_s: float = 0.0
    waits_for: str | None = None
    rows_reach: int = 0
    newest_record_ms: int = -1
    must_commit: bool = False

    @property
    def c(self) -> int:
        """The committed offset."""
        assert self.committed is not None
        return self.committed.offset

    @property
    def is_folding(self) -> bool:
        """Whether records of this partition may be absorbed."""
        return self.phase in (Phase.REPLAYING, Phase.LIVE)

    def advance(self, end: int) -> bool:
        """Every record below ``end`` is absorbed; returns whether the replay ended with that."""
        self.next = max(self.next, end)
        if self.phase is not Phase.REPLAYING or self.next < self.c:
            return False
        self.phase = Phase.LIVE
        logger.info("partition %s: live at %s", self.partition, self.next)
        return True

    def back_to_assigned(self, retry_at_s: float = 0.0) -> None:
        """Any error or doubt: everything known is dropped, start-up begins again."""
        self.phase = Phase.ASSIGNED
        self.committed = None
        self.owned = None
        self.next = 0
        self.retry_at_s = retry_at_s
        self.waits_for = None
        self.rows_reach = 0
        self.must_commit = False


def version_at(committed: Committed, offset: int) -> str | None:
    """The version that scored the record at ``offset`` first; ``None`` where the kept history does not reach."""
    version = None
    for start, name in committed.history:
        if start <= offset:
            version = name
    return version


def next_change(committed: Committed, offset: int) -> int | None:
    """The first offset above ``offset`` at which another version begins."""
    return next((start for start, _ in committed.history if start > offset), None)


def with_version(committed: Committed, offset: int, version: str) -> Committed:
    """The same with ``version`` in force from ``offset`` on; the oldest changes fall out."""
    kept = tuple(pair for pair in committed.history if pair[0] < offset)
    return replace(committed, history=(*kept, (offset, version))[-HISTORY_KEPT:])


def to_offset(committed: Committed) -> CommittedOffset:
    """Offset and metadata string as they are committed."""
    carried = {
        "v": 1,
        "incarnation": committed.incarnation,
        "origin": committed.origin,
        "history": [list(pair) for pair in committed.history],
        "inexact_from": committed.inexact_from,
    }
    return CommittedOffset(committed.offset, json.dumps(carried, separators=(",", ":")))


def from_offset(found: CommittedOffset) -> Committed:
    """What :func:`to_offset` wrote.

    Raises
    ------
    DecodeError
        The metadata is not ours: the offset was set by another program, or by hand.
    """
    try:
        carried = json.loads(found.metadata)
        if carried["v"] != 1:
            raise DecodeError(f"committed metadata has format {carried['v']}, this program writes 1")
        return Committed(
            found.offset,
            str(carried["incarnation"]),
            int(carried["origin"]),
            tuple((int(start), str(name)) for start, name in carried["history"]),
            None if carried["inexact_from"] is None else int(carried["inexact_from"]),
        )
    except (ValueError, KeyError, TypeError) as exc:
        raise DecodeError(f"committed metadata {found.metadata[:80]!r} was not written by Tidewatch") from exc
