"""The tables of a finished run: rows of words, for pages of any kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from statistics import fmean

from models.evaluation.bootstrap import Interval
from pipeline.evaluate.contenders import SERVED, Contender
from pipeline.evaluate.judge import BUDGETS, Moment, SeriesResult
from pipeline.evaluate.plan import PLANTS
from pipeline.evaluate.summary import (
    BY_KEY,
    HEADLINES,
    LEAST_EXPECTED,
    Results,
    Runs,
    attribution_of,
    by_data_set,
    by_domain,
    clean_at,
    counts_at,
    figure,
    headline_interval,
    headlines,
    recorded,
)

LESS_IS_BETTER = ("false_alarms", "delay")
BUDGET_RATIO = "budget_ratio"
RANKING = ("vus_pr", "auc_pr")
ALARMS = (
    "event_recall", "false_alarms_per_stream_day", "recall_at_0.25/day", "recall_at_0.5/day", "recall_at_1/day",
    "attribution_share",
)  # fmt: skip
MOMENTS = 15
ROWS_ARE_MINUTES = "Rows of recordings without any time count as minutes."


@dataclass(frozen=True)
class Evaluation:
    """A finished run.

    Attributes
    ----------
    made_with
        What it was made with: commit, weights, settings, machine; words by name.
    contenders
        Columns of the tables; the first one is served.
    runs
        By contender's name: results of every series, once for each of its weights.
    """

    made_with: Mapping[str, str]
    contenders: tuple[Contender, ...]
    runs: Mapping[str, Runs]

    def __post_init__(self) -> None:
        assert self.contenders[0] == SERVED

    @property
    def served(self) -> Results:
        """Results of the served predictor, with the first of its weights."""
        return self.runs[SERVED.name][0]

    @property
    def baselines(self) -> tuple[Contender, ...]:
        """The other contenders."""
        return self.contenders[1:]

    @cached_property
    def headlines(self) -> dict[str, dict[str, float]]:
        """Headlines of each contender."""
        return {contender.name: headlines(self.runs[contender.name]) for contender in self.contenders}

    @cached_property
    def by_weights(self) -> list[dict[str, float]]:
        """Headlines of the served predictor with each of its weights."""
        return [headlines([results]) for results in self.runs[SERVED.name]]

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """Bootstrap intervals of the served predictor's headlines."""
        return {key: headline_interval(self.runs[SERVED.name], key) for key in HEADLINES}

    @cached_property
    def above_naive(self) -> dict[str, Interval]:
        """By how much the served predictor lies above naive, over the same drawn series; empty without naive."""
        naive = self.runs.get("naive", ())
        return {key: headline_interval(self.runs[SERVED.name], key, naive) for key in HEADLINES} if naive else {}

    def group(self, contender: str, of: Callable[[Results], Mapping[str, Results]], name: str) -> Runs:
        """The runs of a contender, only series of one data set or domain."""
        return [of(results).get(name, []) for results in self.runs[contender]]

    def chooser(self, of: Callable[[Results], Mapping[str, Results]], name: str) -> Callable[[str], Runs]:
        """The same, still to be told the contender."""
        return lambda contender: self.group(contender, of, name)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of words under column heads, and what one must know to read them."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def shown(value: float) -> str:
    """A figure as people read it; a dash where there is none."""
    if not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    text = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
    return "0.000" if text == "-0.000" else text


def _mean_count(counts: Iterable[int]) -> str:
    """A count, or the mean of those that several weights gave."""
    return f"{round(fmean(counts), 1):g}"


def _reach(found: Interval) -> str:
    return "–" if math.isnan(found.low) else f"{shown(found.low)} to {shown(found.high)}"


def tables_of(evaluation: Evaluation) -> list[Table]:
    """What the results page holds, the most important first."""
    return [
        headline_table(evaluation),
        ranking_table(evaluation),
        alarm_table(evaluation),
        budget_table(evaluation),
        rate_table(evaluation),
        attribution_table(evaluation),
        lost_table(evaluation),
        taken_table(evaluation),
    ]


