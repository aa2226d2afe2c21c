"""From evidence to a calibrated score, and from the score to alarms within a budget (docs/score.md, "Tails" and after).

References
----------
Peaks over threshold with declustering: evidence above a high quantile comes in clusters, whose peaks are independent
and Pareto-like and whose rate is what alarms are counted in (M. Leadbetter, "On a basis for peaks over threshold
modeling", 1991; runs declustering: S. Coles, "An Introduction to Statistical Modeling of Extreme Values", 2001, section
5.3.2). In streams, without clusters: Siffer et al., "Anomaly detection in streams with extreme value theory" (KDD
2017). beta is Hill's estimator (1975) of 1 / alpha over cluster peaks, running and capped. Running quantile: Robbins
and Monro (1951), step scaled by the running mean deviation. Controller: one integral term on the rate of episodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.pretrained import PooledTail

LN10 = math.log(10.0)
TAIL_SHARE = 0.05
TAIL_WINDOW = 20_000.0
# A cluster ends after this many observations below q.
CLUSTER_QUIET = 10.0
# One cluster moves beta as if its peak were at most so many times the usual excess: a fault is one odd cluster.
CLUSTER_CAP = 4.0
# Within a cluster, q and D move ever more slowly: by 1 / (1 + length / 50) of their step, at least a tenth, so that a
# fault of some hundred observations does not become what is normal. What has lasted 1000 observations does: from then
# on q grows by 1 / 1000 with each that exceeds it.
CLUSTER_PATIENCE = 50.0
CLUSTER_LEAST_STEP = 0.1
LASTING = 1000.0
# What the pooled tail knows counts as so many clusters.
PRIOR_CLUSTERS = 10.0
SLOWEST_BETA = 0.02
# Below q there is no tail: evidence that hardly varies lies at its q, however seldom it rises above.
QUIET_NATS = math.log(100.0)
RECORD_WINDOW = 5000.0
# A, s and T^2 / F are about 1 on quiet data, displacement and stillness less: below this all are quiet, and scales that
# sank further could not return.
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
CONTROLLER_MAX = 1.0
CONTROLLER_MIN = -1.0
HYSTERESIS_NATS = 1.0
LEAST_HYSTERESIS = 0.5

NORMAL, ANOMALOUS, WARMING_UP, MISSING = 0, 1, 2, 3
NO_EVENT, OPENED, UPDATED, RESOLVED = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Prior:
    """Pooled tails of the W kinds of evidence of a :class:`ClusterTail`: ``(W, 1)`` each, ``(1,)`` where W = 1.

    ``least_level`` and ``least_beta`` bound what a stream may learn.
    """

    level: Tensor
    rate: Tensor
    beta: Tensor
    least_level: Tensor
    least_beta: Tensor

    @classmethod
    def of(cls, like: Tensor, *pooled: PooledTail, least: Sequence[float] | None = None) -> Prior:
        """The prior of some kinds, of the type and on the device of ``like``; ``least`` are shares of it."""
        shares = least or [0.0] * len(pooled)
        numbers = like.new_tensor(
            [
                (it.level, it.rate, it.beta, max(LEAST_QUANTILE, share * it.level), max(LEAST_BETA, share * it.beta))
                for it, share in zip(pooled, shares, strict=True)
            ]
        )
        return cls(*(numbers.unsqueeze(2) if len(pooled) > 1 else numbers).unbind(1))


@dataclass(slots=True)
class ClusterTail:
    """Running tail of evidence such as A, s or T^2: how often it rises above its 95 % quantile q, and how far.

    A cluster begins when s exceeds q and ends after ten observations below it. Clusters, not observations, are counted
    and their peaks measured: evidence is smooth, so that one fault exceeds q many times in a row, and an alarm is one
    alarm however long it lasts. Fields are ``(W, R)``: W kinds of evidence of R rows, each by itself; ``(R,)`` of one.
    """

    quantile: Tensor
    deviation: Tensor
    rate: Tensor
    beta: Tensor
    clusters: Tensor
    peak: Tensor
    length: Tensor
    below: Tensor

    def start_from(self, prior: Prior) -> None:
        """Give rows without a past the pooled tail (a fresh row holds zeros)."""
        fresh = self.quantile <= 0
        for own, pooled in ((self.quantile, prior.level), (self.rate, prior.rate), (self.beta, prior.beta)):
            own.copy_(torch.where(fresh, pooled, own))

    def nats(self, s: Tensor, age: Tensor, prior: Prior) -> Tensor:
        """-ln of how often per observation a cluster reaches s: -ln(rate) + ln(s / q) / beta above q; below, linear.

        ``age`` is the number of observations behind the tail.
        """
        quantile = torch.lerp(self.quantile, prior.level, pooled_share(age))
        ratio, base = s / quantile, torch.log(self.rate).neg_()
        above = torch.log(ratio.clamp_min(1.0)) / self.beta + base
        return torch.where(ratio > 1.0, above, ratio * base.clamp_max(QUIET_NATS))

    def fold(self, s: Tensor, age: Tensor, weight: Tensor, prior: Prior) -> None:
        """Move the tail by s where ``weight`` is 1."""
        exceeds = (s > self.quantile) * weight
        inside = (self.length > 0).to(s.dtype)
        begins = exceeds * (1.0 - inside)
        excess = torch.log((s / self.quantile).clamp_min_(1.0))
        self.peak.copy_(torch.where(begins > 0, excess, torch.maximum(self.peak, excess * exceeds)))
        self.below.add_(inside * weight).mul_(1.0 - exceeds)
        ends = inside * weight * (self.below >= CLUSTER_QUIET)
        self.length.add_(torch.maximum(inside, begins) * weight).mul_(1.0 - ends)
        self._learn_peak(ends, prior)
        behind = age + PRIOR_CLUSTERS / prior.rate
        self.rate.lerp_(begins, torch.reciprocal(behind).clamp_min_(1.0 / TAIL_WINDOW).mul_(weight))
        self.rate.clamp_min_(1.0 / TAIL_WINDOW)  # a memory of so many observations knows of nothing rarer

        deviation = torch.where(self.deviation > 0, self.deviation, s.clamp_min(LEAST_DEVIATION))
        distance = torch.minimum((s - self.quantile).abs_(), 10.0 * deviation)
        patience = torch.reciprocal(self.length * (1.0 / CLUSTER_PATIENCE) + 1.0).clamp_min_(CLUSTER_LEAST_STEP)
        step = torch.reciprocal(age + 1.0).clamp_min_(1.0 / TAIL_WINDOW) * weight * patience
        pull = torch.where(exceeds > 0, (1.0 - TAIL_SHARE) / TAIL_SHARE, -1.0)
        torch.maximum(self.quantile.add_(step * deviation * pull), prior.least_level, out=self.quantile)
        self.quantile.mul_((self.length > LASTING) * exceeds * (1.0 / LASTING) + 1.0)
        moved = torch.lerp(deviation, distance, step).clamp_min_(LEAST_DEVIATION)
        self.deviation.copy_(torch.where(weight > 0, moved, self.deviation))

    def _learn_peak(self, ends: Tensor, prior: Prior) -> None:
        """Move beta by the peaks of the clusters that end."""
        rate = torch.reciprocal(self.clusters + PRIOR_CLUSTERS + 1.0).clamp_min_(SLOWEST_BETA).mul_(ends)
        self.beta.lerp_(torch.minimum(self.peak, CLUSTER_CAP * self.beta), rate)
        torch.maximum(self.beta, prior.least_beta, out=self.beta)
        self.clusters.add_(ends)


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
        beta = torch.lerp(self.beta, torch.full_like(self.beta, pooled.beta), pooled_share(age))
        excess = torch.log((s * (1.0 / LEVEL_FLOOR)).clamp_min_(1.0))
        return (excess / beta - torch.log(rate.clamp_max_(1.0))).mul_(s > LEVEL_FLOOR)

    def fold(self, s: Tensor, age: Tensor, weight: Tensor, pooled: PooledTail) -> None:
        """Move the tail by S where ``weight`` is 1."""
        over = (s > LEVEL_FLOOR) * weight
        fade = weight * (1.0 / RECORD_WINDOW)
        self.seen.add_(over - self.seen * fade)
        self.expected.add_(record_rate(age, pooled) * weight - self.expected * fade)
        excess = torch.log((s * (1.0 / LEVEL_FLOOR)).clamp_min_(1.0))
        rate = torch.reciprocal(self.exceedances + 1.0).clamp_min_(0.01).mul_(over)
        self.beta.lerp_(torch.minimum(excess, 10.0 * self.beta), rate).clamp_min_(LEAST_BETA)
        self.exceedances.add_(over)


def record_rate(age: Tensor, pooled: PooledTail) -> Tensor:
    """Pooled probability of S > 0.01 after ``age`` valid observations: R / n, between the warm-up and 5000."""
    return pooled.rate / age.clamp(WARM_UP, RECORD_WINDOW)


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
    pause_s: Tensor
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
        ``(N,)`` bool: the observation has a valid value. Others change nothing but the seconds of quiet.
    elapsed_s
        ``(N,)`` seconds since the stream's previous observation, 0 for the first.
    observations_per_alarm
        The budget: observations in which one false alarm is allowed.
    """
    if not isinstance(observations_per_alarm, Tensor):
        observations_per_alarm = score.new_full((), observations_per_alarm)
    budget = observations_per_alarm.clamp_min(1.0)
    threshold = round_score((torch.log(budget) + life.controller) / LN10)
    warm = life.count >= WARM_UP
    alarm = scored & warm & (score > threshold)
    was_open = life.open > 0.5
    # Never down to 0, which every score reaches: at few observations per alarm no alert would ever end.
    holds_above = torch.maximum(threshold - HYSTERESIS_NATS / LN10, threshold * LEAST_HYSTERESIS)
    holding = alarm | (was_open & scored & warm & (score > holds_above))

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
    event = (opened * OPENED + updated * UPDATED + resolved * RESOLVED).to(score.dtype)
    verdict = torch.where(scored, torch.where(warm, alarm * ANOMALOUS, WARMING_UP), MISSING).to(score.dtype)
    decision = Decision(threshold, verdict, event, peak, worst, life.controller + 0)

    life.peak.copy_(peak).masked_fill_(resolved, 0.0)
    life.severity.copy_(worst).masked_fill_(resolved, 0.0)
    life.reported.copy_(torch.where(opened | updated, score, life.reported)).masked_fill_(resolved, 0.0)
    life.open.masked_fill_(opened, 1.0).masked_fill_(resolved, 0.0)
    # No second alert can open beside an open one: a week-long fault must not leave a stream that alarms at a trifle.
    _control(life, opened.to(score.dtype) - (scored & warm & ~was_open) / budget)
    return decision


def _control(life: AlertLife, change: Tensor) -> None:
    """d += change within [-1, 1], by a compensated sum: one observation's share of a week is below float32's grain.

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
