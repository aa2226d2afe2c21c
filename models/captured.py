"""The fold on a GPU: recorded once for so many streams, then launched again and again.

One observation is some 600 to 900 small operations, and Python takes longer to ask for them than a GPU takes to do them
for ten thousand rows. So the dense form of :class:`models.fold.Fold` is recorded as three CUDA graphs, over memory that
stays where it is: ``begin`` (rows in hand), ``advance`` (one observation), ``end`` (rows back). A call copies its rows
into a table of its own, launches ``advance`` once for each observation, and copies the rows back. Coupled evidence
pauses where the reference of some stream may be complete: what is measured by it is found between two launches.

References
----------
A. Gray, "Getting started with CUDA graphs" (2019).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.fold import Fold
from models.outcome import GROUNDS, TOLD, StepScores, step_scores
from models.row import Rows

if TYPE_CHECKING:
    from models.step import Scorer

LEAST_STREAMS = 16
MOST_STEPS = 64
MOST_CELLS = 32_768
"""Observations of streams between two looks at what was said: what waits for the look takes memory."""

EVENT = TOLD.index("event")


def roomy(streams: int) -> int:
    """The smallest recorded number of streams that has room for ``streams``: 16, 24, 32, 48, 64, 96, ..."""
    room = LEAST_STREAMS
    while room < streams:
        room *= 2
    return room * 3 // 4 if room > LEAST_STREAMS and room * 3 // 4 >= streams else room


class CapturedFold:
    """Folds observations of at most ``streams`` streams; one call at a time.

    On a CPU the same operations run as they are called: what is recorded can be tested anywhere.

    Parameters
    ----------
    scorer
        The version.
    streams
        How many streams there is room for. Without a stream a place folds whatever is there, and nobody looks.
    """

    def __init__(self, scorer: Scorer, streams: int) -> None:
        self._scorer, self._features = scorer, scorer.layout.features
        self._steps = max(1, min(MOST_STEPS, MOST_CELLS // streams))
        device, dtype = scorer.device, scorer.dtype
        self._rows = scorer.rows(streams)
        self._slots = torch.arange(streams, device=device)
        self._x = torch.zeros(self._steps, streams, self._features, device=device, dtype=dtype)
        self._times_ms = torch.zeros(self._steps, streams, device=device, dtype=torch.int64)
        self._last_ms = torch.zeros(streams, device=device, dtype=torch.int64)
        self._at = torch.zeros(1, device=device, dtype=torch.int64)
        self._told = torch.zeros(self._steps, len(TOLD), streams, device=device, dtype=dtype)
        self._grounds = torch.zeros(self._steps, GROUNDS, streams * self._features, device=device, dtype=dtype)
        self._begin, self._advance, self._end = self._recorded(self._take_rows, self._fold_one, self._put_back)

    def _recorded(self, *phases: Callable[[], None]) -> list[Callable[[], None]]:
        """The phases as launches of graphs, where there is a GPU."""
        device = self._scorer.device
        if device.type != "cuda":
            return list(phases)
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):  # libraries set themselves up at first use, which cannot be recorded
            for phase in phases:
                phase()
        torch.cuda.current_stream(device).wait_stream(aside)
        pool, launches = torch.cuda.graph_pool_handle(), []
        for phase in phases:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                phase()
            launches.append(graph.replay)
        return launches

    def _take_rows(self) -> None:
        self._fold = Fold(self._scorer, self._rows, self._slots, is_dense=True)

    def _fold_one(self) -> None:
        """Fold the observation that ``at`` counts; what a fold carries in new tensors goes back where it was."""
        fold, at = self._fold, self._at
        hidden, floor, sigma = fold.hand.hidden, fold.floor, fold.sigma
        times_ms = self._times_ms.index_select(0, at)
        fold.see(self._x.index_select(0, at), times_ms, self._last_ms)
        fold.advance(0)
        fold.hand.turn_rings(1)
        hidden.copy_(fold.hand.hidden)
        floor.copy_(fold.floor)
        sigma.copy_(fold.sigma)
        fold.hand.hidden, fold.floor, fold.sigma = hidden, floor, sigma
        self._told.index_copy_(0, at, fold.told)
        self._grounds.index_copy_(0, at, fold.grounds)
        self._last_ms.copy_(times_ms[0])
        at.add_(1)

    def _put_back(self) -> None:
        self._fold.hand.put_back(1)

    def score(self, rows: Rows, slots: Tensor, x: Tensor, times_ms: Tensor, last_ms: Tensor) -> StepScores:
        """See :meth:`models.step.Scorer.score`; shapes were looked at there."""
        steps, streams = times_ms.shape
        mine = Rows(rows.layout, self._rows.feature[:streams], self._rows.entity[:streams])
        torch.index_select(rows.feature, 0, slots, out=mine.feature)
        torch.index_select(rows.entity, 0, slots, out=mine.entity)
        self._last_ms[:streams].copy_(last_ms)
        self._begin()
        told, cells, grounds = [], [], []
        for begin in range(0, steps, self._steps):
            length = min(self._steps, steps - begin)
            self._x[:length, :streams].copy_(x[begin : begin + length])
            self._times_ms[:length, :streams].copy_(times_ms[begin : begin + length])
            self._at.zero_()
            self._launch(length, streams)
            told.append(self._told[:length, :, :streams].to("cpu", copy=True))
            found = told[-1][:, EVENT].nonzero()
            grounds.append(self._grounds_of(found))
            cells.append(found.t() + torch.tensor([[begin], [0]]))
        self._end()
        rows.feature.index_copy_(0, slots, mine.feature)
        rows.entity.index_copy_(0, slots, mine.entity)
        return step_scores(torch.cat(told), torch.cat(cells, 1), torch.cat(grounds, 1), self._features, {})

    def _launch(self, observations: int, streams: int) -> None:
        """Fold so many; what coupled evidence measures distances by is frozen as soon as it is complete."""
        distances = self._fold.chain.distances
        while observations > 0:
            missing = observations + 1 if distances is None else distances.until_complete(streams)
            length = min(observations, missing)
            for _ in range(length):
                self._advance()
            if distances is not None and length == missing:
                distances.freeze()
            observations -= length

    def _grounds_of(self, cells: Tensor) -> Tensor:
        """``(18, E F)`` on the CPU, of ``cells`` ``(E, 2)``."""
        if not len(cells):
            return torch.empty(GROUNDS, 0, dtype=self._grounds.dtype)
        step, stream = cells.to(self._grounds.device).unbind(1)
        rows = stream.unsqueeze(1) * self._features + torch.arange(self._features, device=stream.device)
        return self._grounds[step.unsqueeze(1), :, rows].cpu().permute(2, 0, 1).reshape(GROUNDS, -1)
