"""Pooled tails: where the evidence of a stream without a past begins, measured on generated normal series.

The scorer of production folds series that nothing happens to, and what each of them would have learned about its own
tail after its warm-up is pooled over series (recipe.md, "Tail and alarm budget").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.config import Evidence, FoldConfig
from models.pretrained import PooledTail, PooledTails, Weights
from models.step import Scorer, Trace
from models.synthetic import SENSORS, network, plant, undisturbed
from models.tail import LEAST_BETA, LEAST_QUANTILE, LEVEL_FLOOR, TAIL_SHARE, TAIL_WINDOW, WARM_UP

INTERVAL_S = 300.0
OBSERVATIONS_PER_CALL = 64
FEWEST_EXCEEDANCES = 3
# Three of four streams start with a tail heavier than their own: the first alarms of a new stream are the ones nobody
# can check yet.
CAREFUL = 0.75


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

    S and A come from single series of every family; s from the counters of a generated network's hosts; T^2 from the
    units of a generated plant, whose sensors are coupled. The first 100 observations, a stream's warm-up, do not count.

    Raises
    ------
    ValueError
        Fewer than 500 observations: T^2 begins after 400.
    """
    if effort.observations < 500:
        raise ValueError(f"{effort.observations} observations leave nothing to pool: T^2 begins after 400")
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
    return PooledTails(
        level=_rate_tail(single["level"]),
        activity=_quantile_tail(single["activity"]),
        entity=_quantile_tail(jump["entity"]),
        values=_quantile_tail(coupled["values"]),
        residuals=_quantile_tail(coupled["residuals"]),
    )


def _fold(weights: Weights, evidence: Evidence, values: Tensor, start_ms: Tensor) -> dict[str, Tensor]:
    """Evidence ``(T, streams)`` after warm-up, by its name in :class:`models.step.Trace`, of ``values`` (T, N, F)."""
    steps, streams, features = values.shape
    names = tuple(f"feature_{i}" for i in range(features))
    scorer = Scorer(weights, FoldConfig(names, INTERVAL_S, evidence))
    rows, slots = scorer.rows(streams), torch.arange(streams)
    times_ms = start_ms + (1000 * INTERVAL_S * torch.arange(steps)).long().unsqueeze(1)
    last_ms = torch.full((streams,), -1)
    kept: dict[str, list[Tensor]] = {name: [] for name in ("level", "activity", "entity", "values", "residuals")}
    for start in range(0, steps, OBSERVATIONS_PER_CALL):
        now = slice(start, start + OBSERVATIONS_PER_CALL)
        trace: Trace | None = scorer.score(rows, slots, values[now], times_ms[now], last_ms, detail=True).trace
        assert trace is not None
        last_ms = times_ms[now][-1]
        for name, pieces in kept.items():
            pieces.append(getattr(trace, name))
    return {name: torch.cat(pieces)[int(WARM_UP) :].flatten(1) for name, pieces in kept.items()}


def _rate_tail(level: Tensor) -> PooledTail:
    """R, exceedances over the sum of 1 / n, and the median over series of their own beta."""
    exceeds = level > LEVEL_FLOOR
    own = [torch.log(s[over] / LEVEL_FLOOR).mean() for s, over in zip(level.T, exceeds.T, strict=True)]
    enough = [beta for beta, over in zip(own, exceeds.T, strict=True) if int(over.sum()) >= FEWEST_EXCEEDANCES]
    ages = torch.arange(len(level)) + WARM_UP
    chances = level.shape[1] * torch.reciprocal(ages.clamp_max(TAIL_WINDOW)).sum()
    return _tail(exceeds.double().sum() / chances, torch.stack(enough).median())


def _quantile_tail(evidence: Tensor) -> PooledTail:
    """The upper quartile over series of their own 98 % quantile and of their own beta above it."""
    levels, betas = [], []
    for series in evidence.T:
        known = series[torch.isfinite(series)]
        level = torch.quantile(known, 1.0 - TAIL_SHARE)
        levels.append(level)
        betas.append(torch.log(known[known > level] / level).mean())
    return _tail(
        torch.stack(levels).quantile(CAREFUL).clamp_min(LEAST_QUANTILE), torch.stack(betas).nanquantile(CAREFUL)
    )


def _tail(level: Tensor, beta: Tensor) -> PooledTail:
    return PooledTail(round(float(level), 4), round(max(float(beta), LEAST_BETA), 4))