def headline_table(evaluation: Evaluation) -> Table:
    """Served, baselines, and how sure that is."""
    several = len(evaluation.by_weights) > 1
    rows = []
    for key in HEADLINES:
        values = [evaluation.headlines[contender.name][key] for contender in evaluation.contenders]
        if all(math.isnan(value) for value in values):
            continue
        each = [found[key] for found in evaluation.by_weights]
        above = evaluation.above_naive.get(key)
        rows.append(
            (
                key,
                shown(values[0]),
                *((f"{shown(min(each))} to {shown(max(each))}",) if several else ()),
                *(shown(value) for value in values[1:]),
                _reach(evaluation.intervals[key]),
                *(() if above is None else (_reach(above),)),
            )
        )
    heads = (
        "figure",
        "served",
        *(("its weights",) if several else ()),
        *(contender.name for contender in evaluation.baselines),
        "90 % interval",
        *(("above naive, 90 %",) if evaluation.above_naive else ()),
    )
    return Table(
        "Headlines",
        heads,
        tuple(rows),
        "Intervals are of bootstrap draws over series; those above naive draw the same series for both. event_recall "
        "is the mean over series, event_f1 is made of precision and the recall of all events together. Controls "
        "through the chain begin with the pooled tails of the served weights. NAB's threshold is the best one for its "
        f"corpus, chosen with the labels, as its rules say. {ROWS_ARE_MINUTES}",
    )


Group = tuple[str, Callable[[str], Runs]]
"""Words for some series, and a contender's runs of them by its name."""


def _groups(evaluation: Evaluation) -> list[Group]:
    """Data sets, domains and everything that is judged."""
    judged = [result for result in evaluation.served if result.data_set != PLANTS]
    domains = [(f"*{name}*", evaluation.chooser(by_domain, name)) for name in by_domain(judged)]
    return [*_sets(evaluation, judged), *domains, _all(evaluation)]


def _sets(evaluation: Evaluation, results: Results) -> list[Group]:
    return [(name, evaluation.chooser(by_data_set, name)) for name in by_data_set(results)]


def _all(evaluation: Evaluation) -> Group:
    return "**all**", lambda contender: evaluation.runs[contender]


def _recorded(evaluation: Evaluation) -> Group:
    return "*recorded*", lambda contender: [recorded(results) for results in evaluation.runs[contender]]


def ranking_table(evaluation: Evaluation) -> Table:
    """VUS-PR and AUC-PR of every data set, domain and overall."""
    rows = []
    for words, runs in _groups(evaluation):
        served = runs(SERVED.name)
        if math.isnan(figure(served, "vus_pr")):
            continue
        count = sum(not math.isnan(result.ranked.vus_pr) for result in served[0])
        by = {result.ranked_by for result in served[0]}
        cells = [_pair(runs(contender.name), "vus_pr", "auc_pr") for contender in evaluation.baselines]
        by_score = _pair(served, "vus_pr_by_score", "auc_pr_by_score")
        rows.append(
            (words, str(count), by.pop() if len(by) == 1 else "", _pair(served, "vus_pr", "auc_pr"), by_score, *cells)
        )
    heads = ("", "series", "ranked by", "served", "by score", *(contender.name for contender in evaluation.baselines))
    return Table(
        "Ranking: VUS-PR / AUC-PR",
        heads,
        tuple(rows),
        "Means over the series with an anomaly after their training prefix, else after row 100. The quantity of each "
        "data set was chosen on these recordings, for all contenders through the chain; random and river's detectors "
        "have one only. No predictor takes part in `means` and `values`: there the chain's contenders are equal.",
    )


def _pair(runs: Runs, first: str, second: str) -> str:
    one, other = figure(runs, first), figure(runs, second)
    return "–" if math.isnan(one) else f"{one:.3f} / {other:.3f}"


