"""What a predictor sees of a value: normaliser, memory of times, the twelve inputs (docs/score.md, up to "Predictor").

All functions take one observation of R feature rows at once. A statistic is one ``(R,)`` vector and moves in place; a
missing value has weight 0 in :class:`Moves`, so that no statistic moves on its stand-in.

References
----------
Running mean and variance: T. Finch, "Incremental calculation of weighted mean and variance" (2009), eq. 143, with the
rate ``max(1/W, 1/(t+1))`` so that the first W observations are averaged plainly.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

INPUTS = 12
BINS = 48
DAY_MS = 86_400_000
BIN_MS = DAY_MS // BINS
WEEK_BINS = 84
WEEK_MS = 7 * DAY_MS
WEEK_BIN_MS = WEEK_MS // WEEK_BINS
# The memory of the week counts where, over a week or so, it errs by a tenth less than that of the day: most streams
# have no week, and for them it would be noise.
WEEK_TRUST = 0.9
# A trusted week learns from so many times its usual error at most: a holiday is not what to expect a week later.
WEEK_REACH = 4.0
LEADS = (1, 4, 16)
WINDOW = 500
FAST_WINDOW = 10
CLIP_FROM = 20
CLIP_SIGMAS = 10.0
# Among the first twenty values a wild one (what a sensor says while it starts) must not set the scale for weeks.
EARLY_FROM, EARLY_SIGMAS = 5, 100.0
LEAST_SPREAD = 2.0  # floors; what has moved by less has no scale yet
# Values beyond this are clipped on entry: their squares, and those of forecasts 50 sigma away, stay inside float32.
VALUE_LIMIT = 1e15
UNLIMITED = 1e30


def arcsinh(x: Tensor) -> Tensor:
    """asinh, six times as fast as torch's (which is not vectorised) and within 1e-7 of it; finite for any finite x."""
    size = x.abs().clamp_max_(1e18)
    return torch.copysign(torch.addcmul(torch.ones_like(size), size, size).sqrt_().add_(size).log_(), x)


@dataclass(slots=True)
class Normaliser:
    """Running statistics of one feature's raw values, ``(R,)`` each, in the order of the row."""

    count: Tensor
    mean: Tensor
    variance: Tensor
    fast_mean: Tensor
    fast_variance: Tensor
    change: Tensor
    last: Tensor

    @classmethod
    def fresh(cls, rows: int, like: Tensor) -> Normaliser:
        """Statistics of ``rows`` features without a past."""
        return cls(*torch.zeros(7, rows, dtype=like.dtype, device=like.device).unbind(0))


