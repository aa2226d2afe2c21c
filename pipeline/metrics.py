"""Every Prometheus metric. What the worker reports becomes counters; how it stands becomes gauges.

Base units, prefix ``anomaly_``, and labels from small closed sets only: profiles (settings), severities, events,
stages, states, servers, and classes of reasons. Never a stream id: ten thousand streams would be ten thousand series.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from pipeline.records import EVENTS, StepStats, WorkerStatus

STAGES = ("poll", "decode", "load", "score", "emit", "commit")
SEVERITIES = ("warning", "critical")
PARTITION_STATES = ("assigned", "replaying", "live", "gone")
WAITING_FOR = ("assignment", "kafka", "redis", "registry")
RESTARTS = ("rebalance", "outcome unknown", "commit refused", "state lost", "row ahead", "stale token", "offsets gone")

_SIZES = tuple(float(4**power) for power in range(10))  # 1 to 262,144
_STAGE_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_COMMIT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0)

# First match counts; the reasons are those of pipeline.wire.
_REASONS = (
    ("clock_skew", re.compile(r"max_clock_skew_s|max_event_age_s")),
    ("too_large", re.compile(r"max_message_bytes|max_window_length")),
    ("undecodable", re.compile(r"not MessagePack|Invalid JSON|malformed|empty value|packed window")),
    ("stream_id", re.compile(r"stream id|neither value nor key|tombstone")),
    ("features", re.compile(r"the profile('s| has)")),
    ("schema", re.compile(r"^schema |is of type|^flags |^[\w.]+: ")),
    ("values", re.compile(r"float32|no observations|has no values")),
    ("times", re.compile(r"times?\b|\bstart|interval")),
)
REASON_CLASSES = (*(name for name, _ in _REASONS), "other")
_STREAM = re.compile(r"^stream (['\"]).*?\1: ")


def reason_class(reason: str) -> str:
    """Sort a dead letter's reason into one of :data:`REASON_CLASSES`, so that it can be a label."""
    text = _STREAM.sub("", reason)
    return next((name for name, pattern in _REASONS if pattern.search(text)), "other")


