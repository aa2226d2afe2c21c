"""The messages people write and read, as pydantic models: the published schema."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from pydantic_core import ErrorDetails

SCHEMA = 1

_Time = Annotated[int, Field(ge=-62_135_596_800_000, le=253_402_300_799_999)]
"""ms since the epoch within the years 1 to 9999: others have no ISO 8601."""


class _Message(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        populate_by_name=True,
        serialize_by_alias=True,
        protected_namespaces=(),
    )

    schema_version: Annotated[Literal[1], Field(alias="schema", description="Version of this message format.")] = 1


class WindowMessage(_Message):
    """Some observations of one stream, or a control record for it."""

    stream_id: Annotated[
        str,
        Field(
            min_length=1,
            description="Names the stream; also the record's key, if it has one. Give it one: without a key a stream's "
            "records are spread over partitions, and each partition knows only its own part of the stream.",
        ),
    ]
    start: Annotated[
        int | datetime | None,
        Field(
            description="Event time of the first observation: ISO 8601 (UTC without a zone) or milliseconds since the "
            "epoch; seconds would be taken for January 1970."
        ),
    ] = None
    interval_s: Annotated[
        FiniteFloat | None, Field(gt=0, description="Seconds between observations; needed for two or more.")
    ] = None
    times: Annotated[
        list[int | datetime] | None,
        Field(description="Event time of every observation, strictly increasing; instead of start and interval_s."),
    ] = None
    features: Annotated[
        list[str] | None, Field(description="Names of the columns; refused unless they are the profile's, in order.")
    ] = None
    values: Annotated[
        list[list[FiniteFloat | None]],
        Field(description="One list per observation with one number per feature; null where a value is missing."),
    ] = []
    labels: Annotated[
        list[Literal[0, 1] | None] | None,
        Field(description="One per observation, 1 where it is known to be anomalous; for evaluation only."),
    ] = None
    silent: Annotated[bool, Field(description="Absorb without scores and alerts, to warm a stream up.")] = False
    control: Annotated[
        Literal["reset", "forget"] | None,
        Field(description="reset: start the stream afresh; forget: drop it. Without values."),
    ] = None


class EvidenceMessage(BaseModel):
    """What one feature contributed to an alert, in its own units."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    observed: Annotated[float | None, Field(description="null where the value was missing.")]
    expected: float | None
    band_low: Annotated[float | None, Field(description="1 % point of the one-step forecast.")]
    band_high: Annotated[float | None, Field(description="99 % point of the one-step forecast.")]
    nats: float | None
    usual: Annotated[
        float | None,
        Field(description="Where it used to be (displacement), or would be beside the others (values, means)."),
    ] = None


class AlertMessage(_Message):
    """One event of an alert's life. Keep the last one of each ``alert_id``."""

    alert_id: str
    event: Literal["opened", "updated", "resolved"]
    severity: Literal["none", "warning", "critical"]
    stream_id: str
    group: str | None
    profile: str
    time: Annotated[str, Field(description="Event time of the observation that caused this event, ISO 8601 UTC.")]
    time_ms: _Time
    onset: Annotated[str, Field(description="Event time of the observation that opened the alert.")]
    onset_ms: _Time
    verdict: str
    score: Annotated[float | None, Field(description="-log10 p: 4 means one in ten thousand.")]
    peak_score: float | None
    threshold: Annotated[float | None, Field(description="The threshold in force, same unit as score.")]
    signal: Annotated[str, Field(description="Which kind of evidence was strongest.")]
    direction: str
    features: list[EvidenceMessage]
    imputed_share: Annotated[float | None, Field(description="Share of the observation's values that were missing.")]
    gate: float | None
    forecast_4: float | None
    forecast_8: float | None
    state: Annotated[str, Field(description='"partial" while a stream warms up again after an inexact rebuild.')]
    model_version: str
    topic: str
    partition: int
    offset: Annotated[int, Field(description="Position of the input record; index counts observations within it.")]
    index: int
    onset_offset: int


class DeadLetterMessage(_Message):
    """A record that could not be used."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    reason: str
    key_base64: str | None
    value_base64: Annotated[str | None, Field(description="The bytes as they came, cut off after 600000 bytes.")]
    value_bytes: Annotated[int | None, Field(description="Length of the original value.")]


def json_schema() -> dict[str, Any]:
    """JSON Schema of the messages people write and read: window, alert and dead letter."""
    models: dict[str, type[BaseModel]] = {
        "window": WindowMessage,
        "alert": AlertMessage,
        "dead_letter": DeadLetterMessage,
    }
    return {name: model.model_json_schema(by_alias=True) for name, model in models.items()}


def _words(error: ErrorDetails) -> str:
    hint = ", and null where a value is missing" if error["type"] == "finite_number" else ""
    return error["msg"] + hint


def first_errors(error: ValidationError) -> str:
    """The first three complaints, each with its place."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    texts = [f"{'.'.join(map(str, item['loc'])) or 'message'}: {_words(item)}" for item in found[:3]]
    return "; ".join(texts) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
