"""Every message format: what is accepted, what is refused and why, and that bad records cost only themselves."""

import json
from collections.abc import Callable
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.alerts import SEVERITIES
from pipeline.errors import DecodeError
from pipeline.messages import Messages
from pipeline.profile import Profile
from pipeline.records import (
    CONTROL_FORGET,
    CONTROL_NONE,
    CONTROL_RESET,
    Alert,
    DeadLetter,
    FeatureEvidence,
    Partition,
    Scores,
    StoredRecord,
    Windows,
)
from pipeline.settings import Limits
from pipeline.wire import (
    WindowMessage,
    decode_alert,
    decode_dead_letter,
    decode_many,
    decode_scores,
    encode_alert,
    encode_control,
    encode_dead_letter,
    encode_json,
    encode_packed,
    encode_scores,
    json_schema,
    labels_of,
)

PARTITION = Partition("windows", 3)
PROFILE = Profile(topics=("windows",), features=("flow", "pressure"), interval_s=60.0)
LIMITS = Limits(max_window_length=8, max_message_bytes=2000, max_stream_id_length=16)
NOON_MS = 1_750_000_000_000


def decode(*values: bytes | None, key: bytes | None = None, limits: Limits = LIMITS) -> tuple[Windows, list[str]]:
    """Decode values as records of one partition; dead letters as "offset: reason"."""
    records = [StoredRecord(offset, NOON_MS, key, value) for offset, value in enumerate(values)]
    windows, dead = decode_many(records, PARTITION, PROFILE, limits)
    return windows, [f"{letter.offset}: {letter.reason}" for letter in dead]


def as_json(**fields: object) -> bytes:
    message = {"stream_id": "press", "start": NOON_MS, "values": [[1.0, 2.0]]} | fields
    return json.dumps({key: value for key, value in message.items() if value is not ...}).encode()


def as_packed(**fields: object) -> bytes:
    message = {
        "schema": 1,
        "stream_id": "press",
        "start": NOON_MS,
        "step": 0,
        "width": 2,
        "values": np.array([1, 2], "<f4").tobytes(),
        "flags": 0,
    } | fields
    return bytes(msgpack.packb(list(message.values())))


def window(stream_id: str = "press", length: int = 1) -> bytes:
    times = NOON_MS - 60_000 * np.arange(length, dtype=np.int64)[::-1]
    return encode_packed(stream_id, times, np.ones((length, 2), np.float32))


def same(one: Windows, other: Windows) -> bool:
    columns = ("offsets", "record_ms", "lengths", "silent", "control", "times_ms")
    return (
        one.stream_ids == other.stream_ids
        and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in columns)
        and np.array_equal(one.values, other.values, equal_nan=True)
    )


def test_json_example_of_the_documentation_decodes() -> None:
    """The first thing a newcomer copies must work, nulls and ISO times included."""
    value = b"""{"schema": 1, "stream_id": "press-07", "start": "2025-06-15T15:06:40Z", "interval_s": 60,
                 "values": [[20.1, 3.2], [20.2, null]]}"""
    windows, dead = decode(value)
    assert dead == []
    assert windows.stream_ids == ["press-07"]
    assert windows.times_ms.tolist() == [NOON_MS, NOON_MS + 60_000]
    np.testing.assert_array_equal(windows.values, np.array([[20.1, 3.2], [20.2, np.nan]], np.float32))


@pytest.mark.parametrize(
    "start",
    ["2025-06-15T15:06:40Z", "2025-06-15T17:06:40+02:00", "2025-06-15T15:06:40", "2025-06-15T15:06:40.0009Z", NOON_MS],
)
def test_start_means_the_same_instant_however_written(start: str | int) -> None:
    """A zone, no zone (UTC), ms since the epoch and digits below the ms must not move an observation."""
    windows, dead = decode(as_json(start=start))
    assert dead == []
    assert windows.times_ms.tolist() == [NOON_MS]


times_strategy = st.lists(st.integers(0, 10_000_000), min_size=1, max_size=8, unique=True).map(sorted)


