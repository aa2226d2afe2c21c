"""The evaluation measures the production engine, judges what it claims to judge, and compares like with like."""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
import re
import select
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from models.evaluation.events import EventCounts
from models.pretrained import builtin
from pipeline.__main__ import EXIT_CONFIGURATION, main
from pipeline.errors import ConfigurationError
from pipeline.evaluate.compare import Raised, differences
from pipeline.evaluate.contenders import BASELINES, SERVED, gaussian_scores, predictor_of, random_tracks, river_track
from pipeline.evaluate.fold import fold, groups_of
from pipeline.evaluate.generated import plant_entries, plant_series
from pipeline.evaluate.judge import ANOMALOUS, AtBudget, Attribution, Clean, Ranking, judge, replay_budgets
from pipeline.evaluate.pictures import thinned
from pipeline.evaluate.plan import PLANS, plan_of
from pipeline.evaluate.report import as_json, as_markdown, as_page
from pipeline.evaluate.run import perform, run_tasks, tasks_of
from pipeline.evaluate.series import load_series, read_entries
from pipeline.evaluate.summary import HEADLINES, figure, figures, interval
from pipeline.evaluate.tables import (
    Evaluation,
    attribution_table,
    budget_table,
    lost_table,
    shown,
    tables_of,
    worst_first,
)
from pipeline.offline import Offline
from pipeline.output_files import write_all
from pipeline.profile import Profile
from pipeline.records import OPENED, Partition, StoredRecord
from pipeline.sinks.recording import RecordWriter
from pipeline.wire import encode_packed
from tests.builders import INTERVAL_MS, START_MS, make_series
from tests.pipeline.test_replay import write_csv

pytestmark = pytest.mark.slow

ROWS, SPIKE = 700, 500
KNOBS = Profile(topics=("recording",), features=("value",))


def write_folder(folder, **series):
    """A folder of recordings with a manifest: ``data_set__name=(values (T, F), labels or None, interval)``."""
    entries = []
    for name, (values, labels, interval_s) in series.items():
        data_set, series_id = name.split("__")
        features = [f"m{i + 1}" for i in range(values.shape[1])]
        (folder / data_set).mkdir(exist_ok=True)
        with gzip.open(folder / data_set / f"{series_id}.csv.gz", "wt", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["timestamp", *features, *(() if labels is None else ("label",))])
            for row, observed in enumerate(values):
                time = row if interval_s is None else int(row * interval_s)
                label = () if labels is None else (int(labels[row]),)
                rows.writerow([time, *("" if np.isnan(x) else round(float(x), 4) for x in observed), *label])
        entries.append(
            {
                "dataset": data_set, "series_id": series_id, "file": f"{data_set}/{series_id}.csv.gz",
                "rows": len(values), "features": features, "domain": "server", "interval_seconds": interval_s,
                "timestamp_kind": "row_index" if interval_s is None else "seconds",
                "train_prefix_rows": 300,
            }
        )  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps({"series": entries}))
    return folder


def steady(features=1, seed=0, length=ROWS):
    """A daily-like wave with noise, and one spike of many sigma in its first feature."""
    rng = np.random.default_rng(seed)
    wave = 10 + 3 * np.sin(np.arange(length)[:, None] / 12 + np.arange(features))
    values = wave + rng.normal(0, 0.2, (length, features))
    values[SPIKE : SPIKE + 5, 0] += 25
    labels = np.zeros(length, np.bool_)
    labels[SPIKE : SPIKE + 5] = True
    return values, labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(
        tmp_path_factory.mktemp("recordings"),
        ucr__one=(*steady(seed=1), None),
        ucr__two=(*steady(seed=2, length=650), None),
        smd__machine=(*steady(features=6, seed=3), 60.0),
    )


@pytest.fixture(scope="module")
def served(folder):
    return tracks_of(folder)


def tracks_of(folder, contender=SERVED):
    series = load_series(folder, read_entries(folder))
    tracks = {}
    for group in groups_of(series, KNOBS):
        tracks |= fold(group, predictor_of(contender, builtin("gru")), has_bands=True)
    return {item.name: (item, tracks[item.name]) for item in series}


