"""The demo's judgement of alerts against labels, and what it replays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.synthetic import Fault
from pipeline.demo.judgement import AFTERMATH, Outcome, Summary, judge
from pipeline.demo.processes import settings_text
from pipeline.demo.scenes import Scene, Size, scenes
from pipeline.demo.traffic import in_event_time
from pipeline.records import Alert, Partition
from pipeline.settings import Settings
from pipeline.sources.recording import RecordedStream
from tests.builders import INTERVAL_MS, START_MS, make_profile

SMALL = Size(sensors=8, sensor_observations=600, faults=4, hosts=3, minutes=240, attacks=2, flow_observations=50)
KEYS = {
    *("streams", "observations", "observations_per_s", "alerts", "faults_labelled", "faults_caught"),
    *("median_delay_observations", "false_alarms_per_stream_day", "seconds", "alarm_budget"),
}


def time_of(observation: int) -> int:
    return START_MS + INTERVAL_MS * observation


def make_scene(*faults: tuple[int, int], length: int = 1540) -> Scene:
    """One stream of one-minute observations with faults [start, end)."""
    times_ms = START_MS + INTERVAL_MS * np.arange(length)
    stream = RecordedStream("s", ("value",), 60.0, times_ms, np.zeros((length, 1), np.float32))
    labels = tuple(Fault("s", "drift", begin, end, time_of(begin), time_of(end)) for begin, end in faults)
    return Scene("p", "input", make_profile(), 1, lambda *window: b"", (stream,), labels)


def alert_at(observation: int) -> Alert:
    """An alert at its opening."""
    return Alert(
        alert_id=f"a{observation}",
        event="opened",
        profile="p",
        stream_id="s",
        group=None,
        partition=Partition("input", 0),
        offset=observation,
        index=0,
        time_ms=time_of(observation),
        onset_offset=observation,
        onset_ms=time_of(observation),
        score=5.0,
        peak_score=5.0,
        threshold=3.0,
        severity="warning",
        verdict="anomalous",
        signal="level",
        direction="above",
        features=(),
        imputed_share=0.0,
        model_version="v",
    )


def judged(scene: Scene, *observations: int) -> Outcome:
    return judge(scene, map(alert_at, observations))


def test_a_fault_is_caught_by_an_alert_that_opens_while_it_lasts() -> None:
    """An alert before it is a false one, however soon the fault follows."""
    scene = make_scene((500, 600))
    assert judged(scene, 503).delays == (3,)
    assert judged(scene, 599).caught == 1
    early = judged(scene, 499)
    assert (early.caught, early.false_alarms) == (0, 1)


def test_an_alert_in_the_aftermath_neither_catches_nor_is_false() -> None:
    """Noticing a fault when it ends is no catch; saying that things changed back is no false alarm."""
    outcome = judged(make_scene((500, 600)), 600 + AFTERMATH - 1)
    assert (outcome.caught, outcome.late, outcome.false_alarms) == (0, 1, 0)
    assert judged(make_scene((500, 600)), 600 + AFTERMATH).false_alarms == 1


def test_false_alarms_are_counted_on_time_without_faults() -> None:
    """Warm-up, faults and aftermath can have none, so they must not thin the rate."""
    outcome = judged(make_scene((500, 600)), 200, 550, 900)
    assert outcome.false_alarms == 2
    assert outcome.clean_days == pytest.approx((1540 - 100 - 100 - AFTERMATH) / 1440)


def test_nobody_knows_what_unlabelled_alerts_are_worth() -> None:
    """A recording without labels must not improve the false-alarm rate, nor spoil it."""
    outcome = judged(replace(make_scene(), faults=None), 200, 300)
    assert (outcome.alerts, outcome.false_alarms, outcome.clean_days) == (2, 0, 0.0)
    summary = Summary((outcome,), "1 per week", 604_800.0, 1.0, 2.0)
    assert summary.content()["false_alarms_per_stream_day"] is None


def test_summary_holds_what_it_promises() -> None:
    """Whoever reads summary.json finds every key, and numbers that agree."""
    summary = Summary((judged(make_scene((500, 600)), 502, 900),), "1 per week", 604_800.0, 2.0, 9.0)
    content = summary.content()
    assert content.keys() >= KEYS
    assert (content["faults_caught"], content["median_delay_observations"]) == (1, 2.0)
    assert content["observations_per_s"] == 770.0
    assert content["alarm_budget"] == "1 per week and stream"


def test_scenes_end_together_and_their_faults_follow_the_warm_up() -> None:
    """One time axis for all; a fault within warm-up could not be caught by anybody."""
    made = scenes(SMALL)
    assert len({int(scene.streams[0].times_ms[-1]) for scene in made}) == 1
    assert [len(scene.faults or ()) for scene in made] == [0, 4, 2]
    assert min(fault.start for scene in made for fault in scene.faults or ()) > 100


def test_windows_of_all_scenes_are_sent_in_event_time() -> None:
    """A replay must look like live producers: nobody sends what has not happened yet."""
    made = scenes(SMALL)
    sent = list(in_event_time(made))
    newest = [int(window.times_ms[-1]) for _, window in sent]
    assert newest == sorted(newest)
    assert sum(len(window.times_ms) for _, window in sent) == sum(scene.observations for scene in made)


def test_the_workers_settings_file_is_read_as_meant(tmp_path: Path) -> None:
    """The file is shown to newcomers as an example: it must say what the demo did."""
    made = scenes(SMALL)
    path = tmp_path / "worker.toml"
    path.write_text(settings_text("h:1", "redis://h:2/0", 7, {scene.name: scene.profile for scene in made}))
    settings = Settings.load(path, {"kafka": {"bootstrap_servers": ["h:1"]}, "redis": {"url": "redis://h:2/0"}})
    assert {name: profile.fold() for name, profile in settings.profiles.items()} == {
        scene.name: scene.profile.fold() for scene in made
    }
    assert settings.profile_names() == {scene.topic: scene.name for scene in made}
