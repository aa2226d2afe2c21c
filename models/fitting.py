"""Offline fit of any family on recorded streams: optimisers, schedules, dropout, early stopping, resumable.

An epoch passes over all segments in an order of its own; gradients flow over ``chunk`` observations and the state is
carried on. All randomness comes from one generator whose state is part of a checkpoint, so that a run that was stopped
and resumed ends in the very weights of one that was not.

Several processes may learn together (:mod:`models.peers`): each takes its share of every batch, and all take the step
that one process would take with the whole of it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.config import PredictorConfig
from models.families import build
from models.peers import ALONE, Peers
from models.predictor import Network
from models.split import Part, Split
from models.training import Checkpoint, Lessons, Listener, Progress, chunks, flipped, loss_of, target_counts

Optimiser = Literal["adam", "adamw", "sgd", "rmsprop"]
RateSchedule = Literal["cosine", "constant", "halving"]
EVALUATION_BATCH = 256


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to learn.

    Attributes
    ----------
    optimiser
        ``sgd`` has momentum 0.9.
    rate, last_rate, schedule
        ``cosine`` falls from the first rate to the last over all epochs; ``halving`` halves it every fifth epoch, not
        below the last.
    epochs, patience
        At most so many passes; ends after ``patience`` of them without a better validation loss.
    batch, chunk
        Segments of a batch; observations over which gradients flow.
    dropout
        Share of the hidden numbers hidden from the read-out while learning.
    l2
        Weight of the squared weights in the loss (decoupled for AdamW).
    gradient_norm
        Longer gradients are shortened to this.
    flips
        Show half of the segments upside down: the sign of a series carries no meaning.
    seed
        Of first weights, order, flips and dropout.
    """

    optimiser: Optimiser = "adam"
    rate: float = 3e-3
    last_rate: float = 1e-4
    schedule: RateSchedule = "cosine"
    epochs: int = 20
    patience: int = 5
    batch: int = 32
    chunk: int = 128
    dropout: float = 0.0
    l2: float = 0.0
    gradient_norm: float = 1.0
    flips: bool = True
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one pass came to; losses in nats per target."""

    train_loss: float
    validation_loss: float
    rate: float


def first_network(config: PredictorConfig, seed: int) -> Network:
    """The network that a seed begins with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(config)


@dataclass(frozen=True, slots=True)
class _Share:
    """Segments of a batch of ``of`` segments: their places in it, and their lessons."""

    of: int
    columns: Tensor
    lessons: Lessons


