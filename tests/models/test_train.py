"""Offline training: learns, never looks ahead, resumes to the same weights, and judges beside the right controls."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from models.calibration import Effort
from models.config import FoldConfig, PredictorConfig
from models.fitting import Fit, Recipe, first_network, part_loss, rate_of
from models.judging import Figures, judge, trained_weights
from models.pretrained import PooledTails, Weights, builtin
from models.split import Plan, Series, Split, split_of
from models.step import Scorer
from models.training import Checkpoint, Progress, chunks, flipped

pytestmark = pytest.mark.slow

PLAN = Plan(segment=64, lead=16)
RECIPE = Recipe(epochs=4, batch=6, chunk=20, rate=1e-2, dropout=0.1, patience=4)
TINY = PredictorConfig("gru", hidden=6)
LENGTH, START_MS = 400, 1_700_000_000_000


def stream(number: int, length: int = LENGTH, features: int = 2) -> Series:
    """Noisy waves with a missing value."""
    draws = torch.Generator().manual_seed(number)
    t = torch.arange(length)
    waves = [torch.sin(2 * math.pi * t / 24 + number + feature) for feature in range(features)]
    values = torch.stack(waves, 1) + 0.05 * torch.randn(length, features, generator=draws)
    values[100:101, 0] = torch.nan
    return Series(f"s{number}", START_MS + 60_000 * t, values, 60.0, has_clock=True, has_week=False)


def split(scope="feature", streams=None) -> Split:
    return split_of(streams or [stream(1), stream(2, 300)], scope, PLAN)


def fit_of(made: Split, config: PredictorConfig = TINY, recipe: Recipe = RECIPE) -> Fit:
    return Fit(first_network(config, recipe.seed), made, recipe)


def nobody(_: object) -> None:
    """Nobody listens."""


def run(fit: Fit) -> Fit:
    fit.run(nobody, nobody)
    return fit


@pytest.fixture(scope="module")
def made() -> Split:
    return split()


def weights_of(fit: Fit) -> dict[str, torch.Tensor]:
    return fit.network.state_dict()


# --- splits -----------------------------------------------------------------------------------------------------------


def test_splits_follow_time_and_lose_nothing(made):
    """Every valid observation of every feature is in exactly one part, the parts in the order of time."""
    parts = [made.train, made.validation, made.test]
    valid = sum(int(torch.isfinite(s.values).sum()) for s in (stream(1), stream(2, 300)))
    assert sum(int(torch.isfinite(part.lessons.x).sum()) for part in parts) == valid
    first = stream(1).values[:, 1]
    for part, (begin, end) in zip(parts, ((0, 240), (240, 320), (320, 400)), strict=True):
        mine = part.lessons.x[:, part.stream == 1]
        assert torch.equal(mine.t()[torch.isfinite(mine.t())], first[begin:end])


@pytest.mark.parametrize("scope", ["feature", "stream"])
def test_what_comes_after_the_training_part_teaches_nothing(scope):
    """A loss that has seen the test is no measurement: with another future, training parts are equal bit for bit."""
    later = [replace(s, values=torch.cat((s.values[: int(0.6 * len(s.values))], 1e3 * torch.randn_like(
        s.values[int(0.6 * len(s.values)) :])))) for s in (stream(1), stream(2, 300))]  # fmt: skip
    one, two = split(scope), split(scope, later)
    for name in ("inputs", "x", "mean", "sigma"):
        assert torch.equal(getattr(one.train.lessons, name).nan_to_num(), getattr(two.train.lessons, name).nan_to_num())
    assert torch.equal(one.train.unit, two.train.unit)
    assert torch.equal(one.test.unit, two.test.unit)


def test_no_target_lies_outside_its_part():
    """Forecasts made late in the training part speak of the validation part: they must not be taught."""
    whole = split_of([stream(1)], "feature", Plan(segment=240, lead=0)).train
    ((_, _, exists),) = chunks(whole.lessons, 1000, 0)
    assert not exists[:20].any()
    assert not exists[-1].any()
    assert not exists[-8:, :, 3].any()
    assert exists[-9, 1, 3]


def test_a_gap_makes_no_difference_of_values():
    """The step over a pause is no step of the stream; serving sets it to zero, so must training."""
    quiet = stream(3)
    times_ms = quiet.times_ms.clone()
    times_ms[200:] += 3_600_000
    moved = replace(quiet, times_ms=times_ms)
    one = split_of([quiet], "feature", Plan(segment=400, lead=0)).train.lessons.inputs[200, :, 2]
    two = split_of([moved], "feature", Plan(segment=400, lead=0)).train.lessons.inputs[200, :, 2]
    assert float(one.abs().min()) > 0
    assert float(two.abs().max()) == 0


class Watched(Scorer):
    """Keeps what the network was shown."""

    shown: list[torch.Tensor]

    def advance(self, inputs, state):
        self.shown.append(inputs.clone())
        return super().advance(inputs, state)


@pytest.mark.parametrize("scope", ["feature", "stream"])
def test_training_sees_what_serving_sees(scope):
    """Missing values and outliers reach the network as they do in a worker, number by number."""
    whole = stream(6)
    values, times_ms = whole.values.clone(), whole.times_ms
    values[100:130:2, 1] = torch.nan
    values[150] = torch.nan
    values[200, 0] = 1e4
    values[230:233] = -50.0
    config = PredictorConfig("gru", hidden=4, scope=scope, features=2 if scope == "stream" else 1)
    scorer = Watched(Weights.random(config), FoldConfig(("a", "b"), 60.0))
    scorer.shown = []
    scorer.score(scorer.rows(1), torch.arange(1), values[:, None], times_ms[:, None], torch.tensor([-1]))
    taught = split_of([replace(whole, values=values)], scope, Plan(0.98, 0.01, LENGTH, 0)).train
    served = torch.stack(scorer.shown)[: int(0.98 * LENGTH)]
    torch.testing.assert_close(taught.lessons.inputs[: len(served)], served, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("streams", "plan"),
    [([], PLAN), ([stream(1, 40)], PLAN), ([stream(1)], Plan(train=0.9, validation=0.2)), ([stream(1)], Plan(0.0))],
)
def test_splits_that_leave_nothing_are_refused(streams, plan):
    """An empty validation part would end every run at its first epoch, silently."""
    with pytest.raises(ValueError, match=r"must leave|at least"):
        split_of(streams, "feature", plan)


@pytest.mark.parametrize(("name", "missing"), [("training", slice(0, 240)), ("validation", slice(240, 320))])
def test_parts_without_a_value_are_refused(name, missing):
    """Nothing can be learned from or decided by them: their loss would be 0, and the first weights would be kept."""
    values = stream(1).values.clone()
    values[missing] = torch.nan
    with pytest.raises(ValueError, match=f"the {name} part has no value"):
        split_of([replace(stream(1), values=values)], "feature", PLAN)


def test_a_part_without_a_row_is_refused():
    """A thousandth of a hundred rows is none."""
    with pytest.raises(ValueError, match="the validation part has no row"):
        split_of([stream(1, 100)], "feature", Plan(validation=0.001))


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "rmsprop", "sgd"])
def test_every_optimiser_learns(made, optimiser):
    """An option that does not learn is worse than none."""
    fit = fit_of(made, recipe=replace(RECIPE, optimiser=optimiser, rate=0.2 if optimiser == "sgd" else 1e-2))
    before = part_loss(fit.network, made.validation)
    assert fit.history == []
    run(fit)
    assert fit.history[fit.best_epoch - 1].validation_loss < before - 0.1


@pytest.mark.parametrize("cell", ["rnn", "lstm", "tdnn", "conv", "seq2seq", "hmm", "ar"])
@pytest.mark.parametrize("scope", ["feature", "stream"])
def test_every_family_learns(cell, scope):
    """One trainer serves all families, seeing one feature or several."""
    config = PredictorConfig(cell, hidden=6, scope=scope, features=2 if scope == "stream" else 1)
    fit = fit_of(split(scope), config)
    before = part_loss(fit.network, fit.split.validation)
    run(fit)
    assert fit.history[fit.best_epoch - 1].validation_loss < before - 0.1


def test_a_seed_gives_the_same_weights(made):
    """A manifest names a command; running it again must give the same model."""
    one, two, other = (run(fit_of(made, recipe=replace(RECIPE, seed=seed))) for seed in (1, 1, 2))
    assert all(torch.equal(one.network.state_dict()[name], t) for name, t in weights_of(two).items())
    assert any(not torch.equal(one.network.state_dict()[name], t) for name, t in weights_of(other).items())


def test_a_resumed_run_ends_where_an_undisturbed_one_does(made, tmp_path):
    """Stopped after two of four epochs, saved, loaded, resumed: the same weights to the last bit, the same losses."""
    whole = run(fit_of(made))
    stopped = fit_of(made)
    for _ in range(2):
        stopped.run_epoch(nobody)
    stopped.checkpoint().save(tmp_path / "c.safetensors")
    resumed = fit_of(made)
    resumed.resume(Checkpoint.load(tmp_path / "c.safetensors"))
    run(resumed)
    assert resumed.history == whole.history
    assert all(torch.equal(whole.network.state_dict()[name], t) for name, t in weights_of(resumed).items())


def test_foreign_checkpoints_are_refused(made, tmp_path):
    """Going on from another run's optimiser would be a training that nobody asked for."""
    fit = fit_of(made)
    fit.run_epoch(nobody)
    with pytest.raises(ValueError, match="another recipe"):
        fit_of(made, recipe=replace(RECIPE, rate=1e-3)).resume(fit.checkpoint())
    with pytest.raises(ValueError, match="another data"):
        fit_of(split(streams=[stream(5)])).resume(fit.checkpoint())
    (tmp_path / "c").write_bytes(b"nothing of ours")
    with pytest.raises(ValueError, match="not a checkpoint"):
        Checkpoint.load(tmp_path / "c")


