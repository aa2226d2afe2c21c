"""``tidewatch explain``: what stood behind a score, for whoever was paged, and whoever was not."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from pipeline.__main__ import main
from pipeline.engine import Engine
from pipeline.errors import ConfigurationError
from pipeline.explanation import Explanation, collect, sentence, with_recorded_versions
from pipeline.offline import RECORDING, Offline, in_rounds
from pipeline.plots import draw_observed
from pipeline.records import BESIDE_OTHERS, EVENTS, NORMAL, OPENED, Committed, Partition, StoredRecord
from pipeline.sinks.recording import RecordWriter
from pipeline.sources.recording import RecordedStream
from pipeline.wire import encode_packed
from tests.builders import INTERVAL_MS, START_MS, VERSION_A, VERSION_B, make_profile, make_scorer, tiny_weights

pytestmark = pytest.mark.slow

LENGTH, SPIKE = 260, 200
PAIR = ("left", "right")


def make_values(spike: float = 9.0, width: int = 1) -> np.ndarray:
    """A noisy wave with one spike of five observations."""
    random = np.random.default_rng(5)
    wave = np.sin(np.arange(LENGTH) / 7.0) + 0.1 * random.standard_normal(LENGTH)
    wave[SPIKE : SPIKE + 5] += spike
    return np.repeat(wave[:, None], width, axis=1).astype(np.float32)


def make_stream(name: str = "pump", values: np.ndarray | None = None) -> RecordedStream:
    values = make_values() if values is None else values
    features = ("value",) if values.shape[1] == 1 else PAIR
    return RecordedStream(name, features, 60.0, START_MS + INTERVAL_MS * np.arange(len(values)), values)


def explained(stream: RecordedStream, **changes: object) -> Explanation:
    offline = Offline("p", make_profile(features=stream.features, **changes), tiny_weights(), detail=True)
    return collect(offline.score_streams([stream]), stream.name, stream.features)


@cache
def of_shipped_weights() -> Explanation:
    """The same stream with the shipped predictor, whose calibration is real."""
    return collect(Offline("p", make_profile(), detail=True).score_streams([make_stream()]), "pump", ("value",))


def write_csv(path: Path, values: np.ndarray) -> Path:
    times = START_MS + INTERVAL_MS * np.arange(len(values))
    lines = [f"{np.datetime64(int(time), 'ms')}Z,{row[0]}" for time, row in zip(times, values, strict=True)]
    path.write_text("\n".join(["time,value", *lines]) + "\n")
    return path


def time_text(observation: int) -> str:
    return str(np.datetime64(START_MS + INTERVAL_MS * observation, "ms"))


# -- what is collected -------------------------------------------------------------------------------------------------


def test_explained_scores_are_the_scores() -> None:
    """Keeping what stands behind a score must not change the score."""
    stream = make_stream()
    plain = list(Offline("p", make_profile(), tiny_weights()).score_streams([stream]))
    found = explained(stream)
    np.testing.assert_array_equal(found.score, np.concatenate([s.score for batch in plain for s in batch.scores]))
    assert found.event.tolist().count(OPENED) == sum(a.event == "opened" for batch in plain for a in batch.alerts)


def test_a_stream_is_found_among_its_neighbours() -> None:
    """Details of one stream must not be those of the stream beside it in the batch."""
    offline = Offline("p", make_profile(), tiny_weights(), detail=True)
    streams = [make_stream("other", make_values(0.0)[::-1].copy()), make_stream()]
    among = collect(offline.score_streams(streams), "pump", ("value",))
    alone = explained(make_stream())
    np.testing.assert_allclose(among.score, alone.score, atol=1e-3)
    np.testing.assert_array_equal(among.observed, alone.observed)


def test_an_unknown_stream_is_said_to_be_unknown() -> None:
    """A misspelt name must not look like a stream without alerts."""
    offline = Offline("p", make_profile(), tiny_weights(), detail=True)
    with pytest.raises(ConfigurationError, match="'pmup'"):
        collect(offline.score_streams([make_stream()]), "pmup", ("value",))


def test_every_record_is_explained_by_the_version_that_scored_it() -> None:
    """After a swap, the question is about the alert that was raised, not about one that another model would raise."""
    profile, seeds = make_profile(), {VERSION_A: 0, VERSION_B: 1}
    engine = Engine("p", profile, lambda version: make_scorer(profile, seeds[version]), 8, detail=True)
    committed = Committed(99, "i", 0, ((0, VERSION_A), (10, VERSION_B)))
    partition = Partition("input", 0)
    batches = [
        absorbed
        for windows in in_rounds([make_stream()], 16)
        for absorbed in with_recorded_versions(engine, committed, partition, windows)
    ]
    found = collect(batches, "pump", ("value",))
    assert found.versions.tolist() == [VERSION_A] * 160 + [VERSION_B] * (LENGTH - 160)
    np.testing.assert_array_equal(found.score[:160], explained(make_stream()).score[:160])


# -- the sentence ------------------------------------------------------------------------------------------------------


def test_an_alert_is_explained_by_signal_and_gate() -> None:
    """Why this alert: which evidence won, on which side, and what the gate let through."""
    found = of_shipped_weights()
    at = int(np.flatnonzero(found.event == OPENED)[0])
    text = sentence(found, at)
    assert SPIKE <= at < SPIKE + 5
    assert text.startswith("An alert opened here")
    assert found.signals[int(found.signal[at])] in text
    assert "above what was expected" in text
    assert f"threshold {found.threshold[at]:.2f}" in text


def test_silence_is_explained_too() -> None:
    """Why no alert: nothing new, or too common for the budget; and by what factor."""
    found = of_shipped_weights()
    quiet = replace(found, score=np.zeros_like(found.score))
    assert sentence(quiet, SPIKE - 20).startswith("No alert (score 0")
    some = np.flatnonzero((found.score > 0) & (found.verdict == NORMAL))
    at = int(some[0])
    factor = 10.0 ** float(found.threshold[at] - found.score[at])
    shown = f"{factor:,.0f}" if factor >= 10 else f"{factor:.1f}"
    assert f"{shown} times as often as the alarm budget allows" in sentence(found, at)


def test_no_verdict_is_explained_as_such() -> None:
    """Warming up and missing are answers, too."""
    values = make_values()
    values[150] = np.nan
    found = explained(make_stream(values=values))
    assert "warming up" in sentence(found, 50)
    assert "missing" in sentence(found, 150)


def test_several_features_name_the_one_to_look_at() -> None:
    """With many features, the reader wants to know where to begin."""
    values = make_values(0.0, width=2)
    values[SPIKE : SPIKE + 5, 1] += 30.0
    found = explained(make_stream(values=values))
    at = int(found.score[SPIKE : SPIKE + 5].argmax()) + SPIKE
    assert found.features[found.strongest_feature(at)] == "right"
    assert "right" in sentence(found, at)


def test_a_displaced_level_is_explained_by_the_usual_one() -> None:
    """Forecasts have long caught up with it: only where it used to be says what is wrong."""
    values = 20.0 + np.random.default_rng(1).normal(size=(1400, 1)).astype(np.float32)
    values[200:260] += 4.0
    values[300:360] -= 4.0
    values[1000:] += 1.5
    stream = make_stream(values=values)
    found = collect(Offline("p", make_profile(), detail=True).score_streams([stream]), "pump", ("value",))
    at = int(np.flatnonzero(found.signal == found.signals.index("displacement"))[-1])
    assert abs(found.usual[at, 0] - 20.0) < 0.5
    told = re.search(r"above the usual ([\d.]+)", sentence(found, at))
    assert told is not None
    assert abs(float(told[1]) - 20.0) < 0.5
    axis = Figure().subplots()
    draw_observed(axis, found.part(at - 100, at + 10), 0, [])
    [usual] = [line for line in axis.lines if line.get_label() == "usual level"]
    low, high = axis.get_ylim()
    assert low < min(usual.get_ydata()) < max(usual.get_ydata()) < high


def test_a_coupled_feature_that_went_astray_is_explained_by_what_the_others_ask_for() -> None:
    """Forecasts catch up with it; only beside the others it is wrong."""
    rng = np.random.default_rng(2)
    values = (20.0 + rng.normal(size=(900, 1)) + 0.1 * rng.normal(size=(900, 3))).astype(np.float32)
    values[800:, 1] += 3.0
    stream = RecordedStream("pump", ("a", "b", "c"), 60.0, START_MS + INTERVAL_MS * np.arange(len(values)), values)
    offline = Offline("p", make_profile(features=stream.features, evidence="coupled"), detail=True)
    found = collect(offline.score_streams([stream]), stream.name, stream.features)
    asked = np.isin(found.signal, [found.signals.index(name) for name in BESIDE_OTHERS]) & (found.verdict == 1)
    at = int(np.flatnonzero(asked)[-1])
    told = re.search(r"most of all b, above the ([\d.]+) that the others ask for", sentence(found, at))
    assert told is not None
    assert abs(float(values[at, 1]) - 3.0 - float(told[1])) < 1.0
    axis = Figure().subplots()
    draw_observed(axis, found.part(at - 100, at + 1), 1, [])
    [drawn] = [line for line in axis.lines if line.get_label() == "what the others ask for"]
    assert drawn.get_ydata()[-1] == found.usual[at, 1]


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "pump.csv", make_values())


def explain(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["explain", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_the_table_shows_the_time_asked_about_and_its_surroundings(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line for each observation, with everything the sentence below it speaks of."""
    out = explain(capsys, "pump", "--at", time_text(SPIKE), "--recording", recording, "--before", 4, "--after", 6)
    rows = re.findall(r"^ *\d\d-\d\d \d\d:\d\d .*$", out, re.MULTILINE)
    assert len(rows) == 4 + 1 + 6
    for name in ("observed", "expected", "band", "score", "thresh.", "verdict", "signal", "gate", "S", "A", "d"):
        assert name in out
    assert time_text(SPIKE)[5:16].replace("T", " ") in rows[4]


