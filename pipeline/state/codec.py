"""Snapshot <-> bytes: an explicit header, then the rows as little-endian float32. Nothing is pickled.

A value is one :data:`FRAME` and ``count`` float32 numbers. Its checksum covers everything after the checksum field.
Many snapshots of one layout are one structured array, so that encoding and decoding are a few array operations and
one copy of the numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from pipeline.errors import DamagedSnapshot, UnknownSnapshot
from pipeline.records import Float32, Int64
from pipeline.state.base import HEADER, Snapshot

logger = logging.getLogger(__name__)

MAGIC = b"TWSN"
FORMAT = 1
FLOAT32 = 1
MAX_LAYOUT_BYTES = 16
MAX_VERSION_BYTES = 32

FRAME = np.dtype(
    [
        ("magic", "S4"),
        ("checksum", "<u4"),  # CRC-32C of all bytes that follow
        ("format", "<u2"),
        ("dtype", "<u2"),  # FLOAT32, the only one so far
        ("count", "<u4"),  # numbers in the rows
        ("layout", f"S{MAX_LAYOUT_BYTES}"),
        ("model_version", f"S{MAX_VERSION_BYTES}"),
        ("header", HEADER),
    ]
)
CHECKED_FROM = 8
KIND = slice(8, 64)  # format to model_version: equal in snapshots that can be decoded together


@dataclass(frozen=True, slots=True)
class Snapshots:
    """N snapshots of one layout and version, as columns.

    Attributes
    ----------
    layout, model_version
        What they share.
    headers
        ``(N,)`` of dtype HEADER.
    rows
        ``(N, numbers)`` float32: a writable view whose rows stand apart by more than their length.
    """

    layout: str
    model_version: str
    headers: npt.NDArray[np.void]
    rows: Float32


def encode_many(layout: str, model_version: str, headers: npt.NDArray[np.void], rows: Float32) -> list[bytes]:
    """One value per snapshot, in order. Keeps no reference to the arrays.

    Parameters
    ----------
    layout, model_version
        What the snapshots share; ASCII of at most 16 and 32 characters.
    headers
        ``(N,)`` of dtype HEADER.
    rows
        ``(N, numbers)`` float32.

    Raises
    ------
    ValueError
        ``layout`` or ``model_version`` does not fit.
    """
    columns = np.zeros(len(rows), _record(rows.shape[1]))
    frame = columns["frame"]
    frame["magic"], frame["format"], frame["dtype"], frame["count"] = MAGIC, FORMAT, FLOAT32, rows.shape[1]
    frame["layout"] = _ascii(layout, MAX_LAYOUT_BYTES)
    frame["model_version"] = _ascii(model_version, MAX_VERSION_BYTES)
    frame["header"] = headers
    columns["rows"] = rows
    size = columns.dtype.itemsize
    raw = columns.view(np.uint8).data
    frame["checksum"] = [crc32c(raw[at + CHECKED_FROM : at + size]) for at in range(0, len(raw), size)]
    return [bytes(raw[at : at + size]) for at in range(0, len(raw), size)]


def decode_many(values: Sequence[bytes]) -> Iterator[tuple[Int64, Snapshots]]:
    """Group the snapshots in ``values`` by layout and version: usually one group, two while versions change.

    Yields
    ------
    (indices, snapshots)
        Where in ``values`` the group's members stand, ``(N,)`` int64 ascending, and their columns.

    Raises
    ------
    DamagedSnapshot
        A value is cut short, changed, or of a format this release does not know. Nothing is yielded then.
    """
    for value in values:
        _require_whole(value)
    by_kind: dict[bytes, list[int]] = {}
    for index, value in enumerate(values):
        by_kind.setdefault(value[KIND], []).append(index)
    for indices in by_kind.values():
        members = values if len(indices) == len(values) else [values[index] for index in indices]
        columns = np.frombuffer(bytearray().join(members), _record((len(members[0]) - FRAME.itemsize) // 4))
        frame = columns["frame"]
        layout, version = bytes(frame["layout"][0]).decode("ascii"), bytes(frame["model_version"][0]).decode("ascii")
        rows = columns["rows"].astype(np.float32, copy=False)
        yield np.array(indices, np.int64), Snapshots(layout, version, frame["header"].copy(), rows)


def without_damaged(values: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """Those of ``values``, by stream, that are whole; the others are named in the log.

    Raises
    ------
    UnknownSnapshot
        One has a format that this release does not know: it is whole, and a newer release's to read.
    """
    whole = {}
    for stream, value in values.items():
        try:
            _require_whole(value)
        except UnknownSnapshot:
            raise
        except DamagedSnapshot as error:
            logger.error("the saved row of %r is given up: %s", stream, error)
            continue
        whole[stream] = value
    return whole


def encode(snapshot: Snapshot) -> bytes:
    """Encode one snapshot; see :func:`encode_many`."""
    header = np.array([snapshot.header], HEADER)
    return encode_many(snapshot.layout, snapshot.model_version, header, snapshot.rows.reshape(1, -1))[0]


def decode(value: bytes) -> Snapshot:
    """Decode one snapshot; see :func:`decode_many`."""
    ((_, found),) = decode_many([value])
    return Snapshot(found.layout, found.model_version, found.headers[0], found.rows[0])


def decode_headers(values: Sequence[bytes]) -> npt.NDArray[np.void]:
    """Decode the headers only, ``(N,)`` of dtype HEADER in the order of ``values``, whatever their layouts.

    Raises
    ------
    DamagedSnapshot
        As in :func:`decode_many`.
    """
    for value in values:
        _require_whole(value)
    return np.frombuffer(b"".join(value[: FRAME.itemsize] for value in values), FRAME)["header"].copy()


def _record(numbers: int) -> np.dtype[np.void]:
    return np.dtype([("frame", FRAME), ("rows", "<f4", (numbers,))])


def _ascii(text: str, width: int) -> bytes:
    raw = text.encode("ascii")
    if len(raw) > width or raw.endswith(b"\0"):
        raise ValueError(f"{text!r} does not fit into {width} bytes of a snapshot's header")
    return raw


def _require_whole(value: bytes) -> None:
    if len(value) < FRAME.itemsize or value[:4] != MAGIC:
        raise DamagedSnapshot(f"not a snapshot: {len(value)} bytes, beginning with {value[:4]!r}")
    if int.from_bytes(value[4:8], "little") != crc32c(memoryview(value)[CHECKED_FROM:]):
        raise DamagedSnapshot(f"a snapshot of {len(value)} bytes is damaged: its checksum differs")
    kind, dtype = int.from_bytes(value[8:10], "little"), int.from_bytes(value[10:12], "little")
    if (kind, dtype) != (FORMAT, FLOAT32):
        raise UnknownSnapshot(f"snapshot format {kind}.{dtype} is not known to this release")
    if len(value) != FRAME.itemsize + 4 * int.from_bytes(value[12:16], "little"):
        raise DamagedSnapshot(f"a snapshot's rows do not have the length its header states: {len(value)} bytes in all")
