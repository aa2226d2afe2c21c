"""Pooled tails: where the evidence of a stream without a past begins, measured on generated normal series.

The scorer of production folds series that nothing happens to, and what each of them would have learned about its own
tail after its warm-up is pooled over series (docs/score.md, "Tails").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.config import Evidence, FoldConfig
from models.pretrained import PooledTail, PooledTails, Weights
from models.step import Scorer
from models.synthetic import SENSORS, network, plant, undisturbed
from models.tail import CLUSTER_QUIET, LEAST_BETA, LEAST_QUANTILE, LEVEL_FLOOR, RECORD_WINDOW, TAIL_SHARE, WARM_UP

INTERVAL_S = 300.0
OBSERVATIONS_PER_CALL = 64
FEWEST_EXCEEDANCES = 3
# Three of four streams start with a tail heavier than their own: the first alarms of a new stream are the ones nobody
# can check yet.
CAREFUL = 0.75
# Undisturbed generated series are cleaner than any real one: their clusters hardly rise above q.
LEAST_PRIOR_BETA = 0.3
# Displacement and stillness hardly leave what is usual where nothing is generated to happen, and often do in
# recordings: streams start from the q of the wildest of a hundred series, and from a wide tail. The displacement of an
# entity is 0 on all but a few of the generated ones: streams start from a q of one spread beyond the usual five.
WILDEST, BEARING_BETA = 0.99, 0.5
LEAST_ENTITY_DISPLACEMENT = 1.0


@dataclass(frozen=True, slots=True)
class Effort:
    """How much to fold: generated series, hosts of a network, units of a plant, observations of each."""

    series: int = 352
    hosts: int = 48
    units: int = 48
    observations: int = 2048


FULL_EFFORT = Effort()


def pooled_tails(weights: Weights, seed: int, effort: Effort = FULL_EFFORT) -> PooledTails:
    """The pooled tail of every kind of evidence, for weights whose own pooled tails do not matter.

    S and behaviour come from single series of every family; s from the counters of a generated network's hosts; T^2
    from the units of a generated plant, whose sensors are coupled. The first 100 observations, a stream's warm-up, do
    not count.

    Raises
    ------
    ValueError
        Fewer than 500 observations: T^2 begins with 400 complete ones, from the 20th on.
    """
    if effort.observations < 500:
        raise ValueError(f"{effort.observations} observations leave nothing to pool: T^2 begins after 420")
    made = undisturbed(effort.series, effort.observations, seed)
    values = torch.from_numpy(np.ascontiguousarray(made.values.T))
    start_ms = torch.from_numpy(made.times_ms[:, 0])
    single = _fold(weights, "single", values.unsqueeze(2), start_ms)
    hosts = network(effort.hosts, effort.observations, 0, seed)
    counters = torch.from_numpy(np.stack([host.values for host in hosts], 1))
    jump = _fold(weights, "jump", counters, start_ms[: effort.hosts])
    sensors = plant(effort.units * len(SENSORS), effort.observations, 0, seed, interval_s=INTERVAL_S)
    units = torch.from_numpy(np.stack([sensor.values[:, 0] for sensor in sensors], 1))
    coupled = _fold(weights, "coupled", units.view(-1, effort.units, len(SENSORS)), start_ms[: effort.units])
    short_activity, activity, long_activity = _alike(
        *(_cluster_tail(single[name]) for name in ("short_activity", "middle_activity", "long_activity"))
    )
    entity, entity_mean, entity_rms = _alike(
        *(_cluster_tail(jump[name]) for name in ("entity", "entity_mean", "entity_rms"))
    )
    return PooledTails(
        level=_rate_tail(single["level"]),
        short_activity=short_activity,
        activity=activity,
        long_activity=long_activity,
        displacement=_bearing_tail(single["displacement"], activity.rate),
        stillness=_bearing_tail(single["stillness"], activity.rate),
        entity=entity,
        entity_mean=entity_mean,
        entity_rms=entity_rms,
        entity_displacement=_bearing_tail(jump["entity_displacement"], entity.rate, LEAST_ENTITY_DISPLACEMENT),
        values=_cluster_tail(coupled["values"]),
        residuals=_cluster_tail(coupled["residuals"]),
        means=_cluster_tail(coupled["means"]),
    )


def _fold(weights: Weights, evidence: Evidence, values: Tensor, start_ms: Tensor) -> dict[str, Tensor]:
    """Evidence ``(T, streams)`` after warm-up, by its name in :data:`models.outcome.Trace`, of ``values`` (T, N, F)."""
    steps, streams, features = values.shape
    scorer = Scorer(weights, FoldConfig(tuple(f"feature_{i}" for i in range(features)), INTERVAL_S, evidence))
    rows, slots = scorer.rows(streams), torch.arange(streams)
    times_ms = start_ms + (1000 * INTERVAL_S * torch.arange(steps)).long().unsqueeze(1)
    last_ms = torch.full((streams,), -1)
    names = (
        "level",
        "short_activity",
        "middle_activity",
        "long_activity",
        "displacement",
        "stillness",
        "entity",
        "entity_mean",
        "entity_rms",
        "entity_displacement",
        "values",
        "residuals",
        "means",
    )
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    for start in range(0, steps, OBSERVATIONS_PER_CALL):
        now = slice(start, start + OBSERVATIONS_PER_CALL)
        trace = scorer.score(rows, slots, values[now], times_ms[now], last_ms, detail=frozenset(kept)).trace
        last_ms = times_ms[now][-1]
        for name, pieces in kept.items():
            pieces.append(trace[name])
    return {name: torch.cat(pieces)[int(WARM_UP) :].flatten(1) for name, pieces in kept.items()}


def _rate_tail(level: Tensor) -> PooledTail:
    """R, exceedances over the sum of 1 / n, and the median over series of their own beta."""
    exceeds = level > LEVEL_FLOOR
    own = [torch.log(s[over] / LEVEL_FLOOR).mean() for s, over in zip(level.T, exceeds.T, strict=True)]
    enough = [beta for beta, over in zip(own, exceeds.T, strict=True) if int(over.sum()) >= FEWEST_EXCEEDANCES]
    ages = torch.arange(len(level)) + WARM_UP
    chances = level.shape[1] * torch.reciprocal(ages.clamp_max(RECORD_WINDOW)).sum()
    return _tail(LEVEL_FLOOR, float(exceeds.double().sum() / chances), float(torch.stack(enough).median()))


def _cluster_tail(evidence: Tensor) -> PooledTail:
    """The upper quartile over series of their own 95 % quantile and beta above it; the mean rate of clusters."""
    levels, betas, clusters, observations = _levels(evidence), [LEAST_PRIOR_BETA], 0, 0
    for known, level in zip(_known(evidence), levels, strict=True):
        peaks = cluster_peaks(known, level)
        clusters, observations = clusters + len(peaks), observations + len(known)
        if len(peaks) >= FEWEST_EXCEEDANCES:
            betas.append(float(np.log(peaks / level).mean()))
    beta = max(float(np.quantile(betas, CAREFUL)), LEAST_PRIOR_BETA)
    return _tail(float(np.quantile(levels, CAREFUL)), max(clusters, 1) / observations, beta)


def _bearing_tail(evidence: Tensor, rate: float, least: float = LEAST_QUANTILE) -> PooledTail:
    return _tail(max(float(np.quantile(_levels(evidence), WILDEST)), least), rate, BEARING_BETA)


def _levels(evidence: Tensor) -> list[float]:
    """The 95 % quantile of each series."""
    return [max(float(np.quantile(known, 1.0 - TAIL_SHARE)), LEAST_QUANTILE) for known in _known(evidence)]


def _known(evidence: Tensor) -> list[npt.NDArray[np.float64]]:
    return [series[torch.isfinite(series)].double().numpy() for series in evidence.T]


def _alike(*tails: PooledTail) -> list[PooledTail]:
    """Tails of one kind of evidence over several windows, with an equal rate (their median) and beta (their mean).

    Which window says most of a stream is for its own past to decide: with rates of their own the long windows, whose
    clusters are few, would outweigh the short ones on every stream too young to know better.
    """
    rate, beta = float(np.median([tail.rate for tail in tails])), float(np.mean([tail.beta for tail in tails]))
    return [_tail(tail.level, rate, beta) for tail in tails]


def cluster_peaks(evidence: npt.NDArray[np.float64], level: float) -> npt.NDArray[np.float64]:
    """The greatest value of each cluster above ``level``; ten values below it end a cluster."""
    above = np.flatnonzero(evidence > level)
    if not len(above):
        return np.empty(0)
    begins = np.flatnonzero(np.diff(above, prepend=-CLUSTER_QUIET - 1) > CLUSTER_QUIET)
    return np.maximum.reduceat(evidence[above], begins)


def _tail(level: float, rate: float, beta: float) -> PooledTail:
    return PooledTail(round(level, 4), round(rate, 6), round(max(beta, LEAST_BETA), 4))