@given(times=times_strategy, seed=st.integers(0, 2**32 - 1), silent=st.booleans(), labelled=st.booleans())
def test_both_forms_carry_the_same_window(times: list[int], seed: int, silent: bool, labelled: bool) -> None:
    """A stream may switch form at any time, so both must give equal bits, missing values and flags included."""
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal((len(times), 2)) * 10.0 ** rng.integers(-30, 30)).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = np.nan
    labels = rng.integers(0, 2, len(times)).astype(np.uint8) if labelled else None
    times_ms = np.array(times, np.int64)
    packed = encode_packed("press", times_ms, values, labels=labels, silent=silent)
    text = encode_json("press", times_ms, values, labels=labels, silent=silent)
    (one, dead_packed), (other, dead_text) = decode(packed), decode(text)
    assert dead_packed == dead_text == []
    assert same(one, other)
    np.testing.assert_array_equal(one.values, values)
    assert one.times_ms.tolist() == times
    assert one.silent.tolist() == [silent]
    for value in (packed, text):
        np.testing.assert_array_equal(labels_of(value), labels)


def test_forms_lengths_and_controls_mix_in_one_batch_in_offset_order() -> None:
    """A topic has many producers; each record keeps its place and its own times."""
    times = np.array([NOON_MS - 9000, NOON_MS - 5000, NOON_MS], np.int64)
    windows, dead = decode(
        window("a"),
        encode_packed("b", times, np.zeros((3, 2), np.float32)),
        encode_control("a", "reset"),
        as_json(stream_id="c", start=NOON_MS - 60_000, interval_s=60, values=[[1, 2], [3, 4]]),
        as_packed(stream_id="d", values=b"", flags=4),
        window("e", 4),
    )
    assert dead == []
    assert windows.stream_ids == ["a", "b", "a", "c", "d", "e"]
    assert windows.offsets.tolist() == [0, 1, 2, 3, 4, 5]
    assert windows.lengths.tolist() == [1, 3, 0, 2, 0, 4]
    assert windows.control.tolist() == [CONTROL_NONE] * 2 + [CONTROL_RESET, CONTROL_NONE, CONTROL_FORGET, CONTROL_NONE]
    expected = [0, -9000, -5000, 0, -60_000, 0, -180_000, -120_000, -60_000, 0]
    assert (windows.times_ms - NOON_MS).tolist() == expected
    assert windows.values.shape == (10, 2)


