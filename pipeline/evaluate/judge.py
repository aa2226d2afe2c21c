"""What a track is worth against the labels of its series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.evaluation.budget import alarms_at
from models.evaluation.events import (
    EventCounts,
    attribution_share,
    count_events,
    episodes_above,
    episodes_of,
    hit_within,
    judged_events,
    threshold_at,
)
from models.evaluation.nab import NabFile
from models.evaluation.ranking import auc_pr, vus_pr
from pipeline.evaluate.fold import Track
from pipeline.evaluate.series import LabelledSeries
from pipeline.records import ANOMALOUS, OPENED, Bool

DAY_S = 86_400.0
BUDGETS: Mapping[str, float] = {
    "0.25/day": 0.25, "0.5/day": 0.5, "1/day": 1.0, "1/week": 1.0 / 7.0, "1/month": 1.0 / 30.0,
}  # fmt: skip
"""False alarms allowed per stream and day."""
FIXED: Mapping[str, float] = {"0.25/day": 0.25, "0.5/day": 0.5, "1/day": 1.0}
"""False alarms per day for which a threshold is chosen on a clean training prefix, without labels and controller."""
QUIET_S, QUIET_ROWS = 1800.0, 10
SHOWN_FEATURES = 5


@dataclass(frozen=True, slots=True)
class Clean:
    """False alarms in a stretch where nothing happened, and its length."""

    alarms: int
    days: float


@dataclass(frozen=True, slots=True)
class AtBudget:
    """What one alarm budget gives: events against alarms, and the alarms of clean stretches."""

    events: EventCounts
    clean: Clean


@dataclass(frozen=True, slots=True)
class Attribution:
    """How often the features that experts named for an event are among the first five that an alert shows.

    Attributes
    ----------
    events, alerted
        Events with named features, and those of them with an alert.
    hits, shares
        Of the alerted ones, at their strongest alarm: those with a named feature among those shown, and the sum of
        the shares of named features that are shown.
    hits_all, shares_all
        The same of all events, at their highest score.
    """

    events: int
    alerted: int
    hits: int
    shares: float
    hits_all: int
    shares_all: float


@dataclass(frozen=True, slots=True)
class Moment:
    """A missed event, at its highest score; or a false alarm, at its highest score.

    ``height`` is score minus threshold: how far a miss was from an alarm, how far a false alarm from none.
    """

    row: int
    time_ms: int
    rows: int
    height: float
    feature: str


@dataclass(frozen=True, slots=True)
class Ranking:
    """How a quantity ranks the judged rows: NaN where no event is judged."""

    vus_pr: float
    auc_pr: float


@dataclass(frozen=True, slots=True)
class SeriesResult:
    """All figures of one series under one predictor.

    Attributes
    ----------
    ranked, score
        Ranking by the data set's quantity, and by the final score.
    hit
        Whether the highest ranked row lies at an event; ``None`` without one.
    budgets
        By name; ``production`` is what was emitted, ``fixed ...`` is of :func:`fixed_thresholds`. Empty for references
        that raise no alarms.
    delays_s
        Seconds from the beginning of each found event to its first alarm, in production.
    nab
        The series as NAB sees it, by ranked quantity and by score; ``None`` without windows to score.
    misses, false_alarms
        What production missed and raised for nothing.
    left_out
        Columns that are no numbers.
    whole_rows
        Rows of the whole recording, of which ``rows`` were taken.
    picture
        PNG, or empty.
    """

    name: str
    data_set: str
    domain: str
    rows: int
    features: int
    ranked_by: str
    ranked: Ranking
    score: Ranking
    hit: bool | None
    budgets: Mapping[str, AtBudget]
    delays_s: tuple[float, ...]
    attribution: Attribution
    nab: tuple[NabFile, NabFile] | None
    misses: tuple[Moment, ...]
    false_alarms: tuple[Moment, ...]
    left_out: int
    whole_rows: int
    picture: bytes = b""

    @property
    def is_flawless(self) -> bool:
        """Whether production found every event and raised no false alarm."""
        if "production" not in self.budgets:
            return True
        counts = self.budgets["production"].events
        return counts.found == counts.events and counts.false_episodes == 0


def judge(item: LabelledSeries, track: Track, other_budgets: Mapping[str, tuple[Bool, Bool]]) -> SeriesResult:
    """All figures of one series.

    Parameters
    ----------
    other_budgets
        By name, where alerts would have opened and where the verdict would have been anomalous.
    """
    production = (track.event == OPENED, track.verdict == ANOMALOUS)
    has_alarms = bool(np.isfinite(track.threshold).any())
    alarms = {"production": production, **other_budgets, **fixed_thresholds(item, track)} if has_alarms else {}
    budgets = {name: _at_budget(item, *found) for name, found in alarms.items()}
    is_judged = bool(item.labels[item.judged_from :].any())
    found = judged_events(item.labels, production[1], item.judged_from) if has_alarms else []
    return SeriesResult(
        item.name,
        item.entry.data_set,
        item.entry.domain,
        len(item.stream),
        len(item.stream.features),
        item.plan.ranked,
        _ranking(item, track.ranked),
        _ranking(item, track.score),
        hit_within(item.labels, _filled(track.ranked), item.judged_from) if is_judged else None,
        budgets,
        tuple(item.seconds_between(event.first, event.alarm) for event in found if event.alarm is not None),
        _attribution(item, track),
        (
            NabFile(item.name, _filled(track.ranked), item.windows),
            NabFile(item.name, _filled(track.score), item.windows),
        )
        if item.entry.dataset == "nab"
        else None,
        tuple(_moment(item, track, event.first, event.last) for event in found if event.alarm is None),
        _false_alarms(item, track, *production) if has_alarms else (),
        len(item.stream.dropped),
        item.entry.rows,
    )


def _moment(item: LabelledSeries, track: Track, first: int, last: int) -> Moment:
    rows = np.arange(first, last + 1)
    height = np.nan_to_num(track.score[rows] - track.threshold[rows], nan=-np.inf)
    row = int(rows[np.argmax(height)])
    feature = item.stream.features[int(np.argmax(track.contribution[row]))]
    return Moment(row, int(item.stream.times_ms[row]), len(rows), float(height.max()), feature)


def _false_alarms(item: LabelledSeries, track: Track, opened: Bool, alarmed: Bool) -> tuple[Moment, ...]:
    start = item.judged_from
    episodes = episodes_of(opened[start:], alarmed[start:], item.labels[start:])
    return tuple(
        _moment(item, track, start + episode.first, start + episode.last) for episode in episodes if not episode.is_true
    )


def _filled(quantity: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """What has no value is no evidence."""
    return np.nan_to_num(quantity.astype(np.float64), nan=0.0)


def _ranking(item: LabelledSeries, quantity: npt.NDArray[np.floating]) -> Ranking:
    labels, values = item.labels[item.judged_from :], _filled(quantity)[item.judged_from :]
    if not labels.any() or not np.isfinite(quantity).any():
        return Ranking(float("nan"), float("nan"))
    return Ranking(vus_pr(labels, values), auc_pr(labels, values))


def _at_budget(item: LabelledSeries, opened: Bool, alarmed: Bool) -> AtBudget:
    counts = count_events(item.labels, opened, alarmed, item.judged_from, item.row_s / DAY_S)
    clean = item.clean_rows
    return AtBudget(counts, Clean(int(opened[clean].sum()), (clean.stop - clean.start) * item.row_s / DAY_S))


def _attribution(item: LabelledSeries, track: Track) -> Attribution:
    numbers = {name: number for number, name in enumerate(item.stream.features)}
    at_alarms, at_highest = [], []
    for cause in item.root_causes:
        rows = np.arange(cause.first, cause.last + 1)
        named = [numbers[name] for name in cause.features if name in numbers]
        if not named:  # experts may name a column that is no number, and so no feature
            continue
        score, alarmed = _filled(track.score)[rows], track.verdict[rows] == ANOMALOUS
        at_highest.append(_shown(track, rows[np.argmax(score)], named))
        if alarmed.any():
            at_alarms.append(_shown(track, rows[np.argmax(np.where(alarmed, score, -1.0))], named))
    return Attribution(
        len(at_highest),
        len(at_alarms),
        sum(share > 0 for share in at_alarms),
        sum(at_alarms),
        sum(share > 0 for share in at_highest),
        sum(at_highest),
    )


def _shown(track: Track, row: int, named: list[int]) -> float:
    return attribution_share(track.contribution[row], named, SHOWN_FEATURES)


def fixed_thresholds(item: LabelledSeries, track: Track) -> dict[str, tuple[Bool, Bool]]:
    """What thresholds chosen on the series' own clean prefix give: ranking turned to alarms; ``fixed QUANTITY RATE``.

    For series whose prefix is long enough for two alarms of the rate.
    """
    clean = item.clean_rows
    days = (clean.stop - clean.start) * item.row_s / DAY_S
    if not item.labels[clean.stop :].any() or days * min(FIXED.values()) < 2:
        return {}
    quiet = max(QUIET_ROWS, round(QUIET_S / item.row_s))
    found = {}
    for kind, quantity in (("score", track.score), ("ranked", track.ranked)):
        values = _filled(quantity)
        for name, rate in FIXED.items():
            threshold = threshold_at(values[clean], days * rate, quiet)
            found[f"fixed {kind} {name}"] = episodes_above(values, threshold, quiet)
    return found


def replay_budgets(
    series: Sequence[LabelledSeries], tracks: Mapping[str, Track], budgets: Mapping[str, float] = BUDGETS
) -> dict[str, dict[str, tuple[Bool, Bool]]]:
    """For each series and budget, where alerts would have opened and alarms would have been."""
    steps = max(len(item.scored_rows) for item in series)
    columns = [(item, name) for item in series for name in budgets]
    scores = np.full((steps, len(columns)), np.nan, np.float32)
    elapsed = np.zeros((steps, len(columns)), np.float32)
    allowed = np.empty(len(columns))
    for column, (item, name) in enumerate(columns):
        rows = item.scored_rows
        scores[: len(rows), column] = tracks[item.name].score[rows]
        elapsed[1 : len(rows), column] = np.diff(item.stream.times_ms[rows]) / 1000.0
        allowed[column] = DAY_S / budgets[name] / max(item.row_s, 1e-3)
    opened, alarmed = alarms_at(scores, elapsed, allowed)
    found: dict[str, dict[str, tuple[Bool, Bool]]] = {item.name: {} for item in series}
    for column, (item, name) in enumerate(columns):
        whole = np.zeros((2, len(item.stream)), np.bool_)
        whole[0, item.scored_rows] = opened[: len(item.scored_rows), column]
        whole[1, item.scored_rows] = alarmed[: len(item.scored_rows), column]
        found[item.name][name] = (whole[0], whole[1])
    return found
