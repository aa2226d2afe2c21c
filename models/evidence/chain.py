"""The kinds of evidence that a profile asks for, over the rows of one call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.config import FoldConfig
from models.evidence.coupled import Apart, Distance, DistanceChain, Together
from models.evidence.jump import Jump, JumpChain, Residual
from models.evidence.observed import JUMP, NONE, Observed, StreamEvidence
from models.evidence.single import Activity, Bearing, Levels, SeasonLevels, Single, SingleChain
from models.hand import Hand
from models.pretrained import PooledTail, PooledTails
from models.row import has_season
from models.tail import ClusterTail, Prior, RateTail

# The residual of an entity that stands still sinks, and hardly varies: its least stir would then be an event of the
# century. Its tail is not taken for lower or steeper than a third of the pooled one. Displacement needs no bound: it is
# 0 within five spreads, and a stream that stands still keeps a spread.
LEAST_OF_ENTITY = 1.0 / 3.0


@dataclass(frozen=True, slots=True)
class Priors:
    """The pooled tails as tensors, made once for a scorer: they are the same for every call."""

    level: PooledTail
    behaviour: Prior
    entity: Prior
    distances: Prior

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
            Prior.of(like, pooled.values, pooled.residuals, pooled.means, least=(LEAST_OF_ENTITY,) * 3),
        )


@dataclass(frozen=True, slots=True)
class Look:
    """What the profile's kinds of evidence saw of one observation."""

    single: Single | None
    jump: Jump | None
    apart: Apart | None


class Chain:
    """The kinds of evidence of one profile, behind the verbs of a fold."""

    def __init__(self, hand: Hand, config: FoldConfig, priors: Priors, is_dense: bool = False) -> None:
        self.priors, self.features, self.life = priors, len(config.features), hand.life
        self.single = self._single(hand, config) if config.evidence == "single" else None
        self.jump = None if self.single is not None else self._jump(hand)
        self.distances = self._distances(hand, is_dense) if config.evidence == "coupled" else None

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

    def _distances(self, hand: Hand, is_dense: bool) -> DistanceChain:
        tail = hand.entity_group("distance_tail", ClusterTail)
        tail.start_from(self.priors.distances)
        together, distance = hand.feature_group("together", Together), hand.entity_group("distance", Distance)
        return DistanceChain(together, distance, tail, self.priors.distances, is_dense)

    def look(self, o: Observed) -> Look:
        """Evidence of all kinds."""
        if self.single is not None:
            return Look(self.single.look(o), None, None)
        assert self.jump is not None
        jump = self.jump.look(o, self.life.count)
        apart = None if self.distances is None else self.distances.look(o)
        return Look(None, jump, apart)

    def strongest(self, seen: Look) -> StreamEvidence:
        """The maximum over kinds and features."""
        if self.single is not None and seen.single is not None:
            return self.single.strongest(seen.single, self.features)
        assert seen.jump is not None
        jump, apart = seen.jump, seen.apart
        nats, exists, parts = jump.nats.unsqueeze(0), jump.exists.unsqueeze(0), jump.contributions.unsqueeze(0)
        if apart is not None:  # in the order of SIGNALS from JUMP on
            nats, exists = torch.cat((nats, apart.nats)), torch.cat((exists, apart.exists))
            parts = torch.cat((parts, apart.parts.transpose(1, 2)))
        best, winner = (nats * exists).max(0)
        signal = torch.where(winner == 0, jump.signal, winner + JUMP).to(best.dtype)
        part = parts[winner, torch.arange(best.shape[0], device=best.device)]
        share = part / part.sum(1, keepdim=True).clamp_min(1e-12)
        compared = exists.sum(0)
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
            self.distances.learn(o, seen.apart, self.life.count)
