"""The fold: observations of many streams into their rows, in the normative order of recipe.md.

This readable form defines the formulas; faster forms are tested against it. The rows of one call are read once: scalars,
rings and mixture as one ``(columns, R)`` block in which every number is a contiguous vector over R = N F feature rows;
hidden state and fast weights row by row; keys and time-of-day bins in the table itself, where they are due.

Everything is indifferent to how observations are cut into calls: each recurrence advances once per observation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from models.config import FoldConfig
from models.evidence import (
    JUMP,
    NONE,
    RESIDUALS,
    SIGNALS,
    VALUES,
    Activity,
    Apart,
    Distance,
    DistanceChain,
    Jump,
    JumpChain,
    Levels,
    Observed,
    Residual,
    SeasonLevels,
    Single,
    SingleChain,
    StreamEvidence,
    mixture_tails,
    observed,
    one_step_forecast,
)
from models.fast_weights import Adaptation, Due, FastWeights, Preconditioner
from models.features import (
    INPUTS,
    Normaliser,
    Seasonal,
    floor_of,
    fold_and_look_ahead,
    fold_normaliser,
    moves_of,
    scale_of,
    sight,
    slowest_bin_rate,
    time_bins,
    write_inputs,
)
from models.pretrained import Weights
from models.predictor import recurrent_step, serving_cells, serving_head
from models.row import RowLayout, Rows, has_fast_weights, has_season
from models.tail import NO_EVENT, AlertLife, Decision, QuantileTail, RateTail, decide, score_of

GAP_INTERVALS = 1.5
AGED_TO = 100.0
AGEING = 500.0
INTERVAL_WINDOW = 500.0
INTERVAL_CAP = 10.0
FORECAST_BOUND = 1e17
BAND = (0.01, 0.99)

Group = TypeVar("Group")


@dataclass(frozen=True, slots=True)
class Trace:
    """Everything ``explain`` and ``evaluate`` want of every observation; NaN where it does not exist.

    ``(S, N, F)``: ``level`` (S as reported), ``raw_level``, ``record``, ``gate``, ``activity`` (A), ``surprise``,
    ``error_4``, ``expected`` (one step ahead), ``forecast_4``, ``forecast_8``, ``contribution``. ``(S, N)``:
    ``entity`` (s), ``entity_smooth`` (ew(s, 10)), ``values`` and ``residuals`` (T^2 / F), ``controller`` (d).
    """

    level: Tensor
    raw_level: Tensor
    record: Tensor
    gate: Tensor
    activity: Tensor
    surprise: Tensor
    error_4: Tensor
    expected: Tensor
    forecast_4: Tensor
    forecast_8: Tensor
    contribution: Tensor
    entity: Tensor
    entity_smooth: Tensor
    values: Tensor
    residuals: Tensor
    controller: Tensor


@dataclass(frozen=True, slots=True)
class Evidence:
    """What stands behind E cells of a call: those with an event, or all of them.

    Attributes
    ----------
    s, n
        ``(E,)`` int64: the cell.
    observed, expected, band_low, band_high, nats
        ``(E, F)``: raw units (NaN where missing); band = 1 and 99 % points of the one-step mixture.
    direction
        ``(E,)`` int8: -1 below, +1 above what was expected, 0 none.
    gate, forecast_4, forecast_8
        ``(E,)`` of the strongest feature; NaN where they do not exist.
    peak, d, severity
        ``(E,)``: peak score of the episode, controller in force, 0 none, 1 warning, 2 critical.
    """

    s: Tensor
    n: Tensor
    observed: Tensor
    expected: Tensor
    band_low: Tensor
    band_high: Tensor
    nats: Tensor
    direction: Tensor
    gate: Tensor
    forecast_4: Tensor
    forecast_8: Tensor
    peak: Tensor
    d: Tensor
    severity: Tensor


@dataclass(frozen=True, slots=True)
class StepScores:
    """Scores and events of S observations of N streams, ``(S, N)`` each.

    Attributes
    ----------
    score
        -log10 p, rounded to 3 decimals; NaN where every value was missing.
    threshold
        In force for this observation, -log10.
    verdict
        uint8: 0 normal, 1 anomalous, 2 warming_up, 3 missing.
    signal
        uint8 index into :attr:`Scorer.signals`.
    feature
        int16 strongest feature, -1 for an entity signal or none.
    imputed
        Share of values that were missing.
    event
        uint8: 0 none, 1 opened, 2 updated, 3 resolved.
    details
        Evidence of cells with an event (of all with ``detail=True``).
    trace
        Only with ``detail=True``.
    """

    score: Tensor
    threshold: Tensor
    verdict: Tensor
    signal: Tensor
    feature: Tensor
    imputed: Tensor
    event: Tensor
    details: Evidence
    trace: Trace | None


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
        self.cells = serving_cells(network)
        self.head = serving_head(network)
        self.prior = Preconditioner(weights.mu0.to(self.device, dtype), weights.P0.to(self.device, dtype))
        self.interval_ms = None if config.interval_s is None else round(config.interval_s * 1000)

    def rows(self, capacity: int) -> Rows:
        """A table of fresh rows for this scorer."""
        return Rows.allocate(self.layout, capacity, self.device, self.dtype)

    @torch.inference_mode()
    def score(
        self, rows: Rows, slots: Tensor, x: Tensor, times_ms: Tensor, last_ms: Tensor, detail: bool = False
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
            Return evidence of every cell, and a trace.

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
        fold = _Fold(self, rows, slots.to(self.device), x, times_ms.to(self.device), last_ms.to(self.device), detail)
        for t in range(steps):
            fold.advance(t)
        return fold.close()


class _Fold:
    """One call of :meth:`Scorer.score`: the rows in hand, and the observation that is being folded."""

    def __init__(
        self, scorer: Scorer, rows: Rows, slots: Tensor, x: Tensor, times_ms: Tensor, last_ms: Tensor, detail: bool
    ) -> None:
        self.scorer, self.config, self.layout = scorer, scorer.config, scorer.layout
        self.table, self.slots, self.detail = rows, slots, detail
        self.steps, self.streams, self.features = x.shape
        self.hand = _Hand(scorer, rows, slots)
        raw = x.to(scorer.device, scorer.dtype).reshape(self.steps, -1)
        self.valid = torch.isfinite(raw)
        self.raw = raw
        share = self.valid.view(self.steps, self.streams, -1).to(scorer.dtype).mean(2)
        self.scored, self.imputed = share > 0, 1.0 - share
        before = torch.cat((last_ms.unsqueeze(0), times_ms[:-1]))
        has_past = before >= 0
        self.elapsed_s = torch.where(has_past, times_ms - before, 0).to(scorer.dtype) / 1000.0
        self.bins = None if scorer.interval_ms is None else time_bins(times_ms, scorer.interval_ms)
        self.gaps = self._fixed_gaps()
        self.inputs = raw.new_empty(INPUTS, raw.shape[1])
        state = self.hand.normaliser
        self.floor = floor_of(state.mean)
        self.sigma = scale_of(state, self.floor)
        self.out = _Output(self.steps, self.streams, scorer)

    def _fixed_gaps(self) -> list[bool] | None:
        """Which observations follow a gap in some stream, where the profile says what a gap is (one device sync)."""
        if self.config.interval_s is None:
            return None
        gaps: list[bool] = (self.elapsed_s > GAP_INTERVALS * self.config.interval_s).any(1).tolist()
        return gaps

    def advance(self, t: int) -> None:
        """One observation of every stream, in the order (i) to (viii) of recipe.md."""
        hand, valid = self.hand, self.valid[t]
        state, life = hand.normaliser, hand.life

        # (i) a gap makes forecasts and keys invalid and ages the statistics
        gap = self._gap(t)

        # (ii) x, or what stands in for it
        bins = None if self.bins is None or hand.seasonal is None else self._per_feature(self.bins[:, t])
        moves = moves_of(valid, state.count)
        seen, bin_now = sight(self.raw[t], valid, state, hand.seasonal, bins)
        if gap is not None:
            seen.dx.masked_fill_(gap, 0.0)

        # (iii) evidence from statistics before x
        o = observed(
            seen, moves, (state.mean, self.sigma, self.floor), state.count.clone(), hand.mixture, self._forecasts(t)
        )
        chain = hand.chain.look(o)

        # (iv) nats with the old tails, decision with the old controller
        found = hand.chain.strongest(o, chain)
        score = score_of(found.nats, found.compared).mul_(self.scored[t])
        decision = decide(life, score, self.scored[t], self.elapsed_s[t], self._observations_per_alarm())
        self._record(t, o, chain, found, score, decision)

        # (v) maxima, ranges, scales, tails
        hand.chain.learn(o, chain, t)
        life.count.add_(self.scored[t])

        # (vi) fast weights, from the keys of t-4 and t-8
        due = None if hand.fast is None else hand.fast.learn(seen.x, valid)

        # (vii) normaliser, then seasonal bin
        fold_normaliser(state, seen.x, seen.dx, self.sigma, moves)
        self.floor = floor_of(state.mean)
        self.sigma = scale_of(state, self.floor)
        ahead = fold_and_look_ahead(hand.seasonal, bins, bin_now, seen.x, moves.weight)

        # (viii) inputs, network, head; forecasts; rings; a key every fourth observation
        write_inputs(self.inputs, state, self.sigma, seen, ahead)
        self._forecast(t, due)

    def _per_feature(self, of_stream: Tensor) -> Tensor:
        """``(..., N)`` numbers of streams for each of their features: ``(..., R)``."""
        if self.features == 1:
            return of_stream
        wide = of_stream.unsqueeze(-1).expand(*of_stream.shape, self.features)
        return wide.reshape(*of_stream.shape[:-1], -1)

    def _gap(self, t: int) -> Tensor | None:
        """Rows after a gap (bool ``(R,)``), or None if there are none; their forecasts, keys and counts are dealt with."""
        life, elapsed = self.hand.life, self.elapsed_s[t]
        if self.config.interval_s is not None:
            if self.gaps is not None and not self.gaps[t]:
                return None
            intervals = elapsed / self.config.interval_s
        else:
            known = life.intervals > 0
            intervals = torch.where(known, elapsed / life.interval_s.clamp_min(1e-6), 0.0)
            self._fold_interval(elapsed)
        gap = intervals > GAP_INTERVALS
        life.forecasts.masked_fill_(gap, 0.0)
        life.count.copy_(_aged(life.count, intervals, gap))
        wide, rows = self._per_feature(intervals), self._per_feature(gap)
        state = self.hand.normaliser
        state.count.copy_(_aged(state.count, wide, rows))
        self.hand.forget_rings(rows)
        return rows

    def _fold_interval(self, elapsed: Tensor) -> None:
        """Move ew(dt, 500), each dt capped at ten times the running value after 20: one pause must not hide the next."""
        life = self.hand.life
        weight = (elapsed > 0).to(elapsed.dtype)
        bound = torch.where(life.intervals >= 20, life.interval_s * INTERVAL_CAP, torch.inf)
        rate = torch.reciprocal(life.intervals + 1.0).clamp_min_(1.0 / INTERVAL_WINDOW).mul_(weight)
        life.interval_s.lerp_(torch.minimum(elapsed, bound), rate)
        life.intervals.add_(weight)

    def _observations_per_alarm(self) -> Tensor | float:
        if self.config.interval_s is not None:
            return self.config.alarm_every_s / self.config.interval_s
        return self.config.alarm_every_s / self.hand.life.interval_s.clamp_min(1e-6)

    def _forecasts(self, t: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The forecasts of this observation made 4 and 8 observations ago, and whether there are any."""
        hand, made = self.hand, self._per_feature(self.hand.life.forecasts)
        none = made.new_zeros(()) if hand.pending_4 is None else None
        four = hand.pending_4[t % 4] if hand.pending_4 is not None else made.new_zeros(made.shape)
        eight = hand.pending_8[t % 8] if hand.pending_8 is not None else made.new_zeros(made.shape)
        if none is not None:
            return four, eight, torch.zeros_like(made), torch.zeros_like(made)
        return four, eight, (made >= 4).to(made.dtype), (made >= 8).to(made.dtype)

    def _forecast(self, t: int, due: Due | None) -> None:
        """Step the network; issue the forecasts of t+1, t+4 and t+8."""
        hand, scorer = self.hand, self.scorer
        state = hand.normaliser
        if self.scorer.weights.predictor.scope == "stream":
            together = self.inputs.view(INPUTS, self.streams, -1).permute(2, 0, 1).reshape(-1, self.streams)
            hidden, hand.hidden = recurrent_step(scorer.cells, together.t(), hand.hidden)
            mixture, four, eight = scorer.head(hidden, together)
            hidden = hidden.repeat_interleave(self.features, 0)
        else:
            hidden, hand.hidden = recurrent_step(scorer.cells, self.inputs.t(), hand.hidden)
            mixture, four, eight = scorer.head(hidden, self.inputs)
        hand.mixture.copy_(mixture)
        if hand.fast is not None and due is not None:
            adapted = hand.fast.corrections(hidden, self.inputs)
            hand.fast.store(due, state.mean, self.sigma, four, eight)
            four, eight = four + adapted[0], eight + adapted[1]
        for ring, length, forecast in ((hand.pending_4, 4, four), (hand.pending_8, 8, eight)):
            if ring is not None:
                slot = ring[t % length]
                torch.addcmul(state.mean, self.sigma, forecast, out=slot)
                slot.clamp_(-FORECAST_BOUND, FORECAST_BOUND)
        hand.life.forecasts.add_(1.0).clamp_max_(8.0)

    def _record(
        self, t: int, o: Observed, chain: _Look, found: StreamEvidence, score: Tensor, decision: Decision
    ) -> None:
        """Keep what is emitted; details only of the cells that need them."""
        out = self.out
        nothing = score == 0
        out.score[t] = torch.where(self.scored[t], score, torch.nan)
        out.threshold[t] = decision.threshold
        out.verdict[t] = decision.verdict
        out.signal[t] = found.signal.masked_fill(nothing, NONE)
        out.feature[t] = found.feature.masked_fill(nothing, -1)
        out.event[t] = decision.event
        if self.detail:
            cells = torch.arange(self.streams, device=self.slots.device)
            out.traces.append(self._trace(o, chain, found, decision))
        else:
            cells = (decision.event != NO_EVENT).nonzero().squeeze(1)
        if cells.numel() > 0:
            out.details.append(self._details(t, cells, o, chain, found, decision))

    def _details(
        self, t: int, cells: Tensor, o: Observed, chain: _Look, found: StreamEvidence, decision: Decision
    ) -> Evidence:
        features = self.features
        rows = (cells.unsqueeze(1) * features + torch.arange(features, device=cells.device)).flatten()

        def pick(column: Tensor) -> Tensor:
            return column.index_select(0, rows).view(-1, features)

        mean, sigma, mixture = pick(o.mean), pick(o.sigma), o.mixture.index_select(1, rows)
        raw = torch.where(pick(o.moves.valid), pick(o.sight.x), torch.nan)
        expected = one_step_forecast(mixture, mean.flatten(), sigma.flatten()).view(-1, features)
        low, high = (mean + sigma * torch.sinh(mixture_point(mixture, p)).view(-1, features) for p in BAND)
        nats = found.feature_nats.index_select(0, cells)
        winner = found.feature.index_select(0, cells).long()
        strongest = torch.where(winner >= 0, winner, nats.argmax(1)).unsqueeze(1)

        def of_strongest(column: Tensor, exists: Tensor | None = None) -> Tensor:
            values = pick(column) if exists is None else torch.where(pick(exists) > 0, pick(column), torch.nan)
            return values.gather(1, strongest).squeeze(1)

        gate = of_strongest(chain.single.gate) if chain.single is not None else mean.new_full(cells.shape, torch.nan)
        four, eight = of_strongest(o.forecast_4, o.has_4), of_strongest(o.forecast_8, o.has_8)
        basis = torch.where(torch.isfinite(eight), eight, expected.gather(1, strongest).squeeze(1))
        direction = torch.sign(raw.gather(1, strongest).squeeze(1) - basis).nan_to_num_(0.0)
        has_signal = found.nats.index_select(0, cells) > 0
        return Evidence(
            torch.full_like(cells, t), cells, raw, expected, low, high, nats,
            (direction * has_signal).to(torch.int8), gate, four, eight,
            decision.peak.index_select(0, cells), decision.controller.index_select(0, cells),
            decision.severity.index_select(0, cells).to(torch.uint8),
        )  # fmt: skip

    def _trace(self, o: Observed, chain: _Look, found: StreamEvidence, decision: Decision) -> Trace:
        shape = (self.streams, self.features)
        absent = o.mean.new_full(shape, torch.nan)
        valid, none = o.moves.weight > 0, o.mean.new_full((self.streams,), torch.nan)

        def of(column: Tensor, exists: Tensor = valid) -> Tensor:
            return torch.where(exists > 0, column, torch.nan).view(shape)

        single, jump, apart = chain.single, chain.jump, chain.apart
        has_mixture = o.mixture[6] > 0
        return Trace(
            level=absent if single is None else of(single.level),
            raw_level=absent if single is None else of(single.raw_level),
            record=absent if single is None else of(single.record),
            gate=absent if single is None else of(single.gate),
            activity=absent if single is None else of(single.activity, o.has_4),
            surprise=absent if single is None else of(single.surprise, valid & has_mixture),
            error_4=of(o.sight.x - o.forecast_4, o.has_4),
            expected=of(one_step_forecast(o.mixture, o.mean, o.sigma), has_mixture),
            forecast_4=of(o.forecast_4, o.has_4),
            forecast_8=of(o.forecast_8, o.has_8),
            contribution=found.feature_nats + 0,
            entity=none if jump is None else torch.where(jump.exists > 0, jump.s, torch.nan),
            entity_smooth=none if jump is None else self.hand.chain.smooth_with(jump),
            values=none if apart is None else torch.where(apart[0].exists > 0, apart[0].s, torch.nan),
            residuals=none if apart is None else torch.where(apart[1].exists > 0, apart[1].s, torch.nan),
            controller=decision.controller,
        )

    def close(self) -> StepScores:
        """Write the rows back; hand out the scores."""
        self.hand.put_back(self.steps)
        return self.out.scores(self.imputed, self.features, self.scorer)