BAD_MESSAGES = {
    "empty value": (b"", "empty value"),
    "not JSON": (b"hello", "Invalid JSON"),
    "not MessagePack": (b"\x97\x01", "not MessagePack"),
    "a packed map": (msgpack.packb({"stream_id": "x"}), "arrays"),
    "a packed number": (b"\xc0", "arrays"),
    "too few elements": (msgpack.packb([1, "x"]), "7 elements"),
    "packed schema": (as_packed(schema=2), "schema 2"),
    "JSON schema": (as_json(schema=2), "schema"),
    "unknown key": (as_json(sensor="x"), "sensor: Extra inputs"),
    "no stream id": (as_json(stream_id=...), "stream_id: Field required"),
    "empty stream id": (as_packed(stream_id=""), "empty"),
    "reserved stream id": (as_packed(stream_id="!meta"), "'!'"),
    "long stream id": (as_packed(stream_id="ä" * 9), "max_stream_id_length"),
    "numeric stream id": (as_packed(stream_id=7), "stream_id is of type int"),
    "float start": (as_packed(start=1.5), "start_ms is of type float"),
    "negative start": (as_packed(start=-1), "1970"),
    "huge start": (as_packed(start=2**64 - 1), "malformed"),
    "huge interval": (as_packed(step=2**62, values=bytes(16)), "34 years"),
    "text for bytes": (as_packed(values="12345678"), "values is of type str"),
    "unknown flag": (as_packed(flags=9), "flags"),
    "wrong F": (as_packed(width=3), "3 features, the profile has 2"),
    "NaN in JSON": (
        as_json(values=[[1.0, float("nan")]]),
        "values.0.1: Input should be a finite number, and null where a value is missing",
    ),
    "wrong F in JSON": (as_json(values=[[1.0, 2.0, 3.0]]), "values.0 has 3 numbers"),
    "ragged": (as_json(values=[[1.0, 2.0], [1.0]], interval_s=1), "values.1 has 1 numbers"),
    "other names": (as_json(features=["pressure", "flow"]), "features are"),
    "broken payload": (as_packed(values=bytes(7)), "no whole number"),
    "no observations": (as_packed(values=b""), "no observations"),
    "no observations in JSON": (as_json(values=[]), "no observations"),
    "too long": (as_packed(step=1, values=bytes(8 * 9)), "max_window_length"),
    "too big": (as_packed(values=bytes(3000)), "max_message_bytes"),
    "NaN text": (as_json(values=[[float("nan"), 1.0]]), "finite"),
    "infinite in JSON": (as_json(values=[[float("inf"), 1.0]]), "finite"),
    "over float32": (as_json(values=[[1e39, 1.0]]), "flow is not a finite float32"),
    "infinite packed": (as_packed(values=np.array([1, -np.inf], "<f4").tobytes()), "pressure is not a finite"),
    "a word for a number": (as_json(values=[["1", 2.0]]), "valid number"),
    "a truth for a number": (as_json(values=[[True, 2.0]]), "valid number"),
    "no time": (as_json(start=...), "neither start nor times"),
    "no interval": (as_json(values=[[1.0, 2.0]] * 2), "interval_s or times"),
    "negative interval": (as_json(interval_s=-1, values=[[1.0, 2.0]] * 2), "interval_s"),
    "zero interval": (as_packed(values=bytes(16)), "do not increase"),
    "interval under 1 ms": (as_json(interval_s=0.0001, values=[[1.0, 2.0]] * 2), "do not increase"),
    "both kinds of time": (as_json(times=[NOON_MS]), "one or the other"),
    "count of times": (as_json(start=..., times=[1, 2]), "2 times for 1"),
    "count of packed times": (as_packed(step=bytes(16)), "16 bytes of times for 1"),
    "unordered times": (as_json(start=..., times=[2, 1], values=[[1.0, 2.0]] * 2), "do not increase at 1 ms"),
    "repeated times": (as_json(start=..., times=[2, 2], values=[[1.0, 2.0]] * 2), "do not increase"),
    "start beside times": (as_packed(step=np.array([5], "<i8").tobytes()), "first of times"),
    "control with values": (as_json(control="reset"), "control record has no values"),
    "unknown control": (as_json(control="stop", values=[]), "control"),
    "labels that are a number": (as_packed(labels=5), "labels is of type int"),
    "fewer labels": (as_packed(labels=b""), "stream 'press': 0 bytes of labels for 1 observations"),
    "more labels": (as_packed(labels=b"\0\1"), "2 bytes of labels for 1 observations"),
    "fewer labels in JSON": (as_json(labels=[]), "0 labels for 1 observations"),
    "more labels in JSON": (as_json(labels=[0, 1]), "2 labels for 1 observations"),
    "endless interval": (
        as_json(interval_s=1e300, values=[[1.0, 2.0]] * 2),
        "interval_s (packed: interval_ms) is more",
    ),
    "infinite interval": (
        as_json(interval_s=1e308, values=[[1.0, 2.0]] * 2),
        "interval_s (packed: interval_ms) is more",
    ),
    "endless start": (as_json(start=10**30), "stream 'press': start lies outside the years"),
    "endless times": (as_json(start=..., times=[1, 10**30], values=[[1.0, 2.0]] * 2), "an event time lies outside"),
    "from the future": (as_json(start=NOON_MS + 301_000), "301 s after the record's"),
    "nothing at all": (None, "neither value nor key"),
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_bad_message_is_refused_with_its_reason(name: str) -> None:
    """Someone will have to mend the producer from this one line."""
    value, reason = BAD_MESSAGES[name]
    windows, dead = decode(value)
    assert len(windows) == 0
    assert len(dead) == 1
    assert reason in dead[0]


@given(st.lists(st.sampled_from([*BAD_MESSAGES, "good", "good", "good"]), min_size=1, max_size=40))
def test_bad_records_leave_their_neighbours_as_they_would_be_alone(names: list[str]) -> None:
    """One record's fault must cost that record only, wherever it stands in the batch."""
    values = [window("s", 1 + i % 3) if name == "good" else BAD_MESSAGES[name][0] for i, name in enumerate(names)]
    windows, dead = decode(*values)
    good = [i for i, name in enumerate(names) if name == "good"]
    assert windows.offsets.tolist() == good
    assert [int(text.split(":")[0]) for text in dead] == [i for i in range(len(names)) if i not in good]
    if good:
        records = [StoredRecord(i, NOON_MS, None, values[i]) for i in good]
        alone, _ = decode_many(records, PARTITION, PROFILE, LIMITS)
        assert same(windows, alone)


@settings(max_examples=150)
@given(st.lists(st.binary(max_size=60) | st.binary(max_size=60).map(lambda tail: b"\x97\x01" + tail), max_size=5))
def test_arbitrary_bytes_are_dead_letters_and_nothing_worse(values: list[bytes]) -> None:
    """Anyone can write to a topic; no bytes may stop the pipeline."""
    windows, dead = decode(window(), *values)
    assert windows.offsets[0] == 0
    assert len(windows) + len(dead) == 1 + len(values)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150)
