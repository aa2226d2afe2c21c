"""Mahalanobis distances of features that belong together (docs/score.md, "Evidence: coupled").

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

from models.evidence.observed import Observed, own_rate
from models.features import CLIP_FROM, CLIP_SIGMAS
from models.row import DISTANCES
from models.tail import ClusterTail, Prior

OF_RESIDUALS, OF_MEANS = DISTANCES.index("residuals"), DISTANCES.index("means")
MEAN_WINDOW = 10.0
# A feature takes part in T^2 once it has 20 values and reports, and no longer when it has been silent for so long that
# waiting for it could last for ever. What comes and goes after 4000 observations changes nothing any more.
LATELY, GONE, MOST_SILENT, SETTLED = 20.0, 200.0, 1000.0, 4000.0
GATHERED = 400.0
# What tails of T^2 count as behind them when they begin, like any tail that begins after 20 observations.
TAIL_HEAD_START = 20.0
RIDGE = 0.01
GREATEST = 1e12


@dataclass(slots=True)
class Distance:
    """State of the W distances of N streams.

    ``gathered`` ``(W, N)``, ``mean`` ``(W F, N)``, ``factor`` ``(W F (F + 1) / 2, N)``, ``smooth`` ``(N,)``.
    """

    gathered: Tensor
    mean: Tensor
    factor: Tensor
    smooth: Tensor


@dataclass(slots=True)
class Together:
    """What features bring along to be looked at together, ``(R,)`` each, in the order of the row."""

    mean_10: Tensor
    silent: Tensor
    member: Tensor


@dataclass(slots=True)
class Apart:
    """What ``DistanceChain.look`` saw of ``vectors`` ``(W, F, N)``, of which those with ``present`` 1 exist.

    T^2 / F, of residuals smoothed, whether it exists, nats: ``(W, N)``; how far each feature lies from where the others
    ask for it, and how much of T^2 that is: ``(W, F, N)``. ``silent`` ``(R,)``: observations since a feature's last
    value, this one included.
    """

    silent: Tensor
    vectors: Tensor
    present: Tensor
    s: Tensor
    exists: Tensor
    nats: Tensor
    astray: Tensor
    parts: Tensor


class DistanceChain:
    """Mahalanobis distances of F-vectors from the first 400 complete ones, W kinds side by side.

    While gathering, ``factor`` is the packed lower triangle of the running covariance; at 400 it becomes the inverse of
    its Cholesky factor, and stays. From then on ``gathered`` counts what is measured. Whoever folds densely (see
    :class:`models.fold.Fold`) calls :meth:`freeze` after the observation that may complete a reference.
    """

    def __init__(
        self, together: Together, state: Distance, tail: ClusterTail, prior: Prior, is_dense: bool = False
    ) -> None:
        self.together, self.gathered, self.smooth = together, state.gathered, state.smooth
        streams = state.gathered.shape[1]
        self.features = together.member.shape[0] // streams
        self.mean = state.mean.view(len(DISTANCES), self.features, streams)
        self.factor = state.factor.view(len(DISTANCES), -1, streams)
        self.tail, self.prior, self.is_dense = tail, prior, is_dense
        self.rows, self.columns = torch.tril_indices(self.features, self.features, device=state.mean.device)
        # The same until another is frozen: which factors are ready, those, and the diagonal of the precision.
        self.ready = torch.zeros_like(self.gathered, dtype=torch.bool)
        self.whitening, self.precision = torch.zeros_like(self.factor), torch.zeros_like(self.mean)
        self._take_factors()

    def _take_factors(self) -> None:
        torch.ge(self.gathered, GATHERED, out=self.ready)
        # Until the factor exists its place holds a covariance, which must not be multiplied: it may overflow.
        self.whitening.copy_(torch.where(self.ready.unsqueeze(1), self.factor, 0.0))
        self.precision.zero_().index_add_(1, self.columns, self.whitening.square()).clamp_min_(1e-30)

    def look(self, o: Observed) -> Apart:
        """T^2 / F of values, residuals and running means.

        What is missing lies on the mean; T^2 is taken less what of it is due to the one missing component that does not
        go with the others (so it is that of the others where one is missing).
        """
        silent = torch.where(o.moves.valid, 0.0, (self.together.silent + 1.0).clamp_max_(MOST_SILENT))
        vectors, present = self._vectors(o, silent)
        deviation = (vectors - self.mean).mul_(present)
        none = torch.zeros_like(deviation)
        whitened = none.index_add(1, self.rows, self.whitening * deviation[:, self.columns])
        squares = whitened.square().clamp_max_(GREATEST)
        pull = none.index_add(1, self.columns, self.whitening * whitened[:, self.rows])
        astray = pull / self.precision
        due = (astray * pull).clamp_max_(GREATEST)
        parts = due * present
        s = (squares.sum(1) - (due - parts).amax(1)).clamp_min_(0.0).div_(self.features)
        astray.mul_(present)
        exists = (self.ready & (present.amax(1) > 0)).to(s.dtype)
        smoothed = torch.lerp(self.smooth, s[OF_RESIDUALS], 0.1)
        s[OF_RESIDUALS] = torch.where(self.smooth > 0, smoothed, s[OF_RESIDUALS])
        return Apart(silent, vectors, present, s, exists, self.tail.nats(s, self._age(), self.prior), astray, parts)

    def _age(self) -> Tensor:
        """Observations behind the tails ``(W, N)``."""
        return (self.gathered - GATHERED).clamp_min_(0.0).add_(TAIL_HEAD_START)

    def _vectors(self, o: Observed, silent: Tensor) -> tuple[Tensor, Tensor]:
        """What distances are taken of, ``(W, F, N)``, and what is present of it.

        One blow moves a running mean by a sigma at most, and not for long. A feature has a mean while it has been heard
        of lately: not all need to report together.
        """
        rate = own_rate(o.moves.weight, o.count, CLIP_FROM, MEAN_WINDOW)
        mean_10 = torch.lerp(self.together.mean_10, o.mean + o.deviation, rate)
        columns = (o.sight.x, (o.sight.x - o.forecast_4) * o.has_4, mean_10)
        has_mean = ((o.count + o.moves.weight > 0) & (silent < LATELY)).to(o.has_4.dtype)
        vectors = torch.stack([self._by_stream(column) for column in columns])
        present = torch.stack([self._by_stream(column) for column in (o.moves.weight, o.has_4, has_mean)])
        present[OF_MEANS] *= present[0].amax(0)
        return vectors, present

    def _by_stream(self, column: Tensor) -> Tensor:
        """``(F, N)`` of a vector ``(N F,)``."""
        return column.view(-1, self.features).t()

    def learn(self, o: Observed, seen: Apart, age: Tensor) -> None:
        """Gather 400 vectors in which no member is missing; then move tails and smoothed distance. ``age`` is n."""
        changes = self._admit(o, seen.silent, age)
        self.together.silent.copy_(seen.silent)
        self.together.mean_10.copy_(seen.vectors[OF_MEANS].t().flatten())
        self.tail.fold(seen.s, self._age(), seen.exists, self.prior)
        self.smooth.copy_(torch.where(seen.exists[OF_RESIDUALS] > 0, seen.s[OF_RESIDUALS], self.smooth))
        gathering = self.gathered < GATHERED
        self.gathered.add_(seen.exists).masked_fill_(gathering & changes, 0.0)
        member = self._by_stream(self.together.member > 0)
        gathers = gathering & ((seen.present > 0) | ~member).all(1) & member.any(0)
        if self.is_dense:
            self._gather(o, seen, gathers, member)
        elif bool(gathers.any()):
            self._gather(o, seen, gathers, member)
            self.freeze()

    def _admit(self, o: Observed, silent: Tensor, age: Tensor) -> Tensor:
        """Let features join and leave until the stream has settled; ``(N,)`` bool where gathering begins again."""
        member = self.together.member
        joins = (o.count >= CLIP_FROM) & (silent < LATELY) & (member == 0)
        leaves = (silent >= GONE) & (member > 0)
        changes = (joins | leaves) & (age < SETTLED).repeat_interleave(self.features)
        member.copy_(torch.where(changes, 1.0 - member, member))
        return self._by_stream(changes).any(0)

    def _gather(self, o: Observed, seen: Apart, gathers: Tensor, member: Tensor) -> None:
        """Move mean and covariance where ``gathers`` ``(W, N)``.

        A value counts as no farther than ten sigma from m, an error than that from 0: a wild one while gathering would
        make the distance blind for good.
        """
        rate = gathers / (self.gathered + 1.0)  # the first takes the place of whatever was there
        mean, reach = self._by_stream(o.mean), self._by_stream(o.sigma * CLIP_SIGMAS)
        usual = torch.stack((mean, torch.zeros_like(mean), mean))
        bounded = usual + torch.clamp(seen.vectors - usual, -reach, reach)
        deviation = (bounded - self.mean) * member
        product = deviation[:, self.rows] * deviation[:, self.columns] * (1.0 - rate).unsqueeze(1)
        self.factor.lerp_(product, rate.unsqueeze(1).expand_as(product))
        self.mean.addcmul_(rate.unsqueeze(1), deviation)
        self.gathered.add_(gathers)

    def until_complete(self, streams: int) -> int:
        """After how many observations, at the earliest, a reference of the first streams is complete (waits for it)."""
        missing = GATHERED - self.gathered[:, :streams]
        return int(torch.where(missing > 0, missing, GATHERED).amin())

    def freeze(self) -> None:
        """Freeze the references that are complete (waits for the device)."""
        kind, stream = ((self.gathered >= GATHERED) & ~self.ready).nonzero().unbind(1)
        if kind.numel() > 0:
            member = self._by_stream(self.together.member > 0)
            self._freeze(kind, stream, member[:, stream].t())
            self._take_factors()

    def _freeze(self, kind: Tensor, stream: Tensor, member: Tensor) -> None:
        """Replace covariances by their inverse Cholesky factors, with a ridge of 1 % of the diagonal.

        What is no member has zeros there, so that it never counts.
        """
        packed, mean = self.factor[kind, :, stream].double(), self.mean[kind, :, stream].double()
        many, features = mean.shape
        covariance = packed.new_zeros(many, features, features)
        covariance[:, self.rows, self.columns] = packed
        covariance[:, self.columns, self.rows] = packed
        diagonal = covariance.diagonal(dim1=1, dim2=2)
        least = (mean.abs() * 1e-4 + 1e-8).square()
        # Scaled to unit diagonal first: features of very different units would exhaust the precision otherwise.
        scale = torch.rsqrt(diagonal * (1.0 + RIDGE) + least) * member
        unit = covariance * scale.unsqueeze(1) * scale.unsqueeze(2)
        unit.diagonal(dim1=1, dim2=2).fill_(1.0)
        factor = torch.linalg.cholesky_ex(unit)[0]
        eye = torch.eye(features, dtype=packed.dtype, device=packed.device).expand_as(factor)
        inverse = torch.linalg.solve_triangular(factor, eye, upper=False) * scale.unsqueeze(1)
        self.factor[kind, :, stream] = inverse[:, self.rows, self.columns].to(self.factor.dtype)
