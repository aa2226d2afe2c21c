"""Metrics against worked examples: a metric that flatters would steer every later decision."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from models.evaluation.bootstrap import bootstrap
from models.evaluation.budget import alarms_at
from models.evaluation.events import (
    attribution_share,
    count_events,
    episodes_above,
    episodes_of,
    hit_within,
    judged_events,
    threshold_at,
    together,
)
from models.evaluation.nab import NabFile, nab_score, probation, scaled_sigmoid
from models.evaluation.ranking import auc_pr, events_of, vus_pr


def labelled(length, *events):
    labels = np.zeros(length, np.bool_)
    for first, last in events:
        labels[first : last + 1] = True
    return labels


def spikes(length, *rows):
    scores = np.zeros(length)
    scores[list(rows)] = 1.0
    return scores


# ---------------------------------------------------------------- NAB


@pytest.mark.parametrize("profile", ["standard", "low_fp", "low_fn"])
def test_nab_is_100_for_a_perfect_detector_and_0_for_a_silent_one(profile):
    """These two fix the scale on which all published scores stand."""
    windows = ((400, 449), (700, 799))
    perfect = NabFile("perfect", spikes(1000, 400, 700), windows)
    silent = NabFile("silent", np.zeros(1000), windows)
    assert nab_score([perfect], profile).score == pytest.approx(100.0)
    assert nab_score([silent], profile).score == pytest.approx(0.0, abs=1e-9)
    assert nab_score([silent], profile).threshold == math.inf


@pytest.mark.parametrize(
    ("profile", "false_positive", "false_negative"),
    [("standard", 0.11, 1.0), ("low_fp", 0.22, 1.0), ("low_fn", 0.11, 2.0)],
)
def test_nab_score_of_a_late_a_missed_and_a_false_detection_is_that_of_the_papers_equations(
    profile, false_positive, false_negative
):
    """One window met late, one missed, one false positive just behind a window: by the paper's equations."""
    windows = ((400, 499), (700, 799))
    scores = spikes(1000, 450, 509)
    reward = (2 / (1 + math.exp(5 * -(499 - 450 + 1) / 100)) - 1) / (2 / (1 + math.exp(-5)) - 1)
    penalty = false_positive * (2 / (1 + math.exp(5 * (509 - 499) / 99)) - 1)
    raw, null = reward - false_negative + penalty, -2 * false_negative
    assert nab_score([NabFile("file", scores, windows)], profile).score == pytest.approx(
        100 * (raw - null) / (2 - null)
    )


def test_nab_counts_the_first_detection_of_a_window_once():
    """A detector that alarms all through a window is as good as one that alarms at its beginning."""
    windows = ((400, 499),)
    all_through = np.zeros(1000)
    all_through[400:500] = 1.0
    assert nab_score([NabFile("file", all_through, windows)]).score == pytest.approx(100.0)


def test_nab_ignores_the_probation():
    """Detections while a detector settles neither count nor cost."""
    assert probation(1000) == 150
    assert probation(22_695) == 750
    noisy = spikes(1000, *range(150), 400)
    assert nab_score([NabFile("file", noisy, ((400, 499),))]).score == pytest.approx(100.0)


def test_nab_has_one_threshold_for_the_whole_corpus():
    """A file whose scores are larger may not have a threshold of its own."""
    loud = NabFile("loud", 10 * spikes(1000, 200, 400), ((400, 499),))
    quiet = NabFile("quiet", spikes(1000, 400), ((400, 499),))
    both = nab_score([loud, quiet])
    assert both.threshold == 1.0
    assert both.score == pytest.approx(100 * (1 + 1 - 0.11 + 2) / 4)
    assert both.per_file["loud"] == pytest.approx(1 - 0.11)


def test_nab_of_a_file_drawn_twice_is_that_of_the_file():
    """A bootstrap draws files with replacement: each draw counts, windows and gains alike."""
    file = NabFile("file", spikes(1000, 450, 600, 720), ((400, 499), (700, 799), (900, 950)))
    assert 0 < nab_score([file]).score < 100
    assert nab_score([file, file]).score == pytest.approx(nab_score([file]).score)


def test_nab_refuses_rows_without_a_score():
    """NaN sorts anywhere, and would silently win or lose."""
    with pytest.raises(ValueError):
        nab_score([NabFile("file", np.full(1000, np.nan), ((400, 499),))])


