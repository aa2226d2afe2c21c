"""``tidewatch train``: fit a predictor offline, on recordings or on a range of a Kafka topic.

Every stream is split in time order: the first part teaches, the second decides when to stop, the third judges. The
result is a folder with the weights (which a profile's predictor may name), a manifest that says how they were made,
a report with pictures, and a checkpoint to resume from. Nothing is fitted to the second or third part.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from models.calibration import FULL_EFFORT, Effort
from models.config import PredictorConfig, Scope
from models.families import FAMILIES
from models.fitting import Fit, Optimiser, RateSchedule, Recipe, first_network, part_loss
from models.judging import Judgement, judge, trained_weights
from models.pretrained import WEIGHTS_FILE, Weights
from models.row import has_season, has_week
from models.split import Plan, Series, Split, split_of
from models.training import Checkpoint
from models.training import Progress as Report
from pipeline.clock import SystemClock
from pipeline.errors import ConfigurationError, VersionError
from pipeline.output_files import make_writable
from pipeline.profile import Profile
from pipeline.registry import Registry, base_weights
from pipeline.replay.inputs import (
    Chosen,
    group_by_profile,
    is_raw,
    load_streams,
    open_raw,
    profile_of_raw,
)
from pipeline.settings import Settings
from pipeline.settings_option import add_settings_option
from pipeline.sources.record_file import decode_records
from pipeline.sources.recording import RecordedStream
from pipeline.train.events import tensorboard_events
from pipeline.train.report import TrainingReport, heads, notes, rows
from pipeline.train.search import SEARCHED, Trial, search
from pipeline.train.torchrun import Device, joined
from pipeline.wiring import build_cluster

EXAMPLES = """\
examples:
  tidewatch train pumps.csv --out weights/pumps                        a GRU on a recording
  tidewatch train pumps.csv --out weights/pumps --resume               go on where a run was stopped
  tidewatch train --settings tidewatch.toml kafka:pump-windows@2026-03-01T00:00..2026-03-08T00:00 --out weights/week
  tidewatch train pumps.csv --start-from gru --rate 3e-4 --out tuned   begin with the shipped weights
  tidewatch train pumps.csv --search 20 --epochs 8 --out weights/pumps search rate, width, dropout, l2 and chunk first
  tidewatch train pumps.csv --cell tdnn --layers 3 --scope stream --out weights/together
  torchrun --standalone --nproc-per-node 2 -m pipeline train pumps.csv --out weights/pumps   two processes or GPUs
"""
CHECKPOINT_FILE = "checkpoint.safetensors"
SHAPE = ("cell", "hidden", "layers", "kernel")
QUICK_TAILS = Effort(series=44, hosts=8, units=8, observations=600)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which data, which predictor, how to learn, and where the outputs go."""
    parser.add_argument("recordings", nargs="+", metavar="RECORDING", help="file, folder, or kafka:TOPIC[@FROM..TO]")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="folder for weights, report and checkpoint"
    )
    add_settings_option(parser)
    parser.add_argument("--profile", metavar="NAME", help="the profile whose streams these are")
    parser.add_argument(
        "--publish", action="store_true", help="also publish as a version of the profile, without serving it"
    )
    parser.add_argument("--streams", action="append", default=[], metavar="GLOB", help="only these; may be repeated")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in the folder")
    parser.add_argument("--force", action="store_true", help="replace the weights or checkpoint of an earlier run")
    parser.add_argument(
        "--search", type=int, default=0, metavar="N", help="first search for options in N trials (Optuna)"
    )
    parser.add_argument("--tensorboard", type=Path, metavar="FOLDER", help="write TensorBoard events")
    parser.add_argument("--quick-tails", action="store_true", help="pool tails over fewer generated series")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads per process (default: 1; more help only wide networks)"
    )
    parser.add_argument(
        "--device", choices=get_args(Device), default="auto", help="auto: a GPU where there is one (default)"
    )
    which = parser.add_argument_group("predictor")
    default = PredictorConfig()
    # No defaults here: with --start-from only what was given can be compared with the base.
    which.add_argument("--cell", choices=tuple(FAMILIES), help=f"family (default: {default.cell})")
    which.add_argument("--hidden", type=int, help=f"width; states of hmm, order of ar (default: {default.hidden})")
    which.add_argument("--layers", type=int, help=f"1 to 4 (default: {default.layers})")
    which.add_argument("--kernel", type=int, help=f"observations that a convolution sees (default: {default.kernel})")
    which.add_argument(
        "--scope", choices=get_args(Scope), help="each feature by itself, or all at once (default: the profile's)"
    )
    which.add_argument("--start-from", metavar="NAME", help="begin with these weights: gru, lstm, gru32 or a folder")
    _add_recipe(parser.add_argument_group("learning"))
    split = parser.add_argument_group("splits")
    plan = Plan()
    split.add_argument(
        "--train", type=float, default=plan.train, help="share of every stream that teaches, from its beginning"
    )
    split.add_argument(
        "--validation", type=float, default=plan.validation, help="share that decides when to stop; the rest judges"
    )
    split.add_argument("--segment", type=int, default=plan.segment, help="observations learned in one go")


