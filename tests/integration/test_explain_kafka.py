"""``tidewatch explain --kafka``: the very scores a worker gave, with the versions that gave them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.__main__ import main
from pipeline.settings import Settings
from pipeline.state.memory import MemoryStateStore
from pipeline.topics.kafka import Cluster
from pipeline.wire import decode_scores, encode_packed
from pipeline.wiring import build_worker
from tests.builders import INTERVAL_MS, START_MS, make_series, tiny_weights
from tests.real_kafka import forget

pytestmark = pytest.mark.integration

LENGTH = 180
SETTINGS = """
[kafka]
bootstrap_servers = ["{bootstrap}"]
group = "g-{topic}"
commit_interval_s = 0.1
scores_topic = "{topic}-scores"
alerts_topic = "{topic}-alerts"
dead_letter_topic = "{topic}-dead"

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
class Production:
    """A topic that a worker has scored."""

    cluster: Cluster
    topic: str
    settings: Path
    scores: dict[tuple[str, int], float]
    version: str


@pytest.fixture
def production(kafka_bootstrap: str, tmp_path: Path) -> Iterator[Production]:
    cluster, topic = Cluster(kafka_bootstrap), f"waves-{uuid.uuid4().hex[:8]}"
    topics = {topic: 2, f"{topic}-scores": 1, f"{topic}-alerts": 1, f"{topic}-dead": 1}
    cluster.create(topics, {"retention.ms": "-1"})
    tiny_weights().save(tmp_path / "weights")
    path = tmp_path / "tidewatch.toml"
    path.write_text(SETTINGS.format(bootstrap=kafka_bootstrap, topic=topic, folder=tmp_path))
    _produce(cluster, topic)
    _score(Settings.load(path, {"kafka": {"bootstrap_servers": [kafka_bootstrap]}}), 2 * LENGTH)
    scores, version = _read(cluster, f"{topic}-scores")
    yield Production(cluster, topic, path, scores, version)
    cluster.delete(topics)


def _produce(cluster: Cluster, topic: str) -> None:
    times_ms = START_MS + INTERVAL_MS * np.arange(LENGTH)
    with cluster.feeder() as feeder:
        for begin in range(0, LENGTH, 6):
            span = slice(begin, begin + 6)
            for seed, name in enumerate(("pump", "fan")):
                value = encode_packed(name, times_ms[span], make_series(seed, LENGTH)[span])
                feeder.send(topic, name.encode(), value, int(times_ms[span][-1]))
        feeder.flush()


def _score(settings: Settings, observations: int) -> None:
    scored: list[int] = []
    worker = build_worker(settings, lambda stats: scored.append(stats.batch_observations), MemoryStateStore())
    for _ in range(400):
        worker.step()
        if sum(scored) >= observations:
            break
    worker.stop()


def _read(cluster: Cluster, topic: str) -> tuple[dict[tuple[str, int], float], str]:
    scores: dict[tuple[str, int], float] = {}
    versions = set()
    with cluster.reader(topic) as reader:
        for records in reader.read(reader.beginning(), reader.end()):
            for _, record in records:
                batch = decode_scores(record.value or b"")
                names = np.repeat(np.array(batch.stream_ids, object), batch.lengths)
                scores |= dict(zip(zip(names, batch.times_ms.tolist(), strict=True), batch.score.tolist(), strict=True))
                versions.add(batch.model_version)
    [version] = versions
    return scores, version


def test_explained_scores_are_those_that_were_emitted(
    production: Production, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever asks about an alert must be told about that alert: the same score, by the same version."""
    assert len(production.scores) == 2 * LENGTH
    at_ms = START_MS + INTERVAL_MS * 150
    words = ["--at", str(np.datetime64(at_ms, "ms")), "--kafka", production.topic, "--before", "0", "--after", "0"]
    for name in ("pump", "fan"):
        assert main(["explain", name, *words, "--settings", str(production.settings)]) == 0
        out = capsys.readouterr().out
        assert f"version {production.version}" in out
        assert re.search(rf"score {production.scores[name, at_ms]:.2f}|score 0,", out), out


def test_a_log_that_begins_later_than_the_worker_did_is_noticed(
    production: Production, kafka_bootstrap: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without what has been deleted the rows are others, and so are the scores."""
    words = ["--at", str(np.datetime64(START_MS + INTERVAL_MS * 150, "ms")), "--kafka", production.topic]
    words += ["--settings", str(production.settings)]
    assert main(["explain", "pump", *words]) == 0
    assert "older records" not in capsys.readouterr().out
    with production.cluster.reader(production.topic) as reader:
        filled = [partition for partition, end in reader.end().items() if end > 10]
    for partition in filled:
        forget(kafka_bootstrap, partition, 10)
    assert main(["explain", "pump", *words]) == 0
    assert "older records than these" in " ".join(capsys.readouterr().out.split())


def test_a_range_of_the_topic_is_explained_as_a_range(
    production: Production, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty range, or a stream that is not in it, is said, and not taken for a quiet stream."""
    words = ["--at", "2023-11-15T00:00", "--settings", str(production.settings)]
    assert main(["explain", "pump", *words, "--kafka", f"{production.topic}@0..0"]) == 2
    assert "no record" in capsys.readouterr().err
    assert main(["explain", "pmup", *words, "--kafka", production.topic]) == 2
    assert "'pmup'" in capsys.readouterr().err
