"""``tidewatch replay`` through the engine: which profile, what is written, and that it is the same every time."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from models.config import PredictorConfig
from models.pretrained import Weights
from pipeline.__main__ import EXIT_CONFIGURATION, main
from pipeline.errors import ConfigurationError
from pipeline.records import FeatureEvidence, Partition, StoredRecord
from pipeline.registry import Registry
from pipeline.replay.inputs import (
    Chosen,
    History,
    TopicRange,
    choose_records,
    group_by_profile,
    load_streams,
    parse_topic_range,
)
from pipeline.replay.outputs import Tally
from pipeline.replay.through_kafka import Message, Pacer, Run, raw_messages, series_messages
from pipeline.settings import Limits, Settings
from pipeline.sinks.recording import RecordWriter
from pipeline.sources.recording import RecordedStream
from pipeline.topics.base import Instant, Offset
from pipeline.topics.places import parse_place
from pipeline.wire import decode_many, encode_control, encode_packed
from tests.alerts import make_alert
from tests.builders import INTERVAL_MS, START_MS, FakeClock, make_profile, make_series, tiny_weights

SETTINGS = """
[profiles.pump]
topics = ["pumps"]
features = ["flow", "pressure"]
interval_s = 60
alarm_budget = "1 per day"
predictor = "{weights}"

[profiles.wave]
topics = ["waves"]
features = ["value"]
interval_s = 60
alarm_budget = "1 per day"
predictor = "{weights}"

[registry]
folder = "{registry}"
"""


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    """Two profiles of a tiny predictor."""
    tiny_weights().save(tmp_path / "weights")
    path = tmp_path / "tidewatch.toml"
    path.write_text(SETTINGS.format(weights=tmp_path / "weights", registry=tmp_path / "registry"))
    return path


def write_csv(path: Path, streams: dict[str, np.ndarray], header: str = "value", step_ms: int = INTERVAL_MS) -> Path:
    lines = [f"timestamp,stream_id,{header}"]
    for name, values in streams.items():
        for at, row in enumerate(values.tolist()):
            cells = ",".join("" if cell != cell else f"{cell:.9g}" for cell in row)
            lines.append(f"{START_MS + step_ms * at},{name},{cells}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Three waves with spikes."""
    return write_csv(tmp_path / "waves.csv", {f"hall/w{seed}": make_series(seed, 200) for seed in range(3)})


def replay(*words: object) -> int:
    return main(["replay", *map(str, words)])


def test_scores_and_alerts_are_written_where_asked(settings_file: Path, recording: Path, tmp_path: Path) -> None:
    """Files for other programs: every observation once, every alert event as on the topic."""
    scores, alerts = tmp_path / "out" / "scores.csv", tmp_path / "out" / "alerts.jsonl"
    assert replay(recording, "--settings", settings_file, "--scores", scores, "--alerts", alerts) == 0
    with scores.open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 600
    assert [row["stream_id"] for row in rows[::200]] == ["hall/w0", "hall/w1", "hall/w2"]
    assert {row["profile"] for row in rows} == {"wave"}
    assert rows[0]["verdict"] == "warming_up"
    events = [json.loads(line) for line in alerts.read_text().splitlines()]
    assert {event["event"] for event in events} >= {"opened", "resolved"}
    opened = next(event for event in events if event["event"] == "opened")
    [row] = [row for row in rows if (row["stream_id"], row["time"]) == (opened["stream_id"], opened["time"])]
    assert row["verdict"] == "anomalous"
    assert float(row["score"]) == pytest.approx(opened["score"], abs=1e-3)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_same_recording_and_settings_give_the_same_bytes(
    settings_file: Path, recording: Path, tmp_path: Path, suffix: str
) -> None:
    """A change can only be judged by comparing two replays if nothing else differs between them."""
    written = []
    for name in ("one", "two"):
        files = [tmp_path / f"{name}-{what}.{suffix}" for what in ("scores", "alerts")]
        replay(recording, "--settings", settings_file, "--scores", files[0], "--alerts", files[1])
        written.append([file.read_bytes() for file in files])
    assert written[0] == written[1]
    assert all(len(text) > 100 for text in written[0])


