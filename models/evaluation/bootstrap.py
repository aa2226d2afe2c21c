"""How far a figure depends on the series it was measured on.

References
----------
B. Efron, "Bootstrap Methods: Another Look at the Jackknife" (Annals of Statistics, 1979): percentile intervals, here
over whole series, which are the independent units; rows of one series are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with the 5 and 95 % points of its bootstrap distribution."""

    value: float
    low: float
    high: float


def bootstrap(
    items: Sequence[Item], statistic: Callable[[Sequence[Item]], float], draws: int = 500, seed: int = 1
) -> Interval:
    """The statistic of the series, and its interval over series drawn with replacement.

    Draws for which the statistic does not exist (NaN) are left out; with fewer than two series the interval is NaN.
    """
    value = statistic(items)
    if len(items) < 2:
        return Interval(value, float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    drawn = np.array(
        [statistic([items[i] for i in rng.integers(0, len(items), len(items))]) for _ in range(draws)], np.float64
    )
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(drawn, (0.05, 0.95))
    return Interval(value, float(low), float(high))
