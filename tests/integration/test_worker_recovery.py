"""Real Kafka, Redis and processes: killed, joined and left, the committed output is that of an undisturbed run."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import redis
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from models.step import Scorer
from pipeline.partition import from_offset
from pipeline.records import Partition
from pipeline.registry import Registry
from pipeline.servers import create_topics
from pipeline.settings import Settings
from pipeline.topics.kafka import Cluster
from pipeline.wire import decode_alert, decode_scores, encode_packed
from tests.builders import INTERVAL_MS, START_MS, Output, World, assert_same_output, make_series

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(240)]

STREAMS, LENGTH, PARTITIONS = 8, 260, 4
DEADLINE_S = 90.0


@dataclass
class Site:
    """Topics, group, registry and settings of one run; workers are processes of the real command."""

    folder: Path
    kafka: str
    redis: str
    name: str

    def __post_init__(self) -> None:
        create_topics(
            self.kafka, {f"{self.name}-in": PARTITIONS, **{f"{self.name}-{out}": 1 for out in ("s", "a", "d")}}
        )

    def settings(self, worker: str) -> Path:
        path = self.folder / f"{self.name}-{worker}.toml"
        path.write_text(
            f"""
            [kafka]
            bootstrap_servers = "{self.kafka}"
            group = "{self.name}"
            worker_name = "{worker}"
            static_membership = true
            scores_topic = "{self.name}-s"
            alerts_topic = "{self.name}-a"
            dead_letter_topic = "{self.name}-d"
            commit_interval_s = 0.1
            max_poll_records = 12
            session_timeout_s = 6
            [redis]
            url = "{self.redis}"
            save_interval_s = 0.5
            [limits]
            max_clock_skew_s = 1e9
            [http]
            port = 0
            [engine]
            device = "cpu"
            threads = 1
            [registry]
            folder = "{self.folder / "registry"}"
            [profiles.p]
            topics = ["{self.name}-in"]
            features = ["value"]
            interval_s = 60
            predictor = "gru32"
            alarm_budget = "1 per day"
            """
        )
        return path

    @contextmanager
    def worker(self, name: str = "w") -> Iterator[subprocess.Popen[bytes]]:
        """A worker process; asked to stop at the end."""
        with (self.folder / f"{self.name}-{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", "worker", "--settings", str(self.settings(name))],
                stdout=log,
                stderr=log,
            )
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                    process.wait(timeout=40)

    def produce(self) -> None:
        producer = KafkaProducer(bootstrap_servers=self.kafka, linger_ms=20)
        chance = random.Random(7)
        series = {f"s{number}": make_series(number, LENGTH) for number in range(STREAMS)}
        at = dict.fromkeys(series, 0)
        while any(position < LENGTH for position in at.values()):
            for stream, values in series.items():
                begin = at[stream]
                if begin < LENGTH:
                    length = min(chance.choice((1, 1, 2, 5)), LENGTH - begin)
                    times = START_MS + INTERVAL_MS * np.arange(begin, begin + length)
                    value = encode_packed(stream, times, values[begin : begin + length])
                    producer.send(f"{self.name}-in", value, key=stream.encode())
                    at[stream] = begin + length
        producer.flush()
        producer.close()

    def progress(self) -> tuple[int, int]:
        """Committed and total records of the input."""
        consumer = KafkaConsumer(bootstrap_servers=self.kafka, group_id=self.name, enable_auto_commit=False)
        try:
            places = [TopicPartition(f"{self.name}-in", number) for number in range(PARTITIONS)]
            ends = consumer.end_offsets(places)
            return sum(consumer.committed(place) or 0 for place in places), sum(ends.values())
        finally:
            consumer.close()

    def wait_for(self, share: float) -> None:
        """Until this share of the input is committed."""
        wait_until(lambda: (p := self.progress())[0] >= share * p[1], f"{share:.0%} of {self.name}", self.log)

    def log(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.folder.glob(f"{self.name}-*.log")))

    def read(self, topic: str) -> list[bytes]:
        """All committed values of an output topic."""
        consumer = KafkaConsumer(
            bootstrap_servers=self.kafka, isolation_level="read_committed", auto_offset_reset="earliest"
        )
        try:
            place = TopicPartition(f"{self.name}-{topic}", 0)
            end = consumer.end_offsets([place])[place]
            consumer.assign([place])
            values: list[bytes] = []
            until = time.monotonic() + DEADLINE_S
            while consumer.position(place) < end and time.monotonic() < until:
                values += [record.value for records in consumer.poll(200).values() for record in records]
            return values
        finally:
            consumer.close()

    def output(self) -> Output:
        scores: dict[tuple[str, int], float] = {}
        verdicts, versions, partial = {}, {}, {}
        seen = 0
        for value in self.read("s"):
            batch = decode_scores(value)
            windows = np.repeat(np.arange(len(batch.stream_ids)), batch.lengths)
            for cell, window in enumerate(windows.tolist()):
                place = (batch.stream_ids[window], int(batch.times_ms[cell]))
                scores[place], verdicts[place] = float(batch.score[cell]), int(batch.verdict[cell])
                versions[place], partial[place] = batch.model_version, bool(batch.partial[window])
                seen += 1
        alerts = [decode_alert(value) for value in self.read("a")]
        return Output(scores, verdicts, versions, partial, seen - len(scores), alerts, [])


def wait_until(condition: Callable[[], bool], what: str, log: Callable[[], str]) -> None:
    until = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > until:
            pytest.fail(f"waited {DEADLINE_S:g} s for {what}\n{log()}")


def without_ids(output: Output) -> Output:
    """Alert ids name topics, which differ between runs."""
    return Output(
        output.scores, output.verdicts, output.versions, output.partial, output.duplicates, [], output.dead_letters
    )


def events(output: Output) -> list[tuple[str, str, int, int]]:
    return sorted((a.stream_id, a.event, a.time_ms, a.onset_ms) for a in output.alerts)


@pytest.fixture
def make_site(tmp_path: Path, kafka_bootstrap: str, redis_url: str) -> Callable[[str], Site]:
    def make(what: str) -> Site:
        site = Site(tmp_path, kafka_bootstrap, redis_url, f"{what}-{uuid.uuid4().hex[:8]}")
        site.produce()
        return site

    return make


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, kafka_bootstrap: str, redis_url: str) -> Output:
    site = Site(tmp_path_factory.mktemp("undisturbed"), kafka_bootstrap, redis_url, f"calm-{uuid.uuid4().hex[:8]}")
    site.produce()
    with site.worker():
        site.wait_for(1.0)
    output = site.output()
    assert len(output.scores) == STREAMS * LENGTH
    assert {alert.event for alert in output.alerts} >= {"opened", "resolved"}
    return output


def assert_equal(site: Site, undisturbed: Output) -> None:
    found = site.output()
    assert_same_output(without_ids(found), without_ids(undisturbed))
    assert events(found) == events(undisturbed)


def test_worker_killed_again_and_again_leaves_every_score_exactly_once(
    make_site: Callable[[str], Site], undisturbed: Output
) -> None:
    """SIGKILL at random moments of a replay: nothing lost, nothing twice, same values, same alerts."""
    site = make_site("killed")
    chance = random.Random(3)
    for share in (0.15, 0.4, 0.6, 0.85):
        with site.worker() as process:
            site.wait_for(share + chance.uniform(-0.1, 0.1))
            process.kill()
            process.wait()
    with site.worker():
        site.wait_for(1.0)
    assert_equal(site, undisturbed)


def test_redis_emptied_in_mid_run_is_rebuilt_from_kafka(make_site: Callable[[str], Site], undisturbed: Output) -> None:
    """Every saved row is gone while the worker runs: it notices, replays, and the output is the same."""
    site = make_site("wiped")
    client = redis.Redis.from_url(site.redis)
    with site.worker():
        site.wait_for(0.4)
        keys = client.keys(f"tw:{{{site.name}:*")
        assert keys, "something was saved"
        client.delete(*keys)
        site.wait_for(1.0)
    client.close()
    assert_equal(site, undisturbed)


def test_second_worker_comes_and_goes(make_site: Callable[[str], Site], undisturbed: Output) -> None:
    """Rebalances in mid-run: partitions change hands twice, with state."""
    site = make_site("joined")
    with site.worker("first"):
        site.wait_for(0.2)
        with site.worker("second"):
            site.wait_for(0.6)
        site.wait_for(1.0)
    assert_equal(site, undisturbed)


def test_stopped_worker_leaves_nothing_to_replay(make_site: Callable[[str], Site]) -> None:
    """SIGTERM: commit, save all, W = c (protocol.md, Stop)."""
    site = make_site("stopped")
    with site.worker():
        site.wait_for(0.3)
    folded = 0
    client = redis.Redis.from_url(site.redis, decode_responses=False)
    consumer = KafkaConsumer(bootstrap_servers=site.kafka, group_id=site.name, enable_auto_commit=False)
    for number in range(PARTITIONS):
        committed = consumer.committed(TopicPartition(f"{site.name}-in", number), metadata=True)
        carried = json.loads(committed.metadata)
        if committed.offset == carried["origin"]:
            continue  # no stream of ours lies in this partition
        meta = client.hget(f"tw:{{{site.name}:{site.name}-in:{number}}}:{carried['incarnation']}", "!meta")
        assert meta is not None
        watermark = int(meta.split()[3])
        assert watermark == committed.offset
        folded += 1
    assert folded > 0
    consumer.close()
    client.close()


class Replayed(World):
    """One partition's records in an in-memory world, scored by the versions of a real registry."""

    registry: Registry

    def load(self, version: str) -> Scorer:
        return self.registry.scorer("p", version, "cpu")

    def run_with_swaps(self, records: list[tuple[bytes, bytes]], history: list[tuple[int, str]]) -> Output:
        """Each stretch of ``records`` (key, value) under its version, swapped while nothing is ahead."""
        worker = None
        ends = [offset for offset, _ in history[1:]] + [len(records)]
        for (begin, version), end in zip(history, ends, strict=True):
            self.target = version
            worker = worker or self.worker()
            self.clock.advance(5)
            for _ in range(3):
                worker.step()  # nothing new: the swap is here
            for key, value in records[begin:end]:
                self.broker.append("input", key, value, timestamp_ms=START_MS)
            self.run(worker)
        return self.output()


