"""Which events are told. Pure."""

from __future__ import annotations

from collections.abc import Collection

from pipeline.alerts import SEVERITIES
from pipeline.open_alerts import MAX_OPEN, OpenAlerts
from pipeline.records import EVENTS, OPENED, RESOLVED, Alert


class Choice:
    """Decides event by event, and remembers which alerts were told.

    An alert that reaches the severity only later is told then; one that was told is told again when it becomes
    critical, and to its end. An event seen before is not told again, whoever repeats it.

    Parameters
    ----------
    events
        Those of ``opened``, ``updated``, ``resolved`` that are wanted.
    min_severity
        ``warning`` or ``critical``.
    """

    def __init__(self, events: Collection[str], min_severity: str) -> None:
        self._events, self._least = frozenset(events), SEVERITIES.index(min_severity)
        self._seen = OpenAlerts()
        self._told: dict[str, int] = {}

    def wants(self, alert: Alert) -> bool:
        """Whether this event is to be told; counts as told from now on."""
        if not self._seen.add(alert):
            return False
        if alert.event == EVENTS[RESOLVED]:
            return self._told.pop(alert.alert_id, None) is not None and alert.event in self._events
        severity, told = SEVERITIES.index(alert.severity), self._told.get(alert.alert_id)
        if severity < self._least or (told is not None and severity <= told):
            return told is not None and alert.event in self._events
        self._told[alert.alert_id] = severity
        if len(self._told) > MAX_OPEN:
            del self._told[next(iter(self._told))]
        return EVENTS[OPENED] in self._events or alert.event in self._events

    def open(self) -> list[Alert]:
        """Alerts that were told and are open, as they stand."""
        return [alert for alert in self._seen if alert.alert_id in self._told]
