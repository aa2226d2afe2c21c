"""``tidewatch replay --to kafka`` on a real broker: the same scores, nothing shared with production, nothing left."""

from __future__ import annotations

import csv
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.__main__ import main
from pipeline.topics.kafka import Cluster
from pipeline.wire import encode_control, encode_packed
from tests.builders import INTERVAL_MS, START_MS, make_series, tiny_weights
from tests.children import child
from tests.pipeline.test_replay import write_csv

pytestmark = pytest.mark.integration

SETTINGS = """
[kafka]
bootstrap_servers = ["{bootstrap}"]
group = "{group}"
commit_interval_s = 0.1

[redis]
url = "redis://127.0.0.1:1/0"   # nobody there: a replay must not need it

[registry]
folder = "{folder}/registry"

[profiles.wave]
topics = ["{topic}"]
features = ["value"]
interval_s = 60
alarm_budget = "1 per day"
predictor = "{folder}/weights"
"""


@dataclass(frozen=True)
class Place:
    """A production of this test's own: a topic, a group, settings."""

    cluster: Cluster
    topic: str
    settings: Path
    folder: Path

    def replay(self, *words: object) -> int:
        return main(["replay", *map(str, words), "--settings", str(self.settings)])

    def scores(self, name: str, *words: object) -> dict[tuple[str, str], float]:
        """Scores of a replay, by stream and time."""
        path = self.folder / f"{name}.csv"
        assert self.replay(*words, "--scores", path) == 0
        with path.open() as lines:
            return {(row["stream_id"], row["time"]): float(row["score"]) for row in csv.DictReader(lines)}


@pytest.fixture
def place(kafka_bootstrap: str, tmp_path: Path) -> Iterator[Place]:
    cluster, topic = Cluster(kafka_bootstrap), f"waves-{uuid.uuid4().hex[:8]}"
    cluster.create({topic: 2})
    tiny_weights().save(tmp_path / "weights")
    path = tmp_path / "tidewatch.toml"
    path.write_text(SETTINGS.format(bootstrap=kafka_bootstrap, group=f"g-{topic}", topic=topic, folder=tmp_path))
    yield Place(cluster, topic, path, tmp_path)
    cluster.delete([topic])


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "waves.csv", {f"w{seed}": make_series(seed, 180) for seed in range(4)})


def assert_close(found: dict[tuple[str, str], float], expected: dict[tuple[str, str], float]) -> None:
    assert found.keys() == expected.keys()
    places = sorted(expected)
    np.testing.assert_allclose([found[p] for p in places], [expected[p] for p in places], atol=1.5e-3)


def run_topics(place: Place, run: str) -> set[str]:
    return {topic for topic in place.cluster.topics() if topic.startswith(f"tidewatch-replay-{run}-")}


