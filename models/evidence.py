"""Evidence that an observation is unusual, made of a stream's own past (recipe.md, steps 4, 6 to 8, and "per entity").

Each chain has the same two verbs, in this order: ``look`` at x with statistics from before it, ``learn`` from it
after the decision. Evidence that has no value on an observation (missing, no forecast yet) has weight 0.

References
----------
Records and gate, activity, residual combination: measured in recipe.md, not taken from a paper. Surprise: the two-sided
tail probability of the one-step mixture (probability integral transform, Dawid 1984). T^2: H. Hotelling,
"Multivariate quality control" (1947), with mean and covariance of a reference period.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.features import CLIP_FROM, Moves, Sighting, arcsinh, clipped_deviation, fold_moments
from models.pretrained import PooledTail
from models.tail import WARM_UP, ClusterTail, Prior, RateTail

SIGNALS = ("none", "level", "activity", "displacement", "stillness", "jump", "values", "residuals")
NONE, LEVEL, ACTIVITY, DISPLACEMENT, STILLNESS, JUMP, VALUES, RESIDUALS = range(8)

ABSENT = 1e30
SURPRISE_RANGE = (1e-3, 15.0)
RECORD_CAP = 5.0
RECORD_DECAY = math.exp(-1.0 / 16000.0)
SKILL = 0.4
GATE_FULL = 6.0
SCALE_CAP = 9.0
# A is looked for over three windows of observations, each with the forecast that was measured to serve it best: the one
# from 4 observations earlier over 5 and over 60, the one from 8 earlier over 20.
ACTIVITY_WINDOWS = (5.0, 20.0, 60.0)
AHEAD = (4.0, 8.0, 4.0)
ACTIVITY_CAP = 1e12
USUAL_WINDOW, RESIDUAL_WINDOW = 2000.0, 5000.0
PLAIN_AVERAGE = 100.0
# With one value the longer windows take in at most 25 times what they hold: they are for what lasts, and a blow,
# however hard, has left them by the time it has left the short one.
LASTING_CAP = 25.0
# Displacement compares the mean of 50 observations, stillness the moves of 30, with what is usual over 5000.
DISPLACEMENT_WINDOW, STILLNESS_WINDOW, PAST_WINDOW = 50.0, 30.0, 5000.0
# A stream that stands still counts as one that moves a fifth as far as usual, square roots compared.
LEAST_MOVE = 0.2
# They recur with nights and weekends as no activity does: their chance counts double.
BEARING_PENALTY = math.log(2.0)
SLOW_WINDOW = 20000.0
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
GATHERED = 400.0
RIDGE = 0.01


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
class Observed:
    """One observation of R features against the statistics before it.

    Attributes
    ----------
    mean, sigma, floor, last, count
        m, sigma, f, the last valid value and n before x.
    mixture
        ``(9, R)`` one-step mixture of the previous observation; all zeros where there is none.
    forecast_4, forecast_8
        Forecasts of this observation made 4 and 8 observations earlier, in raw units.
    has_4, has_8
        1 where those exist and x is valid, else 0.
    established
        1 where x is valid and at least 20 valid observations came before.
    absent
        0 where maxima and ranges gather x (from the 20th valid observation), else a number beyond all values.
    """

    sight: Sighting
    moves: Moves
    mean: Tensor
    sigma: Tensor
    floor: Tensor
    last: Tensor
    count: Tensor
    mixture: Tensor
    forecast_4: Tensor
    forecast_8: Tensor
    has_4: Tensor
    has_8: Tensor
    established: Tensor
    absent: Tensor


def observed(
    sight: Sighting,
    moves: Moves,
    before: tuple[Tensor, Tensor, Tensor, Tensor],
    count: Tensor,
    mixture: Tensor,
    forecasts: tuple[Tensor, Tensor, Tensor, Tensor],
) -> Observed:
    """Put an observation together; ``before`` is (m, sigma, f, last value), ``forecasts`` two and their existence."""
    weight = moves.weight
    established = weight * (count >= CLIP_FROM)
    absent = (weight * (count >= CLIP_FROM - 1)).neg_().add_(1.0).mul_(ABSENT)
    forecast_4, forecast_8, has_4, has_8 = forecasts
    return Observed(
        sight,
        moves,
        *before,
        count,
        mixture,
        forecast_4,
        forecast_8,
        has_4 * weight,
        has_8 * weight,
        established,
        absent,
    )


@dataclass(frozen=True, slots=True)
class StreamEvidence:
    """The strongest evidence of N streams: nats ``(N,)``, how many were compared, signal, feature (-1: none).

    Signal and feature are whole numbers in the type of the rest. ``feature_nats`` is ``(N, F)``: what each feature had
    (single) or contributed (entity kinds).
    """

    nats: Tensor
    compared: Tensor
    signal: Tensor
    feature: Tensor
    feature_nats: Tensor


def mixture_tails(u: Tensor, mixture: Tensor) -> tuple[Tensor, Tensor]:
    """F and 1 - F of a ``(9, R)`` mixture of logistics at u ``(R,)``, both without cancellation."""
    standard = (u - mixture[3:6]).mul_(mixture[6:9])
    weights = mixture[0:3]
    return (torch.sigmoid(standard) * weights).sum(0), (torch.sigmoid(-standard) * weights).sum(0)


def surprise(o: Observed) -> Tensor:
    """-ln(2 min(F, 1 - F)) of x under the one-step mixture, within [1e-3, 15]."""
    lower, upper = mixture_tails(arcsinh((o.sight.x - o.mean) / o.sigma), o.mixture)
    return torch.minimum(lower, upper).mul_(2.0).log_().neg_().clamp_(*SURPRISE_RANGE)


def own_rate(weight: Tensor, count: Tensor, behind: float, window: float) -> Tensor:
    """Rate of ``ew(., window)`` for a quantity whose counter lies ``behind`` that of valid observations."""
    return torch.maximum(weight * (1.0 / window), weight / (count - (behind - 1.0)).clamp_min_(1.0))


def range_ratio(x: Tensor, low: Tensor, high: Tensor, floor: Tensor) -> Tensor:
    """exp of a value range's record: 1 + 2 max(x - mx, mn - x) / (mx - mn + f)."""
    beyond = torch.maximum(x - high, low - x)
    return (beyond * 2.0).div_(high - low + floor).add_(1.0)


