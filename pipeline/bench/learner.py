"""``tidewatch bench --learner``: what a learner beside it costs the worker, in throughput and in latency.

A worker meets a full topic, then a steady flow at half of that rate, by turns with a learner that works as hard as it
may ever (the share that [learner] drift_cpu_share gives it while a family drifts) and with the same learner held still.
Both are on this machine, with the embedded Kafka and Redis: where cores are few, that is the worst case.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from pipeline.bench.kafka import fill, offering, timestamps_ms
from pipeline.bench.path import Drive, PathRate, latencies_ms
from pipeline.bench.traffic import FEATURES, INTERVAL_MS, Traffic
from pipeline.errors import ConfigurationError
from pipeline.records import Int64
from pipeline.registry import Registry
from pipeline.servers import EmbeddedKafka, EmbeddedRedis, create_topics
from pipeline.settings import LearnerSettings, Settings
from pipeline.worker import Worker

STREAMS, LENGTH, PARTITIONS = 1000, 16, 4
WARM_ROUNDS, ROUNDS, TURNS = 12, 8, 3
LATENCY_S = 6.0
BUSY_DEADLINE_S = 120.0
TOPIC, PROFILE = "bench", "single"


class Rival:
    """``tidewatch learner`` in a process of its own, which can be held still."""

    def __init__(self, settings: Path, port: int, log: Path) -> None:
        self._port = port
        with log.open("wb") as out:
            command = [sys.executable, "-m", "pipeline", "learner", "--settings", str(settings)]
            self._process = subprocess.Popen(command, stdout=out, stderr=out)

    def updates(self) -> float:
        """How many updates of the weights it made; 0 while it does not answer."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", "/metrics")
            families = text_string_to_metric_families(connection.getresponse().read().decode())
            return sum(s.value for each in families for s in each.samples if s.name == "anomaly_learner_updates_total")
        except (OSError, HTTPException):
            return 0.0
        finally:
            connection.close()

    def wait_until_busy(self) -> None:
        """Until it has begun to learn; raises ConfigurationError where it does not."""
        until = time.monotonic() + BUSY_DEADLINE_S
        while not self.updates():
            if self._process.poll() is not None or time.monotonic() > until:
                raise ConfigurationError("the learner did not begin to learn")
            time.sleep(0.5)

    @contextmanager
    def held(self) -> Iterator[None]:
        """It stands still while the block lasts."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()


def beside_a_learner(console: Console, build_worker: Callable[[Settings], Worker]) -> int:
    """Measure and print; returns the exit code."""
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="tidewatch-bench-")))
        redis = opened.enter_context(EmbeddedRedis(folder / "redis"))
        kafka = opened.enter_context(EmbeddedKafka(folder / "kafka"))
        topics = {TOPIC: PARTITIONS, "scores": 1, "alerts": 1, "dead": 1}
        create_topics(kafka.address, topics, {"message.timestamp.type": "LogAppendTime"})
        place = folder / "bench.toml"
        place.write_text(_settings_text(kafka.address, redis.address, folder, redis.port + 1))
        settings = Settings.load(place)
        worker = build_worker(settings)
        opened.callback(worker.stop)
        measured = _Measured(Drive(worker), kafka.address, Traffic(STREAMS, LENGTH, PARTITIONS))
        measured.warm_up()
        Registry(settings.registry.folder).ask_retrain(PROFILE)
        rival = Rival(place, settings.http.port, folder / "learner.log")
        opened.callback(rival.end)
        console.print("waiting for the learner to learn", style="dim")
        rival.wait_until_busy()
        before, began = rival.updates(), time.monotonic()
        for turn in range(TURNS):
            console.print(f"turn {turn + 1} of {TURNS}", style="dim")
            with rival.held():
                measured.turn("alone")
            measured.turn("beside a learner")
        made, seconds = rival.updates() - before, time.monotonic() - began
    for line in measured.lines():
        console.print(line)
    console.print(
        f"the learner made {made:.0f} updates in {seconds:.0f} s, at {LearnerSettings().drift_cpu_share:g} of a core"
    )
    return 0 if made else 1


class _Measured:
    """Rates and latencies of a worker by whether a learner works beside it."""

    def __init__(self, drive: Drive, bootstrap: str, traffic: Traffic) -> None:
        self._drive, self._bootstrap, self._traffic = drive, bootstrap, traffic
        self._rounds = 0
        self._rates: dict[str, PathRate] = {}
        self._waits: dict[str, list[Int64]] = {}

    def warm_up(self) -> None:
        """The beginning of every stream, and enough observations to teach."""
        self._fill(-1, 1 + WARM_ROUNDS)
        self._rounds = WARM_ROUNDS
        self._drive.until(self._traffic.ends(TOPIC, 1 + self._rounds))

    def turn(self, kind: str) -> None:
        """A full topic, then a steady flow."""
        rate = self._rates.setdefault(kind, PathRate())
        self._fill(self._rounds, ROUNDS)
        self._rounds += ROUNDS
        rate.stretch(self._drive, (1 + self._rounds) * STREAMS)
        flow = 0.5 * self._rates["alone"].messages_per_s
        rounds = max(1, round(flow * LATENCY_S / STREAMS))
        begin, end = (self._traffic.ends(TOPIC, 1 + self._rounds + more) for more in (0, rounds))
        with offering(self._bootstrap, TOPIC, self._traffic, self._rounds, flow, rounds * STREAMS):
            self._drive.until(end)
        self._rounds += rounds
        for partition, offset in end.items():
            arrived = np.array(timestamps_ms(self._bootstrap, partition, begin[partition], offset))
            found = latencies_ms(self._drive.history, partition, begin[partition], arrived)
            self._waits.setdefault(kind, []).append(found)

    def _fill(self, first_round: int, rounds: int) -> None:
        fill(self._bootstrap, TOPIC, self._traffic.messages(first_round), rounds * STREAMS)

    def lines(self) -> Iterator[str]:
        """The figures."""
        for kind, rate in self._rates.items():
            p50, p99 = np.quantile(np.concatenate(self._waits[kind]), (0.5, 0.99))
            per_s = rate.messages_per_s * self._traffic.values_per_message
            yield f"{kind:<17} {per_s:9,.0f} values/s; at half rate p50 {p50:.0f} ms, p99 {p99:.0f} ms"
        alone, beside = (self._rates[kind].messages_per_s for kind in ("alone", "beside a learner"))
        yield f"throughput beside a learner over alone: {beside / alone:.3f}"


def _settings_text(kafka: str, redis: str, folder: Path, port: int) -> str:
    features = json.dumps([f"feature-{number}" for number in range(FEATURES)])
    return f"""
        [kafka]
        bootstrap_servers = {json.dumps([kafka])}
        group = "bench"
        scores_topic = "scores"
        alerts_topic = "alerts"
        dead_letter_topic = "dead"
        [redis]
        url = {json.dumps(redis)}
        [http]
        port = {port}
        [registry]
        folder = {json.dumps(str(folder / "registry"))}
        [learner]
        cpu_share = {LearnerSettings().drift_cpu_share}
        stretch = 32
        candidate_updates = 1000000
        [profiles.{PROFILE}]
        topics = ["{TOPIC}"]
        features = {features}
        interval_s = {INTERVAL_MS / 1000}
        evidence = "single"
        """
