"""Recordings: what was recorded, as streams; streams cut into windows for replay.

These are series of observations: CSV, JSON Lines, Parquet, folders with a manifest. The very bytes of a topic's
records are in record files, which :mod:`pipeline.sources.record_file` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ValidationError

from pipeline.errors import ConfigurationError
from pipeline.records import Float32, Int64, UInt8
from pipeline.sources.tables import READERS, Table, TimestampKind, read_table

RECORD_FILE_ENDS = (".records.jsonl", ".records.jsonl.gz")
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class RecordedStream:
    """One recorded stream, in the order of its recording.

    Attributes
    ----------
    name
        The stream's id.
    features
        Names of the F columns.
    interval_s
        Seconds between observations; ``None`` where there is no fixed interval.
    times_ms
        ``(T,)`` event times. They may repeat or step back, as they did in the source: the pipeline judges lateness.
    values
        ``(T, F)`` float32, NaN where missing.
    labels
        ``(T,)`` 0 or 1, ``None`` where the recording has none.
    clock
        Whether event times are clock times; otherwise they count from 1970-01-01.
    train_prefix
        Leading observations a detector may learn from before it is judged; ``None`` where none are defined.
    left_out
        Why each column that is no feature was left out, by its name.
    """

    name: str
    features: tuple[str, ...]
    interval_s: float | None
    times_ms: Int64
    values: Float32
    labels: UInt8 | None = None
    clock: bool = True
    train_prefix: int | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.times_ms)

    @property
    def dropped(self) -> tuple[str, ...]:
        """Columns left out because they are codes or no numbers."""
        return tuple(self.left_out)

    @property
    def rows_in_time(self) -> Int64:
        """The rows after all earlier ones in event time; the pipeline drops the others as late."""
        times = self.times_ms
        before = np.maximum.accumulate(np.concatenate(([np.iinfo(np.int64).min], times[:-1])))
        return np.flatnonzero(times > before)


class Recording:
    """Recorded streams by name, each loaded when it is asked for and kept by nobody.

    Parameters
    ----------
    name
        Where it came from, for messages.
    loaders
        Stream name -> what loads it.
    """

    def __init__(self, name: str, loaders: Mapping[str, Callable[[], RecordedStream]]) -> None:
        self.name = name
        self._loaders = dict(loaders)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the streams, in the order of the recording."""
        return tuple(self._loaders)

    def __len__(self) -> int:
        return len(self._loaders)

    def __iter__(self) -> Iterator[RecordedStream]:
        return (load() for load in self._loaders.values())

    def __getitem__(self, name: str) -> RecordedStream:
        return self._loaders[name]()

    def select(self, patterns: Sequence[str]) -> Recording:
        """Only the streams a glob pattern names; a pattern without ``/`` also selects a whole data set.

        Raises
        ------
        ConfigurationError
            A pattern selects nothing.
        """
        chosen: set[str] = set()
        for pattern in patterns:
            found = [name for name in self._loaders if fnmatchcase(name, pattern) or name.startswith(f"{pattern}/")]
            if not found:
                some = ", ".join(self.names[:5])
                raise ConfigurationError(f"{self.name}: no stream matches {pattern!r}; there are {len(self)}: {some} …")
            chosen |= set(found)
        return Recording(self.name, {name: load for name, load in self._loaders.items() if name in chosen})


# --- opening ----------------------------------------------------------------------------------------------------------


class _Series(BaseModel):
    """What we need of one entry of a manifest."""

    dataset: str
    series_id: str
    file: str
    features: list[str]
    categorical_features: list[str] = []
    timestamp_kind: TimestampKind = "iso8601"
    interval_seconds: float | None = None
    train_prefix_rows: int | None = None
    rows: int | None = None

    @property
    def name(self) -> str:
        return f"{self.dataset}/{self.series_id}"


class _Manifest(BaseModel):
    series: list[_Series]


def open_recording(path: Path, kind: TimestampKind | None = None) -> Recording:
    """The streams of a file or folder.

    Parameters
    ----------
    path
        A CSV, JSON Lines or Parquet file (``.gz`` allowed); a folder with a manifest, whose streams are named
        ``dataset/series``; a series of such a folder, by its file or as ``folder/dataset/series``;
        or a folder of files without a manifest.
    kind
        What the timestamps of plain files are; ``None`` looks at them.

    Raises
    ------
    ConfigurationError
        Nothing readable is there; the message says what was expected.
    """
    if path.name.endswith(RECORD_FILE_ENDS):
        raise ConfigurationError(f"{path}: holds raw records of a topic, which need a profile to be understood")
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return _open_manifest(path)
        return _open_folder(path, kind)
    for folder in list(path.parents)[:2]:
        if (folder / MANIFEST).is_file():
            listed = _open_manifest(folder, file=str(path.relative_to(folder)))
            if len(listed):
                return listed
    if not path.is_file():
        raise ConfigurationError(f"{path}: no such recording")
    return _named({stream.name: stream for stream in _plain_streams(path, _stem(path), kind)}, str(path))


