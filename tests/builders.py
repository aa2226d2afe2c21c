"""Valid by default, override what the test is about: profiles, weights, worlds with a worker in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import count

import numpy as np
import torch

from models.config import PredictorConfig
from models.pretrained import Weights
from models.step import Scorer
from pipeline.batcher import Batcher
from pipeline.engine import Engine
from pipeline.errors import VersionError
from pipeline.memory import MemoryBroker
from pipeline.messages import Messages
from pipeline.profile import Profile
from pipeline.records import Alert, DeadLetter, Partition, StepStats
from pipeline.resident import ResidentRows
from pipeline.settings import Limits
from pipeline.sinks.memory import MemorySink
from pipeline.sources.memory import MemorySource
from pipeline.state.memory import MemoryStateStore
from pipeline.wire import decode_alert, decode_dead_letter, decode_scores, encode_packed
from pipeline.worker import Pace, Worker

START_MS = 1_700_000_000_000
INTERVAL_MS = 60_000
VERSION_A, VERSION_B = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
GROUP = "tests"


@dataclass
class FakeClock:
    """Time that a test advances; every look moves it on by ``tick_s``, so that waiting ends."""

    now_s: float = 1000.0
    tick_s: float = 0.01

    def monotonic(self) -> float:
        self.now_s += self.tick_s
        return self.now_s

    def wall_ms(self) -> int:
        return START_MS + int(self.now_s * 1000)

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


def make_profile(**changes: object) -> Profile:
    """One feature, one minute, topic ``input``, an alarm budget loose enough to see alerts."""
    settings: dict[str, object] = {
        "topics": ["input"],
        "features": ["value"],
        "interval_s": 60,
        "alarm_budget": "1 per day",
    }
    return Profile(**{**settings, **changes})  # type: ignore[arg-type]


def make_pace(**changes: object) -> Pace:
    """Sixteen records at a time, everything else at the defaults of the settings."""
    settings: dict[str, object] = {
        "group": GROUP,
        "start": "earliest",
        "commit_interval_s": 0.5,
        "max_uncommitted_records": 20_000,
        "max_poll_records": 16,
        "save_interval_s": 5.0,
        "max_watermark_age_s": 60.0,
    }
    return Pace(**{**settings, **changes})  # type: ignore[arg-type]


@cache
def tiny_weights(seed: int = 0) -> Weights:
    """An untrained GRU of four: real formulas, little arithmetic."""
    return Weights.random(PredictorConfig(hidden=4), seed)


def make_scorer(profile: Profile, seed: int = 0) -> Scorer:
    """A scorer of the tiny predictor under a profile's settings."""
    return Scorer(tiny_weights(seed), profile.fold())


def make_series(seed: int, length: int, spikes: int = 2) -> np.ndarray:
    """A noisy wave ``(length, 1)`` with a few spikes after warm-up: enough to open and resolve alerts."""
    random = np.random.default_rng(seed)
    wave = np.sin(np.arange(length) / 7.0 + seed) + 0.1 * random.standard_normal(length)
    for at in random.integers(120, max(length - 20, 121), spikes):
        wave[at : at + 3] += 8.0
    return wave[:, None].astype(np.float32)


@dataclass(frozen=True)
class Output:
    """What a read-committed reader sees: scores by (stream, time), alert events in order, dead letters."""

    scores: dict[tuple[str, int], float]
    verdicts: dict[tuple[str, int], int]
    versions: dict[tuple[str, int], str]
    partial: dict[tuple[str, int], bool]
    duplicates: int
    alerts: list[Alert]
    dead_letters: list[DeadLetter]

    @property
    def decisions(self) -> list[tuple[str, str, str, int]]:
        """Alert events without their numbers, in the order of each stream."""
        return sorted((a.stream_id, a.alert_id, a.event, a.time_ms) for a in self.alerts)


