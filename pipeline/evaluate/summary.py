"""Figures of data sets, domains and everything, from the results of their series.

A predictor with several weights has a run for each of them, and a figure is the mean over runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.evaluation.bootstrap import Interval, bootstrap
from models.evaluation.events import EventCounts, together
from models.evaluation.nab import PROFILES, nab_score
from pipeline.evaluate.judge import BUDGETS, FIXED, Attribution, Clean, SeriesResult
from pipeline.evaluate.plan import PLANTS

Results = Sequence[SeriesResult]
Runs = Sequence[Results]
NAN = float("nan")
NAB_DRAWS, DRAWS = 100, 500
DAY_FACTOR, WEEK_FACTOR = 2.0, 3.0
LEAST_EXPECTED = 1.0
"""False alarms that a data set must be allowed before its ratio says anything."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of a set of series: its key, and how it is computed; NaN where it does not exist."""

    key: str
    words: str
    of: Callable[[Results], float]
    draws: int = DRAWS


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else NAN


def _ranked(kind: str, metric: str) -> Callable[[Results], float]:
    return lambda results: _mean([getattr(getattr(result, kind), metric) for result in results])


def _nab(profile: str, by_score: bool) -> Callable[[Results], float]:
    def score(results: Results) -> float:
        files = [result.nab[by_score] for result in results if result.nab is not None]
        return nab_score(files, profile).score if any(file.windows for file in files) else NAN

    return score


def counts_at(results: Results, budget: str) -> EventCounts:
    """The events of all series at one budget."""
    return together(result.budgets[budget].events for result in results if budget in result.budgets)


def _of_events(budget: str, attribute: str) -> Callable[[Results], float]:
    return lambda results: float(getattr(counts_at(results, budget), attribute))


def _recall(budget: str) -> Callable[[Results], float]:
    """The mean over series of their own recall."""
    return lambda results: _mean(
        [result.budgets[budget].events.recall for result in results if budget in result.budgets]
    )


def _pooled_recall(results: Results) -> float:
    return counts_at(results, "production").recall


def _delay(results: Results) -> float:
    return _mean(counts_at(results, "production").delays)


def _delay_s(results: Results) -> float:
    return _mean([delay for result in results for delay in result.delays_s])


def clean_at(results: Results, budget: str) -> Clean:
    """Stream days in which nothing happened, and the alarms in them."""
    parts = [result.budgets[budget].clean for result in results if budget in result.budgets]
    return Clean(sum(part.alarms for part in parts), sum(part.days for part in parts))


def _budget_ratio(budget: str) -> Callable[[Results], float]:
    def ratio(results: Results) -> float:
        clean = clean_at(results, budget)
        return clean.alarms / (clean.days * BUDGETS[budget]) if clean.days > 0 else NAN

    return ratio


def _sets_within(budget: str, factor: float) -> Callable[[Results], float]:
    """Share of the data sets whose ratio lies within a factor; data sets too short to be allowed an alarm are out."""

    def share(results: Results) -> float:
        return _mean(
            [
                float(1.0 / factor <= _budget_ratio(budget)(found) <= factor)
                for found in by_data_set(results).values()
                if clean_at(found, budget).days * BUDGETS[budget] >= LEAST_EXPECTED
            ]
        )

    return share


def attribution_of(results: Results) -> Attribution:
    """The attribution of all series together."""
    names = Attribution.__slots__
    return Attribution(*(sum(getattr(result.attribution, name) for result in results) for name in names))


def _attribution(of: str, what: str) -> Callable[[Results], float]:
    def rate(results: Results) -> float:
        found = attribution_of(results)
        count = getattr(found, of)
        return getattr(found, what) / count if count else NAN

    return rate


def _hits(results: Results) -> float:
    known = [result.hit for result in results if result.hit is not None]
    return float(sum(known)) if known else NAN