def _open_manifest(folder: Path, file: str | None = None) -> Recording:
    """All series of a manifest, or those that ``file`` (or ``dataset/series``) names."""
    try:
        manifest = _Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError) as exc:
        raise ConfigurationError(f"{folder / MANIFEST}: not a manifest of recordings: {exc}") from exc
    series = [item for item in manifest.series if file in (None, item.file, item.name)]
    return Recording(str(folder), {item.name: partial(_load_series, folder, item) for item in series})


def _load_series(folder: Path, series: _Series) -> RecordedStream:
    table = read_table(folder / series.file, series.timestamp_kind, frozenset(series.categorical_features))
    missing = [name for name in series.features if name not in table.columns and name not in table.left_out]
    if missing or (series.rows is not None and series.rows != len(table.times_us)):
        raise ConfigurationError(
            f"{folder / series.file}: {len(table.times_us)} rows and columns {list(table.columns)} are not what the "
            f"manifest says ({series.rows} rows, {series.features})"
        )
    [stream] = _streams_of(table, series.name)
    return RecordedStream(
        stream.name,
        stream.features,
        series.interval_seconds,
        stream.times_ms,
        stream.values,
        stream.labels,
        clock=series.timestamp_kind == "iso8601",
        train_prefix=series.train_prefix_rows,
        left_out=stream.left_out,
    )


def _open_folder(folder: Path, kind: TimestampKind | None) -> Recording:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and _reader_end(file) is not None)
    if not files:
        raise ConfigurationError(f"{folder}: no {MANIFEST} and no file ending in {', '.join(READERS)}")
    streams: dict[str, RecordedStream] = {}
    for file in files:
        for stream in _plain_streams(file, str(file.relative_to(folder).parent / _stem(file)), kind):
            if stream.name in streams:
                raise ConfigurationError(f"{file}: the stream {stream.name!r} is in another file as well")
            streams[stream.name] = stream
    return _named(streams, str(folder))


def _plain_streams(path: Path, name: str, kind: TimestampKind | None) -> list[RecordedStream]:
    return _streams_of(read_table(path, kind), name)


def _named(streams: Mapping[str, RecordedStream], name: str) -> Recording:
    return Recording(name, {stream: partial(streams.__getitem__, stream) for stream in streams})


def _reader_end(path: Path) -> str | None:
    name = path.name.removesuffix(".gz")
    if path.name.endswith(RECORD_FILE_ENDS):
        return None
    return next((end for end in READERS if name.endswith(end)), None)


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(_reader_end(path) or "")


def _streams_of(table: Table, name: str) -> list[RecordedStream]:
    """One stream per stream id in the table, rows in their order; the whole table as ``name`` where it has none."""
    values = np.column_stack(list(table.columns.values())) if table.columns else np.zeros((len(table.times_us), 0))
    values = np.ascontiguousarray(values, np.float32)
    if table.stream_ids is None:
        rows_of = {name: np.arange(len(table.times_us))}
    else:
        numbers = {stream_id: number for number, stream_id in enumerate(dict.fromkeys(table.stream_ids))}
        number_of_row = np.fromiter((numbers[stream_id] for stream_id in table.stream_ids), np.int64)
        order = np.argsort(number_of_row, kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(number_of_row))[:-1])
        rows_of = dict(zip(numbers, parts, strict=True))
    streams = []
    for stream_id, rows in rows_of.items():
        times_ms = _event_times_ms(table.times_us[rows])
        labels = None if table.labels is None else table.labels[rows]
        streams.append(
            RecordedStream(
                stream_id,
                tuple(table.columns),
                _regular_interval_s(times_ms),
                times_ms,
                values[rows],
                labels,
                clock=table.clock,
                left_out=table.left_out,
            )
        )
    return streams


def _event_times_ms(times_us: Int64) -> Int64:
    """Event times of one stream, in whole ms, in which equal times are repeats and what is earlier is late.

    Packets of one ms are neither: what came later in the source comes at the next ms that is free (so that more than
    1000 a second take longer than they did). Times that repeat or step back in the source still do.
    """
    before = np.maximum.accumulate(np.concatenate(([np.iinfo(np.int64).min], times_us[:-1])))
    is_newest, times_ms = times_us > before, times_us // 1000
    rank = np.cumsum(is_newest)
    moved = np.maximum.accumulate((times_ms - rank)[is_newest]) + rank[is_newest]
    times_ms[times_us >= before] = moved[(rank - 1)[times_us >= before]]
    return times_ms


