"""The controls among the families: AR(p), and last value, which has nothing to learn."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.config import PredictorConfig
from models.features import INPUTS
from models.predictor import (
    COMPONENTS,
    FORECAST_LIMIT,
    HORIZONS,
    LOG_SCALE_RANGE,
    Mixture,
    Network,
    Served,
    served_forecast,
)


class Autoregression(Network):
    """AR(p): each horizon's forecast is linear in the last p values of u = asinh z; p = ``hidden``.

    u_{t+k} = c_k + sum over i < p of w_ki u_{t-i} + e, e logistic with a scale of its own for each k. The state is the
    last p values, newest first, feature after feature; with ``scope="stream"`` it is a vector autoregression. The
    weights start at "last value".

    References
    ----------
    Box and Jenkins (1970), chapter 3; a direct forecast for each horizon instead of iterating the first: Marcellino,
    Stock and Watson (2006).
    """

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__(config)
        lags = config.hidden * self.features
        weight = torch.zeros(self.features, len(HORIZONS), lags)
        for feature in range(self.features):
            weight[feature, :, feature * config.hidden] = 1.0
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(self.features, len(HORIZONS)))
        self.log_scale = nn.Parameter(torch.full((self.features, len(HORIZONS)), -1.0))

    @staticmethod
    def sizes(config: PredictorConfig) -> tuple[int, int]:
        """P F and p F."""
        width = config.hidden * (config.features if config.scope == "stream" else 1)
        return width, width

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run whole windows (see :meth:`Network.forward`): hidden is the shift register after each observation."""
        steps, batch, lags = inputs.shape[0], inputs.shape[1], self.config.hidden
        if state is None:
            state = self.initial_state(batch)
        past = state.view(batch, self.features, lags).permute(2, 0, 1).flip(0)
        known = torch.cat((past, inputs[..., ::INPUTS]))
        newest_first = [known[lags - i : lags - i + steps] for i in range(lags)]
        hidden = torch.stack(newest_first, -1).flatten(2)
        return hidden, hidden[-1]

    def mixtures(self, hidden: Tensor, inputs: Tensor) -> Mixture:
        """See :meth:`Network.mixtures`; the three components are one."""
        location = torch.einsum("...p,fkp->...fk", hidden, self.weight) + self.bias
        log_scale = self.log_scale.clamp(*LOG_SCALE_RANGE).expand_as(location)
        return _single(location, log_scale, self.features)

    def serving(self) -> Served:
        """The shift register and one small product."""
        return ServedLinear(self)

    def shifted(self, inputs: Tensor, state: Tensor) -> Tensor:
        """The register ``(B, p F)`` with one more observation."""
        old = state.view(-1, self.features, self.config.hidden)
        return torch.cat((inputs[:, ::INPUTS].unsqueeze(2), old[:, :, :-1]), 2).flatten(1)


class ServedLinear:
    """One observation at a time."""

    def __init__(self, network: Autoregression) -> None:
        self._network = network

    def advance(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`models.predictor.Served`."""
        state = self._network.shifted(inputs, state)
        return state, state

    def forecast(self, hidden: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`models.predictor.Served`."""
        return served_forecast(self._network.mixtures(hidden, inputs.t()))


class LastValueNetwork(Network):
    """Every forecast is the last value, for any horizon; no parameters, and no stream adapts it.

    Its distribution is a logistic about the last value with the running mean of abs(dx) as mean distance: that of a
    logistic of scale s is 2 s ln 2, and one in asinh units is one in raw units divided by sqrt(1 + z^2). State and
    hidden are the last values u, which the inputs hold as well.
    """

    is_adaptive = False

    @staticmethod
    def sizes(config: PredictorConfig) -> tuple[int, int]:
        """F and F."""
        width = config.features if config.scope == "stream" else 1
        return width, width

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run whole windows (see :meth:`Network.forward`)."""
        hidden = inputs[..., ::INPUTS].contiguous()
        return hidden, hidden[-1]

    def mixtures(self, hidden: Tensor, inputs: Tensor) -> Mixture:
        """See :meth:`Network.mixtures`."""
        location, log_change = inputs[..., ::INPUTS], inputs[..., 10::INPUTS]
        z = torch.sinh(location.clamp(-20.0, 20.0)).clamp(-FORECAST_LIMIT, FORECAST_LIMIT)
        log_scale = log_change - math.log(2.0 * math.log(2.0)) - 0.5 * torch.log1p(z * z)
        kept = (*location.shape, len(HORIZONS))
        location, log_scale = (part.unsqueeze(-1).expand(kept) for part in (location, log_scale))
        return _single(location, log_scale.clamp(*LOG_SCALE_RANGE), self.features)

    def serving(self) -> Served:
        """The last value itself."""
        return ServedLastValue(self)


class ServedLastValue:
    """One observation at a time."""

    def __init__(self, network: LastValueNetwork) -> None:
        self._network = network

    def advance(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`models.predictor.Served`."""
        now = inputs[:, ::INPUTS].contiguous()
        return now, now

    def forecast(self, hidden: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`models.predictor.Served`."""
        return served_forecast(self._network.mixtures(hidden, inputs.t()))


def _single(location: Tensor, log_scale: Tensor, features: int) -> Mixture:
    """One logistic, written as three equal ones: location and log scale ``(..., F, 6)``."""
    if features == 1:
        location, log_scale = location.squeeze(-2), log_scale.squeeze(-2)
    kept = (*location.shape, COMPONENTS)
    wide, scale = (part.unsqueeze(-1).expand(kept) for part in (location, log_scale))
    return Mixture(torch.zeros_like(wide), wide, scale)