@dataclass
class World:
    """An in-memory Kafka and store, and workers that come and go in it.

    Attributes
    ----------
    target
        The version that the registry names, or why it cannot be read.
    source
        Makes the consumer of a worker.
    workers
        All that there were, in their order, each with its consumer and its engine.
    """

    profile: Profile = field(default_factory=make_profile)
    partitions: int = 2
    max_streams: int = 64
    pace: Pace = field(default_factory=make_pace)
    target: str | Exception = VERSION_A
    seeds: Mapping[str, int] = field(default_factory=lambda: {VERSION_A: 0, VERSION_B: 1})
    hidden: str = "carry"
    store: MemoryStateStore = field(default_factory=MemoryStateStore)
    source: Callable[[MemoryBroker, str, list[str]], MemorySource] = MemorySource
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    clock: FakeClock = field(default_factory=FakeClock)
    stats: list[StepStats] = field(default_factory=list)
    ids: Iterator[int] = field(default_factory=count)
    workers: dict[Worker, tuple[MemorySource, Engine]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for topic, partitions in (("input", self.partitions), ("scores", 1), ("alerts", 1), ("dead", 1)):
            self.broker.create_topic(topic, partitions)

    def produce(
        self, stream: str, values: np.ndarray, start_ms: int = START_MS, cuts: Callable[[int], int] = lambda at: 4
    ) -> None:
        """Send a stream's values ``(T, F)`` as packed windows of ``cuts(position)`` observations."""
        at = 0
        while at < len(values):
            length = max(1, cuts(at))
            times = start_ms + INTERVAL_MS * np.arange(at, min(at + length, len(values)))
            self.send(stream, encode_packed(stream, times, values[at : at + length]), int(times[-1]))
            at += length

    def send(self, stream: str, value: bytes, timestamp_ms: int = START_MS) -> int:
        """Append one record keyed by its stream."""
        return self.broker.append("input", stream.encode(), value, timestamp_ms=timestamp_ms)

    def load(self, version: str) -> Scorer:
        """The scorer of a version; known ones only."""
        if version not in self.seeds:
            raise VersionError(f"no version {version}")
        return make_scorer(self.profile, self.seeds[version])

    def served(self, profile: str) -> str:
        """What the registry says when it is asked."""
        if isinstance(self.target, Exception):
            raise self.target
        return self.target

    def worker(self, name: str = "w") -> Worker:
        """A new process: nothing remembered but its name."""
        source = self.source(self.broker, GROUP, ["input"])
        engine = Engine("p", self.profile, self.load, self.max_streams, hidden=self.hidden)
        worker = Worker(
            source,
            MemorySink(self.broker, f"{GROUP}.{name}"),
            self.store,
            {"p": engine},
            {"input": "p"},
            self.served,
            Messages({"p": self.profile}, Limits(max_clock_skew_s=None), "scores", "alerts", "dead"),
            Batcher(64),
            self.pace,
            self.clock,
            self.stats.append,
            lambda: f"{next(self.ids):016x}",
        )
        self.workers[worker] = source, engine
        return worker

    def crash(self, *workers: Worker) -> None:
        """These die, with nothing committed, saved or closed: their sessions run out."""
        for worker in workers:
            self.workers[worker][0].expel()

    def rows(self, worker: Worker) -> ResidentRows:
        """The only table of a worker's rows."""
        (table,) = self.workers[worker][1].tables()
        return table

    def run(self, *workers: Worker, max_steps: int = 600) -> None:
        """Step these in turn until every record is committed."""
        for _ in range(max_steps):
            for worker in workers:
                worker.step()
            if self.is_done():
                return
        raise AssertionError(f"not done after {max_steps} steps")

    def is_done(self) -> bool:
        """Whether the group's committed offsets are at the ends of the input."""
        with suppress(Exception):
            return all(
                (found := self.broker.committed(GROUP, partition)) is not None and found.offset >= self.last(partition)
                for partition in self.broker.partitions_of("input")
            )
        return False

    def last(self, partition: Partition) -> int:
        """One past the last record of an input partition."""
        return max(
            (record.offset + 1 for record in self.broker.read(partition, self.broker.bounds(partition)[0])), default=0
        )

    def output(self) -> Output:
        """What left, as a read-committed reader sees it."""
        scores: dict[tuple[str, int], float] = {}
        verdicts, versions, partial = {}, {}, {}
        seen = 0
        for record in self.broker.visible("scores"):
            batch = decode_scores(record.value or b"")
            windows = np.repeat(np.arange(len(batch.stream_ids)), batch.lengths)
            for cell, window in enumerate(windows.tolist()):
                place = (batch.stream_ids[window], int(batch.times_ms[cell]))
                scores[place] = float(batch.score[cell])
                verdicts[place] = int(batch.verdict[cell])
                versions[place] = batch.model_version
                partial[place] = bool(batch.partial[window])
                seen += 1
        alerts = [decode_alert(record.value or b"") for record in self.broker.visible("alerts")]
        letters = [decode_dead_letter(record.value or b"") for record in self.broker.visible("dead")]
        return Output(scores, verdicts, versions, partial, seen - len(scores), alerts, letters)


def assert_same_output(found: Output, expected: Output, tolerance: float = 1e-3) -> None:
    """Every score exactly once and equal within ``tolerance``; alert events identical."""
    assert found.duplicates == 0, f"{found.duplicates} scores left twice"
    assert found.scores.keys() == expected.scores.keys()
    places = sorted(expected.scores)
    ours = np.array([found.scores[place] for place in places])
    theirs = np.array([expected.scores[place] for place in places])
    np.testing.assert_allclose(ours, theirs, atol=tolerance)
    assert found.decisions == expected.decisions


torch.set_num_threads(1)
