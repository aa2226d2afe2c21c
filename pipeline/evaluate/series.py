"""Labelled series, ready to be scored: recordings with what the manifest and the side files say of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from models.evaluation.ranking import events_of
from pipeline.errors import ConfigurationError
from pipeline.evaluate.plan import BEFORE_FIRST_EVENT, Part, Plan, plan_of
from pipeline.records import Bool, Int64, UInt8
from pipeline.sources.recording import MANIFEST, RecordedStream, open_recording

WARM_UP_ROWS = 100
ROW_MS = 60_000
"""Rows of a recording without any time are taken as minutes, so that budgets and days mean something."""


class Entry(BaseModel, frozen=True):
    """What we need of one series in a manifest, beside what recordings read of it."""

    dataset: str
    series_id: str
    rows: int
    features: tuple[str, ...]
    categorical_features: tuple[str, ...] = ()
    domain: str = "other"
    timestamp_kind: str = "iso8601"
    interval_seconds: float | None = None
    train_prefix_rows: int | None = None

    @property
    def name(self) -> str:
        """``data set/series``."""
        return f"{self.dataset}/{self.series_id}"

    @property
    def plan(self) -> Plan:
        """How it is evaluated."""
        return plan_of(self.name)

    @property
    def data_set(self) -> str:
        """What it counts as in tables: its data set, or itself where the plan keeps series apart."""
        return self.name if self.plan.is_each_apart else self.dataset

    @property
    def numbers(self) -> int:
        """How many features will be scored, as far as the manifest knows."""
        return len(self.plan.columns) or len(self.features) - len(self.categorical_features)

    def part(self, is_quick: bool) -> Part:
        """The part of it that a run takes."""
        return (self.plan.quick or Part()) if is_quick else self.plan.part

    def rows_taken(self, is_quick: bool) -> int:
        """How many rows a run takes."""
        rows = self.part(is_quick).rows
        return self.rows if rows is None else min(self.rows, rows)


class _Entries(BaseModel):
    series: list[Entry]


@dataclass(frozen=True, slots=True)
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
    entry
        What the manifest says of it.
    windows
        NAB's windows as (first, last) row; empty elsewhere.
    root_causes
        What experts named, where they did.
    """

    stream: RecordedStream
    entry: Entry
    windows: tuple[tuple[int, int], ...] = ()
    root_causes: tuple[RootCause, ...] = ()

    @property
    def name(self) -> str:
        """``data set/series``."""
        return self.stream.name

    @property
    def plan(self) -> Plan:
        """How it is evaluated."""
        return self.entry.plan

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

    @property
    def is_judged(self) -> bool:
        """Whether any row is."""
        return self.judged_from < len(self.stream)

    @cached_property
    def clean_rows(self) -> slice:
        """The rows after the warm-up in which every alarm is false; maybe none."""
        clean, prefix = self.plan.clean, self.stream.train_prefix
        end = 0
        if clean == "prefix" and prefix is not None:
            labelled = np.flatnonzero(self.labels[:prefix])
            end = int(labelled[0]) if len(labelled) else min(prefix, len(self.stream))
        elif clean == "unlabelled" and not self.labels.any():
            end = len(self.stream)
        return slice(WARM_UP_ROWS, max(WARM_UP_ROWS, end))

    @cached_property
    def scored_rows(self) -> Int64:
        """The rows the pipeline does not drop as late."""
        return self.stream.rows_in_time

    @cached_property
    def row_s(self) -> float:
        """Seconds that one row stands for."""
        if self.stream.interval_s is not None:
            return self.stream.interval_s
        times = self.stream.times_ms[self.scored_rows]
        return float(times[-1] - times[0]) / (len(times) - 1) / 1000.0 if len(times) > 1 else 0.0

    def seconds_between(self, first: int, last: int) -> float:
        """Seconds of event time from one row to a later one, 0 where the clock was set back between them."""
        times = self.stream.times_ms
        return max(0.0, float(times[last] - times[first]) / 1000.0)


