"""The results of a run, as JSON, as a page with pictures, and as Markdown."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from models.evaluation.bootstrap import Interval
from pipeline.evaluate.controls import SERVED, Contender
from pipeline.evaluate.judge import SeriesResult
from pipeline.evaluate.summary import (
    BY_KEY,
    HEADLINES,
    Results,
    by_data_set,
    by_domain,
    counts_at,
    figures,
    headline_interval,
    headlines,
)

LESS_IS_BETTER = ("false_alarms", "delay", "budget_ratio")
TABLE_KEYS = (
    "vus_pr", "auc_pr", "vus_pr_by_score", "auc_pr_by_score", "event_recall", "event_precision", "event_f1",
    "delay_observations", "delay_s", "false_alarms_per_stream_day",
)  # fmt: skip
BUDGET_KEYS = (
    "clean_days", "budget_ratio_1/week", "budget_ratio_1/day", "recall_at_0.25/day", "recall_at_0.5/day",
    "recall_at_1/day", "false_alarms_per_stream_day_at_0.5/day", "recall_at_fixed_score_0.5/day",
    "false_alarms_at_fixed_score_0.5/day", "recall_at_fixed_ranked_0.5/day", "false_alarms_at_fixed_ranked_0.5/day",
    "attribution_hit_rate", "attribution_hit_rate_all_events",
)  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """A finished run.

    Attributes
    ----------
    made_with
        What it was made with: commit, weights, settings, machine; words by name.
    contenders
        Columns of the tables; the first one is served.
    results
        By contender's name.
    """

    made_with: Mapping[str, str]
    contenders: tuple[Contender, ...]
    results: Mapping[str, list[SeriesResult]]

    def __post_init__(self) -> None:
        assert self.contenders[0] == SERVED

    @property
    def served(self) -> list[SeriesResult]:
        """Results of the served predictor."""
        return self.results[SERVED.name]

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """Bootstrap intervals of the served predictor's headlines."""
        return {key: headline_interval(self.served, key) for key in HEADLINES}

    @cached_property
    def tables(self) -> list[Table]:
        """Headlines, each data set and domain for every contender, and where a control is better."""
        return _tables(self)


