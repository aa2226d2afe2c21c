"""Scores, alerts and dead letters <-> bytes. The formats are described in the package's docstring."""

from __future__ import annotations

import base64
from typing import Any

import msgpack
import numpy as np
from pydantic import ValidationError

from pipeline.epoch import iso_time
from pipeline.errors import DecodeError
from pipeline.records import Alert, DeadLetter, FeatureEvidence, Partition, Scores
from pipeline.wire.schema import SCHEMA, AlertMessage, DeadLetterMessage, EvidenceMessage, first_errors

MAX_OUTPUT_BYTES = 900_000

_PER_WINDOW = {"offsets": "<i8", "lengths": "<i8", "partial": "u1"}
_PER_OBSERVATION = {
    "times_ms": "<i8",
    "score": "<f4",
    "threshold": "<f4",
    "verdict": "u1",
    "signal": "u1",
    "feature": "<i2",
    "imputed": "<f4",
}
_OBSERVATION_BYTES = sum(np.dtype(kind).itemsize for kind in _PER_OBSERVATION.values())
# Arrays of a window, the head of its id (5 bytes at most), rounded up.
_WINDOW_BYTES = 24


def encode_scores(scores: Scores, max_bytes: int = MAX_OUTPUT_BYTES) -> list[bytes]:
    """Scores of one batch as one record, or as several of at most ``max_bytes``, cut between windows."""
    ids = [stream_id.encode() for stream_id in scores.stream_ids]
    head = 512 + len(scores.partition.topic) + sum(len(name) + 5 for name in scores.signals)
    sizes = np.fromiter(map(len, ids), np.int64, len(ids)) + _WINDOW_BYTES + scores.lengths * _OBSERVATION_BYTES
    ends = np.cumsum(sizes)
    first_observation = np.concatenate([[0], np.cumsum(scores.lengths)])
    records = []
    begin = 0
    while begin < len(ids):
        before = ends[begin] - sizes[begin]
        end = max(begin + 1, int(np.searchsorted(ends, before + max_bytes - head, side="right")))
        windows, observations = slice(begin, end), slice(first_observation[begin], first_observation[end])
        records.append(_pack_scores(scores, windows, observations))
        begin = end
    return records


def _pack_scores(scores: Scores, windows: slice, observations: slice) -> bytes:
    message: dict[str, Any] = {
        "schema": SCHEMA,
        "topic": scores.partition.topic,
        "partition": scores.partition.partition,
        "profile": scores.profile,
        "model_version": scores.model_version,
        "signals": list(scores.signals),
        "stream_ids": scores.stream_ids[windows],
    }
    for name, kind in _PER_WINDOW.items():
        message[name] = getattr(scores, name)[windows].astype(kind, copy=False).tobytes()
    for name, kind in _PER_OBSERVATION.items():
        message[name] = getattr(scores, name)[observations].astype(kind, copy=False).tobytes()
    return bytes(msgpack.packb(message))


def decode_scores(value: bytes) -> Scores:
    """One record of the scores topic.

    Raises
    ------
    DecodeError
        The bytes are no such record, or one of another schema.
    """
    try:
        message = msgpack.unpackb(value)
        if message["schema"] != SCHEMA:
            raise DecodeError(f"scores of schema {message['schema']!r}; this version reads {SCHEMA}")
        arrays = {name: np.frombuffer(message[name], kind) for name, kind in (_PER_WINDOW | _PER_OBSERVATION).items()}
        partial = arrays.pop("partial").astype(np.bool_)
        scores = Scores(
            partition=Partition(message["topic"], message["partition"]),
            profile=message["profile"],
            model_version=message["model_version"],
            signals=tuple(message["signals"]),
            stream_ids=message["stream_ids"],
            partial=partial,
            **arrays,
        )
        windows = {len(scores.stream_ids), len(scores.offsets), len(scores.lengths), len(scores.partial)}
        counts = {len(arrays[name]) for name in _PER_OBSERVATION} | {int(scores.lengths.sum())}
    except (ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException) as exc:
        raise DecodeError(f"not a scores record: {exc}") from exc
    if len(windows) > 1 or len(counts) > 1:
        raise DecodeError("not a scores record: its arrays differ in length")
    return scores