@dataclass(slots=True)
class Fit:
    """A run that can be stopped after any epoch.

    Parameters
    ----------
    network
        Learns in place.
    split
        Its training part teaches, its validation part decides when to end; the test part is not touched.
    recipe
        How to learn.
    peers
        The processes that learn together, all with the same network, split and recipe, and where this one learns.
    base
        Fingerprint of the weights that the network begins with; None for those of the seed. A base is validated before
        the first epoch and kept, as that of epoch 0, unless an epoch is better.
    """

    network: Network
    split: Split
    recipe: Recipe
    peers: Peers = ALONE
    base: str | None = None
    history: list[Epoch] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    base_loss: float | None = None
    draws: torch.Generator = field(init=False)
    optimiser: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.network.to(self.peers.device)
        self.draws = torch.Generator().manual_seed(self.recipe.seed)
        self.optimiser = _optimiser(self.network, self.recipe)

    @property
    def is_over(self) -> bool:
        """All epochs done, or none better for ``patience`` of them."""
        done = len(self.history)
        return done >= self.recipe.epochs or done - self.best_epoch >= self.recipe.patience

    @property
    def best_loss(self) -> float | None:
        """Validation loss of the weights that are kept, nats per target; None before there are any."""
        return self.history[self.best_epoch - 1].validation_loss if self.best_epoch > 0 else self.base_loss

    @property
    def updates_per_epoch(self) -> int:
        """Steps of the optimiser in one pass."""
        length, segments = self.split.train.lessons.x.shape[:2]
        return math.ceil(segments / self.recipe.batch) * math.ceil(length / self.recipe.chunk)

    def run(self, listener: Listener, after_epoch: Callable[[Checkpoint], None]) -> None:
        """Learn to the end; the network then has the weights of the best epoch, and is on the CPU.

        Raises
        ------
        ValueError
            Other processes learn from other data.
        """
        if not self.peers.agree_on(self._about()["data"]):
            raise ValueError("the processes read different data; give all of them the same range, with an end")
        if self.base is not None and not self.history:
            self.base_loss = part_loss(self.network, self.split.validation, self.peers)
            self._keep()
        while not self.is_over:
            self.run_epoch(listener)
            after_epoch(self.checkpoint())
        self.network.load_state_dict(self.best)
        self.network.cpu().eval().requires_grad_(False)

    def run_epoch(self, listener: Listener) -> None:
        """One pass, then a look at the validation part."""
        rate = rate_of(self.recipe, len(self.history))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        train_loss = self._pass(listener)
        validation_loss = part_loss(self.network, self.split.validation, self.peers)
        self.history.append(Epoch(train_loss, validation_loss, rate))
        if self.best_loss is None or validation_loss < self.best_loss:
            self._keep()

    def _keep(self) -> None:
        self.best_epoch = len(self.history)
        self.best = {name: t.detach().clone() for name, t in self.network.state_dict().items()}

    def _pass(self, listener: Listener) -> float:
        self.network.train()
        lessons, recipe, device = self.split.train.lessons, self.recipe, self.peers.device
        order = torch.randperm(lessons.x.shape[1], generator=self.draws)
        done, total = len(self.history) * self.updates_per_epoch, recipe.epochs * self.updates_per_epoch
        losses: list[float] = []
        for first in range(0, len(order), recipe.batch):
            batch = lessons.of(order[first : first + recipe.batch])
            if recipe.flips:
                batch = flipped(batch, self.draws)
            state: Tensor | None = None
            own = self._share(batch)
            for inputs, targets, exists in chunks(own.lessons.to(device), recipe.chunk, 0):
                hidden, state = self.network(inputs, state)
                state = state.detach()
                done += 1
                counts = self.peers.total(target_counts(exists))
                if bool(counts.any()):
                    loss = loss_of(self.network.mixtures(self._dropped(hidden, own), inputs), targets, exists, counts)
                    losses.append(self._update(loss))
                mean = sum(losses[-50:]) / max(1, len(losses[-50:]))
                listener(Progress(f"epoch {len(self.history) + 1}", done, total, mean))
        return sum(losses) / max(1, len(losses))

    def _share(self, batch: Lessons) -> _Share:
        """What of a batch is learned here: one segment without targets where there are fewer than processes."""
        segments = batch.x.shape[1]
        columns = torch.arange(self.peers.rank, segments, self.peers.size)
        if len(columns) > 0:
            return _Share(segments, columns, batch.of(columns))
        idle = batch.of(torch.zeros(1, dtype=torch.int64))
        return _Share(segments, torch.zeros(1, dtype=torch.int64), replace(idle, x=torch.full_like(idle.x, torch.nan)))

    def _update(self, loss: Tensor) -> float:
        """One step along the gradient of the loss that all processes have together; returns that loss."""
        if loss.requires_grad:  # a family without parameters has nothing to learn
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.peers.sum_gradients(list(self.network.parameters()))
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.gradient_norm, error_if_nonfinite=True)
            self.optimiser.step()
        return float(self.peers.total(loss.detach()))

    def _dropped(self, hidden: Tensor, own: _Share) -> Tensor:
        share = self.recipe.dropout
        if share <= 0:
            return hidden
        # drawn for the whole batch: what is hidden must not depend on how many processes there are
        kept = torch.rand(len(hidden), own.of, hidden.shape[2], generator=self.draws) >= share
        return hidden * kept[:, own.columns].to(hidden.device) / (1.0 - share)

    def checkpoint(self) -> Checkpoint:
        """All that the rest of the run depends on."""
        tensors = {f"network.{name}": t.detach().clone() for name, t in self.network.state_dict().items()}
        tensors |= {f"best.{name}": t for name, t in self.best.items()}
        tensors["draws"] = self.draws.get_state()
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": t.clone() for name, t in state.items() if isinstance(t, Tensor)}
        tensors = {name: t.cpu() for name, t in tensors.items()}
        return Checkpoint(tensors, self._about() | {"history": [asdict(epoch) for epoch in self.history]})

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on where another run of the same predictor, recipe and data stood.

        Raises
        ------
        ValueError
            The checkpoint is of another predictor, recipe, base, split or data.
        """
        own = self._about()
        other = [
            key for key in ("predictor", "recipe", "base", "split", "data") if checkpoint.about.get(key) != own[key]
        ]
        if other:
            raise ValueError(
                f"the checkpoint is of another {' and '.join(other)}; give the same options, or begin anew"
            )
        self.network.load_state_dict(_under(checkpoint.tensors, "network"))
        self.best = _under(checkpoint.tensors, "best")
        self.best_epoch = int(checkpoint.about["best_epoch"])
        self.base_loss = checkpoint.about.get("base_loss")  # runs begun before it was measured have none
        self.history = [Epoch(**epoch) for epoch in checkpoint.about["history"]]
        self.draws.set_state(checkpoint.tensors["draws"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under(checkpoint.tensors, "optimiser").items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = tensor
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})

    def _about(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for part in (self.split.train, self.split.validation):
            digest.update(part.lessons.inputs.numpy().tobytes())
        return {
            "predictor": asdict(self.network.config),
            "recipe": asdict(self.recipe),
            "base": self.base,
            "split": asdict(self.split.plan),
            "data": digest.hexdigest()[:16],
            "best_epoch": self.best_epoch,
            "base_loss": self.base_loss,
        }


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


def _optimiser(network: Network, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser; a family without parameters gets one that has nothing to move."""
    parameters = list(network.parameters()) or [nn.Parameter(torch.zeros(1))]
    if recipe.optimiser == "adam":
        return torch.optim.Adam(parameters, lr=recipe.rate, weight_decay=recipe.l2)
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=recipe.l2)
    if recipe.optimiser == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=recipe.rate, weight_decay=recipe.l2)
    return torch.optim.SGD(parameters, lr=recipe.rate, momentum=0.9, weight_decay=recipe.l2)


