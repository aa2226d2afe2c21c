"""The nouns that travel from topic to alert."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

CONTROL_NONE, CONTROL_RESET, CONTROL_FORGET = 0, 1, 2
VERDICTS = ("normal", "anomalous", "warming_up", "missing")
NORMAL, ANOMALOUS, WARMING_UP, MISSING = range(len(VERDICTS))
EVENTS = ("", "opened", "updated", "resolved")
DISPLACEMENT_SIGNAL = "displacement"
BESIDE_OTHERS = ("values", "means")
WITH_USUAL_LEVEL = (DISPLACEMENT_SIGNAL, *BESIDE_OTHERS)
"""Signals whose alerts name a usual level: where a feature used to be, or would be beside the others as they are."""
OPENED, RESOLVED = 1, 3
NO_OFFSET = np.iinfo(np.int64).max


class Partition(NamedTuple):
    """A topic partition: the unit of ownership."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}"


class Record(Protocol):
    """One Kafka message, undecoded; kafka-python's ConsumerRecord is one as it is."""

    @property
    def offset(self) -> int:
        """Place in the partition."""
        ...

    @property
    def timestamp(self) -> int:
        """Kafka's timestamp, ms since the epoch."""
        ...

    @property
    def key(self) -> bytes | None:
        """The stream id, where the producer gave one."""
        ...

    @property
    def value(self) -> bytes | None:
        """The window; ``None`` is a tombstone."""
        ...


class StoredRecord(NamedTuple):
    """A record that did not come from Kafka (recordings, the in-memory log)."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Windows:
    """Decoded windows of one partition, in offset order, as columns.

    W windows hold N observations in all. A control record (reset, forget) is a window of length 0.

    Attributes
    ----------
    stream_ids
        W stream ids.
    offsets, record_ms, lengths
        ``(W,)`` int64: Kafka offset and timestamp, and number of observations T of each window.
    silent
        ``(W,)`` bool: absorbed without output.
    control
        ``(W,)`` uint8: CONTROL_NONE, CONTROL_RESET or CONTROL_FORGET.
    times_ms
        ``(N,)`` int64 event times, ms since the epoch, strictly increasing inside a window.
    values
        ``(N, F)`` float32, NaN where missing.
    """

    stream_ids: list[str]
    offsets: Int64
    record_ms: Int64
    lengths: Int64
    silent: Bool
    control: UInt8
    times_ms: Int64
    values: Float32

    def __len__(self) -> int:
        return len(self.stream_ids)

    def part(self, begin: int, end: int) -> Windows:
        """Windows ``begin`` to ``end`` (views, no copies)."""
        first, last = int(self.lengths[:begin].sum()), int(self.lengths[:end].sum())
        cut = slice(begin, end)
        return Windows(
            self.stream_ids[cut],
            self.offsets[cut],
            self.record_ms[cut],
            self.lengths[cut],
            self.silent[cut],
            self.control[cut],
            self.times_ms[first:last],
            self.values[first:last],
        )

    def only(self, kept: Bool) -> Windows:
        """Windows where ``kept`` ``(W,)`` is true, as copies; itself where all are."""
        if kept.all():
            return self
        cells, numbers = np.repeat(kept, self.lengths), np.flatnonzero(kept)
        return Windows(
            [self.stream_ids[number] for number in numbers.tolist()],
            self.offsets[numbers],
            self.record_ms[numbers],
            self.lengths[numbers],
            self.silent[numbers],
            self.control[numbers],
            self.times_ms[cells],
            self.values[cells],
        )


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that could not be used, with its place and the reason."""

    partition: Partition
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    reason: str


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one partition and batch, as columns; what leaves on the scores topic as one record.

    W windows with S scored observations in all, in the order of the record; the observations of a window are adjacent.

    Attributes
    ----------
    stream_ids
        W stream ids.
    offsets, lengths
        ``(W,)`` int64: position of the window and how many of its observations were scored.
    times_ms
        ``(S,)`` int64 event times.
    score, threshold
        ``(S,)`` float32, -log10 p; NaN score where every value was missing.
    verdict
        ``(S,)`` uint8 index into VERDICTS.
    signal
        ``(S,)`` uint8 index into ``signals``: which evidence was strongest.
    feature
        ``(S,)`` int16 index of the strongest feature, -1 for an entity signal.
    imputed
        ``(S,)`` float32, share of the observation's values that were missing.
    partial
        ``(W,)`` bool: the stream has not warmed up again after an inexact rebuild (protocol.md rule 22).
    """

    partition: Partition
    profile: str
    model_version: str
    signals: tuple[str, ...]
    stream_ids: list[str]
    offsets: Int64
    lengths: Int64
    times_ms: Int64
    score: Float32
    threshold: Float32
    verdict: UInt8
    signal: UInt8
    feature: npt.NDArray[np.int16]
    imputed: Float32
    partial: Bool


@dataclass(frozen=True, slots=True)
class FeatureEvidence:
    """What one feature contributed to an alert: raw units, band = 1 and 99 % points of the one-step mixture.

    ``usual`` is the level of :data:`WITH_USUAL_LEVEL`; ``None`` for other signals.
    """

    name: str
    observed: float | None
    expected: float
    band: tuple[float, float]
    nats: float
    usual: float | None = None


@dataclass(frozen=True, slots=True)
class Alert:
    """One event of an alert's life: opened, updated or resolved. Upsert by ``alert_id``."""

    alert_id: str
    event: str
    profile: str
    stream_id: str
    group: str | None
    partition: Partition
    offset: int
    index: int
    time_ms: int
    onset_offset: int
    onset_ms: int
    score: float
    peak_score: float
    threshold: float
    severity: str
    verdict: str
    signal: str
    direction: str
    features: tuple[FeatureEvidence, ...]
    imputed_share: float
    model_version: str
    state: str = "full"
    gate: float | None = None
    forecast_8: float | None = None
    forecast_4: float | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """What a partition's committed offset carries (protocol.md rule 10)."""

    offset: int
    incarnation: str
    origin: int
    history: tuple[tuple[int, str], ...] = field(default=())
    inexact_from: int | None = None


