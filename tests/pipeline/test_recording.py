"""Recordings: every format reads to the same streams, cuts lose nothing, and record files replay bit for bit."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import msgpack
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from pipeline.errors import ConfigurationError
from pipeline.memory import MemoryBroker
from pipeline.profile import Profile
from pipeline.records import Partition, StoredRecord
from pipeline.replay.inputs import Chosen, doubts_of, group_by_profile, load_streams
from pipeline.settings import Limits
from pipeline.sinks.memory import MemorySink
from pipeline.sinks.recording import RecordWriter
from pipeline.sources.base import CommittedOffset
from pipeline.sources.memory import MemorySource
from pipeline.sources.record_file import decode_records, read_records
from pipeline.sources.recording import RecordedStream, open_recording, windows
from pipeline.wire import encode_control, encode_json, encode_packed

NOON_MS = 1_750_000_000_000
PARTITION = Partition("plant", 0)


def stream(times: list[int], name: str = "press", seed: int = 0) -> RecordedStream:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((len(times), 2)).astype(np.float32)
    return RecordedStream(name, ("flow", "pressure"), None, np.array(times, np.int64), values)


def write_csv(path: Path, text: str) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def as_csv(path: Path) -> None:
    write_csv(
        path.with_suffix(".csv.gz"),
        "timestamp,stream_id,flow,pressure,valve,label\n"
        "2025-06-15T15:06:40,a,1.5,,open,0\n2025-06-15T15:06:40,b,2.5,4.5,open,1\n2025-06-15T15:07:40,a,3.5,0,shut,0\n",
    )


def as_rows(path: Path) -> None:
    rows = [
        {"timestamp": NOON_MS, "stream_id": "a", "flow": 1.5, "pressure": None, "valve": "open", "label": 0},
        {"timestamp": NOON_MS, "stream_id": "b", "flow": 2.5, "pressure": 4.5, "valve": "open", "label": 1},
        {"timestamp": NOON_MS + 60_000, "stream_id": "a", "flow": 3.5, "pressure": 0, "valve": "shut", "label": 0},
    ]
    path.with_suffix(".jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")


def as_windows(path: Path) -> None:
    lines = [
        {"stream_id": "a", "start": NOON_MS, "interval_s": 60, "features": ["flow", "pressure"], "labels": [0, 0],
         "values": [[1.5, None], [3.5, 0]]},
        {"stream_id": "b", "start": NOON_MS, "values": [[2.5, 4.5]], "labels": [1]},
    ]  # fmt: skip
    path.with_suffix(".jsonl").write_text("\n".join(map(json.dumps, lines)))


def as_parquet(path: Path) -> None:
    times = pa.array([NOON_MS * 1000, NOON_MS * 1000, (NOON_MS + 60_000) * 1000 + 7], pa.timestamp("us"))
    table = pa.table(
        {
            "timestamp": times,
            "stream_id": ["a", "b", "a"],
            "flow": [1.5, 2.5, 3.5],
            "pressure": pa.array([None, 4.5, 0], pa.float64()),
            "valve": ["open", "open", "shut"],
            "label": [0, 1, 0],
        }
    )
    parquet.write_table(table, path.with_suffix(".parquet"))


@pytest.mark.parametrize("write", [as_csv, as_rows, as_windows, as_parquet])
def test_every_format_reads_to_the_same_streams(tmp_path: Path, write: Callable[[Path], None]) -> None:
    """A recording's format is its owner's choice and must not change what is scored."""
    write(tmp_path / "plant")
    [path] = tmp_path.iterdir()
    recording = open_recording(path)
    assert recording.names == ("a", "b")
    a, b = recording["a"], recording["b"]
    assert a.features == ("flow", "pressure")
    assert a.times_ms.tolist() == [NOON_MS, NOON_MS + 60_000]
    np.testing.assert_array_equal(a.values, np.array([[1.5, np.nan], [3.5, 0]], np.float32))
    np.testing.assert_array_equal(b.values, np.array([[2.5, 4.5]], np.float32))
    assert a.labels is not None
    assert b.labels is not None
    assert (a.labels.tolist(), b.labels.tolist()) == ([0, 0], [1])
    assert a.clock
    assert (a.interval_s, b.interval_s) == (60.0, None)
    assert a.dropped == (() if write is as_windows else ("valve",))


@pytest.mark.parametrize(
    ("first", "second", "expected", "clock"),
    [
        ("2025-06-15 15:06:40Z", "2025-06-15 17:06:41.5+02:00", [NOON_MS, NOON_MS + 1500], True),
        ("1750000000", "1750000001.5", [NOON_MS, NOON_MS + 1500], True),
        ("1750000000000", "1750000001500", [NOON_MS, NOON_MS + 1500], True),
        ("1750000000000000", "1750000001500000", [NOON_MS, NOON_MS + 1500], True),
        ("1750000000000000000", "1750000001500000000", [NOON_MS, NOON_MS + 1500], True),
        ("0", "60", [0, 60_000], False),
    ],
)
def test_timestamps_are_understood_however_written(
    tmp_path: Path, first: str, second: str, expected: list[int], clock: bool
) -> None:
    """Clock times and counters differ: only the former have a time of day."""
    path = write_csv(tmp_path / "x.csv", f"timestamp,value\n{first},1\n{second},2\n")
    [one] = open_recording(path)
    assert one.times_ms.tolist() == expected
    assert (one.name, one.clock) == ("x", clock)


def test_packets_of_one_millisecond_stay_apart_and_repeats_stay_repeats(tmp_path: Path) -> None:
    """Event time is in whole ms: what only that makes equal goes to the next free one; what was equal or late stays."""
    seconds = [("a", "10.000100"), ("b", "10.000150"), ("a", "10.000250"), ("a", "10.000251"), ("a", "10.000251")]
    seconds += [("a", "10.001900"), ("a", "9.5"), ("a", "10.002000"), ("a", "10.5"), ("b", "10.000200")]
    rows = "".join(f"{name},{time},1\n" for name, time in seconds)
    recording = open_recording(write_csv(tmp_path / "x.csv", f"stream_id,timestamp,value\n{rows}"))
    assert recording["a"].times_ms.tolist() == [10_000, 10_001, 10_002, 10_002, 10_003, 9_500, 10_004, 10_500]
    assert recording["b"].times_ms.tolist() == [10_000, 10_001]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three series with a manifest, one for each kind of timestamp."""
    kinds = {
        "iso8601": "timestamp,value,port,label\n2025-06-15T15:06:40.5,1,80,0\n2025-06-15T15:06:40.1,,443,1\n",
        "seconds": "timestamp,value,label\n0,1,0\n60,2,0\n60,3,0\n",
        "row_index": "timestamp,value,label\n0,1,0\n1,2,0\n",
    }
    series = []
    for kind, text in kinds.items():
        (tmp_path / "set").mkdir(exist_ok=True)
        write_csv(tmp_path / "set" / f"{kind}.csv.gz", text)
        entry = {"dataset": "set", "series_id": kind, "file": f"set/{kind}.csv.gz", "rows": text.count("\n") - 1}
        entry |= {"features": ["value"], "timestamp_kind": kind, "interval_seconds": 60 if kind == "seconds" else None}
        if kind == "iso8601":
            entry |= {"features": ["value", "port"], "categorical_features": ["port"], "train_prefix_rows": 1}
        series.append(entry)
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 1, "series": series}))
    return tmp_path