def rate_of(recipe: Recipe, epoch: int) -> float:
    """The learning rate of an epoch, counted from 0."""
    if recipe.schedule == "constant":
        return recipe.rate
    if recipe.schedule == "halving":
        return max(recipe.last_rate, recipe.rate * 0.5 ** (epoch // 5))
    share = 0.5 * (1 + math.cos(math.pi * epoch / max(1, recipe.epochs - 1)))
    return recipe.last_rate + (recipe.rate - recipe.last_rate) * share


# ---------------------------------------------------------------- judging


@torch.no_grad()
def part_loss(network: Network, part: Part, peers: Peers = ALONE) -> float:
    """Mean loss over the targets of a part, nats per target, NaN without any; processes take its batches in turn."""
    was_training, device = network.training, peers.device
    network.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    segments = part.lessons.x.shape[1]
    for first in range(peers.rank * EVALUATION_BATCH, segments, peers.size * EVALUATION_BATCH):
        lessons = part.lessons.of(torch.arange(first, min(first + EVALUATION_BATCH, segments))).to(device)
        ((inputs, targets, exists),) = chunks(lessons, lessons.x.shape[0], 0)
        count = exists.sum().double()
        loss = loss_of(network.mixtures(network(inputs)[0], inputs), targets, exists)
        sums += torch.stack((loss * count, count))
    network.train(was_training)
    total, count = peers.total(sums).tolist()
    return float(total / count) if count else math.nan
