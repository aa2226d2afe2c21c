"""``tidewatch train`` on a range of a real topic: it learns from what is in the range, and from nothing else."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.topics.kafka import Cluster
from tests.builders import make_series
from tests.pipeline.test_replay import write_csv

pytestmark = pytest.mark.integration

SETTINGS = """
[kafka]
bootstrap_servers = ["{bootstrap}"]

[profiles.wave]
topics = ["{topic}"]
features = ["value"]
interval_s = 60
alarm_budget = "1 per day"
"""
LENGTH = 400
TINY = ("--cell", "rnn", "--hidden", "4", "--epochs", "1", "--segment", "128", "--quick-tails", "--threads", "1")


@pytest.fixture
def settings(kafka_bootstrap: str, tmp_path: Path) -> tuple[Path, str]:
    """Settings with a topic of this test's own, in which two streams have been recorded."""
    topic = f"waves-{uuid.uuid4().hex[:8]}"
    Cluster(kafka_bootstrap).create({topic: 2})
    path = tmp_path / "tidewatch.toml"
    path.write_text(SETTINGS.format(bootstrap=kafka_bootstrap, topic=topic))
    recording = write_csv(tmp_path / "waves.csv", {name: make_series(seed, LENGTH) for seed, name in enumerate("ab")})
    words = ["--to", "kafka", "--into-production", "--profile", "wave", "--settings", str(path), "--window", "10"]
    assert main(["replay", str(recording), *words]) == 0
    return path, topic


def test_a_range_of_a_topic_teaches(settings: tuple[Path, str], tmp_path: Path) -> None:
    """Records are taken by offset or time, and decoded with the profile their topic is bound to."""
    path, topic = settings
    seen = {}
    for name, place in (("all", f"kafka:{topic}"), ("some", f"kafka:{topic}@..30")):
        assert main(["train", place, "--settings", str(path), "--out", str(tmp_path / name), *TINY]) == 0
        seen[name] = json.loads((tmp_path / name / "manifest.json").read_text())["about"]["corpus"]
    assert seen["all"] == f"2 recorded streams, {2 * LENGTH} observations"
    assert seen["some"] != seen["all"]
