"""Online learning of the shared weights: lessons from live streams, one update at a time, and new weights from it.

Three parts, in the order data flows: :func:`lessons_of` sees stretches of streams as a serving row does;
:class:`Forecaster` predicts them with carried state (progressive validation); :class:`Pupil` learns from them by
truncated backpropagation. :func:`renewed` makes of what was learned a complete set of weights.

Shapes: B series (streams x features), T time, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.calibration import Effort, pooled_tails
from models.features import Normaliser, Seasonal, season_width, time_bins, whole_inputs
from models.predictor import Network
from models.pretrained import Weights, preconditioner
from models.synthetic import FAMILIES, corpus
from models.training import FIRST_TARGET, HORIZON_WEIGHTS, Lessons, chunks, features_of, prepare

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

Learned = dict[str, Tensor]
"""A network's state dict on the CPU."""

STATISTICS = 7
GENERATED_SERIES, GENERATED_LENGTH = 16 * len(FAMILIES), 256


# ---------------------------------------------------------------- lessons


class Background:
    """What one stream's F features are measured against: normaliser and memory of times, as in its row.

    Kept apart from the row because a candidate's and the serving version's rows both hold these numbers, and a stretch
    is prepared once for all of them.
    """

    def __init__(self, features: int, has_week: bool) -> None:
        self.statistics = torch.zeros(STATISTICS, features)
        self.season = torch.zeros(features, season_width(has_week))
        self.errors = torch.zeros(2, features) if has_week else None


@torch.no_grad()
def lessons_of(
    backgrounds: Sequence[Background],
    values: Float32,
    times_ms: Int64,
    follows_gap: Sequence[bool],
    interval_s: float | None,
    has_clock: bool,
) -> Lessons:
    """Stretches of N streams as lessons of B = N x F series, moving their backgrounds on.

    Parameters
    ----------
    backgrounds
        N, one for each stream, all of one kind; moved in place.
    values
        ``(N, T, F)``, NaN where missing.
    times_ms
        ``(N, T)`` event times, without gaps inside.
    follows_gap
        N: the first difference of such a stretch is no difference.
    interval_s, has_clock
        The profile's: without either there is no time-of-day memory.
    """
    streams, steps, features = values.shape
    x = torch.from_numpy(np.ascontiguousarray(values.transpose(1, 0, 2).reshape(steps, -1)))
    state = Normaliser(*torch.cat([each.statistics for each in backgrounds], 1).unbind(0))
    after_gap = torch.tensor(list(follows_gap)).repeat_interleave(features) & torch.isfinite(x[0])
    state.last.copy_(torch.where(after_gap, x[0], state.last))
    seasonal, bins = None, None
    if has_clock and interval_s is not None:
        table, width = torch.cat([each.season for each in backgrounds]).flatten(), backgrounds[0].season.shape[1]
        errors = [each.errors for each in backgrounds if each.errors is not None]
        begin = torch.arange(streams * features) * width
        seasonal = Seasonal(table, begin, interval_s, torch.cat(errors, 1) if errors else None)
        wide = torch.from_numpy(np.ascontiguousarray(times_ms.T)).repeat_interleave(features, 1)
        bins = time_bins(wide, round(interval_s * 1000))
    made = whole_inputs(x, state, seasonal, bins)
    for number, each in enumerate(backgrounds):
        mine = slice(number * features, (number + 1) * features)
        each.statistics = torch.stack([getattr(state, name)[mine] for name in Normaliser.__slots__])
        if seasonal is not None:
            each.season = seasonal.table.view(-1, each.season.shape[1])[mine].clone()
            each.errors = None if seasonal.errors is None else seasonal.errors[:, mine].clone()
    return Lessons(made.inputs, x, made.mean, made.sigma)


def joined(parts: Sequence[Lessons]) -> Lessons:
    """Lessons of equal length side by side."""
    return Lessons(
        torch.cat([part.inputs for part in parts], 1),
        torch.cat([part.x for part in parts], 1),
        torch.cat([part.mean for part in parts], 1),
        torch.cat([part.sigma for part in parts], 1),
    )