def _refuse_to_replace(folder: Path) -> None:
    """A profile may name the weights in it, and a checkpoint may hold hours that only --resume goes on with."""
    for name in (CHECKPOINT_FILE, WEIGHTS_FILE):
        if (folder / name).exists():
            resume = "--resume goes on with that run, " if name == CHECKPOINT_FILE else ""
            raise ConfigurationError(f"{folder / name} exists; {resume}--force replaces it")


def _add_recipe(group: Any) -> None:
    default = Recipe()

    def option(name: str, text: str, **choices: Any) -> None:
        value = getattr(default, name.replace("-", "_"))
        group.add_argument(f"--{name}", type=type(value), default=value, help=f"{text} (default: {value})", **choices)

    option("optimiser", "sgd has momentum 0.9", choices=get_args(Optimiser))
    option("rate", "first learning rate")
    option("last-rate", "learning rate at which the schedule ends")
    option("schedule", "how the rate falls; halving: every fifth epoch", choices=get_args(RateSchedule))
    option("epochs", "passes over the data, at most")
    option("patience", "stop after so many epochs without a better validation loss")
    option("batch", "segments per batch, over all processes")
    option("chunk", "observations over which gradients flow")
    option("dropout", "share of the hidden state that the read-out does not see")
    option("l2", "weight of the squared weights in the loss")
    option("gradient-norm", "gradients longer than this are shortened")
    group.add_argument("--no-flips", dest="flips", action="store_false", help="never show a segment upside down")
    option("seed", "seed of first weights, order, flips and dropout")


def run(args: argparse.Namespace) -> int:
    """Train, show progress, write weights and report; returns the exit code.

    Raises
    ------
    ConfigurationError
        Recordings or options are not as they must be, or an earlier run would be replaced unasked.
    """
    if args.threads < 1:
        raise ConfigurationError("--threads must be at least 1")
    if not (args.resume or args.force):
        _refuse_to_replace(args.out)
    torch.set_num_threads(args.threads)
    if args.search > 0 and (args.resume or args.start_from is not None):
        raise ConfigurationError(
            "--search begins anew: without --start-from, and without --resume (the command that it printed after its "
            "trials goes on with what it found)"
        )
    settings = Settings.load(args.settings)
    name, profile, streams = _streams(args, settings)
    if args.publish and name not in settings.profiles:
        raise ConfigurationError("--publish needs a profile of the settings: no profile there fits these recordings")
    recipe = _recipe(args)
    base = None if args.start_from is None else base_weights(args.start_from)
    predictor = _predictor(args, profile, base)
    before = base or _present(profile, predictor)
    make_writable(args.out)
    began_s = time.monotonic()
    with joined(args.device) as peers:
        console = Console(highlight=False, soft_wrap=True, emoji=False, quiet=not peers.is_first)
        try:
            split = split_of([series_of(stream, profile) for stream in streams], predictor.scope, _plan(args))
            if args.search > 0:
                if peers.size > 1:
                    raise ConfigurationError("--search runs in one process; train with what it found under torchrun")
                predictor, recipe = search(
                    predictor, recipe, split, args.search, peers, lambda trial: _tell(console, trial)
                )
                console.print(f"to go on after a stop: {_resuming(predictor, recipe)}", markup=False)
            start = None if base is None else base.fingerprint()
            fit = Fit(first_network(predictor, recipe.seed), split, recipe, peers, start)
        except ValueError as exc:
            raise ConfigurationError(str(exc)) from exc
        if base is not None:
            fit.network.load_state_dict(base.network)
        _learn(fit, args, console)
    if peers.is_first:
        console.print(f"{_kept(fit)}, validation loss {fit.best_loss:.4f} nats per target")
        _write(args, settings, (name, profile, streams), fit, before, console)
        console.print(f"{time.monotonic() - began_s:.0f} s")
    return 0


