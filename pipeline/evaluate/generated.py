"""Generated plants in which nothing happens: weeks of many streams, to measure whether the alarm budget is kept."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from models.synthetic.plants import plant
from pipeline.evaluate.plan import PLANTS, plan_of
from pipeline.evaluate.series import Entry, LabelledSeries
from pipeline.sources.recording import RecordedStream

STREAMS, SEED, INTERVAL_S = 64, 2024, 300.0


def plant_entries(is_quick: bool) -> list[Entry]:
    """What a manifest would say of the plants."""
    return [
        Entry(
            dataset=PLANTS,
            series_id=stream.name.removeprefix(f"{PLANTS}/"),
            rows=len(stream),
            features=stream.features,
            domain="generated",
            interval_seconds=INTERVAL_S,
            train_prefix_rows=len(stream),
        )
        for stream in _plants(_rows(is_quick))
    ]


def plant_series(entries: Sequence[Entry], is_quick: bool) -> list[LabelledSeries]:
    """The plants of these entries; all rows are training prefix, so that they measure budgets and nothing else."""
    streams = {stream.name: stream for stream in _plants(_rows(is_quick))}
    return [LabelledSeries(streams[entry.name], entry) for entry in entries]


def _rows(is_quick: bool) -> int:
    plan = plan_of(PLANTS)
    rows = plan.quick.rows if is_quick and plan.quick is not None else plan.part.rows
    assert rows is not None
    return rows


@cache
def _plants(rows: int) -> tuple[RecordedStream, ...]:
    return tuple(
        RecordedStream(
            f"{PLANTS}/{made.stream_id}",
            made.features,
            made.interval_s,
            made.times_ms,
            made.values,
            np.zeros(rows, np.uint8),
            train_prefix=rows,
        )
        for made in plant(STREAMS, rows, 0, SEED, interval_s=INTERVAL_S)
    )