@given(
    field=st.sampled_from(["stream_id", "start", "interval_s", "times", "values", "labels", "silent", "control"]),
    value=json_like,
)
def test_json_fields_of_any_type_decode_or_are_refused(field: str, value: object) -> None:
    """A field of an unexpected type must end in a reason, never in an exception."""
    windows, dead = decode(as_json(**{field: value}))
    assert len(windows) + len(dead) == 1


packable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150)
@given(
    field=st.sampled_from(["schema", "stream_id", "start", "step", "width", "values", "flags", "labels"]),
    value=packable,
)
def test_packed_elements_of_any_type_decode_or_are_refused(field: str, value: object) -> None:
    """As for JSON: the packed form promises nothing about what a stranger packs, and labels can be read thereafter."""
    stranger = as_packed(**{field: value})
    windows, dead = decode(window(), stranger, window())
    if not dead:
        labels_of(stranger)
    assert {0, 2} <= set(windows.offsets.tolist())
    assert len(windows) + len(dead) == 3


def test_json_after_a_byte_order_mark_is_read() -> None:
    """Many .NET producers write one without knowing."""
    value = "\ufeff".encode() + as_json(labels=[1])
    windows, dead = decode(window("a"), value)
    assert dead == []
    assert windows.stream_ids == ["a", "press"]
    assert labels_of(value) == [1]


def test_labels_of_some_windows_leave_the_others_without() -> None:
    """A topic may have producers that label and producers that do not; nil is as good as none."""
    values = (window(), as_packed(labels=b"\1"), as_packed(labels=None), window(length=3))
    windows, dead = decode(*values)
    assert dead == []
    assert windows.offsets.tolist() == [0, 1, 2, 3]
    assert [None if labels is None else labels.tolist() for labels in map(labels_of, values)] == [None, [1], None, None]


def test_key_must_be_the_stream_id_where_there_is_one() -> None:
    """A stream whose records lie under another key would be spread over partitions and scored twice."""
    assert decode(window("press"), key=b"press")[1] == []
    assert "key b'pump' is not the stream id b'press'" in decode(window("press"), key=b"pump")[1][0]


def test_tombstone_forgets_the_stream_its_key_names() -> None:
    """To Kafka a record without a value deletes its key; a compacted topic must not fill the dead letters."""
    windows, dead = decode(None, key=b"press")
    assert dead == []
    assert windows.stream_ids == ["press"]
    assert windows.control.tolist() == [CONTROL_FORGET]
    assert "UTF-8" in decode(None, key=b"\xff")[1][0]


def test_clock_skew_is_judged_by_the_last_event_and_age_by_the_first() -> None:
    """A sensor clock that runs ahead would make all that follows late; old data is welcome unless a limit is set."""
    long = encode_packed("press", NOON_MS + np.array([0, 301_000], np.int64), np.ones((2, 2), np.float32))
    old = as_json(start=0)
    assert len(decode(long)[1]) == 1
    assert decode(long, limits=replace_limits(max_clock_skew_s=None))[1] == []
    assert decode(old)[1] == []
    assert "before the record's" in decode(old, limits=replace_limits(max_event_age_s=3600))[1][0]


def test_records_without_a_timestamp_are_not_judged_by_it() -> None:
    """Very old producers write none (-1); their data is no less valid."""
    windows, dead = decode_many([StoredRecord(0, -1, None, window())], PARTITION, PROFILE, LIMITS)
    assert (len(windows), dead) == (1, [])


