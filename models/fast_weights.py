"""The read-out that each stream adapts in its own row (docs/score.md, "Fast weights").

    forecast x(t+k) = m_t + sigma_t (B_k + v_k . phi_t + c_k),   k = 4 and 8,   phi = [h, input] - mu0

Every fourth observation leaves a key (phi, m, sigma, B_4, B_8) in the row; when its target arrives, v_k and c_k take
one small preconditioned step. Only rows whose key is due are touched.

References
----------
Normalised least mean squares: Widrow and Hoff (1960); S. Haykin, "Adaptive Filter Theory", chapter 6. Preconditioning
by a fixed inverse covariance P0 instead of the recursive one (RLS) keeps 154 numbers per row instead of 3000.
Fast weights: J. Schmidhuber, "Learning to control fast-weight memories" (1992).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

KEY_EVERY = 4
STEP = 0.1
DAMPING = 2.0
TARGET_LIMIT = 50.0
CLIP_AFTER = 60.0
FAST_UPDATES, FAST_RATE, SLOW_RATE = 20.0, 0.1, 1.0 / 200.0
LEAST_VARIANCE = 1e-6


@dataclass(slots=True)
class Adaptation:
    """Scalars of the adapted read-out; ``variance``, ``updates`` ``(2, R)`` for k = 4 and 8, the rest ``(R,)``."""

    variance: Tensor
    updates: Tensor
    phase: Tensor
    keys_held: Tensor

    @classmethod
    def of(cls, block: Tensor) -> Adaptation:
        """Views of the six rows of ``block`` in the order of the layout."""
        return cls(block[0:2], block[2:4], block[4], block[5])


@dataclass(frozen=True, slots=True)
class Preconditioner:
    """mu0 ``(H + 12,)`` and P0 ``(H + 12, H + 12)`` that ship with the weights."""

    mu0: Tensor
    P0: Tensor


@dataclass(slots=True)
class Due:
    """The valid rows whose key observation this is: index ``(D,)`` and their two stored keys ``(D, 2, K)``.

    Of a dense fold all rows, and ``among`` them, bool ``(R,)``, those.
    """

    index: Tensor
    keys: Tensor
    among: Tensor | None


class FastWeights:
    """The adapted read-outs of R rows during one call.

    Parameters
    ----------
    scalars
        Views that are written back with the row's other scalars.
    weights
        ``(R, 2, P + 1)``: a private copy of v_4, c_4, v_8, c_8, P = H + 12.
    key_table, rows
        Columns ``(all rows, 2 (P + 4))`` of the table, and which of its rows are ours ``(R,)``; keys move in place.
    is_dense
        Take all rows along, not only those that are due: four times the work, and nothing that depends on numbers.
    """

    def __init__(
        self,
        scalars: Adaptation,
        weights: Tensor,
        key_table: Tensor,
        rows: Tensor,
        prior: Preconditioner,
        is_dense: bool = False,
    ) -> None:
        self.scalars = scalars
        self.is_dense = is_dense
        self.weights = weights
        self._key_table = key_table
        self._rows = rows
        self._prior = prior
        self._phi = weights.new_ones(weights.shape[0], weights.shape[2])
        self.touched: list[Tensor] = []

    def forget_keys(self, where: Tensor) -> None:
        """Keys of the rows ``where`` (bool) speak of another time: drop them."""
        self.scalars.keys_held.masked_fill_(where, 0.0)

    def learn(self, x: Tensor, valid: Tensor) -> Due:
        """Take one step from the keys whose target is x; returns the rows that will store a key.

        A missing target drops both keys and leaves the phase where it is: the next observation is the key observation.
        """
        state = self.scalars
        at_key = state.phase < 0.5
        state.keys_held.masked_fill_(at_key & ~valid, 0.0)
        is_due = at_key & valid
        index = torch.arange(len(is_due), device=x.device) if self.is_dense else is_due.nonzero().squeeze(1)
        state.phase.add_(torch.where(at_key, valid * float(KEY_EVERY - 1), -1.0))
        keys = self._key_table.index_select(0, self._rows.index_select(0, index)).unflatten(1, (2, -1))
        due = Due(index, keys, is_due if self.is_dense else None)
        if index.numel() > 0:
            self._step(x.index_select(0, index), due)
        return due

    def _step(self, x: Tensor, due: Due) -> None:
        """Move v_4 by the key of t-4 (``keys[:, 0]``) and v_8 by that of t-8 (``keys[:, 1]``)."""
        state, index, keys = self.scalars, due.index, due.keys
        width = self._prior.mu0.numel()
        phi, mean, sigma = keys[..., :width], keys[..., width], keys[..., width + 1]
        frozen = torch.stack((keys[:, 0, width + 2], keys[:, 1, width + 3]), 1)
        held = state.keys_held.index_select(0, index)
        if due.among is not None:
            held = held * due.among
        has = torch.stack((held > 0.5, held > 1.5), 1)
        weights = self.weights.index_select(0, index)
        variance = state.variance.index_select(1, index).t()
        updates = state.updates.index_select(1, index).t()

        adapted = (weights[..., :width] * phi).sum(-1).add_(weights[..., width])
        target = ((x.unsqueeze(1) - mean) / torch.where(has, sigma, 1.0)).clamp_(-TARGET_LIMIT, TARGET_LIMIT)
        error = target - frozen - adapted
        bound = torch.where(updates >= CLIP_AFTER, 4.0 * variance.sqrt(), torch.inf)
        error = torch.clamp(error, -bound, bound)
        rate = (updates < FAST_UPDATES).to(updates.dtype).mul_(FAST_RATE - SLOW_RATE).add_(SLOW_RATE).mul_(has)
        variance = torch.lerp(variance, torch.minimum(error * error, 9.0 * variance), rate).clamp_min_(LEAST_VARIANCE)

        direction = torch.mm(phi.flatten(0, 1), self._prior.P0).view_as(phi)
        gain = torch.where(has, STEP * error / ((direction * phi).sum(-1) + DAMPING), 0.0).unsqueeze(-1)
        weights[..., :width].addcmul_(gain, direction)
        weights[..., width:].add_(gain)

        self.weights.index_copy_(0, index, weights)
        state.variance.index_copy_(1, index, variance.t())
        state.updates.index_copy_(1, index, (updates + has).t())
        self.touched.append(index)

    def corrections(self, hidden: Tensor, inputs: Tensor) -> Tensor:
        """``v_k . phi_t + c_k`` as ``(2, R)``, from hidden ``(R, H)`` and inputs ``(12, R)``; keeps phi_t for a key."""
        width = hidden.shape[1]
        torch.sub(hidden, self._prior.mu0[:width], out=self._phi[:, :width])
        torch.sub(inputs.t(), self._prior.mu0[width:], out=self._phi[:, width:-1])
        return (self.weights * self._phi.unsqueeze(1)).sum(-1).t()

    def store(self, due: Due, mean: Tensor, sigma: Tensor, frozen_4: Tensor, frozen_8: Tensor) -> None:
        """Push this observation's key onto the rows that are due; the newest key becomes the older one."""
        index = due.index
        if index.numel() == 0:
            return
        extras = torch.stack((mean, sigma, frozen_4, frozen_8)).index_select(1, index).t()
        newest = torch.cat((self._phi.index_select(0, index)[:, :-1], extras, due.keys[:, 0]), 1)
        one: Tensor | float = 1.0
        if due.among is not None:
            newest, one = torch.where(due.among.unsqueeze(1), newest, due.keys.flatten(1)), due.among
        self._key_table.index_copy_(0, self._rows.index_select(0, index), newest)
        held = self.scalars.keys_held
        held.index_copy_(0, index, (held.index_select(0, index) + one).clamp_max_(2.0))