def alarm_table(evaluation: Evaluation) -> Table:
    """What the alarms of production make of events, at the budget of the plans."""
    keys = (
        "events", "event_recall", "event_recall_pooled", "event_precision", "event_f1", "delay_observations", "delay_s",
        "false_alarms_per_stream_day", "normal_share_alarmed",
    )  # fmt: skip
    beside = [contender.name for contender in evaluation.baselines if contender.kind == "chain"]
    rows = []
    for words, runs in _groups(evaluation):
        served = runs(SERVED.name)
        others = [f"{_cell(runs(name), 'event_recall')} / {_cell(runs(name), keys[-2])}" for name in beside]
        rows.append((words, *(_cell(served, key) for key in keys), *others))
    heads = (
        "",
        "events",
        "recall",
        "of all events",
        "precision",
        "F1",
        "delay, rows",
        "delay, s",
        "false/day",
        "normal time alarmed",
        *beside,
    )
    return Table(
        "Alarms of production, one false alarm per stream and week allowed",
        heads,
        tuple(rows),
        "Recall is the mean over series; F1 is made of precision and the recall of all events together. Controls: "
        f"recall / false alarms per stream and day. {ROWS_ARE_MINUTES}",
    )


def _cell(runs: Runs, key: str) -> str:
    return shown(figure(runs, key))


def budget_table(evaluation: Evaluation) -> Table:
    """False alarms where nothing happens, over those allowed."""
    beside = [contender.name for contender in evaluation.baselines if contender.kind == "chain"]
    rows = []
    for words, runs in [*_sets(evaluation, evaluation.served), _recorded(evaluation), _all(evaluation)]:
        served = runs(SERVED.name)
        if math.isnan(figure(served, "clean_days")):
            continue
        counts = [_of_allowed(served, name) for name in ("1/day", "1/week", "1/month")]
        others = [f"{_ratio(runs(name), '1/day')} / {_ratio(runs(name), '1/week')}" for name in beside]
        rows.append((words, _cell(served, "clean_days"), *counts, *others))
    shares = [figure(evaluation.runs[SERVED.name], f"budget_sets_within_{name}") for name in ("1/day", "1/week")]
    within = ["–" if math.isnan(share) else f"{share:.0%}" for share in shares]
    return Table(
        "Alarm budget: realised over allowed false alarms where nothing happens",
        ("", "stream days", "1/day", "1/week", "1/month", *beside),
        tuple(rows),
        f"Alarms of those allowed in brackets, the mean where there are several weights. Controls: at 1/day / 1/week. "
        f"Data sets within a factor of two at 1/day: {within[0]} of them, of three at 1/week: {within[1]} (of those "
        f"that are allowed at least one alarm). {ROWS_ARE_MINUTES}",
    )


def _of_allowed(runs: Runs, budget: str) -> str:
    """The ratio, and alarms of those allowed; no ratio where not even one is allowed."""
    clean = [clean_at(results, budget) for results in runs]
    allowed = clean[0].days * BUDGETS[budget]
    return f"{_ratio(runs, budget)} ({_mean_count(found.alarms for found in clean)} of {allowed:.1f})"


def _ratio(runs: Runs, budget: str) -> str:
    allowed = clean_at(runs[0], budget).days * BUDGETS[budget]
    return _cell(runs, f"budget_ratio_{budget}") if allowed >= LEAST_EXPECTED else "–"


