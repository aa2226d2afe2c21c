"""The kinds of evidence that a profile asks for, over the rows of one call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.config import FoldConfig
from models.evidence.coupled import Apart, Distance, DistanceChain
from models.evidence.jump import Jump, JumpChain, Residual
from models.evidence.observed import JUMP, NONE, Observed, StreamEvidence
from models.evidence.single import Activity, Bearing, Levels, SeasonLevels, Single, SingleChain
from models.features import FAST_WINDOW
from models.hand import Hand
from models.pretrained import PooledTail, PooledTails
from models.row import DISTANCES, has_season
from models.tail import ClusterTail, Prior, RateTail

# The residual of an entity that stands still sinks, and hardly varies: its least stir would then be an event of the
# century. Its tail is not taken for lower or steeper than a third of the pooled one. Displacement needs no bound: it is
# 0 within five spreads, and a stream that stands still keeps a spread.
LEAST_OF_ENTITY = 1.0 / 3.0
# A feature seen less than half as often as the most frequent one takes no part in T^2: waiting until it stands beside
# all others could last for ever.
SHARE_OF_PART = 0.5


@dataclass(frozen=True, slots=True)
class Priors:
    """The pooled tails as tensors, made once for a scorer: they are the same for every call."""

    level: PooledTail
    behaviour: Prior
    entity: Prior
    distances: tuple[Prior, ...]

    @classmethod
    def of(cls, pooled: PooledTails, like: Tensor) -> Priors:
        """The priors of every kind, of the type and on the device of ``like``."""
        return cls(
            pooled.level,
            Prior.of(
                like,
                pooled.short_activity,
                pooled.activity,
                pooled.long_activity,
                pooled.displacement,
                pooled.stillness,
            ),
            Prior.of(
                like,
                pooled.entity,
                pooled.entity_mean,
                pooled.entity_rms,
                pooled.entity_displacement,
                least=(LEAST_OF_ENTITY, LEAST_OF_ENTITY, LEAST_OF_ENTITY, 0.0),
            ),
            tuple(
                Prior.of(like, tail, least=(LEAST_OF_ENTITY,))
                for tail in (pooled.values, pooled.residuals, pooled.means)
            ),
        )


@dataclass(frozen=True, slots=True)
class Look:
    """What the profile's kinds of evidence saw of one observation."""

    single: Single | None
    jump: Jump | None
    apart: list[Apart] | None