@dataclass(slots=True)
class Seasonal:
    """What rows remember of times (UTC): means of half hours of the day, and by how much hours of the week differ.

    Attributes
    ----------
    table
        One-dimensional view of the table that holds the rows; read and written in place.
    begin
        ``(R,)`` int64: where in ``table`` a row has its 48 means, 48 counts and, if it has ``errors``, 84 differences.
    interval_s
        Seconds between observations.
    errors
        ``(2, R)``: running means of how far x was from what its time of day led to expect, and from what its time of
        week did; None for rows that remember no week. Moved in place.
    """

    table: Tensor
    begin: Tensor
    interval_s: float
    errors: Tensor | None = None
    _slowest: float = field(init=False)
    _week_rate: float = field(init=False)
    _error_rate: float = field(init=False)

    def __post_init__(self) -> None:
        self._slowest = 0.25 / self._observations(BIN_MS)  # four days of its observations
        self._week_rate = 1.0 - 0.5 ** (1.0 / self._observations(WEEK_BIN_MS))
        self._error_rate = 1.0 / min(WEEK_BINS, self._observations(WEEK_MS))

    def read(self, bins: Tensor) -> tuple[Tensor, Tensor]:
        """Expected value, and how often that time of day was seen, of ``bins`` (:func:`time_bins`, ``(2, ..., R)``)."""
        of_day = bins[0] + self.begin
        expected, count = torch.take(self.table, of_day), torch.take(self.table, of_day + BINS)
        if self.errors is not None:
            expected = expected + self._difference(bins) * self._trusts_week(self.errors)
        return expected, count

    def fold(self, bins: Tensor, before: Tensor, x: Tensor, reach: Tensor, weight: Tensor) -> None:
        """Move what is remembered of one time, ``bins`` ``(2, R)``, by x; the week takes ``reach`` of it at most."""
        of_day = bins[0] + self.begin
        mean, count = torch.take(self.table, of_day), torch.take(self.table, of_day + BINS)
        if self.errors is not None:
            self._fold_week(self.errors, bins, before, torch.clamp(x - mean, -reach, reach), weight * (count > 0))
        rate = torch.reciprocal(count + 1.0).clamp_min_(self._slowest).mul_(weight)
        self.table.index_copy_(0, of_day, torch.lerp(mean, x, rate))
        self.table.index_copy_(0, of_day + BINS, count + weight)

    def _fold_week(self, errors: Tensor, bins: Tensor, before: Tensor, residual: Tensor, weight: Tensor) -> None:
        """Half of what a time of the week differs by is believed at once, half of the rest a week later.

        Errors are those of the first observation of two hours: later ones have told the memory what to expect.
        """
        away = self._difference(bins)
        missed = torch.stack((residual, residual - away))
        reach = torch.where(self._trusts_week(errors), WEEK_REACH * errors[1], UNLIMITED)
        first = weight * (bins[1] != before[1])
        errors.lerp_(missed.abs(), first * self._error_rate)
        step = torch.clamp(missed[1], -reach, reach).mul_(weight)
        self.table.index_copy_(0, bins[1] + self.begin + 2 * BINS, torch.add(away, step, alpha=self._week_rate))

    @staticmethod
    def _trusts_week(errors: Tensor) -> Tensor:
        return errors[1] < WEEK_TRUST * errors[0]

    def _difference(self, bins: Tensor) -> Tensor:
        return torch.take(self.table, bins[1] + self.begin + 2 * BINS)

    def _observations(self, span_ms: int) -> float:
        return max(1.0, span_ms / 1000.0 / self.interval_s)


def season_width(has_week: bool) -> int:
    """How many numbers of a row :class:`Seasonal` reads and writes at ``begin``."""
    return 2 * BINS + WEEK_BINS * has_week


@dataclass(frozen=True, slots=True)
class Moves:
    """Who moves: ``valid`` bool and ``weight`` 1 or 0, ``(R,)``; ``inverse`` = weight / (count + 1)."""

    valid: Tensor
    weight: Tensor
    inverse: Tensor

    def rate(self, window: float) -> Tensor:
        """The rate of ``ew(x, window)``: max(1/W, 1/(t+1)) for valid values, 0 for missing ones."""
        return torch.maximum(self.weight * (1.0 / window), self.inverse)


def moves_of(valid: Tensor, count: Tensor) -> Moves:
    """The moves of rows with ``count`` earlier valid observations."""
    weight = valid.to(count.dtype)
    return Moves(valid, weight, weight / (count + 1.0))


def floor_of(mean: Tensor) -> Tensor:
    """The smallest difference that means anything in a feature: f = 1e-4 abs(m) + 1e-8."""
    return mean.abs().mul_(1e-4).add_(1e-8)


def scale_of(normaliser: Normaliser, floor: Tensor) -> Tensor:
    """Sigma = sqrt(v) + f."""
    return normaliser.variance.sqrt().add_(floor)


def time_bins(times_ms: Tensor, interval_ms: int) -> Tensor:
    """Bins of the day and of the week, of times 1 interval before and 0, 1, 4, 16 after: ``(2, 5, ...)`` int64."""
    ahead = torch.stack([times_ms + lead * interval_ms for lead in (-1, 0, *LEADS)])
    of_day = torch.div(torch.remainder(ahead, DAY_MS), BIN_MS, rounding_mode="floor")
    return torch.stack((of_day, torch.div(torch.remainder(ahead, WEEK_MS), WEEK_BIN_MS, rounding_mode="floor")))


