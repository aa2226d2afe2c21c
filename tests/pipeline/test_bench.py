"""The benchmark: its figures, their JSON, and a tiny run through real servers."""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import redis
from kafka import KafkaAdminClient
from rich.console import Console

from models.pretrained import builtin
from models.step import Scorer
from pipeline.__main__ import EXIT_CONFIGURATION, main
from pipeline.bench.engine import NaiveNetwork, compute_rates
from pipeline.bench.naive import NaiveLoop
from pipeline.bench.path import Reached, latencies_ms
from pipeline.bench.report import LengthFigures, RowFigures, table
from pipeline.bench.traffic import FEATURES, Traffic
from pipeline.bench_command import PROFILES, QUICK, Effort, measure
from pipeline.engine import Engine
from pipeline.records import Partition, StoredRecord
from pipeline.settings import Limits, Settings
from pipeline.wire import decode_many

TRAFFIC = Traffic(streams=48, length=16, partitions=4)
TINY = Effort(48, 0.0, 0.0, 0.2, 0.2, 0.05, min_rounds=4, max_messages=1000)
RATES = {"engine", "model", "path", "read", "naive"}
RATIOS = {"engine_over_model", "path_over_naive", "path_over_model"}
LATENCIES = {"latency_ms_p50", "latency_ms_p99"}


