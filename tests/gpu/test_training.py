"""Training on a GPU learns what it learns on a CPU. Run with ``make gpu`` on a machine that has one."""

from __future__ import annotations

import math

import pytest
import torch

from models.config import PredictorConfig
from models.fitting import Fit, Recipe, first_network
from models.peers import Peers
from models.split import Plan, Series, split_of

pytestmark = pytest.mark.gpu

LENGTH = 600


@pytest.mark.parametrize("cell", ["gru", "lstm", "tdnn", "seq2seq", "hmm", "ar", "naive"])
def test_a_gpu_learns_what_a_cpu_does(cell: str) -> None:
    """The same losses, epoch by epoch: draws are made on the CPU, only the order of float32 sums differs."""
    t = torch.arange(LENGTH)
    values = torch.sin(2 * math.pi * t / 24).unsqueeze(1) + 0.05 * torch.randn(LENGTH, 1)
    split = split_of(
        [Series("s", 60_000 * t, values, 60.0, has_clock=False, has_week=False)], "feature", Plan(segment=120)
    )
    losses = []
    for device in ("cpu", "cuda"):
        recipe = Recipe(epochs=3, dropout=0.1)
        config = PredictorConfig(cell, hidden=8)  # type: ignore[arg-type]
        fit = Fit(first_network(config, 1), split, recipe, Peers(device=torch.device(device)))
        fit.run(lambda progress: None, lambda checkpoint: None)
        losses.append([(epoch.train_loss, epoch.validation_loss) for epoch in fit.history])
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=0, atol=2e-3)
