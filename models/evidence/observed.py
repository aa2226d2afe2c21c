"""One observation of many features against the statistics before it, and what several kinds of evidence make of it.

References
----------
Surprise: the two-sided tail probability of the one-step mixture (probability integral transform, Dawid 1984).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.features import CLIP_FROM, EARLY_FROM, LEAST_SPREAD, Moves, Sighting, arcsinh, clipped_deviation

SIGNALS = ("none", "level", "activity", "displacement", "stillness", "jump", "values", "residuals", "means")
NONE, LEVEL, ACTIVITY, DISPLACEMENT, STILLNESS, JUMP, VALUES, RESIDUALS, MEANS = range(9)

ABSENT = 1e30
SURPRISE_RANGE = (1e-3, 15.0)
RECORD_DECAY = math.exp(-1.0 / 16000.0)
SCALE_CAP, EARLY_CAP = 9.0, 100.0
PLAIN_AVERAGE = 100.0
# The first values of some averages (errors: 8) count as though three in four had not been: the weight of the first
# falls with the fourth power of their number (polynomial-decay averaging; O. Shamir and T. Zhang, 2013, with eta = 3).
FORGETS, FORGOTTEN = 8.0, 0.75
FORECAST_CAP = 50.0


@dataclass(slots=True)
class Observed:
    """One observation of R features against the statistics before it.

    Attributes
    ----------
    mean, sigma, floor, last, count
        m, sigma, f, the last valid value and n before x.
    deviation
        x_c - m, what of x lies within reach of m.
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
    deviation: Tensor
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
        clipped_deviation(sight.x, before[0], before[1], count),
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


def mixture_below(u: Tensor, mixture: Tensor) -> Tensor:
    """F alone, for searches."""
    return (torch.sigmoid((u - mixture[3:6]).mul_(mixture[6:9])) * mixture[0:3]).sum(0)


def surprise(o: Observed) -> Tensor:
    """-ln(2 min(F, 1 - F)) of x under the one-step mixture, within [1e-3, 15]."""
    lower, upper = mixture_tails(arcsinh((o.sight.x - o.mean) / o.sigma), o.mixture)
    return torch.minimum(lower, upper).mul_(2.0).log_().neg_().clamp_(*SURPRISE_RANGE)


def one_step_forecast(mixture: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """x_1 = m + sigma sinh(sum of weight x location), in raw units."""
    centre = (mixture[0:3] * mixture[3:6]).sum(0)
    return torch.addcmul(mean, sigma, torch.sinh(centre).clamp_(-FORECAST_CAP, FORECAST_CAP))


def own_rate(weight: Tensor, count: Tensor, behind: float, window: float) -> Tensor:
    """Rate of ``ew(., window)`` for a quantity whose counter lies ``behind`` that of valid observations."""
    return torch.maximum(weight * (1.0 / window), weight / (count - (behind - 1.0)).clamp_min_(1.0))


def remembered(count: Tensor, forgets: float) -> Tensor:
    """How many of ``count`` values an average counts that forgets three in four of its first ``forgets``."""
    return count - FORGOTTEN * count.clamp_max(forgets)


def extend_range(low: Tensor, high: Tensor, x: Tensor, absent: Tensor) -> None:
    """Gather x in a range."""
    torch.minimum(low, x + absent, out=low)
    torch.maximum(high, x - absent, out=high)


def fold_capped(
    variance: Tensor,
    error: Tensor,
    floor: Tensor,
    weight: Tensor,
    own_count: Tensor,
    window: float,
    is_settled: Tensor,
) -> None:
    """Move a slow mean square: averaging while it counts fewer than 100 errors, the first eight as two; then 1/window.

    ``own_count`` is how many errors it has seen; one of weight 0 moves nothing. A square counts as no more than 9 times
    the mean once ``is_settled``, as 100 times from the sixth error on, unless the mean is hardly above the floor.
    """
    usual = torch.addcmul(variance, floor, floor)
    has_scale = (own_count >= EARLY_FROM) & (usual > (1.0 + LEAST_SPREAD**2) * floor.square())
    cap = torch.where(is_settled, SCALE_CAP, torch.where(has_scale, EARLY_CAP, torch.inf))
    square = torch.minimum(error * error, usual.mul_(cap))
    counted = remembered(own_count, FORGETS)
    plain = torch.reciprocal(counted + 1.0)
    variance.lerp_(square, torch.where(counted < PLAIN_AVERAGE, plain, 1.0 / window) * weight)
