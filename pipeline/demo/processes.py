"""The demo's three processes: Kafka, Redis and a worker, all of them ended with the demo, however it ends."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import FrameType

import pipeline
from pipeline.errors import ConfigurationError
from pipeline.jars import Progress, default_cache, kafka_jars
from pipeline.profile import Profile
from pipeline.servers import HOST, EmbeddedKafka, EmbeddedRedis, EmbeddedServer
from pipeline.settings_given import heard_variables

SCORES, ALERTS, DEAD_LETTERS = "tidewatch-scores", "tidewatch-alerts", "tidewatch-dead-letters"
POLL_S = 0.1
SIGNALS = (signal.SIGINT, signal.SIGTERM)

START_DEADLINE_S = 120.0
"""Time for a worker to import torch, on a machine that is busy with something else."""


class WorkerProcess(EmbeddedServer):
    """``tidewatch worker`` as a process of its own, ready when it is assigned partitions and serves.

    Parameters
    ----------
    folder
        Its settings file, its log and its model versions.
    kafka, redis
        Addresses.
    profiles
        What it scores.
    """

    name = "worker"
    start_deadline_s = START_DEADLINE_S

    def __init__(self, folder: Path, kafka: str, redis: str, profiles: Mapping[str, Profile]) -> None:
        super().__init__(folder)
        self._kafka, self._redis, self._profiles = kafka, redis, profiles

    @property
    def address(self) -> str:
        """Where it serves its metrics."""
        return f"http://{HOST}:{self.port}"

    @property
    def settings_file(self) -> Path:
        """The file it reads: an example for a worker of one's own."""
        return self.folder / "worker.toml"

    def _command(self) -> list[str]:
        self.settings_file.write_text(settings_text(self._kafka, self._redis, self.port, self._profiles))
        # The environment's settings are those of the user's own system, and would win over the file.
        without = [word for name in heard_variables() for word in ("-u", name)]
        found = f"PYTHONPATH={Path(pipeline.__file__).parents[1]}"
        worker = ["-m", "pipeline", "worker", "--settings", str(self.settings_file)]
        return ["/usr/bin/env", *without, found, sys.executable, *worker]

    def _answers(self) -> bool:
        connection = HTTPConnection(HOST, self.port, timeout=1)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()


def settings_text(kafka: str, redis: str, http_port: int, profiles: Mapping[str, Profile]) -> str:
    """The worker's settings as TOML."""
    lines = [
        "# What the demo's worker ran with. The servers are gone; the rest is an example for your own.",
        "[kafka]",
        f"bootstrap_servers = {json.dumps([kafka])}",
        'group = "demo"',
        "max_poll_records = 1500  # so that alerts come in a steady flow; more at a time is faster",
        f"scores_topic = {json.dumps(SCORES)}",
        f"alerts_topic = {json.dumps(ALERTS)}",
        f"dead_letter_topic = {json.dumps(DEAD_LETTERS)}",
        "",
        "[redis]",
        f"url = {json.dumps(redis)}",
        "",
        "[http]",
        f"port = {http_port}",
        "",
        "[registry]",
        'folder = "versions"',
    ]
    for name, profile in profiles.items():
        lines += [
            "",
            f"[profiles.{name}]",
            f"topics = {json.dumps(profile.topics)}",
            f"features = {json.dumps(profile.features)}",
            f"interval_s = {profile.interval_s}",
            f"alarm_budget = {json.dumps(profile.alarm_budget)}",
        ]
    return "\n".join(lines) + "\n"


class Processes:
    """Kafka, Redis and a worker in a temporary folder that nobody else uses.

    Every process is started by a thread, never by the main one: a signal interrupts the main thread anywhere, also
    between the birth of a process and the note of its id, and would then leave it alone in the world.
    """

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.kafka = EmbeddedKafka(folder / "kafka", progress=progress)
        self.redis = EmbeddedRedis(folder / "redis")
        self.worker: WorkerProcess | None = None
        self._folder, self._progress = folder, progress
        self._threads = ThreadPoolExecutor(thread_name_prefix="start")
        self._starts: list[Future[None]] = []

    def start_servers(self) -> None:
        """Start Kafka and Redis beside each other; returns when both answer.

        Raises
        ------
        ConfigurationError
            One of them cannot start.
        """
        kafka_jars(default_cache(), self._progress)  # here, where a signal can interrupt it: a fetch takes a while
        self._finish([self._begin(self.redis), self._begin(self.kafka)])

    def begin_worker(self, profiles: Mapping[str, Profile]) -> Future[None]:
        """Begin to start the worker; the future is done when it serves."""
        self.worker = WorkerProcess(self._folder / "worker", self.kafka.address, self.redis.address, profiles)
        return self._begin(self.worker)

    def check(self) -> None:
        """Raise ConfigurationError, with the end of its log, where a process ended by itself or could not start."""
        for start in self._starts:
            if start.done():
                start.result()
        for process in self._running():
            if process.wait(0.0):
                raise ConfigurationError(f"{process.name} ended by itself\n{process.end_of_log()}")

    def stop(self) -> None:
        """End the worker in good order (it commits and saves), then the servers, whose data nobody needs any more."""
        if self.worker is not None:
            self.worker.stop()

    def kill(self) -> None:
        """End everything at once; also what is only just starting."""
        for process in self._all():
            process.give_up()
        wait(self._starts)
        for process in self._all():
            process.kill()
        self._threads.shutdown()

    def _all(self) -> Iterable[EmbeddedServer]:
        return [process for process in (self.worker, self.kafka, self.redis) if process is not None]

    def _running(self) -> Iterable[EmbeddedServer]:
        return [process for process in self._all() if process.is_running]

    def _begin(self, process: EmbeddedServer) -> Future[None]:
        start = self._threads.submit(process.start)
        self._starts.append(start)
        return start

    def _finish(self, starts: list[Future[None]]) -> None:
        while not all(start.done() for start in starts):
            wait(starts, POLL_S)
        for start in starts:
            start.result()


def interrupt_once(number: int, frame: FrameType | None) -> None:
    """Handle the first signal to end as Ctrl-C, and be deaf to any further one: everything is being ended already."""
    for name in SIGNALS:
        signal.signal(name, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def processes(progress: Progress) -> Iterator[Processes]:
    """Processes that are gone, with everything they wrote, when the ``with`` block is left."""
    with tempfile.TemporaryDirectory(prefix="tidewatch-demo-", ignore_cleanup_errors=True) as folder:
        running = Processes(Path(folder), progress)
        for number in SIGNALS:
            signal.signal(number, interrupt_once)
        try:
            yield running
        finally:
            with deaf():
                running.kill()


@contextmanager
def deaf() -> Iterator[None]:
    """Signals to end are ignored: what runs here is the ending, takes little time, and must be complete."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