def _regular_interval_s(times_ms: Int64) -> float | None:
    """The usual step, where nine of ten steps are that long."""
    steps = np.diff(times_ms)
    if not len(steps):
        return None
    usual = np.median(steps)
    regular = usual > 0 and (np.abs(steps - usual) <= 0.01 * usual).mean() >= 0.9
    return float(usual) / 1000 if regular else None


# --- cutting ----------------------------------------------------------------------------------------------------------


class RecordedWindow(NamedTuple):
    """A window of a recorded stream: strictly increasing times (T,), values (T, F), labels (T,) or ``None``."""

    stream_id: str
    times_ms: Int64
    values: Float32
    labels: UInt8 | None


class WindowSequence:
    """Windows of many streams in the order in which live producers would have sent them.

    A window is sent when its last observation is made; the windows of one stream stay in the order of the recording,
    so what arrived late there arrives late here. Windows are views into the streams, made one at a time.
    """

    def __init__(self, streams: Sequence[RecordedStream], length: int) -> None:
        self._streams = streams
        cuts = [_cut(stream.times_ms, length) for stream in streams]
        self._stream = np.repeat(np.arange(len(streams)), [len(cut) for cut in cuts])
        self._begin = np.concatenate([cut[:, 0] for cut in cuts]) if cuts else np.zeros(0, np.int64)
        self._end = np.concatenate([cut[:, 1] for cut in cuts]) if cuts else np.zeros(0, np.int64)
        sent_ms = [np.maximum.accumulate(s.times_ms[c[:, 1] - 1]) for s, c in zip(streams, cuts, strict=True)]
        self._order = np.argsort(np.concatenate(sent_ms) if sent_ms else np.zeros(0, np.int64), kind="stable")
        self.observations = int((self._end - self._begin).sum())

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[RecordedWindow]:
        for at in self._order:
            stream = self._streams[self._stream[at]]
            span = slice(self._begin[at], self._end[at])
            labels = None if stream.labels is None else stream.labels[span]
            yield RecordedWindow(stream.name, stream.times_ms[span], stream.values[span], labels)


def windows(
    recordings: Iterable[Iterable[RecordedStream]],
    length: int = 1,
    *,
    start_ms: int | None = None,
    end_ms: int | None = None,
    streams: Sequence[str] = (),
) -> WindowSequence:
    """Cut the streams of all recordings into windows, interleaved in event-time order.

    Parameters
    ----------
    length
        Observations in a window; fewer at the end of a stream, and where times do not increase.
    start_ms, end_ms
        Only observations with ``start_ms <= time < end_ms``.
    streams
        Glob patterns of stream names; empty takes all.

    Raises
    ------
    ConfigurationError
        Two streams have one name, or nothing is left.
    """
    chosen: dict[str, RecordedStream] = {}
    for recording in recordings:
        for stream in recording:
            if streams and not any(fnmatchcase(stream.name, pattern) for pattern in streams):
                continue
            if stream.name in chosen:
                raise ConfigurationError(f"the stream {stream.name!r} is in two recordings")
            chosen[stream.name] = _between(stream, start_ms, end_ms)
    if not any(len(stream) for stream in chosen.values()):
        raise ConfigurationError("no observation is left: check the range of times and the names of streams")
    return WindowSequence([stream for stream in chosen.values() if len(stream)], length)


def _between(stream: RecordedStream, start_ms: int | None, end_ms: int | None) -> RecordedStream:
    if start_ms is None and end_ms is None:
        return stream
    kept = np.ones(len(stream), np.bool_)
    if start_ms is not None:
        kept &= stream.times_ms >= start_ms
    if end_ms is not None:
        kept &= stream.times_ms < end_ms
    return RecordedStream(
        stream.name,
        stream.features,
        stream.interval_s,
        stream.times_ms[kept],
        stream.values[kept],
        None if stream.labels is None else stream.labels[kept],
        clock=stream.clock,
        left_out=stream.left_out,
    )


def _cut(times_ms: Int64, length: int) -> Int64:
    """``(W, 2)`` begin and end of windows: ``length`` observations, never across a time that does not increase."""
    row = np.arange(len(times_ms))
    run_starts = np.concatenate([[True], np.diff(times_ms) <= 0])
    in_run = row - np.maximum.accumulate(np.where(run_starts, row, 0))
    begin = np.flatnonzero(in_run % length == 0)
    return np.column_stack([begin, np.append(begin[1:], len(times_ms))])
