"""Predictors that know nothing, for the same fold: what the pretrained one has to beat (recipe.md, finding 1).

Each is a :class:`models.step.Scorer` that differs from the served one in its forecasts alone.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from models.config import FoldConfig, PredictorConfig
from models.predictor import FORECAST_LIMIT, LOG_SCALE_RANGE
from models.pretrained import PooledTails, Weights, preconditioner
from models.step import Scorer
from models.synthetic import corpus
from models.training import Lessons, prepare

LAGS = 20
CORPUS_SERIES, CORPUS_LENGTH = 88, 1024
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
    """A linear forecast from the last p values and the twelve inputs, learned by each stream from nothing.

    The hidden state is a shift register of p normalised values; the frozen forecast is the last value, and fast weights
    do the rest.
    """

    def __init__(
        self, pooled: PooledTails, config: FoldConfig, device: torch.device | str = "cpu", lags: int = LAGS
    ) -> None:
        shape = Weights.random(PredictorConfig(hidden=lags))
        mu0, p0 = preconditioner(_lagged_features(lags))
        super().__init__(replace(shape, mu0=mu0, P0=p0, pooled=pooled), config, device)

    def advance(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Shift asinh z in."""
        state = torch.cat((inputs[:, :1], state[:, :-1]), 1)
        return state, state

    def forecast(self, hidden: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`models.predictor.ServingHead`."""
        return last_value(inputs)


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


def untrained(weights: Weights, seed: int = 0) -> Weights:
    """A network of the same shape that never learned, with the preconditioner of its own features on normal series."""
    blank = Weights.random(weights.predictor, seed)
    lessons = _lessons()
    with torch.no_grad():
        hidden, _ = blank.build()(lessons.inputs)
    phi = torch.cat((hidden, lessons.inputs), -1)[FROM::EVERY].flatten(0, 1)
    mu0, p0 = preconditioner(phi)
    return replace(blank, mu0=mu0, P0=p0, pooled=weights.pooled)


def _lessons(seed: int = 1) -> Lessons:
    return prepare(corpus(CORPUS_SERIES, CORPUS_LENGTH, seed))


def _lagged_features(lags: int) -> Tensor:
    inputs = _lessons().inputs
    length = inputs.shape[0]
    past = [inputs[lags - 1 - k : length - k, :, 0] for k in range(lags)]
    phi = torch.cat((torch.stack(past, -1), inputs[lags - 1 :]), -1)
    return phi[FROM::EVERY].flatten(0, 1)
