"""The entity residual of many features that jump at once, and their displacement (docs/score.md, "Evidence: jump")."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.evidence.observed import (
    ABSENT,
    DISPLACEMENT,
    JUMP,
    PLAIN_AVERAGE,
    RECORD_DECAY,
    SCALE_CAP,
    Observed,
    extend_range,
    fold_capped,
    one_step_forecast,
    own_rate,
    remembered,
)
from models.features import CLIP_FROM, arcsinh, fold_moments
from models.tail import ClusterTail, Prior

RESIDUAL_WINDOW = 5000.0
SLOW_WINDOW = 20000.0
# A wild value among the first hundred would widen the slow level, its variance and the spread for weeks.
SLOW_FORGETS = 100.0
# A fault of a server moves many counters at once; a departure from level is that of a few.
TOP_RESIDUALS, TOP_LEVELS = 10, 3
RESIDUAL_CAP = 50.0
RANGE_SHARE = 0.01
LEVEL_TERM = 0.5
SMOOTH_WINDOW = 10.0
LEAST_LEVEL_SQUARE = 0.01
# Displacement of an entity: how far beyond 5 spreads the three features lie that are farthest from their usual level.
# A spread takes in at least 3 % of the feature's range and a tenth of its level: a counter that nearly always stands
# still has been elsewhere before.
USUAL_REACH, FARTHEST = 5.0, 20.0
SPREAD_RANGE, SPREAD_LEVEL, SPREAD_REACH = 0.03, 0.1, 4.0


@dataclass(slots=True)
class Residual:
    """What the entity residual needs of a feature, in the order of the row."""

    variance: Tensor
    edge: Tensor
    low: Tensor
    high: Tensor
    slow_mean: Tensor
    slow_variance: Tensor
    level_square: Tensor
    spread_variance: Tensor


@dataclass(slots=True)
class Jump:
    """What ``JumpChain.look`` saw.

    ``s`` ``(4, N)``: s, its mean and its rms of late, displacement. ``contributions`` ``(N, F)``. ``own_error`` and
    ``last_error`` are those of network and last value, ``error`` that of the forecast taken, ``(R,)`` each.
    ``nats`` and ``signal`` are of the strongest.
    """

    s: Tensor
    exists: Tensor
    contributions: Tensor
    own_error: Tensor
    last_error: Tensor
    error: Tensor
    scale_floor: Tensor
    has_forecast: Tensor
    deviation: Tensor
    sigma_slow: Tensor
    spread: Tensor
    level: Tensor
    nats: Tensor
    signal: Tensor


@dataclass(slots=True)
class JumpChain:
    """s of an entity: mean of the ten largest one-step residuals, half that of the three largest departures from level.

    Of each feature's two forecasts, the network's and the last value, the one counts that has been better of late
    (``edge``: ew(e^2, 5000) of the network less that of the last value; the last value where it is positive).

    s counts by itself, for a blow that lasts one observation, as ew(s, 10), for what lasts, and as sqrt(ew(s^2, 10)),
    for what comes in blows. Beside them stands the displacement ew(q, 10), for what forecasts have caught up with and
    levels have not: q = max(0, d - 5), d the mean of the three largest abs(x - mu) / spread. Each has its own tail,
    and the strongest in nats is the evidence.

    ``recent`` is ``(3, N)``: ew(s, 10), ew(s^2, 10), ew(q, 10).
    """

    residual: Residual
    recent: Tensor
    tail: ClusterTail
    prior: Prior

    def look(self, o: Observed, age: Tensor) -> Jump:
        """s of N streams; ``age`` ``(N,)`` is the stream's number of valid observations."""
        state, x, streams = self.residual, o.sight.x, age.shape[0]
        forecast = one_step_forecast(o.mixture, o.mean, o.sigma)
        has_forecast = o.moves.weight * (o.mixture[6] > 0)
        own_error, last_error = x - forecast, x - o.last
        error = torch.where(state.edge > 0, last_error, own_error)
        size = (state.high - state.low).clamp_min_(0.0)
        scale_floor = (size * RANGE_SHARE).add_(1e-8)
        z = error / torch.addcmul(state.variance, scale_floor, scale_floor).sqrt_()
        sigma_slow = state.slow_variance.sqrt().add_(o.floor)
        deviation = x - state.slow_mean
        level = arcsinh(deviation / sigma_slow)
        departure = level.abs() / state.level_square.clamp_min(LEAST_LEVEL_SQUARE).sqrt_()
        held, usual = size.mul_(SPREAD_RANGE), state.slow_mean * SPREAD_LEVEL
        spread = torch.addcmul(state.spread_variance, held, held).addcmul_(usual, usual).sqrt_().add_(o.floor)
        away = (deviation.abs() / spread).clamp_max_(FARTHEST)

        usable = (o.established * has_forecast).view(streams, -1)
        z_part = mean_of_largest(z.abs().view(streams, -1), usable, TOP_RESIDUALS)
        level_part = mean_of_largest(departure.view(streams, -1), usable, TOP_LEVELS).mul_(LEVEL_TERM)
        contributions = z_part.add_(level_part)
        now = contributions.sum(1)
        far_part = mean_of_largest(away.view(streams, -1), usable, TOP_LEVELS)
        distance = far_part.sum(1)
        beyond = (distance - USUAL_REACH).clamp_min_(0.0)
        contributions.addcmul_(far_part, (beyond / distance.clamp_min(1.0)).unsqueeze(1))
        exists = usable.amax(1)
        rate = own_rate(exists, age, float(CLIP_FROM), SMOOTH_WINDOW)
        self.recent.lerp_(torch.stack((now, now * now, beyond)), rate)
        s = torch.stack((now, self.recent[0], self.recent[1].sqrt(), self.recent[2]))
        nats, strongest = self.tail.nats(s, age, self.prior).max(0)
        signal = torch.where(strongest == len(s) - 1, DISPLACEMENT, JUMP)
        return Jump(
            s,
            exists,
            contributions,
            own_error,
            last_error,
            error,
            scale_floor,
            has_forecast,
            deviation,
            sigma_slow,
            spread,
            level,
            nats,
            signal,
        )

    def learn(self, o: Observed, seen: Jump, age: Tensor) -> None:
        """Move the residual scale, the range, the slow level and the tail by x."""
        state = self.residual
        self._learn_edge(o, seen)
        own = (o.count - 1.0).clamp_min_(0.0)
        is_settled = own >= PLAIN_AVERAGE
        fold_capped(state.variance, seen.error, seen.scale_floor, seen.has_forecast, own, RESIDUAL_WINDOW, is_settled)
        absent = torch.where(o.moves.valid, 0.0, ABSENT)
        shrink = (1.0 - RECORD_DECAY) * o.moves.weight * (state.high >= state.low)
        state.low.lerp_(o.mean, shrink)
        state.high.lerp_(o.mean, shrink)
        extend_range(state.low, state.high, o.mean + o.deviation, absent)
        plain = torch.reciprocal(remembered(o.count, SLOW_FORGETS) + 1.0)
        rate = plain.clamp_min_(1.0 / SLOW_WINDOW).mul_(o.moves.weight)
        reach = torch.where(o.count >= CLIP_FROM, seen.sigma_slow * 10.0, ABSENT)
        fold_moments(state.slow_mean, state.slow_variance, torch.clamp(seen.deviation, -reach, reach), rate)
        reach = torch.where(o.count >= CLIP_FROM, seen.spread * SPREAD_REACH, ABSENT)
        kept = torch.clamp(seen.deviation, -reach, reach)
        state.spread_variance.addcmul_(rate * kept, kept).mul_(1.0 - rate)
        state.level_square.lerp_(seen.level * seen.level, rate)
        self.tail.fold(seen.s, age, seen.exists, self.prior)

    def _learn_edge(self, o: Observed, seen: Jump) -> None:
        """Move the edge; a blow that neither forecast saw coming says little about which of them is better."""
        state = self.residual
        bound = torch.addcmul(state.variance, seen.scale_floor, seen.scale_floor).mul_(SCALE_CAP)
        bound = torch.where(o.count - 1.0 < PLAIN_AVERAGE, torch.inf, bound)
        own, last = (torch.minimum(error * error, bound) for error in (seen.own_error, seen.last_error))
        state.edge.lerp_(own - last, own_rate(seen.has_forecast, o.count, 1.0, RESIDUAL_WINDOW))


def mean_of_largest(size: Tensor, usable: Tensor, top: int) -> Tensor:
    """Contributions ``(N, F)`` whose sum is the mean of the (up to) ``top`` largest usable sizes, each at most 50."""
    size = size.clamp_max(RESIDUAL_CAP) * usable
    among = usable.sum(1, keepdim=True).clamp_(1.0, float(top))
    if size.shape[1] > top:
        largest, where = size.topk(top, 1)
        size = torch.zeros_like(size).scatter_(1, where, largest)
    return size / among
