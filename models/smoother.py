"""A bidirectional smoother: what a value should have been, given what came before and after it.

For re-scoring complete recordings only. It is refused wherever a predictor is served: an alert that waits for the
future comes too late, and a score that changes when more is known could not be replayed.

Two GRUs pass over a series, one in the order of time and one against it; each sees the twelve inputs of serving, made
for its own direction and without time-of-day memory. The distribution of x_t is read from the first one's state after
t - 1 and the second one's after t + 1, so x_t itself enters neither.

Shapes: B series, T time, H hidden.

References
----------
Schuster and Paliwal, "Bidirectional recurrent neural networks" (1997); leaving x_t out makes it a predictive density.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn

from models.features import INPUTS, WindowInputs, arcsinh, window_inputs
from models.predictor import COMPONENTS, LOG_SCALE_RANGE, Mixture

REFUSED = "a smoother reads the future of what it scores: it re-scores recordings and is never served"
EDGE = 20  # observations at both ends in which one of the two directions has no scale yet
BRIDGE = 2
LEAST_SURPRISE, GREATEST_SURPRISE = 1e-3, 15.0


@dataclass(frozen=True, slots=True)
class Views:
    """B complete series ``x`` (T, B) as seen from both sides; ``after`` is in the order of time, too."""

    x: Tensor
    before: WindowInputs
    after: WindowInputs

    def targets(self) -> Tensor:
        """asinh((x_t - m_{t-1}) / sigma_{t-1}) ``(T - 2, B)``, t = 1 … T - 2; NaN where missing or near an end."""
        z = (self.x[1:-1] - self.before.mean[:-2]) / self.before.sigma[:-2]
        z[:EDGE], z[-EDGE:] = torch.nan, torch.nan
        return torch.where(torch.isfinite(z), arcsinh(z), torch.nan)


def views_of(x: Tensor) -> Views:
    """Both views of complete series ``(T, B)``, NaN where missing.

    Raises
    ------
    ValueError
        Shorter than both edges and something between them.
    """
    if len(x) <= 2 * EDGE + 2:
        raise ValueError(f"{len(x)} observations are too few to smooth: more than {2 * EDGE + 2} are needed")
    back = window_inputs(x.flip(0), None, None)
    after = WindowInputs(back.inputs.flip(0), back.mean.flip(0), back.sigma.flip(0))
    return Views(x, window_inputs(x, None, None), after)


class Smoother(nn.Module):
    """Two GRUs and a linear head to the mixture of three logistics of x_t.

    Parameters
    ----------
    hidden
        H of each direction.
    """

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.forwards = nn.GRU(INPUTS, hidden)
        self.backwards = nn.GRU(INPUTS, hidden)
        self.head = nn.Linear(2 * (hidden + INPUTS) + BRIDGE, 3 * COMPONENTS)

    def forward(self, views: Views) -> Mixture:
        """Distributions of asinh((x_t - m_{t-1}) / sigma_{t-1}), t = 1 … T - 2: tensors ``(T - 2, B, 3)``."""
        before, after = views.before.inputs[:-2], views.after.inputs[2:]
        ahead, _ = self.forwards(before)
        against, _ = self.backwards(after.flip(0))
        mean, sigma = views.before.mean[:-2], views.before.sigma[:-2]
        bridge = torch.stack(
            (arcsinh((views.after.mean[2:] - mean) / sigma), torch.log(views.after.sigma[2:] / sigma)), -1
        )
        raw = self.head(torch.cat((ahead, before, against.flip(0), after, bridge), -1))
        logits, location, log_scale = raw.unflatten(-1, (3, COMPONENTS)).unbind(-2)
        return Mixture(logits, location, log_scale.clamp(*LOG_SCALE_RANGE))

    def loss(self, views: Views) -> Tensor:
        """Mean of -ln p(x_t), nats."""
        targets = views.targets()
        there = torch.isfinite(targets)
        mixture: Mixture = self(views)
        log_prob = mixture.log_prob(torch.where(there, targets, 0.0))
        return -(log_prob * there).sum() / there.sum().clamp_min(1)

    def step(self, inputs: Tensor, state: Tensor) -> NoReturn:
        """Refused. Raises ValueError always."""
        raise ValueError(REFUSED)

    def serving(self) -> NoReturn:
        """Refused. Raises ValueError always."""
        raise ValueError(REFUSED)


def fitted_smoother(
    views: Views,
    hidden: int = 32,
    epochs: int = 100,
    rate: float = 1e-2,
    seed: int = 1,
    listener: Callable[[int, float], None] | None = None,
) -> Smoother:
    """A smoother learned on complete series, all of them at once in each epoch.

    Parameters
    ----------
    listener
        Called with the number of epochs done and their last loss.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        smoother = Smoother(hidden)
    optimiser = torch.optim.Adam(smoother.parameters(), lr=rate)
    for epoch in range(epochs):
        loss = smoother.loss(views)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(smoother.parameters(), 1.0)
        optimiser.step()
        if listener is not None:
            listener(epoch + 1, float(loss.detach()))
    return smoother.eval().requires_grad_(False)


@torch.no_grad()
def rescored(smoother: Smoother, views: Views) -> Tensor:
    """Surprise -ln(2 min(F, 1 - F)) of every observation ``(T, B)``, high is anomalous; NaN where there is none.

    It is no calibrated score: it has no alarm budget and belongs into a report, not onto a topic.
    """
    targets, mixture = views.targets(), smoother(views)
    weight = torch.softmax(mixture.logits, -1)
    standard = (targets.unsqueeze(-1) - mixture.location) * torch.exp(-mixture.log_scale)
    below, above = (weight * torch.sigmoid(standard)).sum(-1), (weight * torch.sigmoid(-standard)).sum(-1)
    surprise = -torch.log((2.0 * torch.minimum(below, above)).clamp_min(1e-30))
    out = torch.full_like(views.x, torch.nan)
    out[1:-1] = surprise.clamp(LEAST_SURPRISE, GREATEST_SURPRISE)
    return out
