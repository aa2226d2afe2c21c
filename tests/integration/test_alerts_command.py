"""``tidewatch alerts`` and ``tidewatch monitor`` against a real Kafka."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import explain_command
from pipeline.__main__ import build_parser, main
from pipeline.alerts_command import explaining, since
from pipeline.errors import ConfigurationError
from pipeline.records import Alert, FeatureEvidence, Partition
from pipeline.servers import create_topics
from pipeline.terminal_plot import BAND, EXPECTED, OBSERVED, Expectation, draw
from pipeline.topics.kafka import Cluster
from pipeline.wire import decode_alert, encode_alert, encode_packed
from tests.alerts import make_alert
from tests.real_kafka import unique, until, visible

START = 1_700_000_000_000
MINUTE = 60_000


class Rig:
    """An input topic with one stream that jumps, an alerts topic, and the environment that names them."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self.inputs, self.alerts = unique("in"), unique("alerts")
        create_topics(bootstrap, {self.inputs: 1, self.alerts: 1})
        self.environment = {
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
            "TIDEWATCH_KAFKA__ALERTS_TOPIC": self.alerts,
            "TIDEWATCH_PROFILES__SENSOR__TOPICS": self.inputs,
            "TIDEWATCH_PROFILES__NETWORK__TOPICS": self.inputs + "-unused",
            "TIDEWATCH_HTTP__PORT": "0",
        }

    def alert(self, **changes: Any) -> Alert:
        """An alert on the input topic."""
        evidence = FeatureEvidence("value", 9.0, 5.0, (4.0, 6.0), 12.0)
        at = {"partition": Partition(self.inputs, 0), "onset_offset": 60, "offset": 60}
        times = {"time_ms": START + 60 * MINUTE, "onset_ms": START + 60 * MINUTE}
        return make_alert(**{"features": (evidence,), **at, **times, **changes})

    def write(self, *alerts: Alert) -> None:
        """Write events of alerts."""
        with Cluster(self.bootstrap).feeder() as feeder:
            for alert in alerts:
                feeder.send(self.alerts, alert.stream_id.encode(), encode_alert(alert))
            feeder.flush()

    def observe(self, minutes: range, stream: str = "pump-1") -> None:
        """Write observations: 5, and 9 from the sixtieth minute on."""
        with Cluster(self.bootstrap).feeder() as feeder:
            for minute in minutes:
                value = np.full((1, 1), 9.0 if minute >= 60 else 5.0, np.float32)
                packed = encode_packed(stream, np.array([START + minute * MINUTE]), value)
                feeder.send(self.inputs, stream.encode(), packed)
            feeder.flush()


@pytest.fixture(scope="module")
def rig(kafka_bootstrap: str) -> Rig:
    """Two alerts, one of them resolved."""
    made = Rig(kafka_bootstrap)
    made.observe(range(80))
    made.write(
        made.alert(alert_id="aaaa1111"),
        made.alert(alert_id="bbbb2222", stream_id="pump-2", group="hall 1", severity="critical", peak_score=9.0),
        made.alert(alert_id="aaaa1111", event="updated", offset=65, time_ms=START + 65 * MINUTE, severity="critical"),
        made.alert(
            alert_id="bbbb2222",
            stream_id="pump-2",
            group="hall 1",
            event="resolved",
            severity="critical",
            offset=66,
            features=(),
        ),
    )
    return made


