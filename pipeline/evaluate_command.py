"""``tidewatch evaluate``: measure detection on labelled recordings, compared with controls.

Labelled series of a folder with a manifest go through the production engine with the production configuration, all
series of one kind side by side. So do the controls: last value, an untrained network, linear lags (AR) and random
scores; two detectors of the river package are compared as well. The results are the NAB score (three profiles, one
threshold for the corpus), VUS-PR and AUC-PR, events found with delay, precision and F1, false alarms per stream and
day, realised over budgeted false alarms where nothing happens (generated plants among them), and how often an alert
names a true cause among its first five features: for every series, data set and domain and overall, with bootstrap
intervals over series. Rows are never point-adjusted.

--quick takes a fixed, representative part. With several --predictor the figures are means over their weights, because
pretraining is judged over seeds. --compare A.toml B.toml replays one recording, labelled or not, under two
configurations and says which alerts appear, disappear or move, and how many would have fired in its last 30 days.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from pipeline.errors import ConfigurationError
from pipeline.evaluate.compare import Difference, Raised, differences, raised_by, read_for
from pipeline.evaluate.contenders import BASELINES, SERVED, Contender
from pipeline.evaluate.generated import plant_entries
from pipeline.evaluate.judge import SeriesResult
from pipeline.evaluate.plan import PLANTS
from pipeline.evaluate.report import as_json, as_markdown, as_page, first_lines
from pipeline.evaluate.run import Task, run_tasks, tasks_of
from pipeline.evaluate.series import Entry, read_entries
from pipeline.evaluate.tables import Evaluation
from pipeline.output_files import make_ready, write_all
from pipeline.profile import Profile
from pipeline.registry import base_weights
from pipeline.settings import Settings
from pipeline.sources.recording import RecordedStream
from pipeline.wiring import apply_threads

EXAMPLES = """\
examples:
  tidewatch evaluate RECORDINGS --quick --json runs/quick.json
  tidewatch evaluate RECORDINGS --only nab smd --report runs/report.html
  tidewatch evaluate RECORDINGS --predictor runs/seeds/gru-1 runs/seeds/gru-2 runs/seeds/gru-3
  tidewatch evaluate pumps.csv --compare today.toml tomorrow.toml
