"""Scores of observations under one version: its weights, its settings, and the fold over rows that they define."""

from __future__ import annotations

import torch
from torch import Tensor

from models.captured import CapturedFold, roomy
from models.config import FoldConfig
from models.evidence.chain import Priors
from models.evidence.observed import SIGNALS
from models.fast_weights import Preconditioner
from models.fold import Fold
from models.outcome import EVIDENCE, Evidence, StepScores, Trace, Wanted, wants_evidence
from models.pretrained import Weights
from models.row import RowLayout, Rows, has_fast_weights

__all__ = ["EVIDENCE", "Evidence", "Scorer", "StepScores", "Trace", "Wanted", "wants_evidence"]


class Scorer:
    """Scores observations of many streams under one version: weights and settings of the fold.

    Parameters
    ----------
    weights, config
        The version.
    device
        Where rows live.
    dtype
        float32; float64 only in reference tests.

    Raises
    ------
    ValueError
        Profile and predictor do not fit together (see :class:`models.row.RowLayout`).
    """

    signals: tuple[str, ...] = SIGNALS

    def __init__(
        self,
        weights: Weights,
        config: FoldConfig,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.weights = weights
        self.config = config
        self.layout = RowLayout(config, weights.predictor)
        self.device = torch.device(device)
        self.dtype = dtype
        network = weights.build().to(self.device, dtype)
        self.network = network.serving()
        self.is_adaptive = has_fast_weights(config) and network.is_adaptive
        self.prior = Preconditioner(weights.mu0.to(self.device, dtype), weights.P0.to(self.device, dtype))
        self.pooled = Priors.of(weights.pooled, self.prior.mu0)
        self.interval_ms = None if config.interval_s is None else round(config.interval_s * 1000)
        self.is_captured = self.device.type == "cuda"
        self._captured: dict[int, CapturedFold] = {}

    def advance(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the network: inputs ``(B, I)`` and state to hidden ``(B, H)`` and the next state."""
        return self.network.advance(inputs, state)

    def forecast(self, hidden: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frozen forecasts from hidden ``(B, H)`` and inputs ``(I, B)`` (see :class:`models.predictor.Served`)."""
        return self.network.forecast(hidden, inputs)

    def rows(self, capacity: int) -> Rows:
        """A table of fresh rows for this scorer."""
        return Rows.allocate(self.layout, capacity, self.device, self.dtype)

    @torch.inference_mode()
    def score(
        self, rows: Rows, slots: Tensor, x: Tensor, times_ms: Tensor, last_ms: Tensor, detail: Wanted = False
    ) -> StepScores:
        """Fold S observations of N distinct streams into their rows, in place, and score them.

        Parameters
        ----------
        rows
            The table, of this scorer's layout.
        slots
            ``(N,)`` int64, distinct.
        x
            ``(S, N, F)`` values, NaN where missing.
        times_ms
            ``(S, N)`` int64 event times, strictly increasing and greater than ``last_ms``.
        last_ms
            ``(N,)`` int64 event time of the stream's previous observation, -1 without a past.
        detail
            What is kept of every cell.

        Returns
        -------
        StepScores
            On the CPU, whatever the device (waits for it); a trace stays where it was made.

        Raises
        ------
        ValueError
            ``rows`` has another layout, or shapes do not fit.
        """
        if rows.layout.id != self.layout.id:
            raise ValueError(f"rows have layout {rows.layout.id}, the scorer {self.layout.id}")
        steps, streams, features = x.shape
        if features != self.layout.features or times_ms.shape != (steps, streams) or slots.shape != (streams,):
            raise ValueError(f"x {tuple(x.shape)}, times {tuple(times_ms.shape)} and {slots.numel()} slots do not fit")
        slots = slots.to(self.device)
        if self.is_captured and not detail:
            return self.captured(streams).score(rows, slots, x, times_ms, last_ms)
        fold = Fold(self, rows, slots, detail)
        fold.see(x.to(self.device), times_ms.to(self.device), last_ms.to(self.device))
        for t in range(steps):
            fold.advance(t)
        return fold.close()

    def captured(self, streams: int) -> CapturedFold:
        """The recorded fold of as many streams, or somewhat more; recorded when first asked for."""
        room = roomy(streams)
        if room not in self._captured:
            self._captured[room] = CapturedFold(self, room)
        return self._captured[room]