@pytest.fixture
def said(rig: Rig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Runs the command; gives exit code and what it printed."""
    for name, value in rig.environment.items():
        monkeypatch.setenv(name, value)

    def run(*words: str) -> tuple[int, str]:
        code = main(["alerts", *words])
        return code, capsys.readouterr().out

    return run


pytestmark = pytest.mark.integration


def test_list_says_the_last_word_on_each_alert(said: Any) -> None:
    """Five events of one fault are one line."""
    code, text = said("list")
    assert code == 0
    lines = text.splitlines()[2:]
    assert [line.split()[0] for line in lines] == ["aaaa1111", "bbbb2222"]
    assert "open" in lines[0]
    assert "critical" in lines[0]
    assert "resolved" in lines[1]
    assert "value is 9, expected 5" in lines[1]


def test_settings_may_be_named_before_and_after_the_action(said: Any, tmp_path: Path) -> None:
    """Nobody remembers which; both are the same."""
    path = tmp_path / "tidewatch.toml"
    path.write_text("[kafka]\ncolour = 7\n")
    assert said("--settings", str(path), "list")[0] == said("list", "--settings", str(path))[0] == 2


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        (("--open",), ["aaaa1111"]),
        (("--group", "hall 1"), ["bbbb2222"]),
        (("--stream", "pump-[2-9]"), ["bbbb2222"]),
        (("--severity", "critical"), ["aaaa1111", "bbbb2222"]),
        (("--profile", "network"), []),
        (("--limit", "1"), ["bbbb2222"]),
        (("--limit", "0"), []),
        (("--since", "2100-01-01"), []),
    ],
)
def test_list_for_machines_is_filtered_messages(said: Any, words: tuple[str, ...], ids: list[str]) -> None:
    """A script gets the message as it is on the topic, and an exit code that says whether there is any."""
    code, text = said("list", "--json", *words)
    found = [decode_alert(line.encode()).alert_id for line in text.splitlines()]
    assert (code, found) == (0 if ids else 1, ids)


def test_show_draws_observed_against_expected(said: Any) -> None:
    """What it was, what it should have been, when: without leaving the terminal."""
    code, text = said("show", "aaaa")
    assert code == 0
    assert text.count("2023-11-14T23:") >= 2
    assert "updated" in text
    assert all(mark in text for mark in (OBSERVED, EXPECTED, BAND))
    assert "tidewatch explain pump-1 --at 2023-11-14T23:13:20.000 --kafka" in text


def test_show_of_a_feature_renamed_since_tells_without_a_plot(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of it stands in the alert itself."""
    monkeypatch.setenv("TIDEWATCH_PROFILES__SENSOR__FEATURES", '["level"]')
    code, text = said("show", "aaaa")
    assert code == 0
    assert "value is 9, expected 5" in text
    assert OBSERVED not in text


def test_show_for_machines_has_events_and_observations(said: Any) -> None:
    """The same for a script that draws its own picture."""
    _, text = said("show", "aaaa1111", "--json")
    shown = json.loads(text)
    assert [event["event"] for event in shown["events"]] == ["opened", "updated"]
    assert shown["is_open"] is True
    values = shown["observed"]["values"]["value"]
    assert (values[0], values[-1]) == (5.0, 9.0)
    assert len(values) == len(shown["observed"]["times_ms"]) == 40 + 20


def test_show_of_an_unknown_alert_says_so(said: Any) -> None:
    """An empty answer would look like a fault."""
    assert said("show", "ffff")[0] == 1


def test_tail_prints_events_as_they_come(rig: Rig) -> None:
    """For the second screen; a pipe gets each line at once."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "alerts", "tail", "--since", "2020-01-01", "--json"],
        env=os.environ | rig.environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        events = [json.loads(process.stdout.readline())["event"] for _ in range(4)]
        assert events == ["opened", "opened", "updated", "resolved"]
    finally:
        process.kill()
        process.communicate()


def test_since_takes_ages_and_times_and_refuses_the_rest() -> None:
    """What people write after --since."""
    now = 10 * 86_400_000
    assert since("now", now) == now
    assert since("2d", now) == 8 * 86_400_000
    assert since("90m", now) == now - 90 * 60_000
    assert since("1970-01-02", now) == 86_400_000
    with pytest.raises(ConfigurationError):
        since("yesterday", now)


@pytest.mark.parametrize("stream", ["pump-1", "hall 1/$(reboot)", "a'b", "-1", "--at", "[b]x[/b]"])
def test_the_command_that_explains_an_alert_can_be_pasted(stream: str) -> None:
    """Whoever may name a stream must not run a command at the desk of who looks at its alert."""
    line = explaining(make_alert(stream_id=stream), Path("my settings.toml"))
    args = build_parser("explain", explain_command).parse_args(shlex.split(line)[1:])
    assert (args.stream, args.kafka, args.settings) == (stream, "sensor-windows", Path("my settings.toml"))
    assert args.at == "2023-11-14T22:13:20.000"


@pytest.mark.parametrize("values", [[5.0, 5.0], [5.0], [np.nan, 1.0], [np.nan], [-1e30, 1e30]])
def test_a_plot_can_be_drawn_of_anything(values: list[float]) -> None:
    """Constant, missing and huge values are what alerts are about."""
    times = np.arange(len(values), dtype=np.int64) * MINUTE
    lines = draw(times, np.array(values, np.float32), [Expectation(0, 5.0, float("nan"), 6.0)], width=40, height=8)
    assert len(lines) == 10
    assert all(len(line) <= 100 for line in lines)


@pytest.mark.slow
def test_monitor_says_silence_and_its_end_on_the_alerts_topic(kafka_bootstrap: str) -> None:
    """A stream that stopped opens an alert like any other, which readers of alerts need not know anything about."""
    rig = Rig(kafka_bootstrap)
    create_topics(kafka_bootstrap, {rig.inputs + "-unused": 1})
    own = {"TIDEWATCH_MONITOR__MIN_SILENCE_S": "2", "TIDEWATCH_MONITOR__SILENT_AFTER_GAPS": "3"}

    def events() -> list[Alert]:
        return [decode_alert(value) for value in visible(kafka_bootstrap, rig.alerts)]

    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "monitor"], env=os.environ | rig.environment | own, stderr=subprocess.PIPE
    )
    try:
        begun = time.monotonic()
        minute = 0
        while minute < 60 or time.monotonic() < begun + 8:  # a steady rhythm, while the monitor starts and watches
            rig.observe(range(minute, minute + 1))
            minute += 1
        until(lambda: [(a.event, a.signal, a.stream_id) for a in events()] == [("opened", "silent", "pump-1")])
        rig.observe(range(minute, minute + 1))
        until(lambda: len(events()) == 2)
        opened, resolved = events()
        assert (resolved.event, resolved.alert_id) == ("resolved", opened.alert_id)
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