def test_manifest_says_what_the_files_do_not(folder: Path) -> None:
    """Kinds of time, intervals and codes that look like numbers are known only there; odd times are kept."""
    recording = open_recording(folder)
    assert recording.names == ("set/iso8601", "set/seconds", "set/row_index")
    iso, seconds, rows = recording
    assert iso.times_ms.tolist() == [NOON_MS + 500, NOON_MS + 100]
    assert (iso.features, iso.dropped, iso.train_prefix) == (("value",), ("port",), 1)
    assert np.isnan(iso.values[1, 0])
    assert (seconds.times_ms.tolist(), seconds.interval_s) == ([0, 60_000, 60_000], 60)
    assert (rows.times_ms.tolist(), rows.interval_s) == ([0, 1000], None)
    assert [one.clock for one in recording] == [True, False, False]


def test_series_are_selected_by_path_and_by_pattern(folder: Path) -> None:
    """One series of two hundred must be reachable without loading the others."""
    for path in (folder / "set/seconds.csv.gz", folder / "set/seconds"):
        assert open_recording(path).names == ("set/seconds",)
    recording = open_recording(folder)
    assert recording.select(["set/s*"]).names == ("set/seconds",)
    assert recording.select(["set"]).names == recording.names
    with pytest.raises(ConfigurationError, match="no stream matches 'sat/\\*'"):
        recording.select(["sat/*"])


