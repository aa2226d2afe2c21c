"""One picture of a series: what was observed and expected, the score, what was labelled, where alerts opened."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigurationError
from pipeline.evaluate.fold import Track
from pipeline.evaluate.series import LabelledSeries
from pipeline.plots import ALARM, EXPECTED, INK, LABEL, QUIET, STYLE
from pipeline.records import ANOMALOUS, OPENED

POINTS = 1500
SIZE, DPI = (9.0, 3.4), 80
LAYOUT = {"height_ratios": (1.5, 1.0), "left": 0.09, "right": 0.975, "top": 0.93, "bottom": 0.14, "hspace": 0.1}


def draw_series(item: LabelledSeries, track: Track) -> bytes:
    """The picture as PNG.

    The upper panel shows the feature that contributed most to alarms, or to the highest score where there were none.

    Raises
    ------
    ConfigurationError
        matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise ConfigurationError("pictures need matplotlib: pip install 'tidewatch[plots]', or --no-pictures") from exc
    feature, x = _feature(track), np.arange(len(item.stream))
    with rc_context(STYLE):
        # Fixed margins, and one artist for all marks of a kind: a run draws hundreds of pictures.
        figure = Figure(SIZE, DPI)
        observed, score = figure.subplots(2, 1, sharex=True, gridspec_kw=LAYOUT)
        values = item.stream.values[:, feature]
        low, high = _limits(values)
        rows = thinned(values)
        observed.fill_between(
            x[rows], _clip(track.low[rows, feature], low, high), _clip(track.high[rows, feature], low, high),
            color=EXPECTED, alpha=0.2, linewidth=0,
        )  # fmt: skip
        observed.plot(x[rows], _clip(track.expected[rows, feature], low, high), color=EXPECTED, linewidth=0.7)
        observed.plot(x[rows], values[rows], color=INK, linewidth=0.7)
        observed.set_ylim(low, high)
        observed.set_ylabel(item.stream.features[feature])
        rows = thinned(track.score)
        score.plot(x[rows], track.score[rows], color=INK, linewidth=0.7)
        score.plot(x[rows], track.threshold[rows], color=QUIET, linewidth=0.9)
        opened = np.flatnonzero(track.event == OPENED)
        edges = np.flatnonzero(np.diff(np.concatenate(([0], item.labels, [0])).astype(np.int8)))
        labelled = np.column_stack((edges[::2] - 0.5, edges[1::2] - edges[::2])).tolist()
        for axes, width, alpha in ((observed, 0.5, 0.6), (score, 0.9, 1.0)):
            whole = axes.get_xaxis_transform()
            axes.vlines(opened, 0, 1, transform=whole, color=ALARM, linewidth=width, alpha=alpha)
            axes.broken_barh(labelled, (0, 1), transform=whole, facecolor=LABEL, alpha=0.4, linewidth=0)
        score.set_ylabel("score")
        score.set_xlabel("row")
        score.set_ylim(bottom=0)
        score.set_xlim(0, len(x))
        out = io.BytesIO()
        figure.savefig(out, format="png")
    return out.getvalue()


def _feature(track: Track) -> int:
    alarmed = track.verdict == ANOMALOUS
    rows = alarmed if alarmed.any() else np.nan_to_num(track.score) == np.nanmax(np.nan_to_num(track.score))
    return int(np.argmax(track.contribution[rows].astype(np.float32).sum(0)))


def _limits(values: npt.NDArray[np.float32]) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin


def _clip(values: npt.NDArray[np.float32], low: float, high: float) -> npt.NDArray[np.float32]:
    return np.asarray(np.clip(values, low, high))


def thinned(values: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Rows that look like all of them: the least and greatest known value of each stretch, the first where none is."""
    rows = len(values)
    if rows <= POINTS:
        return np.arange(rows)
    edges = np.linspace(0, rows, POINTS // 2 + 1).astype(np.int64)
    missing = np.isnan(values)
    least, greatest = np.where(missing, np.inf, values), np.where(missing, -np.inf, values)
    kept = []
    for first, end in pairwise(edges.tolist()):
        kept += [first + int(least[first:end].argmin()), first + int(greatest[first:end].argmax())]
    return np.unique(np.array(kept))
