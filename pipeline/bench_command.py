"""``tidewatch bench``: measure this machine, from the bare neural network to the whole path through Kafka and Redis.

Windows hold 1 observation (t1) or 16 (t16) of 8 features, packed, of 10000 streams or more; the hidden size is 64.
Figures are values/s, a value being that of one feature at one time:

  engine   the engine alone: rows, predictor, scores, on decoded batches of the worker's size
  model    torch's own recurrent module on the same batches and device, in the same tiles, with the same threads
  path     from a full topic to committed scores, offsets and saved rows, by the production worker
  read     the Kafka client reading and the codec decoding the same messages, and nothing else
  naive    one message at a time on one thread: poll, unpack, GET of 8 hidden states, torch GRU and head, SET; without
           a transaction and without scoring

There are also the ratios engine_over_model, path_over_naive and path_over_model; latency_ms_p50 and latency_ms_p99,
from a record's arrival in Kafka (the broker's clock) to its committed score at half of the path's rate (latency_rate is
the rate actually offered); and path_stages, each worker stage's share of the path's time.

--json writes {"t1": {...}, "t16": {...}, "machine": {...}, "versions": {...}}. The figures directly under t1 and t16
are for the full "single" row (fast weights, time-of-day memory); t1.jump and t1.light hold engine, model, path and
their ratios for the "jump" row and the light row (whose model has hidden size 32). Null means not measured.

[kafka], [redis] and [engine] of the settings count. Where these name both servers (or KAFKA_BOOTSTRAP_SERVERS and
REDIS_URL do), those are used, else embedded ones. Topics, groups and keys of the benchmark have names of their own and
are removed afterwards. Other work on the machine distorts the rates, but hardly the engine_over_model ratios.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import platform
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from pydantic import SecretStr
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pipeline.bench.engine import NaiveNetwork, compute_rates
from pipeline.bench.kafka import fill, offering, plain_messages, remove, timestamps_ms
from pipeline.bench.learner import beside_a_learner
from pipeline.bench.naive import NaiveLoop
from pipeline.bench.path import Drive, Ends, PathRate, latencies_ms, read_rate
from pipeline.bench.redis import RedisHiddenStates, forget
from pipeline.bench.report import LengthFigures, Machine, RowFigures, table, versions
from pipeline.bench.traffic import FEATURES, INTERVAL_MS, Traffic
from pipeline.errors import ConfigurationError
from pipeline.output_files import make_ready
from pipeline.profile import Profile
from pipeline.records import StepStats
from pipeline.registry import Registry
from pipeline.servers import EmbeddedKafka, EmbeddedRedis, create_topics
from pipeline.settings import Settings
from pipeline.settings_option import add_settings_option
from pipeline.state.redis import RedisStateStore
from pipeline.wiring import (
    apply_threads,
    build_engine,
    build_messages,
    build_source,
    build_worker,
    choose_device,
    fold_threads,
    gpu_name,
    settle_memory,
)

EXAMPLES = """\
examples:
  tidewatch bench --quick
  tidewatch bench --quick --json runs/bench.json
  tidewatch bench --learner
"""

LENGTHS = (1, 16)
_OPEN_REDIS = dict.fromkeys(("username", "password", "ca_file", "cert_file", "key_file"))
PARTITIONS = 4
NAIVE_WARM_UP = 200
TURNS = 3


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    Attributes
    ----------
    compute_s, path_s, latency_s, read_s, naive_s
        About how long each figure is taken for; those of the path by the engine's rate.
    min_rounds, max_messages
        Bounds of the topic, whatever the engine's rate.
    """

    streams: int
    compute_s: float
    path_s: float
    latency_s: float
    read_s: float
    naive_s: float
    min_rounds: int
    max_messages: int


