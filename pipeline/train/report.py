"""The report of a training run: a page, its pictures beside it as PNG files. Needs matplotlib, the extra ``plots``."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.fitting import Epoch
from models.judging import Figures, Judgement
from pipeline.errors import ConfigurationError
from pipeline.plots import ALARM, EXPECTED, INK, STYLE

PAGE = "report.html"
LOSSES, FORECASTS, ERRORS = "losses.png", "forecasts.png", "residuals.png"
SHOWN = 300
WORDS = {"trained": "trained", "before": "before", "naive": "naive", "ar": "AR(20)"}
OVER = {"before": "over before", "naive": "over naive", "ar": "over AR"}
EXPLAINED = (
    "Forecasts 1, 4 and 8 steps ahead. Errors in units of each stream's standard deviation over its training part, "
    "wild values clipped. Before: the weights that training began with, or those that the profile names now. Naive: "
    "the last value stays. AR(20): ridge regression on the last 20 values, normalised as the predictor sees them "
    "(asinh z). Over before, naive, AR: skill, the percentage of that predictor's mean square error that is gone."
)
NAMED = 10
_CSS = """<style>body{font:15px/1.5 system-ui,sans-serif;color:#1f2933;max-width:1000px;margin:2em auto;padding:0 1em}
table{border-collapse:collapse;margin:.6em 0 1.6em}td,th{padding:.2em .7em;text-align:right;border-bottom:1px solid #e4e7eb}
td:first-child,th:first-child{text-align:left}img{max-width:100%}</style>"""  # noqa: E501


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What a run came to.

    Attributes
    ----------
    made_with
        Words by name: command, predictor, data, version.
    history, best_epoch
        Losses of every epoch, and which one was kept, counted from 1; 0 where those that training began with were.
    judgement
        Forecasts of the test part.
    sequences
        Names of the features of each stream, in the order in which samples count them.
    base_loss
        Validation loss of the weights that training began with; None for those of a seed.
    """

    made_with: Mapping[str, str]
    history: Sequence[Epoch]
    best_epoch: int
    judgement: Judgement
    sequences: Sequence[str]
    base_loss: float | None = None

    def write(self, folder: Path) -> Path:
        """Write pictures and page into ``folder``; returns the page's place.

        Raises
        ------
        ConfigurationError
            matplotlib is missing, or the folder cannot be written.
        """
        with _figure(folder / LOSSES, 1) as (axis,):
            _draw_losses(axis, self.history, self.best_epoch, self.base_loss)
        with _figure(folder / FORECASTS, len(self.judgement.samples)) as axes:
            for axis, sample in zip(axes, self.judgement.samples, strict=True):
                axis.plot(sample.observed[-SHOWN:], color=INK, linewidth=1.0, label="observed")
                axis.plot(sample.forecast[-SHOWN:], color=EXPECTED, linewidth=1.0, label="predicted one step before")
                axis.set_title(self.sequences[sample.sequence], loc="left", fontsize=10)
            axes[-1].set_xlabel("the last observations of the test part")
        with _figure(folder / ERRORS, 1) as (axis,):
            _draw_errors(axis, self.judgement.errors)
        page = folder / PAGE
        try:
            page.write_text(self.page(), encoding="utf-8")
        except OSError as exc:
            raise ConfigurationError(f"{page}: the report cannot be written: {exc}") from exc
        return page

    def page(self) -> str:
        """The page; its pictures lie beside it."""
        body = ["<h1>Training</h1><ul>"]
        body += [f"<li>{html.escape(name)}: {html.escape(words)}</li>" for name, words in self.made_with.items()]
        body += ["</ul><h2>Forecasts of the test part</h2>", _table(self.judgement)]
        body += [f"<p>{html.escape(note)}</p>" for note in notes(self.judgement, self.sequences)]
        body.append(f"<p>{EXPLAINED}</p>")
        for title, picture in (
            ("Loss", LOSSES),
            ("Observed and predicted", FORECASTS),
            ("Residuals, one step ahead", ERRORS),
        ):
            body.append(f'<h2>{title}</h2><img alt="{title}" src="{picture}">')
        head = f"<!doctype html><html lang=en><meta charset=utf-8><title>Tidewatch training</title>{_CSS}"
        return head + "\n".join(body)


def rows(judgement: Judgement) -> Iterator[tuple[str, ...]]:
    """Contender, horizon, MAE, RMSE, MSE, skill over each of :func:`heads`: as words."""
    figures = judgement.figures
    baselines = [baseline for baseline in OVER if baseline in figures]
    for name, words in WORDS.items():
        for index, own in enumerate(figures.get(name, ())):
            skills = (_skill(name, baseline, own, figures[baseline][index]) for baseline in baselines)
            yield (words, str(own.k), f"{own.mae:.4f}", f"{own.rmse:.4f}", f"{own.mse:.4f}", *skills)


def heads(judgement: Judgement) -> tuple[str, ...]:
    """What stands above :func:`rows`."""
    over = (words for baseline, words in OVER.items() if baseline in judgement.figures)
    return ("predictor", "steps", "MAE", "RMSE", "MSE", *over)


def notes(judgement: Judgement, sequences: Sequence[str]) -> list[str]:
    """What a reader of the table must know: that there was nothing to judge on, and what is left out of it."""
    found = []
    if judgement.errors.size == 0:
        found.append("There is nothing to judge on: no value of the test part can be compared with a forecast.")
    if judgement.left_out:
        names = [sequences[number] for number in judgement.left_out]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        found.append(
            f"Left out, for they stood still or had no value in the training part: {', '.join(names[:NAMED])}{more}."
        )
    return found


def _skill(name: str, baseline: str, own: Figures, other: Figures) -> str:
    skill = own.skill(other)
    return "–" if name == baseline or math.isnan(skill) else f"{skill:+.1f} %"


def _table(judgement: Judgement) -> str:
    head = "".join(f"<th>{word}</th>" for word in heads(judgement))
    lines = ("<tr>" + "".join(f"<td>{html.escape(word)}</td>" for word in row) + "</tr>" for row in rows(judgement))
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


@contextmanager
def _figure(path: Path, panels: int) -> Iterator[Sequence[Any]]:
    """Axes above each other, written to ``path`` when the block is left."""
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise ConfigurationError("the report's pictures need matplotlib: pip install 'tidewatch[plots]'") from exc
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 0.8 + 2.6 * panels), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(panels, 1, squeeze=False)[:, 0]
        yield list(axes)
        axes[0].legend(loc="best", fontsize=9)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=110)
        except OSError as exc:
            raise ConfigurationError(f"{path}: the picture cannot be written: {exc}") from exc


def _draw_losses(axis: Any, history: Sequence[Epoch], best_epoch: int, base_loss: float | None) -> None:
    epochs = np.arange(1, len(history) + 1)
    axis.plot(epochs, [epoch.train_loss for epoch in history], color=INK, marker=".", label="training part")
    first, before = (1, []) if base_loss is None else (0, [base_loss])
    losses = [*before, *(epoch.validation_loss for epoch in history)]
    axis.plot(np.arange(first, len(history) + 1), losses, color=EXPECTED, marker=".", label="validation part")
    axis.axvline(best_epoch, color=ALARM, linewidth=0.8, linestyle=(0, (2, 2)), label="kept")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("epoch")
    axis.set_ylabel("nats per target")


def _draw_errors(axis: Any, errors: Any) -> None:
    """All but the outermost thousandth on each side, which would hide the rest."""
    low, high = np.quantile(errors, (0.001, 0.999)) if len(errors) else (-1.0, 1.0)
    axis.hist(np.clip(errors, low, high), bins=80, color=EXPECTED, alpha=0.7, label="observed - predicted")
    axis.set_xlabel("standard deviations of the training part")
    axis.set_ylabel("observations")
