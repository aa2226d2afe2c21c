"""What a predictor sees of a value: normaliser, time-of-day memory and the twelve inputs (recipe.md, steps 1 to 3).

All functions take one observation of R feature rows at once. A statistic is one ``(R,)`` vector and moves in place; a
missing value has weight 0 in :class:`Moves`, so that no statistic moves on its stand-in.

References
----------
Running mean and variance: T. Finch, "Incremental calculation of weighted mean and variance" (2009), eq. 143, with the
rate ``max(1/W, 1/(t+1))`` so that the first W observations are averaged plainly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

INPUTS = 12
BINS = 48
DAY_MS = 86_400_000
BIN_MS = DAY_MS // BINS
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
    """Time-of-day means inside table rows: 48 bins of half an hour (UTC), read and written in place.

    Attributes
    ----------
    table
        One-dimensional view of the table that holds the rows.
    means, counts
        ``(R,)`` int64: where in ``table`` the first bin mean and the first bin count of a row lie.
    slowest
        The smallest rate of a bin: 1 / (4 b), b = observations per bin and day.
    """

    table: Tensor
    means: Tensor
    counts: Tensor
    slowest: float

    def read(self, bins: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and count of ``bins`` (int64, ``(..., R)``)."""
        means = torch.take(self.table, bins + self.means)
        return means, torch.take(self.table, bins + self.counts)

    def write(self, bins: Tensor, mean: Tensor, count: Tensor) -> None:
        """Replace one bin of every row."""
        self.table.index_copy_(0, bins + self.means, mean)
        self.table.index_copy_(0, bins + self.counts, count)


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
    """Time-of-day bins of an observation and of 1, 4 and 16 intervals later: ``(4, ...)`` int64."""
    ahead = torch.stack([times_ms + lead * interval_ms for lead in (0, *LEADS)])
    return torch.div(torch.remainder(ahead, DAY_MS), BIN_MS, rounding_mode="floor")


def slowest_bin_rate(interval_s: float) -> float:
    """The smallest rate of a bin mean: four days of its observations."""
    return 1.0 / (4.0 * max(1.0, BIN_MS / 1000.0 / interval_s))


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


def fold_season(seasonal: Seasonal, bins: Tensor, x: Tensor, mean: Tensor, count: Tensor, weight: Tensor) -> None:
    """Move the bin of this observation; ``mean`` and ``count`` are its numbers before x."""
    rate = torch.reciprocal(count + 1.0).clamp_min_(seasonal.slowest).mul_(weight)
    seasonal.write(bins, torch.lerp(mean, x, rate), count + weight)


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
    """Write the twelve numbers of recipe.md, step 3, as the rows of ``out`` ``(12, R)``.

    Parameters
    ----------
    normaliser, sigma
        Statistics and scale after this observation.
    seen
        The observation; ``known`` is 1 where its time-of-day bin had been seen before.
    season
        Mean and count ``(3, R)`` of the bins 1, 4 and 16 intervals ahead, or None without seasonal memory.
    """
    state = normaliser
    inverse = torch.reciprocal(sigma)
    z = (seen.x - state.mean).mul_(inverse)
    out[0] = arcsinh(z)
    torch.clamp(z, -4.0, 4.0, out=out[1])
    change = torch.add(state.change, sigma, alpha=1e-3)
    out[2] = arcsinh(seen.dx / change)
    if season is None:
        out[3:6].zero_()
    else:
        mean, count = season
        out[3:6] = arcsinh((mean - state.mean).mul_(inverse).mul_(count > 0))
    out[6] = arcsinh(seen.residual * inverse)
    out[7].copy_(seen.known)
    out[8] = arcsinh((state.fast_mean - state.mean).mul_(inverse))
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
    x: Tensor, times_ms: Tensor | None, interval_s: float | None, after_gap: Tensor | None = None
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
    """
    length, series = x.shape
    state = Normaliser.fresh(series, x)
    seasonal, bins = None, None
    if times_ms is not None and interval_s is not None:
        seasonal = _standalone_season(x, interval_s)
        bins = time_bins(times_ms.reshape(length, -1).expand(length, series), round(interval_s * 1000))
    inputs = x.new_empty(length, INPUTS, series)
    means, sigmas = torch.empty_like(x), torch.empty_like(x)
    sigma = scale_of(state, floor_of(state.mean))
    for t in range(length):
        valid = torch.isfinite(x[t])
        moves = moves_of(valid, state.count)
        now = None if bins is None else bins[:, t]
        sighting, bin_now = sight(x[t], valid, state, seasonal, now)
        if after_gap is not None:
            sighting.dx.masked_fill_(after_gap[t], 0.0)
        deviation = clipped_deviation(sighting.x, state.mean, sigma, state.count)
        fold_normaliser(state, sighting.x, sighting.dx, deviation, moves)
        sigma = scale_of(state, floor_of(state.mean))
        ahead = fold_and_look_ahead(seasonal, now, bin_now, sighting.x, moves.weight)
        write_inputs(inputs[t], state, sigma, sighting, ahead)
        means[t], sigmas[t] = state.mean, sigma
    return WindowInputs(inputs.transpose(1, 2), means, sigmas)


def sight(
    raw: Tensor, valid: Tensor, normaliser: Normaliser, seasonal: Seasonal | None, bins: Tensor | None
) -> tuple[Sighting, tuple[Tensor, Tensor] | None]:
    """The value of an observation, or what stands in for it, against the statistics before it.

    A missing value is replaced by the row's own expectation: the bin mean where known, else the running mean, with
    dx = 0. Returns the sighting, and mean and count of the present time-of-day bin before x.
    """
    state = normaliser
    if seasonal is None or bins is None:
        expected, known, bin_now = state.mean, torch.zeros_like(state.mean), None
    else:
        bin_now = seasonal.read(bins[0])
        is_known = bin_now[1] > 0
        expected, known = torch.where(is_known, bin_now[0], state.mean), is_known.to(state.mean.dtype)
    x = torch.where(valid, raw, expected).clamp_(-VALUE_LIMIT, VALUE_LIMIT)
    dx = torch.where(valid & (state.count > 0), x - state.last, 0.0)
    return Sighting(x, dx, x - expected, known), bin_now


def fold_and_look_ahead(
    seasonal: Seasonal | None,
    bins: Tensor | None,
    bin_now: tuple[Tensor, Tensor] | None,
    x: Tensor,
    weight: Tensor,
) -> tuple[Tensor, Tensor] | None:
    """Move the present bin, then read the bins 1, 4 and 16 intervals ahead."""
    if seasonal is None or bins is None or bin_now is None:
        return None
    fold_season(seasonal, bins[0], x, *bin_now, weight)
    return seasonal.read(bins[1:])


def _standalone_season(like: Tensor, interval_s: float) -> Seasonal:
    series = like.shape[1]
    rows = torch.arange(series, device=like.device) * 2 * BINS
    table = like.new_zeros(series * 2 * BINS)
    return Seasonal(table, rows, rows + BINS, slowest_bin_rate(interval_s))
