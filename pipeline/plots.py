"""Pictures of what a stream did and how it was scored. Needs matplotlib, the extra ``plots``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigurationError
from pipeline.explanation import Explanation
from pipeline.records import (
    ANOMALOUS,
    BESIDE_OTHERS,
    DISPLACEMENT_SIGNAL,
    OPENED,
    RESOLVED,
    WARMING_UP,
    Bool,
    Float32,
    Int64,
)

INK, QUIET, EXPECTED, ALARM, LABEL = "#1f2933", "#9aa5b1", "#2f6db3", "#c62f2f", "#f2c14e"
GAP = 1.5  # usual steps
LEAST_SHOWN = 0.005  # of evidence; S below 0.01 counts for nothing
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "text.parse_math": False,  # names of streams and features may hold a $
    "legend.frameon": False,
    "svg.hashsalt": "tidewatch",
}


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of event time to shade, ms since the epoch, with the words for the legend."""

    begin_ms: int
    end_ms: int
    words: str


def draw_episode(explanation: Explanation, at: int, path: Path, title: str, labels: Sequence[Span] = ()) -> None:
    """An alert's episode: what was observed against what was expected, and the score below.

    Parameters
    ----------
    explanation
        The stretch to show.
    at
        Index of the observation that opened the alert; its strongest feature is shown.
    path
        PNG, SVG or PDF by its ending; overwritten.
    labels
        What is known to be wrong, shaded.

    Raises
    ------
    ConfigurationError
        matplotlib is not installed, or the file cannot be written.
    """
    explanation, at = _with_gaps(explanation, at)
    feature = explanation.strongest_feature(at)
    with _figure(path, 2, (11, 6.2), (1.6, 1.0), title) as (observed, score):
        draw_observed(observed, explanation, feature, labels)
        _draw_score(score, explanation, labels)
        _mark(observed, explanation, at, explanation.observed[at, feature])
        _mark(score, explanation, at, explanation.score[at])


def draw_explanation(explanation: Explanation, at: int, path: Path, title: str, labels: Sequence[Span] = ()) -> None:
    """As :func:`draw_episode`, with evidence and gate behind the score; ``at`` is the observation asked about."""
    explanation, at = _with_gaps(explanation, at)
    feature = explanation.strongest_feature(at)
    is_single = bool(np.isfinite(explanation.level[:, feature]).any())
    panels = 4 if is_single else 3
    with _figure(path, panels, (11, 3.0 + 2.0 * panels), (1.6, 1.0, 1.0, 0.8)[:panels], title) as axes:
        draw_observed(axes[0], explanation, feature, labels)
        _draw_score(axes[1], explanation, labels)
        if is_single:
            _draw_single(axes[2], explanation, feature)
            _draw_gate(axes[3], explanation, feature)
        else:
            _draw_contributions(axes[2], explanation, at)
        for axis in axes:
            axis.axvline(_dates(explanation.times_ms)[at], color=ALARM, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        _mark(axes[0], explanation, at, explanation.observed[at, feature])
        _mark(axes[1], explanation, at, explanation.score[at])


@contextmanager
def _figure(
    path: Path, panels: int, size: tuple[float, float], heights: Sequence[float], title: str
) -> Iterator[Sequence[Any]]:
    """Axes above each other with one time axis; written to ``path`` when the block is left."""
    try:
        import matplotlib as mpl
        from matplotlib import dates
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise ConfigurationError("pictures need matplotlib: pip install 'tidewatch[plots]'") from exc
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(panels, 1, sharex=True, height_ratios=heights)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        yield axes
        ticks: Any = dates  # its constructors are untyped
        locator = ticks.AutoDateLocator()
        axes[-1].xaxis.set_major_locator(locator)
        axes[-1].xaxis.set_major_formatter(ticks.ConciseDateFormatter(locator))
        axes[-1].set_xlabel("event time (UTC)")
        for axis in axes:
            axis.margins(x=0.01)
            axis.legend(loc="upper left", bbox_to_anchor=(1.005, 1.0), borderaxespad=0.0, fontsize=9)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=130)
        except (OSError, ValueError) as exc:
            raise ConfigurationError(f"{path}: the picture cannot be written: {exc}") from exc


