"""The smoother knows the future, never the value it judges, and is refused wherever predictors are served."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from models.config import FoldConfig, PredictorConfig
from models.families import build
from models.pretrained import Weights
from models.row import RowLayout
from models.smoother import EDGE, Smoother, fitted_smoother, rescored, views_of

pytestmark = pytest.mark.slow

LENGTH, SPIKE = 300, 170


def waves(seed: int = 1) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    t = torch.arange(LENGTH).unsqueeze(1)
    return torch.sin(2 * math.pi * t / 30 + torch.arange(4)) + 0.1 * torch.randn(LENGTH, 4, generator=draws)


@pytest.fixture(scope="module")
def smoother() -> Smoother:
    return fitted_smoother(views_of(waves()), hidden=8, epochs=60)


def test_serving_is_refused_everywhere(smoother, tmp_path):
    """It must not slip into a worker by a manifest, a profile or a call."""
    config = PredictorConfig("smoother")
    for attempt in (
        lambda: build(config),
        lambda: RowLayout(FoldConfig(("a",), 60.0), config),
        lambda: Weights.random(config),
        smoother.serving,
        lambda: smoother.step(torch.zeros(1, 12), torch.zeros(1, 8)),
    ):
        with pytest.raises(ValueError, match="never served"):
            attempt()
    replace(Weights.random(PredictorConfig(hidden=4)), predictor=config).save(tmp_path)
    with pytest.raises(ValueError, match="never served"):
        Weights.load(tmp_path)


def test_a_value_does_not_explain_itself(smoother):
    """A density that has seen its own argument would find nothing surprising."""
    x = waves()
    changed = x.clone()
    changed[SPIKE] += 3.0
    one, two = (smoother(views_of(values)) for values in (x, changed))
    assert torch.equal(one.location[SPIKE - 1], two.location[SPIKE - 1])
    assert not torch.equal(one.location[SPIKE], two.location[SPIKE])
    assert not torch.equal(one.location[SPIKE - 2], two.location[SPIKE - 2])


def test_the_future_helps(smoother):
    """On a turned-off second direction the loss on unseen series is clearly worse."""
    views = views_of(waves(2))
    blind = Smoother(8)
    blind.load_state_dict(smoother.state_dict())
    with torch.no_grad():
        whole = float(smoother.loss(views))
        blind.head.weight[:, 20:].zero_()
        assert float(blind.loss(views)) > whole + 0.2


def test_a_fault_is_where_surprise_is_highest(smoother):
    """That is what re-scoring is for; the ends and missing values have no surprise."""
    x = waves(3)
    x[SPIKE, 0] += 1.5
    x[100, 1] = torch.nan
    surprise = rescored(smoother, views_of(x))
    assert int(surprise[:, 0].nan_to_num().argmax()) == SPIKE
    assert surprise[100, 1].isnan()
    assert surprise[: EDGE + 1].isnan().all()
    assert surprise[-EDGE:].isnan().all()
    assert int(torch.isfinite(surprise[:, 2]).sum()) == LENGTH - 2 - 2 * EDGE


def test_too_short_series_are_refused():
    """Nothing would be left between the ends."""
    with pytest.raises(ValueError, match="too few"):
        views_of(torch.zeros(40, 1))
