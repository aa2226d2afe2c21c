"""Recorded tables, CSV, JSON Lines and Parquet, as columns of numbers.

A row is one observation. Columns: ``timestamp`` (or ``time``), optionally ``stream_id`` and ``label``, in any case, and
features.
An empty cell, null, NaN and what people write for it (``n/a``, ``-``) is a missing value; true and false are 1 and 0.
Between semicolons a number may have a decimal comma. A feature with anything else that is no number is left out, and
``Table.left_out`` says why. Rows are counted from 1, without header and empty lines. JSON Lines may also hold windows
as producers send them (see :mod:`pipeline.wire`).

Timestamps: ISO 8601 (UTC where no zone is given); numbers since the epoch, in seconds, ms, us or ns, as the size of the
first one shows; ``seconds`` since the first row; or a plain row number, which is taken as seconds. None is before 1970,
which the wire refuses. What is finer than a microsecond is lost.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain, islice
from math import isnan
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from pipeline.epoch import since_epoch
from pipeline.errors import ConfigurationError
from pipeline.profile import Profile
from pipeline.records import CONTROL_NONE, Float32, Int64, Partition, StoredRecord, UInt8
from pipeline.settings import Limits
from pipeline.wire import WindowMessage, decode_many, labels_of

TimestampKind = Literal["iso8601", "seconds", "row_index"]
T = TypeVar("T")

_ROWS_AT_ONCE = 1_000  # so many cells as texts stay in a processor's cache
_TIMESTAMP, _STREAM, _LABEL = ("timestamp", "time"), "stream_id", "label"
_MICROSECOND = timedelta(microseconds=1)
# Seconds from here on (1973) are a clock. A finer unit begins where it reads as 1973 too, and the coarser one as 5138.
_CLOCK_FROM_S = 1e8
_US_PER_UNIT_FROM = ((1e17, 1e-3), (1e14, 1.0), (1e11, 1e3))
_CLOCK_ENDS_US = 7_258_118_400e6  # the year 2200: a later time was written in another unit, or as digits of a date
_LATEST_US = 253_402_300_799e6
_US_PER_YEAR = 31_556_952e6
_SEPARATORS = ",;\t"
_WORDS = dict.fromkeys(("", "n/a", "na", "null", "none", "-"), float("nan")) | {"true": 1.0, "false": 0.0}
_NO_TIME = "a timestamp is missing"
IS_CODE = "its manifest says that it is a code"


@dataclass(frozen=True, slots=True)
class Table:
    """A recorded table: ``(T,)`` columns in the order of the file; ``stream_ids`` where rows name their stream.

    ``left_out`` says of each column that is no feature, by name, why.
    """

    times_us: Int64
    columns: dict[str, Float32]
    labels: UInt8 | None
    stream_ids: list[str] | None
    clock: bool
    left_out: dict[str, str]


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
        Unknown ending, no timestamps or impossible ones, ragged or unreadable content.
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

    def __init__(
        self, names: Sequence[str], kind: TimestampKind | None, categorical: frozenset[str], has_commas: bool = False
    ) -> None:
        names = [name.strip() for name in names]
        found = [name for wanted in _TIMESTAMP for name in names if name.lower() == wanted]
        if not found:
            raise ValueError(f"no column {' or '.join(_TIMESTAMP)} among {list(names)}")
        if len(set(names)) < len(names):
            raise ValueError(f"a column name stands twice among {list(names)}")
        self._time = found[0]
        self._kind = kind
        self._has_commas = has_commas
        self._writing: _Writing | None = None
        self._names = tuple(names)
        self._stream = next((name for name in names if name.lower() == _STREAM), None)
        self._label = next((name for name in names if name.lower() == _LABEL), None)
        self._left_out = {name: IS_CODE for name in names if name in categorical}
        no_feature = {self._time, self._stream, self._label, *categorical}
        self._numbers: dict[str, list[Float32]] = {name: [] for name in names if name not in no_feature}
        self._times: list[Int64] = []
        self._labels: list[UInt8] = []
        self._streams: list[str] = []
        self._rows = 0

    def add(self, columns: Sequence[Sequence[Any]]) -> None:
        """Add one batch of rows, at least one, given as columns of texts or numbers."""
        row = self._rows + 1
        for name, column in zip(self._names, columns, strict=True):
            if name == self._time:
                self._writing = self._writing or _writing_of(column[0], self._kind)
                self._times.append(_times_us(column, self._writing, row))
            elif name == self._stream:
                self._streams.extend(_converted(f"column {name}: ", column, _stream_id, row))
            elif name == self._label:
                labels = _converted(f"column {name}: ", column, _label, row)
                self._labels.append(np.fromiter(labels, np.uint8, len(column)))
            elif name in self._numbers:
                if self._has_commas:
                    column = [cell.replace(",", ".") if cell.count(",") == 1 else cell for cell in column]
                try:
                    self._numbers[name].append(_numbers(column, row))
                except ValueError as exc:
                    del self._numbers[name]
                    self._left_out[name] = str(exc)
        self._rows += len(columns[0])

    def table(self) -> Table:
        if self._writing is None:
            raise ValueError("no rows")
        return Table(
            times_us=np.concatenate(self._times),
            columns={name: np.concatenate(parts) for name, parts in self._numbers.items()},
            labels=np.concatenate(self._labels) if self._label is not None else None,
            stream_ids=self._streams if self._stream is not None else None,
            clock=self._writing.is_clock,
            left_out=self._left_out,
        )


@dataclass(frozen=True, slots=True)
class _Writing:
    """How a file writes its timestamps, as the first one shows, and whether they are clock times."""

    kind: TimestampKind
    us_per_unit: float
    is_clock: bool


def _writing_of(first: Any, kind: TimestampKind | None) -> _Writing:
    try:
        number = float(first)
    except (ValueError, TypeError, OverflowError):
        return _Writing(kind or "iso8601", 1e6, kind in (None, "iso8601"))
    if kind in ("iso8601", "row_index"):
        return _Writing(kind, 1e6, kind == "iso8601")
    us_per_unit = next((us for begin, us in _US_PER_UNIT_FROM if number >= begin), 1e6)
    return _Writing("seconds", us_per_unit, number >= _CLOCK_FROM_S)


def _times_us(column: Sequence[Any], writing: _Writing, first_row: int) -> Int64:
    if None in column:
        raise ValueError(f"{_NO_TIME} in row {first_row + column.index(None)}")
    micros: Int64 | npt.NDArray[np.float64]
    if writing.kind == "iso8601":
        micros = np.fromiter(_converted("timestamp ", column, _iso_us, first_row), np.int64, len(column))
    else:
        numbers = np.fromiter(_converted("timestamp ", column, _number, first_row), np.float64, len(column))
        if not np.isfinite(numbers).all():
            raise ValueError(f"{_NO_TIME} in row {first_row + int(np.isfinite(numbers).argmin())}")
        micros = np.rint(numbers * writing.us_per_unit)
    earliest, latest = int(micros.argmin()), int(micros.argmax())
    if micros[earliest] < 0:
        raise ValueError(f"timestamp {column[earliest]} in row {first_row + earliest} is below 0, or before 1970")
    if micros[latest] > _LATEST_US:
        raise ValueError(f"a timestamp is beyond the year 9999: {column[latest]} in row {first_row + latest}")
    if writing.is_clock and writing.kind == "seconds" and micros[latest] >= _CLOCK_ENDS_US:
        year = 1970 + int(micros[latest] / _US_PER_YEAR)
        raise ValueError(f"timestamp {column[latest]} reads as the year {year}, in row {first_row + latest}")
    return micros.astype(np.int64)


def _iso_us(cell: Any) -> int:
    try:
        time = datetime.fromisoformat(str(cell))
    except ValueError as exc:
        raise ValueError(f"is no time: {exc}") from exc
    return since_epoch(time) // _MICROSECOND


def _numbers(column: Sequence[Any], first_row: int) -> Float32:
    try:
        numbers = np.fromiter(map(float, column), np.float64, len(column))
    except (ValueError, TypeError, OverflowError):  # a cell is a word or missing: then each is looked at
        numbers = np.fromiter(_converted("", column, _number, first_row), np.float64, len(column))
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32)


def _converted(what: str, column: Sequence[Any], convert: Callable[[Any], T], first_row: int) -> Iterator[T]:
    """The cells one by one; the error of one that cannot be converted names it and its row."""
    for row, cell in enumerate(column, first_row):
        try:
            yield convert(cell)
        except ValueError as exc:
            raise ValueError(f"{what}{cell!r:.60} in row {row} {exc}") from exc


def _number(cell: Any) -> float:
    """A cell as a number, NaN where its value is missing."""
    if cell is None:
        return float("nan")
    try:
        return float(cell)
    except (ValueError, TypeError, OverflowError) as exc:
        number = _WORDS.get(str(cell).strip().lower())
        if number is None:
            raise ValueError("is no number") from exc
        return number


def _stream_id(cell: Any) -> str:
    if cell is None or cell == "" or cell != cell:  # NaN alone differs from itself
        raise ValueError("names no stream")
    return str(cell)


def _label(cell: Any) -> int:
    number = _number(cell)
    return int(number != 0 and not isnan(number))


def open_binary(path: Path) -> BinaryIO:
    """Bytes of a file, unpacked where its name ends in ``.gz``."""
    return cast("BinaryIO", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


# --- CSV --------------------------------------------------------------------------------------------------------------


def _read_csv(path: Path, kind: TimestampKind | None, categorical: frozenset[str]) -> Table:
    with io.TextIOWrapper(open_binary(path), encoding="utf-8-sig", newline="") as text:
        first = text.readline()
        separator = max(_SEPARATORS, key=first.count)
        reader = csv.reader(chain([first], text), delimiter=separator)
        header = next(reader, [])
        # Where a comma parts a number from its fraction, it cannot part columns: programs write semicolons there.
        collector = _Collector(header, kind, categorical, has_commas=separator == ";")
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
    filled[:1] = [line.removeprefix(codecs.BOM_UTF8) for line in filled[:1]]
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
        found if found is not None else np.zeros(length, np.uint8)
        for found, length in zip(labels, decoded.lengths.tolist(), strict=True)
    ]
    return Table(
        times_us=decoded.times_ms * 1000,
        columns={name: decoded.values[:, i] for i, name in enumerate(profile.features)},
        labels=np.concatenate(joined) if any(found is not None for found in labels) else None,
        stream_ids=np.repeat(np.array(decoded.stream_ids, object), decoded.lengths).tolist(),
        clock=bool(decoded.times_ms[0] >= _CLOCK_FROM_S * 1000),
        left_out={},
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
    if read.num_rows:
        collector.add(columns)
    return collector.table()


_Reader = Callable[[Path, TimestampKind | None, frozenset[str]], Table]
READERS: dict[str, _Reader] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
