"""Pretraining learns, repeats itself, and trains on exactly what serving shows a predictor."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import models
from models.calibration import Effort, pooled_tails
from models.config import PredictorConfig
from models.features import window_inputs
from models.predictor import Predictor
from models.pretrained import MANIFEST_FILE, WEIGHTS_FILE, PooledTails, Weights, builtin
from models.synthetic import FAMILIES, corpus
from models.training import ODD_INPUTS, Lessons, Progress, Schedule, evaluate, fit, prepare, pretrain

pytestmark = pytest.mark.slow

TINY = Schedule(series=44, length=256, epochs=2, batch=22, chunk=64)
EFFORT = Effort(series=22, hosts=4, units=4, observations=500)


@pytest.fixture(scope="module")
def reports() -> list[Progress]:
    """What a listener heard while ``tiny`` was made."""
    return []


@pytest.fixture(scope="module")
def tiny(reports: list[Progress]) -> Weights:
    """Weights of a pretraining of a few seconds."""
    return pretrain("gru", 8, 3, TINY, reports.append, EFFORT)


def test_pretraining_lowers_the_loss() -> None:
    """On held-out series, a few updates must beat the first weights clearly."""
    torch.manual_seed(0)
    network, held_out = Predictor(PredictorConfig(hidden=8)), prepare(corpus(44, 256, 99))
    before = evaluate(network, held_out)
    losses = fit(network, prepare(corpus(44, 256, 3)), Schedule(44, 256, 4, 22, 64), 3)
    assert losses[-1] < losses[0]
    assert evaluate(network, held_out) < before - 0.1


def test_pretraining_of_a_seed_is_always_the_same(tiny: Weights) -> None:
    """The manifest names a command; running it again must give the weights it stands beside."""
    assert pretrain("gru", 8, 3, TINY, effort=EFFORT).fingerprint() == tiny.fingerprint()


def test_progress_ends_at_its_total(tiny: Weights, reports: list[Progress]) -> None:
    """A bar that stops short, or overshoots, tells its reader the wrong time left."""
    assert reports[-1].done == reports[-1].total == TINY.updates
    done = [report.done for report in reports]
    assert done == sorted(done)
    assert {"corpus", "epoch 1", "epoch 2", "preconditioner", "tails"} == {report.phase for report in reports}


def test_pooled_tails_say_what_normal_series_do(tiny: Weights) -> None:
    """A new stream is judged by these numbers: they must be finite, and rates must be rates."""
    assert 1 < tiny.pooled.level.rate < 20, "exceedances for each e-fold of memory"
    clustered = [getattr(tiny.pooled, field.name) for field in fields(PooledTails) if field.name != "level"]
    assert all(0.1 < tail.level < 100 for tail in clustered)
    assert all(0 < tail.rate < 0.05 for tail in clustered), "clusters are rarer than exceedances of the 95 % quantile"
    assert all(0.02 <= tail.beta < 3 for tail in (*clustered, tiny.pooled.level))
    with pytest.raises(ValueError, match="nothing to pool"):
        pooled_tails(tiny, 1, Effort(observations=300))


def test_weights_reload_equal(tiny: Weights, tmp_path: Path) -> None:
    """What a worker loads must be what was trained."""
    tiny.save(tmp_path)
    loaded = Weights.load(tmp_path)
    assert loaded.fingerprint() == tiny.fingerprint()
    assert loaded.pooled == tiny.pooled
    assert loaded.manifest == tiny.manifest


def test_lessons_are_the_inputs_of_serving() -> None:
    """Training on other numbers than serving shows would be a silent loss of skill."""
    made = corpus(33, 128, 5)
    lessons = prepare(made)
    for series in range(33):
        known = bool(made.clock[series])
        alone = window_inputs(
            torch.from_numpy(made.values[series][:, None]),
            torch.from_numpy(made.times_ms[series]) if known else None,
            float(made.interval_s[series]) if known else None,
        )
        torch.testing.assert_close(lessons.inputs[:, series], alone.inputs[:, 0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(lessons.sigma[:, series], alone.sigma[:, 0], rtol=1e-5, atol=0)


def test_upside_down_series_flip_the_odd_inputs_only() -> None:
    """Sign flips are done on inputs, not on series: right only if the inputs are odd and even as stated."""
    made = corpus(11, 200, 2)
    upside_down = type(made)(-made.values, made.times_ms, made.interval_s, made.clock, made.family)
    sign = torch.ones(12)
    sign[list(ODD_INPUTS)] = -1
    torch.testing.assert_close(prepare(upside_down).inputs, prepare(made).inputs * sign)


def test_corpus_smaller_than_a_batch_is_refused() -> None:
    """It would train on nothing and ship the first weights."""
    with pytest.raises(ValueError, match="one batch"):
        pretrain("gru", 8, 1, Schedule(series=8, batch=16))


@pytest.mark.parametrize("name", ["gru", "lstm", "gru32"])
def test_shipped_weights_say_where_they_come_from(name: str) -> None:
    """Weights whose making nobody can repeat are not ours to ship."""
    weights = builtin(name)
    folder = Path(models.__file__).parent / "weights" / name
    about = json.loads((folder / MANIFEST_FILE).read_text())["about"]
    assert about["command"].startswith(f"tidewatch pretrain --cell {weights.predictor.cell}")
    assert about["corpus"].startswith("generated series only")
    assert about["loss_per_epoch"][-1] < about["loss_per_epoch"][0]
    assert (folder / WEIGHTS_FILE).stat().st_size < 1_000_000


@pytest.fixture(scope="module")
def unseen() -> Lessons:
    """Ten series of each family, of a seed that no shipped weights were made from, families in turn."""
    return prepare(corpus(10 * len(FAMILIES), 512, 424_242))


@pytest.mark.parametrize("name", ["gru", "lstm", "gru32"])
def test_shipped_weights_predict_series_they_never_saw(name: str, unseen: Lessons) -> None:
    """Each shipped network must beat an untrained one on every family of a new seed."""
    network = builtin(name).build()
    torch.manual_seed(1)
    untrained = Predictor(network.config)
    for index, family in enumerate(FAMILIES):
        own = unseen.of(torch.arange(index, unseen.x.shape[1], len(FAMILIES)))
        assert evaluate(network, own) < evaluate(untrained, own) - 0.2, family
