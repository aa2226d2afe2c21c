"""Mahalanobis distances of features that belong together (recipe.md, "per entity", 3).

References
----------
T^2: H. Hotelling, "Multivariate quality control" (1947), with mean and covariance of a reference period. Of running
means, whose small shifts stand out from what averages away: C. Lowry, W. Woodall, C. Champ and S. Rigdon, "A
multivariate exponentially weighted moving average control chart" (1992); their covariance is measured here rather than
derived, since what sensors of a plant do is correlated in time. What a feature has to do with it, by how much T^2 would
fall if the feature had the value that the others ask for: C. Alcala and S. Qin, "Reconstruction-based contribution for
process monitoring" (2009).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.row import DISTANCES
from models.tail import ClusterTail, Prior

IS_ERROR = (False, True, False)
"""Errors lie about 0; their distance is smoothed."""

GATHERED = 400.0
RIDGE = 0.01
GREATEST = 1e12


@dataclass(slots=True)
class Distance:
    """State of the W distances of N streams.

    ``gathered``, ``smooth`` ``(W, N)``, ``mean`` ``(W F, N)``, ``factor`` ``(W F (F + 1) / 2, N)``.
    """

    gathered: Tensor
    mean: Tensor
    factor: Tensor
    smooth: Tensor


@dataclass(slots=True)
class Apart:
    """What ``DistanceChain.look`` saw of ``vectors`` ``(W, F, N)``, of which those with ``present`` 1 exist.

    T^2 / F, what counts as evidence of it, whether it exists, nats: ``(W, N)``; how far each feature lies from where
    the others ask for it, and how much of T^2 that is: ``(W, F, N)``.
    """

    vectors: Tensor
    present: Tensor
    raw: Tensor
    s: Tensor
    exists: Tensor
    nats: Tensor
    astray: Tensor
    parts: Tensor


class DistanceChain:
    """Mahalanobis distances of F-vectors from the first 400 complete ones, W kinds side by side.

    While gathering, ``factor`` is the packed lower triangle of the running covariance; at 400 it becomes the inverse of
    its Cholesky factor, and stays.
    """

    def __init__(self, state: Distance, tail: ClusterTail, prior: Prior, features: int) -> None:
        self.gathered, self.smooth = state.gathered, state.smooth
        streams = state.gathered.shape[1]
        self.mean = state.mean.view(len(DISTANCES), features, streams)
        self.factor = state.factor.view(len(DISTANCES), -1, streams)
        self.tail, self.prior = tail, prior
        self.rows, self.columns = torch.tril_indices(features, features, device=state.mean.device)
        self.is_error = torch.tensor(IS_ERROR, device=state.mean.device).view(-1, 1, 1)

    def look(self, vectors: Tensor, present: Tensor, age: Tensor) -> Apart:
        """T^2 / F of ``vectors`` ``(W, F, N)``; components with ``present`` 0 lie on the mean."""
        # Until the factor exists its place holds a covariance, which must not be multiplied: it may overflow.
        ready = self.gathered >= GATHERED
        deviation = (vectors - self.mean).mul_(present).mul_(ready.unsqueeze(1))
        none = torch.zeros_like(deviation)
        whitened = none.index_add(1, self.rows, self.factor * deviation[:, self.columns])
        raw = whitened.square().clamp_max_(GREATEST).mean(1)
        pull = none.index_add(1, self.columns, self.factor * whitened[:, self.rows])
        precision = none.index_add(1, self.columns, self.factor.square()).clamp_min_(1e-30)
        astray = pull.mul_(present).div_(precision)
        parts = (astray.square() * precision).clamp_max_(GREATEST)
        exists = (ready & (present.amax(1) > 0)).to(raw.dtype)
        smooth = torch.where(self.smooth > 0, torch.lerp(self.smooth, raw, 0.1), raw)
        s = torch.where(self.is_error[:, 0], smooth, raw)
        return Apart(vectors, present, raw, s, exists, self.tail.nats(s, age, self.prior), astray, parts)

    def learn(self, seen: Apart, takes_part: Tensor, mean: Tensor, reach: Tensor, age: Tensor) -> None:
        """Gather 400 vectors, complete in what ``takes_part``; then move tails and smoothed distances.

        A value counts as no farther from ``mean`` than ``reach``, all ``(F, N)``: one wild value while gathering would
        make the distance blind for good.
        """
        self.tail.fold(seen.s, age, seen.exists, self.prior)
        self.smooth.copy_(torch.where(seen.exists > 0, seen.s, self.smooth))
        complete = ((seen.present > 0) | ~takes_part).all(1) & takes_part.any(0)
        gathers = (self.gathered < GATHERED) & complete
        if not bool(gathers.any()):
            return
        rate = gathers / (self.gathered + 1.0)
        usual = mean * ~self.is_error
        bounded = usual + torch.clamp(seen.vectors - usual, -reach, reach)
        deviation = (bounded - self.mean) * takes_part
        product = deviation[:, self.rows] * deviation[:, self.columns] * (1.0 - rate).unsqueeze(1)
        self.factor.lerp_(product, rate.unsqueeze(1).expand_as(product))
        self.mean.addcmul_(rate.unsqueeze(1), deviation)
        self.gathered.add_(gathers)
        kind, stream = (gathers & (self.gathered >= GATHERED)).nonzero().unbind(1)
        if kind.numel() > 0:
            self._freeze(kind, stream, takes_part[:, stream].t())

    def _freeze(self, kind: Tensor, stream: Tensor, takes_part: Tensor) -> None:
        """Replace covariances by their inverse Cholesky factors, with a ridge of 1 % of the diagonal.

        What takes no part has zeros there, so that it never counts.
        """
        packed, mean = self.factor[kind, :, stream].double(), self.mean[kind, :, stream].double()
        many, features = mean.shape
        covariance = packed.new_zeros(many, features, features)
        covariance[:, self.rows, self.columns] = packed
        covariance[:, self.columns, self.rows] = packed
        diagonal = covariance.diagonal(dim1=1, dim2=2)
        least = (mean.abs() * 1e-4 + 1e-8).square()
        # Scaled to unit diagonal first: features of very different units would exhaust the precision otherwise.
        scale = torch.rsqrt(diagonal * (1.0 + RIDGE) + least) * takes_part
        unit = covariance * scale.unsqueeze(1) * scale.unsqueeze(2)
        unit.diagonal(dim1=1, dim2=2).fill_(1.0)
        factor = torch.linalg.cholesky_ex(unit)[0]
        eye = torch.eye(features, dtype=packed.dtype, device=packed.device).expand_as(factor)
        inverse = torch.linalg.solve_triangular(factor, eye, upper=False) * scale.unsqueeze(1)
        self.factor[kind, :, stream] = inverse[:, self.rows, self.columns].to(self.factor.dtype)
