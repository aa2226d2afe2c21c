"""Alerts against labels: which faults were caught, how soon, and what was a false alarm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from models.synthetic import Fault
from pipeline.demo.scenes import Scene
from pipeline.engine import WARM_UP_OBSERVATIONS
from pipeline.records import Alert, Int64
from pipeline.sources.recording import RecordedStream

AFTERMATH = 10
"""Observations after a fault in which an alert is neither false nor a catch: the return to normal is news as well."""

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one scene went.

    Attributes
    ----------
    name
        Of the scene.
    streams, observations, alerts
        How many of each; an alert counts once, however often it was updated.
    labelled, caught, late
        Faults in the scene; those in which an alert opened while they lasted; of the others, those with an alert in
        their aftermath.
    delays
        Observations from the beginning of each caught fault to its first alert.
    false_alarms, clean_days
        Alerts opened outside of faults and their aftermath, in so many stream-days after warm-up. Both 0 where nobody
        labelled the scene: what its alerts are worth is then not known.
    """

    name: str
    streams: int
    observations: int
    alerts: int
    labelled: int
    caught: int
    late: int
    delays: tuple[int, ...]
    false_alarms: int
    clean_days: float


def judge(scene: Scene, opened: Iterable[Alert]) -> Outcome:
    """What the alerts opened in a scene are worth.

    Parameters
    ----------
    opened
        Alerts of this scene at their opening.
    """
    onsets: dict[str, list[int]] = defaultdict(list)
    for alert in opened:
        onsets[alert.stream_id].append(alert.onset_ms)
    faults: dict[str, list[Fault]] = defaultdict(list)
    for fault in scene.faults or ():
        faults[fault.stream_id].append(fault)
    delays: list[int] = []
    late, false_alarms, clean_ms = 0, 0, 0
    for stream in scene.streams:
        interval_ms = round((stream.interval_s or 0.0) * 1000)
        times = np.array(sorted(onsets[stream.name]), np.int64)
        spans = faults[stream.name]
        for fault in spans:
            at_ms = first_alert(fault, times)
            if at_ms is not None:
                delays.append((at_ms - fault.start_ms) // interval_ms)
            else:
                late += any(is_excused(int(time), [fault], interval_ms) for time in times)
        if scene.faults is not None:
            false_alarms += sum(not is_excused(int(time), spans, interval_ms) for time in times)
            clean_ms += clean_observations(stream, spans) * interval_ms
    return Outcome(
        scene.name,
        len(scene.streams),
        scene.observations,
        sum(map(len, onsets.values())),
        len(scene.faults or ()),
        len(delays),
        late,
        tuple(delays),
        false_alarms,
        clean_ms / DAY_MS,
    )


def first_alert(fault: Fault, onsets_ms: Int64) -> int | None:
    """Event time of the first alert that opened while the fault lasted."""
    inside = onsets_ms[(onsets_ms >= fault.start_ms) & (onsets_ms < fault.end_ms)]
    return int(inside[0]) if len(inside) else None


def is_excused(time_ms: int, faults: Sequence[Fault], interval_ms: int) -> bool:
    """Whether an alert that opened then belongs to a fault or its aftermath."""
    return any(fault.start_ms <= time_ms < fault.end_ms + AFTERMATH * interval_ms for fault in faults)


def clean_observations(stream: RecordedStream, faults: Sequence[Fault]) -> int:
    """Observations after warm-up, outside of faults and their aftermath."""
    clean = np.ones(len(stream), np.bool_)
    clean[:WARM_UP_OBSERVATIONS] = False
    for fault in faults:
        clean[fault.start : fault.end + AFTERMATH] = False
    return int(clean.sum())


@dataclass(frozen=True, slots=True)
class Summary:
    """The whole demo in numbers; :meth:`content` is what ``summary.json`` holds."""

    outcomes: tuple[Outcome, ...]
    alarm_budget: str
    alarm_every_s: float
    replay_s: float
    seconds: float

    @property
    def labelled(self) -> int:
        """Faults that somebody labelled."""
        return sum(outcome.labelled for outcome in self.outcomes)

    @property
    def caught(self) -> int:
        """Those of them that were caught."""
        return sum(outcome.caught for outcome in self.outcomes)

    @property
    def median_delay(self) -> float | None:
        """Observations from the beginning of a caught fault to its alert."""
        delays = [delay for outcome in self.outcomes for delay in outcome.delays]
        return float(np.median(delays)) if delays else None

    @property
    def false_alarms_per_stream_day(self) -> float | None:
        """Measured on the labelled scenes, where it is known which alarms are false."""
        days = sum(outcome.clean_days for outcome in self.outcomes)
        return sum(outcome.false_alarms for outcome in self.outcomes) / days if days else None

    @property
    def budget_per_stream_day(self) -> float:
        """What the alarm budget allows."""
        return 86_400.0 / self.alarm_every_s

    def content(self) -> dict[str, object]:
        """Numbers by name."""
        observations = sum(outcome.observations for outcome in self.outcomes)
        rate = self.false_alarms_per_stream_day
        return {
            "streams": sum(outcome.streams for outcome in self.outcomes),
            "observations": observations,
            "observations_per_s": round(observations / self.replay_s, 1),
            "alerts": sum(outcome.alerts for outcome in self.outcomes),
            "faults_labelled": self.labelled,
            "faults_caught": self.caught,
            "faults_noticed_at_their_end": sum(outcome.late for outcome in self.outcomes),
            "median_delay_observations": self.median_delay,
            "false_alarms_per_stream_day": None if rate is None else round(rate, 5),
            "alarm_budget": f"{self.alarm_budget} and stream",
            "alarm_budget_per_stream_day": round(self.budget_per_stream_day, 5),
            "seconds": round(self.seconds, 2),
            "replay_seconds": round(self.replay_s, 2),
            "scenes": {
                outcome.name: {
                    "streams": outcome.streams,
                    "observations": outcome.observations,
                    "alerts": outcome.alerts,
                    "faults_labelled": outcome.labelled,
                    "faults_caught": outcome.caught,
                    "false_alarms": outcome.false_alarms if outcome.clean_days else None,
                    "clean_stream_days": round(outcome.clean_days, 2),
                }
                for outcome in self.outcomes
            },
        }
