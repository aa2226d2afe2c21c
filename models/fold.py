"""One call's fold: the rows in hand, and every observation in the order of docs/score.md.

This readable form defines the formulas; faster forms are tested against it. Everything is indifferent to how
observations are cut into calls: each recurrence advances once per observation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.config import GAP_INTERVALS
from models.evidence.chain import Chain, Look
from models.evidence.coupled import OF_MEANS, Apart
from models.evidence.observed import (
    DISPLACEMENT,
    MEANS,
    Observed,
    StreamEvidence,
    observed,
    one_step_forecast,
)
from models.fast_weights import Due
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
from models.outcome import EVIDENCE, GROUNDS, TOLD, StepScores, Wanted, step_scores, wants_evidence
from models.row import Rows
from models.tail import NO_EVENT, Decision, decide, score_of

if TYPE_CHECKING:
    from models.step import Scorer

AGED_TO = 100.0
AGEING = 500.0
INTERVAL_WINDOW, PAUSE_WINDOW, PLAIN_INTERVALS = 500.0, 5000.0, 100.0
FORECAST_BOUND = 1e17
# The observation itself in an entity's unrest: it sinks the tail that a memory of ten drags behind an event.
PRESENT_SHARE, PRESENT_FLOOR = 0.1, 0.05


class Fold:
    """The rows of one call, and the observation that is being folded.

    Parameters
    ----------
    scorer, rows, slots
        The version, the table, and which of its rows ``(N,)``.
    detail
        What is kept of every cell.
    is_dense
        No operation depends on what the numbers are, so that a GPU can record them once: every row takes part in
        everything, masked where it has no part, and :attr:`grounds` holds all cells. Factors of coupled evidence
        are found between two observations, by :meth:`models.evidence.coupled.DistanceChain.freeze`.

    Attributes
    ----------
    told
        ``(S, 11, N)``: what is said of every cell, in the order of :data:`models.outcome.TOLD`.
    grounds
        ``(S, 18, R)``, dense only: what the evidence of a cell is made of, in the order of
        :data:`models.outcome.GROUNDS`.
    """

    def __init__(
        self, scorer: Scorer, rows: Rows, slots: Tensor, detail: Wanted = False, is_dense: bool = False
    ) -> None:
        self.scorer, self.config = scorer, scorer.config
        self.detail, self.is_dense = detail, is_dense
        self.streams, self.features = slots.numel(), len(scorer.config.features)
        self.hand = Hand(rows, slots, scorer.config, scorer.prior if scorer.is_adaptive else None, is_dense)
        self.chain = Chain(self.hand, scorer.config, scorer.pooled, is_dense)
        state = self.hand.normaliser
        self.floor = floor_of(state.mean)
        self.sigma = scale_of(state, self.floor)
        self.inputs = state.mean.new_empty(INPUTS, self.streams * self.features)
        self._cells: list[tuple[Tensor, Tensor]] = []
        self._found: list[Tensor] = []
        self._traces: list[dict[str, Tensor]] = []

    def see(self, x: Tensor, times_ms: Tensor, last_ms: Tensor) -> None:
        """What comes: values ``(S, N, F)``, their times ``(S, N)``, and each stream's time before them ``(N,)``."""
        scorer, steps = self.scorer, x.shape[0]
        raw = x.to(self.floor.dtype).reshape(steps, -1)
        self.raw, self.valid = raw, torch.isfinite(raw)
        share = self.valid.view(steps, self.streams, -1).to(raw.dtype).mean(2)
        self.scored, self.imputed = share > 0, 1.0 - share
        before = torch.cat((last_ms.unsqueeze(0), times_ms[:-1]))
        has_past = before >= 0
        self.elapsed_s = torch.where(has_past, times_ms - before, 0).to(raw.dtype) / 1000.0
        self.bins = None if scorer.interval_ms is None else time_bins(times_ms, scorer.interval_ms)
        self.gaps = None if self.is_dense else self._fixed_gaps()
        self.told = raw.new_empty(steps, len(TOLD), self.streams)
        self.grounds = raw.new_empty(steps if self.is_dense else 0, GROUNDS, raw.shape[1])

    def _fixed_gaps(self) -> list[bool] | None:
        """Which observations follow a gap in some stream, where the profile says what a gap is (one device sync)."""
        if self.config.interval_s is None:
            return None
        gaps: list[bool] = (self.elapsed_s > GAP_INTERVALS * self.config.interval_s).any(1).tolist()
        return gaps

    def advance(self, t: int) -> None:
        """One observation of every stream, step by step in the order that docs/score.md gives."""
        hand, valid = self.hand, self.valid[t]
        state, life = hand.normaliser, hand.life

        # (i) a gap makes forecasts and keys invalid and ages the statistics
        gap = self._gap(t)

        # (ii) x, or what stands in for it
        bins = None if self.bins is None or hand.seasonal is None else self._per_feature(self.bins[:, :, t])
        moves = moves_of(valid, state.count)
        seen = sight(self.raw[t], valid, state, hand.seasonal, bins)
        if gap is not None:
            seen.dx.masked_fill_(gap, 0.0)

        # (iii) evidence from statistics before x
        o = observed(
            seen,
            moves,
            (state.mean, self.sigma, self.floor, state.last),
            state.count.clone(),
            hand.mixture,
            self._forecasts(t),
        )
        look = self.chain.look(o)

        # (iv) nats with the old tails, decision with the old controller
        found = self.chain.strongest(look)
        score = score_of(found.nats, found.compared).mul_(self.scored[t])
        decision = decide(life, score, self.scored[t], self.elapsed_s[t], self._observations_per_alarm())
        self._tell(t, o, look, found, score, decision)

        # (v) maxima, ranges, scales, tails
        self.chain.learn(o, look, t)
        life.count.add_(self.scored[t])

        # (vi) fast weights, from the keys of t-4 and t-8
        due = None if hand.fast is None else hand.fast.learn(seen.x, valid)

        # (vii) normaliser, then memory of the time
        fold_normaliser(state, seen.x, seen.dx, o.deviation, moves)
        self.floor = floor_of(state.mean)
        self.sigma = scale_of(state, self.floor)
        ahead = fold_and_look_ahead(hand.seasonal, bins, seen.x, self.sigma, moves.weight)

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
        if self.gaps is not None and not self.gaps[t]:
            return None
        if self.config.interval_s is not None:
            intervals = elapsed / self.config.interval_s
            gap = intervals > GAP_INTERVALS
        else:  # measured by the longest pause of late: events come in bursts, what lies between two of them is no gap
            known = life.intervals > 0
            intervals = torch.where(known, elapsed / life.interval_s.clamp_min(1e-6), 0.0)
            gap = known & (elapsed > GAP_INTERVALS * life.pause_s)
            self._fold_interval(elapsed)
        life.forecasts.masked_fill_(gap, 0.0)
        life.count.copy_(_aged(life.count, intervals, gap))
        wide, rows = self._per_feature(intervals), self._per_feature(gap)
        state = self.hand.normaliser
        state.count.copy_(_aged(state.count, wide, rows))
        self.hand.forget_rings(rows)
        return rows

    def _fold_interval(self, elapsed: Tensor) -> None:
        """Move ew(dt, 500) and the longest dt of late; after a hundred, a dt counts as four times that at most."""
        life = self.hand.life
        weight = (elapsed > 0).to(elapsed.dtype)
        counted = torch.minimum(elapsed, torch.where(life.intervals >= PLAIN_INTERVALS, life.pause_s * 4.0, torch.inf))
        rate = torch.reciprocal(life.intervals + 1.0).clamp_min_(1.0 / INTERVAL_WINDOW).mul_(weight)
        life.interval_s.lerp_(counted, rate)
        torch.maximum(life.pause_s * (1.0 - weight * (1.0 / PAUSE_WINDOW)), counted, out=life.pause_s)
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

    def _tell(self, t: int, o: Observed, look: Look, found: StreamEvidence, score: Tensor, decision: Decision) -> None:
        """Keep what is emitted, and what evidence is made of: of the cells that need it, or, dense, of all."""
        told = (
            score,
            decision.threshold,
            decision.verdict,
            found.signal,
            found.feature,
            decision.event,
            self.imputed[t],
            found.nats,
            decision.peak,
            decision.controller,
            decision.severity,
        )
        torch.stack(told, out=self.told[t])
        if self.is_dense:
            self.grounds[t].copy_(self._grounds(o, look, found))
            return
        if self.detail:
            self._traces.append(self._trace(o, look, found, decision))
        if wants_evidence(self.detail):
            cells = torch.arange(self.streams, device=score.device)
            self._cells.append((torch.full_like(cells, t), cells))
            self._found.append(self._grounds(o, look, found))
            return
        cells = (decision.event != NO_EVENT).nonzero().squeeze(1)
        if cells.numel() > 0:
            features = torch.arange(self.features, device=cells.device)
            rows = (cells.unsqueeze(1) * self.features + features).flatten()
            self._cells.append((torch.full_like(cells, t), cells))
            self._found.append(self._grounds(o, look, found).index_select(1, rows))

    def _grounds(self, o: Observed, look: Look, found: StreamEvidence) -> Tensor:
        """``(18, R)``: what evidence is made of; NaN where it does not exist."""
        nowhere = torch.full_like(o.mean, torch.nan)
        gate, displaced, usual = nowhere, nowhere, nowhere
        if look.single is not None and self.chain.single is not None:
            gate, bearing = look.single.gate, self.chain.single.bearing
            usual, displaced = bearing.usual_level, bearing.level - bearing.usual_level
        elif look.jump is not None and self.chain.jump is not None:
            usual, displaced = self.chain.jump.residual.slow_mean, look.jump.deviation
        if look.apart is not None:
            usual, displaced = self._beside_others(o, look.apart, found.signal, usual, displaced)
        numbers = (
            torch.where(o.moves.valid, o.sight.x, nowhere),
            o.mean,
            o.sigma,
            found.feature_nats.flatten(),
            gate,
            torch.where(o.has_4 > 0, o.forecast_4, nowhere),
            torch.where(o.has_8 > 0, o.forecast_8, nowhere),
            displaced,
            usual,
        )
        return torch.cat((torch.stack(numbers), o.mixture))

    def _beside_others(
        self, o: Observed, apart: Apart, signal: Tensor, usual: Tensor, displaced: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Usual level and distance from it ``(R,)``: those of a displacement, else what the other features ask for."""
        kind, stream = torch.where(signal == MEANS, OF_MEANS, 0), torch.arange(self.streams, device=signal.device)
        counts = (apart.exists[kind, stream] > 0) & (signal != DISPLACEMENT)
        is_shown, astray = counts.repeat_interleave(self.features), apart.astray[kind, :, stream].flatten()
        asked_for = torch.where(o.moves.valid, o.sight.x - astray, torch.nan)
        return torch.where(is_shown, asked_for, usual), torch.where(is_shown, astray, displaced)

    def _trace(self, o: Observed, look: Look, found: StreamEvidence, decision: Decision) -> dict[str, Tensor]:
        """What is wanted of the trace, by its name."""
        shape = (self.streams, self.features)
        absent = o.mean.new_full(shape, torch.nan)
        valid, none = o.moves.weight > 0, o.mean.new_full((self.streams,), torch.nan)

        def of(column: Tensor, exists: Tensor = valid) -> Tensor:
            return torch.where(exists > 0, column, torch.nan).view(shape)

        def behaviour(kind: int) -> Tensor:
            return absent if single is None else of(single.behaviour[kind], single.has_behaviour[kind])

        def of_entity(kind: int) -> Tensor:
            return none if jump is None else torch.where(jump.exists > 0, jump.s[kind], torch.nan)

        def of_distance(kind: int) -> Tensor:
            return none if apart is None else torch.where(apart.exists[kind] > 0, apart.s[kind], torch.nan)

        single, jump, apart = look.single, look.jump, look.apart
        has_mixture = o.mixture[6] > 0
        traced: dict[str, Callable[[], Tensor]] = {
            "level": lambda: absent if single is None else of(single.level),
            "raw_level": lambda: absent if single is None else of(single.raw_level),
            "record": lambda: absent if single is None else of(single.record),
            "gate": lambda: absent if single is None else of(single.gate),
            "activity": lambda: (
                absent if single is None else of((single.behaviour * single.has_behaviour)[:3].amax(0), o.has_4)
            ),
            "short_activity": lambda: behaviour(0),
            "middle_activity": lambda: behaviour(1),
            "long_activity": lambda: behaviour(2),
            "displacement": lambda: behaviour(3),
            "stillness": lambda: behaviour(4),
            "behaviour_nats": lambda: absent if single is None else of(single.behaviour_nats, valid),
            "surprise": lambda: absent if single is None else of(single.surprise, valid & has_mixture),
            "error_4": lambda: of(o.sight.x - o.forecast_4, o.has_4),
            "expected": lambda: of(one_step_forecast(o.mixture, o.mean, o.sigma), has_mixture),
            "forecast_4": lambda: of(o.forecast_4, o.has_4),
            "forecast_8": lambda: of(o.forecast_8, o.has_8),
            "contribution": lambda: found.feature_nats + 0,
            "entity": lambda: of_entity(0),
            "entity_mean": lambda: of_entity(1),
            "entity_rms": lambda: of_entity(2),
            "entity_displacement": lambda: of_entity(3),
            "entity_unrest": lambda: (
                torch.hypot(of_entity(2), 2.0 * of_entity(3)) * (of_entity(0) + PRESENT_FLOOR) ** PRESENT_SHARE
            ),
            "values": lambda: of_distance(0),
            "residuals": lambda: of_distance(1),
            "means": lambda: of_distance(2),
            "controller": lambda: decision.controller,
        }
        wanted = traced if isinstance(self.detail, bool) else self.detail - {EVIDENCE}
        return {name: traced[name]() for name in wanted}

    def close(self) -> StepScores:
        """Write the rows back; hand out the scores."""
        steps = self.told.shape[0]
        self.hand.turn_rings(steps)
        self.hand.put_back(steps)
        cells, found = (torch.empty(2, 0, dtype=torch.int64), self.floor.new_empty(GROUNDS, 0))
        if self._cells:
            cells = torch.stack([torch.cat(part) for part in zip(*self._cells, strict=True)])
            found = torch.cat(self._found, 1)
        traced = self._traces[0] if self._traces else ()
        trace = {name: torch.stack([part[name] for part in self._traces]) for name in traced}
        return step_scores(self.told.cpu(), cells.cpu(), found.cpu(), self.features, trace)


def _aged(count: Tensor, intervals: Tensor, gap: Tensor) -> Tensor:
    """n := max(100, n / (1 + G / 500)) after a gap, never more than it was."""
    aged = torch.minimum(count, (count / (1.0 + intervals / AGEING)).clamp_min_(AGED_TO))
    return torch.where(gap, aged, count)
