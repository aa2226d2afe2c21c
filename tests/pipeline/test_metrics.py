"""What the worker reports, as Prometheus sees it."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest

from pipeline.errors import TransientError
from pipeline.metrics import REASON_CLASSES, Metrics, reason_class
from pipeline.profile import Profile
from pipeline.records import DeadLetter, Partition, StepStats, StoredRecord, WorkerStatus
from pipeline.settings import Limits
from pipeline.wire import decode_many
from tests.alerts import make_alert

PLACE = Partition("sensor-windows", 0)


def make_status(**changed: object) -> WorkerStatus:
    """A worker of one profile that works and has nothing to report."""
    given: dict[str, object] = {
        "partitions": {"live": 2},
        "lag": {"sensor": 0},
        "rows_resident": {"sensor": 0},
        "rows_evicted": {"sensor": 0},
        "unsaved_age_s": 0.0,
        "model_versions": {"sensor": ("v1",)},
        "waiting_for": None,
    }
    return WorkerStatus(**(given | changed))  # type: ignore[arg-type]


class Seen:
    """Metrics in a registry of their own, read back by name."""

    def __init__(self) -> None:
        self.metrics = Metrics(CollectorRegistry())

    def value(self, name: str, **labels: str) -> float | None:
        """A sample's value; ``None`` where there is no such sample."""
        return self.metrics.registry.get_sample_value(f"anomaly_{name}", labels)


@pytest.fixture
def seen() -> Seen:
    """Fresh metrics."""
    return Seen()


def test_counts_add_up_over_steps(seen: Seen) -> None:
    """Counters are sums of what single steps did; a rate over them must be the true rate."""
    step = StepStats(profile_observations={"sensor": 10}, records=3, windows=2, commits=1, batch_observations=10)
    step.late["sensor"], step.missing_values["sensor"], step.scores["sensor"] = 1, 2, 7
    seen.metrics.observe(step)
    seen.metrics.observe(step)
    assert seen.value("messages_total") == 6
    assert seen.value("windows_total") == 4
    assert seen.value("commits_total") == 2
    assert seen.value("observations_total", profile="sensor") == 20
    assert seen.value("observations_late_total", profile="sensor") == 2
    assert seen.value("values_imputed_total", profile="sensor") == 4
    assert seen.value("scores_total", profile="sensor") == 14
    assert seen.value("batch_observations_count") == 2
    assert seen.value("batch_observations_sum") == 20


def test_alerts_are_counted_by_profile_severity_and_event(seen: Seen) -> None:
    """A dashboard tells opened from resolved, and warnings from critical ones."""
    seen.metrics.observe(
        StepStats(alerts=[make_alert(), make_alert(), make_alert(event="resolved", severity="critical")])
    )
    assert seen.value("alerts_total", profile="sensor", severity="warning", event="opened") == 2
    assert seen.value("alerts_total", profile="sensor", severity="critical", event="resolved") == 1


def test_no_series_ever_names_a_stream(seen: Seen) -> None:
    """Memory is bounded (invariant 7): a hundred streams make as many series as one."""

    def series() -> int:
        return sum(len(family.samples) for family in seen.metrics.registry.collect())

    def observe(stream_id: str) -> None:
        letter = DeadLetter(PLACE, 1, 1, None, b"", f"stream {stream_id!r}: no observations")
        seen.metrics.observe(StepStats(alerts=[make_alert(stream_id=stream_id)], dead_letters=[letter]))

    observe("s-0")
    before = series()
    for number in range(100):
        observe(f"s-{number}")
    assert series() == before
    assert b"s-1" not in generate_latest(seen.metrics.registry)


def test_stages_and_latencies_are_in_seconds(seen: Seen) -> None:
    """Base units, so that every dashboard reads them without a factor."""
    seen.metrics.observe(StepStats(seconds={"score": 0.25}, latency_s=(2.0, 0.5)))
    assert seen.value("stage_duration_seconds_sum", stage="score") == 0.25
    assert seen.value("record_to_commit_seconds_sum", record="oldest") == 2.0
    assert seen.value("record_to_commit_seconds_sum", record="newest") == 0.5


def test_an_idle_step_is_no_batch(seen: Seen) -> None:
    """Batch sizes describe batches; a worker that waits would drown them in zeros."""
    seen.metrics.observe(StepStats(seconds={"poll": 0.2}))
    assert seen.value("batch_observations_count") == 0


def test_waiting_is_visible_until_it_ends(seen: Seen) -> None:
    """With Redis away the worker says so, and takes it back."""
    seen.metrics.show(make_status(waiting_for="redis"))
    assert seen.value("up") == 0
    assert seen.value("waiting_for", server="redis") == 1
    seen.metrics.show(make_status())
    assert seen.value("up") == 1
    assert seen.value("waiting_for", server="redis") == 0


@pytest.mark.parametrize("kind", TransientError.__subclasses__())
def test_every_server_that_can_be_away_is_shown(seen: Seen, kind: type[TransientError]) -> None:
    """A worker that waits for something without a label would look as if it waited for nothing."""
    seen.metrics.show(make_status(waiting_for=kind.server))
    assert seen.value("waiting_for", server=kind.server) == 1


