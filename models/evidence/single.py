"""Level evidence S and behaviour of features that are watched independently (docs/score.md, "Evidence: single")."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.evidence.observed import (
    ACTIVITY,
    LEVEL,
    NONE,
    PLAIN_AVERAGE,
    RECORD_DECAY,
    SURPRISE_RANGE,
    Observed,
    StreamEvidence,
    extend_range,
    fold_capped,
    own_rate,
    surprise,
)
from models.features import CLIP_FROM, clipped_deviation, fold_moments
from models.pretrained import PooledTail
from models.tail import WARM_UP, ClusterTail, Prior, RateTail

RECORD_CAP = 5.0
SKILL = 0.4
GATE_FULL = 6.0
# A is looked for over three windows of observations, each with the forecast that was measured to serve it best: the one
# from 4 observations earlier over 5 and over 60, the one from 8 earlier over 20.
ACTIVITY_WINDOWS = (5.0, 20.0, 60.0)
AHEAD = (4.0, 8.0, 4.0)
ACTIVITY_CAP = 1e12
USUAL_WINDOW = 2000.0
# With one value the longer windows take in at most 25 times what they hold: they are for what lasts, and a blow,
# however hard, has left them by the time it has left the short one.
LASTING_CAP = 25.0
# Displacement compares the mean of 50 observations, stillness the moves of 30, with what is usual over 5000.
DISPLACEMENT_WINDOW, STILLNESS_WINDOW, PAST_WINDOW = 50.0, 30.0, 5000.0
# A stream that stands still counts as one that moves a fifth as far as usual, square roots compared.
LEAST_MOVE = 0.2
# They recur with nights and weekends as no activity does: their chance counts double.
BEARING_PENALTY = math.log(2.0)


@dataclass(slots=True)
class Levels:
    """Level statistics of R features, in the order of the row."""

    level_20: Tensor
    level_300: Tensor
    low: Tensor
    high: Tensor
    low_20: Tensor
    high_20: Tensor
    above_300: Tensor
    below_300: Tensor
    surprise: Tensor
    surprise_record: Tensor
    gate_scale: Tensor


@dataclass(slots=True)
class SeasonLevels:
    """Statistics of the seasonal residual sr, in the order of the row."""

    level_1500: Tensor
    variance_1500: Tensor
    residual_variance: Tensor
    residual_5: Tensor
    above_season: Tensor
    below_season: Tensor
    above_season_5: Tensor
    below_season_5: Tensor


@dataclass(slots=True)
class Activity:
    """Mean squares of e_4 and e_8: ``recent`` ``(3, R)`` by window (numerators), ``usual`` ``(2, R)`` (s_A)."""

    recent: Tensor
    usual: Tensor


@dataclass(slots=True)
class Bearing:
    """Where a feature is and how much it moves, of late and usually, in the order of the row."""

    level: Tensor
    usual_level: Tensor
    usual_variance: Tensor
    move: Tensor
    usual_move: Tensor


@dataclass(slots=True)
class Single:
    """What ``SingleChain.look`` saw of R features.

    ``behaviour`` ``(5, R)``: A over three windows, displacement, stillness; ``has_behaviour``: 1 where they exist.
    ``errors`` ``(2, R)``: e_4 and e_8. ``scale``: sigma + f of the usual level. ``eligible``: 1 where x is valid after
    the warm-up. ``behaviour_nats`` and ``signal`` are of the strongest of the five.
    """

    level: Tensor
    raw_level: Tensor
    behaviour: Tensor
    has_behaviour: Tensor
    gate: Tensor
    record: Tensor
    surprise: Tensor
    error_300: Tensor
    error_1500: Tensor | None
    errors: Tensor
    move: Tensor
    scale: Tensor
    eligible: Tensor
    level_nats: Tensor
    behaviour_nats: Tensor
    signal: Tensor


@dataclass(slots=True)
class SingleChain:
    """Level evidence S and behaviour of features watched independently.

    Behaviour is activity A over three windows, displacement and stillness; each has a tail of its own, and the
    strongest in nats counts. Of the activities, a short fault is sharp in the short window and a long one stands out in
    the long one; the middle one asks the farther forecast, which a wrong shape does not catch up with so soon. The
    other two are for what forecasts soon agree with: a level that stays away, a stream that hardly moves any more.

    ``quiet`` ``(10, R)`` holds S of the last ten observations in any order; ``position`` is the oldest.
    """

    levels: Levels
    season: SeasonLevels | None
    activity: Activity
    bearing: Bearing
    level_tail: RateTail
    level_pool: PooledTail
    behaviour_tail: ClusterTail
    behaviour_prior: Prior
    quiet: Tensor
    record_weight_p: float

    def look(self, o: Observed) -> Single:
        """Evidence of x; ew(x, 20), ew(sr, 5), P and what behaviour is of late move here because they include x."""
        levels, x, floor = self.levels, o.sight.x, o.floor
        surprised = surprise(o)
        levels.surprise.lerp_(surprised, own_rate(o.moves.weight * (o.mixture[6] > 0), o.count, 1.0, 5.0))
        levels.level_20.lerp_(x, o.moves.rate(20.0))
        error_300 = x - levels.level_300
        ratio = two_sided_ratio(error_300, levels.above_300, levels.below_300, floor)
        error_1500 = None
        if self.season is not None:
            error_1500 = x - self.season.level_1500
            ratio = torch.maximum(ratio, self._season_ratio(self.season, o))
        ratio = ratio.clamp_max_(math.exp(RECORD_CAP))
        ratio = torch.maximum(ratio, range_ratio(x, levels.low, levels.high, floor))
        ratio = torch.maximum(ratio, range_ratio(levels.level_20, levels.low_20, levels.high_20, floor))
        record = ratio.clamp_min_(1.0).log_()
        if self.record_weight_p > 0:
            # P is a pure number with a floor of its own: its record has no use for the feature's floor f.
            grown = levels.surprise / levels.surprise_record.clamp_min(SURPRISE_RANGE[0])
            record = torch.maximum(record, grown.log_().clamp_(0.0, RECORD_CAP).mul_(self.record_weight_p))
        record.mul_(o.established)

        errors = torch.stack((x - o.forecast_4, x - o.forecast_8))
        gate = torch.where(o.has_8 > 0, errors[1].abs() / (levels.gate_scale + floor), 1.0)
        raw = (gate * (1.0 / GATE_FULL)).clamp_max_(1.0).mul_(record)
        level = raw * (raw > self.quiet.amax(0))

        active, has_activity = self._activity(errors, o)
        move, scale = o.sight.dx.abs().sqrt_(), self.bearing.usual_variance.sqrt().add_(floor)
        behaviour = torch.stack((*active, self._displacement(scale, o), self._stillness(move, o)))
        eligible = o.moves.weight * (o.count >= WARM_UP)
        has_behaviour = torch.stack((*has_activity, eligible, eligible))
        nats = self.behaviour_tail.nats(behaviour, o.count, self.behaviour_prior).mul_(has_behaviour)
        nats[len(ACTIVITY_WINDOWS) :].sub_(BEARING_PENALTY).clamp_min_(0.0)
        behaviour_nats, strongest = nats.max(0)
        signal = (strongest - (len(ACTIVITY_WINDOWS) - 1)).clamp_min_(0).add_(ACTIVITY)
        level_nats = self.level_tail.nats(level, o.count, self.level_pool)
        return Single(
            level, raw, behaviour, has_behaviour, gate, record, surprised, error_300, error_1500, errors, move,
            scale, eligible, level_nats, behaviour_nats, signal,
        )  # fmt: skip

    def strongest(self, seen: Single, features: int) -> StreamEvidence:
        """The strongest of S and behaviour over the features that have left their own warm-up."""
        level_nats, behaviour_nats = seen.level_nats * seen.eligible, seen.behaviour_nats * seen.eligible
        nats = torch.maximum(level_nats, behaviour_nats).view(-1, features)
        best, winner = nats.max(1)
        signals = torch.where(behaviour_nats > level_nats, seen.signal, LEVEL).view(-1, features)
        signal = signals.gather(1, winner.unsqueeze(1)).squeeze(1)
        found = best > 0
        return StreamEvidence(
            best,
            (2.0 * seen.eligible).view(-1, features).sum(1),
            torch.where(found, signal, NONE).to(best.dtype),
            torch.where(found, winner, -1).to(best.dtype),
            nats,
        )

    def learn(self, o: Observed, seen: Single, position: int) -> None:
        """Move maxima, ranges, scales and tails by x; ``position`` is the slot of the oldest S in the ring."""
        levels, x, absent = self.levels, o.sight.x, o.absent
        extend_range(levels.low, levels.high, x, absent)
        extend_range(levels.low_20, levels.high_20, levels.level_20, absent)
        extend_two_sided(levels.above_300, levels.below_300, seen.error_300, absent)
        levels.level_300.lerp_(x, o.moves.rate(300.0))
        levels.surprise_record.mul_(1.0 - (1.0 - RECORD_DECAY) * o.moves.weight)
        torch.maximum(levels.surprise_record, levels.surprise - absent, out=levels.surprise_record)
        if self.season is not None and seen.error_1500 is not None:
            self._learn_season(self.season, o, seen.error_1500)
        levels.gate_scale.lerp_(seen.errors[1].abs(), own_rate(o.has_8, o.count, 8.0, 500.0))
        own = torch.stack((o.count - 4.0, o.count - 8.0)).clamp_min_(0.0)
        has, is_settled = seen.has_behaviour[:2], o.count >= CLIP_FROM - 1
        fold_capped(self.activity.usual, seen.errors, o.floor, has, own, USUAL_WINDOW, is_settled)
        bearing, rate = self.bearing, o.moves.rate(PAST_WINDOW)
        away = clipped_deviation(x, bearing.usual_level, seen.scale, o.count)
        fold_moments(bearing.usual_level, bearing.usual_variance, away, rate)
        bearing.usual_move.lerp_(seen.move, rate)
        self.level_tail.fold(seen.level, o.count, o.established, self.level_pool)
        self.behaviour_tail.fold(seen.behaviour, o.count, o.established * seen.has_behaviour, self.behaviour_prior)
        torch.mul(seen.raw_level, o.moves.weight, out=self.quiet[position])

    def _activity(self, errors: Tensor, o: Observed) -> tuple[Tensor, Tensor]:
        """A = sqrt(ew(e^2, window) / (s_A + f^2)) by window, the numerators with this observation; and which exist."""
        recent = self.activity.recent
        squares, usual = errors * errors, torch.addcmul(self.activity.usual, o.floor, o.floor)
        square, usually = torch.stack((squares[0], squares[1], squares[0])), torch.stack((usual[0], usual[1], usual[0]))
        has = torch.stack((o.has_4, o.has_8, o.has_4))
        held = torch.where(o.count >= PLAIN_AVERAGE + 8.0, (recent[1:] + usually[1:]).mul_(LASTING_CAP), torch.inf)
        torch.minimum(square[1:], held, out=square[1:])
        for window, behind, mean, value, weight in zip(ACTIVITY_WINDOWS, AHEAD, recent, square, has, strict=True):
            mean.lerp_(value, own_rate(weight, o.count, behind, window))
        return (recent / usually).clamp_max_(ACTIVITY_CAP).sqrt_(), has

    def _displacement(self, scale: Tensor, o: Observed) -> Tensor:
        """How far the mean of late is from the usual one, in standard deviations: |ew(x, 50) - mu| / (sigma + f)."""
        bearing = self.bearing
        bearing.level.lerp_(o.sight.x, o.moves.rate(DISPLACEMENT_WINDOW))
        return (bearing.level - bearing.usual_level).abs_().div_(scale)

    def _stillness(self, move: Tensor, o: Observed) -> Tensor:
        """How much less the feature moves than it used to: ew(sqrt|dx|, 5000) / ew(sqrt|dx|, 30) - 1, from 0 to 4.

        Square roots, so that how often it moves counts, and not how far the farthest moves go.
        """
        bearing, least = self.bearing, o.floor.sqrt()
        bearing.move.lerp_(move, o.moves.rate(STILLNESS_WINDOW))
        usual = bearing.usual_move
        return (usual + least).div_((bearing.move + least).add_(usual, alpha=LEAST_MOVE)).sub_(1.0).clamp_min_(0.0)

    @staticmethod
    def _season_ratio(season: SeasonLevels, o: Observed) -> Tensor:
        """Ratios of sr and ew(sr, 5), 0 where the seasonal memory has no skill."""
        residual = o.sight.residual
        season.residual_5.lerp_(residual, o.moves.rate(5.0))
        explained = season.residual_variance < (1.0 - SKILL) * season.variance_1500
        skilled = explained & (season.variance_1500 > o.floor * o.floor)
        now = two_sided_ratio(residual, season.above_season, season.below_season, o.floor)
        mean = two_sided_ratio(season.residual_5, season.above_season_5, season.below_season_5, o.floor)
        return torch.maximum(now, mean).mul_(skilled)

    @staticmethod
    def _learn_season(season: SeasonLevels, o: Observed, error_1500: Tensor) -> None:
        residual, rate = o.sight.residual, o.moves.rate(1500.0)
        extend_two_sided(season.above_season, season.below_season, residual, o.absent)
        extend_two_sided(season.above_season_5, season.below_season_5, season.residual_5, o.absent)
        season.residual_variance.lerp_(residual * residual, rate)
        season.variance_1500.lerp_(error_1500 * error_1500, rate)
        season.level_1500.addcmul_(rate, error_1500)


def range_ratio(x: Tensor, low: Tensor, high: Tensor, floor: Tensor) -> Tensor:
    """exp of a value range's record: 1 + 2 max(x - mx, mn - x) / (mx - mn + f)."""
    beyond = torch.maximum(x - high, low - x)
    return (beyond * 2.0).div_(high - low + floor).add_(1.0)


def two_sided_ratio(e: Tensor, above: Tensor, below: Tensor, floor: Tensor) -> Tensor:
    """exp of the record of a signal up or down: (|e| + f) / (M + f), M the maximum on the side of e."""
    return e.abs().add_(floor).div_(torch.where(e > 0, above, below).add_(floor))


def extend_two_sided(above: Tensor, below: Tensor, e: Tensor, absent: Tensor) -> None:
    """Gather a signal up and down in its maxima."""
    torch.maximum(above, e - absent, out=above)
    torch.maximum(below, -e - absent, out=below)