def draw_observed(axis: Any, e: Explanation, feature: int, labels: Sequence[Span]) -> None:
    """One feature against what was expected of it, with what is usual where the signal compares with that."""
    dates = _dates(e.times_ms)
    _shade(axis, labels, e)
    axis.fill_between(
        dates,
        e.band_low[:, feature],
        e.band_high[:, feature],
        color=EXPECTED,
        alpha=0.18,
        linewidth=0,
        label="expected, 98 % of cases",
    )
    axis.plot(dates, e.expected[:, feature], color=EXPECTED, linewidth=1.0, label="expected")
    framed = [e.observed[:, feature]]
    displaced = e.signal == e.signals.index(DISPLACEMENT_SIGNAL)
    beside = np.isin(e.signal, [e.signals.index(name) for name in BESIDE_OTHERS])
    is_asked = ~displaced & beside.any()
    for label, is_drawn, where in (
        ("usual level", displaced.any(), ~is_asked),
        ("what the others ask for", beside.any(), is_asked),
    ):
        if is_drawn:
            framed.append(np.where(where, e.usual[:, feature], np.nan))
            axis.plot(dates, framed[-1], color=INK, linewidth=1.0, linestyle=(0, (4, 3)), label=label)
    axis.plot(dates, e.observed[:, feature], color=INK, linewidth=1.1, marker=".", markersize=2.5, label="observed")
    _limit(axis, e, feature, np.concatenate(framed))
    axis.set_ylabel(e.features[feature])


def _limit(axis: Any, e: Explanation, feature: int, seen: Float32) -> None:
    """Frame what is to be seen; a band that is wide for a moment must not flatten all the rest."""
    if not np.isfinite(seen).any():
        return
    low, high = float(np.nanmin(seen)), float(np.nanmax(seen))
    reach = max(high - low, 1e-9 * max(abs(low), abs(high)), 1e-12)
    band_low, band_high = (np.nan_to_num(band[:, feature], nan=low) for band in (e.band_low, e.band_high))
    axis.set_ylim(
        max(float(band_low.min()), low - 0.5 * reach) - 0.04 * reach,
        min(float(band_high.max()), high + 0.5 * reach) + 0.04 * reach
        if band_high.max() > high
        else high + 0.06 * reach,
    )


def _draw_alerts(axis: Any, e: Explanation) -> None:
    """A bar along the top while an alert is open."""
    dates, is_open = _dates(e.times_ms), _open_alerts(e)
    if is_open.any():
        along_the_top = {
            "y1": 0.955,
            "y2": 1.0,
            "where": is_open,
            "step": "post",
            "transform": axis.get_xaxis_transform(),
        }
        axis.fill_between(dates, color=ALARM, linewidth=0, zorder=3, label="alert open", **along_the_top)


def _open_alerts(e: Explanation) -> Bool:
    """``(T,)`` whether an alert is open after each observation; one open from before the first begins there."""
    events = np.flatnonzero((e.event == OPENED) | (e.event == RESOLVED))
    is_open = np.zeros(len(e), np.bool_)
    for at in events.tolist():
        is_open[at:] = e.event[at] == OPENED
    if len(events) and e.event[events[0]] == RESOLVED:
        is_open[: events[0]] = True
    return is_open


def _draw_score(axis: Any, e: Explanation, labels: Sequence[Span]) -> None:
    dates = _dates(e.times_ms)
    _shade(axis, [Span(span.begin_ms, span.end_ms, "") for span in labels], e)
    axis.fill_between(dates, 0, np.nan_to_num(e.score), color=QUIET, alpha=0.35, linewidth=0, step="mid")
    axis.plot(dates, e.score, color=INK, linewidth=1.0, drawstyle="steps-mid", label="score, −log₁₀ p")
    axis.plot(dates, e.threshold, color=ALARM, linewidth=1.2, linestyle=(0, (5, 2)), label="threshold")
    alarms = e.verdict == ANOMALOUS
    if alarms.any():
        axis.plot(dates[alarms], e.score[alarms], "o", color=ALARM, markersize=3.5, label="anomalous")
    for begin, end in _runs(e.verdict == WARMING_UP):
        axis.axvspan(dates[begin], dates[end - 1], color=QUIET, alpha=0.2, linewidth=0)
    axis.set_ylim(0.0, 1.15 * max(float(np.nanmax(np.nan_to_num(e.score))), float(np.nanmax(e.threshold))))
    axis.set_ylabel("score")
    _draw_alerts(axis, e)