def test_series_side_by_side_score_as_each_alone(served):
    """One engine for all series is a matter of speed; and what is measured is what production computes."""
    for item, track in served.values():
        [group] = groups_of([item], KNOBS)
        offline = Offline("alone", group.profile, builtin("gru"))
        stream = replace(item.stream, features=group.profile.features)
        parts = [scores.score for absorbed in offline.score_streams([stream]) for scores in absorbed.scores]
        np.testing.assert_allclose(track.score, np.concatenate(parts), atol=1e-3)


def test_series_of_one_kind_share_an_engine(folder):
    """Series by series would take hours."""
    groups = groups_of(load_series(folder, read_entries(folder)), KNOBS)
    assert sorted(len(group.series) for group in groups) == [1, 2]


def test_an_evident_fault_is_found_and_attributed(served):
    """End to end: the spike is the highest rank, raises an alert, and names its feature."""
    item, track = tracked = served["smd/machine"]
    assert (track.verdict[SPIKE : SPIKE + 5] == ANOMALOUS).any()
    result = judge(*tracked, {})
    assert result.hit
    assert result.ranked.vus_pr > 0.5
    assert result.budgets["production"].events.found == 1
    assert np.argmax(track.contribution[SPIKE]) == 0
    assert item.stream.features[0] == "m1"


def test_budget_of_production_replayed_gives_the_alerts_of_production(served):
    """Other budgets are decided by the same code on the same scores: at its own budget it must say the same."""
    item, track = served["smd/machine"]
    opened, alarmed = replay_budgets([item], {item.name: track}, {"own": 1 / 7})[item.name]["own"]
    np.testing.assert_array_equal(opened, track.event == OPENED)
    np.testing.assert_array_equal(alarmed, track.verdict == ANOMALOUS)


def test_late_rows_have_no_score_and_the_others_keep_their_place(tmp_path):
    """A recording may repeat timestamps; labels must stay with their rows."""
    values, labels = steady()
    folder = write_folder(tmp_path, mscloud__late=(values, labels, 60.0))
    [item] = load_series(folder, read_entries(folder))
    times = item.stream.times_ms.copy()
    times[200] = times[199]
    item = replace(item, stream=replace(item.stream, times_ms=times))
    [group] = groups_of([item], KNOBS)
    track = fold(group, predictor_of(SERVED, builtin("gru")))[item.name]
    assert np.flatnonzero(np.isnan(track.score)).tolist() == [200]
    assert SPIKE <= int(np.nanargmax(track.score)) < SPIKE + 10


def test_rows_without_any_value_rank_as_no_evidence(tmp_path):
    """A row in which every feature is missing has no value of what ranks, and neither heads nor ends the ranking."""
    values, labels = steady()
    values[600:610] = np.nan
    [item] = load_series(folder := write_folder(tmp_path, ucr__gap=(values, labels, None)), read_entries(folder))
    [group] = groups_of([item], KNOBS)
    ranked = fold(group, predictor_of(SERVED, builtin("gru")))[item.name].ranked
    assert np.isnan(ranked[600:610]).all()
    assert np.isfinite(ranked[300:600]).all()


def test_naive_expects_the_last_value(folder):
    """The zero control is what its name says."""
    naive = next(contender for contender in BASELINES if contender.name == "naive")
    item, track = tracks_of(folder, naive)["ucr/one"]
    np.testing.assert_allclose(track.expected[200:400, 0], item.stream.values[199:399, 0], rtol=1e-3)


def test_random_scores_stay_near_their_budget_and_find_nothing(folder):
    """A reference that shows what chance gives."""
    [group] = groups_of(load_series(folder, read_entries(folder))[:1], KNOBS)
    [track] = random_tracks(group).values()
    assert np.isfinite(track.score).all()
    assert (track.event == OPENED).sum() <= 2


