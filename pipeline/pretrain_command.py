"""``tidewatch pretrain``: train a predictor on generated series and write its weights."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from models.pretrained import MANIFEST_FILE, WEIGHTS_FILE, Weights
from models.training import FIRST_TARGET, Schedule, pretrain, recalibrated
from models.training import Progress as Report
from pipeline.errors import ConfigurationError
from pipeline.output_files import make_writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    default = Schedule()
    parser.add_argument("--cell", choices=("gru", "lstm"), default="gru", help="recurrent cell")
    parser.add_argument("--hidden", type=int, default=64, help="width of the hidden state")
    parser.add_argument("--seed", type=int, default=1, help="seed of corpus, first weights and order of batches")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights.safetensors and manifest.json")
    parser.add_argument("--force", action="store_true", help="replace existing weights")
    parser.add_argument("--epochs", type=int, default=default.epochs, help="passes over the corpus")
    parser.add_argument("--series", type=int, default=default.series, help="number of generated series")
    parser.add_argument("--length", type=int, default=default.length, help="observations of each series")
    parser.add_argument(
        "--tails",
        action="store_true",
        help="train nothing; measure the pooled tails of the weights in --out again, after a change of evidence",
    )
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's choice)")


def run(args: argparse.Namespace) -> int:
    """Pretrain, or only measure tails anew; show progress, save; returns the exit code.

    Raises
    ------
    ConfigurationError
        Options are not as they must be, or weights would be replaced unasked.
    """
    if args.threads is not None:
        if args.threads < 1:
            raise ConfigurationError("--threads must be at least 1")
        torch.set_num_threads(args.threads)
    return _measure_tails(args.out) if args.tails else _pretrain(args)


def _refuse_impossible(args: argparse.Namespace, batch: int) -> None:
    least = {"hidden": 1, "seed": 0, "epochs": 1, "series": batch, "length": FIRST_TARGET + 2}
    for name, number in least.items():
        if getattr(args, name) < number:
            raise ConfigurationError(f"--{name} must be at least {number}")
    if (args.out / WEIGHTS_FILE).exists() and not args.force:
        raise ConfigurationError(f"{args.out / WEIGHTS_FILE} exists; --force replaces it")


def _measure_tails(folder: Path) -> int:
    console = Console()
    try:
        before = Weights.load(folder)
        make_writable(folder)
        with console.status("measuring pooled tails on generated series (half a minute)"):
            after = recalibrated(before)
    except ValueError as exc:
        raise ConfigurationError(str(exc)) from exc
    after.save(folder)
    console.print(f"{folder}: fingerprint {before.fingerprint()} before, {after.fingerprint()} now")
    return 0


def _pretrain(args: argparse.Namespace) -> int:
    schedule = Schedule(series=args.series, length=args.length, epochs=args.epochs)
    _refuse_impossible(args, schedule.batch)
    make_writable(args.out)
    console = Console()
    started = time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} updates, loss {task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=schedule.updates, loss="-")
        weights = pretrain(args.cell, args.hidden, args.seed, schedule, lambda report: _show(bar, task, report))
    weights.save(args.out)
    size = (args.out / WEIGHTS_FILE).stat().st_size
    console.print(
        f"{args.out}: {WEIGHTS_FILE} ({size} bytes) and {MANIFEST_FILE}, fingerprint {weights.fingerprint()}, "
        f"held-out loss {weights.manifest['loss_held_out']} nats per target, {time.monotonic() - started:.0f} s"
    )
    return 0


def _show(bar: Progress, task: TaskID, report: Report) -> None:
    loss = "-" if math.isnan(report.loss) else f"{report.loss:.3f}"
    bar.update(task, description=report.phase, completed=report.done, total=report.total, loss=loss)