def two_sided_ratio(e: Tensor, above: Tensor, below: Tensor, floor: Tensor) -> Tensor:
    """exp of the record of a signal up or down: (|e| + f) / (M + f), M the maximum on the side of e."""
    return e.abs().add_(floor).div_(torch.where(e > 0, above, below).add_(floor))


def extend_range(low: Tensor, high: Tensor, x: Tensor, absent: Tensor) -> None:
    """Gather x in a range."""
    torch.minimum(low, x + absent, out=low)
    torch.maximum(high, x - absent, out=high)


def extend_two_sided(above: Tensor, below: Tensor, e: Tensor, absent: Tensor) -> None:
    """Gather a signal up and down in its maxima."""
    torch.maximum(above, e - absent, out=above)
    torch.maximum(below, -e - absent, out=below)


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
    skilled: Tensor | None
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
        skilled, error_1500 = None, None
        if self.season is not None:
            error_1500 = x - self.season.level_1500
            seasonal, skilled = self._season_ratio(self.season, o)
            ratio = torch.maximum(ratio, seasonal)
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
            level, raw, behaviour, has_behaviour, gate, record, skilled, surprised, error_300, error_1500, errors, move,
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
        own = torch.stack((o.count - 4.0, o.count - 8.0))
        fold_capped(self.activity.usual, seen.errors, o.floor, seen.has_behaviour[:2], own, USUAL_WINDOW)
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
    def _season_ratio(season: SeasonLevels, o: Observed) -> tuple[Tensor, Tensor]:
        """Ratios of sr and ew(sr, 5), 0 where the seasonal memory has no skill; and where it has."""
        residual = o.sight.residual
        season.residual_5.lerp_(residual, o.moves.rate(5.0))
        explained = season.residual_variance < (1.0 - SKILL) * season.variance_1500
        skilled = explained & (season.variance_1500 > o.floor * o.floor)
        now = two_sided_ratio(residual, season.above_season, season.below_season, o.floor)
        mean = two_sided_ratio(season.residual_5, season.above_season_5, season.below_season_5, o.floor)
        return torch.maximum(now, mean).mul_(skilled), skilled

    @staticmethod
    def _learn_season(season: SeasonLevels, o: Observed, error_1500: Tensor) -> None:
        residual, rate = o.sight.residual, o.moves.rate(1500.0)
        extend_two_sided(season.above_season, season.below_season, residual, o.absent)
        extend_two_sided(season.above_season_5, season.below_season_5, season.residual_5, o.absent)
        season.residual_variance.lerp_(residual * residual, rate)
        season.variance_1500.lerp_(error_1500 * error_1500, rate)
        season.level_1500.addcmul_(rate, error_1500)


