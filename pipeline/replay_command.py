"""``tidewatch replay``: play recordings through the engine or through Kafka, without paging anyone.

A recording is a CSV, JSON Lines or Parquet file; a folder of them, with or without a manifest; a record file made by
tidewatch record; or a range of a topic, written kafka:TOPIC or kafka:TOPIC@FROM..TO with offsets or times.

--to engine (the default) scores as fast as it can, without any server. --to kafka produces windows at the chosen
speed into topics of its own, scores them with a worker of its own that keeps its rows in memory, reads the outputs
back, and says at the end what it created. Production topics are written only with --into-production.

A stream is scored by the profile of the settings that fits its features, interval and clock, else by one derived from
the recording, with a notice. The same recordings and settings give the same files.
"""

from __future__ import annotations

import argparse
import re
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from models.pretrained import Weights
from pipeline.clock import SystemClock
from pipeline.epoch import iso_time, parse_time
from pipeline.errors import ConfigurationError
from pipeline.offline import WINDOW_LENGTH, Offline, window_length
from pipeline.profile import Profile
from pipeline.records import VERDICTS, Alert, StepStats
from pipeline.registry import Registry
from pipeline.replay.inputs import (
    KAFKA,
    Chosen,
    History,
    RawInput,
    SeriesGroup,
    choose_records,
    group_by_profile,
    is_raw,
    load_streams,
    open_raw,
    profile_of_raw,
)
from pipeline.replay.outputs import Outputs, check_suffix
from pipeline.replay.through_engine import replay_raw, replay_series
from pipeline.replay.through_kafka import (
    Message,
    Pacer,
    Run,
    feed,
    finish,
    merged,
    pause,
    raw_messages,
    read_back,
    series_messages,
)
from pipeline.settings import Settings
from pipeline.settings_option import add_settings_option
from pipeline.sources.record_file import decode_records
from pipeline.sources.recording import RecordedStream, WindowSequence
from pipeline.state.memory import MemoryStateStore
from pipeline.topics.kafka import Cluster
from pipeline.wiring import apply_threads, build_cluster, build_worker, choose_device, fold_threads
from pipeline.wording import strongest_feature, table
from pipeline.worker import Worker

SHOWN_ALERTS = 5

PARTITIONS = 4
EXAMPLES = """\
examples:
  tidewatch replay pump.csv --scores scores.csv --alerts alerts.jsonl
  tidewatch replay recordings/ --streams 'nab/*' --start 2014-02-01 --end 2014-03-01
  tidewatch replay may.csv --warm-from april.csv          new streams know April, silently
  tidewatch replay pump.csv --to kafka --speed 60x        an hour a minute, through Kafka
  tidewatch replay monday.records.jsonl.gz --profile pump what tidewatch record wrote
  tidewatch replay kafka:pump-windows@2026-03-01T06:00..2026-03-01T12:00
  tidewatch replay --delete 3f9a01c2                      remove what a run left in Kafka
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to replay, through what, how fast, and where the outputs go."""
    parser.add_argument("recordings", nargs="*", metavar="RECORDING", help="file, folder, or kafka:TOPIC[@FROM..TO]")
    parser.add_argument(
        "--to", choices=("engine", "kafka"), default="engine", help="what to play through (default: engine)"
    )
    add_settings_option(parser)
    parser.add_argument("--profile", metavar="NAME", help="score everything with this profile, as it is")
    which = parser.add_argument_group("which part")
    which.add_argument(
        "--streams", action="append", default=[], metavar="GLOB", help="only these streams; may be repeated"
    )
    which.add_argument("--start", metavar="TIME", help="from this time on (ISO 8601; raw records by their timestamp)")
    which.add_argument("--end", metavar="TIME", help="before this time")
    which.add_argument(
        "--warm-from", action="append", default=[], metavar="RECORDING", help="history that new streams absorb silently"
    )
    out = parser.add_argument_group("outputs")
    out.add_argument("--scores", type=Path, metavar="FILE", help="every score, .csv or .jsonl")
    out.add_argument("--alerts", type=Path, metavar="FILE", help="every alert event, .jsonl (as on the topic) or .csv")
    kafka = parser.add_argument_group("through Kafka")
    kafka.add_argument("--speed", default="max", help="60x: an hour a minute; max: as fast as it can (default)")
    kafka.add_argument(
        "--window", type=int, metavar="T", help="observations per message (default: 1 at a speed, 16 at max)"
    )
    kafka.add_argument("--partitions", type=int, help=f"partitions of each input topic (default: {PARTITIONS})")
    kafka.add_argument("--run", metavar="NAME", help="name of the run, in letters and digits (default: random)")
    kafka.add_argument("--cleanup", action="store_true", help="delete its topics and group at the end")
    kafka.add_argument("--delete", metavar="RUN", help="only delete the topics and group of an earlier run")
    kafka.add_argument(
        "--into-production", action="store_true", help="produce into the topics of the settings, for the workers there"
    )


