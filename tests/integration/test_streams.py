"""``tidewatch streams`` beside running workers: what is saved is shown, and a reset stands in the topic."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.__main__ import main
from pipeline.records import Partition, StepStats
from pipeline.settings import Settings
from pipeline.stored import find_stream
from pipeline.topics.kafka import Cluster
from pipeline.wire import decode_scores, encode_packed
from pipeline.wiring import build_store, build_worker
from pipeline.worker import Worker
from tests.builders import INTERVAL_MS, START_MS, make_series, tiny_weights

pytestmark = pytest.mark.integration

DEADLINE_S = 60.0
SETTINGS = """
[kafka]
bootstrap_servers = ["{bootstrap}"]
group = "g-{topic}"
scores_topic = "{topic}-scores"
alerts_topic = "{topic}-alerts"
dead_letter_topic = "{topic}-dead"
commit_interval_s = 0.05

[redis]
url = "{redis}"
save_interval_s = 0.2

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
class Plant:
    """A topic with waves in it, and workers that score them."""

    cluster: Cluster
    topic: str
    path: Path

    @property
    def settings(self) -> Settings:
        return Settings.load(self.path)

    def streams(self, action: str, *words: object) -> int:
        return main(["streams", action, *map(str, words), "--settings", str(self.path)])

    def produce(self, begin: int, end: int, names: tuple[str, ...] = ("w0", "w1", "w2")) -> None:
        """Observations ``begin`` to ``end`` of each stream, four to a message."""
        with self.cluster.feeder() as feeder:
            for at in range(begin, end, 4):
                times_ms = START_MS + INTERVAL_MS * np.arange(at, at + 4)
                for seed, name in enumerate(names):
                    value = encode_packed(name, times_ms, make_series(seed, 400)[at : at + 4])
                    feeder.send(self.topic, name.encode(), value, int(times_ms[-1]))
            feeder.flush()

    def work(self) -> Worker:
        """A worker that has committed everything in the topic now, and goes on."""
        worker = build_worker(self.settings, _ignore)
        self.catch_up(worker)
        return worker

    def catch_up(self, worker: Worker) -> None:
        with self.cluster.reader(self.topic) as reader:
            ends = reader.end()
        deadline = time.monotonic() + DEADLINE_S
        while not all(_is_committed(worker, partition, end) for partition, end in ends.items()):
            assert time.monotonic() < deadline, worker.status()
            worker.step()

    def wait_until_saved(self, worker: Worker, stream: str) -> None:
        """Step until a stream is in the store, as it is within the save interval."""
        store = build_store(self.settings)
        deadline = time.monotonic() + DEADLINE_S
        while not find_stream(store, store.keys(self.settings.kafka.group), stream):
            assert time.monotonic() < deadline
            worker.step()
        store.close()

    def verdicts(self, stream: str) -> list[int]:
        """Verdicts of a stream, in the order they left."""
        found: list[int] = []
        with self.cluster.reader(f"{self.topic}-scores") as reader:
            for records in reader.read(reader.beginning(), reader.end()):
                for _, record in records:
                    scores = decode_scores(record.value or b"")
                    names = np.repeat(np.array(scores.stream_ids, object), scores.lengths)
                    found += scores.verdict[names == stream].tolist()
        return found


def _ignore(stats: StepStats) -> None:
    """These tests look at what was saved and emitted."""


def _is_committed(worker: Worker, partition: Partition, end: int) -> bool:
    state = worker.partitions.get(partition)
    return state is not None and state.committed is not None and state.committed.offset >= end


@pytest.fixture
def plant(kafka_bootstrap: str, redis_url: str, tmp_path: Path) -> Iterator[Plant]:
    topic = f"waves-{uuid.uuid4().hex[:8]}"
    cluster = Cluster(kafka_bootstrap)
    cluster.create({topic: 2} | {f"{topic}-{name}": 1 for name in ("scores", "alerts", "dead")})
    tiny_weights().save(tmp_path / "weights")
    path = tmp_path / "tidewatch.toml"
    path.write_text(SETTINGS.format(bootstrap=kafka_bootstrap, topic=topic, redis=redis_url, folder=tmp_path))
    plant = Plant(cluster, topic, path)
    plant.produce(0, 120)
    yield plant
    cluster.delete([topic, *(f"{topic}-{name}" for name in ("scores", "alerts", "dead"))])


