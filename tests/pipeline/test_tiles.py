"""A batch is cut into tiles that threads share out; nothing that leaves the engine may tell."""

from __future__ import annotations

import numpy as np
import pytest

from models.pretrained import builtin
from models.step import Scorer
from pipeline.engine import MAX_CALL_ROWS, MIN_CALL_ROWS, Engine, tile_streams
from pipeline.profile import Profile
from pipeline.records import Partition, Windows
from pipeline.resident import SCRATCH

PARTITION = Partition("plant", 0)
PROFILE = Profile(topics=("plant",), features=("a", "b", "c", "d"), interval_s=60.0, evidence="single")
STREAMS = 1500


def batches() -> list[Windows]:
    """Noise for more streams than fit into one tile, two observations each."""
    noise = np.random.default_rng(3).normal(size=(4, 2 * STREAMS, 4)).astype(np.float32)
    return [
        Windows(
            [f"pump-{stream}" for stream in range(STREAMS)],
            np.arange(number * STREAMS, (number + 1) * STREAMS),
            np.full(STREAMS, -1),
            np.full(STREAMS, 2),
            np.zeros(STREAMS, np.bool_),
            np.zeros(STREAMS, np.uint8),
            np.tile(60_000 * (2 * number + np.arange(2)), STREAMS),
            values,
        )
        for number, values in enumerate(noise)
    ]


def scores(threads: int) -> tuple[bytes, bytes]:
    """Scores of all batches, and the rows they leave."""
    scorer = Scorer(builtin("gru"), PROFILE.fold())
    engine = Engine("plant", PROFILE, lambda version: scorer, 2 * STREAMS, threads=threads)
    found = b""
    for windows in batches():
        (out,) = engine.absorb_fresh({PARTITION: windows}, "v1").scores
        found += out.score.tobytes() + out.threshold.tobytes() + out.signal.tobytes()
    (image,) = engine.table("v1").images({PARTITION: 4 * STREAMS}, None)
    return found, image.rows.numpy().tobytes()


def test_threads_change_no_bit_of_scores_and_rows() -> None:
    """A worker with more cores must go on exactly where one with fewer stopped."""
    assert scores(threads=3) == scores(threads=1)


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("features", [1, 8, 64])
@pytest.mark.parametrize("streams", [3**power for power in range(12)])
def test_tiles_are_whole_blocks_neither_tiny_nor_oversized(streams: int, features: int, threads: int) -> None:
    """An oversized tile leaves the cache, a tiny one is all overhead, and only the last may need padding."""
    size = tile_streams(streams, features, threads)
    assert size % SCRATCH == 0
    assert size * features <= MAX_CALL_ROWS + SCRATCH * features
    if streams * features >= 2 * MIN_CALL_ROWS:
        assert size * features >= MIN_CALL_ROWS // 2