def test_json_names_every_figure_and_its_ratios() -> None:
    """Whoever compares machines reads these keys; a ratio must be that of the figures beside it."""
    figures = LengthFigures(RowFigures(300.0, 600.0, 200.0), RowFigures(400.0, 600.0), read=900.0, naive=25.0)
    found = figures.as_json()
    assert found.keys() >= RATES | RATIOS | LATENCIES | {"jump", "light"}
    assert found["jump"].keys() == found["light"].keys() >= {"engine", "model", "path"} | RATIOS
    assert [found[name] for name in ("engine_over_model", "path_over_model", "path_over_naive")] == [0.5, 0.3333, 8.0]
    assert found["jump"]["path"] is None
    assert found["jump"]["path_over_naive"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_table_shows_what_was_not_measured_as_such() -> None:
    """A zero in the place of a figure that is missing would be read as one."""
    shown = io.StringIO()
    Console(file=shown, width=120).print(table("nothing yet", LengthFigures(RowFigures(engine=2_000_000.0))))
    assert "2,000 k/s" in shown.getvalue()
    assert " 0 k/s" not in shown.getvalue()


@pytest.mark.parametrize("kind", PROFILES)
def test_engine_and_model_are_timed_on_every_row(kind: str) -> None:
    """Each row layout has its own cost, and its own network to be compared with."""
    profile = PROFILES[kind]
    scorer = Scorer(builtin(profile.builtin() or profile.predictor), profile.fold())
    rates = compute_rates(
        Engine(kind, profile, lambda version: scorer, 1000, threads=2), "v1", TRAFFIC, 20, 0.0, threads=2
    )
    assert rates.engine > 0
    assert rates.model > 0


def test_every_message_is_a_window_that_is_never_late() -> None:
    """Dead letters and late observations cost nothing to score, so they would flatter the figures."""
    profile = PROFILES["single"]
    messages = list(islice(TRAFFIC.messages(), 3 * TRAFFIC.streams))
    records = [StoredRecord(offset, -1, m.key, m.value) for offset, m in enumerate(messages)]
    windows, letters = decode_many(records, Partition("bench", 0), profile, Limits())
    assert not letters
    lengths = windows.lengths.tolist()
    assert lengths == [1] * TRAFFIC.streams + [16] * (2 * TRAFFIC.streams)
    times: dict[str, list[int]] = {}
    ends = np.cumsum(windows.lengths)
    for stream, begin, end in zip(windows.stream_ids, ends - windows.lengths, ends, strict=True):
        times.setdefault(stream, []).extend(windows.times_ms[begin:end].tolist())
    assert len(times) == TRAFFIC.streams
    assert all(at == sorted(set(at)) for at in times.values())


def test_decoded_batches_are_the_messages() -> None:
    """Engine and path must be timed on the same observations, or their ratio says nothing."""
    messages = islice(TRAFFIC.messages(), 2 * TRAFFIC.streams)
    records = [StoredRecord(offset, -1, m.key, m.value) for offset, m in enumerate(messages)]
    windows, _ = decode_many(records, Partition("bench", 0), PROFILES["single"], Limits())
    batches = list(islice(TRAFFIC.windows(TRAFFIC.streams), 2))
    assert [stream for batch in batches for stream in batch.stream_ids] == windows.stream_ids
    np.testing.assert_array_equal(np.concatenate([batch.values for batch in batches]), windows.values)
    np.testing.assert_array_equal(np.concatenate([batch.times_ms for batch in batches]), windows.times_ms)


@pytest.mark.parametrize("count", [1, 47, 48, 100])
def test_ends_count_the_messages_of_each_partition(count: int) -> None:
    """The path is timed until these offsets are committed: one too many would never come, one too few is early."""
    sent = [*islice(TRAFFIC.messages(), 3 * TRAFFIC.streams), *islice(TRAFFIC.messages(2), count)]
    by_partition = Counter(message.partition for message in sent)
    ends = TRAFFIC.ends_after("bench", 2, count)
    assert {partition.partition: end for partition, end in ends.items()} == dict(by_partition)


def test_latency_ends_with_the_first_commit_above_the_record() -> None:
    """A committed offset is the next one to read: the record at it is not committed yet."""
    partition = Partition("bench", 0)
    history = [
        Reached(0.0, 1000, {partition: 2}),
        Reached(0.0, 1500, {partition: 4}),
        Reached(0.0, 1900, {partition: 5}),
    ]
    waited = latencies_ms(history, partition, 2, np.array([1200, 1300, 1400]))
    assert waited.tolist() == [300, 200, 500]


class States:
    """Hidden states in a dict, counting what was asked."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.asked = 0

    def get(self, stream_id: str) -> bytes | None:
        """One GET."""
        self.asked += 1
        return self.kept.get(stream_id)

    def set(self, stream_id: str, hidden: bytes) -> None:
        """One SET."""
        self.kept[stream_id] = hidden


def test_naive_loop_carries_hidden_states_from_message_to_message() -> None:
    """The yardstick must do the work it is named for: one GET, the network on all 8 features, one SET."""
    states = States()
    values = (message.value for message in TRAFFIC.messages(0))
    naive = NaiveLoop(values, states, NaiveNetwork().step)
    naive.warm_up(TRAFFIC.streams)
    naive.run(seconds=0.0)
    assert naive.rate > 0
    assert states.asked > TRAFFIC.streams
    assert len(states.kept) == TRAFFIC.streams
    hidden = np.frombuffer(states.kept["unit-000000"], np.float32)
    assert hidden.shape == (FEATURES * 64,)
    assert np.abs(hidden).max() > 0


@pytest.fixture
def servers(kafka_bootstrap: str, redis_url: str) -> Iterator[Settings]:
    """Settings that name both servers, which hold nothing of the benchmark afterwards."""
    yield Settings.model_validate(
        {"kafka": {"bootstrap_servers": kafka_bootstrap}, "redis": {"url": redis_url}, "engine": {"device": "cpu"}}
    )
    client = KafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    try:
        until = time.monotonic() + 10.0  # the broker removes topics a moment after it has said so
        while any(topic.startswith("tidewatch-bench-") for topic in client.list_topics()):
            assert time.monotonic() < until, "topics were left behind"
    finally:
        client.close()
    with redis.Redis.from_url(redis_url) as store:
        assert not list(store.scan_iter("*tidewatch-bench-*"))


@pytest.mark.integration
@pytest.mark.timeout(180)
def test_tiny_run_measures_everything_and_leaves_nothing(servers: Settings) -> None:
    """The whole benchmark on servers that are not its own: every figure is there, every trace is gone."""
    figures = measure(servers, TINY, Console(file=io.StringIO()))
    assert list(figures) == [1, 16]
    for found in (length.as_json() for length in figures.values()):
        measured = {name: found[name] for name in RATES | RATIOS | LATENCIES}
        assert all(value is not None and value > 0 for value in measured.values()), measured
        for kind in ("jump", "light"):
            assert all(found[kind][name] > 0 for name in ("engine", "model", "path")), kind
        assert found["latency_ms_p50"] <= found["latency_ms_p99"]


def test_what_cannot_be_measured_or_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not after ten minutes, and not by a traceback."""
    assert main(["bench", "--streams", "-5"]) == EXIT_CONFIGURATION
    assert main(["bench", "--json", str(tmp_path)]) == EXIT_CONFIGURATION
    assert capsys.readouterr().err.count("\n") == 2


def test_quick_run_has_the_streams_it_promises() -> None:
    """Figures of a few streams would come from the cache; at least 10,000 are promised."""
    assert QUICK.streams >= 10_000
    assert replace(QUICK, streams=20_000).max_messages >= 20_000
