"""What ``tidewatch notify`` shows to Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector

OUTCOMES = ("delivered", "refused", "given_up")


class NotifyMetrics:
    """All metrics of a notifier."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        if registry is None:
            registry = CollectorRegistry(auto_describe=True)
            ProcessCollector(registry=registry)
        self.registry = registry
        self._notifications = Counter(
            "anomaly_notifications", "Events of alerts that were told, or not.", ["outcome"], registry=registry
        )
        self._attempts = Counter("anomaly_notification_attempts", "Requests sent.", registry=registry)
        self._oldest = Gauge(
            "anomaly_notification_oldest_seconds", "For how long the event in hand has been tried.", registry=registry
        )
        self._lag = Gauge(
            "anomaly_notification_lag_records",
            "Records of the alerts topic not read yet, when last asked.",
            registry=registry,
        )
        for outcome in OUTCOMES:
            self._notifications.labels(outcome)

    def attempt(self, tried_s: float) -> None:
        """A request is sent for an event that has been tried for so long."""
        self._attempts.inc()
        self._oldest.set(tried_s)

    def behind(self, records: int) -> None:
        """So many records of the alerts topic are still to be read."""
        self._lag.set(records)

    def done(self, outcome: str) -> None:
        """An event is done with."""
        self._notifications.labels(outcome).inc()
        self._oldest.set(0.0)