def _write(
    args: argparse.Namespace,
    settings: Settings,
    of: tuple[str, Profile, list[RecordedStream]],
    fit: Fit,
    before: Weights | None,
    console: Console,
) -> None:
    """Judge, and leave weights, report and, where wanted, a version."""
    name, profile, streams = of
    judgement = judge(fit.network, fit.split, before=None if before is None else before.build())
    try:
        weights = _weights(fit, fit.split, args, _about(fit, args, streams))
    except ValueError as exc:
        raise ConfigurationError(str(exc)) from exc
    weights.save(args.out)
    made_with = _made_with(args, name, streams, fit, weights)
    report = TrainingReport(made_with, fit.history, fit.best_epoch, judgement, _names(streams), fit.base_loss)
    page = report.write(args.out)
    _print(console, judgement, _names(streams))
    console.print(f"{args.out}: weights {weights.fingerprint()}; report {page}")
    if args.publish:
        version = Registry(settings.registry.folder).publish(name, weights, profile.fold())
        console.print(f"published as version {version} of profile {name}; it is not served yet")
        if weights.predictor != base_weights(profile.builtin() or profile.predictor).predictor:
            console.print(
                f'it is of another shape than the profile\'s predictor: set predictor = "{args.out}" first, '
                "or the next worker to start goes back to the shape that the profile names"
            )


# --- what to learn from -----------------------------------------------------------------------------------------------


def _streams(args: argparse.Namespace, settings: Settings) -> tuple[str, Profile, list[RecordedStream]]:
    """The streams, and the one profile they are of."""
    chosen, found = Chosen(tuple(args.streams)), []
    wanted: str | None = args.profile
    cluster = build_cluster(settings)
    paths = [Path(name) for name in args.recordings if not is_raw(name)]
    for name in args.recordings:
        raw = open_raw(name, cluster)
        if raw is not None:
            wanted = profile_of_raw(raw, settings, wanted)
            decoded = decode_records(raw.read(), settings.profiles[wanted], settings.limits, raw.name)
            found += [stream for stream in decoded if chosen.has_stream(stream.name)]
    if paths:
        found += load_streams(paths, chosen)
    if not found:
        raise ConfigurationError("no stream to learn from")
    groups = group_by_profile(found, settings.profiles, wanted)
    if len(groups) > 1:
        names = ", ".join(group.name for group in groups)
        raise ConfigurationError(f"the recordings are of {len(groups)} kinds ({names}); choose one with --streams")
    return groups[0].name, groups[0].profile, groups[0].streams


def series_of(stream: RecordedStream, profile: Profile) -> Series:
    """A stream as training sees it: late and repeated observations left out, as when serving."""
    times_ms = torch.from_numpy(stream.times_ms)
    newest = torch.cummax(times_ms, 0).values
    kept = torch.ones(len(times_ms), dtype=torch.bool)
    kept[1:] = times_ms[1:] > newest[:-1]
    values = torch.from_numpy(stream.values)
    fold = profile.fold()
    return Series(stream.name, times_ms[kept], values[kept], profile.interval_s, has_season(fold), has_week(fold))


