"""Places in topics that the broker would forget."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.clock import Clock
from pipeline.records import Partition
from pipeline.topics.base import Progress

RENEW_S = 86_400.0
"""A broker forgets what a group without members has not committed for offsets.retention.minutes, by default a week."""


class Renewed:
    """Progress that is committed again at the start and once a day, so that a quiet partition's is not forgotten.

    Parameters
    ----------
    positions
        The place of each partition at the start.

    Raises
    ------
    BrokerAway
        From every call, as ``progress`` does; nothing is noted then.
    """

    def __init__(self, progress: Progress, positions: Mapping[Partition, int], clock: Clock) -> None:
        self._progress, self._positions, self._clock = progress, dict(positions), clock
        self._due_s = clock.monotonic()

    def commit(self, partition: Partition, next_offset: int) -> None:
        """Everything before ``next_offset`` is done with."""
        self._progress.commit(partition, next_offset)
        self._positions[partition] = next_offset
        self.renew()  # whoever tells a receiver that is away can be held up by one batch for days

    def renew(self) -> None:
        """Commit all positions again where a day has passed."""
        if self._clock.monotonic() < self._due_s:
            return
        for partition, offset in self._positions.items():
            self._progress.commit(partition, offset)
        self._due_s = self._clock.monotonic() + RENEW_S
