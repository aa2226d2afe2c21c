"""What is saved when, and what is deleted: images at commits, W behind them, streams that ended (rules 14 to 16).

The keeper belongs to the worker's loop; the calls to the store that save are made by :class:`pipeline.saver.Saver`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pipeline.clock import Clock
from pipeline.engine import Engine
from pipeline.partition import PartitionState, Phase
from pipeline.records import Partition
from pipeline.resident import Image, ResidentRows
from pipeline.saver import SaveJob, Saver
from pipeline.state.base import StateStore
from pipeline.state.codec import decode_headers, without_damaged

SWEEP_POLL_S = 60.0
SWEEP_SLICE = 500


class Keeper:
    """Keeps the rows of live and replaying partitions saved within a bounded age.

    Parameters
    ----------
    store, engines, clock
        As the worker's; the store is called from the saving thread, too.
    save_interval_s
        Target age of saved rows.
    min_images_per_commit
        Unsaved rows copied at every commit, where there are so many.
    """

    def __init__(
        self,
        store: StateStore,
        engines: Mapping[str, Engine],
        clock: Clock,
        save_interval_s: float,
        min_images_per_commit: int,
    ) -> None:
        self._store, self._engines, self._clock = store, engines, clock
        self._save_interval_s, self._min_images_per_commit = save_interval_s, min_images_per_commit
        self._saver = Saver(store, clock)
        self._last_images_s = clock.monotonic()
        self._sweep_due_s = clock.monotonic() + SWEEP_POLL_S
        self._sweep_cursor: dict[Partition, int] = {}
        self._deletions: dict[Partition, list[str]] = {}

    def images(self, partitions: Mapping[Partition, PartitionState], everything: bool) -> list[SaveJob]:
        """Copies of the longest unsaved rows at this record boundary, to be submitted once it is committed.

        Parameters
        ----------
        everything
            Every unsaved row, and W of every partition (a quiet commit); else as many as keep the age bounded. While
            the store is behind nothing is copied, so that images do not pile up.
        """
        if self._saver.pending > 2 * max(1, len(partitions)) and not everything:
            return []
        now = self._clock.monotonic()
        share = min(1.0, max(now - self._last_images_s, 1e-3) / self._save_interval_s)
        self._last_images_s = now
        jobs = []
        for engine in self._engines.values():
            for table in engine.tables():
                mine = {p: s for p, s in partitions.items() if s.is_folding and engine.version_of(p) == table.version}
                quota = None if everything else table.save_quota(share, self._min_images_per_commit)
                jobs.extend(self._jobs(table, mine, quota, everything))
        return jobs

    def _jobs(
        self, table: ResidentRows, partitions: Mapping[Partition, PartitionState], quota: int | None, everything: bool
    ) -> list[SaveJob]:
        boundaries = {partition: state.next for partition, state in partitions.items()}
        images = {image.partition: image for image in table.images(boundaries, quota)}
        for partition, boundary in boundaries.items():
            resident = table.slots_of.get(partition, {})  # who came back since the sweep is saved, not deleted
            deletions = [stream for stream in self._deletions.pop(partition, []) if stream not in resident]
            if partition not in images and (everything or deletions):
                images[partition] = table.empty_image(partition, boundary)
            if deletions:
                image = images[partition]
                images[partition] = replace(image, deletions=image.deletions + deletions)
        return [self._job(partitions[partition], image, table) for partition, image in images.items()]

    def _job(self, state: PartitionState, image: Image, table: ResidentRows) -> SaveJob:
        assert state.owned is not None
        return SaveJob(state.owned, image, table)

    def submit(self, jobs: list[SaveJob]) -> None:
        """Save these behind the work: their boundary is committed."""
        for job in jobs:
            self._saver.submit(job)

    def collect(self, partitions: Mapping[Partition, PartitionState], timeout_s: float = 0.0) -> None:
        """Hear what became of the saves.

        Raises
        ------
        StaleToken, StateLost
            The store refused a partition that was still thought ours.
        """
        for result in self._saver.results(timeout_s):
            owned = result.job.owned
            state = partitions.get(owned.key.partition)
            if result.error is None:
                result.job.table.confirm_saved(result.job.image)
            elif state is not None and state.owned is owned:
                raise result.error

    def drain(self, partitions: Mapping[Partition, PartitionState], deadline_s: float) -> bool:
        """Wait until everything submitted is saved; False when the deadline passes first."""
        until = self._clock.monotonic() + deadline_s
        while self._saver.pending and self._clock.monotonic() < until:
            self.collect(partitions, 0.05)
        return not self._saver.pending

    def behind_s(self) -> float:
        """Seconds for which the oldest submitted image has been waiting for the store."""
        return 0.0 if self._saver.oldest_s is None else self._clock.monotonic() - self._saver.oldest_s

    def unsaved_age_s(self) -> float:
        """Seconds for which the oldest state not yet saved has been waiting, on the device or on its way."""
        now = self._clock.monotonic()
        tables = [table for engine in self._engines.values() for table in engine.tables()]
        return max([self.behind_s(), *(table.unsaved_age_s(now) for table in tables)])

    @property
    def is_saving(self) -> bool:
        """Whether images are in flight, or ended and not heard of yet."""
        return self._saver.pending > 0

    @property
    def is_store_away(self) -> bool:
        """Whether the store did not answer last time it was asked to save, or asked at all."""
        return self._saver.is_store_away

    def sweep(self, partitions: Mapping[Partition, PartitionState]) -> None:
        """Rule 16: look through a slice of what is saved for streams that ended, by record time and wall time."""
        now = self._clock.monotonic()
        if now < self._sweep_due_s:
            return
        self._sweep_due_s = now + SWEEP_POLL_S
        for partition, state in partitions.items():
            if state.phase is not Phase.LIVE or state.owned is None:
                continue
            cursor, found = self._store.scan(state.owned.key, self._sweep_cursor.get(partition, 0), SWEEP_SLICE)
            self._sweep_cursor[partition] = cursor
            values = without_damaged(found)
            if values:
                engine = self._engines[state.profile]
                now_ms = min(self._clock.wall_ms(), state.newest_record_ms)
                ended = engine.ended(decode_headers(list(values.values())), now_ms).tolist()
                streams = [stream for stream, is_over in zip(values, ended, strict=True) if is_over]
                self._deletions.setdefault(partition, []).extend(engine.release_ended(partition, streams))

    def forget(self, state: PartitionState) -> None:
        """A partition starts again or is gone: what is queued for it is given up."""
        self._deletions.pop(state.partition, None)
        self._sweep_cursor.pop(state.partition, None)
        if state.owned is not None:
            state.owned.is_over = True

    def close(self) -> None:
        """Stop the saving thread."""
        self._saver.close()
