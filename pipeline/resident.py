"""Rows on the device: which stream lies in which slot, what of it is saved, what may be evicted.

One :class:`ResidentRows` holds the streams of one profile under one model version. protocol.md rules 13 to 15 live here
as three numbers a slot: *position* (in the header), *first unsaved* (smallest offset absorbed since the last image) and
*in flight* (an image of it is on its way to the store).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from models.config import HiddenOnSwap
from models.row import RowLayout, Rows
from models.step import Scorer
from pipeline.records import NO_OFFSET, Int64, Partition
from pipeline.state.base import HEADER

SCRATCH = 16
"""Slots 0 to 15 belong to no stream: they pad a call to a multiple of 16 rows, the lanes of a vector register."""

_FRESH_HEADER = np.array((0, -1, -1, -1, -1, -1, 0), dtype=HEADER)


@dataclass(frozen=True, slots=True)
class Image:
    """Rows as they were at a record boundary, to be saved once that boundary is committed (rule 14).

    ``watermark`` is W once these, and all images before them, are saved. ``deletions`` begin with the streams that were
    told to be forgotten, which have ``deleted_slots``.
    """

    partition: Partition
    layout: str
    model_version: str
    stream_ids: list[str]
    slots: Int64
    headers: npt.NDArray[np.void]
    rows: torch.Tensor
    deletions: list[str]
    deleted_slots: Int64
    watermark: int


class ResidentRows:
    """The rows of one profile and version on one device.

    Parameters
    ----------
    scorer
        Weights and fold settings; its layout is the rows' layout.
    version
        Model version, 12 hex digits.
    max_streams
        Most streams resident at a time; the table grows up to it.
    device
        Torch device of the rows.
    """

    def __init__(self, scorer: Scorer, version: str, max_streams: int, device: str) -> None:
        self.scorer = scorer
        self.version = version
        self.max_streams = max_streams
        self.device = device
        capacity = SCRATCH + min(max_streams, 1024)
        self.rows = Rows.allocate(scorer.layout, capacity, device)
        self.header = np.full(capacity, _FRESH_HEADER, dtype=HEADER)
        self.first_unsaved = np.full(capacity, NO_OFFSET, dtype=np.int64)
        self.unsaved_since = np.full(capacity, np.inf)
        self.in_flight = np.zeros(capacity, dtype=np.int64)
        self.forgotten = np.zeros(capacity, dtype=bool)
        self.last_use = np.zeros(capacity, dtype=np.int64)
        self.owner: list[tuple[Partition, str] | None] = [None] * capacity
        self.owner_number = np.full(capacity, -1, dtype=np.int64)
        self._numbers: dict[Partition, int] = {}
        self.slots_of: dict[Partition, dict[str, int]] = {}
        self._free = list(range(capacity - 1, SCRATCH - 1, -1))
        self._batch = 0
        self.evicted = 0

    @property
    def layout(self) -> RowLayout:
        """Layout of the rows."""
        return self.scorer.layout

    def __len__(self) -> int:
        return len(self.header) - SCRATCH - len(self._free)

    def missing(self, partition: Partition, stream_ids: Iterable[str]) -> list[str]:
        """Streams of these that have no slot, each once, in order of appearance."""
        known = self.slots_of.setdefault(partition, {})
        return [stream for stream in dict.fromkeys(stream_ids) if stream not in known]

    def slots(self, partition: Partition, stream_ids: Sequence[str]) -> Int64:
        """Slots of resident streams, marked as used by the present batch."""
        known = self.slots_of[partition]
        found = np.fromiter(map(known.__getitem__, stream_ids), dtype=np.int64, count=len(stream_ids))
        self.last_use[found] = self._batch
        return found

    def begin_batch(self) -> None:
        """A new batch: rows it names are not evicted until the next one."""
        self._batch += 1

    def make_room(self, streams: int) -> bool:
        """See that ``streams`` slots are free, growing or evicting the least recently used saved rows.

        Returns False where too many rows are ahead of their save: commit and save, then ask again (rule 14).
        """
        while len(self._free) < streams and self._grow():
            pass
        lacking = streams - len(self._free)
        if lacking > 0:
            self._evict(max(lacking, self.max_streams // 64))
        return len(self._free) >= streams

    def _grow(self) -> bool:
        old = len(self.header)
        new = min(old * 2, self.max_streams + SCRATCH)
        if new <= old:
            return False
        extra = new - old
        self.rows = self.rows.grown(new)
        self.header = np.concatenate([self.header, np.full(extra, _FRESH_HEADER, dtype=HEADER)])
        self.first_unsaved = np.concatenate([self.first_unsaved, np.full(extra, NO_OFFSET, dtype=np.int64)])
        self.unsaved_since = np.concatenate([self.unsaved_since, np.full(extra, np.inf)])
        self.in_flight = np.concatenate([self.in_flight, np.zeros(extra, dtype=np.int64)])
        self.forgotten = np.concatenate([self.forgotten, np.zeros(extra, dtype=bool)])
        self.last_use = np.concatenate([self.last_use, np.zeros(extra, dtype=np.int64)])
        self.owner.extend([None] * extra)
        self.owner_number = np.concatenate([self.owner_number, np.full(extra, -1, dtype=np.int64)])
        self._free = list(range(new - 1, old - 1, -1)) + self._free
        return True

    def _evict(self, wanted: int) -> None:
        saved = (self.first_unsaved == NO_OFFSET) & (self.in_flight == 0) & (self.last_use < self._batch)
        saved[:SCRATCH] = False
        saved[self._free] = False
        candidates = np.flatnonzero(saved)
        if len(candidates) > wanted:
            candidates = candidates[np.argpartition(self.last_use[candidates], wanted)[:wanted]]
        self._release(candidates)
        self.evicted += len(candidates)

    def _release(self, slots: Int64) -> None:
        for slot in slots.tolist():
            owner = self.owner[slot]
            if owner is not None:
                del self.slots_of[owner[0]][owner[1]]
                self.owner[slot] = None
                self._free.append(slot)
        self._unmark(slots)

    def _unmark(self, slots: Int64) -> None:
        self.first_unsaved[slots] = NO_OFFSET
        self.unsaved_since[slots] = np.inf
        self.in_flight[slots] = 0
        self.owner_number[slots] = -1
        self.forgotten[slots] = False

    def admit(
        self, partition: Partition, stream_ids: Sequence[str], headers: npt.NDArray[np.void], rows: torch.Tensor
    ) -> None:
        """Put saved rows into free slots (``make_room`` came before).

        Parameters
        ----------
        headers
            ``(N,)`` of dtype HEADER.
        rows
            ``(N, numbers)`` float32, in this table's layout.
        """
        slots = self._claim(partition, stream_ids)
        self.header[slots] = headers
        self.rows.write(torch.from_numpy(slots), rows)

    def admit_fresh(self, partition: Partition, stream_ids: Sequence[str], partial_left: int) -> None:
        """Give streams that nothing is remembered of a fresh row."""
        slots = self._claim(partition, stream_ids)
        self.header[slots] = _FRESH_HEADER
        self.header["partial_left"][slots] = partial_left
        self.rows.clear(torch.from_numpy(slots))

    def _claim(self, partition: Partition, stream_ids: Sequence[str]) -> Int64:
        known = self.slots_of.setdefault(partition, {})
        taken = [self._free.pop() for _ in stream_ids]
        for stream, slot in zip(stream_ids, taken, strict=True):
            known[stream] = slot
            self.owner[slot] = (partition, stream)
        slots = np.array(taken, dtype=np.int64)
        self.owner_number[slots] = self._number(partition)
        self.last_use[slots] = self._batch
        return slots

    def _number(self, partition: Partition) -> int:
        return self._numbers.setdefault(partition, len(self._numbers))

    def mark_absorbed(self, slots: Int64, offsets: Int64, now_s: float) -> None:
        """Note that records were folded into these rows: ``offsets`` ascend for each slot."""
        np.minimum.at(self.first_unsaved, slots, offsets)
        np.maximum.at(self.header["position"], slots, offsets + 1)
        fresh = slots[np.isinf(self.unsaved_since[slots])]
        self.unsaved_since[fresh] = now_s

    def watermark(self, partition: Partition, next_offset: int) -> int:
        """W as it would be if every image taken so far were saved (rule 15)."""
        unsaved = self.first_unsaved[self.owner_number == self._number(partition)]
        return int(min(unsaved.min(initial=NO_OFFSET), next_offset))

    def unsaved_age_s(self, now_s: float) -> float:
        """Seconds since the longest unsaved row was last equal to its image."""
        return max(0.0, now_s - float(self.unsaved_since.min()))

    def save_quota(self, share: float, least: int) -> int:
        """How many rows to save now so that all unsaved ones are within ``1 / share`` such calls."""
        return max(least, math.ceil(share * int((self.first_unsaved != NO_OFFSET).sum())))

    def images(self, boundaries: Mapping[Partition, int], max_streams: int | None) -> list[Image]:
        """Copy the longest unsaved rows of these partitions, at most ``max_streams`` in all (``None``: every one).

        ``boundaries`` gives each partition's next offset: everything below it is in the rows, nothing above.
        """
        numbers = [self._number(partition) for partition in boundaries]
        chosen = np.flatnonzero((self.first_unsaved != NO_OFFSET) & np.isin(self.owner_number, numbers))
        if max_streams is not None and len(chosen) > max_streams:
            chosen = chosen[np.argpartition(self.unsaved_since[chosen], max_streams)[:max_streams]]
        return [
            self._image(partition, slots, boundary)
            for partition, boundary in boundaries.items()
            if len(slots := chosen[self.owner_number[chosen] == self._number(partition)])
        ]

    def _image(self, partition: Partition, slots: Int64, boundary: int) -> Image:
        self.first_unsaved[slots] = NO_OFFSET
        self.unsaved_since[slots] = np.inf
        self.in_flight[slots] += 1  # forgotten ones, too: evicted sooner they would be loaded with the past they lost
        forgotten = self.forgotten[slots]
        deleted, slots = slots[forgotten], slots[~forgotten]
        return Image(
            partition,
            self.layout.id,
            self.version,
            self._streams(slots),
            slots,
            self.header[slots].copy(),
            self.rows.read(torch.from_numpy(slots)),
            self._streams(deleted),
            deleted,
            self.watermark(partition, boundary),
        )

    def empty_image(self, partition: Partition, boundary: int) -> Image:
        """No rows, only W."""
        none = np.empty(0, dtype=np.int64)
        rows = torch.empty((0, self.layout.numbers), dtype=torch.float32)
        watermark = self.watermark(partition, boundary)
        return Image(partition, self.layout.id, self.version, [], none, self.header[none], rows, [], none, watermark)

    def _streams(self, slots: Int64) -> list[str]:
        owners = [self.owner[slot] for slot in slots.tolist()]
        return [owner[1] for owner in owners if owner is not None]

    def confirm_saved(self, image: Image) -> None:
        """The store acknowledged this image: its rows may be evicted once nothing newer is ahead."""
        known = self.slots_of.get(image.partition, {})
        deleted = image.deletions[: len(image.deleted_slots)]
        slots = [*image.slots.tolist(), *image.deleted_slots.tolist()]
        for stream, slot in zip([*image.stream_ids, *deleted], slots, strict=True):
            if known.get(stream) == slot and self.in_flight[slot] > 0:
                self.in_flight[slot] -= 1

    def drop(self, partition: Partition) -> None:
        """Forget all rows of a partition, saved or not (rule 6)."""
        slots = np.fromiter(self.slots_of.pop(partition, {}).values(), dtype=np.int64)
        for slot in slots.tolist():
            self.owner[slot] = None
        self._free.extend(slots.tolist())
        self._unmark(slots)

    def release_saved(self, partition: Partition, stream_ids: Iterable[str]) -> list[str]:
        """Give up the slots of streams whose saved rows are to be deleted; returns those with nothing unsaved."""
        known = self.slots_of.get(partition, {})
        kept = []
        for stream in stream_ids:
            slot = known.get(stream)
            if slot is None or (self.first_unsaved[slot] == NO_OFFSET and self.in_flight[slot] == 0):
                kept.append(stream)
        self._release(np.array([known[stream] for stream in kept if stream in known], dtype=np.int64))
        return kept

    def release(self, partition: Partition, stream_id: str) -> None:
        """Give up a stream's slot, saved or not, where nobody saves rows; nothing to do where it has none."""
        slot = self.slots_of.get(partition, {}).get(stream_id)
        if slot is not None:
            self._release(np.array([slot], dtype=np.int64))

    def move_to(self, other: ResidentRows, partition: Partition, hidden: HiddenOnSwap) -> bool:
        """Hand all rows of a partition to another version's table, saved state and all (rule 12).

        Where they lack room there, rows that are saved are given up, to be loaded and carried when they are needed;
        False, and nothing done, where some are not.
        """
        known = self.slots_of.get(partition, {})
        if not other.make_room(len(known)):
            slots = np.fromiter(known.values(), dtype=np.int64, count=len(known))
            if (self.first_unsaved[slots] != NO_OFFSET).any() or self.in_flight[slots].any():
                return False
        else:
            slots, there = self.copy_to(other, partition, hidden)
            other.first_unsaved[there] = self.first_unsaved[slots]
            other.unsaved_since[there] = self.unsaved_since[slots]
            other.forgotten[there] = self.forgotten[slots]
        if len(known):
            self.drop(partition)
        return True

    def copy_to(self, other: ResidentRows, partition: Partition, hidden: HiddenOnSwap) -> tuple[Int64, Int64]:
        """Give another version's table the rows of a partition, and keep them; the slots here and there."""
        known = dict(self.slots_of.get(partition, {}))
        slots = np.fromiter(known.values(), dtype=np.int64, count=len(known))
        if not known:
            return slots, slots
        rows = other.layout.carry(self.rows.read(torch.from_numpy(slots)), self.layout, hidden)
        if not other.make_room(len(known)):
            raise RuntimeError(f"no room for the {len(known)} streams of {partition} under version {other.version}")
        other.admit(partition, list(known), self.header[slots], rows)
        there = np.fromiter((other.slots_of[partition][stream] for stream in known), dtype=np.int64, count=len(known))
        return slots, there
