"""Learning on the GPU is learning on the CPU, only faster."""

from __future__ import annotations

import pytest
import torch

from models.config import PredictorConfig
from models.learner import Forecaster, Pupil, generated_lessons, joined, without_past
from models.pretrained import Weights

pytestmark = pytest.mark.gpu


def test_losses_and_updates_are_those_of_the_cpu() -> None:
    """A learner moves between machines; what it promotes must not depend on which one it ran on."""
    weights = Weights.random(PredictorConfig(hidden=8), 1)
    lessons = generated_lessons(64, 1)[:8]
    names = [str(number) for number in range(len(lessons))]
    losses, learned = [], []
    for device in ("cpu", "cuda"):
        found, _ = Forecaster(weights, device).predict(names, joined(lessons))
        losses.append(torch.from_numpy(found))
        pupil = Pupil(weights, device, rate=1e-3, chunk=32)
        for _ in range(3):
            pupil.learn([without_past(each, pupil.network) for each in lessons])
        learned.append(pupil.learned())
    torch.testing.assert_close(losses[0], losses[1], atol=1e-3, rtol=0)  # what a decision could notice
    for name, tensor in learned[0].items():
        torch.testing.assert_close(learned[1][name], tensor, atol=1e-3, rtol=0)