def _records(site: Site) -> list[list[tuple[bytes, bytes]]]:
    """Keys and values of the input, by partition."""
    consumer = KafkaConsumer(bootstrap_servers=site.kafka, auto_offset_reset="earliest")
    places = [TopicPartition(f"{site.name}-in", number) for number in range(PARTITIONS)]
    consumer.assign(places)
    ends = consumer.end_offsets(places)
    found: dict[TopicPartition, list[tuple[bytes, bytes]]] = {place: [] for place in places}

    def is_read() -> bool:
        for place, records in consumer.poll(200).items():
            found[place] += [(record.key, record.value) for record in records]
        return all(len(found[place]) == ends[place] for place in places)

    wait_until(is_read, "the input", site.log)
    consumer.close()
    return [found[place] for place in places]


def _histories(site: Site) -> list[list[tuple[int, str]]]:
    """The version history of each partition, from its committed offset."""
    found = Cluster(site.kafka).committed(site.name)
    return [list(from_offset(found[Partition(f"{site.name}-in", number)]).history) for number in range(PARTITIONS)]


@pytest.mark.long
def test_worker_killed_before_during_and_after_a_swap_ends_as_if_it_had_not_been(
    make_site: Callable[[str], Site],
) -> None:
    """Rules 10 to 12 with real processes: whatever was swapped where, the output is that of an undisturbed run."""
    site = make_site("swapped")
    registry = Registry(site.folder / "registry")

    def swapped() -> int:
        return sum(len(history) > 1 for history in _histories(site))

    with site.worker() as process:
        site.wait_for(0.3)
        first = registry.current("p")
        assert first is not None
        weights, fold = registry.load("p", first)
        louder = {name: 1.1 * tensor for name, tensor in weights.network.items()}
        second = registry.publish("p", replace(weights, network=louder), fold)
        registry.serve("p", second)
        process.kill()  # before the worker has looked
        process.wait()
    assert swapped() == 0
    with site.worker() as process:
        wait_until(lambda: swapped() > 0, "the first swap", site.log)
        process.kill()  # while its partitions swap, one after the other
        process.wait()
    with site.worker() as process:
        site.wait_for(0.8)
        process.kill()  # after
        process.wait()
    with site.worker():
        site.wait_for(1.0)
    expected = Output({}, {}, {}, {}, 0, [], [])
    for records, history in zip(_records(site), _histories(site), strict=True):
        world = Replayed(profile=Settings.load(site.settings("w")).profiles["p"], partitions=1)
        world.registry = registry
        part = world.run_with_swaps(records, history)
        for name in ("scores", "verdicts", "versions", "partial"):
            getattr(expected, name).update(getattr(part, name))
        expected.alerts.extend(part.alerts)
    found = site.output()
    assert set(found.versions.values()) == {first, second}
    assert_same_output(without_ids(found), without_ids(expected))
    assert found.versions == expected.versions
    assert events(found) == events(expected)
