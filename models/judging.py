"""How well a trained predictor forecasts the test part, beside last value and AR(p); and the weights it becomes.

Errors are x - x̂ in units of the standard deviation that a stream's feature had over its training part, wild values
clipped, so that streams can be averaged; one that stood still there has no such unit and is left out. Skill is
1 - MSE / MSE of a control, in percent: 0 is as good as the control, 100 is perfect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.calibration import Effort, pooled_tails
from models.config import PredictorConfig
from models.families import build, hidden_width
from models.features import INPUTS
from models.fitting import EVALUATION_BATCH
from models.predictor import HORIZONS, Network
from models.pretrained import PooledTails, Weights, preconditioner
from models.split import Part, Split
from models.training import PHI_EVERY, chunks

AR_LAGS = 20
RIDGE = 1e-3
JUDGED = (1, 4, 8)
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Figures:
    """Mean absolute, root mean square and mean square error of the forecasts of one horizon."""

    k: int
    mae: float
    rmse: float
    mse: float

    def skill(self, control: Figures) -> float:
        """Percent of the control's mean square error that is gone; NaN where it has none."""
        return math.nan if control.mse == 0 else 100.0 * (1.0 - self.mse / control.mse)


@dataclass(frozen=True, slots=True)
class Sample:
    """The test part of one feature of a stream: ``(T,)`` observed and forecast one step before, raw units.

    ``sequence`` counts the features of the first stream, then those of the second, and so on.
    """

    sequence: int
    observed: Float32
    forecast: Float32


@dataclass(frozen=True, slots=True)
class Judgement:
    """Figures by contender (``trained``, ``before``, ``naive``, ``ar``), the trained one's errors for k = 1, samples.

    ``left_out``: the sequences, counted as in samples, that have no unit and are in no figure.
    """

    figures: Mapping[str, tuple[Figures, ...]]
    errors: Float32
    samples: tuple[Sample, ...]
    left_out: tuple[int, ...] = ()


def judge(network: Network, split: Split, samples: int = 3, before: Network | None = None) -> Judgement:
    """Forecasts of the test part by the trained network, the one ``before`` it (if any), and both controls."""
    config = network.config
    contenders = {"trained": network}
    if before is not None:
        contenders["before"] = before
    contenders["naive"] = build(replace(config, cell="naive", layers=1, hidden=1, kernel=3))
    contenders["ar"] = fitted_autoregression(split, config)
    figures: dict[str, tuple[Figures, ...]] = {}
    errors = torch.zeros(0)
    for name, contender in contenders.items():
        forecasts = point_forecasts(contender, split.test)
        of_horizon = [errors_of(forecasts, split.test, k) for k in JUDGED]
        figures[name] = tuple(_figures(k, found) for k, found in zip(JUDGED, of_horizon, strict=True))
        if name == "trained":
            errors, kept = of_horizon[0], _samples(forecasts, split.test, samples)
    without_unit = _sequences(split.test)[split.test.unit.isnan().flatten()]
    return Judgement(figures, errors.numpy(), kept, tuple(without_unit.unique().tolist()))


@torch.no_grad()
def point_forecasts(network: Network, part: Part) -> Tensor:
    """Raw forecasts ``(T, B, K)`` (with an F axis before K where the predictor sees F features) made at each time."""
    network.eval()
    made = []
    for first in range(0, part.lessons.x.shape[1], EVALUATION_BATCH):
        lessons = part.lessons.of(torch.arange(first, min(first + EVALUATION_BATCH, part.lessons.x.shape[1])))
        points = network.mixtures(network(lessons.inputs)[0], lessons.inputs).point()
        made.append(lessons.mean.unsqueeze(-1) + lessons.sigma.unsqueeze(-1) * points)
    return torch.cat(made, 1)


def errors_of(forecasts: Tensor, part: Part, k: int) -> Tensor:
    """Errors of the forecasts made k observations earlier, where there is something to compare; flat."""
    errors = (part.lessons.x[k:] - forecasts[:-k, ..., HORIZONS.index(k)]) / part.unit
    return errors[torch.isfinite(errors)]


def _figures(k: int, errors: Tensor) -> Figures:
    if errors.numel() == 0:
        return Figures(k, math.nan, math.nan, math.nan)
    mse = float(errors.double().square().mean())
    return Figures(k, float(errors.double().abs().mean()), math.sqrt(mse), mse)