def generated_lessons(length: int, seed: int) -> list[Lessons]:
    """Lessons of generated series cut to ``length``, one for each series: what the predictor came from."""
    made = prepare(corpus(GENERATED_SERIES, max(GENERATED_LENGTH, 2 * length), seed))
    late = slice(made.x.shape[0] - length, None)
    cut = Lessons(made.inputs[late], made.x[late], made.mean[late], made.sigma[late])
    return [cut.of(torch.tensor([series])) for series in range(cut.x.shape[1])]


# ---------------------------------------------------------------- predicting


@dataclass(frozen=True, slots=True)
class Stretches:
    """Lessons of some streams, and the recurrent state ``(B, width)`` they began with."""

    lessons: Lessons
    state: Tensor

    def of_stream(self, number: int, features: int) -> Stretches:
        """The part of one stream."""
        series = torch.arange(number * features, (number + 1) * features)
        return Stretches(self.lessons.of(series), self.state[series])


def without_past(lessons: Lessons, network: Network) -> Stretches:
    """Lessons that begin with a fresh state."""
    return Stretches(lessons, torch.zeros(lessons.x.shape[1], network.state_width))


class Forecaster:
    """A network with a recurrent state of its own for each stream: predicts stretches and says how well.

    Parameters
    ----------
    weights
        Taken as they are.
    device
        Where the network computes.

    Raises
    ------
    ValueError
        The network sees all features at once: only channel-independent predictors learn online.
    """

    def __init__(self, weights: Weights, device: str = "cpu") -> None:
        if weights.predictor.scope != "feature":
            raise ValueError('online learning needs a predictor with scope "feature"')
        self.device = torch.device(device)
        self.network = weights.build().to(self.device)
        self._states: dict[str, Tensor] = {}

    def forget(self, stream_id: str) -> None:
        """Drop a stream's state."""
        self._states.pop(stream_id, None)

    def begin_like(self, other: Forecaster) -> None:
        """Begin with the states of another forecaster of the same kind, as a row carries its own over a swap."""
        self._states = {name: state.clone() for name, state in other._states.items()}

    @torch.no_grad()
    def predict(self, stream_ids: Sequence[str], lessons: Lessons) -> tuple[npt.NDArray[np.float64], Stretches]:
        """Predict the next stretch of each stream, carrying its state.

        Returns
        -------
        losses
            ``(N,)`` mean loss of each stream, nats per target; NaN where it has no target.
        stretches
            The lessons with the states they began with, for rehearsal.
        """
        features = lessons.x.shape[1] // len(stream_ids)
        fresh = torch.zeros(features, self.network.state_width, device=self.device)
        begin = torch.cat([self._states.get(name, fresh) for name in stream_ids])
        there = lessons.to(self.device)
        losses, state = series_losses(self.network, there, begin)
        for number, name in enumerate(stream_ids):
            self._states[name] = state[number * features : (number + 1) * features]
        of_streams = losses.view(len(stream_ids), features).nanmean(1)
        return of_streams.double().cpu().numpy(), Stretches(lessons, begin.cpu())


