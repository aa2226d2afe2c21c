"""Calibration and budget: what a score means, and how many alarms it makes."""

from __future__ import annotations

import math

import pytest
import torch

from models.evidence.chain import Priors
from models.pretrained import PooledTail, PooledTails
from models.tail import AlertLife, ClusterTail, Prior, RateTail, decide, record_rate, score_of

pytestmark = pytest.mark.slow

POOLED = PooledTail(1.0, 0.01, 0.3)
PRIOR = Prior.of(torch.zeros(0, dtype=torch.float64), POOLED)


def make_life(streams=1, count=1000.0):
    life = AlertLife(*torch.zeros(13, streams, dtype=torch.float64))
    life.count.fill_(count)
    return life


def step(life, score, per_alarm=1000.0, elapsed_s=60.0, scored=True):
    """Decide on one score for one stream."""
    return decide(
        life, torch.tensor([score], dtype=torch.float64), torch.tensor([scored]),
        torch.tensor([elapsed_s], dtype=torch.float64), per_alarm,
    )  # fmt: skip


def make_tail(streams=1):
    tail = ClusterTail(*torch.zeros(8, streams, dtype=torch.float64))
    tail.start_from(PRIOR)
    return tail


def fold_all(tail, sample, start=20):
    """Fold a ``(T, N)`` sample into the tail of a stream that is ``start`` observations old."""
    weight = torch.ones(sample.shape[1], dtype=torch.float64)
    for t, s in enumerate(sample, start):
        tail.fold(s, weight * t, weight, PRIOR)


