"""Records -> windows as columns, and windows -> bytes. The formats are described in the package's docstring.

Every message becomes the tuple of the packed form; from there on whole batches are checked and laid out by array
operations, and a bad record is found by halving the batch.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from datetime import datetime
from itertools import chain, zip_longest
from types import NoneType
from typing import Any, Literal, NoReturn

import msgpack
import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from pipeline.epoch import MILLISECOND, since_epoch
from pipeline.errors import DecodeError
from pipeline.profile import Profile
from pipeline.records import (
    CONTROL_FORGET,
    CONTROL_NONE,
    CONTROL_RESET,
    Bool,
    DeadLetter,
    Float32,
    Int64,
    Partition,
    Record,
    UInt8,
    Windows,
)
from pipeline.settings import Limits
from pipeline.wire.schema import SCHEMA, WindowMessage, first_errors

SILENT, RESET, FORGET = 1, 2, 4

_PACKED_FROM = 0x80
_BOM = codecs.BOM_UTF8  # before UTF-8 text, as .NET writes it; as MessagePack -17, never an array
_ELEMENTS = 7
# The last ms of the year 9999, and the longest interval (34 years): beyond both, int64 sums could overflow.
_MAX_TIME_MS = 253_402_300_799_999
_MAX_INTERVAL_MS = 1 << 40
_LONGEST_REASON = 2_000  # a reason quotes its input, and a dead letter has to pass the broker's limit
_FLAG_OF_CONTROL = {"reset": RESET, "forget": FORGET}

# One message on its way into columns: the elements of the packed form.
_Columns = tuple[Any, ...]


def decode_many(
    records: Sequence[Record], partition: Partition, profile: Profile, limits: Limits
) -> tuple[Windows, list[DeadLetter]]:
    """Windows of one partition as columns, and the records that are none, both in offset order.

    All records go through one set of array operations. Only when something is wrong is the batch halved until the bad
    record stands alone, so a bad record costs a few decodings of its neighbours and changes nothing about them.

    Parameters
    ----------
    records
        In offset order.
    partition
        Where they came from; written into dead letters.
    profile, limits
        What a window of this topic must look like.
    """
    good: list[Windows] = []
    dead: list[DeadLetter] = []
    spans = [records] if records else []
    while spans:
        span = spans.pop()
        try:
            good.append(_decode_span(span, profile, limits))
        except DecodeError as exc:
            if len(span) == 1:
                record, reason = span[0], str(exc)
                if len(reason) > _LONGEST_REASON:
                    reason = f"{reason[:_LONGEST_REASON]} ..."
                dead.append(DeadLetter(partition, record.offset, record.timestamp, record.key, record.value, reason))
            else:
                half = len(span) // 2
                spans += [span[half:], span[:half]]
    return _joined(good, len(profile.features)), dead


def _decode_span(records: Sequence[Record], profile: Profile, limits: Limits) -> Windows:
    """All of ``records`` as columns, or DecodeError about the first thing that is wrong."""
    width = len(profile.features)
    messages = _unpacked(records, profile, limits)
    try:
        ids, starts, steps, payloads, flags, labels = _typed_columns(messages, width)
        _check_ids(ids, [record.key for record in records], limits)
        control = np.fromiter(map(_CONTROL_OF_FLAG.__getitem__, flags), np.uint8, len(flags))
        lengths = _lengths(ids, payloads, control, width, limits)
        if labels:
            _check_labels(ids, labels, lengths)
        times_ms = _times(ids, starts, steps, lengths)
        offsets = np.fromiter((record.offset for record in records), np.int64, len(records))
        record_ms = np.fromiter((record.timestamp for record in records), np.int64, len(records))
    except (ValueError, TypeError, OverflowError, KeyError) as exc:
        raise DecodeError(f"malformed message: {exc}") from exc
    if record_ms.min() < -1 or record_ms.max() > _MAX_TIME_MS:
        beyond = int(np.argmax((record_ms < -1) | (record_ms > _MAX_TIME_MS)))
        _refuse(ids, beyond, "the time of its record lies outside the years 1970 to 9999")
    _check_skew(ids, times_ms, lengths, record_ms, limits)
    # A bytearray makes the array writable, which torch asks for.
    values = np.frombuffer(bytearray().join(payloads), "<f4").reshape(-1, width)
    if np.isinf(values).any():
        at, feature = (int(i[0]) for i in np.nonzero(np.isinf(values)))
        window = _window_of(at, lengths)
        _refuse(ids, window, f"{profile.features[feature]} is not a finite float32; null or NaN means missing")
    silent = np.fromiter(flags, np.uint8, len(flags)) == SILENT
    return Windows(list(ids), offsets, record_ms, lengths, silent, control, times_ms, values)


_CONTROL_OF_FLAG = {0: CONTROL_NONE, SILENT: CONTROL_NONE, RESET: CONTROL_RESET, FORGET: CONTROL_FORGET}


def _unpacked(records: Sequence[Record], profile: Profile, limits: Limits) -> list[_Columns]:
    """Each record as the tuple of the packed form. Per message only this loop runs in Python."""
    messages = []
    largest = limits.max_message_bytes
    mark = _BOM[0]
    unpackb = msgpack.unpackb
    try:
        for record in records:
            value = record.value
            if value is None:
                messages.append(_from_tombstone(record.key, len(profile.features)))
            elif len(value) > largest:
                raise DecodeError(f"{len(value)} bytes, more than max_message_bytes = {largest}")
            elif value and _PACKED_FROM <= value[0] != mark:
                messages.append(unpackb(value, use_list=False))
            else:
                messages.append(_from_json(value, profile))
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as exc:
        raise DecodeError(f"not MessagePack: {exc}") from exc
    return messages


def _from_tombstone(key: bytes | None, width: int) -> _Columns:
    if not key:
        raise DecodeError("neither value nor key")
    try:
        return (SCHEMA, key.decode(), 0, 0, width, b"", FORGET)
    except UnicodeDecodeError as exc:
        raise DecodeError(f"a tombstone whose key is not UTF-8: {exc}") from exc


def _from_json(value: bytes, profile: Profile) -> _Columns:
    if not value:
        raise DecodeError("empty value")
    try:
        message = WindowMessage.model_validate_json(value.removeprefix(_BOM))
    except ValidationError as exc:
        raise DecodeError(first_errors(exc)) from exc
    width, length = len(profile.features), len(message.values)
    if message.features is not None and tuple(message.features) != profile.features:
        raise DecodeError(f"features are {message.features}, the profile's are {list(profile.features)}")
    if not set(map(len, message.values)) <= {width}:
        t, row = next((t, row) for t, row in enumerate(message.values) if len(row) != width)
        raise DecodeError(f"values.{t} has {len(row)} numbers, the profile has {width} features")
    if message.labels is not None and len(message.labels) != length:
        raise DecodeError(f"{len(message.labels)} labels for {length} observations")
    start, step = _json_times(message, length)
    with np.errstate(over="ignore"):  # too large for float32: becomes inf here and is refused with the others
        payload = np.fromiter(chain.from_iterable(message.values), "<f4", length * width).tobytes()
    flag = _FLAG_OF_CONTROL[message.control] if message.control is not None else int(message.silent)
    return (SCHEMA, message.stream_id, start, step, width, payload, flag)


def _json_times(message: WindowMessage, length: int) -> tuple[int, int | bytes]:
    """``start_ms`` and ``interval_ms`` or times bytes, as in the packed form."""
    if message.control is not None:
        return 0, 0
    if message.times is not None:
        if message.start is not None or message.interval_s is not None:
            raise DecodeError("times takes the place of start and interval_s; give one or the other")
        if len(message.times) != length:
            raise DecodeError(f"{len(message.times)} times for {length} observations")
        times = [_to_ms(time) for time in message.times]
        return (times[0] if times else 0), np.array(times, "<i8").tobytes()
    if message.start is None:
        raise DecodeError("neither start nor times")
    if message.interval_s is None:
        if length > 1:
            raise DecodeError(f"{length} observations need interval_s or times")
        return _to_ms(message.start), 0
    return _to_ms(message.start), round(min(message.interval_s * 1000, _MAX_INTERVAL_MS + 1))


def _to_ms(time: int | datetime) -> int:
    if isinstance(time, int):
        return min(max(time, -1), _MAX_TIME_MS + 1)  # what fits no int64 is refused with the rest of what is too far
    return since_epoch(time) // MILLISECOND


def _typed_columns(
    messages: list[_Columns], width: int
) -> tuple[
    tuple[str, ...],
    tuple[int, ...],
    tuple[int | bytes, ...],
    tuple[bytes, ...],
    tuple[int, ...],
    tuple[bytes | None, ...],
]:
    """The messages turned into columns of the right types; labels are empty where no message has any."""
    if not set(map(type, messages)) <= {tuple}:
        raise DecodeError("packed windows are arrays")
    if not set(map(len, messages)) <= {_ELEMENTS, _ELEMENTS + 1}:
        raise DecodeError(f"a packed window has {_ELEMENTS} elements, or {_ELEMENTS + 1} with labels")
    schemas, ids, starts, steps, widths, payloads, flags, *labelled = zip_longest(*messages)
    labels = labelled[0] if labelled else ()
    if set(schemas) != {SCHEMA}:
        raise DecodeError(f"schema {schemas[0]!r} is unknown; this version reads {SCHEMA}")
    for name, column, types in (
        ("stream_id", ids, {str}),
        ("start_ms", starts, {int}),
        ("interval_ms | times", steps, {int, bytes}),
        ("values", payloads, {bytes}),
        ("flags", flags, {int}),
        ("labels", labels, {bytes, NoneType}),
    ):
        if not set(map(type, column)) <= types:
            raise DecodeError(f"{name} is of type {type(column[0]).__name__}")
    if set(widths) != {width}:
        raise DecodeError(f"{widths[0]!r} features, the profile has {width}")
    if not set(flags) <= _CONTROL_OF_FLAG.keys():
        raise DecodeError(f"flags {flags[0]!r} are not one of 0, {SILENT} silent, {RESET} reset, {FORGET} forget")
    return ids, starts, steps, payloads, flags, labels


def _check_ids(ids: tuple[str, ...], keys: list[bytes | None], limits: Limits) -> None:
    encoded = list(map(str.encode, ids))
    if max(map(len, encoded)) > limits.max_stream_id_length:
        raise DecodeError(f"stream id of more than max_stream_id_length = {limits.max_stream_id_length} bytes")
    firsts = {stream_id[:1] for stream_id in ids}
    if "" in firsts or "!" in firsts:
        raise DecodeError("stream id is empty or begins with '!'")
    if keys != encoded:
        for key, stream_id in zip(keys, encoded, strict=True):
            if key is not None and key != stream_id:
                raise DecodeError(f"key {key[:64]!r} is not the stream id {stream_id[:64]!r}")


def _lengths(ids: tuple[str, ...], payloads: tuple[bytes, ...], control: UInt8, width: int, limits: Limits) -> Int64:
    """T of every window."""
    sizes = np.fromiter(map(len, payloads), np.int64, len(payloads))
    lengths = sizes // (4 * width)
    if (lengths * (4 * width) != sizes).any():
        window = int(np.argmax(lengths * (4 * width) != sizes))
        _refuse(ids, window, f"{sizes[window]} bytes of values are no whole number of {width} float32")
    if lengths.max() > limits.max_window_length:
        window = int(lengths.argmax())
        _refuse(ids, window, f"{lengths[window]} observations, over max_window_length = {limits.max_window_length}")
    if ((lengths == 0) != (control != CONTROL_NONE)).any():
        window = int(np.argmax((lengths == 0) != (control != CONTROL_NONE)))
        _refuse(ids, window, "no observations" if lengths[window] == 0 else "a control record has no values")
    return lengths


def _check_labels(ids: tuple[str, ...], labels: tuple[bytes | None, ...], lengths: Int64) -> None:
    """One label for each observation, where a window has any: only those who train read them, and much later."""
    counts = lengths.tolist()
    given = [count if its is None else len(its) for its, count in zip(labels, counts, strict=True)]
    if given != counts:
        window = int(np.argmax(np.array(given) != lengths))
        _refuse(ids, window, f"{given[window]} bytes of labels for {counts[window]} observations")


def _times(ids: tuple[str, ...], starts: tuple[int, ...], steps: tuple[int | bytes, ...], lengths: Int64) -> Int64:
    """Event times of all observations, strictly increasing inside each window and within the calendar."""
    start = np.fromiter(starts, np.int64, len(starts))
    explicit = [isinstance(step, bytes) for step in steps]
    if start.min() < 0 or start.max() > _MAX_TIME_MS:
        _refuse(ids, int(np.argmax((start < 0) | (start > _MAX_TIME_MS))), "start lies outside the years 1970 to 9999")
    if lengths.max() <= 1 and not any(explicit):
        return start if lengths.min() == 1 else start[lengths == 1]
    interval = np.fromiter((0 if isinstance(step, bytes) else step for step in steps), np.int64, len(steps))
    if np.abs(interval).max() > _MAX_INTERVAL_MS:
        _refuse(ids, int(np.abs(interval).argmax()), "interval_s (packed: interval_ms) is more than 34 years")
    first = np.cumsum(lengths) - lengths
    origin = np.repeat(start - first * interval, lengths)
    times_ms: Int64 = origin + np.arange(lengths.sum()) * np.repeat(interval, lengths)
    if any(explicit):
        chosen = np.array(explicit)
        _place_explicit(ids, steps, lengths, chosen, times_ms)
        shifted = chosen & (lengths > 0)
        if (times_ms[first[shifted]] != start[shifted]).any():
            raise DecodeError("start_ms is not the first of times")
    inside = np.ones(len(times_ms), np.bool_)
    inside[first[lengths > 0]] = False
    unordered = inside[1:] & (np.diff(times_ms) <= 0)
    if unordered.any():
        at = int(np.argmax(unordered)) + 1
        _refuse(ids, _window_of(at, lengths), f"event times do not increase at {times_ms[at]} ms")
    if times_ms.size and (times_ms.min() < 0 or times_ms.max() > _MAX_TIME_MS):
        at = int(np.argmax((times_ms < 0) | (times_ms > _MAX_TIME_MS)))
        _refuse(ids, _window_of(at, lengths), "an event time lies outside the years 1970 to 9999")
    return times_ms


def _place_explicit(
    ids: tuple[str, ...],
    steps: tuple[int | bytes, ...],
    lengths: Int64,
    chosen: Bool,
    times_ms: Int64,
) -> None:
    """Write the times of windows that name them into their places in ``times_ms``."""
    given = [step for step in steps if isinstance(step, bytes)]
    sizes = np.fromiter(map(len, given), np.int64, len(given))
    if (sizes != 8 * lengths[chosen]).any():
        window = int(np.flatnonzero(chosen)[np.argmax(sizes != 8 * lengths[chosen])])
        _refuse(ids, window, f"{len(steps[window])} bytes of times for {lengths[window]} observations")  # type: ignore[arg-type]
    times_ms[np.repeat(chosen, lengths)] = np.frombuffer(b"".join(given), "<i8")


def _check_skew(ids: tuple[str, ...], times_ms: Int64, lengths: Int64, record_ms: Int64, limits: Limits) -> None:
    """Event times against the records' Kafka timestamps (-1: the record has none)."""
    judged = (lengths > 0) & (record_ms >= 0)
    last = np.cumsum(lengths) - 1
    if limits.max_clock_skew_s is not None:
        ahead = times_ms[last[judged]] - record_ms[judged]
        if ahead.size and ahead.max() > limits.max_clock_skew_s * 1000:
            window = int(np.flatnonzero(judged)[ahead.argmax()])
            seconds = ahead.max() / 1000
            _refuse(ids, window, f"event time is {seconds:g} s after the record's, over max_clock_skew_s")
    if limits.max_event_age_s is not None:
        age = record_ms[judged] - times_ms[(last - lengths + 1)[judged]]
        if age.size and age.max() > limits.max_event_age_s * 1000:
            window = int(np.flatnonzero(judged)[age.argmax()])
            _refuse(ids, window, f"event time is {age.max() / 1000:g} s before the record's, over max_event_age_s")


