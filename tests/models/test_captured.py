"""The fold that a GPU records is the fold: on a CPU its operations run as they are called, and say the same."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from models.captured import MOST_CELLS, CapturedFold, roomy
from models.config import FoldConfig, PredictorConfig
from models.evidence.observed import SIGNALS
from models.outcome import StepScores
from models.pretrained import Weights
from models.row import Rows
from models.step import Scorer

pytestmark = pytest.mark.slow

START_MS, MINUTE_MS = 1_700_000_000_000, 60_000
STREAMS, STEPS, FEATURES = 5, 260, 2
COUPLED_STEPS = 700  # of which some 450 until all references are complete

KINDS: dict[str, tuple[FoldConfig, PredictorConfig]] = {
    "single": (FoldConfig(("a", "b"), 60.0, alarm_every_s=20_000.0), PredictorConfig(hidden=6)),
    "light": (FoldConfig(("a", "b"), 60.0, alarm_every_s=20_000.0, light=True), PredictorConfig(hidden=6)),
    "no interval": (FoldConfig(("a", "b"), None, alarm_every_s=20_000.0), PredictorConfig(hidden=6)),
    "jump": (FoldConfig(("a", "b"), 60.0, "jump", alarm_every_s=20_000.0), PredictorConfig("lstm", hidden=6, layers=2)),
    "coupled": (FoldConfig(("a", "b"), 60.0, "coupled", alarm_every_s=20_000.0), PredictorConfig(hidden=6)),
    "stream": (
        FoldConfig(("a", "b"), 60.0, alarm_every_s=20_000.0),
        PredictorConfig("gru", hidden=6, scope="stream", features=FEATURES),
    ),
}


def scorer_of(kind: str) -> Scorer:
    config, predictor = KINDS[kind]
    return Scorer(Weights.random(predictor, seed=1), config)


def series(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with faults, missing values, and in some streams a gap: values ``(S, N, F)`` and times ``(S, N)``."""
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(steps, STREAMS, FEATURES, generator=draw)
    x[150:, 1] += 8.0
    x[600:, 4] += 8.0
    x[180:190, 3] *= 30.0
    x[torch.rand(x.shape, generator=draw) < 0.05] = torch.nan
    x[120] = torch.nan
    times_ms = START_MS + MINUTE_MS * torch.arange(steps).unsqueeze(1).repeat(1, STREAMS)
    times_ms[200:, 2] += 40 * MINUTE_MS
    return x, times_ms


def play(fold: CapturedFold | Scorer, rows: Rows, slots: torch.Tensor, cuts: tuple[int, ...]) -> list[StepScores]:
    x, times_ms = series(sum(cuts))
    last_ms, at, parts = torch.full((STREAMS,), -1), 0, []
    for cut in cuts:
        parts.append(fold.score(rows, slots, x[at : at + cut], times_ms[at : at + cut], last_ms))
        at += cut
        last_ms = times_ms[at - 1]
    return parts


@pytest.mark.parametrize("kind", KINDS)
def test_a_captured_fold_is_the_fold(kind: str) -> None:
    """Scores, decisions, evidence and rows; only sums over all rows and over those that are due may round apart."""
    scorer, cuts = scorer_of(kind), (1, 3, 64, 100, COUPLED_STEPS - 168 if kind == "coupled" else 92)
    slots = torch.tensor([7, 2, 9, 0, 4])
    ours, theirs = scorer.rows(12), scorer.rows(12)
    with torch.inference_mode():
        captured = play(CapturedFold(scorer, roomy(STREAMS)), ours, slots, cuts)
        eager = play(scorer, theirs, slots, cuts)
    assert sum(int((part.event > 0).sum()) for part in eager) > 0
    for one, other in zip(captured, eager, strict=True):
        for field in dataclasses.fields(StepScores):
            if field.name not in ("details", "trace"):
                mine, other_of = getattr(one, field.name), getattr(other, field.name)
                torch.testing.assert_close(mine, other_of, atol=1e-3, rtol=0, equal_nan=True, msg=field.name)
        for field in dataclasses.fields(one.details):
            mine, other_of = getattr(one.details, field.name), getattr(other.details, field.name)
            torch.testing.assert_close(mine, other_of, atol=1e-3, rtol=1e-3, equal_nan=True, msg=field.name)
    torch.testing.assert_close(ours.feature, theirs.feature, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(ours.entity, theirs.entity, atol=1e-3, rtol=1e-3)
    if kind == "coupled":
        seen = torch.cat([part.signal for part in eager]) >= SIGNALS.index("values")
        assert int(seen.sum()) > STREAMS


@pytest.mark.parametrize(("kind", "steps"), [("single", STEPS), ("coupled", COUPLED_STEPS)])
def test_what_lies_in_unused_places_changes_nothing(kind: str, steps: int) -> None:
    """A fold is recorded for more streams than call it, and keeps what the last ones left."""
    scorer, slots = scorer_of(kind), torch.arange(STREAMS)
    fold = CapturedFold(scorer, 24)
    with torch.inference_mode():
        crowd = scorer.rows(24)
        x, times_ms = 1e6 * torch.randn(90, 24, FEATURES), START_MS + MINUTE_MS * torch.arange(90).unsqueeze(1)
        fresh_rows, used_rows = scorer.rows(STREAMS), scorer.rows(STREAMS)
        fresh = play(fold, fresh_rows, slots, (steps,))
        fold.score(crowd, torch.arange(24), x, times_ms.repeat(1, 24), torch.full((24,), -1))
        used = play(fold, used_rows, slots, (steps,))
    assert torch.equal(fresh[0].score.nan_to_num(-1.0), used[0].score.nan_to_num(-1.0))
    assert torch.equal(fresh_rows.feature, used_rows.feature)
    assert torch.equal(fresh_rows.entity, used_rows.entity)


def test_long_calls_are_looked_at_in_parts() -> None:
    """What waits for the look is bounded; parts of a call say where in the call they are."""
    scorer = scorer_of("single")
    fold, rows = CapturedFold(scorer, MOST_CELLS // 7), scorer.rows(STREAMS)
    with torch.inference_mode():
        found = play(fold, rows, torch.arange(STREAMS), (STEPS,))[0]
    events = found.event.nonzero()
    assert len(events)
    assert torch.equal(torch.stack((found.details.s, found.details.n), 1), events)


@pytest.mark.parametrize("streams", [1, 16, 17, 24, 25, 33, 100, 5000, 8192, 8193])
def test_room_is_at_least_what_is_asked_and_at_most_half_more(streams: int) -> None:
    """Every size of a recording is memory kept for good, and what a call leaves of it is computed for nothing."""
    assert streams <= roomy(streams) <= max(16, streams * 3 / 2)
