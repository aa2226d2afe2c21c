"""Alerts for tests: valid by default."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.records import Alert, FeatureEvidence, Partition

_ALERT = Alert(
    alert_id="a1", event="opened", profile="sensor", stream_id="pump-1", group=None,
    partition=Partition("sensor-windows", 0), offset=1, index=0, time_ms=1_700_000_000_000, onset_offset=1,
    onset_ms=1_700_000_000_000, score=6.0, peak_score=6.0, threshold=5.0, severity="warning", verdict="anomalous",
    signal="level", direction="above", features=(FeatureEvidence("value", 9.0, 5.0, (4.0, 6.0), 12.0),),
    imputed_share=0.0, model_version="v",
)  # fmt: skip


def make_alert(**changes: Any) -> Alert:
    """An alert that just opened, but for the changes."""
    return replace(_ALERT, **changes)
