"""Saves images behind the loop: one thread, one call in flight, in order (protocol.md, "Save")."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass

from pipeline.errors import OwnershipError, StoreAway, TidewatchError
from pipeline.partition import Ownership
from pipeline.resident import Image, ResidentRows
from pipeline.state.base import StateStore
from pipeline.state.codec import encode_many

RETRY_PAUSE_S = 0.2


@dataclass(frozen=True, slots=True)
class SaveJob:
    """An image whose boundary is committed, and whose it is. ``rows`` learns of the acknowledgement."""

    owned: Ownership
    image: Image
    rows: ResidentRows


@dataclass(frozen=True, slots=True)
class SaveResult:
    """How a job ended: ``error`` is ``None`` when the store acknowledged it."""

    job: SaveJob
    error: TidewatchError | None


class Saver:
    """The saving thread and its queue.

    A call without a reply is repeated unchanged until the store answers: the store recognises it by its number
    (rule 20), and while it is away the worker pauses its input by W's age.
    """

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._jobs: queue.SimpleQueue[SaveJob | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[SaveResult] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._pending = 0
        self.is_store_away = False
        self._thread = threading.Thread(target=self._run, name="saver", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Jobs submitted whose result was not collected yet."""
        return self._pending

    def submit(self, job: SaveJob) -> None:
        """Queue a job behind all others."""
        self._pending += 1
        self._jobs.put(job)

    def results(self, timeout_s: float = 0.0) -> list[SaveResult]:
        """What ended since the last call; waits up to ``timeout_s`` for the first."""
        found = []
        try:
            found.append(self._results.get(timeout=timeout_s) if timeout_s > 0 else self._results.get_nowait())
            while True:
                found.append(self._results.get_nowait())
        except queue.Empty:
            self._pending -= len(found)
            return found

    def close(self) -> None:
        """Stop after the call in flight; queued jobs are not done."""
        self._stopping.set()
        self._jobs.put(None)
        self._thread.join(timeout=10.0)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and not self._stopping.is_set():
            try:
                self._save(job)
            except TidewatchError as error:
                self._results.put(SaveResult(job, error))
            else:
                self._results.put(SaveResult(job, None))

    def _save(self, job: SaveJob) -> None:
        image = job.image
        values = encode_many(image.layout, image.model_version, image.headers, image.rows.numpy())
        largest = max(map(len, values), default=1)
        per_call = max(1, min(self._store.max_save_rows, self._store.max_save_bytes // largest))
        starts = list(range(0, len(values), per_call)) or [0]
        for start in starts:
            last = start == starts[-1]
            rows = dict(zip(image.stream_ids[start : start + per_call], values[start : start + per_call], strict=True))
            self._save_call(job.owned, image, rows, last)

    def _save_call(self, owned: Ownership, image: Image, rows: dict[str, bytes], last: bool) -> None:
        deletions, watermark = (image.deletions, image.watermark) if last else ([], None)
        while True:
            if owned.is_over or self._stopping.is_set():
                raise OwnershipError("given up before it was saved", owned.key.partition)
            try:
                owned.seq = self._store.save(
                    owned.key, owned.token, owned.seq, rows, deletions, watermark, image.layout
                )
                self.is_store_away = False
                return
            except StoreAway:
                self.is_store_away = True
                self._stopping.wait(RETRY_PAUSE_S)
