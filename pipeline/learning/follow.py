"""Which streams a learner follows: the first that come, so many; a sample is enough for weights they all share."""

from __future__ import annotations

import numpy as np

from pipeline.records import CONTROL_FORGET, Windows


def followed(windows: Windows, names: set[str], most: int) -> Windows:
    """The windows of followed streams; ``names`` grows by new streams up to ``most``, and loses forgotten ones."""
    for name in windows.stream_ids:
        if len(names) < most:
            names.add(name)
    keep = np.fromiter((name in names for name in windows.stream_ids), dtype=bool, count=len(windows))
    ended = [windows.stream_ids[i] for i in np.flatnonzero(windows.control == CONTROL_FORGET).tolist()]
    names.difference_update(ended)
    if keep.all():
        return windows
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
