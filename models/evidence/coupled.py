"""Mahalanobis distances of features that belong together (recipe.md, "per entity", 3).

References
----------
T^2: H. Hotelling, "Multivariate quality control" (1947), with mean and covariance of a reference period. Of running
means, whose small shifts stand out from what averages away: C. Lowry, W. Woodall, C. Champ and S. Rigdon, "A
multivariate exponentially weighted moving average control chart" (1992); their covariance is measured here rather than
derived, since what sensors of a plant do is correlated in time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.tail import ClusterTail, Prior

GATHERED = 400.0
RIDGE = 0.01


@dataclass(slots=True)
class Distance:
    """State of one T^2: ``gathered``, ``smooth`` ``(N,)``, ``mean`` ``(F, N)``, ``factor`` ``(F (F + 1) / 2, N)``."""

    gathered: Tensor
    mean: Tensor
    factor: Tensor
    smooth: Tensor


@dataclass(slots=True)
class Apart:
    """What ``DistanceChain.look`` saw of ``vectors`` ``(F, N)``, of which those with ``present`` 1 exist.

    T^2 / F, what counts as evidence of it, whether it exists, nats: ``(N,)``; what each component added: ``(F, N)``.
    """

    vectors: Tensor
    present: Tensor
    raw: Tensor
    s: Tensor
    exists: Tensor
    nats: Tensor
    parts: Tensor


@dataclass(slots=True)
class DistanceChain:
    """Mahalanobis distance of F-vectors from the first 400 complete ones.

    While gathering, ``factor`` is the packed lower triangle of the running covariance; at 400 it becomes the inverse of
    its Cholesky factor, and stays.
    """

    state: Distance
    tail: ClusterTail
    prior: Prior
    is_smoothed: bool

    def look(self, vectors: Tensor, present: Tensor, age: Tensor) -> Apart:
        """T^2 / F of ``vectors`` ``(F, N)``; components with ``present`` 0 lie on the mean."""
        state, features = self.state, vectors.shape[0]
        rows, columns = torch.tril_indices(features, features, device=vectors.device)
        # Until the factor exists its place holds a covariance, which must not be multiplied: it may overflow.
        ready = state.gathered >= GATHERED
        deviation = (vectors - state.mean) * (present * ready)
        whitened = torch.zeros_like(deviation).index_add_(0, rows, state.factor * deviation[columns])
        parts = whitened.square().clamp_max_(1e12)
        raw = parts.mean(0)
        exists = (ready & (present.amax(0) > 0)).to(raw.dtype)
        smooth = torch.where(state.smooth > 0, torch.lerp(state.smooth, raw, 0.1), raw)
        s = smooth if self.is_smoothed else raw
        return Apart(vectors, present, raw, s, exists, self.tail.nats(s, age, self.prior), parts)

    def learn(self, seen: Apart, takes_part: Tensor, age: Tensor) -> None:
        """Gather 400 vectors, complete in what ``takes_part`` ``(F, N)``; then move tail and smoothed distance."""
        state = self.state
        self.tail.fold(seen.s, age, seen.exists, self.prior)
        state.smooth.copy_(torch.where(seen.exists > 0, seen.s if self.is_smoothed else seen.raw, state.smooth))
        complete = ((seen.present > 0) | ~takes_part).all(0) & (seen.present.amax(0) > 0)
        gathers = (state.gathered < GATHERED) & complete
        if not bool(gathers.any()):
            return
        vectors, features = seen.vectors, seen.vectors.shape[0]
        rows, columns = torch.tril_indices(features, features, device=vectors.device)
        rate = gathers / (state.gathered + 1.0)
        deviation = (vectors - state.mean) * takes_part
        product = deviation[rows] * deviation[columns] * (1.0 - rate)
        state.factor.lerp_(product, rate.expand_as(product))
        state.mean.addcmul_(rate, deviation)
        state.gathered.add_(gathers)
        full = (gathers & (state.gathered >= GATHERED)).nonzero().squeeze(1)
        if full.numel() > 0:
            self._freeze(full, takes_part[:, full], rows, columns)

    def _freeze(self, which: Tensor, takes_part: Tensor, rows: Tensor, columns: Tensor) -> None:
        """Replace covariances by their inverse Cholesky factors, with a ridge of 1 % of the diagonal.

        What takes no part has zeros there, so that it never counts.
        """
        state, features = self.state, takes_part.shape[0]
        packed, mean = state.factor[:, which].double(), state.mean[:, which].double()
        covariance = packed.new_zeros(which.numel(), features, features)
        covariance[:, rows, columns] = packed.t()
        covariance[:, columns, rows] = packed.t()
        diagonal = covariance.diagonal(dim1=1, dim2=2)
        least = (mean.abs() * 1e-4 + 1e-8).square().t()
        # Scaled to unit diagonal first: features of very different units would exhaust the precision otherwise.
        scale = torch.rsqrt(diagonal * (1.0 + RIDGE) + least) * takes_part.t()
        unit = covariance * scale.unsqueeze(1) * scale.unsqueeze(2)
        unit.diagonal(dim1=1, dim2=2).fill_(1.0)
        factor = torch.linalg.cholesky_ex(unit)[0]
        eye = torch.eye(features, dtype=packed.dtype, device=packed.device).expand_as(factor)
        inverse = torch.linalg.solve_triangular(factor, eye, upper=False) * scale.unsqueeze(1)
        state.factor[:, which] = inverse[:, rows, columns].t().to(state.factor.dtype)
