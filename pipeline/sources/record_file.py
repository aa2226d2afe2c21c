"""Record files: the very bytes of a topic's records, which replay bit for bit.

One JSON object per line with ``topic``, ``partition``, ``offset``, ``timestamp``, and ``key`` and ``value`` in base64
or null, after a header line; compressed where the name ends in ``.gz``. :mod:`pipeline.sinks.recording` writes them.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.errors import ConfigurationError
from pipeline.profile import Profile
from pipeline.records import CONTROL_NONE, Float32, Int64, Partition, Record, StoredRecord, UInt8
from pipeline.settings import Limits
from pipeline.sources.recording import RECORD_FILE_ENDS, RecordedStream, Recording
from pipeline.sources.tables import open_binary
from pipeline.topics.base import by_partition
from pipeline.wire import decode_many, labels_of

RECORD_FILE_HEADER = {"format": "tidewatch-records", "version": 1}


def is_record_file(path: Path) -> bool:
    """Whether the name is that of a record file."""
    return path.name.endswith(RECORD_FILE_ENDS)


def read_records(path: Path) -> Iterator[tuple[Partition, StoredRecord]]:
    """The records of a record file, in the order they were written.

    Raises
    ------
    ConfigurationError
        Not a record file, of another version, or cut off; raised where reading gets there.
    """
    number = 0
    try:
        with open_binary(path) as lines:
            if json.loads(next(lines, b"null")) != RECORD_FILE_HEADER:
                raise ConfigurationError(f"{path}: no record file of version {RECORD_FILE_HEADER['version']}")
            for line in lines:
                raw = json.loads(line)
                yield (
                    Partition(raw["topic"], raw["partition"]),
                    StoredRecord(raw["offset"], raw["timestamp"], _bytes(raw["key"]), _bytes(raw["value"])),
                )
                number += 1
    except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError) as exc:
        raise ConfigurationError(f"{path}: damaged or cut off after {number} records ({exc})") from exc


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text, validate=True)


def decode_records(
    records: Iterable[tuple[Partition, Record]], profile: Profile, limits: Limits, name: str = "records"
) -> Recording:
    """The streams of raw records, for looking at them; control records, and what does not decode, are left out."""
    times: dict[str, list[Int64]] = {}
    values: dict[str, list[Float32]] = {}
    labels: dict[str, list[UInt8 | None]] = {}
    for partition, found in by_partition(records).items():
        decoded, _ = decode_many(found, partition, profile, limits)
        bytes_at = {record.offset: record.value for record in found}
        ends = np.cumsum(decoded.lengths)
        for window in np.flatnonzero(decoded.control == CONTROL_NONE).tolist():
            stream_id = decoded.stream_ids[window]
            span = slice(int(ends[window] - decoded.lengths[window]), int(ends[window]))
            times.setdefault(stream_id, []).append(decoded.times_ms[span])
            values.setdefault(stream_id, []).append(decoded.values[span])
            labels.setdefault(stream_id, []).append(labels_of(bytes_at[int(decoded.offsets[window])] or b""))
    streams = {
        stream_id: RecordedStream(
            stream_id,
            profile.features,
            profile.interval_s,
            np.concatenate(times[stream_id]),
            np.concatenate(values[stream_id]),
            _joined_labels(labels[stream_id], times[stream_id]),
            clock=profile.clock,
        )
        for stream_id in times
    }
    return Recording(name, {stream_id: partial(streams.__getitem__, stream_id) for stream_id in streams})


def _joined_labels(parts: Sequence[UInt8 | None], times: Sequence[Int64]) -> UInt8 | None:
    """Labels of all windows, 0 where a window has none; ``None`` if none has any."""
    if all(part is None for part in parts):
        return None
    return np.concatenate(
        [part if part is not None else np.zeros(len(time), np.uint8) for part, time in zip(parts, times, strict=True)]
    )
