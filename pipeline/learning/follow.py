"""Which streams a learner follows: so many at a time; a sample is enough for weights they all share."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from pipeline.records import CONTROL_FORGET, Partition, Windows

logger = logging.getLogger(__name__)

NEVER_MS = -(2**62)


@dataclass(slots=True)
class _Followed:
    place: Partition
    last_ms: int = NEVER_MS


class Following:
    """The first streams that come, until there are enough; one that ended makes room for a new one.

    A name is followed from one partition at a time, the one it was first heard of from: two machines of one name in two
    topics would be cut into one series, and would have two rows where one was counted. Where a stream has moved, as it
    does when partitions are added, the new place is followed once the old one counts as ended; the stream is then given
    up and begins anew, as it did at the workers.

    Parameters
    ----------
    most
        Streams followed at a time.
    idle_ms
        Event time without a word after which a stream counts as ended (the profile's ``idle_reset_s``).
    """

    def __init__(self, most: int, idle_ms: int) -> None:
        self._most, self._idle_ms = most, idle_ms
        self._followed: dict[str, _Followed] = {}
        self._has_told = False

    def __len__(self) -> int:
        return len(self._followed)

    def __contains__(self, name: str) -> bool:
        return name in self._followed

    def choose(self, partition: Partition, windows: Windows) -> tuple[Windows, list[str]]:
        """The windows of followed streams, and the streams given up: for new ones, or where they were before."""
        ends = np.cumsum(windows.lengths)
        given_up: list[str] = []
        keep = np.zeros(len(windows), bool)
        for number, name in enumerate(windows.stream_ids):
            last_ms = int(windows.times_ms[ends[number] - 1]) if windows.lengths[number] else NEVER_MS
            followed = self._followed.get(name)
            if followed is not None and followed.place != partition:
                if not self._has_ended(followed, last_ms):
                    self._tell(name, followed.place, partition)
                    continue
                self._give_up(name, given_up)
                followed = None
            if followed is None:
                if not self._make_room(last_ms, given_up):
                    continue
                followed = self._followed[name] = _Followed(partition)
            keep[number] = True
            is_forgotten = windows.control[number] == CONTROL_FORGET
            followed.last_ms = NEVER_MS if is_forgotten else max(followed.last_ms, last_ms)
        # A stream given up in this very batch is not folded by halves.
        keep &= np.array([name in self._followed for name in windows.stream_ids], bool)
        return windows.only(keep), given_up

    def _make_room(self, now_ms: int, given_up: list[str]) -> bool:
        if len(self._followed) < self._most:
            return True
        oldest = min(self._followed, key=lambda name: self._followed[name].last_ms)
        if not self._has_ended(self._followed[oldest], now_ms):
            return False
        self._give_up(oldest, given_up)
        return True

    def _has_ended(self, followed: _Followed, now_ms: int) -> bool:
        return followed.last_ms < now_ms - self._idle_ms

    def _give_up(self, name: str, given_up: list[str]) -> None:
        del self._followed[name]
        given_up.append(name)

    def _tell(self, name: str, place: Partition, other: Partition) -> None:
        """Say once that names are not unique: a line for each record would drown the log."""
        if not self._has_told:
            told = "stream=%s is followed in %s; records of that name in %s do not teach (said once, for all names)"
            logger.warning(told, name, place, other)
        self._has_told = True
