"""The fold: observations of many streams into their rows, in the normative order of recipe.md.

This readable form defines the formulas; faster forms are tested against it. Everything is indifferent to how
observations are cut into calls: each recurrence advances once per observation.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from models.chain import Chain, Look, Priors
from models.config import FoldConfig
from models.evidence import (
    DISPLACEMENT,
    NONE,
    SIGNALS,
    STILLNESS,
    Observed,
    StreamEvidence,
    mixture_tails,
    observed,
    one_step_forecast,
)
from models.fast_weights import Due, Preconditioner
from models.features import (
    INPUTS,
    floor_of,
    fold_and_look_ahead,
    fold_normaliser,
    moves_of,
    scale_of,
    sight,
    time_bins,
    write_inputs,
)
from models.hand import Hand
from models.outcome import Evidence, StepScores, Trace
from models.pretrained import Weights
from models.row import RowLayout, Rows, has_fast_weights
from models.tail import NO_EVENT, Decision, decide, score_of

__all__ = ["Evidence", "Scorer", "StepScores", "Trace"]

GAP_INTERVALS = 1.5
AGED_TO = 100.0
AGEING = 500.0
INTERVAL_WINDOW = 500.0
INTERVAL_CAP = 10.0
FORECAST_BOUND = 1e17
BAND = (0.01, 0.99)


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
        self.scorer, self.config = scorer, scorer.config
        self.slots, self.detail = slots, detail
        self.steps, self.streams, self.features = x.shape
        self.hand = Hand(rows, slots, scorer.config, scorer.prior if scorer.is_adaptive else None)
        self.chain = Chain(self.hand, scorer.config, scorer.pooled)
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
        look = self.chain.look(o)

        # (iv) nats with the old tails, decision with the old controller
        found = self.chain.strongest(look)
        score = score_of(found.nats, found.compared).mul_(self.scored[t])
        decision = decide(life, score, self.scored[t], self.elapsed_s[t], self._observations_per_alarm())
        self._record(t, o, look, found, score, decision)

        # (v) maxima, ranges, scales, tails
        self.chain.learn(o, look, t)
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
        """Rows after a gap (bool ``(R,)``) or None; their forecasts, keys and counts are dealt with."""
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
        """Move ew(dt, 500), dt capped at ten times it after 20 updates: one pause must not hide the next."""
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
        none = torch.zeros_like(made)
        four, has_four = none, none
        if hand.pending_4 is not None:
            four, has_four = hand.pending_4[t % 4], (made >= 4).to(made.dtype)
        eight, has_eight = none, none
        if hand.pending_8 is not None:
            eight, has_eight = hand.pending_8[t % 8], (made >= 8).to(made.dtype)
        return four, eight, has_four, has_eight

    def _forecast(self, t: int, due: Due | None) -> None:
        """Step the network; issue the forecasts of t+1, t+4 and t+8."""
        hand, scorer = self.hand, self.scorer
        state = hand.normaliser
        if self.scorer.weights.predictor.scope == "stream":
            together = self.inputs.view(INPUTS, self.streams, -1).permute(2, 0, 1).reshape(-1, self.streams)
            hidden, hand.hidden = scorer.advance(together.t(), hand.hidden)
            mixture, four, eight = scorer.forecast(hidden, together)
            hidden = hidden.repeat_interleave(self.features, 0)
        else:
            hidden, hand.hidden = scorer.advance(self.inputs.t(), hand.hidden)
            mixture, four, eight = scorer.forecast(hidden, self.inputs)
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
        self, t: int, o: Observed, look: Look, found: StreamEvidence, score: Tensor, decision: Decision
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
            out.traces.append(self._trace(o, look, found, decision))
        else:
            cells = (decision.event != NO_EVENT).nonzero().squeeze(1)
        if cells.numel() > 0:
            out.details.append(self._details(t, cells, o, look, found, decision))

    def _details(
        self, t: int, cells: Tensor, o: Observed, look: Look, found: StreamEvidence, decision: Decision
    ) -> Evidence:
        features = self.features
        rows = (cells.unsqueeze(1) * features + torch.arange(features, device=cells.device)).flatten()

        def pick(column: Tensor) -> Tensor:
            return column.index_select(0, rows).view(-1, features)

        mean, sigma, mixture = pick(o.mean), pick(o.sigma), o.mixture.index_select(1, rows)
        raw = torch.where(pick(o.moves.valid), pick(o.sight.x), torch.nan)
        expected = one_step_forecast(mixture, mean.flatten(), sigma.flatten()).view(-1, features)
        self.out.one_step.append((mixture, mean, sigma))
        nats = found.feature_nats.index_select(0, cells)
        winner = found.feature.index_select(0, cells).long()
        strongest = torch.where(winner >= 0, winner, nats.argmax(1)).unsqueeze(1)

        def of_strongest(column: Tensor, exists: Tensor | None = None) -> Tensor:
            values = pick(column) if exists is None else torch.where(pick(exists) > 0, pick(column), torch.nan)
            return values.gather(1, strongest).squeeze(1)

        gate = of_strongest(look.single.gate) if look.single is not None else mean.new_full(cells.shape, torch.nan)
        four, eight = of_strongest(o.forecast_4, o.has_4), of_strongest(o.forecast_8, o.has_8)
        basis = torch.where(torch.isfinite(eight), eight, expected.gather(1, strongest).squeeze(1))
        direction = torch.sign(raw.gather(1, strongest).squeeze(1) - basis).nan_to_num_(0.0)
        if self.chain.single is not None:
            bearing, signal = self.chain.single.bearing, found.signal.index_select(0, cells)
            displaced = of_strongest(bearing.level - bearing.usual_level).sign()
            direction = torch.where(signal == DISPLACEMENT, displaced, direction).masked_fill(signal == STILLNESS, 0.0)
        has_signal = found.nats.index_select(0, cells) > 0
        return Evidence(
            torch.full_like(cells, t), cells, raw, expected, expected, expected, nats,
            (direction * has_signal).to(torch.int8), gate, four, eight,
            decision.peak.index_select(0, cells), decision.controller.index_select(0, cells),
            decision.severity.index_select(0, cells).to(torch.uint8),
        )  # fmt: skip

    def _trace(self, o: Observed, look: Look, found: StreamEvidence, decision: Decision) -> Trace:
        shape = (self.streams, self.features)
        absent = o.mean.new_full(shape, torch.nan)
        valid, none = o.moves.weight > 0, o.mean.new_full((self.streams,), torch.nan)

        def of(column: Tensor, exists: Tensor = valid) -> Tensor:
            return torch.where(exists > 0, column, torch.nan).view(shape)

        def behaviour(kind: int) -> Tensor:
            return absent if single is None else of(single.behaviour[kind], single.has_behaviour[kind])

        single, jump, apart = look.single, look.jump, look.apart
        has_mixture = o.mixture[6] > 0
        return Trace(
            level=absent if single is None else of(single.level),
            raw_level=absent if single is None else of(single.raw_level),
            record=absent if single is None else of(single.record),
            gate=absent if single is None else of(single.gate),
            activity=absent if single is None else of((single.behaviour * single.has_behaviour)[:3].amax(0), o.has_4),
            short_activity=behaviour(0),
            middle_activity=behaviour(1),
            long_activity=behaviour(2),
            displacement=behaviour(3),
            stillness=behaviour(4),
            behaviour_nats=absent if single is None else of(single.behaviour_nats, valid),
            surprise=absent if single is None else of(single.surprise, valid & has_mixture),
            error_4=of(o.sight.x - o.forecast_4, o.has_4),
            expected=of(one_step_forecast(o.mixture, o.mean, o.sigma), has_mixture),
            forecast_4=of(o.forecast_4, o.has_4),
            forecast_8=of(o.forecast_8, o.has_8),
            contribution=found.feature_nats + 0,
            entity=none if jump is None else torch.where(jump.exists > 0, jump.s[0], torch.nan),
            entity_mean=none if jump is None else torch.where(jump.exists > 0, jump.s[1], torch.nan),
            entity_rms=none if jump is None else torch.where(jump.exists > 0, jump.s[2], torch.nan),
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
    """The p point of ``(9, R)`` mixtures of logistics, by bisection to 4e-5; 0 where there is no mixture."""
    low, high = mixture.new_full(mixture.shape[1:], -20.0), mixture.new_full(mixture.shape[1:], 20.0)
    for _ in range(20):
        middle = (low + high) * 0.5
        below = mixture_tails(middle, mixture)[0] < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(mixture[6] > 0, (low + high) * 0.5, 0.0)


class _Output:
    """Room for what a call emits."""

    def __init__(self, steps: int, streams: int, scorer: Scorer) -> None:
        def room(dtype: torch.dtype) -> Tensor:
            return torch.empty(steps, streams, dtype=dtype, device=scorer.device)

        self.score, self.threshold = room(scorer.dtype), room(scorer.dtype)
        self.verdict, self.signal, self.event = room(torch.uint8), room(torch.uint8), room(torch.uint8)
        self.feature = room(torch.int16)
        self.details: list[Evidence] = []
        self.one_step: list[tuple[Tensor, Tensor, Tensor]] = []
        self.traces: list[Trace] = []

    def scores(self, imputed: Tensor, features: int, scorer: Scorer) -> StepScores:
        """All of it, with details of the cells in the order of time."""
        details = _no_evidence(features, scorer)
        if self.details:
            low, high = self._bands()
            details = replace(_joined(self.details), band_low=low, band_high=high)
        trace = None
        if self.traces:
            trace = Trace(*(torch.stack([getattr(part, name) for part in self.traces]) for name in Trace.__slots__))
        return StepScores(
            self.score, self.threshold, self.verdict, self.signal, self.feature, imputed, self.event, details, trace
        )

    def _bands(self) -> tuple[Tensor, Tensor]:
        """Raw 1 and 99 % points ``(E, F)`` of the one-step mixtures of all kept cells, found at once."""
        mixture = torch.cat([part[0] for part in self.one_step], 1)
        mean, sigma = (torch.cat([part[i] for part in self.one_step]) for i in (1, 2))
        low, high = (mean + sigma * torch.sinh(mixture_point(mixture, p)).view_as(mean) for p in BAND)
        return low, high


def _joined(parts: list[Evidence]) -> Evidence:
    return Evidence(*(torch.cat([getattr(part, name) for part in parts]) for name in Evidence.__slots__))


def _no_evidence(features: int, scorer: Scorer) -> Evidence:
    cell = torch.empty(0, dtype=torch.int64, device=scorer.device)
    wide = torch.empty(0, features, dtype=scorer.dtype, device=scorer.device)
    flat = torch.empty(0, dtype=scorer.dtype, device=scorer.device)
    return Evidence(
        cell,
        cell,
        wide,
        wide,
        wide,
        wide,
        wide,
        flat.to(torch.int8),
        flat,
        flat,
        flat,
        flat,
        flat,
        flat.to(torch.uint8),
    )
