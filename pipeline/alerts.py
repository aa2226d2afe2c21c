"""An alert event from the evidence behind it: who, when, how surprising, and why."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.profile import Profile
from pipeline.records import (
    EVENTS,
    RESOLVED,
    VERDICTS,
    WARMING_UP,
    WITH_USUAL_LEVEL,
    Alert,
    FeatureEvidence,
    Partition,
)

SHOWN_FEATURES = 5
SEVERITIES = ("none", "warning", "critical")
DIRECTIONS = {-1: "below", 0: "none", 1: "above"}


@dataclass(frozen=True, slots=True)
class AlertPlace:
    """Where an event happened, and where its alert began."""

    partition: Partition
    stream_id: str
    offset: int
    index: int
    time_ms: int
    onset_offset: int
    onset_index: int
    onset_ms: int
    is_partial: bool


@dataclass(frozen=True, slots=True)
class Cell:
    """One observation's results, with the evidence arrays of its call and its row in them."""

    event: int
    score: float
    threshold: float
    verdict: int
    signal: str
    imputed: float
    evidence: Mapping[str, npt.NDArray[Any]]
    row: int

    def number(self, name: str) -> float | None:
        """A number of the evidence, ``None`` where there is none."""
        value = float(self.evidence[name][self.row])
        return value if np.isfinite(value) else None


def resolving_cell(peak: float, severity: int) -> Cell:
    """What resolves the open alert of a stream that begins anew: no evidence, only how bad the episode was."""
    return Cell(
        RESOLVED,
        0.0,
        0.0,
        WARMING_UP,
        "none",
        0.0,
        {
            "peak": np.array([peak]),
            "severity": np.array([severity]),
            **dict.fromkeys(("gate", "forecast_8", "forecast_4"), np.full(1, np.nan)),
            "direction": np.zeros(1),
            "nats": np.empty((1, 0)),
        },
        0,
    )


def alert_id(place: AlertPlace) -> str:
    """Names an episode by its stream and onset, so that a repetition is an update of the same alert."""
    partition = place.partition
    text = f"{partition.topic}:{partition.partition}:{place.onset_offset}:{place.onset_index}:{place.stream_id}"
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def build_alert(name: str, profile: Profile, version: str, place: AlertPlace, cell: Cell) -> Alert:
    """The alert event of one observation; features ordered by what they contributed, the strongest five shown."""
    peak = cell.number("peak")
    return Alert(
        alert_id=alert_id(place),
        event=EVENTS[cell.event],
        profile=name,
        stream_id=place.stream_id,
        group=profile.group_of(place.stream_id),
        partition=place.partition,
        offset=place.offset,
        index=place.index,
        time_ms=place.time_ms,
        onset_offset=place.onset_offset,
        onset_ms=place.onset_ms,
        score=cell.score,
        peak_score=cell.score if peak is None else peak,
        threshold=cell.threshold,
        severity=SEVERITIES[int(cell.evidence["severity"][cell.row])],
        verdict=VERDICTS[cell.verdict],
        signal=cell.signal,
        direction=DIRECTIONS[int(cell.evidence["direction"][cell.row])],
        features=_features(profile, cell),
        imputed_share=cell.imputed,
        model_version=version,
        state="partial" if place.is_partial else "full",
        gate=cell.number("gate"),
        forecast_8=cell.number("forecast_8"),
        forecast_4=cell.number("forecast_4"),
    )


def _features(profile: Profile, cell: Cell) -> tuple[FeatureEvidence, ...]:
    nats = cell.evidence["nats"][cell.row]
    order = np.argsort(-np.nan_to_num(nats, nan=-1.0), kind="stable")[:SHOWN_FEATURES]

    def column(name: str, feature: int) -> float:
        return float(cell.evidence[name][cell.row, feature])

    shown = []
    for feature in order.tolist():
        observed, usual = column("observed", feature), column("usual", feature)
        shown.append(
            FeatureEvidence(
                profile.features[feature],
                observed if np.isfinite(observed) else None,
                column("expected", feature),
                (column("band_low", feature), column("band_high", feature)),
                float(np.nan_to_num(nats[feature], nan=0.0)),
                usual if cell.signal in WITH_USUAL_LEVEL and np.isfinite(usual) else None,
            )
        )
    return tuple(shown)
