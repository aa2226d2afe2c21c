"""The results of a run, as JSON, as a page with pictures, and as Markdown."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from models.evaluation.bootstrap import Interval
from pipeline.evaluate.contenders import SERVED, Contender
from pipeline.evaluate.judge import SeriesResult
from pipeline.evaluate.summary import HEADLINES, Results, by_data_set, by_domain, counts_at, figures
from pipeline.evaluate.tables import (
    Evaluation,
    Table,
    false_alarm_table,
    miss_table,
    series_table,
    shown,
    tables_of,
    worst_first,
)


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Headlines of the served predictor at the top, those of baselines under ``controls``; null where not measured."""
    return {
        **_plain(evaluation.headlines[SERVED.name]),
        "weights": [_plain(found) for found in evaluation.by_weights],
        "intervals": {key: _interval(found) for key, found in evaluation.intervals.items()},
        "above_naive": {key: _interval(found) for key, found in evaluation.above_naive.items()},
        "controls": {c.name: _plain(evaluation.headlines[c.name]) for c in evaluation.baselines},
        "overall": {c.name: _plain(figures(evaluation.runs[c.name])) for c in evaluation.contenders},
        "data_sets": _sets(evaluation, by_data_set),
        "domains": _sets(evaluation, by_domain),
        "series": {
            result.name: {**_series(result), **_plain(figures([[result]]))} for result in evaluation.served
        },
        "made_with": dict(evaluation.made_with),
    }  # fmt: skip


def _sets(evaluation: Evaluation, of: Callable[[Results], Mapping[str, Results]]) -> dict[str, Any]:
    names = of(evaluation.served)
    return {
        name: {
            contender.name: {
                "series": len(names[name]), **_plain(figures(evaluation.group(contender.name, of, name))),
            }
            for contender in evaluation.contenders
        }
        for name in names
    }  # fmt: skip


def _series(result: SeriesResult) -> dict[str, Any]:
    production = result.budgets.get("production")
    return {
        "rows": result.rows,
        "features": result.features,
        "ranked_by": result.ranked_by,
        "hit": result.hit,
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


# ---------------------------------------------------------------- pages


def as_markdown(evaluation: Evaluation, command: str) -> str:
    """The results page."""
    parts = [
        "# Results\n",
        f"Made by `{command}`; do not edit by hand.\n",
        "\n".join(f"- {name}: {words}" for name, words in evaluation.made_with.items()) + "\n",
        _contender_words(evaluation.contenders),
    ]
    for table in tables_of(evaluation):
        parts.append(f"## {table.title}\n")
        if table.note:
            parts.append(f"{table.note}\n")
        lines = [table.heads, ("---",) * len(table.heads), *table.rows]
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n" if table.rows else "None.\n")
    return "\n".join(parts)


def _contender_words(contenders: Iterable[Contender]) -> str:
    return "\n".join(f"- `{contender.name}`: {contender.words}" for contender in contenders) + "\n"


def as_page(evaluation: Evaluation) -> str:
    """A page that needs nothing else: tables, then what went wrong, then every series with its picture, worst first."""
    served = evaluation.served
    body = ["<h1>Evaluation</h1>", "<ul>"]
    body += [f"<li>{_text(name)}: {_text(words)}</li>" for name, words in evaluation.made_with.items()]
    body += ["</ul><ul>"]
    body += [f"<li><b>{_text(c.name)}</b>: {_text(c.words)}</li>" for c in evaluation.contenders]
    body += ["</ul>"]
    body += [_html_table(table) for table in tables_of(evaluation)]
    body += [_html_table(table, is_linked=True) for table in (miss_table(served), false_alarm_table(served))]
    body.append("<h2>Series, most misses and false alarms first</h2>")
    body.append(
        "<p>Dark: observed, and the score. Blue: expected, with its band. Grey: the threshold. Yellow: labelled. "
        "Red: an alert opens.</p>"
    )
    body += [_section(result) for result in worst_first(served)]
    body.append(_html_table(series_table(served), is_linked=True))
    return f"<!doctype html><html lang=en><meta charset=utf-8><title>Tidewatch evaluation</title>{_CSS}" + "\n".join(
        body
    )


_CSS = """<style>body{font:15px/1.5 system-ui,sans-serif;color:#1f2933;max-width:1280px;margin:2em auto;padding:0 1em}
div{overflow-x:auto}table{border-collapse:collapse;margin:.6em 0 1.6em;font-size:13px}td,th{padding:.2em .6em}
td,th{border-bottom:1px solid #e4e7eb;text-align:right;white-space:nowrap}a{color:inherit}
td:first-child,th:first-child{text-align:left}h2{margin-top:1.6em}h3{margin:1.4em 0 .2em}img{max-width:100%}</style>"""


def _html_table(table: Table, *, is_linked: bool = False) -> str:
    title = f"<h2>{_text(table.title)}</h2>" + (f"<p>{_text(table.note)}</p>" if table.note else "")
    if not table.rows:
        return f"{title}<p>None.</p>"
    head = "".join(f"<th>{_text(word)}</th>" for word in table.heads)
    rows = []
    for row in table.rows:
        first = f'<a href="#{_text(row[0])}">{_text(row[0])}</a>' if is_linked else _text(row[0].strip("*"))
        rows.append(f"<tr><td>{first}</td>" + "".join(f"<td>{_text(word)}</td>" for word in row[1:]) + "</tr>")
    return f"{title}<div><table><tr>{head}</tr>{''.join(rows)}</table></div>"


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
    return f'<h3 id="{_text(result.name)}">{_text(result.name)}</h3><p>{_text(words)}</p>{picture}'


def _text(words: str) -> str:
    return html.escape(words)


def first_lines(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """Key, served figure and naive figure, for the terminal."""
    served, naive = evaluation.headlines[SERVED.name], evaluation.headlines.get("naive", {})
    return [
        (key, shown(served[key]), shown(naive.get(key, math.nan))) for key in HEADLINES if not math.isnan(served[key])
    ]