def test_random_scores_of_a_series_do_not_depend_on_its_neighbours(folder):
    """Series of unequal length that are decided on together, each as by itself."""
    long, *_ = load_series(folder, read_entries(folder))
    short = replace(long, entry=long.entry.model_copy(update={"series_id": "short"}), stream=replace(
        long.stream, name="ucr/short", times_ms=long.stream.times_ms[:300], values=long.stream.values[:300],
        labels=long.stream.labels[:300],
    ))  # fmt: skip
    [alone] = groups_of([long], KNOBS)
    alone = replace(alone, profile=alone.profile.model_copy(update={"alarm_budget": "20 per day"}))
    one, both = random_tracks(alone), random_tracks(replace(alone, series=(long, short)))
    np.testing.assert_array_equal(both[long.name].score, one[long.name].score)
    np.testing.assert_array_equal(both[long.name].event, one[long.name].event)
    assert (one[long.name].event == OPENED).any()
    assert np.isfinite(both["ucr/short"].score).all()
    last = random_tracks(replace(alone, series=(short, long)))
    np.testing.assert_array_equal(last[long.name].score, one[long.name].score)


@pytest.mark.parametrize("name", ["half_space_trees", "gaussian"])
def test_river_references_rank_the_spike_high(folder, name):
    """References are used as their makers mean them: higher is more anomalous, scored before learned."""
    item = load_series(folder, read_entries(folder))[0]
    result = judge(item, river_track(item, name), {})
    assert result.ranked.auc_pr > 0.1
    assert result.budgets == {}


@pytest.mark.parametrize(
    ("words", "controls"),
    [
        ([], ["naive", "random", "half_space_trees", "gaussian"]),
        (["--controls", "naive", "untrained"], ["naive", "untrained"]),
    ],
)
def test_quick_run_has_time_for_the_cheap_controls_and_for_those_that_are_named(folder, tmp_path, words, controls):
    """Three minutes are short: two controls that cost as much as what is served run where someone asks for them."""
    out = tmp_path / "quick.json"
    asked = ["evaluate", str(folder), "--quick", "--only", "ucr", *words, "--processes", "1", "--no-pictures"]
    assert main([*asked, "--json", str(out)]) == 0
    assert list(json.loads(out.read_text())["controls"]) == controls


def test_gaussian_reference_calls_a_constant_feature_normal():
    """river scores every value of a constant window 1, or fails on a variance below 0: that would flatter us."""
    values = np.full((900, 1), 0.1, np.float32)
    values[:200, 0] = np.random.default_rng(0).normal(1e3, 1.0, 200)
    values[880] = 0.2
    scores = gaussian_scores(values)
    assert (scores[720:880] == 0).all()
    assert scores[880] == 17, "as surprising as can be"


def test_quick_run_takes_a_part_of_the_folder(folder, tmp_path):
    """The part is fixed by rules and not by names, so that other recordings of the same kind have a quick part, too."""
    assert len(read_entries(folder, is_quick=True)) == 3
    values, labels = steady(features=2, length=12_500)
    long = write_folder(tmp_path, ucr__long=(values, labels, None), smd__long=(values, labels, 60.0))
    [entry] = read_entries(long, is_quick=True)
    assert entry.name == "smd/long"
    [item] = load_series(long, [entry], is_quick=True)
    assert len(item.stream) == 6_000


def test_quick_part_of_a_server_holds_its_first_event_after_the_training_prefix(tmp_path):
    """Otherwise most machines would say nothing of what is found."""
    values, labels = steady(features=2, length=12_500)
    labels[:] = False
    labels[9_000:9_020] = True
    folder = write_folder(tmp_path, smd__late=(values, labels, 60.0), smd__none=(values, np.zeros(12_500, bool), 60.0))
    late, none = load_series(folder, read_entries(folder, is_quick=True), is_quick=True)
    assert np.flatnonzero(late.labels).tolist() == list(range(4_000, 4_020))
    assert len(none.stream) == 6_000


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(folder):
    """Where a task runs is a matter of speed."""
    tasks = tasks_of(folder, read_entries(folder), [SERVED], [KNOBS], has_pictures=False)
    alone = {done.task.number: done.results for done in run_tasks(tasks, 1)}
    shared = {done.task.number: done.results for done in run_tasks(tasks, 2)}
    assert alone.keys() == shared.keys()
    for number, results in alone.items():
        for result, other in zip(results, shared[number], strict=True):
            assert figures([[result]]) == pytest.approx(figures([[other]]), nan_ok=True)