QUICK = Effort(10_000, 4.0, 8.0, 6.0, 3.0, 3.0, 1, 150_000)
THOROUGH = Effort(10_000, 20.0, 40.0, 30.0, 10.0, 15.0, 2, 1_500_000)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "--quick", action="store_true", help="take under three minutes on two cores instead of about ten"
    )
    parser.add_argument(
        "--learner",
        action="store_true",
        help="measure only what a learner costs the worker beside it, on embedded servers",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    add_settings_option(parser)
    parser.add_argument("--streams", type=int, help=f"number of streams (default: {QUICK.streams})")


def run(args: argparse.Namespace) -> int:
    """Measure, show, write; returns the exit code.

    Raises
    ------
    ConfigurationError
        No streams, or a file that cannot be written.
    """
    if args.streams is not None and args.streams < 1:
        raise ConfigurationError("--streams must be at least 1")
    if args.json is not None:
        make_ready(args.json)
    if args.learner:
        logging.getLogger("kafka").setLevel(logging.ERROR)
        apply_threads()
        return beside_a_learner(Console(highlight=False), lambda settings: build_worker(settings, _nobody))
    effort = QUICK if args.quick else THOROUGH
    if args.streams is not None:
        effort = replace(effort, streams=args.streams)
    console = Console()
    logging.getLogger("kafka").setLevel(logging.ERROR)
    load_before = os.getloadavg()[0]
    settings = Settings.load(args.settings)
    apply_threads()
    figures = measure(settings, effort, console)
    for length, found in figures.items():
        console.print(table(f"windows of {length} x {FEATURES}", found))
    if args.json is not None:
        gpu = gpu_name(choose_device(settings.engine.device))
        machine = Machine(_processor(), os.cpu_count() or 1, fold_threads(settings), round(load_before, 2), gpu)
        content = {f"t{length}": found.as_json() for length, found in figures.items()}
        content |= {"machine": machine.as_json(), "versions": versions()}
        args.json.write_text(json.dumps(content, indent=1) + "\n")
        console.print(f"written to {args.json}")
    return 0


def measure(settings: Settings, effort: Effort, console: Console) -> dict[int, LengthFigures]:
    """All figures, by window length, with servers of the settings or embedded ones."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(*columns, console=console, transient=True))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tidewatch-bench-")))
        servers = stack.enter_context(_servers(settings, folder, progress))
        return {length: _Length(servers, effort, length, folder, progress).figures() for length in LENGTHS}


@contextmanager
def _servers(settings: Settings, folder: Path, progress: Progress) -> Iterator[Settings]:
    """The settings with servers that answer: those named, else embedded ones for as long as the block lasts."""
    if {"bootstrap_servers"} <= settings.kafka.model_fields_set and {"url"} <= settings.redis.model_fields_set:
        if settings.kafka.security.protocol != "PLAINTEXT":
            raise ConfigurationError("the benchmark makes its own topics and talks to an open Kafka only")
        yield settings
        return
    task = progress.add_task("starting Kafka and Redis")

    def say(message: str) -> None:
        progress.update(task, description=message)

    with EmbeddedRedis(folder / "redis", progress=say) as redis, EmbeddedKafka(folder / "kafka", progress=say) as kafka:
        progress.remove_task(task)
        yield settings.model_copy(
            update={
                "kafka": settings.kafka.model_copy(update={"bootstrap_servers": (kafka.address,)}),
                "redis": settings.redis.model_copy(update={**_OPEN_REDIS, "url": SecretStr(redis.address)}),
            }
        )


class _Length:
    """Everything measured for windows of one length, on topics and keys of its own."""

    def __init__(self, settings: Settings, effort: Effort, length: int, folder: Path, progress: Progress) -> None:
        self._settings, self._effort, self._folder, self._progress = settings, effort, folder, progress
        self._traffic = Traffic(effort.streams, length, PARTITIONS)
        self._name = f"tidewatch-bench-{secrets.token_hex(4)}-t{length}"
        self._bootstrap = list(settings.kafka.bootstrap_servers)
        self._redis_url = settings.redis.address().get_secret_value()
        self._found = LengthFigures()

    def figures(self) -> LengthFigures:
        """Measure all of it."""
        for kind in PROFILES:
            self._engine_and_model(kind, getattr(self._found, kind))
        for kind in PROFILES:
            self._through_servers(kind, getattr(self._found, kind))
        return self._found

    def _through_servers(self, kind: str, figures: RowFigures) -> None:
        """What needs Kafka and Redis, on topics and keys of its own that are removed afterwards."""
        topic = f"{self._name}-{kind}"
        topics = {topic: PARTITIONS, f"{topic}-scores": 1, f"{topic}-alerts": 1, f"{topic}-dead": 1}
        # The broker's own time of arrival: what latency is counted from.
        create_topics(",".join(self._bootstrap), topics, {"message.timestamp.type": "LogAppendTime"})
        try:
            first, ends = self._traffic.ends(topic, 1), self._traffic.ends(topic, 1 + self._rounds)
            self._path(kind, first, figures)
            if kind == "single":
                self._read(first, ends)
        finally:
            remove(self._bootstrap, list(topics), [topic, f"{topic}-read"])

    @property
    def _rounds(self) -> int:
        """Rounds that the engine would need about ``path_s`` for."""
        per_round = self._traffic.streams * self._traffic.values_per_message
        wanted = round(self._effort.path_s * (self._found.single.engine or 0.0) / per_round)
        most = self._effort.max_messages // self._traffic.streams
        return max(1, min(max(self._effort.min_rounds, wanted), most))

    def _settings_of(self, kind: str) -> Settings:
        topic = f"{self._name}-{kind}"
        kafka = self._settings.kafka.model_copy(
            update={
                "group": topic,
                "scores_topic": f"{topic}-scores",
                "alerts_topic": f"{topic}-alerts",
                "dead_letter_topic": f"{topic}-dead",
                "worker_name": None,
                "static_membership": False,
                "start": "earliest",
            }
        )
        registry = self._settings.registry.model_copy(update={"folder": self._folder / "registry"})
        profile = PROFILES[kind].model_copy(update={"topics": (topic,)})
        return self._settings.model_copy(update={"kafka": kafka, "registry": registry, "profiles": {kind: profile}})

    def _engine_and_model(self, kind: str, figures: RowFigures) -> None:
        settings = self._settings_of(kind)
        profile = settings.profiles[kind]
        registry = Registry(settings.registry.folder)
        predictor = profile.builtin() or profile.predictor
        version = registry.ensure(kind, predictor, profile.fold())
        engine = build_engine(settings, registry, kind, choose_device(settings.engine.device))
        length = self._traffic.length
        per_batch = min(settings.kafka.max_poll_records, settings.engine.max_batch_observations // length)
        with self._says(f"{kind}: engine and recurrent network alone"):
            rates = compute_rates(
                engine,
                version,
                self._traffic,
                per_batch,
                self._effort.compute_s,
                fold_threads(settings),
            )
        figures.engine, figures.model = rates.engine, rates.model

    def _read(self, first: Ends, ends: Ends) -> None:
        settings = self._settings_of("single")
        kafka = settings.kafka.model_copy(update={"group": f"{settings.kafka.group}-read"})
        most, seconds = kafka.max_poll_records, self._effort.read_s
        with (
            self._says("reading and decoding alone"),
            closing(build_source(settings.model_copy(update={"kafka": kafka}), "read")) as source,
        ):
            rate = read_rate(source, build_messages(settings), "single", first, ends, most, seconds)
        self._found.read = rate * self._traffic.values_per_message

    def _path(self, kind: str, first: Ends, figures: RowFigures) -> None:
        """The worker starts every stream, then meets a full topic, then a steady flow."""
        settings = self._settings_of(kind)
        topic = settings.profiles[kind].topics[0]
        self._fill(topic, -1, self._traffic.streams)
        worker = build_worker(settings, _nobody)
        drive = Drive(worker)
        settle_memory()
        try:
            with self._says(f"{kind}: the first observation of {self._traffic.streams} streams"):
                drive.until(first)
            self._fill(topic, 0, self._rounds * self._traffic.streams)
            rate = self._path_and_naive(drive, first) if kind == "single" else self._path_alone(drive, kind)
            figures.path = rate.messages_per_s * self._traffic.values_per_message
            figures.path_stages = rate.stages
            if kind == "single":
                self._latency(drive, topic, self._rounds, 0.5 * rate.messages_per_s)
        finally:
            gc.unfreeze()
            worker.stop()
            with closing(RedisStateStore.connect(self._redis_url)) as store:
                forget(self._redis_url, store.keys(settings.kafka.group))

    def _path_alone(self, drive: Drive, kind: str) -> PathRate:
        rate = PathRate()
        with self._says(f"{kind}: the whole path"):
            rate.stretch(drive, (1 + self._rounds) * self._traffic.streams)
        return rate

    def _path_and_naive(self, drive: Drive, first: Ends) -> PathRate:
        """Path and naive loop by turns over the same messages, so that both meet the same neighbours."""
        count = self._rounds * self._traffic.streams
        rate = PathRate()
        with (
            closing(RedisHiddenStates(self._redis_url, f"{self._name}:")) as states,
            closing(plain_messages(self._bootstrap, first)) as messages,
        ):
            naive = NaiveLoop(islice(messages, count), states, NaiveNetwork().step)
            naive.warm_up(min(NAIVE_WARM_UP, count // 2))
            for turn in range(1, TURNS + 1):
                with self._says(f"the naive loop, {turn} of {TURNS}"):
                    naive.run(self._effort.naive_s / TURNS)
                with self._says(f"single: the whole path, {turn} of {TURNS}"):
                    rate.stretch(drive, self._traffic.streams + count * turn // TURNS)
        self._found.naive = naive.rate
        return rate

    def _fill(self, topic: str, first_round: int, count: int) -> None:
        with self._says(f"filling a topic with {count} messages"):
            fill(self._bootstrap, topic, self._traffic.messages(first_round), count)

    def _latency(self, drive: Drive, topic: str, rounds: int, rate: float) -> None:
        """Offer messages at ``rate``, behind what the worker has done already."""
        count = max(PARTITIONS, round(rate * self._effort.latency_s))
        ends, offered = self._traffic.ends(topic, 1 + rounds), self._traffic.ends_after(topic, rounds, count)
        with (
            self._says("latency at half of that rate"),
            offering(self._bootstrap, topic, self._traffic, rounds, rate, count),
        ):
            drive.until(offered)
        arrived = {p: np.array(timestamps_ms(self._bootstrap, p, ends[p], end)) for p, end in offered.items()}
        waited = np.concatenate([latencies_ms(drive.history, p, ends[p], times) for p, times in arrived.items()])
        every = np.concatenate(list(arrived.values()))
        self._found.latency_ms_p50, self._found.latency_ms_p99 = (float(q) for q in np.quantile(waited, (0.5, 0.99)))
        seconds = max(0.001, (every.max() - every.min()) / 1000)
        self._found.latency_rate = len(every) * self._traffic.values_per_message / seconds

    @contextmanager
    def _says(self, what: str) -> Iterator[None]:
        task = self._progress.add_task(f"T={self._traffic.length}: {what}", total=None)
        began = time.monotonic()
        yield
        self._progress.remove_task(task)
        self._progress.console.print(f"T={self._traffic.length}: {what}, {time.monotonic() - began:.1f} s", style="dim")


def _profile(kind: str) -> Profile:
    return Profile(
        topics=("unbound",),
        features=tuple(f"feature-{number}" for number in range(FEATURES)),
        interval_s=INTERVAL_MS / 1000,
        evidence="jump" if kind == "jump" else "single",
        light=kind == "light",
    )


PROFILES = {kind: _profile(kind) for kind in ("single", "jump", "light")}


def _nobody(stats: StepStats) -> None:
    """Nobody listens to the worker."""


def _processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
