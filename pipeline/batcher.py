"""Which windows go together: decoded records wait here, partition by partition, until a batch takes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pipeline.records import DeadLetter, Partition, Windows


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of one partition's records: everything below ``end`` that was not taken before."""

    partition: Partition
    windows: Windows
    dead_letters: tuple[DeadLetter, ...]
    end: int

    def up_to(self, windows: int) -> Piece:
        """The same stretch, ended before window number ``windows``."""
        if windows >= len(self.windows):
            return self
        end = int(self.windows.offsets[windows])
        letters = tuple(letter for letter in self.dead_letters if letter.offset < end)
        return Piece(self.partition, self.windows.part(0, windows), letters, end)

    def after(self, taken: Piece) -> Piece:
        """What remains of this stretch once ``taken``, a beginning of it, is done."""
        letters = tuple(letter for letter in self.dead_letters if letter.offset >= taken.end)
        return Piece(self.partition, self.windows.part(len(taken.windows), len(self.windows)), letters, self.end)


class Batcher:
    """Decoded records not absorbed yet, at most one poll's worth for each partition.

    Parameters
    ----------
    max_batch_observations
        Observation vectors (times, not values) in one batch; at least one window is taken however long it is.
    """

    def __init__(self, max_batch_observations: int) -> None:
        self._max_observations = max_batch_observations
        self._waiting: dict[Partition, Piece] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def holds(self, partition: Partition) -> bool:
        """Whether records of this partition are waiting."""
        return partition in self._waiting

    def first_offset(self, partition: Partition) -> int:
        """Offset of the first window that waits (of the end, where only dead letters wait)."""
        piece = self._waiting[partition]
        return int(piece.windows.offsets[0]) if len(piece.windows) else piece.end

    def add(self, piece: Piece) -> None:
        """Let the records of one poll wait; the partition must hold none."""
        if piece.partition in self._waiting:
            raise ValueError(f"{piece.partition} still has records waiting")
        self._waiting[piece.partition] = piece

    def drop(self, partition: Partition) -> None:
        """Forget what waits for a partition."""
        self._waiting.pop(partition, None)

    def peek(self, limits: Iterable[tuple[Partition, int | None]]) -> list[Piece]:
        """The next batch: a piece of each partition named, ended before the offset beside it (``None``: no bound).

        A bound lies above the partition's ``first_offset``. The pieces stay here until :meth:`done` is told of them.
        """
        wanted = [(partition, bound) for partition, bound in limits if partition in self._waiting]
        room = self._max_observations // max(1, len(wanted))
        pieces = []
        for partition, bound in wanted:
            piece = self._waiting[partition]
            ends = np.cumsum(piece.windows.lengths)
            count = max(1, int(np.searchsorted(ends, room, side="right")))
            if bound is not None:
                count = min(count, int(np.searchsorted(piece.windows.offsets, bound)))
            pieces.append(piece.up_to(count))
        return pieces

    def done(self, taken: Piece) -> None:
        """A piece (or a beginning of one) was absorbed."""
        rest = self._waiting[taken.partition].after(taken)
        if len(rest.windows) or rest.dead_letters:
            self._waiting[taken.partition] = rest
        else:
            del self._waiting[taken.partition]