def clipped_deviation(x: Tensor, mean: Tensor, sigma: Tensor, count: Tensor) -> Tensor:
    """``x_c - m``: the deviation, within 10 sigma from the 20th value on.

    Within 100 from the sixth on, unless the feature has hardly moved so far: sigma would be no scale then.
    """
    has_scale = (count >= EARLY_FROM) & (sigma > (1.0 + LEAST_SPREAD) * floor_of(mean))
    early = torch.where(has_scale, sigma * EARLY_SIGMAS, UNLIMITED)
    reach = torch.where(count >= CLIP_FROM - 1, sigma * CLIP_SIGMAS, early)
    return torch.clamp(x - mean, -reach, reach)


def fold_moments(mean: Tensor, variance: Tensor, deviation: Tensor, rate: Tensor) -> None:
    """Move a running mean and variance: m += a d, v = (1 - a)(v + a d^2)."""
    mean.addcmul_(rate, deviation)
    variance.addcmul_(rate * deviation, deviation).mul_(1.0 - rate)


def fold_normaliser(normaliser: Normaliser, x: Tensor, dx: Tensor, deviation: Tensor, moves: Moves) -> None:
    """Move all statistics of the normaliser by x (stand-ins have weight 0); ``deviation`` is x_c - m."""
    state = normaliser
    fold_moments(state.mean, state.variance, deviation, moves.rate(WINDOW))
    fold_moments(state.fast_mean, state.fast_variance, x - state.fast_mean, moves.rate(FAST_WINDOW))
    # The first difference exists at the second observation: its own counter is one behind.
    own = torch.maximum(moves.weight / state.count.clamp_min(1.0), moves.weight * (1.0 / WINDOW))
    state.change.lerp_(dx.abs(), own)
    state.last.copy_(torch.where(moves.valid, x, state.last))
    state.count.add_(moves.weight)


@dataclass(slots=True)
class Sighting:
    """What enters the inputs besides the statistics: value, difference, seasonal residual, known flag."""

    x: Tensor
    dx: Tensor
    residual: Tensor
    known: Tensor


def write_inputs(
    out: Tensor,
    normaliser: Normaliser,
    sigma: Tensor,
    seen: Sighting,
    season: tuple[Tensor, Tensor] | None,
) -> None:
    """Write the twelve numbers of docs/score.md, "Predictor inputs", as the rows of ``out`` ``(12, R)``.

    Parameters
    ----------
    normaliser, sigma
        Statistics and scale after this observation.
    seen
        The observation; ``known`` is 1 where its time-of-day bin had been seen before.
    season
        What is expected 1, 4 and 16 intervals ahead, and how often those times of day were seen, ``(3, R)``; None
        without seasonal memory.
    """
    state = normaliser
    inverse = torch.reciprocal(sigma)
    change = torch.add(state.change, sigma, alpha=1e-3)
    z = (seen.x - state.mean).mul_(inverse)
    out[0].copy_(z)
    torch.div(seen.dx, change, out=out[2])
    if season is None:
        out[3:6].zero_()
    else:
        mean, count = season
        torch.mul((mean - state.mean).mul_(inverse), count > 0, out=out[3:6])
    torch.mul(seen.residual, inverse, out=out[6])
    torch.mul(state.fast_mean - state.mean, inverse, out=out[8])
    out[:9].copy_(arcsinh(out[:9]))  # two of them for nothing: they are written next
    torch.clamp(z, -4.0, 4.0, out=out[1])
    out[7].copy_(seen.known)
    # ln((fast sd + 1e-3 sigma) / sigma) = ln(fast sd / sigma + 1e-3)
    torch.log(state.fast_variance.sqrt().mul_(inverse).add_(1e-3), out=out[9])
    torch.log(change.mul_(inverse), out=out[10])
    torch.mul(state.count.clamp_max(2000.0), 1e-3, out=out[11])


@dataclass(frozen=True, slots=True)
class WindowInputs:
    """Inputs of whole series: ``inputs`` (T, B, 12), ``mean`` and ``sigma`` (T, B) after each observation."""

    inputs: Tensor
    mean: Tensor
    sigma: Tensor