def _draw_single(axis: Any, e: Explanation, feature: int) -> None:
    dates = _dates(e.times_ms)
    record, level = e.record[:, feature], e.level[:, feature]
    axis.plot(dates, e.activity[:, feature], color=EXPECTED, linewidth=1.0, label="A: activity, 1 is usual")
    axis.plot(dates, e.displacement[:, feature], color=LABEL, linewidth=1.0, label="displacement, σ")
    axis.plot(dates, e.stillness[:, feature], color=QUIET, linewidth=1.0, linestyle=(0, (2, 2)), label="stillness")
    axis.plot(dates[record > 0], record[record > 0], "o", color=QUIET, markersize=3, label="new level, before the gate")
    axis.plot(dates[level > 0], level[level > 0], "o", color=INK, markersize=3.5, label="S: what of it counts")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")  # its own would write powers as formulas
    axis.yaxis.set_minor_formatter("")
    axis.set_ylim(bottom=LEAST_SHOWN)
    axis.set_ylabel("evidence")


def _draw_gate(axis: Any, e: Explanation, feature: int) -> None:
    dates = _dates(e.times_ms)
    axis.fill_between(dates, 0, e.opening[:, feature], color=LABEL, alpha=0.6, linewidth=0, step="mid", label="gate")
    axis.plot(dates, e.controller, color=ALARM, linewidth=1.0, label="controller d, nats")
    lowest, highest = float(np.nanmin(e.controller)), float(np.nanmax(e.controller))
    axis.set_ylim(min(0.0, lowest - 0.05), max(1.05, highest + 0.1))
    axis.set_ylabel("gate, d")


def _draw_contributions(axis: Any, e: Explanation, at: int) -> None:
    """What the features contributed that were strongest at the observation asked about."""
    strongest = np.argsort(-np.nan_to_num(e.contribution[at], nan=-1.0), kind="stable")[:5]
    dates = _dates(e.times_ms)
    parts = np.nan_to_num(e.contribution[:, strongest]).T
    axis.stackplot(dates, parts, labels=[e.features[feature] for feature in strongest.tolist()], alpha=0.75)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("nats by feature")


def _mark(axis: Any, e: Explanation, at: int, value: float) -> None:
    if np.isfinite(value):
        axis.plot([_dates(e.times_ms)[at]], [value], "o", color=ALARM, markersize=7, markerfacecolor="none", zorder=5)


def _shade(axis: Any, spans: Sequence[Span], e: Explanation) -> None:
    """Shade what of the spans lies within the times shown: the rest would squeeze these into a corner."""
    first, last = int(e.times_ms[0]), int(e.times_ms[-1])
    said = {""}
    for span in spans:
        if span.end_ms < first or span.begin_ms > last:
            continue
        begin, end = _dates(np.array([max(span.begin_ms, first), min(span.end_ms, last)], np.int64))
        axis.axvspan(
            begin, end, color=LABEL, alpha=0.25, linewidth=0, zorder=0, label=None if span.words in said else span.words
        )
        said.add(span.words)


def _with_gaps(e: Explanation, at: int) -> tuple[Explanation, int]:
    """The same with an empty observation in every gap, so that no line is drawn across it."""
    steps = np.diff(e.times_ms)
    before = np.flatnonzero(steps > GAP * np.median(steps)) + 1 if len(steps) else np.zeros(0, np.int64)
    filled: dict[str, Any] = {}
    for field in fields(e):
        column = getattr(e, field.name)
        if isinstance(column, np.ndarray):
            nothing = np.nan if column.dtype.kind == "f" else "" if column.dtype.kind == "U" else 0
            filled[field.name] = np.insert(column, before, nothing, axis=0)
    filled["times_ms"] = np.insert(e.times_ms, before, (e.times_ms[before - 1] + e.times_ms[before]) // 2)
    return replace(e, **filled), at + int((before <= at).sum())


def _runs(where: Bool) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], where, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _dates(times_ms: Int64) -> npt.NDArray[np.datetime64]:
    return times_ms.astype("datetime64[ms]")


def utc(time_ms: int) -> str:
    """Event time for a title, to the minute."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