@pytest.mark.parametrize(
    ("base", "plan", "text"), [("a1", PLAN, "base"), (None, replace(PLAN, validation=0.1), "split")]
)
def test_a_run_goes_on_from_its_own_base_and_split_only(made, base, plan, text):
    """Losses of another validation part cannot be compared: an early, worse epoch would be kept."""
    fit = fit_of(made)
    fit.run_epoch(nobody)
    other = split_of([stream(1), stream(2, 300)], "feature", plan)
    with pytest.raises(ValueError, match=f"another {text}"):
        Fit(first_network(TINY, 1), other, RECIPE, base=base).resume(fit.checkpoint())


def test_an_epoch_that_only_ties_is_no_better(made):
    """Last value learns nothing: its run ends after its patience."""
    fit = run(fit_of(made, PredictorConfig("naive", hidden=1), replace(RECIPE, patience=2)))
    assert (fit.best_epoch, len(fit.history)) == (1, 3)


def test_early_stopping_keeps_the_best_epoch(made):
    """With a rate that ruins what was learned, the run ends after its patience and hands out the best weights."""
    fit = fit_of(made, recipe=replace(RECIPE, rate=1.0, schedule="constant", epochs=30, patience=2, dropout=0.0))
    run(fit)
    losses = [epoch.validation_loss for epoch in fit.history]
    assert len(losses) < 30
    assert fit.best_epoch == 1 + losses.index(min(losses)) == len(losses) - 2
    assert part_loss(fit.network, made.validation) == pytest.approx(min(losses), rel=1e-5)


