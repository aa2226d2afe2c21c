"""Which alerts are open, told by the alerts topic. Pure: no Kafka, no clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pipeline.alerts import SEVERITIES
from pipeline.records import EVENTS, OPENED, RESOLVED, Alert

MAX_OPEN = 20_000


class OpenAlerts:
    """The latest event of every alert that is not resolved, oldest first.

    A repeated event changes nothing, so that at-least-once delivery and a second reading of the topic do no harm.
    Features that an event does not show are taken from the one before.

    Parameters
    ----------
    max_open
        Beyond it the oldest are forgotten.
    """

    def __init__(self, max_open: int = MAX_OPEN) -> None:
        self._max_open = max_open
        self._open: dict[str, Alert] = {}
        self._resolved: dict[str, None] = {}

    def add(self, alert: Alert) -> bool:
        """Take an event; returns whether it was news."""
        before = self._open.get(alert.alert_id)
        if alert.alert_id in self._resolved or (before is not None and not _is_later(alert, before)):
            return False
        if alert.event == EVENTS[RESOLVED]:
            self._open.pop(alert.alert_id, None)
            self._resolved[alert.alert_id] = None
            _shorten(self._resolved, self._max_open)
            return True
        if before is not None and not alert.features:
            alert = replace(alert, features=before.features)
        self._open[alert.alert_id] = alert
        _shorten(self._open, self._max_open)
        return True

    def get(self, alert_id: str) -> Alert | None:
        """An open alert."""
        return self._open.get(alert_id)

    def __iter__(self) -> Iterator[Alert]:
        return iter(list(self._open.values()))

    def __len__(self) -> int:
        return len(self._open)


def at_its_worst(before: Alert | None, alert: Alert) -> Alert:
    """The later of two events of an alert, told with the evidence of the one with the higher score.

    What resolves an alert is an ordinary observation, or a new beginning, and says nothing of what was wrong. Nor does
    an alert become less severe, or lower, than it was: where its row was lost, the last event knows no better.
    """
    if before is None or alert.score > before.score:
        return alert
    return replace(
        before,
        event=alert.event,
        severity=before.severity if alert.severity == SEVERITIES[0] else alert.severity,
        time_ms=alert.time_ms,
        offset=alert.offset,
        index=alert.index,
        peak_score=max(before.peak_score, alert.peak_score),
    )


def _is_later(alert: Alert, before: Alert) -> bool:
    """Whether an event follows another of the same alert; after ``opened`` none is ``opened`` again."""
    if alert.event == EVENTS[OPENED]:
        return False
    return alert.event == EVENTS[RESOLVED] or (alert.offset, alert.index) > (before.offset, before.index)


def _shorten(table: dict[str, Any], length: int) -> None:
    while len(table) > length:
        del table[next(iter(table))]
