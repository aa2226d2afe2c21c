"""From evidence to a calibrated score, and from the score to alarms within a budget (recipe.md, tail and alarm budget).

References
----------
Pareto tail over a high quantile: Pickands (1975); Siffer et al., "Anomaly detection in streams with extreme value
theory" (KDD 2017), where the tail of s above q is fitted by moments; here beta is Hill's estimator (1975) of 1 / alpha,
running and capped. Running quantile: Robbins and Monro (1951), step scaled by the running mean deviation.
Controller: one integral term on the rate of episodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.pretrained import PooledTail

LN10 = math.log(10.0)
TAIL_SHARE = 0.02
TAIL_NATS = -math.log(TAIL_SHARE)
TAIL_WINDOW = 5000.0
# A, s and T^2 / F are about 1 on quiet data: below this they are quiet, and scales that sank further could not return.
LEAST_QUANTILE = 0.1
LEAST_DEVIATION = 0.01
LEAST_BETA = 0.02
LEVEL_FLOOR = 0.01
WARM_UP = 100.0
POOLED_UNTIL = 1000.0
POOLED_WEIGHT = 1000.0
# Exceedances seen and expected that a stream's own rate starts from.
OWN_RATE_PRIOR = 3.0
QUIET_S = 1800.0
QUIET_OBSERVATIONS = 10.0
CRITICAL_DECADES = 2.0
UPDATE_DECADES = 1.0
CONTROLLER_MAX = 6.0
CONTROLLER_MIN = -1.0
HYSTERESIS_NATS = 1.0

NORMAL, ANOMALOUS, WARMING_UP, MISSING = 0, 1, 2, 3
NO_EVENT, OPENED, UPDATED, RESOLVED = 0, 1, 2, 3


@dataclass(slots=True)
class QuantileTail:
    """Running tail of A, s or T^2: 98 % quantile q, mean deviation D, Pareto beta, exceedances."""

    quantile: Tensor
    deviation: Tensor
    beta: Tensor
    exceedances: Tensor

    def start_from(self, pooled: PooledTail) -> None:
        """Give rows without a past the pooled tail (a fresh row holds zeros)."""
        fresh = self.quantile <= 0
        self.quantile.masked_fill_(fresh, pooled.level)
        self.beta.masked_fill_(fresh, pooled.beta)

    def nats(self, s: Tensor, age: Tensor, pooled: PooledTail) -> Tensor:
        """Nats of evidence s: Pareto above q, linear below; ``age`` is the number of observations behind the tail."""
        share = pooled_share(age)
        quantile = torch.lerp(self.quantile, self.quantile.new_tensor(pooled.level), share)
        beta = torch.lerp(self.beta, self.beta.new_tensor(pooled.beta), share)
        ratio = s / quantile
        return torch.where(ratio > 1.0, torch.log(ratio.clamp_min(1.0)) / beta + TAIL_NATS, ratio * TAIL_NATS)

    def fold(self, s: Tensor, age: Tensor, weight: Tensor) -> None:
        """Move the tail by s where ``weight`` is 1."""
        rate = torch.reciprocal(age + 1.0).clamp_min_(1.0 / TAIL_WINDOW).mul_(weight)
        deviation = torch.where(self.deviation > 0, self.deviation, s.clamp_min(LEAST_DEVIATION))
        above = s > self.quantile
        distance = torch.minimum((s - self.quantile).abs_(), 10.0 * deviation)
        excess = torch.log((s / self.quantile).clamp_min_(1.0))
        over = weight * above
        _fold_beta(self.beta, self.exceedances, excess, over)
        pull = torch.where(above, (1.0 - TAIL_SHARE) / TAIL_SHARE, -1.0)
        self.quantile.add_(rate * deviation * pull).clamp_min_(LEAST_QUANTILE)
        moved = torch.lerp(deviation, distance, rate).clamp_min_(LEAST_DEVIATION)
        self.deviation.copy_(torch.where(weight > 0, moved, self.deviation))


@dataclass(slots=True)
class RateTail:
    """Running tail of S, which is mostly 0: rate of S > 0.01 and Pareto beta over S / 0.01.

    S counts records, and a stream's records become rarer as its memory grows: of n exchangeable values the last is the
    greatest with probability 1 / n (Rényi, 1962). So the pooled rate is R / n, up to the memory of the tail, and the
    stream's own rate is learned as a factor on it: exceedances seen over exceedances expected.
    """

    seen: Tensor
    expected: Tensor
    beta: Tensor
    exceedances: Tensor

    def start_from(self, pooled: PooledTail) -> None:
        """Give rows without a past the pooled tail (a fresh row holds zeros)."""
        self.beta.masked_fill_(self.beta <= 0, pooled.beta)

    def nats(self, s: Tensor, age: Tensor, pooled: PooledTail) -> Tensor:
        """-ln lambda + ln(S / 0.01) / beta where S > 0.01, else 0."""
        rate = record_rate(age, pooled) * (self.seen + OWN_RATE_PRIOR) / (self.expected + OWN_RATE_PRIOR)
        beta = torch.lerp(self.beta, self.beta.new_tensor(pooled.beta), pooled_share(age))
        excess = torch.log((s * (1.0 / LEVEL_FLOOR)).clamp_min_(1.0))
        return (excess / beta - torch.log(rate.clamp_max_(1.0))).mul_(s > LEVEL_FLOOR)

    def fold(self, s: Tensor, age: Tensor, weight: Tensor, pooled: PooledTail) -> None:
        """Move the tail by S where ``weight`` is 1."""
        over = (s > LEVEL_FLOOR) * weight
        fade = weight * (1.0 / TAIL_WINDOW)
        self.seen.add_(over - self.seen * fade)
        self.expected.add_(record_rate(age, pooled) * weight - self.expected * fade)
        excess = torch.log((s * (1.0 / LEVEL_FLOOR)).clamp_min_(1.0))
        _fold_beta(self.beta, self.exceedances, excess, over)


def record_rate(age: Tensor, pooled: PooledTail) -> Tensor:
    """Pooled probability of S > 0.01 after ``age`` valid observations: R / n, between the warm-up and 5000."""
    return pooled.level / age.clamp(WARM_UP, TAIL_WINDOW)


def _fold_beta(beta: Tensor, exceedances: Tensor, excess: Tensor, over: Tensor) -> None:
    rate = torch.reciprocal(exceedances + 1.0).clamp_min_(0.01).mul_(over)
    beta.lerp_(torch.minimum(excess, 10.0 * beta), rate).clamp_min_(LEAST_BETA)
    exceedances.add_(over)


def pooled_share(age: Tensor) -> Tensor:
    """Weight of the pooled tail: 1000 / (1000 + n) until n = 1000, then none."""
    return (POOLED_WEIGHT / (POOLED_WEIGHT + age)).mul_(age < POOLED_UNTIL)


def score_of(nats: Tensor, compared: Tensor) -> Tensor:
    """-log10 p of the strongest of ``compared`` kinds of evidence (Bonferroni), rounded to 3 decimals, at least 0."""
    corrected = (nats - torch.log(compared.clamp_min(1.0))).clamp_min_(0.0)
    return round_score(corrected / LN10)


def round_score(score: Tensor) -> Tensor:
    """Rounded to 3 decimals: what is emitted is what was decided on."""
    return torch.round(score * 1000.0).div_(1000.0)


@dataclass(slots=True)
class AlertLife:
    """Counters, controller and alert life of N streams, ``(N,)`` each, in the order of the entity row."""

    count: Tensor
    forecasts: Tensor
    interval_s: Tensor
    intervals: Tensor
    controller: Tensor
    controller_rest: Tensor
    open: Tensor
    quiet_count: Tensor
    quiet_s: Tensor
    peak: Tensor
    reported: Tensor
    severity: Tensor


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided on one observation of N streams; ``peak`` and ``severity`` are its episode's."""

    threshold: Tensor
    verdict: Tensor
    event: Tensor
    peak: Tensor
    severity: Tensor
    controller: Tensor