def run(args: argparse.Namespace) -> int:
    """Replay, show progress, print a summary; returns the exit code.

    Raises
    ------
    ConfigurationError
        A recording, profile or option is not as it must be.
    BrokerAway
        Kafka does not answer.
    """
    settings = Settings.load(args.settings)
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    if args.delete is not None:
        return _delete(build_cluster(settings), Run(_run_name(args.delete)), console)
    plan = _plan(args, settings)
    for group in plan.series:
        if group.notice is not None:
            console.print(f"notice: profile [b]{escape(group.name)}[/b]: {escape(group.notice)}")
    if args.into_production:
        return _into_production(args, settings, plan, console)
    outputs = Outputs(args.scores, args.alerts, {name: p.features for name, p in plan.profiles.items()})
    began_s = time.monotonic()
    if args.to == "engine":
        _through_engine(args, settings, plan, outputs)
        _print_summary(console, outputs, time.monotonic() - began_s)
    else:
        _through_kafka(args, settings, plan, outputs, console)
    return 0


# --- what to replay ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything a replay plays, each input with its profile."""

    chosen: Chosen
    series: list[SeriesGroup]
    raw: list[tuple[RawInput, str]]
    history: History
    profiles: dict[str, Profile]
    weights: dict[str, Weights]


def _check_ways(args: argparse.Namespace) -> None:
    """Through the engine there are no topics, and no time to keep to: whoever asks for them means the other way."""
    asked = {
        "--speed": args.speed != "max",
        "--partitions": args.partitions is not None,
        "--run": args.run is not None,
        "--cleanup": args.cleanup,
    }
    words = [name for name, is_asked in asked.items() if is_asked]
    if words and args.to == "engine":
        raise ConfigurationError(f"{', '.join(words)}: through Kafka only; add --to kafka")
    if args.partitions is not None and args.partitions < 1:
        raise ConfigurationError("--partitions must be at least 1")


def _plan(args: argparse.Namespace, settings: Settings) -> _Plan:
    if not args.recordings:
        raise ConfigurationError("name a recording: a file, a folder, or kafka:TOPIC (see --help)")
    _check_outputs(args)
    _check_ways(args)
    chosen = Chosen(
        tuple(args.streams),
        None if args.start is None else parse_time(args.start),
        None if args.end is None else parse_time(args.end),
    )
    if args.window is not None and not 0 < args.window <= settings.limits.max_window_length:
        raise ConfigurationError(f"--window {args.window}: from 1 to {settings.limits.max_window_length}")
    cluster = build_cluster(settings)
    opened = [found for name in args.recordings if (found := open_raw(name, cluster)) is not None]
    paths = [Path(name) for name in args.recordings if not is_raw(name)]
    streams = load_streams(paths, chosen) if paths else []
    series = group_by_profile(streams, settings.profiles, args.profile) if streams else []
    raw = [(found, profile_of_raw(found, settings, args.profile)) for found in opened]
    profiles = {group.name: group.profile for group in series}
    profiles |= {name: settings.profiles[name] for _, name in raw}
    history = _history(args, settings, {stream.name for stream in streams} if not raw else None)
    return _Plan(chosen, series, raw, history, profiles, _served_weights(settings, profiles))


def _check_outputs(args: argparse.Namespace) -> None:
    """Refuse outputs of an unknown kind, and those that would be written over each other or over what is read."""
    outputs = [path for path in (args.scores, args.alerts) if path is not None]
    for path in outputs:
        check_suffix(path)
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise ConfigurationError(f"--scores and --alerts are both {args.scores}: give each a file of its own")
    for name in [*args.recordings, *args.warm_from]:
        for path in outputs:
            if not name.startswith(KAFKA) and path.resolve() == Path(name).resolve():
                raise ConfigurationError(f"{path} is read here, and would be written over: name another file")


def _history(args: argparse.Namespace, settings: Settings, names: set[str] | None) -> History:
    """The streams of ``--warm-from``, of those that are replayed where that is known beforehand."""
    patterns = Chosen(tuple(args.streams))
    found: list[RecordedStream] = []
    for name in args.warm_from:
        raw = open_raw(name, build_cluster(settings))
        if raw is None:
            found += load_streams([Path(name)], patterns)
            continue
        profile = settings.profiles[profile_of_raw(raw, settings, args.profile)]
        found += decode_records(raw.read(), profile, settings.limits, raw.name)
    history = History.of(stream for stream in found if names is None or stream.name in names)
    if args.warm_from and not history.streams:
        there = ", ".join(sorted(stream.name for stream in found)[:5])
        raise ConfigurationError(f"--warm-from has none of the streams that are replayed; it has {there}")
    return history