def tuned(made: Split, rate: float, epochs: int = 3) -> Fit:
    """A run that begins with what another one learned."""
    fit = fit_of(made, recipe=replace(RECIPE, rate=rate, schedule="constant", epochs=epochs, dropout=0.0))
    fit.network.load_state_dict(learned_state(made))
    return replace(fit, base="learned")


@cache
def learned_state(made: Split) -> dict[str, torch.Tensor]:
    return run(fit_of(made)).network.state_dict()


def test_training_never_ends_worse_than_it_began(made):
    """Weights to begin with are kept where no epoch is better on the validation part: here each one ruins them."""
    fit = tuned(made, rate=1.0)
    before = part_loss(fit.network, made.validation)
    run(fit)
    assert min(epoch.validation_loss for epoch in fit.history) > before
    assert (fit.best_epoch, fit.base_loss, fit.best_loss) == (0, before, before)
    assert all(torch.equal(weights_of(fit)[name], t) for name, t in learned_state(made).items())


def test_an_epoch_better_than_the_base_is_kept(made):
    """A base is a candidate like any epoch, not a favourite."""
    fit = run(tuned(made, rate=3e-3))
    assert fit.best_epoch > 0
    assert fit.best_loss == min(epoch.validation_loss for epoch in fit.history) < fit.base_loss