@pytest.fixture(scope="module")
def evaluation(folder):
    """Two weights, the shipped ones twice, beside naive and random."""
    contenders = (SERVED, *(contender for contender in BASELINES if contender.name in ("naive", "random")))
    runs = {"served": [[], []], "naive": [[]], "random": [[]]}
    for task in tasks_of(folder, read_entries(folder), contenders, [KNOBS, KNOBS]):
        runs[task.contender.name][task.run].extend(perform(task))
    return Evaluation({"commit": "none"}, contenders, runs)


def test_reports_hold_every_contender_and_series(evaluation):
    """JSON for machines, a page and Markdown for people, from the same results."""
    found = as_json(evaluation)
    assert set(HEADLINES) <= found.keys()
    assert set(HEADLINES) == found["controls"]["naive"].keys() == found["controls"]["random"].keys()
    assert found["ucr_hits"] == 2
    assert found["nab_standard"] is None
    assert found["overall"]["served"]["vus_pr"] > found["overall"]["random"]["vus_pr"]
    assert found["series"]["smd/machine"]["vus_pr"] > 0.5
    json.dumps(found, allow_nan=False)
    page = as_page(evaluation)
    assert page.count("<img ") == 3
    assert "smd/machine" in page
    text = as_markdown(evaluation, "tidewatch evaluate")
    assert all(table.title in text and table.title in page for table in tables_of(evaluation))


def test_summary_has_the_keys_that_others_read(evaluation):
    """Names that scripts and the issue rely on."""
    wanted = {
        "nab_standard", "nab_low_fp", "nab_low_fn", "smd_vus_pr", "smd_auc_pr", "event_recall",
        "false_alarms_per_stream_day", "budget_ratio", "attribution_hit_rate", "ucr_hits", "smap_vus_pr", "msl_vus_pr",
        "mscloud_vus_pr",
    }  # fmt: skip
    assert wanted <= as_json(evaluation).keys()


def test_figures_of_several_weights_are_means(evaluation):
    """Averages over pretraining seeds: the same weights twice change nothing, a control among them pulls halfway."""
    runs, naive = evaluation.runs["served"], evaluation.runs["naive"][0]
    assert figures(runs) == pytest.approx(figures(runs[:1]), nan_ok=True)
    mixed = figure([runs[0], naive], "vus_pr")
    assert mixed == pytest.approx((figure([runs[0]], "vus_pr") + figure([naive], "vus_pr")) / 2)
    assert len(as_json(evaluation)["weights"]) == 2


def with_alarms(result, *, found=1, false=0, delay=3, clean=1, vus_pr=0.5):
    """A result of ten judged days with two events, and of seventy clean ones at every budget."""
    counts = EventCounts(2, found, found, false, (delay,) * found, 10.0, 10.0, 0.0)
    budgets = dict.fromkeys(("production", "1/day", "1/week", "1/month"), AtBudget(counts, Clean(clean, 70.0)))
    return replace(result, budgets=budgets, delays_s=(60.0 * delay,) * found, ranked=Ranking(vus_pr, vus_pr))


def lost(evaluation, served, **controls):
    """The control that stands for each figure in which one is better; the first series of ucr, one run each."""
    contenders = (SERVED, *(contender for contender in BASELINES if contender.name in controls))
    made = Evaluation({}, contenders, {"served": [served], **{name: [own] for name, own in controls.items()}})
    return {row[0]: row[2] for row in lost_table(made).rows}


