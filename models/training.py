"""Pretraining: a predictor learned from generated series alone (docs/score.md, "Predictor").

The inputs are the ones of serving (:func:`models.features.window_inputs`), so nothing a predictor learns here is
unknown to it in a row.

Shapes: B batch, T time, H hidden, K = 6 horizons.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from models.calibration import FULL_EFFORT, Effort, pooled_tails
from models.config import Cell, PredictorConfig
from models.families import build
from models.features import INPUTS, window_inputs
from models.predictor import HORIZONS, Mixture, Network
from models.pretrained import Weights, preconditioner
from models.synthetic import FAMILIES, Corpus, corpus

# The sign of a series carries no meaning: x -> -x flips these inputs (features.write_inputs) and every target.
ODD_INPUTS = (0, 1, 2, 3, 4, 5, 6, 8)
HORIZON_WEIGHTS = (2.0, 1.0, 1.0, 1.0, 1.0, 1.0)
FIRST_TARGET = 20  # earlier than this, (m, sigma) are no scale to forecast in
CHECKPOINT = "tidewatch-training/1"
PHI_EVERY = 16  # observations between the features that mu0 and P0 are taken from
HELD_OUT = 1_000_003  # added to the seed: series that the loss reported last has never seen


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to learn.

    Attributes
    ----------
    series, length
        Size of the corpus.
    epochs, batch, chunk
        Passes over the corpus; series per batch; observations between two updates, over which gradients flow. The state
        is carried from chunk to chunk.
    first_rate, last_rate
        Adam's rate falls from one to the other along half a cosine.
    gradient_norm
        Longer gradients are shortened to this.
    """

    series: int = 3072
    length: int = 2048
    epochs: int = 6
    batch: int = 128
    chunk: int = 256
    first_rate: float = 3e-3
    last_rate: float = 1e-4
    gradient_norm: float = 1.0

    @property
    def updates(self) -> int:
        """Steps of the optimiser in all."""
        return self.epochs * (self.series // self.batch) * math.ceil(self.length / self.chunk)


@dataclass(frozen=True, slots=True)
class Progress:
    """One report of a running pretraining: what it does, how far it is, and the loss of late (NaN before the first)."""

    phase: str
    done: int
    total: int
    loss: float = math.nan


Listener = Callable[[Progress], None]


def _nobody(progress: Progress) -> None:
    """Nobody listens."""


def pretrain(
    cell: Cell,
    hidden: int,
    seed: int,
    schedule: Schedule = Schedule(),
    listener: Listener = _nobody,
    effort: Effort = FULL_EFFORT,
) -> Weights:
    """Weights learned from the generated corpus of ``seed``: network, preconditioner and pooled tails.

    The same arguments, on the same machine with the same number of threads, give the same weights.

    Parameters
    ----------
    cell, hidden
        The predictor: ``gru`` or ``lstm``, and H.
    seed
        Of the corpus, of the first weights, of the order of batches.
    schedule
        How long and how fast to learn.
    listener
        Called after every update and before every phase.
    effort
        How much to fold for the pooled tails.

    Raises
    ------
    ValueError
        The corpus is smaller than one batch.
    """
    if schedule.series < schedule.batch:
        raise ValueError(f"{schedule.series} series do not fill one batch of {schedule.batch}")
    config = PredictorConfig(cell=cell, hidden=hidden)
    listener(Progress("corpus", 0, schedule.updates))
    lessons = prepare(corpus(schedule.series, schedule.length, seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(config)
    epoch_losses = fit(network, lessons, schedule, seed, listener)
    network.eval().requires_grad_(False)
    listener(Progress("preconditioner", schedule.updates, schedule.updates, epoch_losses[-1]))
    mu0, p0 = preconditioner(features_of(network, lessons, schedule.batch))
    held_out = prepare(corpus(max(len(FAMILIES), schedule.series // 16), schedule.length, seed + HELD_OUT))
    raw = Weights(config, {name: t.detach().clone() for name, t in network.state_dict().items()}, mu0, p0)
    listener(Progress("tails", schedule.updates, schedule.updates, epoch_losses[-1]))
    return Weights(
        predictor=config,
        network=raw.network,
        mu0=mu0,
        P0=p0,
        pooled=pooled_tails(raw, seed + HELD_OUT, effort),
        manifest=_manifest(cell, hidden, seed, schedule, epoch_losses, evaluate(network, held_out)),
    )


def recalibrated(weights: Weights, effort: Effort = FULL_EFFORT) -> Weights:
    """The same network with pooled tails measured anew: what :func:`pretrain` would give where only evidence changed.

    Raises
    ------
    ValueError
        The manifest does not say which seed the weights were learned from.
    """
    seed = weights.manifest.get("seed")
    if not isinstance(seed, int):
        raise ValueError("the manifest names no seed: only weights that `tidewatch pretrain` made can be measured anew")
    return replace(weights, pooled=pooled_tails(weights, seed + HELD_OUT, effort))


# ---------------------------------------------------------------- checkpoints


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A training run that can be resumed: tensors by name, and a JSON object with the rest."""

    tensors: dict[str, Tensor]
    about: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        draft = path.with_name(f".{path.name}.draft")
        tensors = {name: t.contiguous() for name, t in self.tensors.items()}
        draft.write_bytes(to_safetensors(tensors, {CHECKPOINT: json.dumps(self.about)}))
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read what :meth:`save` wrote. Raises ValueError where that is not what is there."""
        try:
            with safe_open(path, "pt") as file:
                about = json.loads(file.metadata()[CHECKPOINT])
                return cls({name: file.get_tensor(name) for name in file.keys()}, about)  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as exc:
            raise ValueError(f"{path}: not a checkpoint of a training run: {exc!r}") from exc


# ---------------------------------------------------------------- lessons


@dataclass(frozen=True, slots=True)
class Lessons:
    """A corpus as a predictor sees it: ``inputs`` (T, B, 12); ``x``, ``mean``, ``sigma`` (T, B).

    For a predictor that sees F features at once, ``inputs`` is (T, B, 12 F) and the others are (T, B, F).
    """

    inputs: Tensor
    x: Tensor
    mean: Tensor
    sigma: Tensor

    def of(self, series: Tensor) -> Lessons:
        """The lessons of some series (int64 indices)."""
        return Lessons(self.inputs[:, series], self.x[:, series], self.mean[:, series], self.sigma[:, series])

    def to(self, device: torch.device) -> Lessons:
        """The lessons on a device; themselves where they are there."""
        return Lessons(self.inputs.to(device), self.x.to(device), self.mean.to(device), self.sigma.to(device))


def prepare(made: Corpus) -> Lessons:
    """The inputs and scales of every series of a corpus, series of equal interval together."""
    series, length = made.values.shape
    lessons = Lessons(
        inputs=torch.empty(length, series, INPUTS),
        x=torch.from_numpy(np.ascontiguousarray(made.values.T)),
        mean=torch.empty(length, series),
        sigma=torch.empty(length, series),
    )
    times_ms = torch.from_numpy(np.ascontiguousarray(made.times_ms.T))
    clocks = np.where(made.clock, made.interval_s, 0.0)
    for interval_s in np.unique(clocks):
        group = torch.from_numpy(np.flatnonzero(clocks == interval_s))
        known = bool(interval_s > 0)
        seen = window_inputs(
            lessons.x[:, group], times_ms[:, group] if known else None, float(interval_s) if known else None
        )
        lessons.inputs[:, group] = seen.inputs
        lessons.mean[:, group] = seen.mean
        lessons.sigma[:, group] = seen.sigma
    return lessons


def chunks(lessons: Lessons, length: int, first_target: int = FIRST_TARGET) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Inputs ``(t, B, I)``, targets ``(t, B, K)`` and where they exist ``(t, B, K)``, chunk after chunk.

    The target of horizon k is asinh((x_{t+k} - m_t) / sigma_t); there is none where x is missing or past the end, nor
    for the first ``first_target`` observations, where lessons begin with a fresh normaliser.
    """
    total = lessons.x.shape[0]
    for start in range(0, total, length):
        stop = min(start + length, total)
        mean, sigma = lessons.mean[start:stop], lessons.sigma[start:stop]
        ahead = lessons.x.new_full((stop - start, *lessons.x.shape[1:], len(HORIZONS)), torch.nan)
        for column, k in enumerate(HORIZONS):
            later = lessons.x[start + k : stop + k]
            ahead[: later.shape[0], ..., column] = later
        targets = torch.asinh((ahead - mean[..., None]) / sigma[..., None])
        exists = torch.isfinite(targets)
        if start < first_target:
            exists[: first_target - start] = False
        yield lessons.inputs[start:stop], torch.where(exists, targets, 0.0), exists


# ---------------------------------------------------------------- learning


def fit(network: Network, lessons: Lessons, schedule: Schedule, seed: int, listener: Listener = _nobody) -> list[float]:
    """Learn in place by truncated backpropagation; the mean loss of each epoch, in nats per target."""
    draws = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(network.parameters(), lr=schedule.first_rate)
    series = lessons.x.shape[1]
    done, losses = 0, []
    for epoch in range(schedule.epochs):
        order = torch.randperm(series, generator=draws)
        seen: list[float] = []
        for first in range(0, series - schedule.batch + 1, schedule.batch):
            batch = flipped(lessons.of(order[first : first + schedule.batch]), draws)
            state: Tensor | None = None
            for inputs, targets, exists in chunks(batch, schedule.chunk):
                for group in optimiser.param_groups:
                    group["lr"] = _rate(schedule, done)
                loss, state = _loss(network, inputs, targets, exists, state)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), schedule.gradient_norm)
                optimiser.step()
                state = state.detach()
                done += 1
                seen.append(float(loss.detach()))
                listener(Progress(f"epoch {epoch + 1}", done, schedule.updates, sum(seen[-50:]) / len(seen[-50:])))
        losses.append(sum(seen) / len(seen))
    return losses


@torch.no_grad()
def evaluate(network: Network, lessons: Lessons, chunk: int = 256) -> float:
    """Mean loss of a network on lessons, in nats per target: lower is better."""
    state, losses = None, []
    for inputs, targets, exists in chunks(lessons, chunk):
        loss, state = _loss(network, inputs, targets, exists, state)
        losses.append(float(loss))
    return sum(losses) / len(losses)


def _loss(
    network: Network, inputs: Tensor, targets: Tensor, exists: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The loss of a chunk, and the state after it."""
    hidden, state = network(inputs, state)
    return loss_of(network.mixtures(hidden, inputs), targets, exists), state


def loss_of(mixtures: Mixture, targets: Tensor, exists: Tensor, counts: Tensor | None = None) -> Tensor:
    """Weighted mean over horizons of -log p(target), nats; targets ``(T, B, K)`` or ``(T, B, F, K)``.

    Parameters
    ----------
    counts
        ``(K,)`` targets of each horizon, where these are a part of more: then this is their share of the whole's loss.
    """
    log_prob = mixtures.log_prob(targets) * exists
    per_horizon = -log_prob.sum(tuple(range(log_prob.dim() - 1)))
    per_horizon = per_horizon / (target_counts(exists) if counts is None else counts).clamp_min(1)
    weights = per_horizon.new_tensor(HORIZON_WEIGHTS)
    return (per_horizon * weights).sum() / weights.sum()


def target_counts(exists: Tensor) -> Tensor:
    """Targets of each horizon, ``(K,)``."""
    return exists.sum(tuple(range(exists.dim() - 1)))


def flipped(lessons: Lessons, draws: torch.Generator) -> Lessons:
    """Half of the series, drawn anew each time, upside down; each of F features by itself."""
    sign = torch.randint(0, 2, lessons.x.shape[1:], generator=draws).to(lessons.x.dtype) * 2 - 1
    by_feature = lessons.inputs.unflatten(2, (-1, INPUTS)).clone()
    by_feature[..., ODD_INPUTS] *= sign.view(sign.shape[0], -1, 1)
    return Lessons(by_feature.flatten(2), lessons.x * sign, lessons.mean * sign, lessons.sigma)


def _rate(schedule: Schedule, done: int) -> float:
    """Half a cosine from the first rate to the last."""
    share = 0.5 * (1 + math.cos(math.pi * done / max(1, schedule.updates - 1)))
    return schedule.last_rate + (schedule.first_rate - schedule.last_rate) * share


@torch.no_grad()
def features_of(network: Network, lessons: Lessons, batch: int) -> Tensor:
    """``(n, H + 12)`` features [h, input] of every 16th observation of the corpus."""
    kept = []
    for first in range(0, lessons.x.shape[1], batch):
        inputs = lessons.inputs[:, first : first + batch]
        hidden, _ = network(inputs)
        kept.append(torch.cat((hidden, inputs), -1)[FIRST_TARGET::PHI_EVERY].flatten(0, 1))
    return torch.cat(kept)


def _manifest(
    cell: Cell, hidden: int, seed: int, schedule: Schedule, epoch_losses: list[float], held_out: float
) -> dict[str, Any]:
    """What the weights say about where they come from."""
    return {
        "command": f"tidewatch pretrain --cell {cell} --hidden {hidden} --seed {seed}",
        "seed": seed,
        "schedule": asdict(schedule),
        "corpus": f"generated series only, equal shares of {', '.join(FAMILIES)}",
        "loss_per_epoch": [round(loss, 4) for loss in epoch_losses],
        "loss_held_out": round(held_out, 4),
        "torch": torch.__version__,
    }
