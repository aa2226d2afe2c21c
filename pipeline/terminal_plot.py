"""A small picture of observed against expected, in characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.epoch import iso_time
from pipeline.records import Float32, Int64

OBSERVED, EXPECTED, BAND, EMPTY = "●", "─", "░", " "


@dataclass(frozen=True, slots=True)
class Expectation:
    """What was expected from a time on, until the next one."""

    time_ms: int
    expected: float
    low: float
    high: float


def draw(
    times_ms: Int64, observed: Float32, expected: Sequence[Expectation], width: int = 72, height: int = 12
) -> list[str]:
    """Lines of text: a scale on the left, times below.

    Parameters
    ----------
    times_ms, observed
        ``(T,)``, T > 0; NaN where missing.
    expected
        In the order of their times.
    """
    begin, end = int(times_ms[0]), max(int(times_ms[-1]), int(times_ms[0]) + 1)
    marks = [number for e in expected for number in (e.expected, e.low, e.high)]
    values = np.concatenate([observed.astype(np.float64), np.asarray(marks, np.float64)])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    span = (high - low) or abs(high) or 1.0
    low, high = low - 0.05 * span, high + 0.05 * span

    def row(value: float) -> int:
        return round((high - value) / (high - low) * (height - 1))

    def column(time_ms: int) -> int:
        return round((time_ms - begin) / (end - begin) * (width - 1))

    cells = [[EMPTY] * width for _ in range(height)]
    ends = [column(e.time_ms) for e in expected[1:]] + [width]
    for each, until in zip(expected, ends, strict=True):
        for at in range(max(column(each.time_ms), 0), min(until, width)):
            _draw_expected(cells, at, each, row)
    for time_ms, value in zip(times_ms.tolist(), observed.tolist(), strict=True):
        if np.isfinite(value):
            cells[row(value)][column(time_ms)] = OBSERVED
    labels = {0: high, height // 2: (high + low) / 2, height - 1: low}
    lines = [f"{_scale(labels.get(number))} ┤{''.join(line)}" for number, line in enumerate(cells)]
    first, last = iso_time(begin)[:19], iso_time(end)[:19]
    lines.append(f"{'':>11}{first}{last:>{width - len(first)}}")
    lines.append(f"{'':>11}{OBSERVED} observed  {EXPECTED} expected  {BAND} 98 % of what is normal (from the onset on)")
    return lines


def _draw_expected(cells: list[list[str]], at: int, each: Expectation, row: Callable[[float], int]) -> None:
    if np.isfinite(each.low) and np.isfinite(each.high):
        for number in range(row(each.high), row(each.low) + 1):
            cells[number][at] = BAND
    if np.isfinite(each.expected):
        cells[row(each.expected)][at] = EXPECTED


def _scale(value: float | None) -> str:
    return f"{'' if value is None else f'{value:.4g}':>9}"