def test_file_that_is_not_what_its_manifest_says_is_refused(folder: Path) -> None:
    """A cut-off download must not pass for a shorter recording."""
    write_csv(folder / "set/seconds.csv.gz", "timestamp,value,label\n0,1,0\n")
    with pytest.raises(ConfigurationError, match="the manifest says"):
        open_recording(folder)["set/seconds"]


def test_folder_without_manifest_names_streams_by_path(tmp_path: Path) -> None:
    """A directory of exports is the usual form of a plant's history."""
    (tmp_path / "hall").mkdir()
    write_csv(tmp_path / "hall" / "press.csv", "time,value\n0,1\n")
    write_csv(tmp_path / "pump.csv.gz", "time,value\n0,1\n")
    (tmp_path / "notes.txt").write_text("x")
    assert set(open_recording(tmp_path).names) == {"hall/press", "pump"}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.txt", b"timestamp,value\n0,1\n", "recordings end in .csv"),
        ("x.csv", b"when,value\n0,1\n", "no column timestamp or time"),
        ("x.csv", b"timestamp,value\n", "no rows"),
        ("x.csv", b"", "no column"),
        ("x.csv", b"timestamp,value\n0,1\n1\n", "a row has 1 cells, the header 2"),
        ("x.csv", b"timestamp,value,value\n0,1,1\n", "stands twice"),
        ("x.csv", b"timestamp,value\nyesterday,1\n", "Invalid isoformat"),
        ("x.csv", b"timestamp,value\n0,1\nnan,1\n", "a timestamp is missing"),
        ("x.csv", b"timestamp,value\n0,1\n1e30,1\n", "beyond the year 9999: 1e30"),
        ("x.csv", b"timestamp,value\n0,\xff\n", "cannot be read"),
        ("x.csv.gz", gzip.compress(b"timestamp,value\n0,1\n" * 99)[:-9], "cannot be read"),
        ("x.csv.gz", b"timestamp,value\n0,1\n", "cannot be read"),
        ("x.csv", b"timestamp,value\n2025-06-15,1\n,1\n", "timestamp '' in row 2 is no time: Invalid isoformat"),
        ("x.csv", b"timestamp,value\n0,1\nnoon,1\n", "timestamp 'noon' in row 2 is no number"),
        ("x.csv", b"timestamp,value\n20250615150640,2\n", "timestamp 20250615150640 reads as the year 2611"),
        ("x.csv", b"timestamp,value\n1e8,1\n1e10,1\n", "timestamp 1e10 reads as the year 2286"),
        ("x.csv", b"timestamp,value\n5,1\n-5,1\n", "timestamp -5 in row 2 is below 0"),
        ("x.csv", b"timestamp,value\n-1e30,1\n", "timestamp -1e30 in row 1 is below 0"),
        ("x.csv", b"timestamp,value\n1969-12-31,1\n", "timestamp 1969-12-31 in row 1 is below 0, or before 1970"),
        ("x.csv", b"timestamp,value,label\n0,1,0\n1,1,bad\n", "column label: 'bad' in row 2 is no number"),
        ("x.jsonl", b"[1]\n", "not one JSON object per line"),
        ("x.jsonl", b'{"timestamp": 0}\n{', "x.jsonl"),
        ("x.jsonl", b'{"timestamp": 0, "a": 1}\n{"a": 2}\n', "a timestamp is missing"),
        ("x.jsonl", b'{"a": 2}\n{"timestamp": 0, "a": 1}\n', "a timestamp is missing"),
        ("x.jsonl", b'{"timestamp": "2026-01-01", "a": 1}\n{"timestamp": 5, "a": 1}\n', "Invalid isoformat"),
        ("x.jsonl", b'{"timestamp": 0, "a": 1}\n7\n', "line 2 is no JSON object"),
        ("x.jsonl", b'{"stream_id": "a", "values": [[1]]}\n', "neither start nor times"),
        ("x.parquet", b"PAR1", "not Parquet"),
        ("x.records.jsonl", b"", "need a profile"),
        ("manifest.json", b"{}", "not a manifest of recordings"),
    ],
)
def test_unreadable_recording_is_refused_by_name(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    """Someone with a thousand files needs to know which one, and what about it."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        list(open_recording(path))
    assert str(path.name) in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        (pa.array([], pa.timestamp("us")), "no rows"),
        (pa.array([None, 5], pa.timestamp("us")), "a timestamp is missing in row 1"),
        (pa.array([None], pa.date32()), "a timestamp is missing in row 1"),
        (pa.array([-1, 5], pa.date32()), "timestamp 1969-12-31 in row 1 is below 0, or before 1970"),
        (pa.array([[1]]), "timestamp [1] in row 1 is no time"),
    ],
)
def test_unreadable_parquet_is_refused_by_name(tmp_path: Path, times: pa.Array, reason: str) -> None:
    """Typed columns go wrong in other ways than texts, and no way may end in a traceback."""
    parquet.write_table(pa.table({"timestamp": times, "value": [1.0] * len(times)}), tmp_path / "x.parquet")
    with pytest.raises(ConfigurationError) as caught:
        open_recording(tmp_path / "x.parquet")
    assert "x.parquet" in str(caught.value)
    assert reason in str(caught.value)


def test_dates_of_parquet_are_read_as_midnights(tmp_path: Path) -> None:
    """Daily figures are dates in a warehouse."""
    table = pa.table({"timestamp": pa.array([20_254, 20_255], pa.date32()), "value": [1.0, 2.0]})
    parquet.write_table(table, tmp_path / "x.parquet")
    [one] = open_recording(tmp_path / "x.parquet")
    assert one.times_ms.tolist() == [20_254 * 86_400_000, 20_255 * 86_400_000]
    assert one.clock


@pytest.mark.parametrize("cell", ["", "n/a", "N/A", "NA", "null", "None", "-", " nan "])
def test_what_people_write_for_missing_is_missing(tmp_path: Path, cell: str) -> None:
    """One sensor that was off for a minute must not take its whole column with it."""
    [one] = open_recording(write_csv(tmp_path / "x.csv", f"timestamp,flow,label\n0,1.5,{cell}\n1,{cell},1\n"))
    assert (one.features, one.left_out) == (("flow",), {})
    np.testing.assert_array_equal(one.values, np.array([[1.5], [np.nan]], np.float32))
    assert one.labels is not None
    assert one.labels.tolist() == [0, 1]


def test_true_and_false_are_numbers_in_every_format(tmp_path: Path) -> None:
    """A valve is open or shut whether a producer writes JSON or CSV."""
    write_csv(tmp_path / "a.csv", "timestamp,open,label\n0,True,false\n1,false,TRUE\n")
    (tmp_path / "b.jsonl").write_text(
        '{"timestamp":0,"open":true,"label":false}\n{"timestamp":1,"open":false,"label":true}'
    )
    for one in open_recording(tmp_path):
        assert one.features == ("open",)
        assert one.values.tolist() == [[1], [0]]
        assert one.labels is not None
        assert one.labels.tolist() == [0, 1]


def test_column_that_is_left_out_says_which_cell_was_no_number(tmp_path: Path) -> None:
    """Whoever misses a feature must find the one cell among thousands, past the rows that are read at once."""
    rows = "".join(f"{row},1,{'abc' if row == 20_011 else 2}\n" for row in range(20_020))
    streams = load_streams([write_csv(tmp_path / "x.csv", f"timestamp,pressure,flow\n{rows}")], Chosen())
    assert streams[0].dropped == ("flow",)
    profile = Profile(topics=("pumps",), features=("pressure", "flow"))
    with pytest.raises(
        ConfigurationError, match="has pressure; column flow was left out: 'abc' in row 20012 is no number"
    ):
        group_by_profile(streams, {"pumps": profile}, "pumps")
    commas = write_csv(tmp_path / "y.csv", "timestamp;flow\n0;1,500,000\n")
    with pytest.raises(ConfigurationError, match="columns of numbers; column flow was left out: '1,500,000' in row 1"):
        load_streams([commas], Chosen())


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_columns_are_found_however_separated(tmp_path: Path, separator: str) -> None:
    """Spreadsheets write what their country uses, blanks and capitals included."""
    rows = [("Timestamp ", " flow", " pressure"), ("0", "1", "2"), ("60", "3", "4")]
    path = write_csv(tmp_path / "x.csv", "".join(f"{separator.join(row)}\n" for row in rows))
    [one] = open_recording(path)
    assert one.features == ("flow", "pressure")
    assert one.times_ms.tolist() == [0, 60_000]
    assert one.values.tolist() == [[1, 2], [3, 4]]


def test_a_decimal_comma_is_read_between_semicolons(tmp_path: Path) -> None:
    """Half of Europe's spreadsheets write so; between commas it would be two columns."""
    path = write_csv(tmp_path / "x.csv", "timestamp;stream_id;flow\n2026-03-01T00:00:00,5;a,b;1,5\n")
    [one] = open_recording(path)
    assert (one.name, one.values.tolist()) == ("a,b", [[1.5]])


def test_json_lines_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """.NET writes one before everything, and CSV with one is read as well."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"timestamp": 0, "flow": 1.5}\n{"timestamp": 60, "flow": 2}\n', encoding="utf-8-sig")
    [one] = open_recording(path)
    assert one.values.tolist() == [[1.5], [2.0]]


times_strategy = st.lists(st.integers(0, 30).map(lambda t: t * 1000), max_size=30)


@given(all_times=st.lists(times_strategy, min_size=1, max_size=4), length=st.integers(1, 5))
def test_cutting_loses_nothing_and_keeps_each_streams_order(all_times: list[list[int]], length: int) -> None:
    """Replay must feed what was recorded, repeated and backward times included, in windows the wire accepts."""
    streams = [stream(times, f"s{i}", i) for i, times in enumerate(all_times)]
    if not any(all_times):
        with pytest.raises(ConfigurationError, match="no observation is left"):
            windows([streams], length)
        return
    sequence = windows([streams], length)
    cut = list(sequence)
    assert len(cut) == len(sequence)
    assert sum(len(window.times_ms) for window in cut) == sequence.observations == sum(map(len, all_times))
    assert all(len(window.times_ms) <= length and (np.diff(window.times_ms) > 0).all() for window in cut)
    for one in streams:
        mine = [window for window in cut if window.stream_id == one.name]
        if len(one):
            np.testing.assert_array_equal(np.concatenate([window.times_ms for window in mine]), one.times_ms)
            np.testing.assert_array_equal(np.concatenate([window.values for window in mine]), one.values)
    if all((np.diff(times) >= 0).all() for times in all_times):
        sent = [window.times_ms[-1] for window in cut]
        assert sent == sorted(sent)


def test_range_and_names_choose_what_is_replayed() -> None:
    """An incident is replayed by its hour and its machine, not by the whole month."""
    streams = [stream([0, 1000, 2000, 3000], name) for name in ("press-1", "press-2", "pump")]
    sequence = windows([streams], 10, start_ms=1000, end_ms=3000, streams=["press-*"])
    assert [(window.stream_id, window.times_ms.tolist()) for window in sequence] == [
        ("press-1", [1000, 2000]),
        ("press-2", [1000, 2000]),
    ]
    with pytest.raises(ConfigurationError, match="'pump' is in two recordings"):
        windows([streams, streams], streams=["pump"])


binary_or_none = st.none() | st.binary(max_size=30)
records_strategy = st.lists(
    st.tuples(
        st.builds(Partition, st.sampled_from(["plant", "net"]), st.integers(0, 3)),
        st.builds(StoredRecord, st.integers(0, 2**62), st.integers(-1, 2**62), binary_or_none, binary_or_none),
    ),
    max_size=10,
)


@given(records=records_strategy, packed=st.booleans())
def test_record_file_gives_back_the_very_bytes(
    tmp_path_factory: pytest.TempPathFactory, records: list[tuple[Partition, StoredRecord]], packed: bool
) -> None:
    """A replayed incident is evidence only if every byte and position is as it was; equal runs give equal files."""
    folder = tmp_path_factory.mktemp("records")
    paths = [folder / f"{name}.records.jsonl{'.gz' if packed else ''}" for name in ("one", "two")]
    for path in paths:
        with RecordWriter(path) as writer:
            for partition, record in records:
                writer.add(partition, record)
        assert writer.count == len(records)
    assert list(read_records(paths[0])) == records
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_record_file_appears_only_when_complete(tmp_path: Path) -> None:
    """A reader must never take half a recording for the whole; Ctrl-C, though, is how a recording ends."""

    def interrupted(error: type[BaseException]) -> None:
        with RecordWriter(path) as writer:
            writer.add(PARTITION, StoredRecord(0, 0, None, b"x"))
            assert not path.exists()
            raise error

    path = tmp_path / "x.records.jsonl.gz"
    with pytest.raises(RuntimeError):
        interrupted(RuntimeError)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        interrupted(KeyboardInterrupt)
    assert len(list(read_records(path))) == 1
    with pytest.raises(ConfigurationError, match="ends in"):
        RecordWriter(tmp_path / "x.jsonl")


@pytest.mark.parametrize("cut", [1, 30, 60])
def test_damaged_record_file_says_so(tmp_path: Path, cut: int) -> None:
    """What is missing from a recording must be noticed before anyone draws conclusions from it."""
    path = tmp_path / "x.records.jsonl.gz"
    with RecordWriter(path) as writer:
        for offset in range(20):
            writer.add(PARTITION, StoredRecord(offset, 0, None, bytes([offset])))
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ConfigurationError, match="damaged or cut off"):
        list(read_records(path))
    path.write_bytes(gzip.compress(b'{"format":"other"}\n'))
    with pytest.raises(ConfigurationError, match="no record file"):
        list(read_records(path))


def test_record_files_decode_to_streams() -> None:
    """`explain` looks at a recorded topic by stream; what does not decode is no observation."""
    profile = Profile(topics=("plant",), features=("flow", "pressure"))
    one = stream([NOON_MS, NOON_MS + 1000, NOON_MS + 5000])
    labels = np.array([0, 1], np.uint8)
    values = [
        encode_packed("press", one.times_ms[:2], one.values[:2], labels=labels),
        b"junk",
        encode_control("press", "reset"),
        encode_json("press", one.times_ms[2:], one.values[2:]),
        None,
    ]
    records = [(PARTITION, StoredRecord(i, NOON_MS + 9000, None, value)) for i, value in enumerate(values)]
    recording = decode_records(records, profile, Limits())
    [decoded] = recording
    np.testing.assert_array_equal(decoded.times_ms, one.times_ms)
    np.testing.assert_array_equal(decoded.values, one.values)
    assert decoded.labels is not None
    assert decoded.labels.tolist() == [0, 1, 0]


def test_a_record_with_unreadable_labels_costs_a_recording_that_record_only() -> None:
    """Training on a topic would end with a TypeError for one record of millions."""
    profile = Profile(topics=("plant",), features=("flow",))
    values = [
        msgpack.packb([1, "press", NOON_MS + i, 0, 1, np.ones(1, "<f4").tobytes(), 0, labels])
        for i, labels in enumerate((b"\1", 5, b"\1\1", b"\0"))
    ]
    records = [(PARTITION, StoredRecord(i, NOON_MS, None, value)) for i, value in enumerate(values)]
    [decoded] = decode_records(records, profile, Limits())
    assert decoded.times_ms.tolist() == [NOON_MS, NOON_MS + 3]
    assert decoded.labels is not None
    assert decoded.labels.tolist() == [1, 0]


def test_a_recording_of_outputs_holds_only_what_was_committed(tmp_path: Path) -> None:
    """Of a transaction it holds all, with the offsets, or nothing: what was aborted was never said to anybody."""
    path, broker = tmp_path / "out.records.jsonl", MemoryBroker()
    for topic, partitions in (("plant", 1), ("alerts", 1), ("scores", 4)):
        broker.create_topic(topic, partitions)
    source, sink = MemorySource(broker, "workers", ["plant"]), MemorySink(broker, "worker")
    source.poll(0.0, 1)
    note = source.assignment()
    assert note is not None
    sink.add("alerts", b"a", b"lost")
    sink.abort()
    sink.add("alerts", b"a", b"1")
    sink.add("scores", None, b"2", partition=3)
    assert broker.visible("alerts") == broker.visible("scores") == []
    sink.commit({PARTITION: CommittedOffset(7, "meta")}, note)
    sink.add("alerts", b"a", b"3")
    sink.commit({}, note)
    sink.add("alerts", b"a", b"lost too")
    sink.rebuild()
    sink.close()
    sink.close()
    assert [record.value for record in broker.visible("alerts")] == [b"1", b"3"]
    assert broker.committed("workers", PARTITION) == CommittedOffset(7, "meta")
    with RecordWriter(path) as writer:
        for place in (Partition("alerts", 0), Partition("scores", 3)):
            for record in broker.read(place, 0):
                writer.add(place, record)
    written = [(partition, record.value) for partition, record in read_records(path)]
    assert written == [(Partition("alerts", 0), b"1"), (Partition("alerts", 0), b"3"), (Partition("scores", 3), b"2")]


def test_columns_of_streams_and_labels_are_found_in_any_case(tmp_path: Path) -> None:
    """A spreadsheet writes names as it likes; streams that are not told apart would be one, most of it late."""
    path = write_csv(tmp_path / "pumps.csv", "Timestamp,Stream_ID,flow,Label\n1,a,1.5,0\n1,b,2.5,1\n2,a,3.5,0\n")
    a, b = open_recording(path)
    assert (a.name, b.name, a.features) == ("a", "b", ("flow",))
    assert a.labels is not None
    assert b.labels is not None
    assert (a.labels.tolist(), b.labels.tolist()) == ([0, 0], [1])


@pytest.mark.parametrize("end", ["csv", "jsonl"])
def test_a_row_that_names_no_stream_is_refused(tmp_path: Path, end: str) -> None:
    """Nothing would tell such rows from each other: they would be a stream called None."""
    text = {
        "csv": "timestamp,stream_id,flow\n1,a,1.5\n2,,2.5\n",
        "jsonl": '{"timestamp": 1, "stream_id": "a", "flow": 1.5}\n{"timestamp": 2, "stream_id": null, "flow": 2.5}\n',
    }
    path = write_csv(tmp_path / f"pumps.{end}", text[end])
    with pytest.raises(ConfigurationError, match="row 2 names no stream"):
        list(open_recording(path))


def test_columns_left_out_and_streams_in_one_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A sensor with one bad cell, and a column that tells streams apart by another name, change what is scored."""
    rows = [f"{second},{name},{second}.5,{cell}" for second in range(40) for name, cell in (("a", "1"), ("b", "x"))]
    path = write_csv(tmp_path / "pumps.csv", "\n".join(["timestamp,machine,flow,pressure", *rows]) + "\n")
    load_streams([path], Chosen())
    assert caplog.messages == [
        "column machine of pumps is left out: 'a' in row 1 is no number",
        "column pressure of pumps is left out: 'x' in row 2 is no number",
        (
            "40 of 80 rows of pumps are not later than the rows before them, and count as late; if these are several "
            "streams, name the column that tells them apart stream_id"
        ),
    ]


def test_what_is_doubtful_about_many_streams_is_said_once() -> None:
    """A thousand streams of one file share the column."""
    values, left_out = np.zeros((4, 1), np.float32), {"valve": "is open"}
    times = {"a": np.arange(4), "b": np.array([0, 0, 1, 1]), "c": np.array([0, 1, 1, 0])}
    streams = [RecordedStream(name, ("flow",), None, of, values, left_out=left_out) for name, of in times.items()]
    column, late = doubts_of(streams)
    assert column == "column valve of a is left out, and of 2 other streams: is open"
    assert late.startswith("2 of 4 rows of b (and many of 1 other streams) are not later")