def rate_table(evaluation: Evaluation) -> Table:
    """Events found at a chosen rate of false alarms, without labels: by the product, and by a plain threshold."""
    rows = []
    for name in by_data_set(evaluation.served):
        for contender in evaluation.contenders:
            if contender.kind == "random":
                continue
            runs = evaluation.group(contender.name, by_data_set, name)
            cells = []
            for rate in ("0.25/day", "0.5/day", "1/day"):
                pairs = (
                    (f"recall_at_{rate}", f"false_alarms_per_stream_day_at_{rate}"),
                    (f"recall_at_fixed_ranked_{rate}", f"false_alarms_at_fixed_ranked_{rate}"),
                )
                cells += [
                    "–" if math.isnan(figure(runs, found)) else f"{_cell(runs, found)} ({_cell(runs, false)})"
                    for found, false in pairs
                ]
            if set(cells) != {"–"}:
                rows.append((name, contender.name, *cells))
    return Table(
        "Events found at a rate of false alarms chosen without labels",
        ("", "", "0.25/day", "ranked", "0.5/day", "ranked", "1/day", "ranked"),
        tuple(rows),
        "Mean over series of the share of their events that was found (false alarms per stream and day that came with "
        "it). First the product with that budget; then the ranked quantity above the threshold that gives that rate on "
        f"the series' own training prefix. {ROWS_ARE_MINUTES}",
    )


def attribution_table(evaluation: Evaluation) -> Table:
    """Whether the features shown are those that experts named."""
    rows = []
    for name, results in by_data_set(evaluation.served).items():
        found = attribution_of(results)
        if not found.events:
            continue
        for contender in evaluation.contenders:
            runs = evaluation.group(contender.name, by_data_set, name)
            keys = (
                "attribution_hit_rate", "attribution_share", "attribution_hit_rate_all_events",
                "attribution_share_all_events",
            )  # fmt: skip
            cells = [_cell(runs, key) for key in keys]
            alerted = _mean_count(attribution_of(results).alerted for results in runs)
            if contender.kind != "river":
                rows.append((name, contender.name, f"{alerted} of {found.events}", *cells))
    return Table(
        "Explanations: causes that experts named among the first five features shown",
        ("", "", "events with an alert", "any, alerts", "share, alerts", "any, all events", "share, all events"),
        tuple(rows),
        "At the strongest alarm of an event; for all events at its highest score. Share: of the named ones that five "
        "places can hold. Random shows what chance gives: experts name many features. Of several weights the means.",
    )


def lost_table(evaluation: Evaluation) -> Table:
    """Figures in which a baseline is better than the served predictor, by what is shown of them; the best one each."""
    found: list[tuple[str, ...]] = []

    def compare(words: str, key: str, values: Mapping[str, float]) -> None:
        rivals = [contender for contender in evaluation.baselines if _is_rival(evaluation, contender, key)]
        served = values[SERVED.name]
        known = {rival.name: value for rival in rivals if not math.isnan(value := values.get(rival.name, math.nan))}
        if known and not math.isnan(served):
            best = min(known, key=lambda name: _badness(key, known[name]))
            if _badness(key, known[best]) < _badness(key, served) and shown(known[best]) != shown(served):
                found.append((words, shown(served), best, shown(known[best])))

    for headline, (_, key) in HEADLINES.items():
        compare(headline, key, {c.name: evaluation.headlines[c.name][headline] for c in evaluation.contenders})
    named = set(HEADLINES.values())
    for name in by_data_set(evaluation.served):
        for key in (*RANKING, *ALARMS):
            if (name, key) not in named:
                of = [it for it in evaluation.contenders if key in RANKING or it.kind == "chain"]
                values = {it.name: figure(evaluation.group(it.name, by_data_set, name), key) for it in of}
                compare(f"{name}, {BY_KEY[key].words}", key, values)
    return Table(
        "Where a control is better",
        ("figure", "served", "control", "its figure"),
        tuple(found),
        "Of false alarms and delays less is better: there only controls through the chain count, for scores that know "
        "nothing have few of both by finding nothing, and of the alarms in one data set likewise; a delay is of the "
        "events that each finds itself. Of budget ratios the better one is nearer to 1, as a factor.",
    )


def _is_rival(evaluation: Evaluation, contender: Contender, key: str) -> bool:
    """Whether a baseline can be better in a figure."""
    if contender.kind != "chain" and key.startswith(LESS_IS_BETTER):
        return False
    # Plants, which only chains run over, are in no figure but the budget's, which only chains have.
    run = evaluation.runs[contender.name][0]
    return len(recorded(run)) == len(recorded(evaluation.served))  # else it is a mean of other series


