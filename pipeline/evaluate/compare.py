"""Two configurations on the same replay: which alerts appear, disappear, or open at another time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConfigurationError
from pipeline.offline import Offline
from pipeline.profile import Profile
from pipeline.records import EVENTS, OPENED, RESOLVED, Alert
from pipeline.replay.inputs import doubts_of, group_by_profile, open_record_file, profile_of_raw
from pipeline.settings import Settings
from pipeline.sources.record_file import decode_records, is_record_file
from pipeline.sources.recording import RecordedStream, open_recording

logger = logging.getLogger(__name__)

MONTH_MS = 30 * 86_400_000


@dataclass(frozen=True, slots=True)
class Raised:
    """One alert of a replay: when it opened and ended (its last observation where it never did), and its peak score."""

    stream_id: str
    opened_ms: int
    ended_ms: int
    peak: float
    severity: str


@dataclass(frozen=True, slots=True)
class Difference:
    """Alerts of two replays beside each other.

    Attributes
    ----------
    same, moved
        Alerts of both that overlap in time: opened at the same observation, or not.
    appeared, disappeared
        Alerts of the second, or of the first, that overlap with none of the other.
    last_month
        Alerts of each in the last 30 days of event time.
    """

    same: tuple[tuple[Raised, Raised], ...]
    moved: tuple[tuple[Raised, Raised], ...]
    appeared: tuple[Raised, ...]
    disappeared: tuple[Raised, ...]
    last_month: tuple[int, int]

    def as_json(self) -> dict[str, Any]:
        """Counts, and every alert that differs."""
        return {
            "same": len(self.same),
            "moved": [{"from": _alert(a), "to": _alert(b)} for a, b in self.moved],
            "appeared": [_alert(alert) for alert in self.appeared],
            "disappeared": [_alert(alert) for alert in self.disappeared],
            "last_month": {"a": self.last_month[0], "b": self.last_month[1]},
        }


def _alert(alert: Raised) -> dict[str, Any]:
    return {
        "stream": alert.stream_id,
        "opened_ms": alert.opened_ms,
        "ended_ms": alert.ended_ms,
        "peak_score": alert.peak,
        "severity": alert.severity,
    }


def read_for(
    settings: Settings, path: Path, wanted: str | None, patterns: Sequence[str] = ()
) -> tuple[str, Profile, list[RecordedStream]]:
    """A recording as these settings understand it, and the profile that scores it, by name.

    Of raw records only the values are compared: control records, and what does not decode, are left out.

    Parameters
    ----------
    wanted
        The profile; ``None`` takes the only one that has the streams' features, or is bound to the records' topics.
    patterns
        Only streams that match one of these.

    Raises
    ------
    ConfigurationError
        The recording cannot be read, nothing is left of it, or there is no such profile, or several.
    """
    if is_record_file(path):
        raw = open_record_file(path)
        wanted = profile_of_raw(raw, settings, wanted)
        recording = decode_records(raw.read(), settings.profiles[wanted], settings.limits, raw.name)
    else:
        recording = open_recording(path)
    streams = [stream for stream in (recording.select(patterns) if patterns else recording) if len(stream)]
    if not streams:
        raise ConfigurationError(f"{path}: no observation to compare")
    for text in doubts_of(streams):
        logger.warning(text)
    name = _profile_for(settings, wanted, streams)
    return name, settings.profiles[name], streams


def _profile_for(settings: Settings, wanted: str | None, streams: Sequence[RecordedStream]) -> str:
    if wanted is not None:
        return group_by_profile(streams, settings.profiles, wanted)[0].name
    features = {stream.features for stream in streams}
    fitting = [key for key, profile in settings.profiles.items() if features == {profile.features}]
    if len(fitting) != 1:
        found = "; ".join(", ".join(names[:6]) for names in sorted(features)[:3])
        raise ConfigurationError(
            f"{len(fitting)} profiles have the recording's features ({found}); name one with --profile"
        )
    return fitting[0]


def raised_by(
    name: str, profile: Profile, streams: Sequence[RecordedStream], progress: Callable[[int], None] = lambda rows: None
) -> list[Raised]:
    """The alerts of a replay through the production engine."""
    ends = {stream.name: int(stream.times_ms.max()) for stream in streams if len(stream)}
    offline = Offline(name, profile, max_streams=max(1, len(streams)))
    alerts: list[Alert] = []
    for absorbed in offline.score_streams(streams):
        alerts += absorbed.alerts
        progress(absorbed.observations + absorbed.late)
    return episodes(alerts, ends)


def episodes(alerts: Sequence[Alert], ends: dict[str, int]) -> list[Raised]:
    """Alert events put together to alerts; ``ends`` is the last event time of each stream."""
    latest: dict[str, Alert] = {}
    for alert in alerts:
        latest[alert.alert_id] = alert
    opened = {alert.alert_id for alert in alerts if alert.event == EVENTS[OPENED]}
    return [
        Raised(
            alert.stream_id,
            alert.onset_ms,
            alert.time_ms if alert.event == EVENTS[RESOLVED] else ends[alert.stream_id],
            alert.peak_score,
            alert.severity,
        )
        for alert_id, alert in latest.items()
        if alert_id in opened
    ]


def differences(before: Sequence[Raised], after: Sequence[Raised], last_ms: int) -> Difference:
    """Match alerts of the same stream that overlap in time, each at most once, the earliest first."""
    same: list[tuple[Raised, Raised]] = []
    moved: list[tuple[Raised, Raised]] = []
    disappeared: list[Raised] = []
    left = sorted(after, key=lambda alert: (alert.stream_id, alert.opened_ms))
    for old in sorted(before, key=lambda alert: (alert.stream_id, alert.opened_ms)):
        new = next((alert for alert in left if _overlap(old, alert)), None)
        if new is None:
            disappeared.append(old)
            continue
        left.remove(new)
        (same if new.opened_ms == old.opened_ms else moved).append((old, new))
    return Difference(
        tuple(same),
        tuple(moved),
        tuple(left),
        tuple(disappeared),
        (_since(before, last_ms - MONTH_MS), _since(after, last_ms - MONTH_MS)),
    )


def _overlap(a: Raised, b: Raised) -> bool:
    return a.stream_id == b.stream_id and a.opened_ms <= b.ended_ms and b.opened_ms <= a.ended_ms


def _since(alerts: Sequence[Raised], begin_ms: int) -> int:
    return int(np.sum([alert.opened_ms >= begin_ms for alert in alerts])) if alerts else 0