def fold_capped(
    variance: Tensor, error: Tensor, floor: Tensor, weight: Tensor, own_count: Tensor, window: float
) -> None:
    """Move a slow mean square, capped at 9 times itself: plain averaging for its first 100 values, then rate 1/window.

    ``own_count`` is how many values it has seen; a value of weight 0 moves nothing.
    """
    square = error * error
    capped = torch.minimum(square, torch.addcmul(variance, floor, floor).mul_(SCALE_CAP))
    plain = own_count < PLAIN_AVERAGE
    rate = torch.where(plain, torch.reciprocal(own_count.clamp_min(0.0).add_(1.0)), 1.0 / window)
    variance.lerp_(torch.where(plain, square, capped), rate * weight)


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
    """The entity residual s: the ten largest one-step residuals, half the three largest departures from level.

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
        fold_capped(state.variance, seen.error, seen.scale_floor, seen.has_forecast, o.count - 1.0, RESIDUAL_WINDOW)
        clipped = o.mean + clipped_deviation(o.sight.x, o.mean, o.sigma, o.count)
        absent = torch.where(o.moves.valid, 0.0, ABSENT)
        shrink = (1.0 - RECORD_DECAY) * o.moves.weight * (state.high >= state.low)
        state.low.lerp_(o.mean, shrink)
        state.high.lerp_(o.mean, shrink)
        extend_range(state.low, state.high, clipped, absent)
        rate = o.moves.rate(SLOW_WINDOW)
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


def one_step_forecast(mixture: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """x_1 = m + sigma sinh(sum of weight x location), in raw units."""
    centre = (mixture[0:3] * mixture[3:6]).sum(0)
    return torch.addcmul(mean, sigma, torch.sinh(centre).clamp_(-RESIDUAL_CAP, RESIDUAL_CAP))


def mean_of_largest(size: Tensor, usable: Tensor, top: int) -> Tensor:
    """Contributions ``(N, F)`` whose sum is the mean of the (up to) ``top`` largest usable sizes, each at most 50."""
    size = size.clamp_max(RESIDUAL_CAP) * usable
    among = usable.sum(1, keepdim=True).clamp_(1.0, float(top))
    if size.shape[1] > top:
        largest, where = size.topk(top, 1)
        size = torch.zeros_like(size).scatter_(1, where, largest)
    return size / among


@dataclass(slots=True)
class Distance:
    """State of one T^2: ``gathered``, ``smooth`` ``(N,)``, ``mean`` ``(F, N)``, ``factor`` ``(F (F + 1) / 2, N)``."""

    gathered: Tensor
    mean: Tensor
    factor: Tensor
    smooth: Tensor


@dataclass(slots=True)
class Apart:
    """What ``DistanceChain.look`` saw: T^2 / F, what counts as evidence of it, whether it exists, nats; ``(N,)``."""

    raw: Tensor
    s: Tensor
    exists: Tensor
    nats: Tensor
    parts: Tensor


@dataclass(slots=True)
class DistanceChain:
    """Mahalanobis distance of F-vectors from the first 400 complete ones.

    While gathering, ``factor`` is the packed lower triangle of the running covariance; at 400 it becomes the inverse of
    its Cholesky factor, and stays.
    """

    state: Distance
    tail: ClusterTail
    prior: Prior
    is_smoothed: bool

    def look(self, vectors: Tensor, present: Tensor, age: Tensor) -> Apart:
        """T^2 / F of ``vectors`` ``(F, N)``; components with ``present`` 0 lie on the mean."""
        state, features = self.state, vectors.shape[0]
        rows, columns = torch.tril_indices(features, features, device=vectors.device)
        # Until the factor exists its place holds a covariance, which must not be multiplied: it may overflow.
        ready = state.gathered >= GATHERED
        deviation = (vectors - state.mean) * (present * ready)
        whitened = torch.zeros_like(deviation).index_add_(0, rows, state.factor * deviation[columns])
        parts = whitened.square().clamp_max_(1e12)
        raw = parts.mean(0)
        exists = (ready & (present.amax(0) > 0)).to(raw.dtype)
        smooth = torch.where(state.smooth > 0, torch.lerp(state.smooth, raw, 0.1), raw)
        s = smooth if self.is_smoothed else raw
        return Apart(raw, s, exists, self.tail.nats(s, age, self.prior), parts)

    def learn(self, vectors: Tensor, present: Tensor, seen: Apart, age: Tensor) -> None:
        """Gather complete vectors until 400, then move the tail and the smoothed distance."""
        state = self.state
        self.tail.fold(seen.s, age, seen.exists, self.prior)
        state.smooth.copy_(torch.where(seen.exists > 0, seen.s if self.is_smoothed else seen.raw, state.smooth))
        gathers = (state.gathered < GATHERED) & (present.amin(0) > 0)
        if not bool(gathers.any()):
            return
        features = vectors.shape[0]
        rows, columns = torch.tril_indices(features, features, device=vectors.device)
        rate = gathers / (state.gathered + 1.0)
        deviation = vectors - state.mean
        product = deviation[rows] * deviation[columns] * (1.0 - rate)
        state.factor.lerp_(product, rate.expand_as(product))
        state.mean.addcmul_(rate, deviation)
        state.gathered.add_(gathers)
        complete = (gathers & (state.gathered >= GATHERED)).nonzero().squeeze(1)
        if complete.numel() > 0:
            self._freeze(complete, rows, columns, features)

    def _freeze(self, which: Tensor, rows: Tensor, columns: Tensor, features: int) -> None:
        """Replace covariances by their inverse Cholesky factors, with a ridge of 1 % of the diagonal."""
        state = self.state
        packed, mean = state.factor[:, which].double(), state.mean[:, which].double()
        covariance = packed.new_zeros(which.numel(), features, features)
        covariance[:, rows, columns] = packed.t()
        covariance[:, columns, rows] = packed.t()
        diagonal = covariance.diagonal(dim1=1, dim2=2)
        least = (mean.abs() * 1e-4 + 1e-8).square().t()
        # Scaled to unit diagonal first: features of very different units would exhaust the precision otherwise.
        scale = torch.rsqrt(diagonal * (1.0 + RIDGE) + least)
        unit = covariance * scale.unsqueeze(1) * scale.unsqueeze(2)
        unit.diagonal(dim1=1, dim2=2).fill_(1.0)
        factor = torch.linalg.cholesky_ex(unit)[0]
        eye = torch.eye(features, dtype=packed.dtype, device=packed.device).expand_as(factor)
        inverse = torch.linalg.solve_triangular(factor, eye, upper=False) * scale.unsqueeze(1)
        state.factor[:, which] = inverse[:, rows, columns].t().to(state.factor.dtype)
