"""Alarms against labelled events: recall, precision, delay, false-alarm episodes, and the alarm budget.

An event is a run of labelled rows. It is found if an alarm falls on one of its rows, and its delay counts from its
first row to the first such alarm. An episode is what a user sees as one alert, with all alarms from its opening to the
next opening; it is true if one of them falls on a labelled row, else a false alarm. Rows are never "adjusted":
point-adjusted F1, by which random scores look good, is not offered.

References
----------
Events instead of rows: N. Tatbul et al., "Precision and Recall for Time Series" (NeurIPS 2018), with existence as the
only reward. Why no point adjustment: S. Kim et al., "Towards a Rigorous Evaluation of Time-Series Anomaly Detection"
(AAAI 2022).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from models.evaluation.ranking import Labels, events_of

Bool = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Episode:
    """First and last alarm row of one alert, and whether it met a labelled row."""

    first: int
    last: int
    is_true: bool


@dataclass(frozen=True, slots=True)
class Event:
    """First and last row of one labelled event, and the row of its first alarm, ``None`` where it was missed."""

    first: int
    last: int
    alarm: int | None


@dataclass(frozen=True, slots=True)
class EventCounts:
    """What alarms made of the events of one or many series.

    Attributes
    ----------
    events, found
        Labelled events, and those with an alarm inside.
    true_episodes, false_episodes
        Alerts that met a labelled row, and those that did not.
    delays
        Rows from the beginning of each found event to its first alarm.
    days
        Stream days that were judged; ``normal_days`` of them outside events, ``alarmed_days`` of those under an alarm.
    """

    events: int
    found: int
    true_episodes: int
    false_episodes: int
    delays: tuple[int, ...]
    days: float
    normal_days: float
    alarmed_days: float

    @property
    def recall(self) -> float:
        """Share of events found; NaN without events."""
        return self.found / self.events if self.events else float("nan")

    @property
    def precision(self) -> float:
        """Share of alerts that met an event; NaN without alerts."""
        alerts = self.true_episodes + self.false_episodes
        return self.true_episodes / alerts if alerts else float("nan")

    @property
    def f1(self) -> float:
        """Harmonic mean of recall and precision; 0 where nothing was found or raised, NaN without events."""
        if not self.events:
            return float("nan")
        if not self.found or not self.true_episodes:
            return 0.0
        return 2.0 * self.recall * self.precision / (self.recall + self.precision)

    @property
    def false_alarms_per_day(self) -> float:
        """False-alarm episodes per stream and day outside events; NaN without such days."""
        return self.false_episodes / self.normal_days if self.normal_days > 0 else float("nan")

    @property
    def normal_share_alarmed(self) -> float:
        """Share of the normal days under an alarm: what an alert that never ends costs; NaN without such days."""
        return self.alarmed_days / self.normal_days if self.normal_days > 0 else float("nan")


def episodes_of(opened: Bool, alarmed: Bool, labels: Labels) -> list[Episode]:
    """The alerts of one series.

    Parameters
    ----------
    opened, alarmed
        ``(T,)``: where an alert opens, and where the verdict is anomalous.
    labels
        ``(T,)``.
    """
    found = []
    for first, end in pairwise([*np.flatnonzero(opened).tolist(), len(opened)]):
        rows = np.flatnonzero(alarmed[first:end]) + first
        last = int(rows[-1]) if len(rows) else first
        found.append(Episode(first, last, bool(labels[rows].any() or labels[first])))
    return found


def judged_events(labels: Labels, alarmed: Bool, judged_from: int = 0) -> list[Event]:
    """The events from row ``judged_from`` on, and where each was found."""
    found = []
    for first, last in events_of(labels[judged_from:]):
        first, last = first + judged_from, last + judged_from
        hits = np.flatnonzero(alarmed[first : last + 1])
        found.append(Event(first, last, first + int(hits[0]) if len(hits) else None))
    return found


def count_events(labels: Labels, opened: Bool, alarmed: Bool, judged_from: int, days_per_row: float) -> EventCounts:
    """Judge one series from row ``judged_from`` on; episodes that open earlier are not judged, their alarms are."""
    labels, alarmed = labels[judged_from:], alarmed[judged_from:]
    events = judged_events(labels, alarmed)
    delays = [event.alarm - event.first for event in events if event.alarm is not None]
    episodes = episodes_of(opened[judged_from:], alarmed, labels)
    true = sum(episode.is_true for episode in episodes)
    normal = int((~labels).sum())
    return EventCounts(
        len(events),
        len(delays),
        true,
        len(episodes) - true,
        tuple(delays),
        len(labels) * days_per_row,
        normal * days_per_row,
        int((alarmed & ~labels).sum()) * days_per_row,
    )


def together(counts: Iterable[EventCounts]) -> EventCounts:
    """The counts of many series as one."""
    parts = list(counts)
    return EventCounts(
        sum(part.events for part in parts),
        sum(part.found for part in parts),
        sum(part.true_episodes for part in parts),
        sum(part.false_episodes for part in parts),
        tuple(delay for part in parts for delay in part.delays),
        sum(part.days for part in parts),
        sum(part.normal_days for part in parts),
        sum(part.alarmed_days for part in parts),
    )


def episodes_above(values: Float, threshold: float, quiet_rows: int) -> tuple[Bool, Bool]:
    """Where alerts open, and all alarms, of a fixed threshold; ``quiet_rows`` without an alarm end an alert."""
    alarmed = values > threshold
    opened = np.zeros(len(values), np.bool_)
    rows = np.flatnonzero(alarmed)
    opened[rows[np.diff(rows, prepend=-quiet_rows - 1) > quiet_rows]] = True
    return opened, alarmed


def threshold_at(values: Float, most: float, quiet_rows: int, steps: int = 400) -> float:
    """The lowest threshold that gives at most ``most`` alerts on these values, searched down from their maximum.

    No labels are used: on a stretch that is taken as normal it is how a false-alarm rate is chosen.
    """
    falling = np.sort(values)[::-1]
    ranks = np.unique(np.geomspace(1, len(falling), steps).astype(np.int64)) - 1
    lowest = float(falling[0])
    for threshold in falling[ranks]:
        if episodes_above(values, float(threshold), quiet_rows)[0].sum() > most:
            break
        lowest = float(threshold)
    return lowest


def hit_within(labels: Labels, scores: npt.NDArray[np.float64], judged_from: int, reach: int = 100) -> bool:
    """Whether the highest score lies within ``reach`` rows of an event: how the UCR archive is judged.

    References
    ----------
    R. Wu and E. Keogh, "Current Time Series Anomaly Detection Benchmarks are Flawed" (TKDE 2021), section 4.
    """
    top = judged_from + int(np.argmax(scores[judged_from:]))
    return any(first - reach <= top <= last + reach for first, last in events_of(labels))


def attribution_share(
    contributions: Sequence[float] | npt.NDArray[np.floating], causes: Iterable[int], k: int = 5
) -> float:
    """How many of the features that experts named are among the ``k`` with the largest contribution above 0.

    A share of those that ``k`` places can hold: above 0 where at least one is shown, 1 where no more could be.
    """
    shares, named = np.asarray(contributions, np.float64), set(causes)
    shown = np.argsort(-shares, kind="stable")[:k]
    return len(set(shown[shares[shown] > 0].tolist()) & named) / min(k, len(named))