def read_entries(folder: Path, patterns: Sequence[str] = (), *, is_quick: bool = False) -> list[Entry]:
    """The series of a folder with a manifest.

    Parameters
    ----------
    patterns
        Data sets or glob patterns of ``data set/series``; empty takes all.
    is_quick
        Only the fixed subset that the plans name.

    Raises
    ------
    ConfigurationError
        There is no manifest, or nothing is left.
    """
    try:
        entries = _Entries.model_validate_json((folder / MANIFEST).read_bytes()).series
    except (OSError, ValidationError) as exc:
        raise ConfigurationError(f"{folder / MANIFEST}: not a manifest of labelled recordings: {exc}") from exc
    if patterns:
        chosen = set(open_recording(folder).select(patterns).names)
        entries = [entry for entry in entries if entry.name in chosen]
    if is_quick:
        entries = [entry for entry in entries if _is_quick(entry)]
    if not entries:
        raise ConfigurationError(f"{folder}: no series is left")
    return entries


def _is_quick(entry: Entry) -> bool:
    quick = entry.plan.quick
    return quick is not None and (quick.longest is None or entry.rows <= quick.longest)


def load_series(folder: Path, entries: Sequence[Entry], *, is_quick: bool = False) -> list[LabelledSeries]:
    """Read series; those without labels or without a numeric feature are left out."""
    recording = open_recording(folder)
    found = [_labelled(folder, entry, recording[entry.name], is_quick) for entry in entries]
    return [series for series in found if series is not None]


def _labelled(folder: Path, entry: Entry, stream: RecordedStream, is_quick: bool) -> LabelledSeries | None:
    labels = stream.labels
    if labels is None:
        return None
    if entry.plan.columns and set(entry.plan.columns) <= set(stream.features):
        columns = [stream.features.index(name) for name in entry.plan.columns]
        stream = replace(stream, features=entry.plan.columns, values=np.ascontiguousarray(stream.values[:, columns]))
    if not stream.features:
        return None
    if entry.timestamp_kind == "row_index":
        stream = replace(stream, times_ms=np.arange(len(stream), dtype=np.int64) * ROW_MS)
    rows = _rows(entry, labels, is_quick)
    windows = _windows(folder, entry, stream)
    causes = _root_causes(folder, entry, rows)
    return LabelledSeries(_cut(stream, rows), entry, windows, causes)


def _rows(entry: Entry, labels: UInt8, is_quick: bool) -> slice:
    part, rows, taken = entry.part(is_quick), len(labels), entry.rows_taken(is_quick)
    begin = 0
    if part.begin == "first event":
        prefix = entry.train_prefix_rows or 0
        first = int(labels[prefix:].argmax()) if labels[prefix:].any() else 0
        begin = max(0, prefix + first - BEFORE_FIRST_EVENT)
    elif part.begin == "events" and labels.any():
        events = events_of(labels.astype(np.bool_))
        begin = max(0, events[len(events) // 2][0] - taken // 2)
    begin = min(begin, max(0, rows - taken))
    return slice(begin, min(rows, begin + taken))


def _cut(stream: RecordedStream, rows: slice) -> RecordedStream:
    prefix = stream.train_prefix
    return replace(
        stream,
        times_ms=stream.times_ms[rows],
        values=stream.values[rows],
        labels=None if stream.labels is None else stream.labels[rows],
        train_prefix=None if prefix is None else max(0, min(prefix, rows.stop) - rows.start),
    )


def _windows(folder: Path, entry: Entry, stream: RecordedStream) -> tuple[tuple[int, int], ...]:
    """NAB's windows as rows: from the first row with the left time to the first one with the right time."""
    path = folder / "extra" / entry.dataset / "combined_windows.json"
    if not path.is_file():
        return ()
    named = _read_json(path)
    limits = named.get(entry.series_id.replace("__", "/") + ".csv", [])
    windows = []
    for left, right in limits:
        edges = np.array([left, right], "datetime64[ms]").astype(np.int64)
        first, last = (int(np.argmax(stream.times_ms == edge)) for edge in edges)
        if stream.times_ms[first] != edges[0] or stream.times_ms[last] != edges[1]:
            raise ConfigurationError(f"{path}: no row of {entry.series_id} has the time {left} or {right}")
        windows.append((first, last))
    return tuple(windows)


def _root_causes(folder: Path, entry: Entry, rows: slice) -> tuple[RootCause, ...]:
    path = folder / "extra" / entry.dataset / "root_cause_metrics.json"
    if not path.is_file():
        return ()
    return tuple(
        RootCause(cause["start_row"] - rows.start, cause["end_row"] - 1 - rows.start, frozenset(cause["metrics"]))
        for cause in _read_json(path).get(entry.series_id, [])
        if rows.start <= cause["start_row"] and cause["end_row"] <= rows.stop and cause["metrics"]
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"{path}: not the side file of a labelled recording: {exc}") from exc
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path}: not the side file of a labelled recording")
    return content
