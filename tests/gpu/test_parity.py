"""The same decisions on a GPU as on a CPU (invariant 2). Run with ``make gpu`` on a machine that has one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.config import Evidence, FoldConfig
from models.pretrained import builtin
from models.step import Scorer, StepScores
from pipeline.engine import Engine, Share
from pipeline.records import CONTROL_NONE, Partition, Windows
from tests.builders import INTERVAL_MS, START_MS, make_profile, make_series

pytestmark = pytest.mark.gpu

STREAMS, STEPS = 32, 400


def _scores(device: str, evidence: Evidence, features: int) -> StepScores:
    scorer = Scorer(builtin("gru"), FoldConfig(tuple("abcdefgh"[:features]), 60.0, evidence), device)
    values = np.stack([make_series(n, STEPS) for n in range(STREAMS * features)], 1)
    x = torch.from_numpy(values.reshape(STEPS, STREAMS, features)).to(device)
    times = (START_MS + INTERVAL_MS * torch.arange(STEPS)[:, None]).repeat(1, STREAMS).to(device)
    return scorer.score(
        scorer.rows(STREAMS), torch.arange(STREAMS, device=device), x, times, torch.full((STREAMS,), -1, device=device)
    )


@pytest.mark.parametrize(("evidence", "features"), [("single", 1), ("single", 8), ("jump", 8), ("coupled", 4)])
def test_scores_and_events_on_a_gpu_equal_those_on_a_cpu(evidence: Evidence, features: int) -> None:
    """Scores within 1e-3 (float32, other summation orders), events identical.

    Scores have three decimals: two neighbours may lie 1.0002e-3 apart in float32.
    """
    ours, theirs = _scores("cuda", evidence, features), _scores("cpu", evidence, features)
    torch.testing.assert_close(ours.score, theirs.score, atol=1.1e-3, rtol=0, equal_nan=True)
    assert torch.equal(ours.event, theirs.event)


def test_engine_on_a_gpu_gives_the_alerts_of_a_cpu() -> None:
    """Slots, copies and padding on the device change nothing."""
    profile, partition = make_profile(), Partition("input", 0)
    outputs = []
    for device in ("cpu", "cuda"):
        engine = Engine("p", profile, lambda version, d=device: Scorer(builtin("gru"), profile.fold(), d), 64, device)
        table = engine.table("a" * 12)
        engine.bring_to(partition, "a" * 12)
        table.begin_batch()
        ids = [f"s{n}" for n in range(5)]
        assert table.make_room(len(ids))
        table.admit_fresh(partition, ids, 0)
        series = [make_series(n, STEPS) for n in range(5)]
        windows = Windows(
            ids,
            np.arange(5),
            np.full(5, START_MS),
            np.full(5, STEPS),
            np.zeros(5, dtype=bool),
            np.full(5, CONTROL_NONE, dtype=np.uint8),
            np.tile(START_MS + INTERVAL_MS * np.arange(STEPS), 5),
            np.concatenate(series),
        )
        absorbed = engine.absorb(table, [Share(partition, windows, 0)], 0.0)
        outputs.append([(alert.alert_id, alert.event, alert.time_ms) for alert in absorbed.alerts])
    assert outputs[0] == outputs[1]
    assert outputs[0]
