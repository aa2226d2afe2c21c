"""Saves images behind the loop: one thread, one call in flight, in order (protocol.md, "Save")."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from pipeline.clock import Clock
from pipeline.errors import OwnershipError, StoreAway, TidewatchError
from pipeline.partition import Ownership
from pipeline.resident import Image, ResidentRows
from pipeline.state.base import StateStore
from pipeline.state.codec import encode_many

RETRY_PAUSE_S = 0.2
PING_S = 2.0


@dataclass(frozen=True, slots=True)
class SaveJob:
    """An image whose boundary is committed, and whose it is. ``table`` learns of the acknowledgement."""

    owned: Ownership
    image: Image
    table: ResidentRows


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

    def __init__(self, store: StateStore, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saver")
        self._pending: deque[tuple[SaveJob, float, Future[None]]] = deque()
        self._ping: Future[None] | None = None
        self._ping_due_s = clock.monotonic() + PING_S
        self._stopping = threading.Event()
        self.is_store_away = False

    @property
    def pending(self) -> int:
        """Jobs submitted whose result was not collected yet."""
        return len(self._pending)

    @property
    def oldest_s(self) -> float | None:
        """When the longest waiting job was submitted (monotonic)."""
        return self._pending[0][1] if self._pending else None

    def submit(self, job: SaveJob) -> None:
        """Queue a job behind all others."""
        self._pending.append((job, self._clock.monotonic(), self._thread.submit(self._save, job)))

    def results(self, timeout_s: float = 0.0) -> list[SaveResult]:
        """What ended since the last call; waits up to ``timeout_s`` for the first.

        While nothing is to be saved the store is asked now and then whether it is there.
        """
        if self._pending and timeout_s > 0:
            wait([self._pending[0][2]], timeout=timeout_s)
        found = []
        while self._pending and self._pending[0][2].done():
            job, _, future = self._pending.popleft()
            error = future.exception()
            if error is not None and not isinstance(error, TidewatchError):
                raise error
            found.append(SaveResult(job, error))
        self._look_after_store()
        return found

    def close(self) -> None:
        """Stop after the call in flight; queued jobs are not done."""
        self._stopping.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _look_after_store(self) -> None:
        if self._ping is not None and self._ping.done():
            self._ping.result()
            self._ping = None
        if self._ping is None and not self._pending and self._clock.monotonic() >= self._ping_due_s:
            self._ping_due_s = self._clock.monotonic() + PING_S
            self._ping = self._thread.submit(self._check)

    def _check(self) -> None:
        try:
            self._store.check()
            self.is_store_away = False
        except StoreAway:
            self.is_store_away = True

    def _save(self, job: SaveJob) -> None:
        image = job.image
        values = encode_many(image.layout, image.model_version, image.headers, image.rows.numpy())
        largest = max(map(len, values), default=1)
        per_call = max(1, min(self._store.max_save_rows, self._store.max_save_bytes // largest))
        starts = list(range(0, len(values), per_call)) or [0]
        for start in starts:
            cut = slice(start, start + per_call)
            rows = dict(zip(image.stream_ids[cut], values[cut], strict=True))
            self._save_call(job.owned, image, rows, start == starts[-1])

    def _save_call(self, owned: Ownership, image: Image, rows: dict[str, bytes], is_last: bool) -> None:
        deletions, watermark = (image.deletions, image.watermark) if is_last else ([], None)
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