def _samples(forecasts: Tensor, part: Part, most: int) -> tuple[Sample, ...]:
    """The first sequences, their segments one after the other."""
    observed, ahead = part.lessons.x[1:].flatten(1), forecasts[:-1, ..., 0].flatten(1)
    stream = _sequences(part)
    kept = []
    for sequence in stream.unique().tolist()[:most]:
        own = stream == sequence
        x, forecast = observed[:, own].t().flatten(), ahead[:, own].t().flatten()
        there = torch.isfinite(x)
        kept.append(Sample(sequence, x[there].numpy(), forecast[there].numpy()))
    return tuple(kept)


def _sequences(part: Part) -> Tensor:
    """Which sequence each segment is of, ``(B,)``; with F features at once, each feature of it, ``(B F,)``."""
    if part.unit.dim() == 1:
        return part.stream
    features = part.unit.shape[1]
    return (part.stream.unsqueeze(1) * features + torch.arange(features)).flatten()


@torch.no_grad()
def fitted_autoregression(split: Split, like: PredictorConfig, lags: int = AR_LAGS) -> Network:
    """AR(p) by ridge regression on the training part: the linear control.

    Parameters
    ----------
    like
        Whose scope and features it has.
    """
    network = build(PredictorConfig("ar", hidden=lags, scope=like.scope, features=like.features))
    lessons = split.train.lessons
    ((inputs, targets, exists),) = chunks(lessons, lessons.x.shape[0], 0)
    hidden, _ = network(inputs)
    design = torch.cat((hidden, torch.ones_like(hidden[..., :1])), -1).flatten(0, 1).double()
    targets, exists = (t.reshape(len(design), network.features, len(HORIZONS)) for t in (targets, exists))
    state = network.state_dict()
    for feature in range(network.features):
        for column in range(len(HORIZONS)):
            there = exists[:, feature, column]
            rows, wanted = design[there], targets[there, feature, column].double()
            count = max(1, len(rows))
            gram = rows.T @ rows / count + RIDGE * torch.eye(design.shape[1], dtype=torch.float64)
            solved = torch.linalg.solve(gram, rows.T @ wanted / count)
            state["weight"][feature, column], state["bias"][feature, column] = solved[:-1].float(), solved[-1].float()
            scale = ((wanted - rows @ solved).abs().sum() / count).clamp_min(1e-3) / (2.0 * math.log(2.0))
            state["log_scale"][feature, column] = scale.log().float()
    network.load_state_dict(state)
    return network.eval()


# ---------------------------------------------------------------- weights


def trained_weights(
    network: Network, split: Split, seed: int, about: dict[str, Any], pooled: PooledTails | None, effort: Effort
) -> Weights:
    """A trained network with what ships beside it.

    mu0 and P0 are those of its features on the training part. Pooled tails come from generated series as in pretraining
    unless given: a predictor that sees F features at once cannot fold series of another number.

    Raises
    ------
    ValueError
        mu0 and P0 would not be finite: there is too little to take them from.
    """
    mu0, p0 = preconditioner(_phi(network, split.train))
    if not bool(mu0.isfinite().all() and p0.isfinite().all()):
        raise ValueError("the training part is too small for a preconditioner; give it a larger share, or more data")
    kept = {name: t.detach().clone() for name, t in network.state_dict().items()}
    raw = Weights(network.config, kept, mu0, p0, manifest=about)
    if pooled is None:
        pooled = pooled_tails(raw, seed, effort)
    return replace(raw, pooled=pooled)


@torch.no_grad()
def _phi(network: Network, part: Part) -> Tensor:
    """``(n, H + 12)`` features [h, input] of every 16th observation, of each feature where it sees several.

    Of every observation where those would be too few to span the H + 12 dimensions.
    """
    kept = []
    thinned = int(part.lessons.sigma[::PHI_EVERY].isfinite().sum())
    every = PHI_EVERY if thinned >= hidden_width(network.config) + INPUTS else 1
    for first in range(0, part.lessons.x.shape[1], EVALUATION_BATCH):
        lessons = part.lessons.of(torch.arange(first, min(first + EVALUATION_BATCH, part.lessons.x.shape[1])))
        hidden, _ = network(lessons.inputs)
        inputs = lessons.inputs.unflatten(2, (-1, INPUTS))
        phi = torch.cat((hidden.unsqueeze(2).expand(-1, -1, inputs.shape[2], -1), inputs), -1)
        there = torch.isfinite(lessons.sigma).view(*phi.shape[:3])
        kept.append(phi[::every][there[::every]])
    return torch.cat(kept)