def test_controls_with_fewer_false_alarms_or_shorter_delays_are_better(evaluation):
    """Where less is better a control is not forgotten; but random scores have few false alarms by finding nothing."""
    one = evaluation.served[0]
    served, naive = with_alarms(one, false=5, delay=4), with_alarms(one, false=3, delay=2)
    random = with_alarms(one, found=0, vus_pr=0.1)
    assert lost(evaluation, [served], naive=[naive], random=[random]) == {
        "event_precision": "naive", "event_f1": "naive", "delay_observations": "naive", "delay_s": "naive",
        "false_alarms_per_stream_day": "naive", "ucr, false alarms per stream and day": "naive",
    }  # fmt: skip
    assert lost(evaluation, [naive], naive=[served], random=[random]) == {}


@pytest.mark.parametrize(
    ("served", "naive", "is_better"), [(5, 15, True), (15, 5, False), (5, 21, False), (0, 40, True)]
)
def test_budget_ratios_are_better_nearer_to_one_by_factor(evaluation, served, naive, is_better):
    """Half of the ten alarms allowed is as far off as twice as many, and none at all is furthest."""
    one = evaluation.served[0]
    found = lost(evaluation, [with_alarms(one, clean=served)], naive=[with_alarms(one, clean=naive)])
    assert ("budget_ratio" in found) == is_better


def test_controls_that_skip_plants_are_compared_too(evaluation):
    """Plants are in a full run; without this no reference would be beside any headline there."""
    one = evaluation.served[0]
    plant = replace(with_alarms(one), name="plants/1", data_set="plants", ranked=Ranking(math.nan, math.nan))
    found = lost(evaluation, [with_alarms(one), plant], random=[with_alarms(one, found=2, vus_pr=0.9)])
    assert {"event_recall", "event_f1", "ucr, VUS-PR", "ucr, AUC-PR"} == found.keys()


def test_counts_beside_means_over_weights_are_means(evaluation):
    """A ratio of several weights beside the alarms of the first one would not add up."""
    causes = Attribution(events=4, alerted=2, hits=1, shares=1.0, hits_all=2, shares_all=2.0)
    first = replace(with_alarms(evaluation.served[0], clean=30), attribution=causes)
    second = replace(with_alarms(first, clean=45), attribution=replace(causes, alerted=3))
    made = Evaluation({}, (SERVED,), {"served": [[first], [second]]})
    assert budget_table(made).rows[-1][2:4] == ("0.536 (37.5 of 70.0)", "3.750 (37.5 of 10.0)")
    assert attribution_table(made).rows[0][2] == "2.5 of 4"
    assert budget_table(replace(made, runs={"served": [[first]]})).rows[-1][2] == "0.429 (30 of 70.0)"


def test_notes_say_what_figures_are_made_of(evaluation):
    """Assumed minutes, a pooled recall inside F1, and where controls begin: none of it can be guessed from a table."""
    notes = {table.title: table.note for table in tables_of(evaluation)}
    timed = [note for title, note in notes.items() if title.startswith(("Headlines", "Alarm", "Events found"))]
    assert len(timed) == 4
    assert all("without any time count as minutes" in note for note in timed)
    pooled = [note for note in timed if "recall of all events together" in note]
    assert len(pooled) == 2
    assert "begin with the pooled tails of the served weights" in notes["Headlines"]


def test_difference_to_a_control_draws_the_same_series_for_both(evaluation):
    """A contender lies exactly 0 above itself in every draw."""
    runs = evaluation.runs["served"]
    same = interval(runs, "vus_pr", runs)
    assert (same.low, same.value, same.high) == (0.0, 0.0, 0.0)


def test_every_miss_and_false_alarm_is_named(served):
    """What went wrong comes first in the report: where, how far from the threshold, and the feature."""
    item, track = served["ucr/one"]
    event, verdict = np.zeros_like(track.event), np.zeros_like(track.verdict)
    event[400], verdict[400:403] = OPENED, ANOMALOUS
    result = judge(item, replace(track, event=event, verdict=verdict), {})
    [miss], [false] = result.misses, result.false_alarms
    assert SPIKE <= miss.row < SPIKE + 5
    assert miss.rows == 5
    assert (false.rows, false.feature) == (3, "m1")
    assert 400 <= false.row <= 402
    assert worst_first([judge(item, track, {}), result])[0] is result