def test_no_records_are_no_windows() -> None:
    """An empty poll is the normal state of a quiet topic."""
    windows, dead = decode_many([], PARTITION, PROFILE, LIMITS)
    assert (len(windows), windows.values.shape, dead) == (0, (0, 2), [])


def test_decoded_values_may_be_written_to() -> None:
    """Torch refuses to share memory with a read-only array."""
    windows, _ = decode(window())
    assert windows.values.flags.writeable


def make_scores(windows: int, seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 20, windows)
    count = int(lengths.sum())
    return Scores(
        partition=PARTITION,
        profile="plant",
        model_version="0123456789ab",
        signals=("none", "level"),
        stream_ids=[f"stream-{i}-{'x' * int(rng.integers(0, 40))}" for i in range(windows)],
        offsets=np.arange(windows) + 7,
        lengths=lengths,
        times_ms=rng.integers(0, NOON_MS, count),
        score=np.where(rng.random(count) < 0.1, np.nan, rng.random(count)).astype(np.float32),
        threshold=rng.random(count).astype(np.float32),
        verdict=rng.integers(0, 4, count).astype(np.uint8),
        signal=rng.integers(0, 2, count).astype(np.uint8),
        feature=rng.integers(-1, 2, count).astype(np.int16),
        imputed=rng.random(count).astype(np.float32),
        partial=rng.random(windows) < 0.5,
    )


@given(windows=st.integers(0, 60), limit=st.integers(700, 20_000))
def test_scores_split_between_windows_and_join_to_the_same(windows: int, limit: int) -> None:
    """A record over the broker's limit would stop the producer, and a lost score would break exactly-once."""
    scores = make_scores(windows)
    records = encode_scores(scores, max_bytes=limit)
    parts = [decode_scores(record) for record in records]
    assert all(len(record) <= limit for record, part in zip(records, parts, strict=True) if len(part.stream_ids) > 1)
    assert [name for part in parts for name in part.stream_ids] == scores.stream_ids
    for name in (
        "offsets",
        "lengths",
        "times_ms",
        "score",
        "threshold",
        "verdict",
        "signal",
        "feature",
        "imputed",
        "partial",
    ):
        joined = np.concatenate([getattr(part, name) for part in parts]) if parts else np.zeros(0)
        np.testing.assert_array_equal(joined, getattr(scores, name))
    assert {(part.partition, part.profile, part.model_version, part.signals) for part in parts} <= {
        (PARTITION, "plant", "0123456789ab", ("none", "level"))
    }


@pytest.mark.parametrize("value", [b"", b"{}", b"\x80", b"\xc0", encode_scores(make_scores(3))[0][:-4]])
def test_foreign_bytes_are_no_scores(value: bytes) -> None:
    """A reader on the wrong topic should be told so."""
    with pytest.raises(DecodeError):
        decode_scores(value)


ALERT = Alert(
    alert_id="a1",
    event="opened",
    profile="plant",
    stream_id="press",
    group=None,
    partition=PARTITION,
    offset=12,
    index=3,
    time_ms=NOON_MS,
    onset_offset=12,
    onset_ms=NOON_MS,
    score=6.25,
    peak_score=6.25,
    threshold=4.5,
    severity="warning",
    verdict="anomalous",
    signal="level",
    direction="up",
    features=(
        FeatureEvidence("flow", 20.5, 3.25, (3.0, 3.5), 14.0),
        FeatureEvidence("pressure", None, 1.0, (0.0, 2.0), 0.0),
    ),
    imputed_share=0.5,
    model_version="0123456789ab",
    gate=0.75,
)


def test_alert_survives_the_wire() -> None:
    """Consumers of alerts see exactly what the fold decided."""
    assert decode_alert(encode_alert(ALERT)) == ALERT
    displaced = replace(ALERT, features=(replace(ALERT.features[0], usual=17.5),))
    assert decode_alert(encode_alert(displaced)) == displaced
    message = json.loads(encode_alert(ALERT))
    assert message["time"] == "2025-06-15T15:06:40.000Z"
    assert (message["topic"], message["partition"], message["offset"]) == ("windows", 3, 12)


