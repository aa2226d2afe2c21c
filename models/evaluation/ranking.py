"""How well a score ranks labelled rows, without a threshold: AUC-PR and VUS-PR.

There is no package on the index that computes VUS-PR and runs with present numpy (``vus`` brings TensorFlow, ``TSB-AD``
needs numpy below 2), so it is here, vectorised over thresholds; the tests compare it with the definition written out.
AUC-PR is average precision, computed exactly with ties taken together.

References
----------
VUS-PR: J. Paparrizos, P. Boniol, T. Palpanas, R. Tsay, A. Elmore, M. Franklin, "Volume Under the Surface: A New
Accuracy Evaluation Measure for Time-Series Anomaly Detection" (PVLDB 15, 2022), section 4, with the choices of the
published implementation: 250 thresholds at equal steps of rank, buffers 0, 1, ..., L, existence as a factor of recall.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Labels = npt.NDArray[np.bool_]

THRESHOLDS = 250
BUFFER = 100


def auc_pr(labels: Labels, scores: Float) -> float:
    """Average precision: the sum over thresholds of (recall gained) x precision; the share of positives at random.

    Raises
    ------
    ValueError
        No row is labelled, or a score is NaN.
    """
    _refuse(labels, scores)
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    hits = np.cumsum(labels[order])[ends]
    recall = hits / hits[-1]
    return float((np.diff(recall, prepend=0.0) * hits / (ends + 1.0)).sum())


def vus_pr(labels: Labels, scores: Float, buffer: int = BUFFER, thresholds: int = THRESHOLDS) -> float:
    """Mean over buffers 0 to L of the area under the range-based precision-recall curve.

    Parameters
    ----------
    labels, scores
        ``(T,)``.
    buffer
        L, rows. The publication takes the period of the series where it has one; one fixed length for all data sets
        makes figures of series without a period comparable.
    thresholds
        How many ranks are looked at.

    Raises
    ------
    ValueError
        No row is labelled, or a score is NaN.
    """
    _refuse(labels, scores)
    events = events_of(labels)
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    cut = falling[np.linspace(0, len(scores) - 1, thresholds).astype(np.int64)]
    taken = np.searchsorted(-falling, -cut, side="right")
    positives = float(labels.sum())
    inside = _taken(labels.astype(np.float64), order, taken)
    areas = []
    for width in range(buffer + 1):
        soft = _softened(labels, events, width)
        true = _taken(soft, order, taken)
        actual = positives + 0.5 * (true - inside)
        exists = _existence(events, scores, width, cut)
        recall = np.minimum(true / actual, 1.0) * exists
        areas.append(float((np.diff(recall, prepend=0.0) * true / taken).sum()))
    return float(np.mean(areas))


def events_of(labels: Labels) -> list[tuple[int, int]]:
    """Runs of labelled rows as (first, last), both inclusive."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], labels, [False])).astype(np.int8)))
    return [(int(first), int(end) - 1) for first, end in zip(edges[::2], edges[1::2], strict=True)]


def _refuse(labels: Labels, scores: Float) -> None:
    if not labels.any():
        raise ValueError("ranking needs at least one labelled row")
    if np.isnan(scores).any():
        raise ValueError("ranking needs a score for every row")


def _taken(weights: Float, order: Int, taken: Int) -> Float:
    """Sum of the weights of the rows at or above each threshold."""
    return np.asarray(np.cumsum(weights[order])[taken - 1])


def _softened(labels: Labels, events: list[tuple[int, int]], width: int) -> Float:
    """Labels with slopes of half a buffer on both sides of each event, at most 1."""
    soft = labels.astype(np.float64)
    reach = width // 2
    if reach == 0:
        return soft
    slope = np.sqrt(1.0 - np.arange(1, reach + 1) / width)
    for first, last in events:
        after = soft[last + 1 : last + 1 + reach]
        after += slope[: len(after)]
        before = soft[max(0, first - reach) : first]
        before += slope[: len(before)][::-1]
    return np.minimum(soft, 1.0)


def _existence(events: list[tuple[int, int]], scores: Float, width: int, cut: Float) -> Float:
    """Share of the events, joined where their buffers meet, that have a row at or above each threshold."""
    reach, joined = width // 2, [list(events[0])]
    for first, last in events[1:]:
        if joined[-1][1] + reach < first - reach:
            joined.append([first, last])
        else:
            joined[-1][1] = last
    peaks = np.sort([scores[max(0, first - reach) : last + reach + 1].max() for first, last in joined])
    return np.asarray(1.0 - np.searchsorted(peaks, cut, side="left") / len(peaks))
