"""The network: whole windows and single steps agree, and serving computes what training trained."""

from __future__ import annotations

import pytest
import torch

from models.config import PredictorConfig
from models.predictor import Mixture, Predictor

CONFIGS = [
    PredictorConfig(cell, hidden=5, layers=layers, scope=scope, features=features)
    for cell in ("gru", "lstm")
    for layers in (1, 2)
    for scope, features in (("feature", 1), ("stream", 3))
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_step_equals_whole_window(config):
    """Training runs windows, serving runs steps; state carried over steps must end where the window ends."""
    torch.manual_seed(0)
    network = Predictor(config).eval().requires_grad_(False)
    inputs = torch.randn(12, 4, network.input_width)
    start = torch.randn(4, network.state_width)
    hidden, end = network(inputs, start)
    state = start
    for t in range(12):
        now, state = network.step(inputs[t], state)
        torch.testing.assert_close(now, hidden[t], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(state, end, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_serving_head_equals_the_trained_head(config):
    """Serving computes 21 of the head's numbers per feature; they are the same numbers."""
    torch.manual_seed(1)
    network = Predictor(config).eval().requires_grad_(False)
    hidden, inputs = torch.randn(4, 5), torch.randn(4, network.input_width)
    mixtures = network.mixtures(hidden, inputs)
    mixture, four, eight = network.serving().forecast(hidden, inputs.t())
    point = mixtures.point().reshape(4, -1, 6)
    torch.testing.assert_close(four, point[..., 2].flatten(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(eight, point[..., 3].flatten(), atol=1e-5, rtol=1e-5)
    first = mixtures.location.reshape(-1, 6, 3)[:, 0]
    torch.testing.assert_close(mixture[3:6].t(), first, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixture[:3].sum(0), torch.ones(four.numel()))


def test_mixture_density_integrates_to_one():
    """A loss that is no density teaches no distribution."""
    mixture = Mixture(torch.tensor([0.3, -1.0, 0.5]), torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([-1.0, 0.2, -0.3]))
    grid = torch.linspace(-40, 40, 80_001)
    assert torch.trapezoid(mixture.log_prob(grid).exp(), grid).item() == pytest.approx(1.0, abs=1e-3)