@torch.no_grad()
def window_inputs(
    x: Tensor,
    times_ms: Tensor | None,
    interval_s: float | None,
    after_gap: Tensor | None = None,
    has_week: bool = False,
) -> WindowInputs:
    """The inputs of B whole series from their first observation on, as :class:`models.step.Scorer` computes them.

    Parameters
    ----------
    x
        ``(T, B)`` values, NaN where missing.
    times_ms
        ``(T,)`` or ``(T, B)`` int64 event times; None for series without a clock.
    interval_s
        Seconds between observations; None for series without seasonal memory.
    after_gap
        ``(T, B)`` bool: such an observation has no difference to the one before it; None where there are no gaps. That
        a gap also ages the statistics is left to serving.
    has_week
        With memory of the week, as rows of ``single`` evidence have it.
    """
    length, series = x.shape
    state = Normaliser.fresh(series, x)
    seasonal, bins = None, None
    if times_ms is not None and interval_s is not None:
        begin = torch.arange(series, device=x.device) * season_width(has_week)
        errors = x.new_zeros(2, series) if has_week else None
        seasonal = Seasonal(x.new_zeros(series * season_width(has_week)), begin, interval_s, errors)
        bins = time_bins(times_ms.reshape(length, -1).expand(length, series), round(interval_s * 1000))
    return whole_inputs(x, state, seasonal, bins, after_gap)


@torch.no_grad()
def whole_inputs(
    x: Tensor, state: Normaliser, seasonal: Seasonal | None, bins: Tensor | None, after_gap: Tensor | None = None
) -> WindowInputs:
    """:func:`window_inputs` of series with a past: ``state`` and ``seasonal`` go on from it, and are moved."""
    inputs = x.new_empty(len(x), INPUTS, x.shape[1])
    means, sigmas = torch.empty_like(x), torch.empty_like(x)
    sigma = scale_of(state, floor_of(state.mean))
    for t in range(len(x)):
        valid = torch.isfinite(x[t])
        moves = moves_of(valid, state.count)
        now = None if bins is None else bins[:, :, t]
        seen = sight(x[t], valid, state, seasonal, now)
        if after_gap is not None:
            seen.dx.masked_fill_(after_gap[t], 0.0)
        deviation = clipped_deviation(seen.x, state.mean, sigma, state.count)
        fold_normaliser(state, seen.x, seen.dx, deviation, moves)
        sigma = scale_of(state, floor_of(state.mean))
        ahead = fold_and_look_ahead(seasonal, now, seen.x, sigma, moves.weight)
        write_inputs(inputs[t], state, sigma, seen, ahead)
        means[t], sigmas[t] = state.mean, sigma
    return WindowInputs(inputs.transpose(1, 2), means, sigmas)


def sight(
    raw: Tensor, valid: Tensor, normaliser: Normaliser, seasonal: Seasonal | None, bins: Tensor | None
) -> Sighting:
    """The value of an observation, or what stands in for it, against the statistics before it.

    A missing value is replaced by the row's own expectation: that of its time where known, else the running mean, with
    dx = 0.
    """
    state = normaliser
    if seasonal is None or bins is None:
        expected, known = state.mean, torch.zeros_like(state.mean)
    else:
        of_time, count = seasonal.read(bins[:, 1])
        is_known = count > 0
        expected, known = torch.where(is_known, of_time, state.mean), is_known.to(state.mean.dtype)
    x = torch.where(valid, raw, expected).clamp_(-VALUE_LIMIT, VALUE_LIMIT)
    dx = torch.where(valid & (state.count > 0), x - state.last, 0.0)
    return Sighting(x, dx, x - expected, known)


def fold_and_look_ahead(
    seasonal: Seasonal | None, bins: Tensor | None, x: Tensor, sigma: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Move what is remembered of the present time, then read what is expected 1, 4 and 16 intervals ahead."""
    if seasonal is None or bins is None:
        return None
    seasonal.fold(bins[:, 1], bins[:, 0], x, sigma * CLIP_SIGMAS, weight)
    return seasonal.read(bins[:, 2:])