def test_alert_with_a_number_that_is_not_finite_is_still_json() -> None:
    """NaN is no JSON; strict readers would drop the whole alert."""
    text = encode_alert(replace(ALERT, threshold=float("nan"), gate=float("inf")))
    assert json.loads(text)["threshold"] is None
    assert b'"usual":null' in text
    assert b"NaN" not in text
    assert b"Infinity" not in text
    assert np.isnan(decode_alert(text).threshold)


def test_dead_letter_keeps_bytes_position_and_reason() -> None:
    """Bytes that were no message must come back unchanged for the repair."""
    letter = DeadLetter(PARTITION, 9, NOON_MS, b"\xff", b"\x00junk", "not MessagePack")
    assert decode_dead_letter(encode_dead_letter(letter)) == letter
    nothing = DeadLetter(PARTITION, 9, NOON_MS, None, None, "neither value nor key")
    assert decode_dead_letter(encode_dead_letter(nothing)) == nothing


def test_dead_letter_of_a_huge_record_passes_the_brokers_limit() -> None:
    """A record refused for its size must not be refused again on its way to the dead letters."""
    value = encode_dead_letter(DeadLetter(PARTITION, 9, NOON_MS, None, bytes(5_000_000), "too big"))
    assert len(value) < 1_000_000
    assert json.loads(value)["value_bytes"] == 5_000_000


@pytest.mark.parametrize("decoder", [decode_alert, decode_dead_letter])
def test_foreign_bytes_are_no_alert_and_no_dead_letter(decoder: Callable[[bytes], object]) -> None:
    """A reader on the wrong topic should be told so."""
    for value in (b"", b"{}", b'{"alert_id": 3}'):
        with pytest.raises(DecodeError):
            decoder(value)


@pytest.mark.parametrize(
    "change",
    [{"severity": "info"}, {"time_ms": 10**17}, {"onset_ms": -(10**17)}, {"onset_ms": 253_402_300_800_000}],
)
def test_an_alert_whose_words_or_times_are_foreign_is_refused(change: dict[str, object]) -> None:
    """Who reads it looks the severity up and writes the times out; one such message would stop every reader."""
    with pytest.raises(DecodeError, match=next(iter(change))):
        decode_alert(json.dumps(json.loads(encode_alert(ALERT)) | change).encode())


@pytest.mark.parametrize("severity", SEVERITIES)
def test_an_alert_of_any_severity_and_time_survives_the_wire(severity: str) -> None:
    """A record without a time has -1, and a producer's clock may show any year."""
    for time_ms in (-1, 0, 253_402_300_799_999):
        alert = replace(ALERT, severity=severity, time_ms=time_ms, onset_ms=time_ms)
        assert decode_alert(encode_alert(alert)) == alert


def test_schema_describes_what_is_accepted() -> None:
    """`tidewatch schema` is what other teams write their producers from."""
    schemas = json_schema()
    assert set(schemas) == {"window", "alert", "dead_letter"}
    assert {"schema", "stream_id", "start", "values", "control"} <= schemas["window"]["properties"].keys()
    assert schemas["window"]["required"] == ["stream_id"]
    assert WindowMessage.model_validate_json(as_json()).stream_id == "press"


def test_schema_warns_of_seconds_and_of_records_without_a_key() -> None:
    """Neither is an error that could be refused: recordings count from 1970, and a topic may have one partition."""
    fields = json_schema()["window"]["properties"]
    assert "seconds would be taken for January 1970" in fields["start"]["description"]
    assert "without a key" in fields["stream_id"]["description"]


def replace_limits(**fields: object) -> Limits:
    return LIMITS.model_copy(update=fields)


def test_times_that_look_like_seconds_are_doubted_once(caplog: pytest.LogCaptureFixture) -> None:
    """They are valid, and every stream would live in January 1970 without a word."""
    messages = Messages({"p": PROFILE, "rows": PROFILE.model_copy(update={"clock": False})}, LIMITS, "s", "a", "d")
    seconds = as_json(start=NOON_MS // 1000)
    for profile in ("p", "p", "rows"):
        records = [StoredRecord(n, NOON_MS, None, value) for n, value in enumerate((window(), seconds))]
        assert len(messages.decode(profile, PARTITION, records)[0]) == 2
    (doubt,) = caplog.messages
    assert doubt.startswith(
        "profile=p stream=press: event time 1750000000 counts milliseconds; was it meant in seconds?"
    )