def _window_of(observation: int, lengths: Int64) -> int:
    return int(np.searchsorted(np.cumsum(lengths), observation, side="right"))


def _refuse(ids: Sequence[str], window: int, reason: str) -> NoReturn:
    raise DecodeError(f"stream {ids[window][:64]!r}: {reason}")


def _joined(parts: list[Windows], width: int) -> Windows:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        none = np.zeros(0, np.int64)
        return Windows(
            [], none, none, none, none.astype(bool), none.astype(np.uint8), none, np.zeros((0, width), np.float32)
        )
    return Windows(
        stream_ids=list(chain.from_iterable(part.stream_ids for part in parts)),
        offsets=np.concatenate([part.offsets for part in parts]),
        record_ms=np.concatenate([part.record_ms for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        silent=np.concatenate([part.silent for part in parts]),
        control=np.concatenate([part.control for part in parts]),
        times_ms=np.concatenate([part.times_ms for part in parts]),
        values=np.concatenate([part.values for part in parts]),
    )


def encode_packed(
    stream_id: str, times_ms: Int64, values: Float32, *, labels: UInt8 | None = None, silent: bool = False
) -> bytes:
    """A window in packed form.

    Parameters
    ----------
    times_ms
        ``(T,)`` event times, strictly increasing; written as start and interval where the interval is constant.
    values
        ``(T, F)``, NaN where missing.
    labels
        ``(T,)`` 0 or 1.
    """
    step = _interval_of(times_ms)
    message = [
        SCHEMA,
        stream_id,
        int(times_ms[0]),
        times_ms.astype("<i8").tobytes() if step is None else step,
        values.shape[1],
        values.astype("<f4", copy=False).tobytes(),
        SILENT if silent else 0,
    ]
    if labels is not None:
        message.append(labels.astype(np.uint8).tobytes())
    return bytes(msgpack.packb(message))


def encode_json(
    stream_id: str, times_ms: Int64, values: Float32, *, labels: UInt8 | None = None, silent: bool = False
) -> bytes:
    """A window as JSON; parameters as in :func:`encode_packed`."""
    step = _interval_of(times_ms)
    rows = [[None if value != value else value for value in row] for row in _shortened(values).tolist()]
    message = WindowMessage(
        stream_id=stream_id,
        start=int(times_ms[0]) if step is not None else None,
        interval_s=step / 1000 if step else None,
        times=None if step is not None else [int(time) for time in times_ms],
        values=rows,
        labels=None if labels is None else [1 if label else 0 for label in labels],
        silent=silent,
    )
    return message.model_dump_json(by_alias=True, exclude_defaults=True).encode()


def encode_control(stream_id: str, control: Literal["reset", "forget"]) -> bytes:
    """A control record: from its place in the topic on, the stream starts afresh or is dropped."""
    return WindowMessage(stream_id=stream_id, control=control).model_dump_json(exclude_defaults=True).encode()


def labels_of(value: bytes) -> UInt8 | None:
    """Labels of a window that :func:`decode_many` accepted, ``None`` where it has none; a null label is 0."""
    if _PACKED_FROM <= value[0] != _BOM[0]:
        packed = next(iter(msgpack.unpackb(value)[_ELEMENTS:]), None)
        return None if packed is None else np.frombuffer(packed, np.uint8)
    labels = WindowMessage.model_validate_json(value.removeprefix(_BOM)).labels
    return None if labels is None else np.array([label or 0 for label in labels], np.uint8)


def _shortened(values: Float32) -> npt.NDArray[np.float64]:
    """Seven digits where they give the same float32: 20.1 is sent, not 20.100000381469727."""
    exact = values.astype(np.float64)
    short = np.array([float(f"{value:.7g}") for value in exact.ravel().tolist()]).reshape(exact.shape)
    return np.where(short.astype(np.float32) == values, short, exact)


def _interval_of(times_ms: Int64) -> int | None:
    """The constant interval in ms, 0 for a single observation, ``None`` where it is not constant."""
    if len(times_ms) == 1:
        return 0
    steps = np.diff(times_ms)
    return int(steps[0]) if (steps == steps[0]).all() else None
