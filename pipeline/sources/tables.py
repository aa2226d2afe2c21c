"""Recorded tables, CSV, JSON Lines and Parquet, as columns of numbers.

A row is one observation. Columns: ``timestamp`` (or ``time``), optionally ``stream_id`` and ``label``, and features.
An empty cell, null or NaN is a missing value. A feature with anything that is no number is left out and named in
``Table.dropped``. JSON Lines may also hold windows as producers send them (see :mod:`pipeline.wire`).

Timestamps: ISO 8601 (UTC where no zone is given), ``seconds`` or ms since the epoch or since the first row, or a
plain row number, which is taken as seconds. What is finer than a microsecond is lost.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
from pydantic import ValidationError

from pipeline.errors import ConfigurationError
from pipeline.profile import Profile
from pipeline.records import CONTROL_NONE, Float32, Int64, Partition, StoredRecord, UInt8
from pipeline.settings import Limits
from pipeline.wire import WindowMessage, decode_many, labels_of

TimestampKind = Literal["iso8601", "seconds", "row_index"]

_ROWS_AT_ONCE = 20_000
_TIMESTAMP, _STREAM, _LABEL = ("timestamp", "time"), "stream_id", "label"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# Numbers from here on are ms since the epoch (1973 as ms, the year 5138 as seconds); seconds from here on are a clock.
_MILLISECONDS_FROM = 1e11
_CLOCK_FROM_S = 1e8
_LATEST_US = 253_402_300_799e6
_NO_TIME = "a timestamp is missing"


@dataclass(frozen=True, slots=True)
class Table:
    """A recorded table: ``(T,)`` columns in the order of the file; ``stream_ids`` where rows name their stream."""

    times_us: Int64
    columns: dict[str, Float32]
    labels: UInt8 | None
    stream_ids: list[str] | None
    clock: bool
    dropped: tuple[str, ...]


def read_table(path: Path, kind: TimestampKind | None = None, categorical: frozenset[str] = frozenset()) -> Table:
    """Read one file.

    Parameters
    ----------
    kind
        What the timestamps are; ``None`` looks at the first one.
    categorical
        Columns that are codes, to be left out even where they look like numbers.

    Raises
    ------
    ConfigurationError
        Unknown ending, no timestamps, ragged or unreadable content.
    """
    name = path.name.removesuffix(".gz")
    for end, read in READERS.items():
        if name.endswith(end):
            try:
                return read(path, kind, categorical)
            except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as exc:
                raise ConfigurationError(f"{path}: cannot be read: {exc}") from exc
            except ValueError as exc:
                raise ConfigurationError(f"{path}: {exc}") from exc
    raise ConfigurationError(f"{path}: recordings end in {', '.join(READERS)} (and .gz)")


class _Collector:
    """Collects rows, some thousand at a time, into columns."""

    def __init__(self, names: Sequence[str], kind: TimestampKind | None, categorical: frozenset[str]) -> None:
        found = [name for name in _TIMESTAMP if name in names]
        if not found:
            raise ValueError(f"no column {' or '.join(_TIMESTAMP)} among {list(names)}")
        if len(set(names)) < len(names):
            raise ValueError(f"a column name stands twice among {list(names)}")
        self._time = found[0]
        self._kind = kind
        self._clock = True
        self._names = tuple(names)
        self._dropped = dict.fromkeys(name for name in names if name in categorical)
        self._numbers: dict[str, list[Float32]] = {
            name: [] for name in names if name not in (self._time, _STREAM, _LABEL) and name not in categorical
        }
        self._times: list[Int64] = []
        self._labels: list[UInt8] = []
        self._streams: list[str] = []

    def add(self, columns: Sequence[Sequence[Any]]) -> None:
        """Add one batch of rows, given as columns of texts or numbers."""
        for name, column in zip(self._names, columns, strict=True):
            if name == self._time:
                if self._kind is None:
                    self._kind, self._clock = _kind_of(column[0])
                self._times.append(_times_us(column, self._kind))
            elif name == _STREAM:
                self._streams.extend(map(str, column))
            elif name == _LABEL:
                self._labels.append(np.array([_label(cell) for cell in column], np.uint8))
            elif name in self._numbers:
                numbers = _numbers(column)
                if numbers is None:
                    del self._numbers[name]
                    self._dropped[name] = None
                else:
                    self._numbers[name].append(numbers)

    def table(self) -> Table:
        if not self._times:
            raise ValueError("no rows")
        return Table(
            times_us=np.concatenate(self._times),
            columns={name: np.concatenate(parts) for name, parts in self._numbers.items()},
            labels=np.concatenate(self._labels) if _LABEL in self._names else None,
            stream_ids=self._streams if _STREAM in self._names else None,
            clock=self._clock and self._kind != "row_index",
            dropped=tuple(self._dropped),
        )


def _kind_of(cell: Any) -> tuple[TimestampKind, bool]:
    """What the first timestamp shows: the kind, and whether it is a clock time."""
    if cell is None:
        raise ValueError(_NO_TIME)
    try:
        number = float(cell)
    except ValueError:
        return "iso8601", True
    return "seconds", number >= _CLOCK_FROM_S


def _times_us(column: Sequence[Any], kind: TimestampKind) -> Int64:
    if None in column:
        raise ValueError(_NO_TIME)
    if kind == "iso8601":
        return np.fromiter((_iso_us(cell) for cell in column), np.int64, len(column))
    numbers = np.fromiter(map(float, column), np.float64, len(column))
    if not np.isfinite(numbers).all():
        raise ValueError(_NO_TIME)
    in_ms = kind == "seconds" and numbers[0] >= _MILLISECONDS_FROM
    micros = np.rint(numbers * (1e3 if in_ms else 1e6))
    if np.abs(micros).max() > _LATEST_US:
        raise ValueError(f"a timestamp is beyond the year 9999: {column[int(np.abs(micros).argmax())]}")
    return micros.astype(np.int64)


def _iso_us(cell: Any) -> int:
    time = datetime.fromisoformat(str(cell))
    return ((time if time.tzinfo is not None else time.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND


def _numbers(column: Sequence[Any]) -> Float32 | None:
    """The column as numbers, or ``None`` where a cell is none."""
    try:
        cells = ("nan" if cell is None or cell == "" else cell for cell in column)
        with np.errstate(over="ignore"):
            return np.fromiter(map(float, cells), np.float64, len(column)).astype(np.float32)
    except (ValueError, TypeError):
        return None


def _label(cell: Any) -> int:
    return 0 if cell is None or cell == "" else int(float(cell) != 0)


def open_binary(path: Path) -> BinaryIO:
    """Bytes of a file, unpacked where its name ends in ``.gz``."""
    return cast("BinaryIO", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


# --- CSV --------------------------------------------------------------------------------------------------------------


def _read_csv(path: Path, kind: TimestampKind | None, categorical: frozenset[str]) -> Table:
    with io.TextIOWrapper(open_binary(path), encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text)
        header = next(reader, [])
        collector = _Collector(header, kind, categorical)
        while rows := list(islice(reader, _ROWS_AT_ONCE)):
            rows = [row for row in rows if row]
            if not set(map(len, rows)) <= {len(header)}:
                ragged = next(row for row in rows if len(row) != len(header))
                raise ValueError(f"a row has {len(ragged)} cells, the header {len(header)}: {','.join(ragged)[:80]}")
            if rows:
                collector.add(list(zip(*rows, strict=True)))
    return collector.table()


# --- JSON Lines -------------------------------------------------------------------------------------------------------


def _read_jsonl(path: Path, kind: TimestampKind | None, categorical: frozenset[str]) -> Table:
    with open_binary(path) as lines:
        filled = [line for line in lines if not line.isspace()]
    first = json.loads(filled[0]) if filled else None
    if not isinstance(first, dict):
        raise ValueError("not one JSON object per line")
    return _from_windows(filled) if "values" in first else _from_rows(filled, kind, categorical)


def _from_rows(lines: Sequence[bytes], kind: TimestampKind | None, categorical: frozenset[str]) -> Table:
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is no JSON object")
    names = list(dict.fromkeys(name for row in rows for name in row))
    collector = _Collector(names, kind, categorical)
    collector.add([[row.get(name) for row in rows] for name in names])
    return collector.table()


def _from_windows(lines: Sequence[bytes]) -> Table:
    """Windows as producers send them, through the decoder that serves Kafka; all must have the same features."""
    try:
        first = WindowMessage.model_validate_json(lines[0])
    except ValidationError as exc:
        raise ValueError(f"the first line is no window: {exc.errors()[0]['msg']}") from exc
    width = len(first.values[0]) if first.values else 1
    unnamed = ("value",) if width == 1 else tuple(f"feature_{i}" for i in range(width))
    profile = Profile(topics=("recording",), features=tuple(first.features or unnamed))
    limits = Limits(max_features=4096, max_window_length=32768, max_message_bytes=1 << 30, max_stream_id_length=4096)
    records = [StoredRecord(number, -1, None, line) for number, line in enumerate(lines)]
    decoded, dead = decode_many(records, Partition("recording", 0), profile, limits)
    if dead:
        raise ValueError(f"line {dead[0].offset + 1}: {dead[0].reason}")
    if (decoded.control != CONTROL_NONE).any():
        raise ValueError("control records are kept only in record files")
    labels = [labels_of(line) for line in lines]
    joined = [
        found if found is not None and len(found) == length else np.zeros(length, np.uint8)
        for found, length in zip(labels, decoded.lengths.tolist(), strict=True)
    ]
    return Table(
        times_us=decoded.times_ms * 1000,
        columns={name: decoded.values[:, i] for i, name in enumerate(profile.features)},
        labels=np.concatenate(joined) if any(found is not None for found in labels) else None,
        stream_ids=np.repeat(np.array(decoded.stream_ids, object), decoded.lengths).tolist(),
        clock=bool(decoded.times_ms[0] >= _CLOCK_FROM_S * 1000),
        dropped=(),
    )


# --- Parquet ----------------------------------------------------------------------------------------------------------


def _read_parquet(path: Path, kind: TimestampKind | None, categorical: frozenset[str]) -> Table:
    try:
        import pyarrow as pa
        from pyarrow import compute as pc
        from pyarrow import parquet
    except ImportError as exc:
        raise ConfigurationError(f"{path}: Parquet needs pyarrow: pip install 'tidewatch[parquet]'") from exc
    try:
        read = parquet.read_table(path)
    except pa.ArrowException as exc:
        raise ValueError(f"not Parquet: {exc}") from exc
    names = list(read.column_names)
    collector = _Collector(names, kind, categorical)
    columns: list[Sequence[Any]] = []
    for name in names:
        column = read.column(name)
        if pa.types.is_timestamp(column.type):
            since_epoch = column.cast(pa.timestamp("us", tz=column.type.tz), safe=False).cast(pa.int64())
            column = pc.divide(since_epoch.cast(pa.float64()), 1e6)
        columns.append(column.to_pylist())
    collector.add(columns)
    return collector.table()


_Reader = Callable[[Path, TimestampKind | None, frozenset[str]], Table]
READERS: dict[str, _Reader] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