def test_outputs_never_replace_what_is_read_or_each_other(
    settings_file: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A typing error must not cost the only recording of a fault."""
    before, other = recording.read_bytes(), tmp_path / "other.csv"
    there = tmp_path / "out" / ".." / recording.name
    (tmp_path / "out").mkdir()
    for words in (["--scores", there], ["--alerts", recording], ["--scores", other, "--alerts", other]):
        assert replay(recording, "--settings", settings_file, *words) == EXIT_CONFIGURATION
    assert replay(write_csv(other, {"a": make_series(1, 9)}), "--warm-from", recording, "--scores", recording) == 2
    assert "would be written over" in capsys.readouterr().err
    assert recording.read_bytes() == before


def test_a_changed_predictor_is_what_is_tried(settings_file: Path, recording: Path, tmp_path: Path) -> None:
    """Beside what production serves: the largest change there is must not score as if nothing had changed."""
    profile = Settings.load(settings_file).profiles["wave"]
    Registry(tmp_path / "registry").ensure("wave", profile.predictor, profile.fold())
    Weights.random(PredictorConfig(hidden=5), seed=9).save(tmp_path / "other")
    changed = tmp_path / "changed.toml"
    changed.write_text(settings_file.read_text().replace(f'"{tmp_path / "weights"}"', f'"{tmp_path / "other"}"'))
    written = []
    for settings in (settings_file, changed):
        replay(recording, "--settings", settings, "--scores", tmp_path / "s.csv")
        written.append((tmp_path / "s.csv").read_bytes())
    assert written[0] != written[1]


def test_order_of_rows_in_the_recording_changes_no_byte(settings_file: Path, recording: Path, tmp_path: Path) -> None:
    """Streams are independent: which one a file names first is nothing that was measured."""
    lines = recording.read_text().splitlines()
    turned = tmp_path / "turned.csv"
    turned.write_text("\n".join([lines[0], *lines[401:], *lines[1:401]]) + "\n")
    written = []
    for path in (recording, turned):
        replay(path, "--settings", settings_file, "--scores", tmp_path / "s.csv")
        written.append((tmp_path / "s.csv").read_bytes())
    assert written[0] == written[1]


def test_one_stream_is_a_stream(settings_file: Path, recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The summary is read by people."""
    assert replay(recording, "--settings", settings_file, "--streams", "hall/w0") == 0
    assert "1 stream, 200 observations" in capsys.readouterr().out


def test_the_worst_alerts_show_what_was_wrong_and_not_what_resolved_it() -> None:
    """What resolves an alert is an ordinary observation, though it carries the highest score of the episode."""
    ordinary = (FeatureEvidence("value", 5.1, 5.0, (4.0, 6.0), 0.1),)
    opened, tally = make_alert(), Tally()
    tally.add_alerts([opened, make_alert(event="resolved", score=0.5, peak_score=6.4, features=ordinary)])
    [worst] = tally.worst_alerts(5)
    assert (worst.event, worst.peak_score) == ("resolved", 6.4)
    assert (worst.features, worst.score) == (opened.features, opened.score)


def test_part_of_a_recording_is_chosen_by_stream_and_time(settings_file: Path, recording: Path, tmp_path: Path) -> None:
    """One looks at an hour of one machine, not at the year of the plant."""
    scores = tmp_path / "s.jsonl"
    begin, end = "2023-11-14T22:23:20", "2023-11-14T22:33:20"
    options = ("--streams", "hall/w[01]", "--start", begin, "--end", end, "--scores", scores)
    replay(recording, "--settings", settings_file, *options)
    rows = [json.loads(line) for line in scores.read_text().splitlines()]
    assert {row["stream_id"] for row in rows} == {"hall/w0", "hall/w1"}
    assert len(rows) == 20
    assert min(row["time"] for row in rows) == f"{begin}.000Z"


def test_a_recording_without_a_profile_is_said_and_scored(
    settings_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anybody's file can be tried at once, and nobody is left to think it was scored as in production."""
    path = write_csv(tmp_path / "odd.csv", {"s": make_series(1, 120)}, header="temperature")
    assert replay(path, "--settings", settings_file, "--scores", tmp_path / "s.csv") == 0
    printed = capsys.readouterr().out
    assert "notice: profile recorded-60s" in printed
    assert "features temperature" in printed
    assert "120 observations scored" in printed


def test_derived_profile_keeps_what_a_fitting_one_says_of_the_rest() -> None:
    """A file with another interval than production's is still judged by production's budget."""
    profiles = {"slow": make_profile(interval_s=3600, alarm_budget="3 per week", idle_reset_s=90_000)}
    times_ms = START_MS + INTERVAL_MS * np.arange(10)
    stream = RecordedStream("nab/x", ("value",), 60.0, times_ms, np.zeros((10, 1), np.float32), clock=False)
    [group] = group_by_profile([stream], profiles)
    assert (group.name, group.profile.interval_s, group.profile.clock) == ("nab-60s", 60.0, False)
    assert group.profile.alarm_budget == "3 per week"
    assert group.notice is not None
    assert "--profile slow" in group.notice
    [forced] = group_by_profile([stream], profiles, "slow")
    assert (forced.profile, forced.notice) == (profiles["slow"], None)


def test_streams_of_different_kinds_get_profiles_of_their_own() -> None:
    """A folder may hold pumps and servers; their rows have nothing in common."""
    times_ms = START_MS + INTERVAL_MS * np.arange(10)
    kinds = {"a/1": ("x", "y"), "a/2": ("x",), "b/1": ("x", "y"), "c": ("value",)}
    streams = [
        RecordedStream(name, features, 60.0, times_ms, np.zeros((10, len(features)), np.float32))
        for name, features in kinds.items()
    ]
    groups = group_by_profile(streams, {"wave": make_profile()})
    assert [(group.name, [stream.name for stream in group.streams]) for group in groups] == [
        ("recorded-60s", ["a/1", "b/1"]),
        ("a-60s", ["a/2"]),
        ("wave", ["c"]),
    ]


def test_wrong_profile_is_refused_with_both_lists(settings_file: Path, recording: Path) -> None:
    """Columns in another order would score nonsense without a word."""
    with pytest.raises(ConfigurationError, match=r"flow, pressure.*'hall/w0' has value"):
        group_by_profile(load_streams([recording], Chosen()), Settings.load(settings_file).profiles, "pump")


def test_nothing_chosen_is_an_error_that_shows_what_there_is(recording: Path) -> None:
    """A typing error in a pattern must not look like a recording without alerts."""
    with pytest.raises(ConfigurationError, match="hall/w0"):
        load_streams([recording], Chosen(("hull/*",)))
    with pytest.raises(ConfigurationError, match="no observation is left"):
        load_streams([recording], Chosen(start_ms=START_MS * 2))


def test_history_is_absorbed_silently_up_to_where_the_replay_begins(
    settings_file: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second half, warmed up from a recording of both halves, scores like the second half of both."""
    whole, half = tmp_path / "whole.csv", tmp_path / "half.csv"
    replay(recording, "--settings", settings_file, "--scores", whole)
    start = "2023-11-15T00:13:20"
    replay(recording, "--settings", settings_file, "--start", start, "--warm-from", recording, "--scores", half)
    assert "360 silent" in capsys.readouterr().out

    def values(path: Path) -> dict[tuple[str, str], float]:
        with path.open() as lines:
            return {(row["stream_id"], row["time"]): float(row["score"]) for row in csv.DictReader(lines)}

    expected = {place: score for place, score in values(whole).items() if place[1] >= start}
    found = values(half)
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[place] for place in expected], list(expected.values()), atol=1.5e-3)


@pytest.mark.parametrize("words", [["--speed", "60x"], ["--partitions", "8"], ["--run", "a"], ["--cleanup"]])
def test_options_of_the_way_through_kafka_are_not_ignored(
    settings_file: Path, recording: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Who asks for a speed and is told of a replay in half a second has not replayed what was meant."""
    assert main(["replay", str(recording), "--settings", str(settings_file), *words]) == EXIT_CONFIGURATION
    assert f"{words[0]}: through Kafka only; add --to kafka" in capsys.readouterr().err


# --- raw records ------------------------------------------------------------------------------------------------------


def write_records(path: Path, length: int = 160) -> Path:
    """Two streams on two partitions, one of them reset in the middle, and a record that is none."""
    with RecordWriter(path) as writer:
        offsets = [0, 0]
        for at in range(0, length, 8):
            for seed in range(2):
                times_ms = START_MS + INTERVAL_MS * np.arange(at, at + 8)
                values = [encode_packed(f"w{seed}", times_ms, make_series(seed, length)[at : at + 8])]
                if seed == 1 and at == 120:
                    values = [encode_control("w1", "reset"), b"{}", *values]
                for value in values:
                    record = StoredRecord(offsets[seed], int(times_ms[-1]), f"w{seed}".encode(), value)
                    writer.add(Partition("waves", seed), record)
                    offsets[seed] += 1
    return path


def test_a_history_of_other_streams_is_refused(
    settings_file: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would warm up nothing, and the replay would look as though it had."""
    past = write_csv(tmp_path / "past.csv", {"other": make_series(3, 200)})
    words = ["replay", str(recording), "--warm-from", str(past), "--settings", str(settings_file)]
    assert main(words) == EXIT_CONFIGURATION
    assert "none of the streams that are replayed; it has other" in capsys.readouterr().err


def test_records_of_a_topic_are_obeyed_as_a_worker_would(
    settings_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reset by hand and bad input happened there and then; a replay that knew nothing of them would score others."""
    path, scores = write_records(tmp_path / "w.records.jsonl.gz"), tmp_path / "s.csv"
    assert replay(path, "--settings", settings_file, "--scores", scores) == 0
    assert "1 dead letters" in capsys.readouterr().out
    with scores.open() as lines:
        rows = list(csv.DictReader(lines))
    verdicts = {stream: [row["verdict"] for row in rows if row["stream_id"] == stream] for stream in ("w0", "w1")}
    assert [len(found) for found in verdicts.values()] == [160, 160]
    assert "warming_up" not in verdicts["w0"][120:]
    assert set(verdicts["w1"][120:]) == {"warming_up"}


def test_records_need_a_profile_of_their_topic(settings_file: Path, tmp_path: Path) -> None:
    """Packed windows do not name their features."""
    path = write_records(tmp_path / "w.records.jsonl", 16)
    elsewhere = tmp_path / "other.toml"
    elsewhere.write_text('[profiles.other]\ntopics = ["other"]\nfeatures = ["value"]\n')
    assert replay(path, "--settings", elsewhere) == 2
    assert replay(path, "--settings", elsewhere, "--profile", "other") == 0


def test_records_are_chosen_by_stream_and_timestamp() -> None:
    """Raw records are passed on whole or not at all, or they would not be what was recorded."""
    profile = make_profile()
    times_ms = np.array([START_MS])
    records = [
        (Partition("input", 0), StoredRecord(at, START_MS + at, key, encode_packed(name, times_ms, np.zeros((1, 1)))))
        for at, (key, name) in enumerate([(b"a", "a"), (b"b", "b"), (None, "a"), (b"a", "a")])
    ]
    chosen = Chosen(("a",), end_ms=START_MS + 3)
    found = choose_records(iter(records), chosen, profile, Limits())
    assert [record.offset for _, record in found] == [0, 2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plant", TopicRange("plant", None, None)),
        ("plant@17..20", TopicRange("plant", Offset(17), Offset(20))),
        ("plant@..20", TopicRange("plant", None, Offset(20))),
        ("plant@2023-11-14T22:13:20..", TopicRange("plant", Instant(START_MS), None)),
        ("plant@2023-11-14T22:13:20Z..2023-11-14", TopicRange("plant", Instant(START_MS), Instant(1_699_920_000_000))),
    ],
)
def test_ranges_of_topics_are_offsets_or_times(text: str, expected: TopicRange) -> None:
    """Both are at hand when one looks for "what happened there": an alert names its offset, a person its time."""
    assert parse_topic_range(text) == expected


@pytest.mark.parametrize("text", ["", "plant@", "plant@5", "@1..2"])
def test_half_written_ranges_are_refused(text: str) -> None:
    """A range misread as "all" would read a production topic from its beginning."""
    with pytest.raises(ConfigurationError):
        parse_topic_range(text)
    with pytest.raises(ConfigurationError):
        parse_place("yesterday")


# --- messages for Kafka -----------------------------------------------------------------------------------------------


def messages_of(streams: list[RecordedStream], history: History, length: int = 4) -> list[Message]:
    [group] = group_by_profile(streams, {"p": make_profile()})
    return list(series_messages(group, "t", length, history))


def make_stream(name: str, length: int, begin: int = 0) -> RecordedStream:
    times_ms = START_MS + INTERVAL_MS * np.arange(begin, begin + length)
    return RecordedStream(name, ("value",), 60.0, times_ms, np.ones((length, 1), np.float32))


def test_history_goes_before_a_streams_first_window() -> None:
    """Silent records warm a stream up only if they stand before what they are to warm it up for."""
    history = History.of([make_stream("a", 80), make_stream("elsewhere", 3)])
    messages = messages_of([make_stream("a", 8, begin=70), make_stream("b", 8, begin=70)], history)
    records = [StoredRecord(at, m.timestamp_ms, m.key, m.value) for at, m in enumerate(messages)]
    decoded, dead = decode_many(records, Partition("t", 0), make_profile(), Limits())
    assert dead == []
    of_a = [at for at, name in enumerate(decoded.stream_ids) if name == "a"]
    assert decoded.silent[of_a].tolist() == [True, True, False, False]
    assert decoded.lengths[of_a].tolist() == [64, 6, 4, 4]
    assert [m.due_ms for m in messages] == sorted(m.due_ms for m in messages)


def test_raw_records_go_out_as_they_were() -> None:
    """Bit for bit, partition and timestamp included: bad input must be bad again."""
    records = [
        (Partition("input", 3), StoredRecord(7, 123, None, b"\xff\x00")),
        (Partition("input", 0), StoredRecord(1, 5, b"k", None)),
    ]
    messages = list(raw_messages(iter(records), "t", make_profile(), Limits(), History()))
    assert messages == [
        Message(123, "t", 3, None, b"\xff\x00", 123),
        Message(5, "t", 0, b"k", None, 5),
    ]


def test_speed_is_kept_by_the_clock() -> None:
    """At 60x an hour takes a minute, however long the work between two messages took."""
    clock = FakeClock()
    pacer = Pacer(60.0, clock)
    assert pacer.wait_s(START_MS) == 0.0
    assert pacer.wait_s(START_MS + 3_600_000) == pytest.approx(60.0, abs=0.1)
    clock.advance(45.0)
    assert pacer.wait_s(START_MS + 3_600_000) == pytest.approx(15.0, abs=0.1)
    clock.advance(45.0)
    assert pacer.wait_s(START_MS + 3_600_000) == 0.0
    assert Pacer(None, clock).wait_s(START_MS) == 0.0


def test_a_run_shares_nothing_with_production() -> None:
    """A replay must never page anyone: topics, group, registry and names are the run's own."""
    settings = Settings()
    run = Run("a1")
    own = run.settings(settings, settings.profiles, Path("elsewhere"))
    ours = {own.kafka.scores_topic, own.kafka.alerts_topic, own.kafka.dead_letter_topic, *own.profile_names()}
    theirs = {settings.kafka.scores_topic, settings.kafka.alerts_topic, settings.kafka.dead_letter_topic}
    assert all(topic.startswith("tidewatch-replay-a1-") for topic in ours)
    assert not ours & (theirs | set(settings.profile_names()))
    assert own.kafka.group != settings.kafka.group
    assert own.registry.folder != settings.registry.folder
    Settings.model_validate(own.model_dump())


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["absent.csv"],
        ["w.csv", "--speed", "fast", "--to", "kafka", "--into-production"],
        ["w.csv", "--into-production"],
        ["w.csv", "--scores", "scores.txt"],
        ["w.csv", "--start", "noon"],
        ["w.csv", "--window", "0"],
        ["--delete", "Not-A-Run"],
    ],
)
def test_wrong_options_are_refused_before_anything_is_done(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that says what is wrong, and exit code 2."""
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "w.csv", {"s": make_series(0, 10)})
    assert replay(*words) == 2
    assert capsys.readouterr().err.startswith("tidewatch replay: ")
