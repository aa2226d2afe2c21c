"""A Gaussian hidden Markov model as a filter: the classical baseline with memory.

A stream is in one of K states; in each of them u_t = asinh z_t is Gaussian. The filter knows how likely each state is:

    p_t(k)  ~  N(u_t; mu_k, s_k^2)  sum over j of p_{t-1}(j) A_jk,        p_{t+h} = p_t A^h

Its parameters are learned by gradients of the forecasts' likelihood like those of every family, not by EM.

References
----------
L. R. Rabiner, "A tutorial on hidden Markov models" (1989), eqs. 19-20 (forward recursion, here normalised each step).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.config import PredictorConfig
from models.features import INPUTS
from models.predictor import COMPONENTS, HORIZONS, LOG_SCALE_RANGE, Mixture, Network, Served, served_forecast

# A state less likely than this may come back with one observation that speaks for it.
LEAST_LOG_PROBABILITY = -30.0
LEAST_LOG_SD, GREATEST_LOG_SD = -4.0, 2.0
STAY = 3.0
# The sd of a logistic is pi / sqrt(3) times its scale.
LOG_SD_OF_LOGISTIC = math.log(math.pi / math.sqrt(3.0))


class GaussianMarkov(Network):
    """K = ``hidden`` states; state is ln p_t, of which zeros mean that all are equally likely; hidden is p_t.

    A served mixture has three logistics: neighbouring states are merged into three groups, each with the mean and
    variance of its part of the forecast (exact for K = 3, but for the shape of a Gaussian).

    Raises
    ------
    ValueError
        Fewer than three states.
    """

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__(config)
        states = config.hidden
        if states < COMPONENTS:
            raise ValueError(f"an HMM needs at least {COMPONENTS} states, not {states}")
        spread = torch.linspace(-2.0, 2.0, states).unsqueeze(1).expand(states, self.features)
        self.mean = nn.Parameter(spread + 0.05 * torch.randn(states, self.features))
        self.log_sd = nn.Parameter(torch.full((states, self.features), -0.5))
        self.transition = nn.Parameter(STAY * torch.eye(states) + 0.05 * torch.randn(states, states))
        group = torch.arange(states) * COMPONENTS // states
        self.register_buffer("_groups", functional.one_hot(group, COMPONENTS).float(), persistent=False)

    @staticmethod
    def sizes(config: PredictorConfig) -> tuple[int, int]:
        """K and K."""
        return config.hidden, config.hidden

    def emission(self, inputs: Tensor) -> Tensor:
        """Ln N(u; mu_k, s_k^2) ``(..., K)`` but for a constant, summed over features."""
        u = inputs[..., ::INPUTS].unsqueeze(-2)
        log_sd = self.log_sd.clamp(LEAST_LOG_SD, GREATEST_LOG_SD)
        return (-0.5 * ((u - self.mean) * torch.exp(-log_sd)).square() - log_sd).sum(-1)

    def fold(self, emission: Tensor, state: Tensor, transition: Tensor) -> Tensor:
        """Ln p_t ``(B, K)`` from ln N and ln p_{t-1}."""
        ahead = torch.log(torch.softmax(state, 1) @ transition)
        return torch.log_softmax(emission + ahead, 1).clamp_min(LEAST_LOG_PROBABILITY)

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run whole windows (see :meth:`Network.forward`)."""
        if state is None:
            state = self.initial_state(inputs.shape[1])
        transition, made = torch.softmax(self.transition, 1), []
        for emission in self.emission(inputs):
            state = self.fold(emission, state, transition)
            made.append(torch.softmax(state, 1))
        return torch.stack(made), state

    def mixtures(self, hidden: Tensor, inputs: Tensor) -> Mixture:
        """See :meth:`Network.mixtures`."""
        power, powers = torch.softmax(self.transition, 1), []
        for _ in HORIZONS:  # A, A^2, A^4, …
            powers.append(power)
            power = power @ power
        ahead = torch.einsum("...j,hjk->...hk", hidden, torch.stack(powers))
        groups = self.get_buffer("_groups")
        weight = ahead @ groups
        safe = weight.unsqueeze(-2).clamp_min(1e-9)
        variance = torch.exp(2.0 * self.log_sd.clamp(LEAST_LOG_SD, GREATEST_LOG_SD))
        # (..., 6, F, 3): first and second moment of each group's part
        first = torch.einsum("...hk,kf,kg->...hfg", ahead, self.mean, groups) / safe
        second = torch.einsum("...hk,kf,kg->...hfg", ahead, self.mean.square() + variance, groups) / safe
        spread = (second - first.square()).clamp_min(1e-6)
        log_scale = (0.5 * torch.log(spread) - LOG_SD_OF_LOGISTIC).clamp(*LOG_SCALE_RANGE)
        logits = torch.log(safe).expand_as(first)
        parts = (part.transpose(-2, -3) for part in (logits, first, log_scale))
        if self.features == 1:
            parts = (part.squeeze(-3) for part in parts)
        return Mixture(*parts)

    def serving(self) -> Served:
        """The filter itself: K is small."""
        return ServedMarkov(self)


class ServedMarkov:
    """One observation at a time."""

    def __init__(self, network: GaussianMarkov) -> None:
        self._network = network
        self._transition = torch.softmax(network.transition, 1)

    def advance(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`models.predictor.Served`."""
        state = self._network.fold(self._network.emission(inputs), state, self._transition)
        return torch.softmax(state, 1), state

    def forecast(self, hidden: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`models.predictor.Served`."""
        return served_forecast(self._network.mixtures(hidden, inputs.t()))