def test_delays_in_seconds_are_those_of_event_time(served):
    """A delay of three rows of a minute is three minutes."""
    item, track = served["smd/machine"]
    verdict = np.zeros_like(track.verdict)
    verdict[SPIKE + 3] = ANOMALOUS
    assert judge(item, replace(track, verdict=verdict), {}).delays_s == (180.0,)


def test_plants_measure_the_budget_and_nothing_else():
    """Nothing happens in them: every row after the warm-up is clean, none is judged, and they are always the same."""
    entries = plant_entries(is_quick=True)
    series, again = (plant_series(made, is_quick=True) for made in (entries, plant_entries(is_quick=True)))
    assert len(series) == len(entries) > 0
    for item, other in zip(series, again, strict=True):
        assert (item.clean_rows.start, item.clean_rows.stop) == (100, item.entry.rows)
        assert not item.is_judged
        assert not item.labels.any()
        np.testing.assert_array_equal(item.stream.values, other.stream.values)


def test_long_recordings_are_cut_to_a_part_with_their_events(tmp_path):
    """The long files of kdd99 have their events far from the beginning."""
    values, labels = steady(length=60_000)
    late = np.roll(labels, 40_000)
    folder = write_folder(tmp_path, kdd99__http=(np.roll(values, 40_000, 0), late, None))
    [item] = load_series(folder, read_entries(folder))
    assert len(item.stream) == 25_000
    assert item.labels.sum() == 5
    assert np.nanargmax(item.stream.values[:, 0]) in np.flatnonzero(item.labels)
    assert item.entry.data_set == "kdd99/http"


def test_command_writes_what_it_is_asked_for(folder, tmp_path, capsys):
    """The one command of the results page."""
    out = tmp_path / "out"
    words = ["evaluate", str(folder), "--only", "ucr", "--controls", "naive", "--processes", "1", "--no-pictures"]
    assert main([*words, "--json", str(out / "all.json"), "--markdown", str(out / "results.md")]) == 0
    written = json.loads((out / "all.json").read_text())
    assert (written["ucr_hits"], written["controls"]["naive"]["ucr_hits"]) == (2, 2)
    assert "| ucr_hits | 2 | 2 |" in (out / "results.md").read_text()
    assert re.search(r"ucr_hits\W+2\W+2\W", capsys.readouterr().out)


def test_series_without_labels_are_named_and_not_counted(tmp_path, capsys):
    """Figures are of what was judged, and whoever forgot a column of labels hears of it."""
    values, labels = steady(length=SPIKE + 20)
    folder = write_folder(tmp_path, own__one=(values, labels, 60.0), own__bare=(values, None, 60.0))
    words = ["evaluate", str(folder), "--only", "own", "--controls", "--processes", "1", "--no-pictures"]
    assert main([*words, "--json", str(tmp_path / "all.json")]) == 0
    assert "left out, without a label or a numeric feature: own/bare\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "all.json").read_text())["made_with"]["series"] == "1"


def test_recordings_without_any_label_are_refused(tmp_path, capsys):
    """An empty table would look like a result."""
    folder = write_folder(tmp_path, own__bare=(steady()[0], None, 60.0))
    words = ["evaluate", str(folder), "--only", "own", "--controls", "--processes", "1", "--no-pictures"]
    assert main(words) == EXIT_CONFIGURATION
    assert "nothing to judge" in capsys.readouterr().err


def test_results_page_names_the_row_that_made_it(folder, tmp_path):
    """Whoever repeats the command of the page gets its figures, not those of the other row."""
    page = tmp_path / "results.md"
    words = ["evaluate", str(folder), "--only", "ucr/two", "--light", "--controls", "--processes", "1", "--no-pictures"]
    assert main([*words, "--markdown", str(page)]) == 0
    assert "Made by `tidewatch evaluate RECORDINGS --only ucr/two --light --controls" in page.read_text()