MEASURES = (
    *(
        Measure(f"nab_{profile}", f"NAB {profile.replace('_', ' ')}", _nab(profile, False), NAB_DRAWS)
        for profile in PROFILES
    ),
    Measure("nab_standard_by_score", "NAB standard, by the final score", _nab("standard", True), NAB_DRAWS),
    Measure("vus_pr", "VUS-PR", _ranked("ranked", "vus_pr")),
    Measure("auc_pr", "AUC-PR", _ranked("ranked", "auc_pr")),
    Measure("vus_pr_by_score", "VUS-PR, by the final score", _ranked("score", "vus_pr")),
    Measure("auc_pr_by_score", "AUC-PR, by the final score", _ranked("score", "auc_pr")),
    Measure("hits", "highest score at an event (series)", _hits),
    Measure("events", "labelled events", _of_events("production", "events")),
    Measure("event_recall", "events found, mean over series", _recall("production")),
    Measure("event_recall_pooled", "events found, of all", _pooled_recall),
    Measure("event_precision", "alerts that meet an event", _of_events("production", "precision")),
    Measure("event_f1", "event F1", _of_events("production", "f1")),
    Measure("delay_observations", "mean delay, observations", _delay),
    Measure("delay_s", "mean delay, seconds", _delay_s),
    Measure(
        "false_alarms_per_stream_day",
        "false alarms per stream and day",
        _of_events("production", "false_alarms_per_day"),
    ),
    Measure(
        "normal_share_alarmed",
        "share of normal time under an alarm",
        _of_events("production", "normal_share_alarmed"),
    ),
    *(Measure(f"recall_at_{name}", f"events found at {name}", _recall(name)) for name in BUDGETS),
    *(
        Measure(
            f"false_alarms_per_stream_day_at_{name}",
            f"false alarms per day at {name}",
            _of_events(name, "false_alarms_per_day"),
        )
        for name in BUDGETS
    ),
    *(
        Measure(f"budget_ratio_{name}", f"realised over budgeted at {name}, clean parts", _budget_ratio(name))
        for name in BUDGETS
    ),
    Measure("budget_sets_within_1/day", "data sets within a factor of two at 1/day", _sets_within("1/day", DAY_FACTOR)),
    Measure(
        "budget_sets_within_1/week", "data sets within a factor of three at 1/week", _sets_within("1/week", WEEK_FACTOR)
    ),
    *(
        Measure(
            f"recall_at_fixed_{kind}_{name}",
            f"events found, {kind} above a threshold for {name} on the prefix",
            _recall(f"fixed {kind} {name}"),
        )
        for kind in ("score", "ranked")
        for name in FIXED
    ),
    *(
        Measure(
            f"false_alarms_at_fixed_{kind}_{name}",
            f"its false alarms per day, {kind}, {name}",
            _of_events(f"fixed {kind} {name}", "false_alarms_per_day"),
        )
        for kind in ("score", "ranked")
        for name in FIXED
    ),
    Measure("clean_days", "stream days of clean parts", lambda results: clean_at(results, "1/day").days or NAN),
    Measure("attribution_hit_rate", "a cause among the first five, alerts", _attribution("alerted", "hits")),
    Measure("attribution_share", "share of the causes among the first five, alerts", _attribution("alerted", "shares")),
    Measure(
        "attribution_hit_rate_all_events",
        "a cause among the first five, all events",
        _attribution("events", "hits_all"),
    ),
    Measure(
        "attribution_share_all_events",
        "share of the causes among the first five, all events",
        _attribution("events", "shares_all"),
    ),
)
BY_KEY = {measure.key: measure for measure in MEASURES}


def figure(runs: Runs, key: str) -> float:
    """A figure of a set of series: the mean over runs; NaN where it does not exist."""
    return _mean([BY_KEY[key].of(results) for results in runs])


def figures(runs: Runs) -> dict[str, float]:
    """Every figure of a set of series, by key."""
    return {key: figure(runs, key) for key in BY_KEY}


def interval(runs: Runs, key: str, against: Runs = ()) -> Interval:
    """A figure with its bootstrap interval over series; with ``against``, how much it lies above theirs.

    All runs are of the same series, and a draw takes the same ones from each of them.
    """
    ordered = [sorted(results, key=lambda result: result.name) for results in (*runs, *against)]
    own = len(runs)
    measure = BY_KEY[key]

    def statistic(series: Sequence[tuple[SeriesResult, ...]]) -> float:
        values = [measure.of(results) for results in zip(*series, strict=True)]
        return _mean(values[:own]) - (_mean(values[own:]) if against else 0.0)

    return bootstrap(list(zip(*ordered, strict=True)), statistic, measure.draws)


