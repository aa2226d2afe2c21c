"""What a track is worth against the labels of its series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.evaluation.budget import alarms_at
from models.evaluation.events import (
    EventCounts,
    attribution_hit,
    count_events,
    episodes_above,
    hit_within,
    threshold_at,
)
from models.evaluation.nab import NabFile
from models.evaluation.ranking import auc_pr, vus_pr
from pipeline.evaluate.fold import Track
from pipeline.evaluate.series import LabelledSeries
from pipeline.records import OPENED, VERDICTS, Bool

DAY_S = 86_400.0
BUDGETS: Mapping[str, float] = {"0.25/day": 0.25, "0.5/day": 0.5, "1/day": 1.0, "1/week": 1.0 / 7.0}
"""False alarms allowed per stream and day."""
FIXED: Mapping[str, float] = {"0.25/day": 0.25, "0.5/day": 0.5, "1/day": 1.0}
"""False alarms per day for which a threshold is chosen on a clean training prefix, without labels and controller."""
QUIET_S, QUIET_ROWS = 1800.0, 10
ANOMALOUS = VERDICTS.index("anomalous")
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
    """Events with known causes; those of them with an alert; and how often a cause was among the features shown.

    ``hits`` of ``alerted`` events at the strongest alarm, ``hits_all`` of all ``events`` at the highest score.
    """

    events: int
    alerted: int
    hits: int
    hits_all: int


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
    delays = budgets["production"].events.delays if budgets else ()
    return SeriesResult(
        item.name,
        item.entry.dataset,
        item.entry.domain,
        len(item.stream),
        len(item.stream.features),
        item.plan.ranked,
        _ranking(item, track.ranked),
        _ranking(item, track.score),
        hit_within(item.labels, _filled(track.ranked), item.judged_from) if is_judged else None,
        budgets,
        tuple(delay * item.row_s for delay in delays),
        _attribution(item, track),
        (
            NabFile(item.name, _filled(track.ranked), item.windows),
            NabFile(item.name, _filled(track.score), item.windows),
        )
        if item.entry.dataset == "nab"
        else None,
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
    alerted = hits = hits_all = 0
    for cause in item.root_causes:
        rows = np.arange(cause.first, cause.last + 1)
        named = [numbers[name] for name in cause.features]
        score = _filled(track.score)[rows]
        hits_all += attribution_hit(track.contribution[rows[np.argmax(score)]], named, SHOWN_FEATURES)
        alarmed = track.verdict[rows] == ANOMALOUS
        if alarmed.any():
            alerted += 1
            strongest = rows[np.argmax(np.where(alarmed, score, -1.0))]
            hits += attribution_hit(track.contribution[strongest], named, SHOWN_FEATURES)
    return Attribution(len(item.root_causes), alerted, hits, hits_all)


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
