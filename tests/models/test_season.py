"""Memory of times: what a stream expects at a time of day, and at a time of the week."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.config import FoldConfig, PredictorConfig
from models.features import WindowInputs, window_inputs
from models.learner import Background, lessons_of
from models.pretrained import Weights
from models.step import Scorer

MONDAY_MS = 1_704_067_200_000
HOUR_S, DAY, WEEK = 3600.0, 24, 168
NEXT = 3
"""Which input says what is expected of the next observation, in asinh of running standard deviations."""


def working_hours(weeks: int, seed: int = 0, works: bool = True) -> tuple[Tensor, Tensor]:
    """Hourly values ``(T, 1)`` and their times: higher from 8 to 18 h, on five days of seven if there is a week."""
    t = np.arange(weeks * WEEK)
    busy = (t % DAY >= 8) & (t % DAY < 18) & ((t // DAY % 7 < 5) | (not works))
    x = 10.0 + 8.0 * busy + 0.4 * np.random.default_rng(seed).standard_normal(len(t))
    return torch.tensor(x[:, None], dtype=torch.float32), torch.tensor(MONDAY_MS + 3_600_000 * t)


def expected_next(seen: WindowInputs) -> Tensor:
    """``(T,)``: what was expected of the next observation, in raw units."""
    return seen.mean[:, 0] + seen.sigma[:, 0] * torch.sinh(seen.inputs[:, 0, NEXT])


def test_a_saturday_is_expected_to_be_quiet_from_the_third_on():
    """By the time of day alone, five of seven noons are busy, and every Saturday is a surprise."""
    x, times = working_hours(weeks=4)
    day, week = (expected_next(window_inputs(x, times, HOUR_S, has_week=known)) for known in (False, True))
    for saturday in (2 * WEEK + 5 * DAY, 3 * WEEK + 5 * DAY):
        noon = slice(saturday + 10, saturday + 16)
        assert float(day[noon].min()) > 14.0
        assert float(week[noon].max()) < 13.0


def test_a_stream_without_a_week_is_expected_as_if_there_were_none():
    """What a week of noise looked like says nothing of the next: the time of day alone counts."""
    x, times = working_hours(weeks=6, works=False)
    without, known = (window_inputs(x, times, HOUR_S, has_week=known).inputs for known in (False, True))
    assert torch.equal(without, known)


def test_one_wild_value_moves_what_is_expected_a_week_later_by_five_deviations_at_most():
    """Half of ten: never much is learned from a single surprise."""
    x, times = working_hours(weeks=4)
    wild = x.clone()
    wild[2 * WEEK + 2 * DAY + 12] = 1e6
    calm, shaken = (window_inputs(values, times, HOUR_S, has_week=True) for values in (x, wild))
    later = 3 * WEEK + 2 * DAY + 12
    assert abs(float(expected_next(shaken)[later] - expected_next(calm)[later])) < 5.0 * float(shaken.sigma[later, 0])


def test_a_learner_remembers_the_week_as_serving_rows_do():
    """A predictor that learns from other inputs than it serves with learns the wrong thing."""
    made = [working_hours(weeks=3, seed=seed) for seed in (0, 1)]
    x, times = torch.cat([values for values, _ in made], 1), made[0][1].unsqueeze(1).expand(-1, 2)
    whole, parts = window_inputs(x, times, HOUR_S, has_week=True), []
    backgrounds = [Background(1, True), Background(1, True)]
    for at in range(0, len(x), DAY):
        piece = slice(at, at + DAY)
        values, taken = x[piece].t().unsqueeze(2).numpy(), times[piece].t().numpy()
        parts.append(lessons_of(backgrounds, values, taken, [False, False], HOUR_S, True))
    torch.testing.assert_close(torch.cat([part.inputs for part in parts]), whole.inputs)

    scorer = Scorer(Weights.random(PredictorConfig(hidden=4), seed=1), FoldConfig(("v",), HOUR_S))
    rows, columns = scorer.rows(2), scorer.layout.columns
    scorer.score(rows, torch.arange(2), x.unsqueeze(2), times, torch.full((2,), -1))
    for number, background in enumerate(backgrounds):
        row = rows.feature[number, 0]
        assert background.errors is not None
        torch.testing.assert_close(row[columns("season_errors")], background.errors[:, 0])
        remembered = row[columns("season_mean").start : columns("season_week").stop]
        torch.testing.assert_close(remembered, background.season[0])
        assert float(remembered[-84:].abs().max()) > 1.0


def test_only_rows_of_features_watched_by_themselves_remember_the_week():
    """Rows of entities are many and narrow, and ask one step ahead, where the last value says as much."""
    predictor = PredictorConfig(hidden=4)
    for evidence, remembers in (("single", True), ("jump", False), ("coupled", False)):
        layout = Scorer(Weights.random(predictor, seed=1), FoldConfig(("a", "b"), HOUR_S, evidence)).layout
        assert layout.has("season_week") == remembers
        assert layout.has("season_mean")
