"""The fold keeps its promises: causal, indifferent to cuts and batch-mates, never broken by an input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.config import FoldConfig, PredictorConfig
from models.evidence.observed import SIGNALS
from models.features import window_inputs
from models.pretrained import Weights, builtin
from models.row import Rows
from models.step import Scorer, StepScores

pytestmark = pytest.mark.slow

START_MS = 1_700_000_000_000
MINUTE_MS = 60_000


def make_scorer(evidence="single", features=2, hidden=8, dtype=torch.float32, predictor=None, **settings):
    config = FoldConfig(
        tuple(f"f{i}" for i in range(features)), settings.pop("interval_s", 60.0), evidence,
        alarm_every_s=settings.pop("alarm_every_s", 86_400.0), **settings,
    )  # fmt: skip
    return Scorer(Weights.random(predictor or PredictorConfig(hidden=hidden), seed=1), config, dtype=dtype)


def make_series(length, streams, features, seed=0, missing=0.05, faults=True):
    """Noise about daily shapes, with spikes and missing values: ``(length, streams, features)`` and minute times."""
    rng = np.random.default_rng(seed)
    times = START_MS + MINUTE_MS * np.arange(length)[:, None].repeat(streams, 1)
    phase = rng.uniform(0, 6, (1, streams, features))
    x = (
        10
        + 3 * np.sin(times[..., None] / 86_400_000 * 2 * np.pi * 6 + phase)
        + rng.normal(0, 1, (length, streams, features))
    )
    if faults:
        x[rng.random(x.shape) < 0.005] += 15
    x[rng.random(x.shape) < missing] = np.nan
    return torch.tensor(x, dtype=torch.float32), torch.tensor(times)


def play(scorer, x, times, cuts, rows=None, slots=None, detail=False):
    """Fold a series in windows of the given lengths (repeated); returns the parts and the rows."""
    streams = x.shape[1]
    rows = scorer.rows(streams) if rows is None else rows
    slots = torch.arange(streams) if slots is None else slots
    last = torch.full((streams,), -1, dtype=torch.int64)
    parts, at = [], 0
    while at < len(x):
        for cut in cuts:
            end = min(at + cut, len(x))
            if end > at:
                parts.append(scorer.score(rows, slots, x[at:end], times[at:end], last, detail))
                last = times[end - 1]
            at = end
    return parts, rows


def joined(parts, name):
    return torch.cat([getattr(part, name) for part in parts])


KINDS = [
    {"evidence": "single"},
    {"evidence": "single", "light": True},
    {"evidence": "single", "interval_s": None},
    {"evidence": "jump"},
    {"evidence": "coupled", "features": 3},
    {"evidence": "single", "predictor": PredictorConfig("lstm", hidden=6, layers=2)},
    {"evidence": "single", "predictor": PredictorConfig("gru", hidden=6, scope="stream", features=2)},
    {"evidence": "jump", "predictor": PredictorConfig("lstm", hidden=6, scope="stream", features=2)},
]
NAMES = ["single", "light", "no-interval", "jump", "coupled", "lstm-2-layers", "one-network-per-stream", "stream-lstm"]


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_cuts_and_batch_mates_change_nothing(kind):
    """One call of 64 or many of 1, 4 and 16, alone or in company and in any order: same scores, same decisions."""
    scorer = make_scorer(**kind)
    length = 448 if scorer.config.evidence == "coupled" else 192
    x, times = make_series(length, 16, scorer.layout.features)
    whole, rows = play(scorer, x, times, [64])
    shuffled = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    other, other_rows = play(scorer, x[:, shuffled], times, [1, 4, 16, 3, 40], slots=shuffled)
    back = torch.argsort(shuffled)
    torch.testing.assert_close(
        joined(other, "score")[:, back], joined(whole, "score"), atol=1e-3, rtol=0, equal_nan=True
    )
    for name in ("verdict", "event", "signal", "feature"):
        assert torch.equal(joined(other, name)[:, back], joined(whole, name))
    torch.testing.assert_close(other_rows.read(torch.arange(16)), rows.read(torch.arange(16)), atol=1e-3, rtol=1e-3)
    alone, _ = play(scorer, x[:, 5:6], times[:, 5:6], [64])
    torch.testing.assert_close(
        joined(alone, "score")[:, 0], joined(whole, "score")[:, 5], atol=1.1e-3, rtol=0, equal_nan=True
    )


def test_no_look_ahead():
    """Changing the future of a recording changes no past score."""
    scorer = make_scorer()
    x, times = make_series(200, 2, 2)
    changed = x.clone()
    changed[150:] += 1000.0
    before, after = (play(scorer, series, times, [200])[0][0].score[:150] for series in (x, changed))
    assert torch.equal(before.nan_to_num(-1), after.nan_to_num(-1))


@pytest.mark.parametrize("kind", KINDS[:5], ids=NAMES[:5])
def test_float32_follows_float64(kind):
    """The row's float32 is enough: no statistic drifts away from the exact one."""
    x, times = make_series(450 if kind["evidence"] == "coupled" else 250, 4, kind.get("features", 2))
    scores = [joined(play(make_scorer(dtype=dtype, **kind), x, times, [64])[0], "score") for dtype in
              (torch.float32, torch.float64)]  # fmt: skip
    difference = (scores[0].double() - scores[1]).abs().nan_to_num(0.0)
    assert difference.max() < 0.01
    assert difference.quantile(0.99) <= 2.1e-3