def test_sigmoid_is_that_of_the_paper():
    """Left edge, middle, right edge, far behind."""
    found = scaled_sigmoid(np.array([-1.0, -0.5, 0.0, 1.0, 3.0]))
    assert found == pytest.approx([0.98661, 0.84828, 0.0, -0.98661, -1.0], abs=1e-5)


# ---------------------------------------------------------------- ranking


def vus_as_written(labels, scores, buffer, thresholds=250):
    """The published definition row by row, without any of the shortcuts."""
    weights, events, rows = labels.astype(float), events_of(labels), len(labels)

    def regions(width):
        reach, found = width // 2, []
        begin = max(events[0][0] - reach, 0)
        for (_, last), (first, _) in pairwise(events):
            if last + reach < first - reach:
                found.append((begin, last + reach))
                begin = first - reach
        return [*found, (begin, min(events[-1][1] + reach, rows - 1))]

    def softened(width):
        soft = weights.copy()
        for first, last in events:
            for row in range(last + 1, min(last + width // 2 + 1, rows)):
                soft[row] += math.sqrt(1 - (row - last) / width)
            for row in range(max(first - width // 2, 0), first):
                soft[row] += math.sqrt(1 - (first - row) / width)
        return np.minimum(soft, 1)

    falling, areas = -np.sort(-scores), []
    for width in range(buffer + 1):
        soft, area, before = softened(width), 0.0, 0.0
        for i in np.linspace(0, rows - 1, thresholds).astype(int):
            taken = scores >= falling[i]
            counted = np.where(labels, 1.0, soft * taken)
            true = (counted * taken).sum()
            exists = np.mean([taken[first : last + 1].any() for first, last in regions(width)])
            recall = min(true / ((weights.sum() + counted.sum()) / 2), 1) * exists
            area, before = area + (recall - before) * true / taken.sum(), recall
        areas.append(area)
    return np.mean(areas)


@pytest.mark.parametrize("seed", range(6))
def test_vus_is_its_definition_written_out(seed):
    """The vectorised form is fast only; ties, edges and events that touch included."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(300, np.bool_)
    for first in rng.integers(0, 290, 3):
        labels[first : first + rng.integers(1, 15)] = True
    labels[-3:] |= seed == 0
    scores = rng.normal(size=300) + 1.5 * labels
    scores = np.round(scores) if seed % 2 else scores
    assert vus_pr(labels, scores, buffer=20, thresholds=60) == pytest.approx(vus_as_written(labels, scores, 20, 60))


@pytest.mark.parametrize(("buffer", "published"), [(0, 0.149810), (10, 0.248910), (40, 0.426735)])
def test_vus_is_what_the_published_implementation_gives(buffer, published):
    """Numbers computed once with TSB-AD 1.5 (generate_curve, version "opt", 250 thresholds) on the same series."""
    rows = np.arange(400)
    labels = labelled(400, (100, 109), (300, 329))
    scores = np.sin(0.7 * rows) + np.cos(1.3 * rows)
    scores[104:120] += 2.0
    scores[295:305] += 1.5
    assert vus_pr(labels, scores, buffer) == pytest.approx(published, abs=1e-6)


def test_perfect_random_and_constant_detectors_rank_as_known():
    """A detector that knows everything, one that knows nothing, one that says nothing."""
    labels = labelled(20_000, (5_000, 5_199), (12_000, 12_199))
    noise = np.random.default_rng(1).normal(size=len(labels))
    assert auc_pr(labels, labels.astype(float)) == 1.0
    assert vus_pr(labels, labels + 1e-3 * noise, buffer=0, thresholds=20_000) == pytest.approx(1.0, abs=0.01)
    assert auc_pr(labels, noise) == pytest.approx(0.02, abs=0.005)
    assert vus_pr(labels, noise) == pytest.approx(0.024, abs=0.01)
    assert auc_pr(labels, np.zeros(len(labels))) == pytest.approx(0.02)


def test_vus_forgives_a_detection_just_beside_an_event():
    """That is what buffers are for; a plain ranking does not."""
    labels = labelled(2_000, (1_000, 1_019))
    noise = 0.01 * np.random.default_rng(1).random(2_000)
    near, far = spikes(2_000, *range(990, 1_000)) + noise, spikes(2_000, *range(400, 410)) + noise
    assert vus_pr(labels, near) > 3 * vus_pr(labels, far)
    assert auc_pr(labels, near) == pytest.approx(auc_pr(labels, far), abs=0.01)


def test_auc_pr_worked_examples():
    """By hand: one false positive first; and ties taken together, whatever their order."""
    assert auc_pr(np.array([0, 1, 0, 1], bool), np.array([4.0, 3, 2, 1])) == pytest.approx((1 / 2 + 2 / 4) / 2)
    labels, tied = np.array([1, 0, 1, 0, 0], bool), np.array([2.0, 2.0, 1.0, 1.0, 0.0])
    assert auc_pr(labels, tied) == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert auc_pr(labels[::-1], tied[::-1]) == auc_pr(labels, tied)


def test_ranking_needs_labels_and_scores():
    """A mean over series must not hide one that could not be judged."""
    with pytest.raises(ValueError):
        auc_pr(labelled(10), np.zeros(10))
    with pytest.raises(ValueError):
        vus_pr(labelled(10, (2, 3)), np.full(10, np.nan))


# ---------------------------------------------------------------- events


def test_an_event_is_found_by_an_alert_during_it_or_just_before_and_other_alerts_are_false():
    """Two of three events found, one alert false, one alert beginning before its event true."""
    labels = labelled(1_000, (200, 219), (500, 509), (800, 819))
    opened, alarmed = (
        labelled(1_000, (198, 198), (400, 400), (805, 805)),
        labelled(1_000, (198, 203), (400, 402), (805, 805)),
    )
    found = count_events(labels, opened, alarmed, 100, days_per_row=0.01)
    assert (found.events, found.found, found.true_episodes, found.false_episodes) == (3, 2, 2, 1)
    assert found.delays == (0, 5)
    assert (found.recall, found.precision) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert found.f1 == pytest.approx(2 / 3)
    assert found.days == pytest.approx(9.0)
    assert found.false_alarms_per_day == pytest.approx(1 / (8.5))


def test_perfect_and_silent_detectors_of_events():
    """The ends of the scale; and a detector without alerts has no precision rather than a perfect one."""
    labels, nothing = labelled(500, (200, 219), (300, 309)), labelled(500)
    starts = labelled(500, (200, 200), (300, 300))
    perfect, silent = count_events(labels, starts, starts, 0, 1.0), count_events(labels, nothing, nothing, 0, 1.0)
    assert (perfect.recall, perfect.precision, perfect.f1, perfect.delays) == (1.0, 1.0, 1.0, (0, 0))
    assert (silent.recall, silent.f1, silent.false_alarms_per_day) == (0.0, 0.0, 0.0)
    assert math.isnan(silent.precision)


def test_a_detector_that_never_stops_alarming_is_told_by_the_normal_time_it_takes():
    """Its one alert meets every event and is true: recall and precision alone would call it perfect."""
    labels = np.zeros(1000, np.bool_)
    labels[200:210] = labels[600:610] = True
    always, begin = np.ones(1000, np.bool_), np.arange(1000) == 0
    counts = count_events(labels, begin, always, 0, 1.0)
    assert (counts.recall, counts.precision, counts.normal_share_alarmed) == (1.0, 1.0, 1.0)
    perfect = count_events(labels, np.diff(labels, prepend=False) & labels, labels, 0, 1.0)
    assert perfect.normal_share_alarmed == 0.0
    assert together([counts, perfect]).normal_share_alarmed == 0.5


def test_alarms_in_one_row_of_a_long_event_are_not_spread_over_it():
    """No point adjustment: rows beside the alarm stay what they are."""
    labels = labelled(1_000, (200, 899))
    late = labelled(1_000, (890, 890))
    assert count_events(labels, late, late, 0, 1.0).delays == (690,)


def test_what_comes_before_the_judged_rows_does_not_count():
    """A detector may learn from the training prefix."""
    labels, early = labelled(500, (300, 309)), labelled(500, (20, 20))
    assert count_events(labels, early, early, 100, 1.0).false_episodes == 0


def test_counts_of_series_add_up():
    """Pooled figures weigh every event alike."""
    labels, alarms, nothing = labelled(100, (50, 59)), labelled(100, (52, 52)), labelled(100)
    both = together([count_events(labels, alarms, alarms, 0, 1.0), count_events(labels, nothing, nothing, 0, 1.0)])
    assert (both.events, both.found, both.delays, both.days) == (2, 1, (2,), 200.0)


def test_episodes_end_where_the_next_one_opens():
    """An alert that stays open over a quiet hour is one alert."""
    opened, alarmed = labelled(100, (10, 10), (60, 60)), labelled(100, (10, 12), (20, 20), (60, 60))
    found = episodes_of(opened, alarmed, labelled(100, (18, 22)))
    assert [(e.first, e.last, e.is_true) for e in found] == [(10, 20, True), (60, 60, False)]
    assert episodes_of(labelled(100), labelled(100), labelled(100)) == []


def test_threshold_for_a_rate_is_the_lowest_that_keeps_it():
    """By hand: three bursts of 5, 4 and 3; two rows apart are one alert, twenty rows apart are two."""
    values = np.zeros(200)
    values[[10, 12, 60, 110]] = [5.0, 4.5, 4.0, 3.0]
    assert threshold_at(values, 0, quiet_rows=10) == 5.0
    assert threshold_at(values, 1, quiet_rows=10) == 4.0
    assert threshold_at(values, 2, quiet_rows=10) == 3.0
    opened, alarmed = episodes_above(values, 3.5, quiet_rows=10)
    assert np.flatnonzero(opened).tolist() == [10, 60]
    assert np.flatnonzero(alarmed).tolist() == [10, 12, 60]


def test_hit_is_the_highest_score_near_the_event():
    """How the UCR archive is judged: the training prefix does not count, 100 rows of slack do."""
    labels = labelled(2_000, (1_000, 1_019))
    assert hit_within(labels, spikes(2_000, 901), 200)
    assert not hit_within(labels, spikes(2_000, 899), 200)
    assert hit_within(labels, spikes(2_000, 1_119) + 2 * spikes(2_000, 100), 200)


def test_attribution_looks_at_the_first_five_that_contributed():
    """A feature that contributed nothing is not shown, however few others there are."""
    shares = [0.1, 0.0, 3.0, 2.0, 1.0, 0.5, 0.05]
    assert attribution_share(shares, [0]) == 1.0
    assert attribution_share(shares, [6]) == 0.0
    assert attribution_share(shares, [1]) == 0.0
    assert attribution_share([0.0] * 7, range(7)) == 0.0


def test_attribution_share_counts_what_five_places_can_hold():
    """Where experts name a dozen features, five right ones are all that can be shown; one right of two is half."""
    shares = np.arange(12.0, 0.0, -1.0)
    assert attribution_share(shares, range(12)) == 1.0
    assert attribution_share(shares, [0, 11]) == 0.5
    assert attribution_share(shares, [1, 2, 9, 10, 11, 8]) == pytest.approx(2 / 5)


def test_events_say_where_they_were_found():
    """Rows count from the beginning of the series, whatever is judged; alarms before an event do not find it."""
    labels = labelled(1_000, (50, 59), (200, 219), (500, 509))
    found = judged_events(labels, labelled(1_000, (55, 55), (199, 199), (207, 230)), 100)
    assert [(event.first, event.last, event.alarm) for event in found] == [(200, 219, 207), (500, 509, None)]


# ---------------------------------------------------------------- budgets and intervals


def test_scores_of_known_distribution_keep_their_budget():
    """Random scores with exactly the distribution they claim raise as many alarms as the budget allows, or fewer."""
    rng = np.random.default_rng(3)
    scores = np.round(-np.log10(rng.uniform(size=(20_000, 20))), 3).astype(np.float32)
    elapsed = np.full(scores.shape, 60.0, np.float32)
    opened, alarmed = alarms_at(scores, elapsed, np.full(20, 1440.0))
    days = scores.size / 1440
    assert 0.7 < opened.sum() / days < 1.3
    assert alarmed.sum() >= opened.sum()
    assert not alarmed[:100].any()


def test_a_wider_budget_gives_more_alerts():
    """The knob means what it says, and columns do not matter to each other."""
    rng = np.random.default_rng(4)
    one = np.round(-np.log10(rng.uniform(size=(5_000, 1))), 3).astype(np.float32)
    elapsed = np.full((5_000, 3), 60.0, np.float32)
    opened, _ = alarms_at(np.repeat(one, 3, 1), elapsed, np.array([500.0, 2_000.0, 500.0]))
    assert opened[:, 0].sum() > opened[:, 1].sum()
    assert (opened[:, 0] == opened[:, 2]).all()


def test_bootstrap_interval_covers_the_mean_and_shrinks_with_series():
    """An interval over series, reproducible; one series has none."""
    rng = np.random.default_rng(5)
    few, many = list(rng.normal(1.0, 1.0, 10)), list(rng.normal(1.0, 1.0, 1_000))
    wide, narrow = bootstrap(few, np.mean), bootstrap(many, np.mean)
    assert wide.low < wide.value < wide.high
    assert narrow.high - narrow.low < 0.3 * (wide.high - wide.low)
    assert bootstrap(few, np.mean) == wide
    assert math.isnan(bootstrap(few[:1], np.mean).low)