@pytest.mark.parametrize("output", ["--json", "--markdown", "--report"])
def test_outputs_that_cannot_be_written_are_refused_before_the_work(output, tmp_path, capsys):
    """Hours of work are not lost to a slip of the pen: here not even the recordings are looked for."""
    words = ["evaluate", str(tmp_path / "nowhere"), "--no-pictures", output]
    (tmp_path / "file").write_text("")
    assert main([*words, str(tmp_path)]) == EXIT_CONFIGURATION
    assert f"{tmp_path}: cannot be written: it is a folder" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "file" / "out")]) == EXIT_CONFIGURATION
    assert "out: cannot be written" in capsys.readouterr().err


def test_output_that_fails_does_not_take_the_others_along(tmp_path):
    """A folder that went away in the meantime costs one file, not the results."""
    told = []
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write_all([(tmp_path, "lost"), (tmp_path / "kept", "figures")], told.append)
    assert (tmp_path / "kept").read_text() == "figures"
    assert told == [f"{tmp_path / 'kept'} written"]


@pytest.mark.parametrize("processes", ["0", "-1"])
def test_less_than_one_process_is_refused(processes, tmp_path, capsys):
    """One line, not a traceback from inside the pool."""
    assert main(["evaluate", str(tmp_path), "--processes", processes]) == EXIT_CONFIGURATION
    assert "--processes must be at least 1" in capsys.readouterr().err


def test_thinned_picture_keeps_extremes_beside_missing_values():
    """A gap in a stretch hides neither what was observed there nor the fault; a stretch without values stays a gap."""
    values = np.full(6_000, 1000.0, np.float32)
    values[::2] = np.nan
    values[4_001], values[5_001] = 960.0, 1040.0
    values[:800] = np.nan
    rows = thinned(values)
    assert {4_001, 5_001} <= set(rows.tolist())
    assert np.isfinite(values[rows[rows >= 800]]).all()
    assert rows[rows < 800].tolist() == list(range(0, 800, 8))


# ---------------------------------------------------------------- compare


def raised(stream, opened, ended, peak=5.0):
    return Raised(stream, opened, ended, peak, "warning")


def test_alerts_are_matched_where_they_overlap():
    """What changes for the people who are paged: appears, disappears, moves."""
    before = [raised("a", 0, 100), raised("a", 500, 600), raised("b", 0, 100)]
    after = [raised("a", 0, 90), raised("a", 550, 700), raised("c", 0, 100)]
    found = differences(before, after, last_ms=1_000)
    assert [pair[0].opened_ms for pair in found.same] == [0]
    assert [(a.opened_ms, b.opened_ms) for a, b in found.moved] == [(500, 550)]
    assert [alert.stream_id for alert in found.disappeared] == ["b"]
    assert [alert.stream_id for alert in found.appeared] == ["c"]
    assert found.last_month == (3, 3)


