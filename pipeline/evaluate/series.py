"""Labelled series, ready to be scored: recordings with what the manifest and the side files say of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ValidationError

from pipeline.errors import ConfigurationError
from pipeline.evaluate.plan import Plan, plan_of
from pipeline.records import Bool, Int64
from pipeline.sources.recording import MANIFEST, RecordedStream, open_recording

WARM_UP_ROWS = 100
ROW_MS = 60_000
"""Rows of a recording without any time are taken as minutes, so that budgets and days mean something."""


@dataclass(frozen=True)
class RootCause:
    """The features that experts named for a labelled stretch, first and last row inclusive."""

    first: int
    last: int
    features: frozenset[str]


@dataclass(frozen=True)
class LabelledSeries:
    """One recorded series with labels.

    Attributes
    ----------
    stream
        What is scored.
    data_set, domain
        Where it belongs.
    has_time
        Whether rows have event times; otherwise a row counts as a minute.
    windows
        NAB's windows as (first, last) row; empty elsewhere.
    root_causes
        What experts named, where they did.
    """

    stream: RecordedStream
    data_set: str
    domain: str
    plan: Plan
    has_time: bool
    windows: tuple[tuple[int, int], ...] = ()
    root_causes: tuple[RootCause, ...] = ()

    @property
    def name(self) -> str:
        """``data set/series``."""
        return self.stream.name

    @cached_property
    def labels(self) -> Bool:
        """``(T,)``."""
        assert self.stream.labels is not None
        return self.stream.labels.astype(np.bool_)

    @cached_property
    def judged_from(self) -> int:
        """The first row that is judged: after the training prefix, else after 100 rows."""
        prefix = self.stream.train_prefix
        return min(len(self.stream), WARM_UP_ROWS if prefix is None else max(prefix, WARM_UP_ROWS))

    @cached_property
    def scored_rows(self) -> Int64:
        """The rows the pipeline does not drop as late: those after all earlier ones in time."""
        times = self.stream.times_ms
        before = np.maximum.accumulate(np.concatenate(([np.iinfo(np.int64).min], times[:-1])))
        return np.flatnonzero(times > before)

    @cached_property
    def day_share(self) -> float:
        """Days that one row stands for."""
        if self.stream.interval_s is not None:
            return self.stream.interval_s / 86_400.0
        times = self.stream.times_ms[self.scored_rows]
        if len(times) < 2:
            return 0.0
        return float(times[-1] - times[0]) / (len(times) - 1) / 86_400_000.0


class _Entry(BaseModel):
    dataset: str
    series_id: str
    domain: str = "other"
    timestamp_kind: str = "iso8601"


class _Entries(BaseModel):
    series: list[_Entry]


def load_series(folder: Path, patterns: Sequence[str] = (), *, is_quick: bool = False) -> list[LabelledSeries]:
    """The labelled series of a folder with a manifest.

    Parameters
    ----------
    patterns
        Data sets or glob patterns of ``data set/series``; empty takes all.
    is_quick
        Only the fixed subset of each data set's plan.

    Raises
    ------
    ConfigurationError
        There is no manifest, or nothing labelled is left.
    """
    try:
        entries = _Entries.model_validate_json((folder / MANIFEST).read_bytes()).series
    except (OSError, ValidationError) as exc:
        raise ConfigurationError(f"{folder / MANIFEST}: not a manifest of labelled recordings: {exc}") from exc
    recording = open_recording(folder)
    if patterns:
        recording = recording.select(patterns)
    known = {f"{entry.dataset}/{entry.series_id}": entry for entry in entries}
    chosen = [known[name] for name in recording.names if not is_quick or _is_quick(known[name])]
    found = [_labelled(folder, entry, recording[f"{entry.dataset}/{entry.series_id}"]) for entry in chosen]
    labelled = [series for series in found if series is not None]
    if not labelled:
        raise ConfigurationError(f"{folder}: no labelled series is left")
    return labelled


def _is_quick(entry: _Entry) -> bool:
    quick = plan_of(entry.dataset).quick
    return quick is None or entry.series_id in quick


def _labelled(folder: Path, entry: _Entry, stream: RecordedStream) -> LabelledSeries | None:
    if stream.labels is None:
        return None
    plan, has_time = plan_of(entry.dataset), entry.timestamp_kind != "row_index"
    if plan.columns:
        columns = [stream.features.index(name) for name in plan.columns]
        stream = replace(stream, features=plan.columns, values=np.ascontiguousarray(stream.values[:, columns]))
    if not stream.features:
        return None
    if plan.rows_at_most is not None:
        stream = _head(stream, plan.rows_at_most)
    if not has_time:
        stream = replace(stream, times_ms=np.arange(len(stream), dtype=np.int64) * ROW_MS)
    windows = _windows(folder, entry.series_id, stream) if entry.dataset == "nab" else ()
    causes = _root_causes(folder, entry, len(stream))
    return LabelledSeries(stream, entry.dataset, entry.domain, plan, has_time, windows, causes)


def _head(stream: RecordedStream, rows: int) -> RecordedStream:
    labels = None if stream.labels is None else stream.labels[:rows]
    return replace(stream, times_ms=stream.times_ms[:rows], values=stream.values[:rows], labels=labels)


def _windows(folder: Path, series_id: str, stream: RecordedStream) -> tuple[tuple[int, int], ...]:
    """NAB's windows as rows: from the first row with the left time to the first one with the right time."""
    path = folder / "extra" / "nab" / "combined_windows.json"
    named = _read_json(path)
    limits = named.get(series_id.replace("__", "/") + ".csv", []) if isinstance(named, dict) else []
    windows = []
    for left, right in limits:
        edges = np.array([left, right], "datetime64[ms]").astype(np.int64)
        first, last = (int(np.argmax(stream.times_ms == edge)) for edge in edges)
        if stream.times_ms[first] != edges[0] or stream.times_ms[last] != edges[1]:
            raise ConfigurationError(f"{path}: no row of {series_id} has the time {left} or {right}")
        windows.append((first, last))
    return tuple(windows)


def _root_causes(folder: Path, entry: _Entry, rows: int) -> tuple[RootCause, ...]:
    path = folder / "extra" / entry.dataset / "root_cause_metrics.json"
    if not path.is_file():
        return ()
    named = _read_json(path)
    causes = named.get(entry.series_id, []) if isinstance(named, dict) else []
    return tuple(
        RootCause(cause["start_row"], cause["end_row"] - 1, frozenset(cause["metrics"]))
        for cause in causes
        if cause["end_row"] <= rows and cause["metrics"]
    )


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"{path}: not the side file of a labelled recording: {exc}") from exc
