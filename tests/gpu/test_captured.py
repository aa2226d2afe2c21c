"""Recorded launches say what eager ones say (invariant 2). Run with ``make gpu`` on a machine that has one."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from models.config import Evidence, FoldConfig, PredictorConfig
from models.evidence.observed import SIGNALS
from models.outcome import StepScores
from models.pretrained import Weights
from models.step import Scorer

pytestmark = pytest.mark.gpu

STREAMS, START_MS, MINUTE_MS = 40, 1_700_000_000_000, 60_000


def _played(scorer: Scorer, capacity: int, first: int) -> tuple[StepScores, list[StepScores], torch.Tensor]:
    """Noise with faults, gaps and missing values: one long call in a small table, then short ones in a grown one."""
    draw = torch.Generator().manual_seed(3)
    features, steps = scorer.layout.features, first + 100
    x = torch.randn(steps, STREAMS, features, generator=draw)
    x[first - 20 : first, ::3] *= 20.0
    x[torch.rand(x.shape, generator=draw) < 0.05] = torch.nan
    times_ms = START_MS + MINUTE_MS * torch.arange(steps).unsqueeze(1).repeat(1, STREAMS)
    times_ms[first + 20 :, ::4] += 50 * MINUTE_MS
    rows, slots = scorer.rows(capacity), torch.randperm(STREAMS, generator=draw)
    long = scorer.score(rows, slots, x[:first], times_ms[:first], torch.full((STREAMS,), -1))
    with torch.inference_mode():
        rows = rows.grown(2 * capacity)
    short = [
        scorer.score(rows, slots, x[at : at + 1], times_ms[at : at + 1], times_ms[at - 1]) for at in range(first, steps)
    ]
    return long, short, rows.read(slots)


@pytest.mark.parametrize(
    ("evidence", "light", "predictor"),
    [
        *(("single", False, PredictorConfig(cell, hidden=8)) for cell in ("rnn", "gru", "lstm", "tdnn", "conv")),
        *(("single", False, PredictorConfig(cell, hidden=8)) for cell in ("seq2seq", "hmm", "ar")),
        ("single", False, PredictorConfig("naive", hidden=1)),
        ("single", False, PredictorConfig("gru", hidden=8, scope="stream", features=3)),
        ("single", True, PredictorConfig(hidden=8)),
        ("jump", False, PredictorConfig(hidden=8)),
        ("coupled", False, PredictorConfig(hidden=8)),
    ],
    ids=lambda value: value.cell + value.scope if isinstance(value, PredictorConfig) else str(value),
)
def test_captured_equals_eager(evidence: Evidence, light: bool, predictor: PredictorConfig) -> None:
    """Every family and every kind of evidence, scores within 1e-3 and events identical."""
    config = FoldConfig(("a", "b", "c"), 60.0, evidence, alarm_every_s=20_000.0, light=light)
    scorers = [Scorer(Weights.random(predictor, 1), config, "cuda") for _ in range(2)]
    assert scorers[0].is_captured
    scorers[1].is_captured = False
    first = 550 if evidence == "coupled" else 200  # until all references are complete
    (long, short, rows), (eager_long, eager_short, eager_rows) = (_played(scorer, STREAMS, first) for scorer in scorers)
    assert int((eager_long.event > 0).sum()) > 0
    if evidence == "coupled":
        assert int((eager_long.signal >= SIGNALS.index("values")).sum()) > STREAMS
    for ours, theirs in zip((long, *short), (eager_long, *eager_short), strict=True):
        torch.testing.assert_close(ours.score, theirs.score, atol=1.1e-3, rtol=0, equal_nan=True)
        assert torch.equal(ours.event, theirs.event)
        for field in dataclasses.fields(ours.details):
            mine, other = getattr(ours.details, field.name), getattr(theirs.details, field.name)
            torch.testing.assert_close(mine, other, atol=2e-3, rtol=2e-3, equal_nan=True, msg=field.name)
    torch.testing.assert_close(rows, eager_rows, atol=2e-3, rtol=2e-3)