def test_saved_streams_are_listed_and_shown(plant: Plant, capsys: pytest.CaptureFixture[str]) -> None:
    """Who asks "does it know my stream, and how long" gets an answer without stopping anything."""
    plant.work().stop()
    capsys.readouterr()
    assert plant.streams("list", "--json") == 0
    found = {line["stream_id"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(found) == {"w0", "w1", "w2"}
    assert {line["observations"] for line in found.values()} == {120}
    assert {line["last_event_ms"] for line in found.values()} == {START_MS + 119 * INTERVAL_MS}
    assert {line["topic"] for line in found.values()} == {plant.topic}
    assert plant.streams("list", "w[01]") == 0
    printed = capsys.readouterr().out
    assert "2 streams saved" in printed
    assert [line.split()[0] for line in printed.splitlines()[2:4]] == ["w0", "w1"]
    assert "w2" not in printed
    assert plant.streams("show", "w1", "--json") == 0
    row = json.loads(capsys.readouterr().out)["row"]
    assert row["entity.life.count"] == [[120.0]]
    assert row["feature.normaliser.mean"][0][0] == pytest.approx(make_series(1, 400)[:120].mean(), abs=0.5)
    assert plant.streams("show", "w1") == 0
    assert "normaliser.mean" in capsys.readouterr().out
    assert plant.streams("show", "nobody") == 1


def test_a_long_id_is_shortened_on_a_terminal_only(
    plant: Plant, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One long id would push every other line off a terminal's edge; a program that reads the table needs it whole."""
    name = "n" * 256
    plant.produce(0, 4, (name,))
    plant.work().stop()
    capsys.readouterr()
    plant.streams("list")
    assert name in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    plant.streams("list")
    printed = capsys.readouterr().out
    assert "nnn…nnn" in printed
    assert max(map(len, printed.splitlines())) < 200
    plant.streams("list", "--json")
    assert name in capsys.readouterr().out


def test_a_reset_stands_in_the_topic_and_the_row_begins_anew(plant: Plant, capsys: pytest.CaptureFixture[str]) -> None:
    """After a reset the stream warms up again, its neighbours do not notice, and a running worker obeys."""
    worker = plant.work()
    plant.produce(120, 160)
    plant.catch_up(worker)
    plant.wait_until_saved(worker, "w1")
    assert plant.streams("reset", "w1", "--yes") == 0
    assert f"written: {plant.topic}-" in capsys.readouterr().out
    plant.produce(160, 200)
    plant.catch_up(worker)
    worker.stop()
    verdicts = {name: plant.verdicts(name) for name in ("w0", "w1", "w2")}
    assert 2 not in verdicts["w1"][100:160]
    assert set(verdicts["w1"][160:]) == {2}, "warming up again"
    assert 2 not in verdicts["w0"][100:] + verdicts["w2"][100:]
    assert [len(found) for found in verdicts.values()] == [200, 200, 200]
    capsys.readouterr()
    plant.streams("list", "--json")
    counts = {line["stream_id"]: line["observations"] for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert counts == {"w0": 200, "w1": 40, "w2": 200}


def test_every_replay_sees_a_reset_at_the_same_place(plant: Plant, tmp_path: Path) -> None:
    """The point of a record in the topic: who folds it again, from nothing, gets the same scores."""
    plant.work().stop()
    assert plant.streams("reset", "w0", "--yes") == 0
    plant.produce(120, 160)
    plant.work().stop()
    scores = tmp_path / "again.jsonl"
    words = ["replay", f"kafka:{plant.topic}", "--settings", str(plant.path), "--scores", str(scores)]
    assert main(words) == 0
    rows = [json.loads(line) for line in scores.read_text().splitlines()]
    names = ["normal", "anomalous", "warming_up", "missing"]
    again = [names.index(row["verdict"]) for row in rows if row["stream_id"] == "w0"]
    assert again == plant.verdicts("w0")
    assert set(again[120:]) == {2}


def test_a_forgotten_stream_is_gone(plant: Plant, capsys: pytest.CaptureFixture[str]) -> None:
    """A machine that was scrapped must not stay in the store until its time runs out."""
    plant.work().stop()
    assert plant.streams("forget", "w2", "--yes") == 0
    plant.work().stop()
    capsys.readouterr()
    plant.streams("list", "--json")
    assert {json.loads(line)["stream_id"] for line in capsys.readouterr().out.splitlines()} == {"w0", "w1"}


def test_a_topic_that_no_profile_reads_is_refused(plant: Plant, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped topic would get a record that nobody asked for and no worker obeys."""
    assert plant.streams("reset", "w0", "--topic", f"{plant.topic}-scores", "--yes") == 2
    assert f"no profile reads it; there are {plant.topic}" in capsys.readouterr().err


def test_a_stream_never_saved_is_reached_by_its_key(plant: Plant, capsys: pytest.CaptureFixture[str]) -> None:
    """With one topic there is no doubt where it is; with several, one must say."""
    assert plant.streams("reset", "w0", "--yes") == 0
    assert "on the partition of its key" in capsys.readouterr().out
    plant.work().stop()
    with plant.cluster.reader(plant.topic) as reader:
        records = [
            (p, r) for batch in reader.read(reader.beginning(), reader.end()) for p, r in batch if r.key == b"w0"
        ]
    assert len({partition for partition, _ in records}) == 1
    assert b"reset" in (max(records, key=lambda pair: pair[1].offset)[1].value or b"")
    two = plant.path.read_text() + '\n[profiles.other]\ntopics = ["other"]\nfeatures = ["x"]\n'
    plant.path.write_text(two)
    assert plant.streams("reset", "unheard", "--yes") == 2
    assert "--topic" in capsys.readouterr().err


def test_nothing_is_written_without_a_word(plant: Plant, capsys: pytest.CaptureFixture[str]) -> None:
    """A script that forgot --yes, or a person who pressed return, has not lost a stream's memory."""
    with plant.cluster.reader(plant.topic) as reader:
        before = reader.end()
        assert plant.streams("reset", "w0") == 2
        assert reader.end() == before
    assert "--yes" in capsys.readouterr().err