@pytest.mark.parametrize("rate", [1.0, 3e-3])
def test_a_resumed_run_remembers_its_base(made, tmp_path, rate):
    """What the first epochs began with is gone from the network, and must still be what the last ones have to beat."""
    whole, heard = tuned(made, rate), []
    whole.run(nobody, heard.append)
    heard[0].save(tmp_path / "c.safetensors")
    resumed = tuned(made, rate)
    resumed.resume(Checkpoint.load(tmp_path / "c.safetensors"))
    run(resumed)
    assert (resumed.history, resumed.best_epoch, resumed.base_loss) == (
        whole.history,
        whole.best_epoch,
        whole.base_loss,
    )
    assert all(torch.equal(weights_of(whole)[name], t) for name, t in weights_of(resumed).items())


def test_gradients_end_where_the_recipe_truncates(made):
    """The same data and weights: how far back a gradient reaches is in the gradient."""
    still = Recipe(epochs=1, rate=0.0, last_rate=0.0, batch=1000, flips=False, gradient_norm=1e9)
    gradients = []
    for chunk in (1, 80):
        fit = fit_of(made, PredictorConfig("rnn", hidden=6), replace(still, chunk=chunk))
        assert fit.updates_per_epoch == 80 / chunk
        fit.run_epoch(nobody)
        gradients.append(fit.network.rnn.weight_hh_l0.grad.clone())
    assert not torch.allclose(*gradients, rtol=0.1)


def test_l2_and_clipping_do_what_they_say(made):
    """With the weight of the weights above all, they shrink; with the shortest gradient, nothing moves."""
    before = first_network(TINY, 1).state_dict()
    heavy = weights_of(run(fit_of(made, recipe=replace(RECIPE, optimiser="adamw", l2=10.0))))
    still = weights_of(run(fit_of(made, recipe=replace(RECIPE, optimiser="sgd", gradient_norm=1e-12))))
    for name, tensor in before.items():
        assert float(heavy[name].norm()) < float(tensor.norm())
        torch.testing.assert_close(still[name], tensor, rtol=0, atol=1e-9)


def test_dropout_hides_only_while_learning(made):
    """What was learned is worth less with half of it hidden; judged it is as a whole."""
    learned = run(fit_of(made, recipe=replace(RECIPE, dropout=0.0))).network.state_dict()
    plain, epochs = replace(RECIPE, epochs=1, rate=1e-12, last_rate=1e-12, flips=False), []
    for share in (0.0, 0.6):
        fit = fit_of(made, recipe=replace(plain, dropout=share))
        fit.network.load_state_dict(learned)
        epochs.append(run(fit).history[0])
    assert epochs[1].train_loss > epochs[0].train_loss + 0.02
    assert epochs[1].validation_loss == pytest.approx(epochs[0].validation_loss, abs=1e-6)


def test_rates_follow_their_schedule():
    """The first epoch has the first rate, the last one the last."""
    assert rate_of(RECIPE, 0) == RECIPE.rate
    assert rate_of(RECIPE, RECIPE.epochs - 1) == pytest.approx(RECIPE.last_rate)
    assert rate_of(replace(RECIPE, schedule="constant"), 3) == RECIPE.rate
    assert [rate_of(replace(RECIPE, schedule="halving", last_rate=1e-3), n) for n in (4, 5, 99)] == [1e-2, 5e-3, 1e-3]