def series_losses(network: Network, lessons: Lessons, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Loss ``(B,)`` of each series, weighted over horizons as in training; NaN without targets. And the last state."""
    ((inputs, targets, exists),) = chunks(lessons, lessons.x.shape[0], FIRST_TARGET if state is None else 0)
    hidden, state = network(inputs, state)
    log_prob = network.mixtures(hidden, inputs).log_prob(targets) * exists
    weights = log_prob.new_tensor(HORIZON_WEIGHTS)
    per_horizon = -log_prob.sum(0) / exists.sum(0)
    known = exists.any(0) * weights
    return (per_horizon.nan_to_num() * known).sum(1) / known.sum(1), state


# ---------------------------------------------------------------- learning


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What one update did.

    Attributes
    ----------
    loss
        Before it, in nats per target, over all series of the batch.
    gradient_norm
        Largest of its chunks, before clipping.
    clipped
        Chunks whose gradient was shortened.
    weight_change
        Norm of the change over norm of the weights.
    skipped
        Chunks that taught nothing because loss or gradient was not finite.
    """

    loss: float
    gradient_norm: float
    clipped: int
    weight_change: float
    skipped: int


class Pupil(Forecaster):
    """A forecaster that learns: Adam, clipped gradients, state carried from chunk to chunk of a stretch.

    Parameters
    ----------
    weights, device
        Where it begins.
    rate
        Of Adam.
    chunk
        Observations over which gradients flow.
    gradient_norm
        Longer gradients are shortened to this.
    """

    def __init__(
        self, weights: Weights, device: str = "cpu", rate: float = 3e-4, chunk: int = 64, gradient_norm: float = 1.0
    ) -> None:
        super().__init__(weights, device)
        self.network.train().requires_grad_(True)
        self._chunk, self._gradient_norm = chunk, gradient_norm
        self._optimiser = torch.optim.Adam(self.network.parameters(), lr=rate)

    def learn(self, batch: Sequence[Stretches]) -> UpdateReport:
        """One pass over stretches of equal length: an update for each chunk, the state carried between them."""
        lessons = joined([part.lessons for part in batch]).to(self.device)
        state = torch.cat([part.state for part in batch]).to(self.device)
        before = [parameter.detach().clone() for parameter in self.network.parameters()]
        losses, norms, skipped = [], [], 0
        for inputs, targets, exists in chunks(lessons, self._chunk, 0):
            hidden, state = self.network(inputs, state)
            log_prob = self.network.mixtures(hidden, inputs).log_prob(targets) * exists
            weights = log_prob.new_tensor(HORIZON_WEIGHTS) * exists.any(0).any(0)
            per_horizon = -log_prob.sum((0, 1)) / exists.sum((0, 1)).clamp_min(1)
            loss = (per_horizon * weights).sum() / weights.sum().clamp_min(1e-9)
            state = state.detach()
            self._optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), self._gradient_norm))
            if not np.isfinite(norm) or not np.isfinite(float(loss.detach())):
                skipped += 1
                continue
            self._optimiser.step()
            losses.append(float(loss.detach()))
            norms.append(norm)
        moved = sum(
            float((new.detach() - old).square().sum())
            for old, new in zip(before, self.network.parameters(), strict=True)
        )
        size = sum(float(old.square().sum()) for old in before)
        return UpdateReport(
            loss=sum(losses) / len(losses) if losses else float("nan"),
            gradient_norm=max(norms, default=float("nan")),
            clipped=sum(norm > self._gradient_norm for norm in norms),
            weight_change=(moved / max(size, 1e-30)) ** 0.5,
            skipped=skipped,
        )

    def learned(self) -> Learned:
        """A copy of the network's weights, on the CPU."""
        return {name: t.detach().cpu().clone() for name, t in self.network.state_dict().items()}


def renewed(
    base: Weights,
    network: Learned,
    seen: Sequence[Lessons],
    seed: int,
    effort: Effort,
    manifest: dict[str, Any],
) -> Weights:
    """Complete weights around a network that has moved: mu0, P0 and pooled tails are its own.

    Parameters
    ----------
    seen
        Lessons of the family, for mu0 and P0 beside generated series; those alone would leave directions without any
        variance, in which the fast weights would then learn much too fast.
    effort
        How much to fold for the pooled tails.
    """
    moved = replace(base, network=network)
    built = moved.build()
    generated = prepare(corpus(GENERATED_SERIES, GENERATED_LENGTH, seed))
    parts = [features_of(built, generated, GENERATED_SERIES)]
    if seen:
        parts.append(features_of(built, joined(seen), 512))
    mu0, p0 = preconditioner(torch.cat(parts))
    whole = replace(moved, mu0=mu0, P0=p0, manifest=manifest)
    return replace(whole, pooled=pooled_tails(whole, seed, effort))
