"""The contract of a predictor, one list of checks over every family: what serving and training may rely on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.config import FoldConfig, PredictorConfig
from models.families import FAMILIES, build, hidden_width, state_width
from models.predictor import HORIZONS, Network
from models.pretrained import Weights, builtin
from models.row import RowLayout
from models.step import Scorer
from pipeline.state.base import HEADER
from pipeline.state.codec import decode, encode_many

pytestmark = pytest.mark.slow

CONFIGS = [
    *(PredictorConfig(cell, hidden=5) for cell in ("rnn", "gru", "lstm", "tdnn", "conv", "seq2seq", "hmm", "ar")),
    PredictorConfig("naive", hidden=1),
    *(PredictorConfig(cell, hidden=4, layers=4) for cell in ("rnn", "gru", "lstm", "tdnn")),
    *(PredictorConfig(cell, hidden=4, layers=2) for cell in ("conv", "seq2seq")),
    PredictorConfig("tdnn", hidden=4, layers=2, kernel=1),
    PredictorConfig("conv", hidden=4, kernel=5),
    PredictorConfig("hmm", hidden=3),
    *(
        PredictorConfig(cell, hidden=4, scope="stream", features=3)
        for cell in ("rnn", "gru", "lstm", "tdnn", "conv", "seq2seq", "hmm", "ar", "naive")
    ),
]
LEARNED = [config for config in CONFIGS if config.cell != "naive"]
REMEMBERING = [config for config in LEARNED if config.kernel > 1]  # a convolution of one observation carries nothing
STEPS, BATCH, START_MS = 12, 4, 1_700_000_000_000


def name_of(config: PredictorConfig) -> str:
    """A readable parameter name."""
    return f"{config.cell}-{config.hidden}x{config.layers}k{config.kernel}-{config.scope}"


def network_of(config: PredictorConfig, seed: int = 0) -> Network:
    """An untrained network, every parameter moved a little, so that none hides behind a first value of zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(config)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def inputs_of(network: Network, seed: int = 1, steps: int = STEPS) -> Tensor:
    return torch.randn(steps, BATCH, network.input_width, generator=torch.Generator().manual_seed(seed))


def start_of(network: Network, seed: int = 2) -> Tensor:
    """A state that a sequence may really be in."""
    return network(inputs_of(network, seed))[1].detach()


def weights_of(config: PredictorConfig) -> Weights:
    """Untrained weights with the parameters of :func:`network_of`."""
    network = network_of(config)
    parameters = {name: t.detach().clone() for name, t in network.state_dict().items()}
    return replace(Weights.random(config), network=parameters)


def scorer_of(config: PredictorConfig) -> Scorer:
    features = tuple("abc"[: config.features])
    return Scorer(weights_of(config), FoldConfig(features, 60.0))


def fold(scorer: Scorer, rows: object, x: Tensor, begin: int, end: int) -> Tensor:
    """Scores of observations ``begin`` to ``end`` of streams from slot 0 on."""
    streams = x.shape[1]
    times_ms = (START_MS + 60_000 * torch.arange(begin, end)).unsqueeze(1).expand(-1, streams).contiguous()
    last_ms = torch.full((streams,), -1 if begin == 0 else START_MS + 60_000 * (begin - 1))
    return scorer.score(rows, torch.arange(streams), x[begin:end], times_ms, last_ms).score  # type: ignore[arg-type]