def encode_alert(alert: Alert) -> bytes:
    """One event of an alert's life as JSON; key it by the stream id."""
    return (
        AlertMessage(
            alert_id=alert.alert_id,
            event=alert.event,  # type: ignore[arg-type]  # validated by the model
            severity=alert.severity,  # type: ignore[arg-type]  # the same
            stream_id=alert.stream_id,
            group=alert.group,
            profile=alert.profile,
            time=iso_time(alert.time_ms),
            time_ms=alert.time_ms,
            onset=iso_time(alert.onset_ms),
            onset_ms=alert.onset_ms,
            verdict=alert.verdict,
            score=alert.score,
            peak_score=alert.peak_score,
            threshold=alert.threshold,
            signal=alert.signal,
            direction=alert.direction,
            features=[
                EvidenceMessage(
                    name=evidence.name,
                    observed=evidence.observed,
                    expected=evidence.expected,
                    band_low=evidence.band[0],
                    band_high=evidence.band[1],
                    nats=evidence.nats,
                    usual=evidence.usual,
                )
                for evidence in alert.features
            ],
            imputed_share=alert.imputed_share,
            gate=alert.gate,
            forecast_4=alert.forecast_4,
            forecast_8=alert.forecast_8,
            state=alert.state,
            model_version=alert.model_version,
            topic=alert.partition.topic,
            partition=alert.partition.partition,
            offset=alert.offset,
            index=alert.index,
            onset_offset=alert.onset_offset,
        )
        .model_dump_json(by_alias=True)
        .encode()
    )


def decode_alert(value: bytes) -> Alert:
    """The alert that :func:`encode_alert` wrote; a number that was not finite comes back as NaN.

    Raises
    ------
    DecodeError
        The bytes are no alert.
    """
    try:
        message = AlertMessage.model_validate_json(value)
    except ValidationError as exc:
        raise DecodeError(f"not an alert: {first_errors(exc)}") from exc
    return Alert(
        alert_id=message.alert_id,
        event=message.event,
        profile=message.profile,
        stream_id=message.stream_id,
        group=message.group,
        partition=Partition(message.topic, message.partition),
        offset=message.offset,
        index=message.index,
        time_ms=message.time_ms,
        onset_offset=message.onset_offset,
        onset_ms=message.onset_ms,
        score=_number(message.score),
        peak_score=_number(message.peak_score),
        threshold=_number(message.threshold),
        severity=message.severity,
        verdict=message.verdict,
        signal=message.signal,
        direction=message.direction,
        features=tuple(
            FeatureEvidence(
                name=item.name,
                observed=item.observed,
                expected=_number(item.expected),
                band=(_number(item.band_low), _number(item.band_high)),
                nats=_number(item.nats),
                usual=item.usual,
            )
            for item in message.features
        ),
        imputed_share=_number(message.imputed_share),
        model_version=message.model_version,
        state=message.state,
        gate=message.gate,
        forecast_8=message.forecast_8,
        forecast_4=message.forecast_4,
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


_MAX_DEAD_VALUE = 600_000
_MAX_DEAD_KEY = 16_384


def encode_dead_letter(letter: DeadLetter) -> bytes:
    """A dead letter as JSON, long values cut so that it passes the broker's limit."""
    message = DeadLetterMessage(
        topic=letter.partition.topic,
        partition=letter.partition.partition,
        offset=letter.offset,
        timestamp_ms=letter.timestamp_ms,
        reason=letter.reason,
        key_base64=_base64(letter.key, _MAX_DEAD_KEY),
        value_base64=_base64(letter.value, _MAX_DEAD_VALUE),
        value_bytes=None if letter.value is None else len(letter.value),
    )
    return message.model_dump_json(by_alias=True).encode()


def decode_dead_letter(value: bytes) -> DeadLetter:
    """The dead letter that :func:`encode_dead_letter` wrote, with as much of key and value as it holds.

    Raises
    ------
    DecodeError
        The bytes are no dead letter.
    """
    try:
        message = DeadLetterMessage.model_validate_json(value)
        return DeadLetter(
            partition=Partition(message.topic, message.partition),
            offset=message.offset,
            timestamp_ms=message.timestamp_ms,
            key=None if message.key_base64 is None else base64.b64decode(message.key_base64, validate=True),
            value=None if message.value_base64 is None else base64.b64decode(message.value_base64, validate=True),
            reason=message.reason,
        )
    except ValueError as exc:
        raise DecodeError(f"not a dead letter: {exc}") from exc


def _base64(raw: bytes | None, limit: int) -> str | None:
    return None if raw is None else base64.b64encode(raw[:limit]).decode()