def test_progress_ends_at_its_total(made):
    """A bar that overshoots tells its reader the wrong time left."""
    heard: list[Progress] = []
    fit = fit_of(made)
    fit.run(heard.append, nobody)
    assert heard[-1].done == heard[-1].total == 4 * fit.updates_per_epoch


def test_upside_down_segments_stay_a_corpus(made):
    """A flip must turn inputs and targets alike, each feature by itself."""
    both = split("stream").train.lessons
    turned = flipped(both, torch.Generator().manual_seed(1))
    sign = torch.where(torch.isfinite(both.x), turned.x / both.x, torch.nan).nanmean(0)
    assert set(sign.flatten().tolist()) == {-1.0, 1.0}
    z, turned_z = (lessons.inputs.unflatten(2, (-1, 12))[..., 0] for lessons in (both, turned))
    torch.testing.assert_close(turned_z, z * sign)


# --- judging ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["feature", "stream"])
def test_samples_are_the_whole_test_part_of_each_feature(scope):
    """What a person looks at must not be the leftover of the last segment."""
    made = split(scope)
    config = replace(TINY, scope=scope, features=2 if scope == "stream" else 1)
    samples = judge(first_network(config, 1), made, samples=4).samples
    assert [sample.sequence for sample in samples] == [0, 1, 2, 3]
    for sample, values in zip(samples, [*stream(1).values[320:].T, *stream(2, 300).values[240:].T], strict=True):
        assert sample.observed.tolist() == values.tolist()


def test_judgement_stands_beside_naive_and_ar(made):
    """Last value's errors are differences of the series: computed here from the values alone."""
    figures = judge(run(fit_of(made)).network, made).figures
    errors = []
    for own, (begin, end) in ((stream(1), (320, 400)), (stream(2, 300), (240, 300))):
        unit = torch.stack([c[torch.isfinite(c)].std(correction=0) for c in own.values[: int(0.6 * len(own.values))].T])
        errors.append(((own.values[begin:end] - own.values[begin - 1 : end - 1]) / unit).flatten())
    wanted = torch.cat(errors)
    assert figures["naive"][0].mae == pytest.approx(float(wanted.abs().mean()), rel=1e-4)
    assert figures["naive"][0].rmse == pytest.approx(float(wanted.square().mean().sqrt()), rel=1e-4)
    assert figures["ar"][2].mse < 0.2 * figures["naive"][2].mse
    assert [f.k for f in figures["trained"]] == [1, 4, 8]


def test_judgement_stands_beside_what_was_there_before(made):
    """Whether training was worth it is the difference to the weights in use."""
    shipped = builtin("gru32").build()
    both = judge(first_network(TINY, 1), made, before=shipped)
    assert both.figures["before"] == judge(shipped, made).figures["trained"]


@pytest.mark.parametrize("scope", ["feature", "stream"])
def test_a_stream_that_stood_still_is_left_out(scope):
    """It has no standard deviation to measure errors in: raw ones would drown those of all others."""
    values = stream(2).values.clone()
    values[:300, 1], values[300:, 1] = 5.0, 5e6
    config = replace(TINY, scope=scope, features=2 if scope == "stream" else 1)
    judgement = judge(first_network(config, 1), split(scope, [stream(1), replace(stream(2), values=values)]))
    assert judgement.left_out == (3,)
    assert all(figures.mse < 100 for figures in judgement.figures["naive"])


@pytest.mark.parametrize("wild", [1e30, -1e6])
@pytest.mark.parametrize("length", [LENGTH, 64])
def test_a_wild_value_does_not_make_all_errors_nothing(length, wild):
    """What a sensor says once, while it starts, is no unit: with it last value's error would read 0.0000."""
    values = stream(1, length).values.clone()
    values[30, 0] = wild
    plain, spiked = (
        split(streams=[one]).test.unit for one in (stream(1, length), replace(stream(1, length), values=values))
    )
    assert float(plain[0]) < float(spiked[0]) < 3.0 * float(plain[0])
    assert torch.equal(plain[1::2], spiked[1::2])


