"""``tidewatch learner`` and ``tidewatch worker`` as processes: from the first record to a promotion and a restart."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.__main__ import main
from pipeline.records import Partition
from pipeline.registry import Registry
from pipeline.servers import create_topics
from pipeline.topics.kafka import Cluster
from pipeline.wire import decode_scores, encode_packed
from tests.builders import START_MS
from tests.real_kafka import forget, unique, visible

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(400)]

STREAMS, LENGTH, INTERVAL_MS = 8, 48, 600_000
DEADLINE_S = 150.0


@dataclass
class Site:
    """Settings, topics and a registry; processes of the real commands."""

    folder: Path
    kafka: str
    redis: str

    def __post_init__(self) -> None:
        self.name, self.at = unique("site"), 0
        create_topics(self.kafka, {f"{self.name}-{what}": 1 for what in ("in", "s", "a", "d")})
        self.registry = Registry(self.folder / "registry")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.port = taken.getsockname()[1]

    def _settings(self, port: int) -> Path:
        path = self.folder / f"{port}.toml"
        path.write_text(
            f"""
            [kafka]
            bootstrap_servers = "{self.kafka}"
            group = "{self.name}"
            scores_topic = "{self.name}-s"
            alerts_topic = "{self.name}-a"
            dead_letter_topic = "{self.name}-d"
            [redis]
            url = "{self.redis}"
            [http]
            port = {port}
            [engine]
            device = "cpu"
            threads = 1
            [registry]
            folder = "{self.folder / "registry"}"
            [learner]
            stretch = {LENGTH}
            batch = 8
            rate = 2e-3
            cpu_share = 1.0
            candidate_updates = 40
            shadow_stretches = 24
            probation_stretches = 24
            tail_series = 16
            tail_observations = 500
            [profiles.p]
            topics = ["{self.name}-in"]
            features = ["value"]
            interval_s = {INTERVAL_MS // 1000}
            clock = false
            light = true
            """
        )
        return path

    @contextmanager
    def running(self, role: str, port: int = 0) -> Iterator[subprocess.Popen[bytes]]:
        """A process of the command; asked to stop at the end, which it must do in good order."""
        with (self.folder / f"{role}.log").open("ab") as log:
            command = [sys.executable, "-m", "pipeline", role, "--settings", str(self._settings(port))]
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
            process.wait()

    def judged(self) -> dict[str, float]:
        """The learner's stretches by what its gate said of them; empty while it does not answer."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/metrics")
            families = text_string_to_metric_families(connection.getresponse().read().decode())
            samples = [sample for each in families for sample in each.samples]
            return {s.labels["reason"]: s.value for s in samples if s.name == "anomaly_learner_judged"}
        except (OSError, HTTPException):
            return {}
        finally:
            connection.close()

    def live(self) -> None:
        """The next stretch of every stream; returns when the learner, which reads all of them, has judged it."""
        self.write()
        wanted = STREAMS * self.at // LENGTH
        self.until(lambda: sum(self.judged().values()) >= wanted, f"{wanted} stretches judged")

    def write(self) -> None:
        """The next stretch of every stream, for nobody in particular."""
        times = START_MS + INTERVAL_MS * np.arange(self.at, self.at + LENGTH)
        noise = np.random.default_rng(self.at).standard_normal((STREAMS, LENGTH))
        waves = np.sin(2 * np.pi * times / INTERVAL_MS / 24 + np.arange(STREAMS)[:, None]) + 0.1 * noise
        with Cluster(self.kafka).feeder() as feeder:
            for number, mine in enumerate(waves):
                value = encode_packed(f"s{number}", times, mine[:, None].astype(np.float32))
                feeder.send(f"{self.name}-in", f"s{number}".encode(), value)
            feeder.flush()
        self.at += LENGTH

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Ask again until it holds; conditions ask a server, so this does not spin."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(path.read_text()[-3000:] for path in self.folder.glob("*.log"))
                pytest.fail(f"waited {DEADLINE_S:g} s for {what}\n{logs}")

    def events(self) -> list[str]:
        """What the history says."""
        return [decision.event for decision in self.registry.history("p")]


def test_the_commands_learn_promote_and_go_on_after_a_restart(
    kafka_bootstrap: str, redis_url: str, tmp_path: Path
) -> None:
    """What an operator starts does what the tests of the parts say, with nothing made quicker."""
    site = Site(tmp_path, kafka_bootstrap, redis_url)
    with site.running("worker"):
        with site.running("learner", site.port):
            site.until(lambda: bool(site.judged()), "the learner")
            for _ in range(60):
                site.live()
                if "promoted" in site.events():
                    break
            promoted = next(each for each in site.registry.history("p") if each.event == "promoted")
            assert promoted.figures["gain"] >= promoted.figures["margin"]
        assert json.loads((tmp_path / "registry" / "p" / "learner.json").read_text())["streams"].keys() == {
            f"s{number}" for number in range(STREAMS)
        }
        with site.running("learner", site.port):
            for _ in range(40):
                site.live()
                if "confirmed" in site.events():
                    break
        assert "confirmed" in site.events()
    versions = {decode_scores(value).model_version for value in visible(site.kafka, f"{site.name}-s")}
    assert promoted.version in versions
    assert site.registry.current("p") in versions
    weights, _ = site.registry.load("p", promoted.version)
    parent, _ = site.registry.load("p", str(promoted.parent))
    assert not np.array_equal(weights.P0.numpy(), parent.P0.numpy())
    assert weights.pooled != parent.pooled


def test_a_learner_overtaken_by_retention_goes_on(kafka_bootstrap: str, redis_url: str, tmp_path: Path) -> None:
    """It has one core at most, and may fall behind; what it did not get to see is a gap in a sample."""
    site = Site(tmp_path, kafka_bootstrap, redis_url)
    with site.running("learner", site.port) as process:
        site.until(lambda: bool(site.judged()), "the learner")
        site.live()
        process.send_signal(signal.SIGSTOP)
        site.write()  # a fetch under way may bring some of it
        site.write()
        forget(site.kafka, Partition(f"{site.name}-in", 0), 3 * STREAMS)
        process.send_signal(signal.SIGCONT)
        log = tmp_path / "learner.log"
        site.until(lambda: "no longer in the log" in log.read_text() or process.poll() is not None, "the gap")
        assert process.poll() is None, log.read_text()
        seen = sum(site.judged().values())
        site.write()
        site.until(lambda: sum(site.judged().values()) > seen, "what came since")


def test_bench_measures_a_worker_with_and_without_a_learner(capsys: pytest.CaptureFixture[str]) -> None:
    """That a learner never slows serving is a figure anybody can take; it depends on the machine and is not judged."""
    assert main(["bench", "--learner"]) == 0
    said = capsys.readouterr().out
    for what in ("alone ", "beside a learner ", "throughput beside a learner over alone: ", "updates in"):
        assert what in said