# ---------------------------------------------------------------- JSON


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Headlines of the served predictor at the top, those of controls under ``controls``; null where not measured."""
    served = evaluation.served
    return {
        **_plain(headlines(served)),
        "intervals": {key: _interval(found) for key, found in evaluation.intervals.items()},
        "controls": {
            contender.name: _plain(headlines(evaluation.results[contender.name]))
            for contender in evaluation.contenders[1:]
        },
        "data_sets": _sets(evaluation, by_data_set),
        "domains": _sets(evaluation, by_domain),
        "series": {result.name: _series(result) for result in served},
        "made_with": dict(evaluation.made_with),
    }


def _sets(evaluation: Evaluation, group: Any) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for contender in evaluation.contenders:
        for name, results in group(evaluation.results[contender.name]).items():
            made.setdefault(name, {})[contender.name] = {"series": len(results), **_plain(figures(results))}
    return made


def _series(result: SeriesResult) -> dict[str, Any]:
    production = result.budgets.get("production")
    return {
        "rows": result.rows,
        "features": result.features,
        "ranked_by": result.ranked_by,
        "vus_pr": _number(result.ranked.vus_pr),
        "auc_pr": _number(result.ranked.auc_pr),
        "vus_pr_by_score": _number(result.score.vus_pr),
        "hit": result.hit,
        "events": None if production is None else production.events.events,
        "found": None if production is None else production.events.found,
        "false_alarms": None if production is None else production.events.false_episodes,
        "days": None if production is None else round(production.events.days, 4),
    }


def _plain(found: Mapping[str, float]) -> dict[str, float | None]:
    return {key: _number(value) for key, value in found.items()}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 5)


def _interval(found: Interval) -> list[float | None]:
    return [_number(found.low), _number(found.high)]


# ---------------------------------------------------------------- tables


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of words under column heads."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def _tables(evaluation: Evaluation) -> list[Table]:
    names = tuple(contender.name for contender in evaluation.contenders)
    found = {name: headlines(evaluation.results[name]) for name in names}
    rows = []
    for key in HEADLINES:
        if all(math.isnan(found[name][key]) for name in names):
            continue
        reach = evaluation.intervals[key]
        rows.append((key, *(shown(found[name][key]) for name in names), f"{shown(reach.low)} to {shown(reach.high)}"))
    made = [Table("Headlines", ("figure", *names, "90 % of bootstrap draws (served)"), tuple(rows))]
    for words, group in (("Data set", by_data_set), ("Domain", by_domain)):
        made += [
            Table(f"{words}: {name}", ("figure", *names), _rows(evaluation, name, group))
            for name in group(evaluation.served)
        ]
    return [*made, Table("Where a control is better", ("figure", "served", "control", "its figure"), _lost(evaluation))]


def _rows(evaluation: Evaluation, name: str, group: Any) -> tuple[tuple[str, ...], ...]:
    columns = [group(evaluation.results[contender.name]).get(name, []) for contender in evaluation.contenders]
    made = []
    for key in (*TABLE_KEYS, *BUDGET_KEYS):
        values = [BY_KEY[key].of(results) if results else math.nan for results in columns]
        if not all(math.isnan(value) for value in values):
            made.append((BY_KEY[key].words, *(shown(value) for value in values)))
    return tuple(made)


def _lost(evaluation: Evaluation) -> tuple[tuple[str, ...], ...]:
    """Headlines in which a control stands above the served predictor."""
    served = headlines(evaluation.served)
    found = []
    for contender in evaluation.contenders[1:]:
        for key, value in headlines(evaluation.results[contender.name]).items():
            if key.startswith(LESS_IS_BETTER) or math.isnan(value) or math.isnan(served[key]):
                continue
            if value > served[key]:
                found.append((key, shown(served[key]), contender.name, shown(value)))
    return tuple(sorted(found))


def shown(value: float) -> str:
    """A figure as people read it; a dash where there is none."""
    if math.isnan(value):
        return "–"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


# ---------------------------------------------------------------- pages


def as_markdown(evaluation: Evaluation, command: str) -> str:
    """The results page."""
    parts = [
        "# Results\n",
        f"Made by `{command}`; do not edit by hand.\n",
        "\n".join(f"- {name}: {words}" for name, words in evaluation.made_with.items()) + "\n",
        _contender_words(evaluation.contenders),
    ]
    for table in evaluation.tables:
        parts.append(f"## {table.title}\n")
        if not table.rows:
            parts.append("Nothing.\n")
            continue
        lines = [table.heads, ("---",) * len(table.heads), *table.rows]
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")
    return "\n".join(parts)


def _contender_words(contenders: Iterable[Contender]) -> str:
    return "\n".join(f"- `{contender.name}`: {contender.words}" for contender in contenders) + "\n"


def as_page(evaluation: Evaluation) -> str:
    """A page that needs nothing else: tables, and every series with its picture, worst first."""
    body = ["<h1>Evaluation</h1>", "<ul>"]
    body += [f"<li>{_text(name)}: {_text(words)}</li>" for name, words in evaluation.made_with.items()]
    body += ["</ul><ul>"]
    body += [f"<li><b>{_text(c.name)}</b>: {_text(c.words)}</li>" for c in evaluation.contenders]
    body += ["</ul>"]
    body += [_html_table(table) for table in evaluation.tables]
    body.append("<h2>Series, worst misses and false alarms first</h2>")
    body.append(
        "<p>Dark: observed, and the score. Blue: expected, with its band. Yellow: labelled. Red: an alert opens.</p>"
    )
    body += [_section(result) for result in worst_first(evaluation.served)]
    return f"<!doctype html><html lang=en><meta charset=utf-8><title>Tidewatch evaluation</title>{_CSS}" + "\n".join(
        body
    )


def worst_first(results: Results) -> list[SeriesResult]:
    """Series by the share of events missed, then by false alarms."""

    def badness(result: SeriesResult) -> tuple[float, float, str]:
        counts = counts_at([result], "production")
        return -(counts.events - counts.found), -float(counts.false_episodes), result.name

    return sorted(results, key=badness)


_CSS = """<style>body{font:15px/1.5 system-ui,sans-serif;color:#1f2933;max-width:1180px;margin:2em auto;padding:0 1em}
table{border-collapse:collapse;margin:.6em 0 1.6em}td,th{padding:.2em .7em;text-align:right}
td,th{border-bottom:1px solid #e4e7eb}
td:first-child,th:first-child{text-align:left}h2{margin-top:1.6em}h3{margin:1.4em 0 .2em}img{max-width:100%}</style>"""


def _html_table(table: Table) -> str:
    if not table.rows:
        return f"<h2>{_text(table.title)}</h2><p>Nothing.</p>"
    head = "".join(f"<th>{_text(word)}</th>" for word in table.heads)
    rows = "".join("<tr>" + "".join(f"<td>{_text(word)}</td>" for word in row) + "</tr>" for row in table.rows)
    return f"<h2>{_text(table.title)}</h2><table><tr>{head}</tr>{rows}</table>"


def _section(result: SeriesResult) -> str:
    counts = counts_at([result], "production")
    words = (
        f"{counts.found} of {counts.events} events found, {counts.false_episodes} false alarms in "
        f"{counts.days:.1f} days; "
        f"VUS-PR {shown(result.ranked.vus_pr)}, by score {shown(result.score.vus_pr)}"
    )
    picture = ""
    if result.picture:
        picture = f'<img alt="" src="data:image/png;base64,{base64.b64encode(result.picture).decode("ascii")}">'
    return f"<h3>{_text(result.name)}</h3><p>{_text(words)}</p>{picture}"


def _text(words: str) -> str:
    return html.escape(words)


def first_lines(evaluation: Evaluation, keys: Sequence[str] = tuple(HEADLINES)) -> list[tuple[str, str, str]]:
    """Key, served figure and naive figure, for the terminal."""
    served = headlines(evaluation.served)
    naive = headlines(evaluation.results.get("naive", []))
    return [(key, shown(served[key]), shown(naive[key])) for key in keys if not math.isnan(served[key])]
