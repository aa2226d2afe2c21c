"""Alerts as Alertmanager takes them (its API, version 2: prometheus/alertmanager, api/v2/openapi.yaml)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pipeline.epoch import iso_time
from pipeline.records import EVENTS, RESOLVED, Alert
from pipeline.wording import strongest_feature

PATH = "/api/v2/alerts"
NAME = "TidewatchAnomaly"


def encode(alerts: Iterable[Alert], now_ms: int, holds_ms: int) -> bytes:
    """A POST's body.

    Parameters
    ----------
    holds_ms
        Alertmanager takes an open alert for resolved when nothing repeats it for so long.
    """
    return json.dumps([_entry(alert, now_ms, holds_ms) for alert in alerts]).encode()


def _entry(alert: Alert, now_ms: int, holds_ms: int) -> dict[str, Any]:
    """Labels name the alert, so they must stay the same through its life; what changes is an annotation."""
    is_over = alert.event == EVENTS[RESOLVED]
    labels = {
        "alertname": NAME,
        "alert_id": alert.alert_id,
        "stream_id": alert.stream_id,
        "profile": alert.profile,
        **({"group": alert.group} if alert.group else {}),
    }
    return {
        "labels": labels,
        "annotations": _annotations(alert),
        "startsAt": iso_time(min(alert.onset_ms, now_ms)),
        "endsAt": iso_time(now_ms if is_over else now_ms + holds_ms),
    }


def _annotations(alert: Alert) -> dict[str, str]:
    said = {
        "summary": summary(alert),
        "severity": alert.severity,
        "signal": alert.signal,
        "direction": alert.direction,
        "onset": iso_time(alert.onset_ms),
        "model_version": alert.model_version,
        "position": f"{alert.partition}:{alert.onset_offset}",
    }
    if alert.peak_score == alert.peak_score:  # not NaN
        said |= {"peak_score": f"{alert.peak_score:.1f}", "threshold": f"{alert.threshold:.1f}"}
    return said


def summary(alert: Alert) -> str:
    """One line for people."""
    return f"{alert.stream_id}: {strongest_feature(alert) or alert.signal}"