def test_a_unit_follows_the_scale_and_the_states_of_a_stream():
    """One that moves by a ten-billionth about zero has a unit as any other; one at rest, with pulses, the pulses'."""
    plain = split(streams=[stream(1)]).test.unit
    small = split(streams=[replace(stream(1), values=1e-10 * stream(1).values)]).test.unit
    torch.testing.assert_close(small, 1e-10 * plain, rtol=1e-4, atol=0)
    states = torch.full((LENGTH, 2), 20.0)
    states[::30, 0], states[::3, 1] = 70.0, 25.0
    states[:, 1] += 1e-3 * torch.randn(LENGTH, generator=torch.Generator().manual_seed(1))
    found = split(streams=[replace(stream(1), values=states)]).test.unit
    torch.testing.assert_close(found[:2], states[:240].std(0, correction=0), rtol=1e-4, atol=0)


def test_a_test_part_without_a_value_judges_nothing():
    """No figure, rather than a perfect one."""
    values = stream(1).values.clone()
    values[320:] = torch.nan
    made = split_of([replace(stream(1), values=values)], "feature", PLAN)
    judgement = judge(first_network(TINY, 1), made)
    assert judgement.errors.size == 0
    assert math.isnan(judgement.figures["trained"][0].mse)
    assert math.isnan(part_loss(first_network(TINY, 1), made.test))


def test_skill_is_the_share_of_error_that_is_gone():
    """0 as good as the control, 100 perfect, below 0 worse."""
    control = Figures(1, 1.0, 2.0, 4.0)
    assert [Figures(1, 0, 0, mse).skill(control) for mse in (4.0, 0.0, 8.0)] == [0.0, 100.0, -100.0]


@pytest.mark.parametrize("scope", ["feature", "stream"])
def test_trained_weights_are_served(scope, tmp_path):
    """What training writes, a worker loads and scores with."""
    config = PredictorConfig("gru", hidden=6, scope=scope, features=2 if scope == "stream" else 1)
    fit = fit_of(split(scope), config, replace(RECIPE, epochs=1))
    run(fit)
    pooled = PooledTails() if scope == "stream" else None
    effort = Effort(series=11, hosts=4, units=4, observations=500)
    trained_weights(fit.network, fit.split, 1, {"seed": 1}, pooled, effort).save(tmp_path)
    scorer = Scorer(Weights.load(tmp_path), FoldConfig(("a", "b"), 60.0))
    x = stream(4).values[:50].unsqueeze(1)
    times_ms = stream(4).times_ms[:50].unsqueeze(1)
    score = scorer.score(scorer.rows(1), torch.arange(1), x, times_ms, torch.tensor([-1])).score
    assert bool(torch.isfinite(score).all())


@pytest.mark.parametrize("length", [64, 81])
def test_the_shortest_streams_give_finite_weights(length):
    """Thinned to every 16th, one observation of them would be left, and that has no covariance."""
    made = trained_weights(
        first_network(TINY, 1), split(streams=[stream(1, length, 1)]), 1, {}, PooledTails(), Effort()
    )
    assert bool(made.P0.isfinite().all())


@pytest.mark.filterwarnings("ignore:cov")
def test_weights_without_a_preconditioner_are_refused(made):
    """A worker would refuse the folder, long after the training."""
    lessons = made.train.lessons
    empty = replace(lessons, sigma=torch.full_like(lessons.sigma, torch.nan))
    nothing = replace(made, train=replace(made.train, lessons=empty))
    with pytest.raises(ValueError, match="too small"):
        trained_weights(first_network(TINY, 1), nothing, 1, {}, PooledTails(), Effort())


def test_shipped_weights_can_be_trained_on(made):
    """Fine-tuning begins where pretraining ended."""
    weights = builtin("gru32")
    fit = fit_of(made, weights.predictor, replace(RECIPE, epochs=1, rate=1e-3))
    untrained = part_loss(fit.network, made.validation)
    fit.network.load_state_dict(weights.network)
    assert part_loss(fit.network, made.validation) < untrained
    run(fit)