def _predictor(args: argparse.Namespace, profile: Profile, base: Weights | None) -> PredictorConfig:
    given = {name: getattr(args, name) for name in SHAPE if getattr(args, name) is not None}
    scope: Scope | None = args.scope or profile.scope
    if base is None:
        scope = scope or "feature"
        return PredictorConfig(**given, scope=scope, features=len(profile.features) if scope == "stream" else 1)
    for name, wanted in given.items():
        own = getattr(base.predictor, name)
        if wanted != own:
            raise ConfigurationError(f"--start-from {args.start_from} has {name} {own}: leave --{name} {wanted} out")
    if scope not in (None, base.predictor.scope):
        raise ConfigurationError(
            f"--start-from {args.start_from} has scope {base.predictor.scope!r}, and wanted is {scope!r}: "
            "begin with weights of that scope, or anew"
        )
    if base.predictor.scope == "stream" and base.predictor.features != len(profile.features):
        raise ConfigurationError(
            f"--start-from {args.start_from} sees {base.predictor.features} features at once, and these streams have "
            f"{len(profile.features)}: begin with weights of that many, or anew"
        )
    return base.predictor


def _present(profile: Profile, wanted: PredictorConfig) -> Weights | None:
    """What the profile names now, to be judged beside what is trained; None where that sees something else."""
    try:
        weights = base_weights(profile.builtin() or profile.predictor)
    except VersionError:  # the profile may name the folder that this run is to fill
        return None
    sees = weights.predictor.scope, weights.predictor.features
    return weights if sees == (wanted.scope, wanted.features) else None


def _recipe(args: argparse.Namespace) -> Recipe:
    recipe = Recipe(**{field.name: getattr(args, field.name) for field in fields(Recipe)})
    if min(recipe.epochs, recipe.patience, recipe.batch, recipe.chunk) < 1:
        raise ConfigurationError("--epochs, --patience, --batch and --chunk must be at least 1")
    if not (0 <= recipe.dropout < 1 and 0 < recipe.rate < math.inf and recipe.gradient_norm > 0):
        raise ConfigurationError("--dropout lies in [0, 1), --rate and --gradient-norm above 0")
    if not (0 <= recipe.last_rate < math.inf and 0 <= recipe.l2 < math.inf and recipe.seed >= 0):
        raise ConfigurationError("--last-rate, --l2 and --seed must not be below 0")
    return recipe


def _plan(args: argparse.Namespace) -> Plan:
    if args.segment < 1:
        raise ConfigurationError("--segment must be at least 1")
    return Plan(args.train, args.validation, args.segment)


def _tell(console: Console, trial: Trial) -> None:
    options = ", ".join(f"{name} {value:.3g}" for name, value in trial.options.items())
    ending = "given up" if trial.is_cut else "done"
    console.print(
        f"trial {trial.number}: {options}: validation loss {trial.loss:.4f}, {ending} after {trial.epochs} epochs"
    )


def _resuming(predictor: PredictorConfig, recipe: Recipe) -> str:
    """The command that goes on with what a search found: of options given twice the last one counts."""
    found = {"hidden": predictor.hidden} | {name: getattr(recipe, name) for name in SEARCHED}
    words = [f"--{name.replace('_', '-')} {value!r}" for name, value in found.items()]
    return f"{_command()} --search 0 {' '.join(words)} --resume"


# --- learning ---------------------------------------------------------------------------------------------------------


