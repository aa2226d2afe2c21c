"""The rows of one call in hand: read once, moved with every observation, put back.

Scalars, rings and mixture are one ``(columns, R)`` block in which every number is a contiguous vector over the R = N F
feature rows; hidden state and fast weights lie row by row; keys and memory of times stay in the table.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from models.config import FoldConfig
from models.fast_weights import Adaptation, FastWeights, Preconditioner
from models.features import Normaliser, Seasonal
from models.row import Rows, has_season
from models.tail import AlertLife

Group = TypeVar("Group")


class Hand:
    """The rows of one call: private copies of what moves with every observation, views of the rest.

    Parameters
    ----------
    rows, slots
        The table, and which of its rows ``(N,)``.
    config
        The settings of the fold.
    prior
        What fast weights start from; None where nothing is adapted.
    is_dense
        Every row takes part in everything (see :class:`models.fold.Fold`).
    """

    def __init__(
        self, rows: Rows, slots: Tensor, config: FoldConfig, prior: Preconditioner | None, is_dense: bool = False
    ) -> None:
        layout = rows.layout
        self._layout, self._slots = layout, slots
        self._features = rows.feature.view(-1, layout.feature_width)
        self._entities = rows.entity
        wide = slots.unsqueeze(1) * layout.features + torch.arange(layout.features, device=slots.device)
        self._rows = wide.flatten()
        self._block = self._features[:, : layout.scalar_columns].index_select(0, self._rows).t().contiguous()
        self._entity_block = self._entities[:, : layout.entity_scalar_columns].index_select(0, slots).t().contiguous()
        self.normaliser = self.feature_group("normaliser", Normaliser)
        self.life = self.entity_group("life", AlertLife)
        self.mixture = self.feature_block("mixture")
        self.pending_4 = self.feature_block("pending_4") if layout.has("pending_4") else None
        self.pending_8 = self.feature_block("pending_8") if layout.has("pending_8") else None
        self.hidden = self._hidden_table()[0].index_select(0, self._hidden_table()[1])
        self.fast = None if prior is None else self._fast_weights(prior, is_dense)
        self.seasonal = self._seasonal(config) if has_season(config) else None

    def feature_block(self, name: str) -> Tensor:
        """``(width, R)`` view of a slice or group."""
        return self._block[self._layout.columns(name)]

    def feature_group(self, name: str, kind: type[Group]) -> Group:
        """A group's vectors ``(R,)``, as the fields of ``kind``; fields of several numbers are ``(width, R)``."""
        return kind(*self._fields(self._block, name))

    def entity_block(self, name: str) -> Tensor:
        """``(width, N)`` view of a slice or group of the entity row."""
        return self._entity_block[self._layout.columns(name)]

    def entity_group(self, name: str, kind: type[Group]) -> Group:
        """A group's vectors ``(N,)``, as the fields of ``kind``; fields of several numbers are ``(width, N)``."""
        return kind(*self._fields(self._entity_block, name))

    def _fields(self, block: Tensor, name: str) -> list[Tensor]:
        members = self._layout.members(name)
        return [block[s.offset] if s.width == 1 else block[s.offset : s.end] for s in members]

    def forget_rings(self, where: Tensor) -> None:
        """After a gap no earlier S suppresses a new one, and no key has a target."""
        if self._layout.has("quiet_ring"):
            self.feature_block("quiet_ring").masked_fill_(where, 0.0)
        if self.fast is not None:
            self.fast.forget_keys(where)

    def turn_rings(self, steps: int) -> None:
        """After as many observations, make rings begin with their oldest entry again."""
        for name, length in (("quiet_ring", 10), ("pending_4", 4), ("pending_8", 8)):
            if self._layout.has(name) and steps % length:
                ring = self.feature_block(name)
                ring.copy_(ring.roll(-(steps % length), 0))

    def put_back(self, steps: int) -> None:
        """Write everything that moved in as many observations; rings as :meth:`turn_rings` left them."""
        layout = self._layout
        self._features[:, : layout.scalar_columns].index_copy_(0, self._rows, self._block.t().contiguous())
        self._entities[:, : layout.entity_scalar_columns].index_copy_(
            0, self._slots, self._entity_block.t().contiguous()
        )
        table, index = self._hidden_table()
        table.index_copy_(0, index, self.hidden)
        if self.fast is not None:
            self._put_back_fast_weights(self.fast, steps)

    def _put_back_fast_weights(self, fast: FastWeights, steps: int) -> None:
        table, weights = self._features[:, self._layout.columns("fast_weights")], fast.weights.flatten(1)
        if steps >= 4 or fast.is_dense:
            table.index_copy_(0, self._rows, weights)
            return
        for index in fast.touched:
            table.index_copy_(0, self._rows.index_select(0, index), weights.index_select(0, index))

    def _hidden_table(self) -> tuple[Tensor, Tensor]:
        columns = self._layout.columns("hidden")
        if self._layout.slices["hidden"].where == "entity":
            return self._entities[:, columns], self._slots
        return self._features[:, columns], self._rows

    def _fast_weights(self, prior: Preconditioner, is_dense: bool) -> FastWeights:
        weights = self._features[:, self._layout.columns("fast_weights")].index_select(0, self._rows)
        keys = self._features[:, self._layout.columns("keys")]
        scalars = Adaptation.of(self.feature_block("adaptation"))
        return FastWeights(scalars, weights.view(weights.shape[0], 2, -1), keys, self._rows, prior, is_dense)

    def _seasonal(self, config: FoldConfig) -> Seasonal:
        assert config.interval_s is not None
        begin = self._rows * self._layout.feature_width + self._layout.columns("season_mean").start
        errors = self.feature_block("season_errors") if self._layout.has("season_errors") else None
        return Seasonal(self._features.view(-1), begin, config.interval_s, errors)
