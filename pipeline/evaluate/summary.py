"""Figures of data sets, domains and everything, from the results of their series."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.evaluation.bootstrap import Interval, bootstrap
from models.evaluation.events import EventCounts, together
from models.evaluation.nab import PROFILES, nab_score
from pipeline.evaluate.judge import BUDGETS, FIXED, SeriesResult

Results = Sequence[SeriesResult]
NAN = float("nan")
NAB_DRAWS, DRAWS = 100, 500


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
    return lambda results: _mean([result.budgets[budget].events.recall for result in results if result.budgets])


def _pooled_recall(budget: str) -> Callable[[Results], float]:
    return lambda results: counts_at(results, budget).recall


def _delay(results: Results) -> float:
    delays = counts_at(results, "production").delays
    return float(np.mean(delays)) if delays else NAN


def _delay_s(results: Results) -> float:
    delays = [delay for result in results for delay in result.delays_s]
    return float(np.mean(delays)) if delays else NAN


def _budget_ratio(budget: str, per_day: float) -> Callable[[Results], float]:
    def ratio(results: Results) -> float:
        clean = [result.budgets[budget].clean for result in results if budget in result.budgets]
        days = sum(part.days for part in clean)
        return sum(part.alarms for part in clean) / (days * per_day) if days > 0 else NAN

    return ratio


def _clean_days(results: Results) -> float:
    return sum(result.budgets["production"].clean.days for result in results if result.budgets) or NAN


def _attribution(over_all: bool) -> Callable[[Results], float]:
    def rate(results: Results) -> float:
        parts = [result.attribution for result in results]
        of = sum(part.events if over_all else part.alerted for part in parts)
        hits = sum(part.hits_all if over_all else part.hits for part in parts)
        return hits / of if of else NAN

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
    Measure("event_recall", "events found, mean over series", _recall("production")),
    Measure("event_precision", "alerts that meet an event", _of_events("production", "precision")),
    Measure("event_f1", "event F1", _of_events("production", "f1")),
    Measure("delay_observations", "mean delay, observations", _delay),
    Measure("delay_s", "mean delay, seconds", _delay_s),
    Measure(
        "false_alarms_per_stream_day",
        "false alarms per stream and day",
        _of_events("production", "false_alarms_per_day"),
    ),
    *(Measure(f"recall_at_{name}", f"events found at {name}", _pooled_recall(name)) for name in BUDGETS),
    *(
        Measure(
            f"false_alarms_per_stream_day_at_{name}",
            f"false alarms per day at {name}",
            _of_events(name, "false_alarms_per_day"),
        )
        for name in BUDGETS
    ),
    *(
        Measure(f"budget_ratio_{name}", f"realised over budgeted at {name}, clean parts", _budget_ratio(name, rate))
        for name, rate in BUDGETS.items()
    ),
    *(
        Measure(
            f"recall_at_fixed_{kind}_{name}",
            f"events found, {kind} above a threshold for {name} on the prefix",
            _pooled_recall(f"fixed {kind} {name}"),
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
    Measure("clean_days", "stream days of clean parts", _clean_days),
    Measure("attribution_hit_rate", "cause among the first five, alerts", _attribution(False)),
    Measure("attribution_hit_rate_all_events", "cause among the first five, all events", _attribution(True)),
)
BY_KEY = {measure.key: measure for measure in MEASURES}


def figures(results: Results, keys: Sequence[str] = tuple(BY_KEY)) -> dict[str, float]:
    """Every figure of a set of series, by key."""
    return {key: BY_KEY[key].of(results) for key in keys}


def interval(results: Results, key: str) -> Interval:
    """A figure with its bootstrap interval over series."""
    measure = BY_KEY[key]
    return bootstrap(results, measure.of, measure.draws)


def by_data_set(results: Results) -> dict[str, list[SeriesResult]]:
    """Series of each data set, by name."""
    return _grouped(results, lambda result: result.data_set)


def by_domain(results: Results) -> dict[str, list[SeriesResult]]:
    """Series of each domain, by name."""
    return _grouped(results, lambda result: result.domain)


def _grouped(results: Results, key: Callable[[SeriesResult], str]) -> dict[str, list[SeriesResult]]:
    groups: dict[str, list[SeriesResult]] = {}
    for result in sorted(results, key=lambda result: result.name):
        groups.setdefault(key(result), []).append(result)
    return dict(sorted(groups.items()))


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
    "smd_recall_at_fixed_0.5/day": ("smd", "recall_at_fixed_score_0.5/day"),
    "asd_vus_pr": ("asd", "vus_pr"),
    "asd_auc_pr": ("asd", "auc_pr"),
    "skab_vus_pr": ("skab", "vus_pr"),
    "skab_auc_pr": ("skab", "auc_pr"),
    "event_recall": (None, "event_recall"),
    "event_precision": (None, "event_precision"),
    "false_alarms_per_stream_day": (None, "false_alarms_per_stream_day"),
    "budget_ratio": (None, "budget_ratio_1/week"),
    "budget_ratio_day": (None, "budget_ratio_1/day"),
    "attribution_hit_rate": (None, "attribution_hit_rate"),
}
"""Key of the summary -> data set (``None``: everything) and figure."""


def headlines(results: Results) -> dict[str, float]:
    """The figures by which a run is judged, by key; NaN where their series were not in the run."""
    sets = by_data_set(results)
    return {
        key: BY_KEY[figure].of(results if data_set is None else sets.get(data_set, []))
        for key, (data_set, figure) in HEADLINES.items()
    }


def headline_interval(results: Results, key: str) -> Interval:
    """A headline with its bootstrap interval over series."""
    data_set, figure = HEADLINES[key]
    return interval(results if data_set is None else by_data_set(results).get(data_set, []), figure)