def by_data_set(results: Results) -> dict[str, list[SeriesResult]]:
    """Series of each data set, by name."""
    return _grouped(results, lambda result: result.data_set)


def by_domain(results: Results) -> dict[str, list[SeriesResult]]:
    """Series of each domain, by name."""
    return _grouped(results, lambda result: result.domain)


def recorded(results: Results) -> list[SeriesResult]:
    """Series that were not generated."""
    return [result for result in results if result.data_set != PLANTS]


def _grouped(results: Results, key: Callable[[SeriesResult], str]) -> dict[str, list[SeriesResult]]:
    groups: dict[str, list[SeriesResult]] = {}
    for result in sorted(results, key=lambda result: result.name):
        groups.setdefault(key(result), []).append(result)
    return dict(sorted(groups.items()))


RECORDED = "recorded"
HEADLINES: Mapping[str, tuple[str | None, str]] = {
    "nab_standard": ("nab", "nab_standard"),
    "nab_low_fp": ("nab", "nab_low_fp"),
    "nab_low_fn": ("nab", "nab_low_fn"),
    "ucr_hits": ("ucr", "hits"),
    "smap_vus_pr": ("smap", "vus_pr"),
    "smap_auc_pr": ("smap", "auc_pr"),
    "msl_vus_pr": ("msl", "vus_pr"),
    "msl_auc_pr": ("msl", "auc_pr"),
    "mscloud_vus_pr": ("mscloud", "vus_pr"),
    "mscloud_auc_pr": ("mscloud", "auc_pr"),
    "smd_vus_pr": ("smd", "vus_pr"),
    "smd_auc_pr": ("smd", "auc_pr"),
    "smd_recall_at_0.5/day": ("smd", "recall_at_0.5/day"),
    "smd_recall_at_fixed_ranked_0.5/day": ("smd", "recall_at_fixed_ranked_0.5/day"),
    "asd_vus_pr": ("asd", "vus_pr"),
    "asd_auc_pr": ("asd", "auc_pr"),
    "skab_vus_pr": ("skab", "vus_pr"),
    "skab_auc_pr": ("skab", "auc_pr"),
    "event_recall": (None, "event_recall"),
    "event_precision": (None, "event_precision"),
    "event_f1": (None, "event_f1"),
    "delay_observations": (None, "delay_observations"),
    "delay_s": (None, "delay_s"),
    "false_alarms_per_stream_day": (None, "false_alarms_per_stream_day"),
    "budget_ratio": (None, "budget_ratio_1/week"),
    "budget_ratio_day": (None, "budget_ratio_1/day"),
    "budget_ratio_recorded": (RECORDED, "budget_ratio_1/week"),
    "budget_ratio_day_recorded": (RECORDED, "budget_ratio_1/day"),
    "attribution_hit_rate": (None, "attribution_hit_rate"),
    "attribution_share": (None, "attribution_share"),
}
"""Key of the summary -> data set (``None``: everything; ``recorded``: without generated plants) and figure."""


def _headline_runs(runs: Runs, key: str) -> tuple[Runs, str]:
    data_set, figure_key = HEADLINES[key]
    if data_set is None:
        return runs, figure_key
    if data_set == RECORDED:
        return [recorded(results) for results in runs], figure_key
    return [by_data_set(results).get(data_set, []) for results in runs], figure_key


def headlines(runs: Runs) -> dict[str, float]:
    """The figures by which a run is judged, by key; NaN where their series were not in the run."""
    return {key: figure(*_headline_runs(runs, key)) for key in HEADLINES}


def headline_interval(runs: Runs, key: str, against: Runs = ()) -> Interval:
    """A headline with its bootstrap interval over series; with ``against``, how much it lies above theirs."""
    chosen, figure_key = _headline_runs(runs, key)
    return interval(chosen, figure_key, _headline_runs(against, key)[0] if against else ())