def test_a_time_between_observations_takes_the_closest(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody remembers the second; but which observation is shown must be said."""
    out = explain(capsys, "pump", "--at", time_text(SPIKE)[:-3] + "11", "--recording", recording)
    assert "closest" in out


def test_the_picture_is_drawn_where_asked(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A picture says it faster."""
    picture = tmp_path / "why.png"
    out = explain(capsys, "pump", "--at", time_text(SPIKE), "--recording", recording, "--png", picture)
    assert str(picture) in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_record_files_are_explained_like_series(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `tidewatch record` wrote on a bad night is what one wants explained in the morning."""
    stream, path = make_stream(), tmp_path / "night.records.jsonl"
    send = partial(StoredRecord, timestamp=START_MS)
    with RecordWriter(path) as writer:
        for offset, begin in enumerate(range(0, LENGTH, 10)):
            span = slice(begin, begin + 10)
            for name in ("pump", "other"):
                value = encode_packed(name, stream.times_ms[span], stream.values[span])
                place = 2 * offset + (name == "other")
                writer.add(RECORDING, send(offset=place, key=name.encode(), value=value))
    settings = tmp_path / "tidewatch.toml"
    settings.write_text("[profiles.sensor]\ninterval_s = 60.0\n[limits]\nmax_clock_skew_s = 1e6\n")
    words = ("--at", time_text(SPIKE), "--profile", "sensor", "--settings", settings)
    raw = explain(capsys, "pump", *words, "--recording", path)
    series = explain(capsys, "pump", *words, "--recording", write_csv(tmp_path / "pump.csv", stream.values))
    assert raw.splitlines()[-1] == series.splitlines()[-1]


def test_what_cannot_be_explained_is_refused(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong name or time ends in one line that says what is wrong."""
    assert main(["explain", "pmup", "--at", time_text(SPIKE), "--recording", str(recording)]) == 2
    assert "pump" in capsys.readouterr().err
    assert main(["explain", "pump", "--at", "yesterday", "--recording", str(recording)]) == 2
    assert "yesterday" in capsys.readouterr().err
    assert EVENTS[OPENED] == "opened"