class Chain:
    """The kinds of evidence of one profile, behind the verbs of a fold."""

    def __init__(self, hand: Hand, config: FoldConfig, priors: Priors) -> None:
        self.priors, self.features, self.life = priors, len(config.features), hand.life
        self.fast_mean = hand.normaliser.fast_mean
        self.single = self._single(hand, config) if config.evidence == "single" else None
        self.jump = None if self.single is not None else self._jump(hand)
        self.distances: list[DistanceChain] | None = None
        if config.evidence == "coupled":
            self.distances = [
                self._distance(hand, kind, prior) for kind, prior in zip(DISTANCES, priors.distances, strict=True)
            ]

    def _single(self, hand: Hand, config: FoldConfig) -> SingleChain:
        level_tail = hand.feature_group("level_tail", RateTail)
        behaviour_tail = hand.feature_group("behaviour_tail", ClusterTail)
        level_tail.start_from(self.priors.level)
        behaviour_tail.start_from(self.priors.behaviour)
        season = hand.feature_group("season_levels", SeasonLevels) if has_season(config) else None
        return SingleChain(
            hand.feature_group("levels", Levels),
            season,
            hand.feature_group("activity", Activity),
            hand.feature_group("bearing", Bearing),
            level_tail,
            self.priors.level,
            behaviour_tail,
            self.priors.behaviour,
            hand.feature_block("quiet_ring"),
            config.record_weight_p,
        )

    def _jump(self, hand: Hand) -> JumpChain:
        tail = hand.entity_group("entity_tail", ClusterTail)
        tail.start_from(self.priors.entity)
        residual, recent = hand.feature_group("residual", Residual), hand.entity_block("entity.recent")
        return JumpChain(residual, recent, tail, self.priors.entity)

    def _distance(self, hand: Hand, kind: str, prior: Prior) -> DistanceChain:
        tail = hand.entity_group(f"{kind}_tail", ClusterTail)
        tail.start_from(prior)
        name = f"{kind}_distance"
        state = Distance(
            hand.entity_block(f"{name}.gathered")[0],
            hand.entity_block(f"{name}.mean"),
            hand.entity_block(f"{name}.factor"),
            hand.entity_block(f"{name}.smooth")[0],
        )
        return DistanceChain(state, tail, prior, is_smoothed=kind == "residuals")

    def look(self, o: Observed) -> Look:
        """Evidence of all kinds."""
        if self.single is not None:
            return Look(self.single.look(o), None, None)
        assert self.jump is not None
        jump = self.jump.look(o, self.life.count)
        if self.distances is None:
            return Look(None, jump, None)
        age = self._distance_age()
        apart = [
            chain.look(vectors, present, age)
            for chain, (vectors, present) in zip(self.distances, self._vectors(o), strict=True)
        ]
        return Look(None, jump, apart)

    def strongest(self, seen: Look) -> StreamEvidence:
        """The maximum over kinds and features."""
        if self.single is not None and seen.single is not None:
            return self.single.strongest(seen.single, self.features)
        assert seen.jump is not None
        kinds = [(seen.jump.nats, seen.jump.exists, seen.jump.contributions)]  # in the order of SIGNALS from JUMP on
        if seen.apart is not None:
            kinds += [(apart.nats, apart.exists, apart.parts.t()) for apart in seen.apart]
        nats = torch.stack([nats * exists for nats, exists, _ in kinds])
        best, winner = nats.max(0)
        signal = torch.where(winner == 0, seen.jump.signal, winner + JUMP).to(best.dtype)
        shares = torch.stack([part / part.sum(1, keepdim=True).clamp_min(1e-12) for *_, part in kinds])
        share = shares[winner, torch.arange(best.shape[0], device=best.device)]
        compared = torch.stack([exists for _, exists, _ in kinds]).sum(0)
        feature = torch.full_like(best, -1.0)
        return StreamEvidence(best, compared, signal.masked_fill(best <= 0, NONE), feature, share * best.unsqueeze(1))

    def learn(self, o: Observed, seen: Look, t: int) -> None:
        """Move everything that evidence is made of."""
        if self.single is not None and seen.single is not None:
            self.single.learn(o, seen.single, t % self.single.quiet.shape[0])
            return
        assert self.jump is not None
        assert seen.jump is not None
        self.jump.learn(o, seen.jump, self.life.count)
        if self.distances is not None and seen.apart is not None:
            age, count = self._distance_age(), self._by_stream(o.count)
            takes_part = count >= SHARE_OF_PART * count.amax(0)
            for chain, apart in zip(self.distances, seen.apart, strict=True):
                chain.learn(apart, takes_part, age)

    def _distance_age(self) -> Tensor:
        """Observations behind the tails of T^2, which begin after the first 400; counted like any tail from 20."""
        return (self.life.count - 400.0).clamp_min_(0.0).add_(20.0)

    def _by_stream(self, column: Tensor) -> Tensor:
        """``(F, N)`` of a vector ``(N F,)``."""
        return column.view(-1, self.features).t()

    def _vectors(self, o: Observed) -> list[tuple[Tensor, Tensor]]:
        """What distances are taken of, ``(F, N)`` each, in the order of DISTANCES, with what is present of it."""
        by_stream = self._by_stream
        mean = torch.lerp(self.fast_mean, o.sight.x, o.moves.rate(FAST_WINDOW))
        error_4 = (o.sight.x - o.forecast_4) * o.has_4
        present = by_stream(o.moves.weight)
        return [
            (by_stream(o.sight.x), present),
            (by_stream(error_4), by_stream(o.has_4)),
            (by_stream(mean), present),
        ]