class Metrics:
    """All metrics of one process.

    Parameters
    ----------
    registry
        Where they are registered; a new one, with the process's own CPU and memory, where none is given.
    now_s
        Seconds since the epoch.
    """

    def __init__(self, registry: CollectorRegistry | None = None, now_s: Callable[[], float] = time.time) -> None:
        if registry is None:
            registry = CollectorRegistry(auto_describe=True)
            ProcessCollector(registry=registry)
        self.registry = registry
        self._now_s = now_s
        self._evicted: dict[str, int] = {}
        self._versions: set[tuple[str, str]] = set()
        self._make_input_counters()
        self._make_output_counters()
        self._make_timings()
        self._make_gauges()

    def _counter(self, name: str, text: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(f"anomaly_{name}", text, tuple(labels), registry=self.registry)

    def _gauge(self, name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
        return Gauge(f"anomaly_{name}", text, tuple(labels), registry=self.registry)

    def _make_input_counters(self) -> None:
        self._messages = self._counter("messages", "Records read from input topics.")
        self._windows = self._counter("windows", "Windows absorbed.")
        self._skipped = self._counter("windows_skipped", "Windows skipped because their row contains them already.")
        self._observations = self._counter("observations", "Event times of streams folded.", ["profile"])
        self._silent = self._counter("observations_silent", "Event times folded without output (replay, warm-up).")
        self._late = self._counter("observations_late", "Late or repeated event times, not folded.", ["profile"])
        self._missing = self._counter("values_imputed", "Missing values, replaced by expectation.", ["profile"])
        self._dead = self._counter("dead_letters", "Records that could not be used, by class of reason.", ["reason"])
        for reason in REASON_CLASSES:
            self._dead.labels(reason)

    def _make_output_counters(self) -> None:
        self._scores = self._counter("scores", "Scores emitted.", ["profile"])
        self._alerts = self._counter("alerts", "Alert events emitted.", ["profile", "severity", "event"])
        self._commits = self._counter("commits", "Transactions committed.")
        self._restarts = self._counter("partition_restarts", "Times partitions were started again.", ["reason"])
        for reason in RESTARTS:
            self._restarts.labels(reason)
        self._rows_evicted = self._counter("rows_evicted", "Streams evicted to Redis to make room.", ["profile"])

    def _make_timings(self) -> None:
        self._batch = Histogram(
            "anomaly_batch_observations",
            "Observations folded in one step, where there were any.",
            buckets=_SIZES,
            registry=self.registry,
        )
        self._stage = Histogram(
            "anomaly_stage_duration_seconds",
            "Time of one stage in one step.",
            ["stage"],
            buckets=_STAGE_S,
            registry=self.registry,
        )
        for stage in STAGES:
            self._stage.labels(stage)
        self._latency = Histogram(
            "anomaly_record_to_commit_seconds",
            "From a record's Kafka timestamp to its committed score: oldest and newest record of each commit.",
            ["record"],
            buckets=_COMMIT_S,
            registry=self.registry,
        )
        self._oldest, self._newest = self._latency.labels("oldest"), self._latency.labels("newest")

    def _make_gauges(self) -> None:
        self._up = self._gauge("up", "1 while the worker works, 0 while it waits.")
        self._waiting = self._gauge("waiting_for", "1 for what the worker waits for.", ["server"])
        self._partitions = self._gauge("partitions", "Assigned partitions by state.", ["state"])
        self._lag = self._gauge("lag_records", "Records between the committed offsets and the ends.", ["profile"])
        self._rows = self._gauge("rows_resident", "Streams with rows on the device.", ["profile"])
        self._unsaved_age = self._gauge(
            "unsaved_age_seconds", "How long the oldest state not yet saved to Redis has waited for that."
        )
        self._last_commit = self._gauge("last_commit_timestamp_seconds", "When this worker last committed; 0: never.")
        self._budget = self._gauge(
            "alarm_budget_per_second", "False alarms that a profile allows each stream, per second.", ["profile"]
        )
        self._model = self._gauge("model_info", "1 for each model version in use.", ["profile", "version"])

    def show_budgets(self, alarm_every_s: Mapping[str, float]) -> None:
        """Say what each profile promises: seconds of event time per stream and false alarm."""
        for profile, seconds in alarm_every_s.items():
            self._budget.labels(profile).set(1.0 / seconds)

    def observe(self, stats: StepStats) -> None:
        """Count what one step did."""
        self._messages.inc(stats.records)
        self._windows.inc(stats.windows)
        self._skipped.inc(stats.skipped_windows)
        self._silent.inc(stats.silent_observations)
        self._commits.inc(stats.commits)
        if stats.commits:
            self._last_commit.set(self._now_s())
        for counter, counts in (
            (self._observations, stats.profile_observations),
            (self._late, stats.late),
            (self._missing, stats.missing_values),
            (self._scores, stats.scores),
            (self._restarts, stats.restarts),
        ):
            for label, count in counts.items():
                counter.labels(label).inc(count)
        for alert in stats.alerts:
            self._alerts.labels(alert.profile, alert.severity, alert.event).inc()
        for letter in stats.dead_letters:
            self._dead.labels(reason_class(letter.reason)).inc()
        if stats.windows:
            self._batch.observe(stats.batch_observations)
        for stage, seconds in stats.seconds.items():
            self._stage.labels(stage).observe(seconds)
        if stats.latency_s is not None:
            oldest, newest = stats.latency_s
            self._oldest.observe(oldest)
            self._newest.observe(newest)

    def show(self, status: WorkerStatus) -> None:
        """Set the gauges to how the worker stands."""
        self._up.set(status.waiting_for is None)
        for server in WAITING_FOR:
            self._waiting.labels(server).set(server == status.waiting_for)
        for state in PARTITION_STATES:
            self._partitions.labels(state).set(status.partitions.get(state, 0))
        self._unsaved_age.set(status.unsaved_age_s)
        for profile, lag in status.lag.items():
            self._lag.labels(profile).set(lag)
        for profile, rows in status.rows_resident.items():
            self._rows.labels(profile).set(rows)
        for profile, evicted in status.rows_evicted.items():
            self._count_evicted(profile, evicted)
        self._show_versions({(profile, name) for profile, names in status.model_versions.items() for name in names})

    def _count_evicted(self, profile: str, evicted: int) -> None:
        """The worker's count begins again when a table is given up on a version change; ours goes on."""
        before = self._evicted.get(profile)
        if before is None:
            self._start_profile(profile)
        self._rows_evicted.labels(profile).inc(
            evicted - before if before is not None and evicted >= before else evicted
        )
        self._evicted[profile] = evicted

    def _start_profile(self, profile: str) -> None:
        """Zeros from the start, so that a rate sees the first alert."""
        for counter in (self._observations, self._late, self._missing, self._scores):
            counter.labels(profile)
        for severity in SEVERITIES:
            for event in filter(None, EVENTS):
                self._alerts.labels(profile, severity, event)

    def _show_versions(self, versions: set[tuple[str, str]]) -> None:
        for profile, version in self._versions - versions:
            self._model.remove(profile, version)
        for profile, version in versions - self._versions:
            self._model.labels(profile, version).set(1)
        self._versions = versions