def _learn(fit: Fit, args: argparse.Namespace, console: Console) -> None:
    """Run to the end, a checkpoint after each epoch."""
    place = args.out / CHECKPOINT_FILE
    if args.resume and not place.exists():
        raise ConfigurationError(f"{place} does not exist: there is no run to go on with; leave --resume out")
    if args.resume:
        try:
            fit.resume(Checkpoint.load(place))
        except ValueError as exc:
            raise ConfigurationError(str(exc)) from exc
        console.print(f"resumed after epoch {len(fit.history)}")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} updates, loss {task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    clock = SystemClock()
    is_first = fit.peers.is_first
    with (
        tensorboard_events(args.tensorboard if is_first else None, lambda: clock.wall_ms() / 1000) as tell,
        Progress(*columns, console=console) as bar,
    ):
        task = bar.add_task("starting", total=None, loss="-")

        def keep(checkpoint: Checkpoint) -> None:
            if is_first:
                checkpoint.save(place)
            tell(len(fit.history), fit.history[-1])

        try:
            fit.run(lambda report: _show(bar, task, report), keep)
        except ValueError as exc:
            raise ConfigurationError(str(exc)) from exc
        except RuntimeError as exc:
            if "non-finite" not in str(exc):
                raise
            raise ConfigurationError(f"the training diverged: {exc}; take a smaller --rate") from exc


def _show(bar: Progress, task: TaskID, report: Report) -> None:
    loss = "-" if math.isnan(report.loss) else f"{report.loss:.3f}"
    bar.update(task, description=report.phase, completed=report.done, total=report.total, loss=loss)


def _weights(fit: Fit, split: Split, args: argparse.Namespace, about: dict[str, Any]) -> Weights:
    config = fit.network.config
    pooled = base_weights("gru").pooled if config.scope == "stream" else None
    effort = QUICK_TAILS if args.quick_tails else FULL_EFFORT
    return trained_weights(fit.network, split, fit.recipe.seed, about, pooled, effort)


# --- what is said of it -----------------------------------------------------------------------------------------------


def _about(fit: Fit, args: argparse.Namespace, streams: Sequence[RecordedStream]) -> dict[str, Any]:
    """The manifest's words."""
    held_out = part_loss(fit.network, fit.split.test)
    judged = {} if math.isnan(held_out) else {"loss_held_out": round(held_out, 4)}
    return judged | {
        "made_by": "tidewatch train",
        "command": _command(),
        "corpus": f"{len(streams)} recorded streams, {sum(map(len, streams))} observations",
        "seed": fit.recipe.seed,
        "recipe": asdict(fit.recipe),
        "plan": asdict(_plan(args)),
        "start_from": args.start_from,
        "best_epoch": fit.best_epoch,
        "loss_validation_before": None if fit.base_loss is None else round(fit.base_loss, 4),
        "loss_per_epoch": [round(epoch.train_loss, 4) for epoch in fit.history],
        "loss_validation": [round(epoch.validation_loss, 4) for epoch in fit.history],
        "processes": fit.peers.size,
        "torch": torch.__version__,
    }


def _kept(fit: Fit) -> str:
    """Which weights a run kept."""
    if fit.best_epoch == 0:
        return f"none of {len(fit.history)} epochs is better than the weights it began with: these are kept"
    return f"epoch {fit.best_epoch} of {len(fit.history)} kept"


def _names(streams: Sequence[RecordedStream]) -> list[str]:
    return [f"{stream.name}: {feature}" for stream in streams for feature in stream.features]


def _made_with(
    args: argparse.Namespace, profile: str, streams: Sequence[RecordedStream], fit: Fit, weights: Weights
) -> dict[str, str]:
    rest = 1.0 - args.train - args.validation
    return {
        "command": _command(),
        "profile": profile,
        "data": f"{len(streams)} streams, {sum(map(len, streams))} observations, split {args.train:g} / "
        f"{args.validation:g} / {rest:g} in time order",
        "predictor": ", ".join(f"{key} {value}" for key, value in fit.network.config.to_dict().items()),
        "learning": ", ".join(f"{key} {value}" for key, value in asdict(fit.recipe).items()),
        "epochs": _kept(fit),
        "weights": weights.fingerprint(),
    }


def _command() -> str:
    return shlex.join(["tidewatch", *sys.argv[1:]])


def _print(console: Console, judgement: Judgement, sequences: Sequence[str]) -> None:
    table = Table(*heads(judgement), box=SIMPLE_HEAD, padding=0)  # inside 80 columns
    for row in rows(judgement):
        table.add_row(*row)
    console.print(table)
    for note in notes(judgement, sequences):
        console.print(note, markup=False)