"""
SHOWN_ALERTS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("recording", type=Path, help="folder with a manifest; with --compare: any recording")
    parser.add_argument(
        "--quick", action="store_true", help="evaluate a fixed part, in under three minutes on two cores"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="only these data sets, or series that match these patterns",
    )
    parser.add_argument(
        "--predictor", nargs="+", default=["gru"], metavar="NAME",
        help="gru, lstm, gru32 or the path of a version folder; with several, figures are means over them",
    )  # fmt: skip
    parser.add_argument("--light", action="store_true", help="use the light row")
    parser.add_argument(
        "--controls", nargs="*", choices=[contender.name for contender in BASELINES], default=None,
        help="controls to run (default: all; with --quick all but untrained and lags)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="write all figures")
    parser.add_argument("--report", type=Path, help="write a page with tables and pictures (default: report.html)")
    parser.add_argument(
        "--no-pictures", action="store_true", help="no pictures, and no report unless --report is given"
    )
    parser.add_argument("--markdown", type=Path, help="write the tables as Markdown")
    parser.add_argument("--processes", type=int, help="number of processes (default: one for each core)")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="two settings files to replay under")
    parser.add_argument("--profile", help="with --compare: which profile, where several would fit")


def run(args: argparse.Namespace) -> int:
    """Evaluate or compare; returns the exit code.

    Raises
    ------
    ConfigurationError
        Arguments that do not go together, recordings that cannot be read or judged, or a file that cannot be written.
    """
    apply_threads()
    console = Console(emoji=False)
    _refuse(args)
    if args.compare is not None:
        return _compare(args, console)
    started = time.monotonic()
    contenders = (SERVED, *_baselines(args))
    knobs = [
        Profile(topics=("recording",), features=("value",), predictor=predictor, light=args.light)
        for predictor in args.predictor
    ]
    entries = _entries(args)
    tasks = tasks_of(
        args.recording, entries, contenders, knobs, is_quick=args.quick, has_pictures=not args.no_pictures
    )  # fmt: skip
    runs = _run(tasks, args.processes or os.cpu_count() or 1, console)
    judged = _judged(entries, runs[SERVED.name][0], console)
    made_with = _made_with(knobs, judged, args.quick, time.monotonic() - started)
    ran = tuple(contender for contender in contenders if contender.name in runs)  # plants have chains alone
    evaluation = Evaluation(made_with, ran, {contender.name: runs[contender.name] for contender in ran})
    _show(evaluation, console)
    _write(args, evaluation, console)
    return 0


def _refuse(args: argparse.Namespace) -> None:
    """What cannot be done is said before the work, not after it."""
    if args.processes is not None and args.processes < 1:
        raise ConfigurationError("--processes must be at least 1")
    if args.compare is not None:
        words = ["--quick"] if args.quick else []
        words += ["--predictor"] if args.predictor != ["gru"] else []
        words += ["--light"] if args.light else []
        words += ["--controls"] if args.controls is not None else []
        words += ["--report"] if args.report is not None else []
        words += ["--markdown"] if args.markdown is not None else []
        if words:
            raise ConfigurationError(
                f"--compare goes without {', '.join(words)}: the settings files say what scores, --json what differs"
            )
    for path in (args.json, args.markdown, _page(args)):
        if path is not None:
            make_ready(path)


def _page(args: argparse.Namespace) -> Path | None:
    has_page = args.compare is None and not args.no_pictures
    return args.report or (Path("report.html") if has_page else None)


def _baselines(args: argparse.Namespace) -> list[Contender]:
    if args.controls is not None:
        return [contender for contender in BASELINES if contender.name in args.controls]
    return [contender for contender in BASELINES if contender.is_quick or not args.quick]


def _entries(args: argparse.Namespace) -> list[Entry]:
    """The recorded series that were asked for, and the generated plants."""
    only = [pattern for pattern in args.only if pattern != PLANTS]
    entries = read_entries(args.recording, only, is_quick=args.quick) if only or not args.only else []
    return entries + (plant_entries(args.quick) if not args.only or PLANTS in args.only else [])


def _run(tasks: Sequence[Task], processes: int, console: Console) -> dict[str, list[list[SeriesResult]]]:
    """Results by contender, one list for each of its weights."""
    results: dict[str, list[list[SeriesResult]]] = {}
    for task in tasks:
        runs = results.setdefault(task.contender.name, [])
        runs.extend([] for _ in range(task.run + 1 - len(runs)))
    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        whole = bar.add_task("all", total=sum(task.cost for task in tasks))
        shares = [0.0] * len(tasks)
        lines: dict[int, TaskID] = {}

        def note(number: int, rows: int) -> None:
            task = tasks[number]
            if rows and number not in lines:
                lines[number] = bar.add_task(f"  {_words(task)}", total=task.rows)
            if number in lines:
                bar.update(lines[number], completed=rows)
            shares[number] = max(shares[number], task.cost * min(1.0, rows / max(1, task.rows)))
            bar.update(whole, completed=sum(shares))

        for done in run_tasks(tasks, min(processes, len(tasks)), note, apply_threads):
            number = done.task.number
            shares[number] = done.task.cost
            if number in lines:
                bar.update(lines[number], visible=False)
            bar.update(whole, completed=sum(shares))
            if not console.is_terminal:
                console.print(f"{sum(shares) / sum(task.cost for task in tasks):4.0%}  {_words(done.task)}")
            results[done.task.contender.name][done.task.run].extend(done.results)
    return results


def _judged(entries: Sequence[Entry], results: Sequence[SeriesResult], console: Console) -> int:
    """How many series there are results of; names the others."""
    found = {result.name for result in results}
    missing = [entry.name for entry in entries if entry.name not in found]
    if not found:
        raise ConfigurationError("no series has a label and a numeric feature: there is nothing to judge")
    if missing:
        words = f"left out, without a label or a numeric feature: {', '.join(missing)}"
        console.print(words, markup=False, soft_wrap=True)
    return len(found)


def _words(task: Task) -> str:
    run = f" {task.run + 1}" if task.run else ""
    return f"{task.contender.name}{run} {'+'.join(sorted({entry.dataset for entry in task.entries}))}"


def _made_with(knobs: Sequence[Profile], series: int, is_quick: bool, seconds: float) -> dict[str, str]:
    used = [base_weights(profile.builtin() or profile.predictor).fingerprint() for profile in knobs]
    names = [Path(profile.predictor).name + (", light row" if profile.light else "") for profile in knobs]
    cpu = sum(os.times()[:4])
    return {
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "predictor": "; ".join(f"{name}, weights {mark}" for name, mark in zip(names, used, strict=True)),
        "settings": "defaults of a profile; evidence and part of each data set: pipeline/evaluate/plan.py",
        "series": f"{series}{' (the quick part)' if is_quick else ''}",
        "seconds": f"{seconds:.0f}, {cpu:.0f} of processor time, on {os.cpu_count()} cores ({platform.machine()})",
        "torch": torch.__version__,
    }


def _commit() -> str:
    """The commit of the checkout this runs from, with a mark where files differ from it."""
    here = Path(__file__).parent
    try:
        words = ("git", "describe", "--always", "--dirty", "--abbrev=12")
        commit = subprocess.run(words, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "not from a checkout"
    return commit.stdout.strip()


def _show(evaluation: Evaluation, console: Console) -> None:
    table = Table("figure", "served", "naive")
    for line in first_lines(evaluation):
        table.add_row(*line)
    console.print(table)


def _write(args: argparse.Namespace, evaluation: Evaluation, console: Console) -> None:
    texts = []
    if args.json is not None:
        texts.append((args.json, json.dumps(as_json(evaluation), indent=1) + "\n"))
    if args.markdown is not None:
        texts.append((args.markdown, as_markdown(evaluation, _command(args))))
    if (page := _page(args)) is not None:
        texts.append((page, as_page(evaluation)))
    write_all(texts, console.print)


def _command(args: argparse.Namespace) -> str:
    words = ["tidewatch evaluate", "RECORDINGS"]
    words += ["--quick"] if args.quick else []
    words += ["--only", *args.only] if args.only else []
    words += ["--predictor", *args.predictor] if args.predictor != ["gru"] else []
    words += ["--light"] if args.light else []
    words += ["--controls", *args.controls] if args.controls is not None else []
    return " ".join([*words, "--markdown", args.markdown.name])


# ---------------------------------------------------------------- compare


def _compare(args: argparse.Namespace, console: Console) -> int:
    found: list[list[Raised]] = []
    with Progress(console=console) as bar:
        for path in args.compare:
            name, profile, streams = read_for(Settings.load(path), args.recording, args.profile, args.only)
            if notice := _other_interval(name, profile, streams):
                console.print(f"{path.name}: {notice}", markup=False, soft_wrap=True)
            line = bar.add_task(f"{path.name} ({name})", total=sum(len(stream) for stream in streams))
            found.append(raised_by(name, profile, streams, lambda rows, line=line: bar.advance(line, rows)))  # type: ignore[misc]
    last_ms = max(int(stream.times_ms.max()) for stream in streams)
    difference = differences(found[0], found[1], last_ms)
    _show_difference(difference, args.compare, console)
    if args.json is not None:
        write_all([(args.json, json.dumps(difference.as_json(), indent=1) + "\n")], console.print)
    return 0


def _other_interval(name: str, profile: Profile, streams: Sequence[RecordedStream]) -> str | None:
    """What is to be said where the alarm budget counts another time than went by; ``None`` where it does not."""
    others = sum(stream.interval_s != profile.interval_s for stream in streams)
    if profile.interval_s is None or not others:
        return None
    return (
        f"{others} of {len(streams)} streams are not {profile.interval_s:g} s apart; alarm budgets count every "
        f"observation as profile {name} does, as {profile.interval_s:g} s"
    )


def _show_difference(difference: Difference, paths: Sequence[Path], console: Console) -> None:
    a, b = (path.name for path in paths)
    console.print(
        f"{len(difference.same)} alerts the same, {len(difference.moved)} open at another time, "
        f"{len(difference.disappeared)} only with {a}, {len(difference.appeared)} only with {b}"
    )
    console.print(f"last 30 days: {difference.last_month[0]} alerts with {a}, {difference.last_month[1]} with {b}")
    table = Table("", Column("stream", overflow="fold"), "opened", "peak score")
    lines = [("disappears", alert) for alert in difference.disappeared]
    lines += [("appears", alert) for alert in difference.appeared]
    lines += [(f"moves by {(new.opened_ms - old.opened_ms) / 1000:.0f} s", new) for old, new in difference.moved]
    for words, alert in lines[:SHOWN_ALERTS]:
        when = datetime.fromtimestamp(alert.opened_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(words, alert.stream_id, when, f"{alert.peak:.2f}")
    if lines:
        console.print(table)
    if len(lines) > SHOWN_ALERTS:
        console.print(f"and {len(lines) - SHOWN_ALERTS} more; --json has them all")