def decide(
    life: AlertLife, score: Tensor, scored: Tensor, elapsed_s: Tensor, observations_per_alarm: Tensor | float
) -> Decision:
    """Decide with the controller as it was, then move alert life and controller.

    Parameters
    ----------
    score
        ``(N,)`` rounded scores.
    scored
        ``(N,)`` bool: the observation has a valid value. Others change nothing but the seconds since the last alarm.
    elapsed_s
        ``(N,)`` seconds since the stream's previous observation, 0 for the first.
    observations_per_alarm
        The budget: observations in which one false alarm is allowed.
    """
    budget = torch.as_tensor(observations_per_alarm, dtype=score.dtype, device=score.device).clamp_min(1.0)
    threshold = round_score((torch.log(budget) + life.controller) / LN10)
    warm = life.count >= WARM_UP
    alarm = scored & warm & (score > threshold)
    was_open = life.open > 0.5
    holding = alarm | (was_open & scored & warm & (score > threshold - HYSTERESIS_NATS / LN10))

    life.quiet_s.add_(elapsed_s).masked_fill_(holding, 0.0)
    life.quiet_count.add_(scored).masked_fill_(holding, 0.0)
    opened = alarm & ~was_open
    over = (life.quiet_count >= QUIET_OBSERVATIONS) & (life.quiet_s >= QUIET_S)
    resolved = was_open & scored & over
    severity = torch.where(alarm, (score >= threshold + CRITICAL_DECADES).to(score.dtype) + 1.0, 0.0)
    worse = (severity > life.severity) | (score >= life.reported + UPDATE_DECADES)
    updated = alarm & was_open & worse

    peak = torch.where(holding, torch.maximum(life.peak, score), life.peak)
    worst = torch.maximum(life.severity, severity)
    event = opened * OPENED + updated * UPDATED + resolved * RESOLVED
    decision = Decision(
        threshold, _verdict(alarm, warm, scored), event.to(torch.uint8), peak, worst, life.controller + 0
    )

    life.peak.copy_(peak).masked_fill_(resolved, 0.0)
    life.severity.copy_(worst).masked_fill_(resolved, 0.0)
    life.reported.copy_(torch.where(opened | updated, score, life.reported)).masked_fill_(resolved, 0.0)
    life.open.masked_fill_(opened, 1.0).masked_fill_(resolved, 0.0)
    _control(life, opened.to(score.dtype) - (scored & warm) / budget)
    return decision


def _verdict(alarm: Tensor, warm: Tensor, scored: Tensor) -> Tensor:
    verdict = torch.where(warm, alarm * ANOMALOUS, WARMING_UP)
    return torch.where(scored, verdict, MISSING).to(torch.uint8)


def _control(life: AlertLife, change: Tensor) -> None:
    """d += change within [-1, 6], by a compensated sum: one observation's share of a week is below float32's grain.

    References
    ----------
    W. Kahan, "Further remarks on reducing truncation errors" (1965).
    """
    addend = change + life.controller_rest
    total = life.controller + addend
    bounded = total.clamp(CONTROLLER_MIN, CONTROLLER_MAX)
    rest = addend - (total - life.controller)
    life.controller_rest.copy_(rest.mul_(bounded == total))
    life.controller.copy_(bounded)
