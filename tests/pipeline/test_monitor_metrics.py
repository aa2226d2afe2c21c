"""What the monitor shows, as Prometheus sees it."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from pipeline.metrics import Metrics
from pipeline.monitor_metrics import MonitorMetrics
from pipeline.records import StepStats
from tests.alerts import make_alert


@pytest.fixture
def metrics() -> MonitorMetrics:
    """Of one profile with one group; two alerts are shown one by one."""
    return MonitorMetrics({"sensor": ["hall 1"]}, 2, CollectorRegistry())


def test_open_alerts_are_counted_by_profile_severity_and_group(metrics: MonitorMetrics) -> None:
    """The first number on the dashboard; zero where there is none, not nothing."""
    metrics.show_alerts([make_alert(), make_alert(alert_id="b", stream_id="s2", group="hall 1")], {})
    value = metrics.registry.get_sample_value
    labels = {"profile": "sensor", "severity": "warning"}
    assert value("anomaly_open_alerts", labels | {"group": "none"}) == 1
    assert value("anomaly_open_alerts", labels | {"group": "hall 1"}) == 1
    metrics.show_alerts([], {})
    assert value("anomaly_open_alerts", labels | {"group": "hall 1"}) == 0


@pytest.mark.parametrize("changes", [{"group": "hall 2"}, {"profile": "other"}])
def test_resolved_alerts_of_names_no_longer_known_are_not_open(
    metrics: MonitorMetrics, changes: dict[str, str]
) -> None:
    """A group that was renamed while its alert was open would stay red until a restart."""
    labels = {"profile": "sensor", "severity": "warning", "group": "none"} | changes
    metrics.show_alerts([make_alert(**changes)], {})
    assert metrics.registry.get_sample_value("anomaly_open_alerts", labels) == 1
    metrics.show_alerts([], {})
    assert not metrics.registry.get_sample_value("anomaly_open_alerts", labels)


def test_only_the_newest_alerts_are_shown_one_by_one(metrics: MonitorMetrics) -> None:
    """A storm of alerts must not become a storm of series."""
    alerts = [make_alert(alert_id=str(n), stream_id=f"s{n}", onset_ms=n) for n in range(1000)]
    metrics.show_alerts(alerts, {})
    (scores,) = [m for m in metrics.registry.collect() if m.name == "anomaly_alert_score"]
    assert [sample.labels["stream"] for sample in scores.samples] == ["s998", "s999"]


def test_silence_does_not_hide_what_a_stream_had_open(metrics: MonitorMetrics) -> None:
    """A sensor that fails alarms first and falls silent then; its critical alert stays the one to look at."""
    silent = make_alert(alert_id="b", signal="silent", features=(), onset_ms=2)
    metrics.show_alerts([make_alert(alert_id="a", onset_ms=1), silent], {})
    (scores,) = [m for m in metrics.registry.collect() if m.name == "anomaly_alert_score"]
    assert [sample.labels["alert"] for sample in scores.samples] == ["a", "b"]
    assert metrics.registry.get_sample_value(
        "anomaly_alert_expected", {"profile": "sensor", "stream": "pump-1", "feature": "value"}
    )


def test_latest_value_is_shown_beside_what_was_expected(metrics: MonitorMetrics) -> None:
    """The drill-down: the curve goes on between the events of an alert; without a newer value the event's is shown."""
    labels = {"profile": "sensor", "stream": "pump-1", "feature": "value"}
    value = metrics.registry.get_sample_value
    metrics.show_alerts([make_alert()], {})
    assert value("anomaly_alert_observed", labels) == 9.0
    metrics.show_alerts([make_alert()], {("sensor", "pump-1"): {"value": 7.5}})
    assert value("anomaly_alert_observed", labels) == 7.5
    assert value("anomaly_alert_expected", labels) == 5.0
    assert value("anomaly_alert_band_high", labels) == 6.0
    metrics.show_alerts([], {})
    assert value("anomaly_alert_observed", labels) is None


def test_worker_says_its_budget_and_its_last_commit() -> None:
    """What the rule on the budget compares with, and the dashboard's age of the last commit."""
    metrics = Metrics(CollectorRegistry(), now_s=lambda: 1234.5)
    metrics.show_budgets({"sensor": 604_800.0})
    metrics.observe(StepStats())
    assert metrics.registry.get_sample_value("anomaly_last_commit_timestamp_seconds") == 0.0
    metrics.observe(StepStats(commits=1))
    assert metrics.registry.get_sample_value("anomaly_last_commit_timestamp_seconds") == 1234.5
    found = metrics.registry.get_sample_value("anomaly_alarm_budget_per_second", {"profile": "sensor"})
    assert found == pytest.approx(1 / 604_800)
