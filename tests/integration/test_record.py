"""``tidewatch record``: what was in a topic comes back bit for bit."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from kafka import KafkaProducer

from pipeline.__main__ import EXIT_CONFIGURATION, main
from pipeline.records import Partition
from pipeline.sources.record_file import read_records
from pipeline.topics.base import Instant, Offset
from pipeline.topics.kafka import Cluster
from pipeline.wire import encode_control, encode_packed
from tests.builders import INTERVAL_MS, START_MS, make_series
from tests.children import child

pytestmark = pytest.mark.integration

Raw = list[tuple[Partition, int, int, bytes | None, bytes | None]]


@pytest.fixture
def topic(kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A topic of two partitions; commands find its broker by the environment."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka_bootstrap)
    name = f"rec-{uuid.uuid4().hex[:8]}"
    Cluster(kafka_bootstrap).create({name: 2})
    return name


def produce(bootstrap: str, topic: str, count: int = 40) -> None:
    """Windows, a control, a tombstone and rubbish, on both partitions."""
    with Cluster(bootstrap).feeder() as feeder:
        for at in range(count):
            times_ms = START_MS + INTERVAL_MS * np.arange(at * 4, at * 4 + 4)
            value = encode_packed(f"s{at % 2}", times_ms, make_series(at % 2, 4 * count)[at * 4 : at * 4 + 4])
            feeder.send(topic, f"s{at % 2}".encode(), value, START_MS + at * 1000, at % 2)
        feeder.send(topic, b"s1", encode_control("s1", "reset"), START_MS + count * 1000, 1)
        feeder.send(topic, b"s1", None, START_MS + count * 1000, 1)
        feeder.send(topic, None, b"\x00\xff", START_MS + count * 1000, 0)
        feeder.flush()


def in_topic(bootstrap: str, topic: str) -> Raw:
    with Cluster(bootstrap).reader(topic) as reader:
        found = [pair for batch in reader.read(reader.beginning(), reader.end()) for pair in batch]
    return sorted((p, r.offset, r.timestamp, r.key, r.value) for p, r in found)


def in_file(path: Path) -> Raw:
    return sorted((p, r.offset, r.timestamp, r.key, r.value) for p, r in read_records(path))


def record(*words: object) -> int:
    return main(["record", *map(str, words)])


def test_records_come_back_bit_for_bit(kafka_bootstrap: str, topic: str, tmp_path: Path) -> None:
    """Only what is kept exactly can be replayed exactly: keys, timestamps, tombstones and rubbish too."""
    produce(kafka_bootstrap, topic)
    path = tmp_path / "all.records.jsonl.gz"
    assert record(topic, "--out", path) == 0
    assert in_file(path) == in_topic(kafka_bootstrap, topic)
    assert len(in_file(path)) == 43
    assert not list(tmp_path.glob("*.partial"))


def test_a_range_is_recorded_by_offsets_or_times(kafka_bootstrap: str, topic: str, tmp_path: Path) -> None:
    """An incident is a few minutes of a topic that holds weeks."""
    produce(kafka_bootstrap, topic)
    path = tmp_path / "part.records.jsonl"
    assert record(topic, "--from", 3, "--to", 5, "--out", path) == 0
    assert [(p.partition, offset) for p, offset, *_ in in_file(path)] == [(0, 3), (0, 4), (1, 3), (1, 4)]
    assert record(topic, "--from", "2023-11-14T22:13:24", "--to", "2023-11-14T22:13:27", "--out", path, "--force") == 0
    assert sorted(timestamp for _, _, timestamp, *_ in in_file(path)) == [START_MS + s * 1000 for s in (4, 5, 6)]


def test_an_earlier_recording_is_not_replaced_unasked(
    kafka_bootstrap: str, topic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recording may hold what the topic has dropped since."""
    produce(kafka_bootstrap, topic)
    path = tmp_path / "all.records.jsonl"
    path.write_text("earlier")
    assert record(topic, "--out", path) == EXIT_CONFIGURATION
    assert "exists" in capsys.readouterr().err
    assert path.read_text() == "earlier"
    assert record(topic, "--out", path, "--force") == 0
    assert in_file(path) == in_topic(kafka_bootstrap, topic)