def _badness(key: str, value: float) -> float:
    """What is least for the best value of a figure."""
    if key.startswith(BUDGET_RATIO):
        return abs(math.log(value)) if value > 0 else math.inf
    return value if key.startswith(LESS_IS_BETTER) else -value


def taken_table(evaluation: Evaluation) -> Table:
    """What was measured: series, rows, features."""
    rows = []
    for name, results in by_data_set(evaluation.served).items():
        taken, whole = sum(result.rows for result in results), sum(result.whole_rows for result in results)
        features = sorted({result.features for result in results})
        left_out = max(result.left_out for result in results)
        rows.append(
            (
                name,
                str(len(results)),
                str(taken) if taken == whole else f"{taken} of {whole}",
                " or ".join(map(str, features)),
                str(left_out) if left_out else "",
            )
        )
    return Table(
        "What was measured",
        ("", "series", "rows", "features", "columns left out"),
        tuple(rows),
        "Columns that are no numbers (codes, addresses, protocols) are no features. Long series are cut to a part: "
        "kdd99 around its events, 3w from the beginning.",
    )


# ---------------------------------------------------------------- series by series


def series_table(results: Results) -> Table:
    """Every judged series."""
    rows = []
    for result in sorted(results, key=lambda result: result.name):
        counts = counts_at([result], "production")
        if not counts.days:
            continue
        rows.append(
            (
                result.name,
                str(result.rows),
                shown(result.ranked.vus_pr),
                shown(result.ranked.auc_pr),
                shown(result.score.vus_pr),
                "" if result.hit is None else "yes" if result.hit else "no",
                f"{counts.found} of {counts.events}",
                shown(BY_KEY["delay_observations"].of([result])),
                str(counts.false_episodes),
                shown(counts.days),
            )
        )
    heads = (
        "series", "rows", "VUS-PR", "AUC-PR", "VUS-PR by score", "highest at an event", "found", "delay, rows",
        "false alarms", "days",
    )  # fmt: skip
    return Table("Series", heads, tuple(rows), ROWS_ARE_MINUTES)


def miss_table(results: Results) -> Table:
    """Missed events, the one furthest from an alarm first, one for each series."""
    worst = [(min(r.misses, key=lambda miss: miss.height), r) for r in results if r.misses]
    return Table(
        "Worst misses",
        ("series", "row", "time", "rows", "decades below the threshold", "missed there"),
        tuple(
            (result.name, *_where(miss), shown(-miss.height), str(len(result.misses)))
            for miss, result in sorted(worst, key=lambda pair: pair[0].height)[:MOMENTS]
        ),
        "The event of each series that stayed furthest below the threshold.",
    )


def false_alarm_table(results: Results) -> Table:
    """False alarms, the highest first."""
    found = [(moment, result) for result in results for moment in result.false_alarms]
    found.sort(key=lambda pair: -pair[0].height)
    return Table(
        "Worst false alarms",
        ("series", "row", "time", "rows", "decades above the threshold", "feature"),
        tuple(
            (result.name, *_where(moment), shown(moment.height), moment.feature) for moment, result in found[:MOMENTS]
        ),
    )


def _where(moment: Moment) -> tuple[str, str, str]:
    when = datetime.fromtimestamp(moment.time_ms / 1000.0, UTC).strftime("%Y-%m-%d %H:%M")
    return str(moment.row), when, str(moment.rows)


def worst_first(results: Sequence[SeriesResult]) -> list[SeriesResult]:
    """Judged series by missed events and false alarms, the most first."""

    def badness(result: SeriesResult) -> tuple[int, str]:
        return -len(result.misses) - len(result.false_alarms), result.name

    return sorted((result for result in results if counts_at([result], "production").days), key=badness)
