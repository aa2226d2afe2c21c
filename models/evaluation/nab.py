"""The NAB score: early detection inside windows, false positives elsewhere, one threshold for a whole corpus.

References
----------
A. Lavin and S. Ahmad, "Evaluating Real-time Anomaly Detection Algorithms: the Numenta Anomaly Benchmark" (ICMLA 2015),
equations 1 to 4; NAB 1.1, whose published implementation decides what the paper leaves open: a position inside a window
is ``-(right - i + 1) / width``, one past it ``(i - right) / (width - 1)``, -1 from three widths on; the first 15 % of a
file, at most 750 rows, are not scored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Window = tuple[int, int]

PROBATION_SHARE = 0.15
PROBATION_MOST = 750
FAR = 3.0


@dataclass(frozen=True, slots=True)
class Costs:
    """What a true positive earns, and what false positives and false negatives cost."""

    true_positive: float
    false_positive: float
    false_negative: float


PROFILES: Mapping[str, Costs] = {
    "standard": Costs(1.0, 0.11, 1.0),
    "low_fp": Costs(1.0, 0.22, 1.0),
    "low_fn": Costs(1.0, 0.11, 2.0),
}


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class NabFile:
    """One file of a corpus: a score per row (higher is more anomalous, no NaN), and windows as (first, last) row.

    A file equals itself only: what it gains is computed once, however often a bootstrap draws it.
    """

    name: str
    scores: Float
    windows: tuple[Window, ...]


@dataclass(frozen=True, slots=True)
class NabResult:
    """The score of a corpus: 0 for a detector that never alarms, 100 for a perfect one; and the threshold behind it."""

    score: float
    threshold: float
    per_file: Mapping[str, float]


def probation(rows: int) -> int:
    """How many leading rows of a file are not scored."""
    return min(math.floor(PROBATION_SHARE * rows), PROBATION_MOST)


def scaled_sigmoid(position: Float) -> Float:
    """The reward of a detection by relative position: 1 at the left edge (-1), 0 at the right (0), -1 far behind."""
    return np.where(position >= FAR, -1.0, 2.0 / (1.0 + np.exp(5.0 * np.minimum(position, FAR))) - 1.0)


def nab_score(corpus: Sequence[NabFile], profile: str = "standard") -> NabResult:
    """Score a corpus at the one threshold that is best for it.

    Parameters
    ----------
    corpus
        All files that share the threshold.
    profile
        ``standard``, ``low_fp`` (reward low false-positive rate) or ``low_fn``.

    Raises
    ------
    ValueError
        No file has a window, or a score is NaN.
    """
    events = [_gains_of(file, profile) for file in corpus]
    count = sum(len(file.windows) for file in corpus)
    if count == 0:
        raise ValueError("a NAB score needs at least one window")
    null = sum(event.null for event in events)
    scores = np.concatenate([event.scores for event in events])
    gains = np.concatenate([event.gains for event in events])
    order = np.argsort(-scores, kind="stable")
    total = null + np.cumsum(gains[order])
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # a threshold takes all rows of a score
    best = int(ends[np.argmax(total[ends])])
    raw = max(float(total[best]), null)
    threshold = float(scores[order][best]) if total[best] > null else math.inf
    per_file = {
        file.name: event.null + float(event.gains[event.scores >= threshold].sum())
        for file, event in zip(corpus, events, strict=True)
    }
    perfect = PROFILES[profile].true_positive * count
    return NabResult(100.0 * (raw - null) / (perfect - null), threshold, per_file)


@dataclass(frozen=True, slots=True)
class _Gains:
    """What the total gains when the threshold falls to each scored row, and where the total starts."""

    scores: Float
    gains: Float
    null: float


_known: WeakKeyDictionary[NabFile, dict[str, _Gains]] = WeakKeyDictionary()


def _gains_of(file: NabFile, profile: str) -> _Gains:
    by_profile = _known.setdefault(file, {})
    if profile not in by_profile:
        by_profile[profile] = _gains(file, PROFILES[profile])
    return by_profile[profile]


def _gains(file: NabFile, costs: Costs) -> _Gains:
    if np.isnan(file.scores).any():
        raise ValueError(f"{file.name}: a NAB score needs a number for every row")
    rows = np.arange(len(file.scores))
    scored = rows >= probation(len(rows))
    gains = costs.false_positive * scaled_sigmoid(_past_window(rows, file.windows))
    null = 0.0
    earliest = scaled_sigmoid(np.array(-1.0))
    for first, last in file.windows:
        inside = rows[first : last + 1][scored[first : last + 1]]
        if not len(inside):
            gains[first : last + 1] = 0.0
            continue
        null -= costs.false_negative
        reward = (
            costs.true_positive
            * scaled_sigmoid(np.asarray(-(last - inside + 1.0) / (last - first + 1.0), np.float64))
            / earliest
        )
        falling = np.argsort(-file.scores[inside], kind="stable")
        best = np.maximum.accumulate(np.append(-costs.false_negative, reward[falling]))
        gains[inside[falling]] = np.diff(best)
    return _Gains(file.scores[scored], gains[scored], null)


def _past_window(rows: npt.NDArray[np.int64], windows: Sequence[Window]) -> Float:
    """How many widths each row lies behind the last window before it."""
    past = np.full(len(rows), FAR)
    for first, last in sorted(windows):
        past[last + 1 :] = (rows[last + 1 :] - last) / max(1.0, last - first)
    return past