def _served_weights(settings: Settings, profiles: dict[str, Profile]) -> dict[str, Weights]:
    """What a worker with these settings would serve, where one has begun; other profiles take their predictor's."""
    registry = Registry(settings.registry.folder)
    return {
        name: registry.wanted(name, profile.builtin() or profile.predictor, profile.fold(), profile.scope)
        for name, profile in profiles.items()
        if settings.profiles.get(name) == profile and registry.current(name) is not None
    }


# --- through the engine -----------------------------------------------------------------------------------------------


def _through_engine(args: argparse.Namespace, settings: Settings, plan: _Plan, outputs: Outputs) -> None:
    apply_threads()
    device = choose_device(settings.engine.device)
    length = args.window or WINDOW_LENGTH
    offlines = {
        name: Offline(
            name,
            profile,
            plan.weights.get(name),
            max_streams=max(settings.engine.max_resident_streams, sum(len(g.streams) for g in plan.series)),
            device=device,
            threads=fold_threads(settings),
        )
        for name, profile in plan.profiles.items()
    }
    with _progress() as bar:
        for group in plan.series:
            task = bar.add_task(group.name, total=sum(map(len, group.streams)), what="observations")
            offline = offlines[group.name]
            replay_series(offline, group, plan.history, length, outputs, _advancing(bar, task))
        for raw, profile in plan.raw:
            task = bar.add_task(raw.name, total=raw.total, what="records")
            advance = _advancing(bar, task)
            replay_raw(offlines[profile], raw, plan.chosen, settings.limits, plan.history, outputs, advance)
            bar.update(task, completed=raw.total)
    outputs.write()


# --- through Kafka ----------------------------------------------------------------------------------------------------


def _through_kafka(
    args: argparse.Namespace, settings: Settings, plan: _Plan, outputs: Outputs, console: Console
) -> None:
    cluster = build_cluster(settings)
    run = Run(_run_name(args.run or secrets.token_hex(4)))
    partitions = {group.name: args.partitions or PARTITIONS for group in plan.series}
    for raw, name in plan.raw:
        partitions[name] = max(raw.partitions, partitions.get(name, 1))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends in order, and says what is left, as Ctrl-C does
    topics = run.create(cluster, partitions)
    began_s = time.monotonic()
    try:
        _score_with_own_worker(args, settings, plan, outputs, run)
        _print_summary(console, outputs, time.monotonic() - began_s)
    finally:
        if args.cleanup:
            run.delete(cluster)
            console.print(f"run {run.name}: its {len(topics)} topics and its group are deleted")
        else:
            console.print(f"run {run.name} created the group {run.group} and the topics {', '.join(topics)}.")
            console.print(f"To delete them: tidewatch replay --delete {run.name}{_settings_option(args)}")


def _score_with_own_worker(
    args: argparse.Namespace, settings: Settings, plan: _Plan, outputs: Outputs, run: Run
) -> None:
    """Produce, step the worker in between, wait until all is committed, read the outputs back."""
    cluster = build_cluster(settings)
    messages, total = _messages(args, settings, plan, {name: run.input(name) for name in plan.profiles})
    with tempfile.TemporaryDirectory(prefix="tidewatch-replay-") as folder, _progress() as bar:
        own = run.settings(settings, plan.profiles, Path(folder))
        registry = Registry(own.registry.folder)
        for name, weights in plan.weights.items():
            registry.serve(name, registry.publish(name, weights, own.profiles[name].fold()))
        sent = bar.add_task("produced", total=total, what="messages")
        scored = bar.add_task("scored", total=total, what="messages")

        def listen(stats: StepStats) -> None:
            bar.advance(scored, stats.windows + len(stats.dead_letters))
            outputs.tally.late += sum(stats.late.values())
            outputs.tally.silent += stats.silent_observations

        worker = build_worker(own, listen, MemoryStateStore())
        try:
            with cluster.feeder() as feeder:
                pacer = Pacer(_speed(args.speed), SystemClock())
                count = feed(messages, feeder, pacer, lambda wait_s: _step(worker), _advancing(bar, sent))
            for task in (sent, scored):
                bar.update(task, total=count)
            finish(worker, feeder.ends)
        finally:
            worker.stop()
    read_back(cluster, run, outputs)
    outputs.write()


def _step(worker: Worker) -> None:
    worker.step()