def pareto(length, streams, seed=0):
    """A sample whose chance to exceed s is s to the minus four."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(length, streams, dtype=torch.float64, generator=generator).pow(-0.25)


def test_score_is_the_rate_of_clusters():
    """The score is -log10 of how often per observation evidence this strong turns up, a lasting one counted once.

    Pareto values that each last twenty observations: such a value reaches s with probability s^-4, once in twenty.
    """
    tail = make_tail(16)
    fold_all(tail, pareto(1000, 16).repeat_interleave(20, 0))
    assert tail.quantile.mean().item() == pytest.approx(0.05**-0.25, rel=0.06)
    rare = torch.full((16,), 1e-4**-0.25, dtype=torch.float64)
    nats = tail.nats(rare, torch.full((16,), 1e5, dtype=torch.float64), PRIOR)
    assert nats.mean().item() == pytest.approx(-math.log(1e-4 / 20), rel=0.12)


def test_long_fault_counts_as_one():
    """A fault of hours must not teach the tail that such evidence is usual."""
    tail, sample = make_tail(), pareto(8000, 1)
    fold_all(tail, sample[:6000])
    before, strong = float(tail.nats(aged(9.0), aged(6000), PRIOR)), torch.full((400, 1), 9.0, dtype=torch.float64)
    fold_all(tail, strong, 6000)
    fold_all(tail, sample[6000:], 6400)
    assert float(tail.nats(aged(9.0), aged(8400), PRIOR)) > 0.75 * before


def test_lasting_change_becomes_normal_in_bounded_time():
    """Evidence that stays five times as high for good is the new normal after some 3000 observations, not months."""
    tail, sample = make_tail(), pareto(7500, 1)
    fold_all(tail, sample[:4000])
    fold_all(tail, 5.0 * sample[4000:7000], 4000)
    said = tail.nats(5.0 * sample[7000:, 0], torch.full((500,), 7000.0, dtype=torch.float64), PRIOR)
    assert (said > -math.log(POOLED.rate)).double().mean().item() < 0.25


def test_pooled_level_fades_out_by_a_thousand_observations():
    """A young stream is judged by what was learned on many others, an old one by its own past."""
    tail = make_tail()
    tail.quantile.fill_(10.0)
    at = [float(tail.nats(aged(5.0), aged(n), PRIOR)) for n in (100.0, 999.0, 1000.0)]
    assert at[0] > at[1] > at[2] == pytest.approx(-math.log(POOLED.rate) * 0.5)


def test_tail_survives_long_silence():
    """A constant stream must not shrink its tail to where the next flicker is an event of the century."""
    tail = make_tail()
    fold_all(tail, torch.zeros(3000, 1, dtype=torch.float64))
    assert tail.quantile.item() >= 0.1
    assert tail.deviation.item() >= 0.01
    assert float(tail.nats(aged(0.05), aged(3000), PRIOR)) < 4.0


@pytest.mark.parametrize(("least", "decades"), [(0.0, (8, 100)), (1 / 3, (1, 5))])
def test_stir_of_what_stood_still_is_weighed_against_others(least, decades):
    """Frozen sensors that move again are no event of the century, where a share of the pooled tail bounds their own."""
    prior = Prior.of(torch.zeros(0), PooledTail(3.0, 0.005, 0.3), least=(least,))
    tail = ClusterTail(*torch.zeros(8, 1))
    tail.start_from(prior)
    frozen = 0.5 + 0.01 * torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    for age, s in enumerate(frozen.unsqueeze(1), 20):
        tail.fold(s, torch.full((1,), float(age)), torch.ones(1), prior)
    nats = float(tail.nats(torch.full((1,), 1.1), torch.full((1,), 2e4), prior))
    assert decades[0] < nats / math.log(10) < decades[1]


def test_tails_of_entities_are_bounded_and_those_of_features_are_not():
    """A fault of one feature may be a fine deviation from what it always did; of frozen sensors it is noise."""
    priors = Priors.of(PooledTails(), torch.zeros(0))
    assert (priors.entity.least_level[:3] > 0.5).all()
    assert (priors.behaviour.least_level < 0.2).all()
    assert priors.distances.least_beta.flatten().tolist() == pytest.approx([0.1] * 3)


def test_evidence_that_lies_at_its_quantile_is_none_however_rare_its_clusters():
    """What hardly varies lies at its own q: a total that grows at one pace must not alarm some months later."""
    tail, prior = ClusterTail(*torch.zeros(8, 1)), Prior.of(torch.zeros(0), POOLED)
    tail.start_from(prior)
    tail.rate.fill_(1 / 20_000)
    nats = tail.nats(0.999 * tail.quantile, torch.full((1,), 1e6), prior)
    assert float(nats) <= math.log(100)


def test_months_without_a_cluster_leave_a_finite_score():
    """A rate that sank to zero would make nothing-at-all infinitely surprising: no number where a score is due."""
    tail, prior = ClusterTail(*torch.zeros(8, 1)), Prior.of(torch.zeros(0), POOLED)
    tail.start_from(prior)
    zero, one = torch.zeros(1), torch.ones(1)
    for _ in range(3):
        tail.rate.mul_(1e-30)  # what millions of quiet observations come to
        tail.fold(zero, one * 1e6, one, prior)
    assert float(tail.nats(zero, one * 1e6, prior)) == 0.0
    assert float(tail.nats(one * 10.0, one * 1e6, prior)) < 40.0


def aged(n):
    return torch.tensor([float(n)], dtype=torch.float64)


def test_rate_tail_learns_how_often_evidence_occurs():
    """S is mostly 0: what matters first is how often it is not."""
    pooled = PooledTail(0.01, 5.0, 0.8)
    often, seldom = (RateTail(*torch.zeros(4, 1, dtype=torch.float64)) for _ in range(2))
    for tail, every in ((often, 100), (seldom, 5000)):
        tail.start_from(pooled)
        for t in range(20, 20_000):
            s = torch.tensor([0.02 if t % every == 0 else 0.0], dtype=torch.float64)
            tail.fold(s, aged(t), torch.ones(1, dtype=torch.float64), pooled)
    s = torch.tensor([0.01001], dtype=torch.float64)
    assert often.nats(s, aged(20_000), pooled).item() == pytest.approx(math.log(100), abs=0.6)
    assert seldom.nats(s, aged(20_000), pooled).item() > often.nats(s, aged(20_000), pooled).item() + 1.5
    assert often.nats(torch.zeros(1, dtype=torch.float64), aged(20_000), pooled).item() == 0.0


def test_records_become_rarer_as_memory_grows():
    """The n-th value is a record with probability 1 / n: what is nothing early is rare late."""
    pooled = PooledTail(0.01, 5.0, 0.8)
    rates = record_rate(torch.tensor([1.0, 100.0, 1000.0, 5000.0, 1e6]), pooled)
    assert rates.tolist() == pytest.approx([0.05, 0.05, 0.005, 0.001, 0.001])


def test_comparing_many_costs_evidence():
    """The best of twenty chances is worth less than one; a score is never negative."""
    nats = torch.tensor([5.0, 5.0, 0.1])
    score = score_of(nats, torch.tensor([1.0, 20.0, 20.0]))
    assert score.tolist() == pytest.approx([2.171, 0.87, 0.0])


def test_alert_opens_once_and_resolves_after_quiet():
    """One alert per episode: opened at once, kept while evidence lasts, closed after 30 minutes and 10 observations."""
    life = make_life()
    events = [step(life, 0.5).event.item(), step(life, 4.0).event.item(), step(life, 4.0).event.item()]
    assert events == [0, 1, 0]
    quiet = [step(life, 0.0).event.item() for _ in range(40)]
    assert quiet.index(3) == 29
    assert quiet.count(3) == 1
    assert life.open.item() == 0
    assert life.peak.item() == 0


def test_ten_observations_are_needed_where_they_come_slowly():
    """At hourly data half an hour says nothing."""
    life = make_life()
    step(life, 4.0)
    quiet = [step(life, 0.0, elapsed_s=3600.0).event.item() for _ in range(12)]
    assert quiet.index(3) == 9


def test_hysteresis_keeps_an_episode_together():
    """Evidence just under the threshold is still the same episode."""
    life = make_life()
    threshold = step(life, 9.0).threshold.item()
    assert threshold == pytest.approx(3.0)
    events = [step(life, 3.2).event.item() for _ in range(60)]
    assert events == [0] * 60
    assert life.open.item() == 1
    assert step(life, 3.2).verdict.item() == 0


@pytest.mark.parametrize("observations", [3.0, 4.0])
def test_an_alert_ends_however_few_observations_an_alarm_is_allowed_for(observations):
    """At daily values and one alarm a week, hysteresis would reach down to 0, and any score would hold it."""
    life = make_life()
    assert step(life, 2.0, elapsed_s=86_400.0, per_alarm=observations).event.item() == 1
    events = [step(life, 0.0, elapsed_s=86_400.0, per_alarm=observations).event.item() for _ in range(20)]
    assert events.count(3) == 1


def test_update_when_it_gets_worse():
    """An update says something new: a decade more, or critical; not every wiggle."""
    life = make_life()
    assert step(life, 3.5).event.item() == 1
    assert step(life, 4.4).event.item() == 0
    assert step(life, 4.6).event.item() == 2
    rise = step(life, 7.0)
    assert rise.event.item() == 2
    assert rise.severity.item() == 2
    assert step(life, 7.5).event.item() == 0


def test_missing_observation_decides_nothing():
    """No value, no event; d does not move either."""
    life = make_life()
    step(life, 4.0)
    d = life.controller.item()
    decision = step(life, 0.0, elapsed_s=86_400.0, scored=False)
    assert decision.event.item() == 0
    assert decision.verdict.item() == 3
    assert life.controller.item() == d


def test_an_alert_that_lasts_does_not_lower_the_threshold():
    """No second one can open meanwhile; a stream that was ill for weeks would alarm at every trifle afterwards."""
    life = make_life()
    step(life, 9.0)
    d = life.controller.item()
    for _ in range(50):
        step(life, 9.0)
    assert life.controller.item() == d


def test_no_alarm_while_warming_up():
    """A stream that nobody knows yet alarms nobody."""
    life = make_life(count=99.0)
    decision = step(life, 15.0)
    assert decision.event.item() == 0
    assert decision.verdict.item() == 2
    assert life.controller.item() == 0


def test_controller_keeps_the_budget():
    """Scores twice too optimistic still alarm about as often as was budgeted."""
    generator = torch.Generator().manual_seed(1)
    streams, per_alarm, length = 64, 400.0, 8000
    life = make_life(streams)
    opened = torch.zeros(streams)
    for _ in range(length):
        p = torch.rand(streams, generator=generator, dtype=torch.float64)
        score = torch.round(-torch.log10(p / 2.0) * 1000) / 1000
        decision = decide(life, score, torch.ones(streams, dtype=torch.bool), torch.full((streams,), 1800.0), per_alarm)
        opened += decision.event == 1
    budget = length / per_alarm
    assert 0.5 * budget < opened.mean().item() < 1.6 * budget
    assert life.controller.max() <= 1
    assert life.controller.min() >= -1


def test_controller_counts_observations_far_below_float32_grain():
    """Ten values a second against a weekly budget: each takes 1.7e-7 off d, which float32 would swallow."""
    life = AlertLife(*torch.zeros(13, 1))
    life.count.fill_(1000.0)
    life.controller.fill_(0.9)
    for _ in range(6000):
        decide(life, torch.zeros(1), torch.ones(1, dtype=torch.bool), torch.full((1,), 0.1), 6_048_000.0)
    assert life.controller.item() == pytest.approx(0.9 - 6000 / 6_048_000.0, abs=2e-6)