def _aged(count: Tensor, intervals: Tensor, gap: Tensor) -> Tensor:
    """n := max(100, n / (1 + G / 500)) after a gap, never more than it was."""
    aged = torch.minimum(count, (count / (1.0 + intervals / AGEING)).clamp_min_(AGED_TO))
    return torch.where(gap, aged, count)


def mixture_point(mixture: Tensor, p: float) -> Tensor:
    """The p point of ``(9, R)`` mixtures of logistics, by bisection within +- 20; 0 where there is no mixture."""
    low, high = mixture.new_full(mixture.shape[1:], -20.0), mixture.new_full(mixture.shape[1:], 20.0)
    for _ in range(40):
        middle = (low + high) * 0.5
        below = mixture_tails(middle, mixture)[0] < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(mixture[6] > 0, (low + high) * 0.5, 0.0)


@dataclass(frozen=True, slots=True)
class _Look:
    """What the profile's kinds of evidence saw of one observation."""

    single: Single | None
    jump: Jump | None
    apart: tuple[Apart, Apart] | None


class _Chain:
    """The kinds of evidence of one profile, behind the verbs of a fold."""

    def __init__(self, hand: _Hand, scorer: Scorer) -> None:
        self.pooled, self.features, self.life = scorer.weights.pooled, scorer.layout.features, hand.life
        self.single = self._single(hand, scorer.config) if scorer.config.evidence == "single" else None
        self.jump = None if self.single is not None else self._jump(hand)
        self.distances: tuple[DistanceChain, DistanceChain] | None = None
        if scorer.config.evidence == "coupled":
            self.distances = self._distance(hand, "values"), self._distance(hand, "residuals")

    def _single(self, hand: _Hand, config: FoldConfig) -> SingleChain:
        level_tail = hand.feature_group("level_tail", RateTail)
        activity_tail = hand.feature_group("activity_tail", QuantileTail)
        level_tail.start_from(self.pooled.level)
        activity_tail.start_from(self.pooled.activity)
        season = hand.feature_group("season_levels", SeasonLevels) if has_season(config) else None
        return SingleChain(
            hand.feature_group("levels", Levels),
            season,
            hand.feature_group("activity", Activity),
            level_tail,
            activity_tail,
            hand.feature_block("quiet_ring"),
            self.pooled,
            config.record_weight_p,
        )

    def _jump(self, hand: _Hand) -> JumpChain:
        tail = hand.entity_group("entity_tail", QuantileTail)
        tail.start_from(self.pooled.entity)
        smooth = hand.entity_block("entity.smooth")[0]
        return JumpChain(hand.feature_group("residual", Residual), smooth, tail, self.pooled)

    def _distance(self, hand: _Hand, kind: str) -> DistanceChain:
        tail = hand.entity_group(f"{kind}_tail", QuantileTail)
        tail.start_from(self.pooled.residuals if kind == "residuals" else self.pooled.values)
        name = f"{kind}_distance"
        state = Distance(
            hand.entity_block(f"{name}.gathered")[0],
            hand.entity_block(f"{name}.mean"),
            hand.entity_block(f"{name}.factor"),
            hand.entity_block(f"{name}.smooth")[0],
        )
        return DistanceChain(state, tail, is_smoothed=kind == "residuals")

    def look(self, o: Observed) -> _Look:
        """Evidence of all kinds."""
        if self.single is not None:
            return _Look(self.single.look(o), None, None)
        assert self.jump is not None
        jump = self.jump.look(o, self.life.count)
        if self.distances is None:
            return _Look(None, jump, None)
        age = self._distance_age()
        apart = [
            chain.look(vectors, present, age, self.pooled)
            for chain, (vectors, present) in zip(self.distances, self._vectors(o), strict=True)
        ]
        return _Look(None, jump, (apart[0], apart[1]))

    def strongest(self, o: Observed, seen: _Look) -> StreamEvidence:
        """The maximum over kinds and features."""
        if self.single is not None and seen.single is not None:
            return self.single.strongest(o, seen.single, self.features)
        assert seen.jump is not None
        kinds = [(JUMP, seen.jump.nats, seen.jump.exists, seen.jump.contributions)]
        if seen.apart is not None:
            kinds += [
                (kind, apart.nats, apart.exists, apart.parts.t())
                for kind, apart in zip((VALUES, RESIDUALS), seen.apart, strict=True)
            ]
        nats = torch.stack([nats * exists for _, nats, exists, _ in kinds])
        best, winner = nats.max(0)
        signal = torch.tensor([kind for kind, *_ in kinds], dtype=torch.uint8, device=best.device)[winner]
        shares = torch.stack([part / part.sum(1, keepdim=True).clamp_min(1e-12) for *_, part in kinds])
        share = shares[winner, torch.arange(best.shape[0], device=best.device)]
        compared = torch.stack([exists for _, _, exists, _ in kinds]).sum(0)
        feature = torch.full(best.shape, -1, dtype=torch.int16, device=best.device)
        return StreamEvidence(best, compared, signal.masked_fill(best <= 0, NONE), feature, share * best.unsqueeze(1))

    def learn(self, o: Observed, seen: _Look, t: int) -> None:
        """Move everything that evidence is made of."""
        if self.single is not None and seen.single is not None:
            self.single.learn(o, seen.single, t % self.single.quiet.shape[0])
            return
        assert self.jump is not None and seen.jump is not None
        self.jump.learn(o, seen.jump, self.life.count)
        if self.distances is not None and seen.apart is not None:
            age = self._distance_age()
            for chain, (vectors, present), apart in zip(self.distances, self._vectors(o), seen.apart, strict=True):
                chain.learn(vectors, present, apart, age)

    def smooth_with(self, seen: Jump) -> Tensor:
        """ew(s, 10) with this observation, before it has been learned."""
        assert self.jump is not None
        rate = (seen.exists / (self.life.count - 19.0).clamp_min(1.0)).clamp_min(0.1) * seen.exists
        return torch.where(seen.exists > 0, torch.lerp(self.jump.smooth, seen.s, rate), torch.nan)

    def _distance_age(self) -> Tensor:
        """Observations behind the tails of T^2, which begin after the first 400; counted like any tail from 20."""
        return (self.life.count - 400.0).clamp_min_(0.0).add_(20.0)

    def _vectors(self, o: Observed) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Values and four-step residuals ``(F, N)`` with what is present of them."""

        def by_stream(column: Tensor) -> Tensor:
            return column.view(-1, self.features).t()

        error_4 = (o.sight.x - o.forecast_4) * o.has_4
        return (
            (by_stream(o.sight.x), by_stream(o.moves.weight)),
            (by_stream(error_4), by_stream(o.has_4)),
        )


class _Hand:
    """The rows of one call: private copies of what moves with every observation, views of the rest."""

    def __init__(self, scorer: Scorer, rows: Rows, slots: Tensor) -> None:
        layout = scorer.layout
        self._layout, self._slots = layout, slots
        self._features = rows.feature.view(-1, layout.feature_width)
        self._entities = rows.entity
        wide = slots.unsqueeze(1) * layout.features + torch.arange(layout.features, device=slots.device)
        self._rows = wide.flatten()
        self._block = self._features[:, : layout.scalar_columns].index_select(0, self._rows).t().contiguous()
        self._entity_block = (
            self._entities[:, : layout.entity_scalar_columns].index_select(0, slots).t().contiguous()
        )
        self.normaliser = self.feature_group("normaliser", Normaliser)
        self.life = self.entity_group("life", AlertLife)
        self.mixture = self.feature_block("mixture")
        self.pending_4 = self.feature_block("pending_4") if layout.has("pending_4") else None
        self.pending_8 = self.feature_block("pending_8") if layout.has("pending_8") else None
        self.hidden = self._hidden_table()[0].index_select(0, self._hidden_table()[1])
        self.fast = self._fast_weights(scorer) if has_fast_weights(scorer.config) else None
        self.seasonal = self._seasonal(scorer.config) if has_season(scorer.config) else None
        self.chain = _Chain(self, scorer)

    def feature_block(self, name: str) -> Tensor:
        """``(width, R)`` view of a slice or group."""
        return self._block[self._layout.columns(name)]

    def feature_group(self, name: str, kind: type[Group]) -> Group:
        """A group's vectors ``(R,)``, as the fields of ``kind``."""
        return kind(*self.feature_block(name).unbind(0))

    def entity_block(self, name: str) -> Tensor:
        """``(width, N)`` view of a slice or group of the entity row."""
        return self._entity_block[self._layout.columns(name)]

    def entity_group(self, name: str, kind: type[Group]) -> Group:
        """A group's vectors ``(N,)``, as the fields of ``kind``."""
        return kind(*self.entity_block(name).unbind(0))

    def forget_rings(self, where: Tensor) -> None:
        """After a gap no earlier S suppresses a new one, and no key has a target."""
        if self._layout.has("quiet_ring"):
            self.feature_block("quiet_ring").masked_fill_(where, 0.0)
        if self.fast is not None:
            self.fast.forget_keys(where)

    def put_back(self, steps: int) -> None:
        """Write everything that moved; rings begin with their oldest entry again."""
        layout = self._layout
        for name, length in (("quiet_ring", 10), ("pending_4", 4), ("pending_8", 8)):
            if layout.has(name) and steps % length:
                ring = self.feature_block(name)
                ring.copy_(ring.roll(-(steps % length), 0))
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
        if steps >= 4:
            table.index_copy_(0, self._rows, weights)
            return
        for index in fast.touched:
            table.index_copy_(0, self._rows.index_select(0, index), weights.index_select(0, index))

    def _hidden_table(self) -> tuple[Tensor, Tensor]:
        columns = self._layout.columns("hidden")
        if self._layout.slices["hidden"].where == "entity":
            return self._entities[:, columns], self._slots
        return self._features[:, columns], self._rows

    def _fast_weights(self, scorer: Scorer) -> FastWeights:
        weights = self._features[:, self._layout.columns("fast_weights")].index_select(0, self._rows)
        keys = self._features[:, self._layout.columns("keys")]
        scalars = Adaptation.of(self.feature_block("adaptation"))
        return FastWeights(scalars, weights.view(weights.shape[0], 2, -1), keys, self._rows, scorer.prior)

    def _seasonal(self, config: FoldConfig) -> Seasonal:
        assert config.interval_s is not None
        start = self._rows * self._layout.feature_width
        return Seasonal(
            self._features.view(-1),
            start + self._layout.columns("season_mean").start,
            start + self._layout.columns("season_count").start,
            slowest_bin_rate(config.interval_s),
        )


