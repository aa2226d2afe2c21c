"""``tidewatch rescore``: judge complete recordings again, each value by what came before and after it.

A bidirectional smoother is fitted to each stream and says how surprising every value is, given both sides. That shows
exactly where something began and ended, for labelling and for post-mortems; it cannot be served, because it reads the
future. The surprise, -ln of a two-sided tail, is not an anomaly score: it has no alarm budget, and the values of a
lasting anomaly explain each other.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from models.smoother import fitted_smoother, rescored, views_of
from pipeline.errors import ConfigurationError
from pipeline.output_files import make_ready
from pipeline.replay.inputs import Chosen, load_streams
from pipeline.sources.recording import RecordedStream

EXAMPLES = """\
examples:
  tidewatch rescore pump.csv --out surprises.csv
  tidewatch rescore recordings/ --streams 'north-*' --epochs 50 --out surprises.csv
"""
HEAD = ("stream", "time", "feature", "value", "surprise")
Row = tuple[str, str, str, float, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which recordings, how long to fit, and where the surprises go."""
    parser.add_argument("recordings", nargs="+", type=Path, metavar="RECORDING", help="file or folder")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="CSV: " + ", ".join(HEAD))
    parser.add_argument("--streams", action="append", default=[], metavar="GLOB", help="only these; may be repeated")
    parser.add_argument("--hidden", type=int, default=32, help="width of each direction (default: 32)")
    parser.add_argument("--epochs", type=int, default=100, help="passes over each stream (default: 100)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first weights (default: 1)")
    parser.add_argument(
        "--top", type=int, default=10, metavar="N", help="also print the N most surprising (default: 10)"
    )


def run(args: argparse.Namespace) -> int:
    """Fit and re-score stream by stream; returns the exit code.

    Raises
    ------
    ConfigurationError
        A recording cannot be read or is too short, or the file cannot be written.
    """
    if min(args.hidden, args.epochs) < 1 or args.top < 0:
        raise ConfigurationError("--hidden and --epochs must be at least 1, --top not below 0")
    make_ready(args.out)
    torch.set_num_threads(1)
    streams = load_streams(args.recordings, Chosen(tuple(args.streams)))
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    rows: list[Row] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("loss {task.fields[loss]}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("starting", total=args.epochs * len(streams), loss="-")
        for stream in streams:

            def tell(epoch: int, loss: float, name: str = stream.name) -> None:
                bar.update(task, description=name, advance=1, loss=f"{loss:.3f}")

            in_order = _in_order(stream)
            try:
                views = views_of(torch.from_numpy(in_order.values))
            except ValueError as exc:
                raise ConfigurationError(f"{stream.name}: {exc}") from exc
            smoother = fitted_smoother(views, args.hidden, args.epochs, seed=args.seed, listener=tell)
            rows += _rows(in_order, rescored(smoother, views).numpy())
    try:
        with args.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(HEAD)
            writer.writerows(rows)
    except OSError as exc:
        raise ConfigurationError(f"{args.out}: cannot be written: {exc}") from exc
    for name, time, feature, value, surprise in sorted(rows, key=lambda row: -row[4])[: args.top]:
        console.print(f"{surprise:6.2f}  {time}  {name} {feature} = {value:g}")
    console.print(f"{args.out}: {len(rows)} surprises of {len(streams)} streams")
    return 0


def _in_order(stream: RecordedStream) -> RecordedStream:
    """Without observations that do not lie after all earlier ones: they would be late."""
    newest = np.maximum.accumulate(stream.times_ms)
    kept = np.concatenate(([True], stream.times_ms[1:] > newest[:-1]))
    return replace(stream, times_ms=stream.times_ms[kept], values=stream.values[kept], labels=None)


def _rows(stream: RecordedStream, surprise: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Iterator[Row]:
    """What has a surprise: not the ends, nothing that is missing."""
    for time_ms, values, own in zip(stream.times_ms.tolist(), stream.values.tolist(), surprise.tolist(), strict=True):
        time = datetime.fromtimestamp(time_ms / 1000, UTC).isoformat()
        for feature, value, found in zip(stream.features, values, own, strict=True):
            if np.isfinite(found):
                yield stream.name, time, feature, value, round(found, 4)