def test_through_kafka_gives_the_scores_of_the_engine(
    place: Place, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Producer, broker, decoder, worker and transaction add nothing to a score; and what was created is said."""
    expected = place.scores("engine", recording)
    run = uuid.uuid4().hex[:8]
    found = place.scores("kafka", recording, "--to", "kafka", "--window", 7, "--run", run)
    assert_close(found, expected)
    printed = capsys.readouterr().out
    made = run_topics(place, run)
    assert len(made) == 4
    assert all(topic in printed for topic in made)
    [command] = re.findall(r"tidewatch (replay --delete \w+)", printed)
    assert place.replay(*command.split()[1:]) == 0
    assert not run_topics(place, run)


def test_production_sees_nothing_of_a_replay(place: Place, recording: Path) -> None:
    """A rehearsal in the cluster of the performance: its topic, its offsets and its registry stay as they were."""
    run = uuid.uuid4().hex[:8]
    assert place.replay(recording, "--to", "kafka", "--run", run, "--cleanup") == 0
    with place.cluster.reader(place.topic) as reader:
        assert set(reader.end().values()) == {0}
    assert place.cluster.committed(f"g-{place.topic}") == {}
    assert not (place.folder / "registry").exists()
    assert not run_topics(place, run)


def test_history_warms_up_through_kafka(place: Place, recording: Path) -> None:
    """Silent records are absorbed by the worker on the way, and say nothing."""
    start = "2023-11-15T00:13:20"
    expected = {at: score for at, score in place.scores("whole", recording).items() if at[1] >= start}
    options = ("--to", "kafka", "--start", start, "--warm-from", recording, "--cleanup")
    assert_close(place.scores("half", recording, *options), expected)


def test_production_is_fed_only_when_told_so(place: Place, recording: Path) -> None:
    """Into production by intention: the records are there for its workers, and stamped with the present."""
    before_ms = time.time_ns() // 1_000_000
    assert place.replay(recording, "--to", "kafka", "--into-production", "--window", 60) == 0
    with place.cluster.reader(place.topic) as reader:
        records = [record for batch in reader.read(reader.beginning(), reader.end()) for _, record in batch]
    assert len(records) == 12
    assert min(record.timestamp for record in records) >= before_ms
    odd = write_csv(place.folder / "odd.csv", {"s": make_series(0, 20)}, header="other")
    assert place.replay(odd, "--to", "kafka", "--into-production") == 2


def test_speed_is_kept_through_kafka(place: Place, tmp_path: Path) -> None:
    """At 1200x four minutes between the first and the last window take a fifth of a second, and not less."""
    short = write_csv(tmp_path / "short.csv", {"s": make_series(0, 5)})
    began_s = time.monotonic()
    assert place.replay(short, "--to", "kafka", "--into-production", "--speed", "1200x") == 0
    assert time.monotonic() - began_s >= 4 * 60 / 1200


def test_ctrl_c_ends_in_order_and_says_what_is_left(place: Place, recording: Path) -> None:
    """Three hours of recorded time at 1x are broken off by hand; nobody must have to guess what to delete."""
    run = uuid.uuid4().hex[:8]
    words = [
        "replay",
        str(recording),
        "--to",
        "kafka",
        "--speed",
        "1x",
        "--run",
        run,
        "--settings",
        str(place.settings),
    ]
    with child([sys.executable, "-m", "pipeline", *words]) as process:
        assert process.stdout is not None
        deadline = time.monotonic() + 60
        while not _has_input(place, run) and time.monotonic() < deadline:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.1)
        process.send_signal(signal.SIGINT)
        printed = process.stdout.read()
        assert process.wait(timeout=30) == 130
    assert f"tidewatch replay --delete {run}" in printed
    assert len(run_topics(place, run)) == 4
    assert place.replay("--delete", run) == 0
    assert not run_topics(place, run)


def _has_input(place: Place, run: str) -> bool:
    """Whether the run has begun to produce."""
    if len(run_topics(place, run)) < 4:
        return False
    with place.cluster.reader(f"tidewatch-replay-{run}-in-wave") as reader:
        return sum(reader.end().values()) > 0


def feed_topic(place: Place) -> None:
    """Two streams on two partitions, a reset, and bad input."""
    with place.cluster.feeder() as feeder:
        for at in range(0, 160, 8):
            times_ms = START_MS + INTERVAL_MS * np.arange(at, at + 8)
            for seed in range(2):
                value = encode_packed(f"w{seed}", times_ms, make_series(seed, 160)[at : at + 8])
                feeder.send(place.topic, f"w{seed}".encode(), value, int(times_ms[-1]), seed)
        feeder.send(place.topic, b"w0", b"{}", int(times_ms[-1]), 0)
        feeder.send(place.topic, b"w1", encode_control("w1", "reset"), int(times_ms[-1]), 1)
        feeder.flush()


def test_a_range_of_a_topic_is_replayed_directly(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Yesterday's records under today's settings, from where they are: by offsets, by times, through either way."""
    feed_topic(place)
    everything = place.scores("all", f"kafka:{place.topic}")
    assert len(everything) == 320
    assert "1 dead letters" in capsys.readouterr().out
    assert len(place.scores("offsets", f"kafka:{place.topic}@2..4")) == 2 * 2 * 8
    by_time = place.scores("times", f"kafka:{place.topic}@..2023-11-14T22:28:20")
    assert len(by_time) == 2 * 8
    assert_close(place.scores("kafka", f"kafka:{place.topic}", "--to", "kafka", "--cleanup"), everything)
    assert "1 dead letters" in capsys.readouterr().out


def test_missing_topic_is_said(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """A name mistyped must not create a topic, nor wait for one."""
    assert place.replay("kafka:nowhere-at-all") == 2
    assert "no topic 'nowhere-at-all'" in capsys.readouterr().err