class _Output:
    """Room for what a call emits."""

    def __init__(self, steps: int, streams: int, scorer: Scorer) -> None:
        def room(dtype: torch.dtype) -> Tensor:
            return torch.empty(steps, streams, dtype=dtype, device=scorer.device)

        self.score, self.threshold = room(scorer.dtype), room(scorer.dtype)
        self.verdict, self.signal, self.event = room(torch.uint8), room(torch.uint8), room(torch.uint8)
        self.feature = room(torch.int16)
        self.details: list[Evidence] = []
        self.traces: list[Trace] = []

    def scores(self, imputed: Tensor, features: int, scorer: Scorer) -> StepScores:
        """All of it, with details of the cells in the order of time."""
        details = _joined(self.details) if self.details else _no_evidence(features, scorer)
        trace = None
        if self.traces:
            trace = Trace(*(torch.stack([getattr(part, name) for part in self.traces]) for name in Trace.__slots__))
        return StepScores(
            self.score, self.threshold, self.verdict, self.signal, self.feature, imputed, self.event, details, trace
        )


def _joined(parts: list[Evidence]) -> Evidence:
    return Evidence(*(torch.cat([getattr(part, name) for part in parts]) for name in Evidence.__slots__))


def _no_evidence(features: int, scorer: Scorer) -> Evidence:
    cell = torch.empty(0, dtype=torch.int64, device=scorer.device)
    wide = torch.empty(0, features, dtype=scorer.dtype, device=scorer.device)
    flat = torch.empty(0, dtype=scorer.dtype, device=scorer.device)
    return Evidence(
        cell, cell, wide, wide, wide, wide, wide, flat.to(torch.int8), flat, flat, flat, flat, flat, flat.to(torch.uint8)
    )
