"""What the monitor shows to Prometheus: silence, and the alerts that are open.

Streams are labels here, against the rule of :mod:`pipeline.metrics`, because their number is bounded: only the newest
open alerts are shown one by one, and their series end with them.
"""

from __future__ import annotations

import threading
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.metrics import SEVERITIES
from pipeline.records import EVENTS, Alert

NO_GROUP = "none"


class MonitorMetrics:
    """All metrics of a monitor.

    Parameters
    ----------
    profiles
        Groups by profile: every combination begins at zero, so that a rate sees the first alert.
    max_shown
        Open alerts shown one by one, the newest.
    """

    def __init__(
        self, profiles: Mapping[str, Iterable[str]], max_shown: int, registry: CollectorRegistry | None = None
    ) -> None:
        if registry is None:
            registry = CollectorRegistry(auto_describe=True)
            ProcessCollector(registry=registry)
        self.registry = registry
        self._foreign: set[tuple[str, str, str]] = set()
        self._groups = {profile: sorted({*groups, NO_GROUP}) for profile, groups in profiles.items()}
        self._events = Counter(
            "anomaly_alert_events",
            "Events of alerts, as read from the alerts topic.",
            ["profile", "severity", "group", "event"],
            registry=registry,
        )
        self._open = Gauge(
            "anomaly_open_alerts", "Alerts open now.", ["profile", "severity", "group"], registry=registry
        )
        self._silent = Gauge(
            "anomaly_silent_streams", "Streams that used to be regular and are silent.", ["profile"], registry=registry
        )
        self._watched = Gauge(
            "anomaly_watched_streams", "Streams the monitor has heard of.", ["profile"], registry=registry
        )
        self._caught_up = Gauge(
            "anomaly_monitor_caught_up",
            "1 while the monitor reads what comes; 0 while it is behind.",
            registry=registry,
        )
        self._shown = ShownAlerts(max_shown)
        registry.register(self._shown)
        for profile, groups in self._groups.items():
            for severity in SEVERITIES:
                for group in groups:
                    for event in filter(None, EVENTS):
                        self._events.labels(profile, severity, group, event)

    def count(self, alert: Alert) -> None:
        """An event came."""
        self._events.labels(alert.profile, _severity(alert), group_of(alert), alert.event).inc()

    def show_alerts(self, alerts: Sequence[Alert], observed: Mapping[tuple[str, str], Mapping[str, float]]) -> None:
        """Set how many alerts are open, and show the newest.

        Parameters
        ----------
        alerts
            Open ones, oldest first.
        observed
            Latest values by profile and stream, and feature; where absent, those of the alert's last event are shown.
        """
        open_now = Tally((alert.profile, _severity(alert), group_of(alert)) for alert in alerts)
        known = {(p, s, g) for p, groups in self._groups.items() for s in SEVERITIES for g in groups}
        for labels in known | open_now.keys():
            self._open.labels(*labels).set(open_now.get(labels, 0))
        for labels in self._foreign - open_now.keys():  # of a profile or group that the settings do not name
            self._open.remove(*labels)
        self._foreign = open_now.keys() - known
        self._shown.show(alerts, observed)

    def show_silence(self, counts: Iterable[tuple[str, int, int]]) -> None:
        """Set watched and silent streams, by profile."""
        for profile, watched, silent in counts:
            self._watched.labels(profile).set(watched)
            self._silent.labels(profile).set(silent)

    def show_caught_up(self, is_caught_up: bool) -> None:
        """Say whether the monitor reads what comes."""
        self._caught_up.set(is_caught_up)


class ShownAlerts(Collector):
    """The newest open alerts as series that end with them; collected by the thread that serves metrics."""

    def __init__(self, max_shown: int) -> None:
        self._max_shown = max_shown
        self._lock = threading.Lock()
        self._alerts: list[Alert] = []
        self._observed: dict[tuple[str, str], dict[str, float]] = {}

    def show(self, alerts: Sequence[Alert], observed: Mapping[tuple[str, str], Mapping[str, float]]) -> None:
        """Show these from now on; of one stream its newest alert with features, and its newest without (silence)."""
        newest: dict[tuple[str, str, bool], Alert] = {}
        for alert in sorted(alerts, key=lambda alert: alert.onset_ms):
            kind = (alert.profile, alert.stream_id, bool(alert.features))
            newest.pop(kind, None)  # in the order of what stays
            newest[kind] = alert
        chosen = list(newest.values())[-self._max_shown :] if self._max_shown else []
        values = {at: dict(observed[at]) for alert in chosen if (at := (alert.profile, alert.stream_id)) in observed}
        with self._lock:
            self._alerts, self._observed = chosen, values

    def collect(self) -> Iterator[Metric]:
        """One sample for each shown alert, or for each feature of its evidence."""
        with self._lock:
            alerts, observed = self._alerts, self._observed
        who = ("profile", "stream", "group", "severity", "signal", "alert")
        score = GaugeMetricFamily("anomaly_alert_score", "Score at the last event of an open alert.", labels=who)
        peak = GaugeMetricFamily("anomaly_alert_peak_score", "Highest score of an open alert.", labels=who)
        threshold = GaugeMetricFamily("anomaly_alert_threshold", "Threshold at its last event.", labels=who)
        per = ("profile", "stream", "feature")
        seen = GaugeMetricFamily("anomaly_alert_observed", "Latest value of a feature with an open alert.", labels=per)
        expected = GaugeMetricFamily("anomaly_alert_expected", "What was expected at its last event.", labels=per)
        low = GaugeMetricFamily("anomaly_alert_band_low", "1 % point of what was expected.", labels=per)
        high = GaugeMetricFamily("anomaly_alert_band_high", "99 % point of what was expected.", labels=per)
        for alert in alerts:
            labels = (
                *(alert.profile, alert.stream_id, group_of(alert), _severity(alert), alert.signal, alert.alert_id),
            )
            score.add_metric(labels, alert.score)
            peak.add_metric(labels, alert.peak_score)
            threshold.add_metric(labels, alert.threshold)
            latest = observed.get((alert.profile, alert.stream_id), {})
            for feature in alert.features:
                place = (alert.profile, alert.stream_id, feature.name)
                value = latest.get(feature.name, feature.observed)
                if value is not None:
                    seen.add_metric(place, value)
                expected.add_metric(place, feature.expected)
                low.add_metric(place, feature.band[0])
                high.add_metric(place, feature.band[1])
        yield from (score, peak, threshold, seen, expected, low, high)

    def describe(self) -> Iterator[Metric]:
        """Nothing beforehand: what is shown depends on what is open."""
        return iter(())


def group_of(alert: Alert) -> str:
    """An alert's group as a label."""
    return alert.group or NO_GROUP


def _severity(alert: Alert) -> str:
    return alert.severity if alert.severity in SEVERITIES else SEVERITIES[0]