def test_compare_replays_both_configurations(folder, tmp_path, capsys):
    """A tighter budget cannot add alerts here, and the same file on both sides changes nothing."""
    settings = tmp_path / "a.toml"
    settings.write_text(
        '[profiles.servers]\ntopics = ["t"]\nfeatures = ["m1", "m2", "m3", "m4", "m5", "m6"]\ninterval_s = 60.0\n'
        'clock = false\nevidence = "jump"\n'
    )
    out = tmp_path / "difference.json"
    words = ["evaluate", str(folder), "--only", "smd", "--compare", str(settings), str(settings)]
    assert main([*words, "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["same"] >= 1
    assert (found["moved"], found["appeared"], found["disappeared"]) == ([], [], [])
    assert "alerts the same" in capsys.readouterr().out


def test_compare_refuses_a_profile_with_other_features(folder, tmp_path, capsys):
    """One line that names both, as a replay says it, not a traceback from inside the model."""
    settings = tmp_path / "a.toml"
    settings.write_text('[profiles.plant]\ntopics = ["t"]\nfeatures = ["flow"]\ninterval_s = 60.0\n')
    words = ["evaluate", str(folder), "--only", "smd", "--compare", str(settings), str(settings)]
    assert main([*words, "--profile", "plant"]) == EXIT_CONFIGURATION
    assert "profile plant has the features flow; stream 'smd/machine' has m1, m2" in capsys.readouterr().err


def test_compare_refuses_what_it_would_ignore(tmp_path, capsys):
    """Whoever asks for a page and gets none would look for it."""
    words = ["evaluate", str(tmp_path), "--compare", "a.toml", "b.toml", "--quick", "--light", "--controls", "naive"]
    words += ["--predictor", "lstm", "--report", "page.html", "--markdown", "page.md"]
    assert main(words) == EXIT_CONFIGURATION
    ignored = "--quick, --predictor, --light, --controls, --report, --markdown"
    assert f"--compare goes without {ignored}: " in capsys.readouterr().err


def test_compare_says_that_a_recording_has_another_interval(tmp_path, capsys):
    """A budget is of event time: where a minute counts as half of one, it allows half of the alarms."""
    settings, recording = tmp_path / "a.toml", write_csv(tmp_path / "wave.csv", {"s": make_series(1, 30, spikes=0)})
    settings.write_text('[profiles.waves]\ntopics = ["waves"]\nfeatures = ["value"]\ninterval_s = 30.0\n')
    assert main(["evaluate", str(recording), "--compare", str(settings), str(settings)]) == 0
    assert "a.toml: 1 of 1 streams are not 30 s apart; alarm budgets count every" in capsys.readouterr().out


def test_compare_takes_records_of_a_topic(tmp_path, capsys):
    """What ``record`` wrote is a recording too: decoded with the profile that its topic is bound to."""
    settings, records = tmp_path / "a.toml", tmp_path / "waves.records.jsonl.gz"
    settings.write_text('[profiles.waves]\ntopics = ["waves"]\nfeatures = ["value"]\ninterval_s = 60.0\n')
    values = make_series(0, 140, spikes=0)
    values[135:] += 30.0
    with RecordWriter(records) as writer:
        for offset, row in enumerate(values):
            times_ms = np.array([START_MS + offset * INTERVAL_MS])
            value = encode_packed("s", times_ms, row[None])
            writer.add(Partition("waves", 0), StoredRecord(offset, int(times_ms[0]), b"s", value))
    words = ["evaluate", str(records), "--compare", str(settings), str(settings)]
    assert main(words) == 0
    assert "1 alerts the same" in capsys.readouterr().out
    assert main([*words, "--only", "other"]) == EXIT_CONFIGURATION


def test_series_of_a_pattern_have_a_plan_of_their_own():
    """Captures of few numbers are judged apart from the wide one of the same data set."""
    assert plan_of("kdd99/http_b") == PLANS["kdd99/http*"]
    assert plan_of("kdd99/all_10pct") == PLANS["kdd99"]
    assert plan_of("nobody/knows").evidence is None


def test_event_without_a_score_is_a_miss_without_a_height():
    """Where a recording has no values there is no score, so no distance from the threshold: a dash, not a crash."""
    assert shown(float("-inf")) == shown(float("inf")) == shown(float("nan")) == "–"
    assert [shown(value) for value in (0.0, 0.5, 12.34, 1234.5, 1e9)] == ["0", "0.500", "12.3", "1234", "1000000000"]


KILLED = """
import multiprocessing, threading
from pipeline.evaluate.run import _begin

def work():
    _begin(None, None)
    threading.Event().wait()

if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=work)
    child.start()
    print(child.pid, flush=True)
    child.join()
"""


def test_killed_run_takes_its_processes_along(tmp_path):
    """Processes that outlive a killed evaluation would fold for minutes, for nobody, on cores that others want."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    ended, _, _ = select.select([child], [], [], 60.0)
    os.close(child)
    assert ended
