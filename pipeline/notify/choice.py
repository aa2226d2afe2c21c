"""Which events are told. Pure."""

from __future__ import annotations

from collections.abc import Collection

from pipeline.alerts import SEVERITIES
from pipeline.open_alerts import OpenAlerts
from pipeline.records import EVENTS, OPENED, RESOLVED, Alert


class Choice:
    """Decides event by event, and remembers which alerts were told.

    An alert that reaches the severity only later is told then; one that was told is told to its end. An event seen
    before is not told again, whoever repeats it.

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
        self._told: set[str] = set()

    def wants(self, alert: Alert) -> bool:
        """Whether this event is to be told; counts as told from now on."""
        if not self._seen.add(alert):
            return False
        if alert.event == EVENTS[RESOLVED]:
            was_told = alert.alert_id in self._told
            self._told.discard(alert.alert_id)
            return was_told and alert.event in self._events
        if alert.alert_id in self._told:
            return alert.event in self._events
        if SEVERITIES.index(alert.severity) < self._least:
            return False
        self._told.add(alert.alert_id)
        return EVENTS[OPENED] in self._events or alert.event in self._events

    def open(self) -> list[Alert]:
        """Alerts that were told and are open, as they stand."""
        return [alert for alert in self._seen if alert.alert_id in self._told]
