"""Bytes <-> windows, scores, alerts and dead letters: every message format of Tidewatch. Pure; no I/O, no clock.

Windows, as people write them (JSON, UTF-8, one object; :class:`WindowMessage` is the schema)::

    {"schema": 1, "stream_id": "press-07", "start": "2026-03-01T12:00:00Z", "interval_s": 60,
     "values": [[20.1, 3.2], [20.2, null]]}

``values`` is T x F: one list per observation, in the profile's order of features, ``null`` where a value is missing.
``start`` is the first observation's event time, ISO 8601 (UTC where no zone is given) or integer ms since the epoch
(seconds would be taken for January 1970: recordings may count from there, so they are no error);
``times`` names every event time instead and takes the place of ``start`` and ``interval_s``. One observation needs no
``interval_s``. Optional: ``features`` (names; refused unless they are the profile's), ``labels`` (0, 1 or null for each
observation; never looked at by the fold), ``silent`` (absorbed without output), ``control`` (``"reset"`` or
``"forget"``, without values). Unknown keys are refused. Event times are kept in ms; what is finer is cut off.

Windows, packed (MessagePack array in this order; 7 elements, or 8 with labels)::

    [1, stream_id, start_ms, interval_ms | times, F, values, flags, labels]

``times``: T little-endian int64, ms since the epoch, the first equal to ``start_ms``. ``values``: T x F little-endian
float32, NaN where missing; infinities are errors. ``flags``: 0, or 1 silent, 2 reset, 4 forget. ``labels``: T bytes
or nil. The first byte tells the forms apart: 0x80 and above is packed, but for 0xEF, with which the byte order mark
begins that some write before JSON. Both may be mixed in one topic.

Key and tombstone: a record's key, where it has one, must be the stream id. A record without a value (a tombstone)
means what it means to Kafka, that its key is gone: it is taken as ``forget`` of the stream its key names.

Stream ids have 1 to ``limits.max_stream_id_length`` bytes in UTF-8 and do not begin with ``!`` (reserved).

Scores (MessagePack map, one record per partition and batch; read with :func:`decode_scores`): ``schema``, ``topic``,
``partition``, ``profile``, ``model_version``, ``signals`` (names), ``stream_ids``, and the arrays of
:class:`pipeline.records.Scores` as little-endian bytes: ``offsets``, ``lengths`` int64 per window; ``times_ms`` int64,
``score``, ``threshold``, ``imputed`` float32, ``verdict``, ``signal`` uint8, ``feature`` int16 per observation;
``partial`` uint8.

Alerts (JSON, :class:`AlertMessage`, keyed by stream id) and dead letters (JSON, :class:`DeadLetterMessage`) say what
they are in their fields. ``json_schema`` publishes the schemas of all three.
"""

from pipeline.wire.outputs import (
    decode_alert,
    decode_dead_letter,
    decode_scores,
    encode_alert,
    encode_dead_letter,
    encode_scores,
)
from pipeline.wire.schema import SCHEMA, AlertMessage, DeadLetterMessage, WindowMessage, json_schema
from pipeline.wire.windows import decode_many, encode_control, encode_json, encode_packed, labels_of

__all__ = [
    "SCHEMA",
    "AlertMessage",
    "DeadLetterMessage",
    "WindowMessage",
    "decode_alert",
    "decode_dead_letter",
    "decode_many",
    "decode_scores",
    "encode_alert",
    "encode_control",
    "encode_dead_letter",
    "encode_json",
    "encode_packed",
    "encode_scores",
    "json_schema",
    "labels_of",
]