def test_every_family_is_in_the_list():
    """A family that nobody checks is a family that nobody may serve."""
    assert {config.cell for config in CONFIGS} == set(FAMILIES)


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
@torch.no_grad()
def test_step_equals_whole_window(config):
    """Training runs windows, serving runs steps: both must see the same network (float32 sums: 1e-5)."""
    network = network_of(config)
    inputs, state = inputs_of(network), start_of(network)
    hidden, end = network(inputs, state)
    for t in range(STEPS):
        now, state = network.step(inputs[t], state)
        torch.testing.assert_close(now, hidden[t], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, end, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
@torch.no_grad()
def test_served_forecasts_are_the_trained_ones(config):
    """Serving computes three of six horizons, arranged otherwise: the same numbers."""
    network = network_of(config)
    inputs = inputs_of(network)
    hidden, _ = network(inputs)
    mixtures = network.mixtures(hidden[-1], inputs[-1])
    one, four, eight = network.serving().forecast(hidden[-1], inputs[-1].t().contiguous())
    for k, served in ((4, four), (8, eight)):
        expected = mixtures.point().reshape(-1, len(HORIZONS))[:, HORIZONS.index(k)]
        torch.testing.assert_close(served, expected, atol=1e-4, rtol=1e-4)
    first = [part.reshape(-1, len(HORIZONS), 3)[:, 0].t() for part in (mixtures.logits, mixtures.location)]
    torch.testing.assert_close(one[:3], torch.softmax(first[0], 0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one[3:6], first[1], atol=1e-4, rtol=1e-4)
    scale = mixtures.log_scale.reshape(-1, len(HORIZONS), 3)[:, 0].t()
    torch.testing.assert_close(one[6:], torch.exp(-scale), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
@torch.no_grad()
def test_the_future_changes_no_forecast(config):
    """An alert that depends on what comes after it could never have been raised in time."""
    network = network_of(config)
    inputs = inputs_of(network)
    other = inputs.clone()
    other[7:] = torch.randn(STEPS - 7, BATCH, network.input_width)
    one, two = network(inputs)[0], network(other)[0]
    assert torch.equal(one[:7], two[:7])
    assert not torch.equal(one[7:], two[7:])


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
@torch.no_grad()
def test_state_has_the_declared_size(config):
    """Rows are laid out before any network is built: its declared widths are what a stream pays for."""
    network = network_of(config)
    hidden, state = network(inputs_of(network))
    assert state.shape == (BATCH, state_width(config)) == (BATCH, network.state_width)
    assert hidden.shape == (STEPS, BATCH, hidden_width(config))
    layout = RowLayout(FoldConfig(tuple("abc"[: config.features]), 60.0), config)
    assert layout.slices["hidden"].width == state_width(config)


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
@torch.no_grad()
def test_cutting_a_window_changes_nothing(config):
    """State carried from window to window is all of the past: cuts are an accident of transport."""
    network = network_of(config)
    inputs = inputs_of(network)
    whole, end = network(inputs)
    first, state = network(inputs[:5])
    second, state = network(inputs[5:], state)
    torch.testing.assert_close(torch.cat((first, second)), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, end, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
@torch.no_grad()
def test_arguments_are_left_as_they_were(config):
    """``step`` is a pure function: a batch that is repeated after a failure must find the state it began with."""
    network = network_of(config)
    inputs, state = inputs_of(network)[0], start_of(network)
    kept = inputs.clone(), state.clone()
    served = network.serving()
    hidden, after = served.advance(inputs, state)
    served.forecast(hidden, inputs.t())
    assert torch.equal(inputs, kept[0])
    assert torch.equal(state, kept[1])
    assert torch.equal(served.advance(inputs, state)[1], after)


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_rows_survive_save_and_load_bit_for_bit(config):
    """A worker that takes over goes on from stored bytes: not one score may differ from the undisturbed run."""
    scorer = scorer_of(config)
    x = torch.randn(40, 3, config.features, generator=torch.Generator().manual_seed(4)).cumsum(0)
    rows = scorer.rows(3)
    fold(scorer, rows, x, 0, 20)
    stored = rows.read(torch.arange(3)).numpy()
    headers = np.zeros(3, HEADER)
    values = encode_many(scorer.layout.id, "v", headers, stored)
    again = scorer.rows(3)
    again.write(torch.arange(3), torch.from_numpy(np.stack([decode(value).rows for value in values])))
    assert torch.equal(fold(scorer, rows, x, 20, 40), fold(scorer, again, x, 20, 40))
    assert torch.equal(rows.read(torch.arange(3)), again.read(torch.arange(3)))


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_weights_survive_save_and_load(config, tmp_path: Path):
    """What was trained is what is served, under one name."""
    weights = weights_of(config)
    weights.save(tmp_path)
    loaded = Weights.load(tmp_path)
    assert loaded.predictor == config
    assert loaded.fingerprint() == weights.fingerprint()


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_batch_mates_do_not_matter(config):
    """No stream's score may depend on who shares its batch: equal shapes, equal bits."""
    scorer = scorer_of(config)
    x = torch.randn(24, 4, config.features, generator=torch.Generator().manual_seed(5)).cumsum(0)
    others = x.clone()
    others[:, 1:] = 1e6 * torch.randn(24, 3, config.features)
    one, two = (fold(scorer, scorer.rows(4), values, 0, 24) for values in (x, others))
    assert torch.equal(one[:, 0], two[:, 0])


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_the_number_of_batch_mates_does_not_matter(config):
    """Alone or among four: other shapes may round otherwise, within what a decision forgives."""
    scorer = scorer_of(config)
    x = torch.randn(24, 4, config.features, generator=torch.Generator().manual_seed(5)).cumsum(0)
    among, alone = (fold(scorer, scorer.rows(values.shape[1]), values, 0, 24) for values in (x, x[:, :1]))
    torch.testing.assert_close(alone[:, 0], among[:, 0], atol=1e-3, rtol=1e-3, equal_nan=True)


def _spikes(x: Tensor) -> Tensor:
    x[10:] *= 1e30
    return x


def _missing(x: Tensor) -> Tensor:
    x[5:25] = torch.nan
    return x


def _steps(x: Tensor) -> Tensor:
    x[::2] = -1e12
    return x


EXTREMES: dict[str, Callable[[Tensor], Tensor]] = {
    "spikes": _spikes,
    "constant": torch.zeros_like,
    "missing": _missing,
    "alternating": _steps,
}


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_extreme_input_leaves_finite_rows(config, extreme):
    """One number that is not finite in a row would stay there for the life of the stream."""
    scorer, rows = scorer_of(config), None
    rows = scorer.rows(2)
    x = EXTREMES[extreme](torch.randn(40, 2, config.features, generator=torch.Generator().manual_seed(6)))
    score = fold(scorer, rows, x, 0, 40)
    assert bool(torch.isfinite(rows.read(torch.arange(2))).all())
    assert bool(torch.isfinite(score[torch.isfinite(x).all(2)]).all())


@pytest.mark.parametrize("evidence", ["single", "jump", "coupled"])
@pytest.mark.parametrize("scope", ["feature", "stream"])
@pytest.mark.parametrize("cell", FAMILIES)
def test_every_family_serves_every_profile(cell, scope, evidence):
    """A profile chooses family, scope and evidence freely: cuts of a recording must not matter in any of them."""
    config = PredictorConfig(cell, hidden=4, scope=scope, features=3 if scope == "stream" else 1)
    scorer = Scorer(weights_of(config), FoldConfig(("a", "b", "c"), 60.0, evidence))
    x = torch.randn(30, 2, 3, generator=torch.Generator().manual_seed(8)).cumsum(0)
    whole, cut = scorer.rows(2), scorer.rows(2)
    score = fold(scorer, whole, x, 0, 30)
    parts = torch.cat([fold(scorer, cut, x, begin, end) for begin, end in ((0, 7), (7, 8), (8, 30))])
    assert torch.equal(score, parts)
    assert torch.equal(whole.read(torch.arange(2)), cut.read(torch.arange(2)))


@pytest.mark.parametrize("config", LEARNED, ids=name_of)
def test_gradients_reach_every_parameter(config):
    """A parameter that no gradient reaches stays what chance made it."""
    network = network_of(config)
    inputs = inputs_of(network)
    hidden, _ = network(inputs, start_of(network))
    shape = (STEPS, BATCH, network.features, len(HORIZONS)) if network.features > 1 else (STEPS, BATCH, len(HORIZONS))
    (-network.mixtures(hidden, inputs).log_prob(torch.randn(shape)).mean()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert float(parameter.grad.abs().sum()) > 0, name


@pytest.mark.parametrize("config", REMEMBERING, ids=name_of)
def test_gradients_flow_through_carried_state_and_stop_where_truncated(config):
    """Truncated backpropagation: a later loss teaches an earlier window exactly until the state is detached."""
    network = network_of(config)
    inputs = inputs_of(network, steps=2).requires_grad_()
    _, state = network(inputs[:1])
    later, _ = network(inputs[1:].detach(), state)
    (carried,) = torch.autograd.grad(later.square().sum(), inputs)
    assert float(carried.abs().sum()) > 0
    _, state = network(inputs[:1])
    later, _ = network(inputs[1:], state.detach())
    (cut,) = torch.autograd.grad(later.square().sum(), inputs)
    assert float(cut[0].abs().sum()) == 0
    assert float(cut[1].abs().sum()) > 0


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (PredictorConfig("smoother"), "never served"),
        (PredictorConfig("transformer"), "no family"),  # type: ignore[arg-type]
        (PredictorConfig("gru", layers=5), "1 to 4 layers"),
        (PredictorConfig("ar", layers=2), "1 to 1 layers"),
        (PredictorConfig("gru", hidden=0), "at least 1"),
        (PredictorConfig("hmm", hidden=2), "at least 3 states"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.cell,
)
def test_impossible_predictors_are_refused(config, text):
    """A manifest with a wrong number must fail with a reason, not with a shape deep inside torch."""
    with pytest.raises(ValueError, match=text):
        build(config)


@pytest.mark.parametrize(("name", "fingerprint"), [("gru", "4e9ca83279a2"), ("lstm", None), ("gru32", None)])
def test_shipped_weights_keep_their_names(name, fingerprint):
    """Versions are named by content: new fields of the configuration must not rename the weights that are out there."""
    weights = builtin(name)
    assert weights.fingerprint() == fingerprint or fingerprint is None
    assert set(weights.predictor.to_dict()) == {"cell", "hidden", "layers", "scope", "features"}