def _into_production(args: argparse.Namespace, settings: Settings, plan: _Plan, console: Console) -> int:
    """Produce into the topics the profiles are bound to; scoring and outputs are the workers' there."""
    if args.to != "kafka" or args.scores or args.alerts:
        raise ConfigurationError("--into-production goes with --to kafka, and writes neither scores nor alerts itself")
    derived = [name for name in plan.profiles if name not in settings.profiles]
    if derived:
        raise ConfigurationError(f"{', '.join(derived)}: no profile of the settings fits, so production has no topic")
    topics = {name: profile.topics[0] for name, profile in plan.profiles.items()}
    messages, total = _messages(args, settings, plan, topics)
    with _progress() as bar, build_cluster(settings).feeder() as feeder:
        task = bar.add_task("produced", total=total, what="messages")
        pacer = Pacer(_speed(args.speed), SystemClock())
        # Production's clock is the present: recorded timestamps could be deleted by retention, and are not what
        # silence and idle streams are judged by.
        count = feed(
            (message._replace(partition=None) for message in messages),
            *(feeder, pacer, pause, _advancing(bar, task)),
            with_times=False,
        )
    console.print(f"{count:,} messages produced into {', '.join(sorted(topics.values()))}.")
    console.print("Observations that are not after the last one of their stream count as late there and have no score.")
    return 0


def _messages(
    args: argparse.Namespace, settings: Settings, plan: _Plan, topics: dict[str, str]
) -> tuple[Iterator[Message], int]:
    """Everything to be produced, in the order of its times, and about how many messages that is."""
    length = args.window or (16 if _speed(args.speed) is None else 1)
    parts = [series_messages(group, topics[group.name], length, plan.history) for group in plan.series]
    lengths = [window_length(length, group.streams, group.profile) for group in plan.series]
    total = sum(len(WindowSequence(g.streams, each)) for g, each in zip(plan.series, lengths, strict=True))
    for raw, name in plan.raw:
        profile = settings.profiles[name]
        records = choose_records(raw.read(), plan.chosen, profile, settings.limits)
        parts.append(raw_messages(records, topics[name], profile, settings.limits, plan.history))
        total += raw.total
    return merged(parts), total


def _speed(text: str) -> float | None:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)x?", text)
    if text == "max":
        return None
    if match is None or float(match[1]) == 0:
        raise ConfigurationError(f"--speed {text}: write 60x (an hour a minute), or max")
    return float(match[1])


def _run_name(text: str) -> str:
    if re.fullmatch(r"[a-z0-9]{1,32}", text) is None:
        raise ConfigurationError(f"{text!r} is no name of a run: small letters and digits, at most 32")
    return text


def _delete(cluster: Cluster, run: Run, console: Console) -> int:
    deleted = run.delete(cluster)
    console.print(f"deleted the group {run.group} and {', '.join(deleted) or 'no topic: there was none'}")
    return 0


def _settings_option(args: argparse.Namespace) -> str:
    return "" if args.settings is None else f" --settings {args.settings}"


# --- progress and summary ---------------------------------------------------------------------------------------------


class _Rate(ProgressColumn):
    """How much is done, and how much of it a second."""

    def render(self, task: Task) -> Text:
        seconds = task.finished_time or task.elapsed or 0.0
        rate = f", {task.completed / seconds:,.0f}/s" if seconds > 0 else ""
        return Text(f"{task.completed:,.0f}/{task.total or 0:,.0f} {task.fields['what']}{rate}")


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on stderr with rate and time left; silent where stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), _Rate(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as bar:
        yield bar


def _advancing(bar: Progress, task: TaskID) -> Callable[[int], None]:
    def advance(count: int) -> None:
        bar.advance(task, count)

    return advance


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _print_summary(console: Console, outputs: Outputs, seconds: float) -> None:
    tally = outputs.tally
    verdicts = {name: int(count) for name, count in zip(VERDICTS, tally.verdicts.tolist(), strict=True)}
    console.print(
        f"{_counted(len(tally.streams), 'stream')}, {tally.scored:,} observations scored in {seconds:.1f} s "
        f"({tally.scored / max(seconds, 1e-9):,.0f}/s): {verdicts['normal']:,} normal, "
        f"{verdicts['anomalous']:,} anomalous, {verdicts['warming_up']:,} warming up, {verdicts['missing']:,} missing"
    )
    for count, what in ((tally.late, "late"), (tally.silent, "silent"), (tally.dead_letters, "dead letters")):
        if count:
            console.print(f"{count:,} {what}")
    critical = sum(alert.severity == "critical" for alert in tally.worst.values())
    console.print(f"{_counted(tally.opened, 'alert')}, {critical:,} of them critical")
    worst = tally.worst_alerts(SHOWN_ALERTS)
    if worst:
        print("worst alerts", *_table(worst), sep="\n")
    for path in outputs.files:
        console.print(f"written: {path}")


def _table(alerts: Sequence[Alert]) -> list[str]:
    head = ("onset (UTC)", "peak", "threshold", "signal", "stream", "strongest feature")
    rows = [
        (
            *(iso_time(alert.onset_ms)[:19], f"{alert.peak_score:.1f}", f"{alert.threshold:.1f}"),
            *(alert.signal, alert.stream_id, strongest_feature(alert)),
        )
        for alert in alerts
    ]
    return table(head, rows, right=(1, 2))