@dataclass(slots=True)
class StepStats:
    """What one step of the worker did, for whoever listens (metrics, progress). Counts are of this step only.

    ``seconds`` holds the stages poll, decode, load, score, emit and commit; ``latency_s`` the time from a record's
    Kafka timestamp to its committed score, oldest and newest record of a commit.
    """

    profile_observations: dict[str, int] = field(default_factory=dict)
    records: int = 0
    windows: int = 0
    batch_observations: int = 0
    late: dict[str, int] = field(default_factory=dict)
    missing_values: dict[str, int] = field(default_factory=dict)
    skipped_windows: int = 0
    silent_observations: int = 0
    scores: dict[str, int] = field(default_factory=dict)
    alerts: list[Alert] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    commits: int = 0
    restarts: dict[str, int] = field(default_factory=dict)
    latency_s: tuple[float, float] | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str, monotonic: Callable[[], float]) -> Iterator[None]:
        """Add what the block takes to a stage's seconds, unless it raises."""
        began_s = monotonic()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + monotonic() - began_s


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """How a worker stands, between two steps, for whoever shows it (metrics, readiness).

    Attributes
    ----------
    partitions
        How many assigned partitions are in each state.
    lag
        Records behind the end of the log, by profile; as of a few seconds ago at most while Kafka answers.
    rows_resident, rows_evicted
        Streams on the device now, and evicted since the tables were made, by profile.
    unsaved_age_s
        Seconds that the oldest state not yet saved has waited, as a row on the device or as an image on its way to the
        store: about what a successor would replay.
    model_versions
        Versions with resident rows, or to be served, by profile.
    waiting_for
        ``assignment``, ``kafka``, ``redis`` or ``registry``; ``None`` while at work.
    """

    partitions: dict[str, int]
    lag: dict[str, int]
    rows_resident: dict[str, int]
    rows_evicted: dict[str, int]
    unsaved_age_s: float
    model_versions: dict[str, tuple[str, ...]]
    waiting_for: str | None
