"""Predictors that know nothing, for the same fold: what the pretrained one has to beat (docs/results.md).

Each is a :class:`models.step.Scorer` that differs from the served one in its forecasts alone. Rows with fast weights
learn to read the features of a control out; for rows without, a linear read-out is fitted once to generated series.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from models.config import FoldConfig, PredictorConfig
from models.predictor import FORECAST_LIMIT, LOG_SCALE_RANGE, SERVED
from models.pretrained import PooledTails, Weights, preconditioner
from models.step import Scorer
from models.synthetic import corpus
from models.training import Lessons, prepare

LAGS = 20
CORPUS_SERIES, CORPUS_LENGTH, CORPUS_SEED = 88, 1024, 1
FROM, EVERY = 100, 8


class LastValue(Scorer):
    """Every forecast is the last value, and no stream adapts it: the zero control.

    Its one-step distribution is a logistic about the last value with the running mean of |dx| as mean distance.
    """

    def __init__(self, pooled: PooledTails, config: FoldConfig, device: torch.device | str = "cpu") -> None:
        nothing = Weights.random(PredictorConfig(hidden=1))
        super().__init__(replace(nothing, pooled=pooled), config, device)
        self.is_adaptive = False

    def advance(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """There is nothing to remember: the last value is among the inputs."""
        return state, state

    def forecast(self, hidden: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`models.predictor.ServingHead`."""
        return last_value(inputs)


class LinearLags(Scorer):
    """AR(p): a linear forecast from the last p values and the twelve inputs.

    The hidden state is a shift register of p normalised values. Where rows have fast weights the frozen forecast is the
    last value, and each stream learns the rest from nothing; else the lags are read out as generated series taught.
    """

    def __init__(
        self, pooled: PooledTails, config: FoldConfig, device: torch.device | str = "cpu", lags: int = LAGS
    ) -> None:
        shape = Weights.random(PredictorConfig(hidden=lags))
        hidden = _lagged(_lessons().inputs, lags)
        mu0, p0 = preconditioner(_features(hidden))
        super().__init__(replace(shape, mu0=mu0, P0=p0, pooled=pooled), config, device)
        self._read_out = None if self.is_adaptive else ReadOut.fitted(hidden, self.weights)

    def advance(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Shift asinh z in."""
        state = torch.cat((inputs[:, :1], state[:, :-1]), 1)
        return state, state

    def forecast(self, hidden: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`models.predictor.ServingHead`."""
        return last_value(inputs) if self._read_out is None else self._read_out.forecast(hidden, inputs)


class Untrained(Scorer):
    """A network of the same shape that never learned.

    Where rows have fast weights its head is as random as the rest, and each stream learns from nothing; else the hidden
    state is read out as generated series taught (an echo state network).
    """

    def __init__(self, weights: Weights, config: FoldConfig, device: torch.device | str = "cpu", seed: int = 0) -> None:
        blank = Weights.random(weights.predictor, seed)
        with torch.no_grad():
            hidden, _ = blank.build()(_lessons().inputs)
        mu0, p0 = preconditioner(_features(hidden))
        super().__init__(replace(blank, mu0=mu0, P0=p0, pooled=weights.pooled), config, device)
        self._read_out = None if self.is_adaptive else ReadOut.fitted(hidden, self.weights)

    def forecast(self, hidden: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`models.predictor.ServingHead`."""
        if self._read_out is None:
            return super().forecast(hidden, inputs)
        return self._read_out.forecast(hidden, inputs)


@dataclass(frozen=True, slots=True)
class ReadOut:
    """A linear correction of the last value from phi = [h, input], for the served horizons, in asinh units.

    Attributes
    ----------
    mean
        ``(H + 12, 1)``.
    weight, bias
        ``(3, H + 12)`` and ``(3, 1)``.
    """

    mean: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def fitted(cls, hidden: Tensor, weights: Weights) -> ReadOut:
        """Ridge regression on generated series, whose hidden states ``(T, B, H)`` are given.

        mu0 and P0 of the weights are the mean and the inverse ridge covariance of phi on the same series, so that what
        is left to do is P0 times the covariance of phi and target.
        """
        lessons = _lessons()
        longest = SERVED[-1]
        now = slice(FROM, lessons.x.shape[0] - longest, EVERY)
        phi = torch.cat((hidden, lessons.inputs), -1)[now]
        targets = []
        for k in SERVED:
            later = lessons.x[FROM + k : lessons.x.shape[0] - longest + k : EVERY]
            targets.append(torch.asinh((later - lessons.mean[now]) / lessons.sigma[now]) - lessons.inputs[now][..., 0])
        target = torch.stack(targets, -1)
        known = torch.isfinite(target).all(-1)
        target, phi = target[known].double(), phi[known].double() - weights.mu0.double()
        bias = target.mean(0)
        weight = weights.P0.double() @ (phi.T @ (target - bias)) / len(phi)
        return cls(weights.mu0[:, None], weight.T.float().contiguous(), bias.float()[:, None])

    def forecast(self, hidden: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`models.predictor.ServingHead`."""
        phi = torch.cat((hidden.t(), inputs))
        ahead = inputs[0] + torch.addmm(self.bias, self.weight, phi - self.mean)
        mixture, _, _ = last_value(inputs)
        mixture[3:6] = ahead[0]
        z = torch.sinh(ahead).clamp(-FORECAST_LIMIT, FORECAST_LIMIT)
        return mixture, z[1], z[2]


def last_value(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The forecasts of last value from the inputs ``(12, R)``: one-step mixture ``(9, R)``, B_4 and B_8 ``(R,)``.

    The mean distance of a logistic of scale s from its centre is 2 s ln 2; one in asinh units is one in raw
    units divided by sqrt(1 + z^2).
    """
    location, log_change = inputs[0], inputs[10]
    z = torch.sinh(location).clamp(-FORECAST_LIMIT, FORECAST_LIMIT)
    log_scale = log_change - math.log(2.0 * math.log(2.0)) - 0.5 * torch.log1p(z * z)
    mixture = inputs.new_zeros(9, inputs.shape[1])
    mixture[:3] = 1.0 / 3.0
    mixture[3:6] = location
    mixture[6:9] = torch.exp(-log_scale.clamp(*LOG_SCALE_RANGE))
    return mixture, z, z


@cache
def _lessons() -> Lessons:
    return prepare(corpus(CORPUS_SERIES, CORPUS_LENGTH, CORPUS_SEED))


def _features(hidden: Tensor) -> Tensor:
    """phi ``(n, H + 12)`` of every eighth observation, the first hundred left out."""
    return torch.cat((hidden, _lessons().inputs), -1)[FROM::EVERY].flatten(0, 1)


def _lagged(inputs: Tensor, lags: int) -> Tensor:
    """The shift register ``(T, B, lags)`` after each observation, zeros before the first."""
    values = torch.cat((inputs.new_zeros(lags - 1, inputs.shape[1]), inputs[..., 0]))
    return torch.stack([values[lags - 1 - k : len(values) - k] for k in range(lags)], -1)