def test_an_empty_range_leaves_no_file(
    kafka_bootstrap: str, topic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file without a record looks like a success to a script, and no command takes it; what was there stays."""
    produce(kafka_bootstrap, topic)
    path = tmp_path / "none.records.jsonl"
    assert record(topic, "--from", 3, "--to", 3, "--out", path) == 1
    assert "no record" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    path.write_text("earlier")
    assert record(topic, "--from", 3, "--to", 3, "--out", path, "--force") == 1
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_places_beyond_the_log_are_its_ends(kafka_bootstrap: str, topic: str) -> None:
    """Asked for last week, one gets what is still there, and for tomorrow, up to now."""
    produce(kafka_bootstrap, topic)
    with Cluster(kafka_bootstrap).reader(topic) as reader:
        assert reader.at(Instant(0)) == reader.at(Offset(0)) == reader.beginning()
        assert reader.at(Instant(START_MS * 2)) == reader.at(Offset(10**9)) == reader.end()


def test_aborted_transactions_are_not_recorded(kafka_bootstrap: str, topic: str, tmp_path: Path) -> None:
    """What never was committed was never seen by a worker; markers at the end of the log hold nothing up."""
    producer = KafkaProducer(bootstrap_servers=kafka_bootstrap, transactional_id=f"tx-{topic}")
    producer.init_transactions()
    for value, ends in ((b"kept", producer.commit_transaction), (b"undone", producer.abort_transaction)):
        producer.begin_transaction()
        producer.send(topic, value, key=b"k", partition=0)
        producer.flush()
        ends()
    producer.close()
    path = tmp_path / "tx.records.jsonl"
    assert record(topic, "--out", path) == 0
    assert [value for *_, value in in_file(path)] == [b"kept"]


def test_following_ends_by_signal_with_a_whole_file(kafka_bootstrap: str, topic: str, tmp_path: Path) -> None:
    """Ctrl-C is how a live recording ends; the file is complete then, and holds what came."""
    path = tmp_path / "live.records.jsonl"
    partial = path.with_name(path.name + ".partial")
    words = [sys.executable, "-m", "pipeline", "record", topic, "--follow", "--from", "0", "--out", str(path)]
    with child(words) as process:
        assert process.stdout is not None
        assert "recording what comes" in process.stdout.readline()
        # Larger than what a file keeps back, so that the file's size tells when all have come.
        with Cluster(kafka_bootstrap).feeder() as feeder:
            for at in range(10):
                feeder.send(topic, b"k", os.urandom(30_000), partition=at % 2)
            feeder.flush()
        deadline = time.monotonic() + 30
        while partial.stat().st_size < 10 * 40_000 - io.DEFAULT_BUFFER_SIZE and time.monotonic() < deadline:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.05)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(timeout=20) == 0
    assert "10 records" in rest
    assert in_file(path) == in_topic(kafka_bootstrap, topic)


def test_following_ends_at_its_time(kafka_bootstrap: str, topic: str, tmp_path: Path) -> None:
    """A recording can be left alone over night; --to in the past ends it with what is there."""
    produce(kafka_bootstrap, topic, 10)
    path = tmp_path / "night.records.jsonl"
    assert record(topic, "--follow", "--from", 0, "--to", "2023-11-14T22:13:25", "--out", path) == 0
    assert len(in_file(path)) == 5


@pytest.mark.parametrize(
    "words",
    [
        ["--out", "x.jsonl"],
        ["--out", "x.records.jsonl", "--follow", "--to", "5"],
        ["--from", "noon", "--out", "x.records.jsonl"],
    ],
)
def test_wrong_options_leave_no_file(
    topic: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ending that replay would not know, or a place that is none, is said at once."""
    monkeypatch.chdir(tmp_path)
    assert record(topic, *words) == 2
    assert not list(tmp_path.iterdir())


def test_missing_topic_leaves_no_file(topic: str, tmp_path: Path) -> None:
    """Nothing to read: neither a topic nor a file is made."""
    assert record(f"no-{topic}", "--out", tmp_path / "x.records.jsonl") == 2
    assert not list(tmp_path.iterdir())
