"""Which streams a learner follows: so many at a time; a sample is enough for weights they all share."""

from __future__ import annotations

import numpy as np

from pipeline.records import CONTROL_FORGET, Windows

NEVER_MS = -(2**62)


class Following:
    """The first streams that come, until there are enough; one that ended makes room for a new one.

    Parameters
    ----------
    most
        Streams followed at a time.
    idle_ms
        Event time without a word after which a stream counts as ended (the profile's ``idle_reset_s``).
    """

    def __init__(self, most: int, idle_ms: int) -> None:
        self._most, self._idle_ms = most, idle_ms
        self._last_ms: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._last_ms)

    def choose(self, windows: Windows) -> tuple[Windows, list[str]]:
        """The windows of followed streams, and the streams given up for new ones."""
        ends = np.cumsum(windows.lengths)
        given_up: list[str] = []
        keep = np.zeros(len(windows), bool)
        for number, name in enumerate(windows.stream_ids):
            last_ms = int(windows.times_ms[ends[number] - 1]) if windows.lengths[number] else NEVER_MS
            if name not in self._last_ms and not self._make_room(last_ms, given_up):
                continue
            keep[number] = True
            is_forgotten = windows.control[number] == CONTROL_FORGET
            self._last_ms[name] = NEVER_MS if is_forgotten else max(self._last_ms.get(name, NEVER_MS), last_ms)
        # A stream given up in this very batch is not folded by halves.
        keep &= np.array([name in self._last_ms for name in windows.stream_ids], bool)
        return (windows if keep.all() else _only(windows, keep)), given_up

    def _make_room(self, now_ms: int, given_up: list[str]) -> bool:
        if len(self._last_ms) < self._most:
            return True
        oldest = min(self._last_ms, key=self._last_ms.__getitem__)
        if self._last_ms[oldest] >= now_ms - self._idle_ms:
            return False
        del self._last_ms[oldest]
        given_up.append(oldest)
        return True


def _only(windows: Windows, keep: np.ndarray) -> Windows:
    observations = np.repeat(keep, windows.lengths)
    return Windows(
        [name for name, is_kept in zip(windows.stream_ids, keep.tolist(), strict=True) if is_kept],
        windows.offsets[keep],
        windows.record_ms[keep],
        windows.lengths[keep],
        windows.silent[keep],
        windows.control[keep],
        windows.times_ms[observations],
        windows.values[observations],
    )