@pytest.mark.parametrize("kind", KINDS[:5], ids=NAMES[:5])
def test_rows_stay_finite_whatever_comes(kind):
    """Constants, zeros, denormals, huge spikes and unit changes: no number of any row ever leaves the finite ones."""
    scorer = make_scorer(**kind)
    features = scorer.layout.features
    length = 520
    x, times = make_series(length, 8, features, missing=0.1)
    x[:, 0] = 0.0
    x[:, 1] = 7.25
    x[250:, 1] = 3.4e38
    x[:, 2] = torch.tensor([1e-42, -1e-42]).repeat(length // 2)[:, None]
    x[100, 3] = 3e38
    x[300, 3] = -3e38
    x[:, 4] = torch.nan
    x[250:, 5] *= 1e30
    x[:, 6] = torch.where(torch.arange(length) % 2 == 0, 1e15, -1e15)[:, None]
    x[5, 7] = torch.inf
    parts, rows = play(scorer, x, times, [64])
    assert torch.isfinite(rows.feature).all()
    assert torch.isfinite(rows.entity).all()
    score = joined(parts, "score")
    assert torch.isfinite(score[:, 0]).all()
    assert torch.isnan(score[:, 4]).all()
    assert not torch.isinf(score).any()


def test_scales_return_after_a_huge_spike():
    """No scale may be locked out: long after one spike of 1e12 the surprise at a clear jump is as it was before."""
    scorer = make_scorer(features=1, record_weight_p=0.0)
    x, times = make_series(2600, 2, 1, missing=0.0, faults=False)
    x[150, 1] = 1e12
    parts, _ = play(scorer, x, times, [64], detail=True)
    activity = torch.cat([part.trace["activity"] for part in parts])[-300:, :, 0]
    assert activity[:, 1].median() > 0.2 * activity[:, 0].median()


def test_a_level_that_stays_away_and_a_stream_that_calms_down_have_signals_of_their_own():
    """A displacement points to the side it went to, from where the stream used to be; stillness has no side.

    Earlier excursions have made every level known, and forecasts soon agree with each of the three changes.
    """
    x = torch.randn(1400, 3, generator=torch.Generator().manual_seed(1))
    x[200:260] += 4
    x[300:360] -= 4
    x[1000:] = x[1000:] * torch.tensor([1.0, 1.0, 0.02]) + torch.tensor([1.5, -1.5, 0.0])
    times = (START_MS + MINUTE_MS * torch.arange(1400)).unsqueeze(1).expand(-1, 3).contiguous()
    scorer = Scorer(builtin("gru"), FoldConfig(("f0",), 60.0, "single"))
    scores = scorer.score(
        scorer.rows(3), torch.arange(3), x.unsqueeze(2), times, torch.full((3,), -1), detail=True
    )  # fmt: skip
    signal, direction = scores.signal[1060:], scores.details.direction.view(1400, 3)[1060:]
    for stream, (name, side) in enumerate((("displacement", 1), ("displacement", -1), ("stillness", 0))):
        of_kind = signal[:, stream] == SIGNALS.index(name)
        assert of_kind.float().mean() > 0.7
        assert (direction[of_kind, stream] == side).all()
    assert (scores.details.usual.view(1400, 3)[1060:, :2].abs() < 0.5).all()


def test_missing_value_moves_nothing_but_network_and_rings():
    """A stand-in is not data: statistics, records, tails and n stay, the forecast clock runs on."""
    scorer = make_scorer(features=1)
    x, times = make_series(300, 1, 1, missing=0.0)
    _, rows = play(scorer, x, times, [64])
    before = rows.read(torch.tensor([0]))[0]
    gone = torch.full((1, 1, 1), torch.nan)
    scores = scorer.score(rows, torch.tensor([0]), gone, times[-1:] + MINUTE_MS, times[-1])
    after = rows.read(torch.tensor([0]))[0]
    assert torch.isnan(scores.score).all()
    assert scores.verdict.item() == 3
    assert scores.imputed.item() == 1.0
    layout = scorer.layout
    moved = {name for name, s in layout.slices.items() if s.where == "feature"
             and not torch.equal(before[s.offset : s.end], after[s.offset : s.end])}  # fmt: skip
    assert moved <= {"mixture", "hidden", "pending_4", "pending_8", "quiet_ring", "adaptation.phase",
                     "adaptation.keys_held"}  # fmt: skip
    assert {"mixture", "hidden", "pending_4", "pending_8"} <= moved


def test_stream_with_every_second_value_missing_still_learns():
    """The key phase shifts onto the values that arrive, so that fast weights are updated."""
    scorer = make_scorer(features=1)
    x, times = make_series(200, 2, 1, missing=0.0)
    x[1::2, 0] = torch.nan
    x[0::2, 1] = torch.nan
    _, rows = play(scorer, x, times, [64])
    updates = rows.feature[:, 0, scorer.layout.columns("adaptation.updates_8")]
    assert (updates > 40).all()


def test_missing_target_drops_keys_and_shifts_phase():
    """Keys speak of a target four and eight observations later; without it they are worthless."""
    scorer = make_scorer(features=1)
    x, times = make_series(18, 1, 1, missing=0.0)
    x[12] = torch.nan
    held = scorer.layout.columns("adaptation.keys_held")
    _, rows = play(scorer, x[:12], times[:12], [12])
    assert rows.feature[0, 0, held].item() == 2
    scorer.score(rows, torch.tensor([0]), x[12:13], times[12:13], times[11])
    assert rows.feature[0, 0, held].item() == 0
    scorer.score(rows, torch.tensor([0]), x[13:14], times[13:14], times[12])
    assert rows.feature[0, 0, held].item() == 1
    assert rows.feature[0, 0, scorer.layout.columns("adaptation.phase")].item() == 3


def test_gap_invalidates_forecasts_and_ages_counts():
    """After a gap the old forecasts have no target: gate 1, no activity for 4 observations, n reduced, dx = 0."""
    scorer = make_scorer(features=1)
    x, times = make_series(250, 1, 1, missing=0.0)
    times[200:] += 250 * MINUTE_MS
    _, rows = play(scorer, x[:200], times[:200], [200])
    after = scorer.score(rows, torch.tensor([0]), x[200:], times[200:], times[199], detail=True)
    assert torch.isnan(after.trace["short_activity"][:4]).all()
    assert torch.isfinite(after.trace["short_activity"][4:]).all()
    assert torch.isnan(after.trace["activity"][:4]).all()
    assert torch.isfinite(after.trace["activity"][4:]).all()
    assert torch.isnan(after.trace["middle_activity"][:8]).all()
    assert torch.isfinite(after.trace["middle_activity"][8:]).all()
    assert (after.trace["gate"][:8] == 1).all()
    assert (after.trace["gate"][8:] != 1).all()
    intervals = (times[200, 0] - times[199, 0]).item() / MINUTE_MS
    count = rows.feature[0, 0, scorer.layout.columns("normaliser.count")].item()
    assert count == pytest.approx(200 / (1 + intervals / 500) + 50, rel=1e-5)


def test_short_delay_is_no_gap():
    """Up to one and a half intervals a late observation is the next one."""
    scorer = make_scorer(features=1)
    x, times = make_series(100, 1, 1, missing=0.0)
    times[50:] += 29_000
    _, rows = play(scorer, x, times, [100])
    assert rows.entity[0, scorer.layout.columns("life.forecasts")].item() == 8
    assert rows.feature[0, 0, scorer.layout.columns("normaliser.count")].item() == 100


def events(steps_s):
    """One value per event of a stream without an interval, with these seconds before each: series and times."""
    times = START_MS + np.cumsum(np.round(1000 * np.asarray(steps_s)).astype(np.int64))
    x = np.random.default_rng(3).normal(size=(len(times), 1, 1))
    return torch.tensor(x, dtype=torch.float32), torch.tensor(times)[:, None]


def life_of(scorer, rows, name):
    return rows.entity[0, scorer.layout.columns(f"life.{name}")].item()


@pytest.mark.parametrize(("burst", "pause_s", "bursts"), [(50, 0.95, 40), (300, 5.0, 16)])
def test_budget_of_events_follows_their_mean_rate(burst, pause_s, bursts):
    """Packets a ms apart come in bursts: the budget is that of all time, and what lies between bursts is no gap."""
    scorer = make_scorer(features=1, interval_s=None)
    length = burst * bursts
    steps = np.full(length, 0.001)
    steps[::burst] = pause_s
    x, times = events(steps)
    parts, rows = play(scorer, x, times, [100])
    per_alarm = torch.cat([10 ** part.threshold[:, 0].double() for part in parts])
    known = 8 * burst
    assert (1.0 / per_alarm)[known:].sum().item() == pytest.approx(steps[known:].sum() / 86_400, rel=0.35)
    assert rows.feature[0, 0, scorer.layout.columns("normaliser.count")].item() > 0.5 * length
    assert life_of(scorer, rows, "pause_s") == pytest.approx(pause_s, rel=0.35)


def test_pauses_between_events_are_no_gaps():
    """Arrivals at random: hardly one is a gap, so statistics keep their age; a pause of a hundred intervals is one."""
    scorer = make_scorer(features=1, interval_s=None)
    steps = np.random.default_rng(4).exponential(1.0, 2001) + 0.002
    steps[-1] = 100.0
    x, times = events(steps)
    _, rows = play(scorer, x[:-1], times[:-1], [100])
    assert rows.feature[0, 0, scorer.layout.columns("normaliser.count")].item() > 1900
    assert life_of(scorer, rows, "forecasts") == 8
    scorer.score(rows, torch.tensor([0]), x[-1:], times[-1:], times[-2])
    assert life_of(scorer, rows, "forecasts") == 1


def test_one_pause_hides_neither_the_rate_nor_the_next_gap():
    """A month of silence must not make a minute's stream look like a daily one."""
    scorer = make_scorer(features=1, interval_s=None)
    steps = np.full(300, 60.0)
    steps[200] = 30 * 86_400.0
    x, times = events(steps)
    _, rows = play(scorer, x, times, [100])
    assert 60 <= life_of(scorer, rows, "interval_s") < 61
    later = times[-1:] + 400_000
    scorer.score(rows, torch.tensor([0]), x[-1:], later, times[-1])
    assert life_of(scorer, rows, "forecasts") == 1


def test_level_shift_alarms_and_is_absorbed():
    """A lasting shift opens an alert in time, then becomes normal: bounded attention, no lock-out."""
    scorer = make_scorer(features=1)
    x, times = make_series(1500, 1, 1, missing=0.0, faults=False)
    x[600:] += 60.0
    parts, _ = play(scorer, x, times, [60])
    event, score = joined(parts, "event")[:, 0], joined(parts, "score")[:, 0]
    assert (event[600:610] == 1).any()
    assert (event[600:1200] == 3).any()
    assert score[1200:].max() < score[600:610].max() - 0.5


def test_details_explain_every_event():
    """An alert says what was observed, what was expected and in which band, and which way it went."""
    scorer = make_scorer(features=2)
    x, times = make_series(200, 3, 2, missing=0.0, faults=False)
    x[150, 1, 1] += 60.0
    parts, _ = play(scorer, x, times, [200])
    scores: StepScores = parts[0]
    opened = [i for i in range(len(scores.details.s)) if (scores.details.s[i], scores.details.n[i]) == (150, 1)]
    assert len(opened) == 1
    assert scores.event[150, 1] == 1
    i, details = opened[0], scores.details
    assert scores.feature[150, 1] == 1
    assert details.direction[i] == 1
    assert details.observed[i, 1] == x[150, 1, 1]
    assert details.band_low[i, 1] < details.expected[i, 1] < details.band_high[i, 1]
    assert details.expected[i, 1] < details.observed[i, 1]
    assert details.nats[i, 1] == details.nats[i].max()
    assert details.peak[i] == scores.score[150, 1]
    assert (scores.event != 0).sum() == len(details.s)


def test_detail_covers_every_cell():
    """``explain`` needs the evidence of quiet observations too."""
    scorer = make_scorer("coupled", features=3)
    x, times = make_series(440, 2, 3, missing=0.0)
    part = play(scorer, x, times, [440], detail=True)[0][0]
    assert len(part.details.s) == 440 * 2
    assert torch.isfinite(part.trace["values"][425:]).any()
    assert torch.isfinite(part.trace["residuals"][432:]).any()
    assert torch.isfinite(part.trace["means"][425:]).any()


def test_jump_in_many_features_at_once_wins_as_entity_signal():
    """Servers fail in many metrics together: the entity residual opens one alert for the stream."""
    scorer = make_scorer("jump", features=8)
    x, times = make_series(300, 2, 8, missing=0.0, faults=False)
    x[250, 0, :6] += 25.0
    part = play(scorer, x, times, [300])[0][0]
    assert part.event[250, 0] == 1
    assert part.event[250, 1] == 0
    assert scorer.signals[part.signal[250, 0]] == "jump"
    assert part.feature[250, 0] == -1


def test_coupled_features_that_part_company_are_seen():
    """Each value ordinary, their combination impossible: only the Mahalanobis distance can tell."""
    scorer = make_scorer("coupled", features=3)
    rng = np.random.default_rng(0)
    x, times = make_series(560, 1, 3, missing=0.0, faults=False)
    common = torch.tensor(rng.normal(0, 1, (560, 1, 1)), dtype=torch.float32)
    x = common + 0.05 * torch.tensor(rng.normal(0, 1, (560, 1, 3)), dtype=torch.float32)
    x[530:, 0, 2] *= -1
    part = play(scorer, x, times, [560], detail=True)[0][0]
    assert part.trace["values"][530:].median() > 20 * part.trace["values"][430:530].median()
    assert (part.verdict[530:540] == 1).any()


def test_a_small_shift_of_coupled_features_shows_in_their_running_means():
    """By as much as they vary from one observation to the next: ordinary each time, but never ten times in a row."""
    scorer = make_scorer("coupled", features=3)
    _, times = make_series(900, 1, 3, missing=0.0, faults=False)
    x = torch.tensor(np.random.default_rng(0).normal(0, 1, (900, 1, 3)), dtype=torch.float32)
    x[700:] += 1.0
    trace = play(scorer, x, times, [900], detail=True)[0][0].trace
    assert trace["means"][720:].median() > 6 * trace["means"][430:700].median()
    assert trace["values"][720:].median() < 3 * trace["values"][430:700].median()


def test_means_of_coupled_features_are_those_of_numpy():
    """T^2 / F of ew(x, 10) against mean and covariance of 400 from the 20th on, ridge of 1 % of the diagonal."""
    scorer = make_scorer("coupled", features=3)
    x, times = make_series(500, 1, 3, missing=0.0, faults=False)
    trace = play(scorer, x, times, [500], detail=True)[0][0].trace
    means, mean = np.empty((480, 3)), np.zeros(3)
    for t, row in enumerate(x[20:, 0].double().numpy()):
        mean = mean + max(1 / 10, 1 / (t + 1)) * (row - mean)
        means[t] = mean
    centre = means[:400].mean(0)
    covariance = np.cov(means[:400].T, bias=True)
    covariance += np.diag(0.01 * np.diag(covariance) + (1e-4 * np.abs(centre) + 1e-8) ** 2)
    apart = means[400:] - centre
    expected = np.einsum("ti,ij,tj->t", apart, np.linalg.inv(covariance), apart) / 3
    np.testing.assert_allclose(trace["means"][420:, 0], expected, rtol=0.02)


@pytest.mark.parametrize("at", [5, 25, 100, 300])
def test_a_wild_value_while_gathering_does_not_blind_t2(at):
    """The reference of T^2 stays: a million deviations in it would hide every fault for as long as the stream lives."""
    scorer = make_scorer("coupled", features=3)
    _, times = make_series(900, 1, 3, missing=0.0, faults=False)
    x = torch.tensor(np.random.default_rng(0).normal(20, 1, (900, 1, 3)), dtype=torch.float32)
    x[at, 0, 1] = 1e6
    x[800:, 0, 1] += 6.0
    trace = play(scorer, x, times, [900], detail=True)[0][0].trace
    for distance in (trace["values"], trace["means"]):
        assert distance[801:].median() > 5 * distance[430:800].median()


def test_t2_of_huge_values_is_finite_while_it_gathers():
    """Squares of such covariances are beyond float32."""
    x, times = make_series(500, 2, 3, missing=0.0, faults=False)
    part = play(make_scorer("coupled", features=3), x * 1e13, times, [500], detail=True)[0][0]
    assert torch.isfinite(part.details.nats).all()
    assert torch.isfinite(part.trace["values"][430:]).all()


def test_sensors_that_report_in_turn_have_means_that_go_together():
    """Their values never stand side by side, so that T^2 of values has nothing to begin from."""
    scorer = make_scorer("coupled", features=2)
    _, times = make_series(900, 1, 2, missing=0.0, faults=False)
    common = torch.tensor(np.random.default_rng(0).normal(0, 1, (900, 1, 1)), dtype=torch.float32).cumsum(0).sin()
    x = 20.0 + common.expand(900, 1, 2).clone()
    x[800:, 0, 1] += 3.0
    x[::2, :, 0] = torch.nan
    x[1::2, :, 1] = torch.nan
    trace = play(scorer, x, times, [900], detail=True)[0][0].trace
    assert torch.isnan(trace["values"]).all()
    assert trace["means"][820:].median() > 20 * trace["means"][450:800].median()


@pytest.mark.parametrize("alive_from", [30, 100, 208, 390])
def test_a_sensor_that_begins_later_has_the_distances_begin_with_it(alive_from):
    """A mean that started at 0, among others that had long settled, would be wrong for as long as the stream lives."""
    scorer = make_scorer("coupled", features=3)
    _, times = make_series(1300, 1, 3, missing=0.0, faults=False)
    x = torch.tensor(np.random.default_rng(0).normal(1000, 1, (1300, 1, 3)), dtype=torch.float32)
    x[1200:, 0, 1] += 8.0
    x[:alive_from, 0, 1] = torch.nan
    part = play(scorer, x, times, [1300], detail=True)[0][0]
    for distance in (part.trace["values"], part.trace["means"]):
        assert torch.isnan(distance[: alive_from + 415]).all()
        assert 0.5 < distance[alive_from + 430 : 1200].median() < 3
        assert distance[1220:].median() > 10
    assert not (part.verdict[:1200] == 1).any()


@pytest.mark.parametrize("phase", [0, 1])
def test_a_sensor_that_reports_every_second_time_takes_part(phase):
    """Whichever observation the reference is complete at."""
    scorer = make_scorer("coupled", features=3)
    _, times = make_series(1300, 1, 3, missing=0.0, faults=False)
    x = torch.tensor(np.random.default_rng(0).normal(1000, 1, (1300, 1, 3)), dtype=torch.float32)
    x[1200:, 0, 1] += 8.0
    x[phase::2, 0, 1] = torch.nan
    trace = play(scorer, x, times, [1300], detail=True)[0][0].trace
    for distance in (trace["values"][1 - phase :: 2], trace["means"]):
        assert 0.5 < distance[len(distance) * 900 // 1300 : len(distance) * 1200 // 1300].median() < 3
        assert distance[len(distance) * 1220 // 1300 :].median() > 10


def test_a_sensor_that_died_is_not_held_against_the_others():
    """Its last mean stands still while the others move on."""
    scorer = make_scorer("coupled", features=4)
    rng = np.random.default_rng(3)
    _, times = make_series(2500, 1, 4, missing=0.0, faults=False)
    course = 20 + 5 * np.sin(np.arange(2500) / 150)[:, None, None] + rng.normal(0, 1.5, (2500, 1, 4))
    x = torch.tensor(course, dtype=torch.float32)
    x[1500:, 0, 3] = torch.nan
    part = play(scorer, x, times, [2500], detail=True)[0][0]
    alone = play(make_scorer("coupled", features=3), x[:, :, :3], times, [2500], detail=True)[0][0]
    assert not (part.verdict[1500:] == 1).any()
    torch.testing.assert_close(part.trace["values"][1500:] * 4 / 3, alone.trace["values"][1500:], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("alive_from", [None, 700], ids=["never seen", "seen after the reference"])
def test_a_sensor_without_values_does_not_keep_the_others_from_t2(alive_from):
    """It takes no part in the distances, also when it comes alive after they were made."""
    scorer = make_scorer("coupled", features=4)
    x, times = make_series(900, 1, 4, missing=0.0, faults=False)
    x[:alive_from, 0, 3] = torch.nan
    part = play(scorer, x, times, [900], detail=True)[0][0]
    alone = play(make_scorer("coupled", features=3), x[:, :, :3], times, [900], detail=True)[0][0]
    torch.testing.assert_close(part.trace["values"][421:] * 4 / 3, alone.trace["values"][421:], rtol=0.02, atol=0.01)
    torch.testing.assert_close(part.trace["means"][421:] * 4 / 3, alone.trace["means"][421:], rtol=0.02, atol=0.01)


@pytest.mark.parametrize("astray", range(4))
def test_the_coupled_feature_that_went_astray_is_named_with_where_the_others_ask_for_it(astray):
    """Whitened components would blame what comes later in the order of features, too."""
    scorer = make_scorer("coupled", features=4)
    rng = np.random.default_rng(astray)
    _, times = make_series(700, 1, 4, missing=0.0, faults=False)
    common = rng.normal(0, 1, (700, 1, 2)) @ rng.normal(0, 1, (2, 4))
    healthy = 20.0 + common + 0.05 * rng.normal(0, 1, (700, 1, 4))
    x = torch.tensor(healthy, dtype=torch.float32)
    x[650:, 0, astray] -= 3.0
    part = play(scorer, x, times, [700], detail=True)[0][0]
    has_usual = torch.isin(part.signal[:, 0], torch.tensor([scorer.signals.index(it) for it in ("values", "means")]))
    alarms = torch.nonzero((part.verdict[:, 0] == 1) & has_usual).flatten()
    assert len(alarms) > 10
    details = part.details
    assert (details.nats[alarms].argmax(1) == astray).all()
    assert (details.direction[alarms] == -1).all()
    away = (details.usual - details.observed)[alarms, astray]
    assert (away > 0).all()
    assert abs(away.median() - 3.0) < 1.0


def test_warming_up_lasts_a_hundred_observations_of_data():
    """The first verdict comes after 100 valid observations, missing ones not counted."""
    scorer = make_scorer(features=1)
    x, times = make_series(150, 1, 1, missing=0.0)
    x[10:30] = torch.nan
    verdict = joined(play(scorer, x, times, [50])[0], "verdict")[:, 0]
    assert (verdict[:120][~torch.isnan(x[:120, 0, 0])] == 2).all()
    assert (verdict[10:30] == 3).all()
    assert (verdict[120:] < 2).all()


def test_normaliser_in_the_fold_is_the_one_of_training():
    """A network meets in serving what it was trained on."""
    scorer = make_scorer(features=1)
    x, times = make_series(300, 4, 1)
    _, rows = play(scorer, x, times, [64])
    window = window_inputs(x[:, :, 0], times, 60.0)
    mean = rows.feature[:, 0, scorer.layout.columns("normaliser.mean")].flatten()
    torch.testing.assert_close(window.mean[-1], mean)
    assert window.inputs.shape == (300, 4, 12)
    assert torch.isfinite(window.inputs).all()


def test_foreign_rows_are_refused():
    """Rows of another profile would be read as nonsense."""
    scorer, other = make_scorer(), make_scorer("jump")
    x, times = make_series(1, 1, 2)
    with pytest.raises(ValueError, match="layout"):
        scorer.score(other.rows(1), torch.tensor([0]), x, times, torch.tensor([-1]))


def test_swapped_weights_score_on_with_carried_and_reset_rows():
    """A version change carries what another network can use and resets the rest; scoring goes on either way."""
    old = make_scorer(features=1)
    config = replace(old.config, alarm_every_s=3600.0)
    new = Scorer(Weights.random(PredictorConfig(hidden=8), seed=9), config)
    x, times = make_series(300, 2, 1)
    _, rows = play(old, x[:200], times[:200], [64])
    for hidden in ("carry", "reset"):
        moved = Rows.allocate(new.layout, 2)
        moved.write(torch.arange(2), new.layout.carry(rows.read(torch.arange(2)), old.layout, hidden))
        scores = new.score(moved, torch.arange(2), x[200:], times[200:], times[199])
        assert torch.isfinite(scores.score[~torch.isnan(x[200:, :, 0])]).all()
        assert (scores.verdict != 2).all()


@pytest.mark.parametrize("is_walk", [True, False])
def test_of_network_and_last_value_the_better_forecast_makes_the_jump(is_walk):
    """A network that is wrong about a feature must not hide its jumps, nor make any of its own."""
    config = FoldConfig(("a", "b", "c"), 60.0, "jump", alarm_every_s=86_400.0)
    scorer = Scorer(builtin("gru"), config)
    noise = torch.randn(1500, 4, 3, generator=torch.Generator().manual_seed(5))
    steps = torch.arange(1500.0).view(-1, 1, 1)
    x = noise.cumsum(0) if is_walk else 10 * torch.sin(steps * 1.3) + 0.1 * noise
    times = START_MS + MINUTE_MS * torch.arange(1500)[:, None].repeat(1, 4)
    _, rows = play(scorer, x, times, [100])
    edge = rows.feature[..., scorer.layout.columns("residual.edge")]
    if is_walk:
        scale = rows.feature[..., scorer.layout.columns("residual.variance")]
        assert (edge > -0.01 * scale).all()  # nothing beats the last value on a random walk
    else:
        assert (edge < 0).all()


def test_levels_that_stay_away_are_evidence_when_forecasts_have_caught_up():
    """Of a fault that lasts for hours one step ahead sees its two ends; the displacement sees what lies between."""
    scorer = Scorer(builtin("gru"), FoldConfig(tuple("abcdef"), 60.0, "jump", alarm_every_s=86_400.0))
    x = 20 + torch.randn(1400, 1, 6, generator=torch.Generator().manual_seed(2))
    x[1300:, :, :3] += 40.0
    times = START_MS + MINUTE_MS * torch.arange(1400)[:, None]
    parts, _ = play(scorer, x[:1360], times[:1360], [100], detail=True)
    away = torch.cat([part.trace["entity_displacement"] for part in parts])[:, 0]
    assert float(away[100:1300].max()) < 0.1
    assert float(away[1320:].min()) > 4.0
    signal, nats = joined(parts, "signal")[1350:, 0], joined(parts, "score")[1350:, 0]
    assert (signal == SIGNALS.index("displacement")).all()
    assert (nats > 3.0).all()
    contribution = torch.cat([part.trace["contribution"] for part in parts])[1350:, 0]
    assert (contribution[:, :3].sum(1) > 0.8 * contribution.sum(1)).all()
    usual = torch.cat([part.details.usual for part in parts])[1350:]
    assert ((usual - 20.0).abs() < 2.5).all()


def test_a_counter_that_nearly_stands_still_is_not_displaced_by_a_small_step():
    """A spread takes in a tenth of the level: 100 and 101 are one level, however still 100 has been."""
    scorer = Scorer(builtin("gru"), FoldConfig(tuple("abcd"), 60.0, "jump"))
    x = 100 + 0.001 * torch.randn(900, 1, 4, generator=torch.Generator().manual_seed(2))
    x[700:] += 1.0
    times = START_MS + MINUTE_MS * torch.arange(900)[:, None]
    parts, _ = play(scorer, x, times, [100], detail=True)
    assert float(torch.cat([part.trace["entity_displacement"] for part in parts])[100:].max()) == 0.0
