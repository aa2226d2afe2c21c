"""Online learning of shared weights: the learner sees what a row sees, carries state, and never learns nonsense."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.calibration import Effort
from models.config import FoldConfig, PredictorConfig
from models.features import window_inputs
from models.learner import Background, Forecaster, Pupil, generated_lessons, joined, lessons_of, renewed, without_past
from models.pretrained import Weights
from models.step import Scorer
from models.training import Lessons

INTERVAL_S = 600.0
TINY = Weights.random(PredictorConfig(hidden=4), 1)


def _waves(streams: int, length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    t = np.arange(length)
    values = np.sin(t / 5.0 + np.arange(streams)[:, None]) + 0.1 * random.standard_normal((streams, length))
    times = 1_700_000_000_000 + np.tile(t * int(INTERVAL_S * 1000), (streams, 1))
    return values[..., None].astype(np.float32), times.astype(np.int64)


def _lessons(backgrounds: list[Background], values: np.ndarray, times: np.ndarray) -> Lessons:
    return lessons_of(backgrounds, values, times, [False] * len(backgrounds), INTERVAL_S, True)


def test_stretches_in_a_row_are_one_series():
    """What is learned from must not depend on where the learner cut: carried statistics equal one long pass."""
    values, times = _waves(3, 96)
    values[1, 40] = np.nan
    backgrounds = [Background(1, False) for _ in range(3)]
    parts = [_lessons(backgrounds, values[:, at : at + 32], times[:, at : at + 32]) for at in (0, 32, 64)]
    whole = window_inputs(torch.from_numpy(values[..., 0].T.copy()), torch.from_numpy(times.T.copy()), INTERVAL_S)
    torch.testing.assert_close(torch.cat([part.inputs for part in parts]), whole.inputs)
    torch.testing.assert_close(torch.cat([part.sigma for part in parts]), whole.sigma)


def test_the_learner_sees_what_the_serving_row_holds():
    """A predictor that learns from other inputs than it serves with learns the wrong thing."""
    values, times = _waves(2, 64)
    backgrounds = [Background(1, False), Background(1, False)]
    _lessons(backgrounds, values, times)
    scorer = Scorer(TINY, FoldConfig(("v",), INTERVAL_S))
    rows, slots = scorer.rows(2), torch.arange(2)
    x, when = torch.from_numpy(values.transpose(1, 0, 2).copy()), torch.from_numpy(times.T.copy())
    scorer.score(rows, slots, x, when, torch.full((2,), -1))
    columns = scorer.layout.columns("normaliser")
    for number, background in enumerate(backgrounds):
        torch.testing.assert_close(background.statistics[:, 0], rows.read(slots)[number, columns])


def test_carried_state_over_stretches_equals_one_long_stretch():
    """Truncated backpropagation needs the state that a long memory would have."""
    values, times = _waves(2, 128)
    lessons = _lessons([Background(1, False), Background(1, False)], values, times)
    network = TINY.build()
    with torch.no_grad():
        _, whole = network(lessons.inputs)
    forecaster = Forecaster(TINY)
    for at in (0, 64):
        part = Lessons(*(getattr(lessons, name)[at : at + 64] for name in ("inputs", "x", "mean", "sigma")))
        _, begun = forecaster.predict(["a", "b"], part)
    with torch.no_grad():
        _, state = network(lessons.inputs[64:], begun.state)
    torch.testing.assert_close(state, whole)


def test_learning_lowers_the_loss_on_what_was_not_learned_yet():
    """Progressive validation: each stretch is predicted before it is learned from."""
    pupil, still = Pupil(TINY, rate=1e-2, chunk=32), Forecaster(TINY)
    values, times = _waves(8, 64 * 8)
    backgrounds, names = [Background(1, False) for _ in range(8)], [str(k) for k in range(8)]
    for at in range(0, values.shape[1], 64):
        lessons = _lessons(backgrounds, values[:, at : at + 64], times[:, at : at + 64])
        before, _ = still.predict(names, lessons)
        learning, stretches = pupil.predict(names, lessons)
        for _ in range(4):
            report = pupil.learn([stretches])
    assert learning.mean() < before.mean() - 0.3
    assert report.skipped == 0
    assert 0 < report.weight_change < 1


def test_steps_are_clipped():
    """One strange batch must not throw the weights away."""
    values, times = _waves(2, 64)
    lessons = _lessons([Background(1, False), Background(1, False)], values, times)
    pupil = Pupil(TINY, rate=1e-3, chunk=64, gradient_norm=1e-3)
    assert pupil.learn([without_past(lessons, pupil.network)]).clipped == 1


def test_what_is_not_finite_teaches_nothing():
    """A single infinite gradient would make every weight NaN, and every later score."""
    values, times = _waves(2, 64)
    lessons = _lessons([Background(1, False), Background(1, False)], values, times)
    lessons.inputs[10] = torch.inf
    pupil = Pupil(TINY, chunk=32)
    report = pupil.learn([without_past(lessons, pupil.network)])
    assert report.skipped > 0
    assert all(torch.isfinite(t).all() for t in pupil.learned().values())


def test_a_network_of_all_features_is_refused():
    """It would learn from lessons of single features, which are not its inputs."""
    with pytest.raises(ValueError, match="scope"):
        Forecaster(Weights.random(PredictorConfig(hidden=4, scope="stream", features=2), 1))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_renewed_weights_bring_their_own_preconditioner_and_tails():
    """mu0, P0 and pooled tails of another network are wrong for this one (issue 5)."""
    pupil = Pupil(TINY, rate=1e-2, chunk=64)
    lessons = joined(generated_lessons(64, 1)[:8])
    for _ in range(5):
        pupil.learn([without_past(lessons, pupil.network)])
    weights = renewed(TINY, pupil.learned(), [lessons], 1, Effort(11, 4, 4, 500), {"parent": "x"})
    assert weights.manifest == {"parent": "x"}
    assert not torch.allclose(weights.mu0, TINY.mu0)
    assert not torch.allclose(weights.P0, TINY.P0)
    assert weights.pooled != TINY.pooled
    assert bool(torch.linalg.eigvalsh(weights.P0.double()).min() > 0)
    assert weights.fingerprint() != TINY.fingerprint()
