"""Controls know what they claim to know and nothing more: a weak control flatters, a strong one hides."""

from __future__ import annotations

import pytest
import torch

from models.config import FoldConfig
from models.controls import LastValue, LinearLags, Untrained
from models.families import state_width
from models.pretrained import builtin
from models.synthetic import corpus
from models.training import prepare

SETTLED = 100


@pytest.fixture(scope="module")
def unseen():
    return prepare(corpus(22, 400, seed=9))


def error_of_eight_steps(scorer, lessons):
    """Mean squared error of the forecasts eight steps ahead on prepared series, in asinh units."""
    errors = []
    state = torch.zeros(lessons.x.shape[1], state_width(scorer.weights.predictor))
    for t in range(len(lessons.x) - 8):
        inputs = lessons.inputs[t]
        hidden, state = scorer.advance(inputs, state)
        _, _, forecast = scorer.forecast(hidden, inputs.t())
        target = torch.asinh((lessons.x[t + 8] - lessons.mean[t]) / lessons.sigma[t])
        errors.append((torch.asinh(forecast) - target) ** 2)
    return torch.stack(errors[SETTLED:]).nanmean().item()


def test_frozen_controls_read_out_what_generated_series_taught(unseen):
    """Where rows have no fast weights, linear lags and an untrained network still beat last value on unseen series."""
    config, weights = FoldConfig(features=("a", "b"), evidence="jump"), builtin("gru")
    naive = error_of_eight_steps(LastValue(weights.pooled, config), unseen)
    assert error_of_eight_steps(LinearLags(weights.pooled, config), unseen) < 0.85 * naive
    assert error_of_eight_steps(Untrained(weights, config), unseen) < 0.85 * naive


def test_controls_of_adaptive_rows_start_from_nothing():
    """With fast weights, lags begin as last value and an untrained network is as random as its seed says."""
    config, weights = FoldConfig(features=("a",), evidence="single"), builtin("gru")
    hidden, inputs = torch.randn(3, 20), torch.randn(12, 3)
    for ours, theirs in zip(
        LinearLags(weights.pooled, config).forecast(hidden, inputs),
        LastValue(weights.pooled, config).forecast(hidden, inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    one, same, other = (Untrained(weights, config, seed=seed).weights.fingerprint() for seed in (1, 1, 2))
    assert one == same != other
    assert one != weights.fingerprint()