def test_gauges_follow_the_worker(seen: Seen) -> None:
    """A state that a partition left does not stay on the dashboard."""
    seen.metrics.show(make_status(partitions={"replaying": 3}, lag={"sensor": 70}, rows_resident={"sensor": 9}))
    seen.metrics.show(make_status(partitions={"live": 3}, lag={"sensor": 5}, unsaved_age_s=1.5))
    assert seen.value("partitions", state="replaying") == 0
    assert seen.value("partitions", state="live") == 3
    assert seen.value("lag_records", profile="sensor") == 5
    assert seen.value("rows_resident", profile="sensor") == 0
    assert seen.value("unsaved_age_seconds") == 1.5


def test_only_versions_in_use_are_shown(seen: Seen) -> None:
    """Versions come and go for ever; their series must not pile up (invariant 7)."""
    seen.metrics.show(make_status(model_versions={"sensor": ("v1", "v2")}))
    seen.metrics.show(make_status(model_versions={"sensor": ("v2",)}))
    assert seen.value("model_info", profile="sensor", version="v1") is None
    assert seen.value("model_info", profile="sensor", version="v2") == 1


def test_evictions_never_count_down(seen: Seen) -> None:
    """A table given up on a version change takes its count with it; a counter that falls reads as a restart."""
    for evicted in (5, 8, 0, 2):
        seen.metrics.show(make_status(rows_evicted={"sensor": evicted}))
    assert seen.value("rows_evicted_total", profile="sensor") == 10


def test_alert_series_start_at_zero(seen: Seen) -> None:
    """`increase()` misses the first alert of a series that begins with it."""
    seen.metrics.show(make_status())
    assert seen.value("alerts_total", profile="sensor", severity="critical", event="opened") == 0


def test_every_metric_has_the_prefix_and_a_help(seen: Seen) -> None:
    """One prefix finds everything of ours; a name alone does not say what is counted."""
    families = list(seen.metrics.registry.collect())
    assert families
    for family in families:
        assert family.name.startswith("anomaly_")
        assert family.documentation.endswith("."), family.name


def test_own_registry_shows_the_process() -> None:
    """Memory of the worker is the first thing anyone looks at."""
    names = {family.name for family in Metrics().registry.collect()}
    assert "process_resident_memory_bytes" in names


TIME_MS = 1_767_225_600_000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"\x93\x01", "undecodable"),
        (b"{", "undecodable"),
        (b"", "undecodable"),
        (b"\x91\x01", "undecodable"),
        (b'{"stream_id": "s"}', "times"),
        (b'{"stream_id": "s", "start": 1, "oops": 1, "values": [[1]]}', "schema"),
        (b'{"stream_id": "s", "start": 1, "values": [["x"]]}', "schema"),
        (b'{"schema": 7, "stream_id": "s", "start": 1, "values": [[1]]}', "schema"),
        (b'{"stream_id": "s", "start": 1, "values": [[1, 2]]}', "features"),
        (b'{"stream_id": "s", "start": 1, "features": ["x"], "values": [[1]]}', "features"),
        (b'{"stream_id": "!s", "start": 1, "values": [[1]]}', "stream_id"),
        (b'{"stream_id": "s", "start": 1, "values": [[1], [2]]}', "times"),
        (b'{"stream_id": "s", "times": [5, 5], "values": [[1], [2]]}', "times"),
        (b'{"stream_id": "s", "start": -5, "values": [[1]]}', "times"),
        (b'{"stream_id": "s", "start": 1, "values": []}', "values"),
        (b'{"stream_id": "s", "start": 1, "values": [[1e300]]}', "values"),
        (b'{"stream_id": "s", "start": %d, "values": [[1]]}' % (TIME_MS + 10**7), "clock_skew"),
        (b'{"stream_id": "s", "start": 1, "values": [%s[1]]}' % (b"[1]," * 99), "times"),
        (b'{"stream_id": "s", "start": 1, "interval_s": 1, "values": [%s[1]]}' % (b"[1]," * 99), "too_large"),
        (b"x" * 2000, "too_large"),
        (None, "stream_id"),
    ],
)
def test_reasons_of_the_decoder_fall_into_classes(value: bytes | None, expected: str) -> None:
    """Labels are a closed set, and each kind of bad input is found under its own name."""
    profile = Profile(topics=("t",), features=("value",))
    record = StoredRecord(0, TIME_MS, None, value)
    _, (letter,) = decode_many([record], PLACE, profile, Limits(max_message_bytes=1000, max_window_length=50))
    assert reason_class(letter.reason) == expected, letter.reason


def test_a_stream_id_cannot_choose_its_class() -> None:
    """The text of a reason holds what a producer sent; the class must come from us."""
    assert reason_class("stream 'not MessagePack': no observations") == "values"
    assert reason_class("something new") == "other"
    assert "other" in REASON_CLASSES
