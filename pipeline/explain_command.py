"""``tidewatch explain``: explain why there was an alert, or why there was none, from a recording or from Kafka.

The production engine scores the stream once more, from its first observation on, and keeps all that stands behind each
score: what was expected, the evidence, the gate, the threshold and the controller. A table and a sentence explain the
time asked about, and --png draws it. Nothing else is written, and no group is joined.

From Kafka, records are scored with the model versions that scored them first, where the group's committed offsets and
the registry still know them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.engine import Absorbed
from pipeline.epoch import iso_time, parse_time
from pipeline.errors import ConfigurationError, DecodeError
from pipeline.explanation import Explanation, collect, sentence, with_recorded_versions
from pipeline.offline import Offline
from pipeline.partition import from_offset
from pipeline.plots import Span, draw_explanation, utc
from pipeline.records import ANOMALOUS, EVENTS, VERDICTS, Committed, Partition, Windows
from pipeline.registry import Registry
from pipeline.replay.inputs import (
    KAFKA,
    Chosen,
    RawInput,
    group_by_profile,
    in_batches,
    load_streams,
    open_record_file,
    open_topic,
    parse_topic_range,
    profile_of_raw,
)
from pipeline.settings import Settings
from pipeline.settings_option import add_settings_option
from pipeline.sources.record_file import is_record_file
from pipeline.sources.recording import RecordedStream
from pipeline.wire import decode_many
from pipeline.wiring import apply_threads, build_cluster, build_engine, choose_device
from pipeline.wording import against, printable

BATCH_RECORDS = 5_000

EXAMPLES = """\
examples:
  tidewatch explain pump --at 2026-03-01T09:15 --recording pump.csv
  tidewatch explain nab/ec2_cpu --at 2014-02-24T18:35 --recording recordings/ --png why.png
  tidewatch explain pump-07 --at 2026-03-01T09:15 --kafka pump-windows --settings tidewatch.toml
  tidewatch explain pump-07 --at 2026-03-01T09:15 --kafka pump-windows@0..250000 --before 5 --after 20
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which stream, when, where from, and how much around it."""
    parser.add_argument("stream", metavar="STREAM", help="stream id")
    parser.add_argument("--at", required=True, metavar="TIME", help="event time, ISO 8601 (UTC where no zone is given)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--recording", type=Path, metavar="PATH", help="file, folder or record file, as for replay")
    source.add_argument("--kafka", metavar="TOPIC", help="topic, or TOPIC@FROM..TO with offsets or times")
    parser.add_argument("--before", type=int, default=10, metavar="N", help="observations shown before (default: 10)")
    parser.add_argument("--after", type=int, default=10, metavar="N", help="observations shown after (default: 10)")
    parser.add_argument(
        "--png", type=Path, metavar="FILE", help="draw it to this file, with twelve times as many observations"
    )
    add_settings_option(parser)
    parser.add_argument("--profile", metavar="NAME", help="score by this profile (default: the one that fits)")


PICTURE_FACTOR, TABLE_WIDTH = 12, 160
LEFT_COLUMNS = ("time (UTC)", "feature", "verdict", "signal", "side")
EVENT_WORDS = {"opened": "alert opened", "updated": "alert worse", "resolved": "alert resolved"}


def run(args: argparse.Namespace) -> int:
    """Score the stream again, show the time asked about; returns the exit code.

    Raises
    ------
    ConfigurationError
        No such stream, recording, topic or profile; or --png without matplotlib.
    BrokerAway
        Kafka does not answer.
    """
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    if args.before < 0 or args.after < 0:
        raise ConfigurationError("--before and --after count observations: 0 or more")
    asked_ms = parse_time(args.at)
    settings = Settings.load(args.settings)
    apply_threads()
    whole, labels = _explain(args, settings, console)
    at = whole.nearest(asked_ms)
    begin = max(at - args.before, 0)
    shown = whole.part(begin, at + args.after + 1)
    Console(highlight=False, width=max(console.width, TABLE_WIDTH), emoji=False).print(table_of(shown, at - begin))
    if whole.times_ms[at] != asked_ms:
        console.print(f"There is no observation at {args.at}; the closest one is {iso_time(int(whole.times_ms[at]))}.")
    console.print(escape(sentence(whole, at)))
    if args.png is not None:
        _draw(whole, at, args, labels)
        console.print(f"\nPicture: {escape(str(args.png))}")
    return 0


def _draw(whole: Explanation, at: int, args: argparse.Namespace, labels: list[Span]) -> None:
    begin = max(at - PICTURE_FACTOR * args.before, 0)
    part = whole.part(begin, at + PICTURE_FACTOR * args.after + 1)
    verdict = VERDICTS[int(whole.verdict[at])].replace("_", " ")
    score = float(whole.score[at])
    when = iso_time(int(whole.times_ms[at]))[:19].replace("T", " ")
    title = f"{whole.stream_id} at {when}: {verdict}, score {score:.2f}"
    draw_explanation(part, at - begin, args.png, title, labels)


# -- the table ---------------------------------------------------------------------------------------------------------


def table_of(shown: Explanation, at: int) -> Table:
    """One row for each observation; the one asked about is marked. Of several features, the one that was strongest."""
    several = len(shown.features) > 1
    is_single = bool(np.isfinite(shown.level).any())
    title = f"{escape(printable(shown.stream_id))}, {utc(int(shown.times_ms[at]))[:4]}, {_version(shown)}"
    table = Table(title=title, title_justify="left", header_style="bold", box=None)
    names = ["time (UTC)", "observed", "expected", "band", "score", "thresh.", "verdict", "signal", "side"]
    names += ["gate", "S", "A", "d"] if is_single else ["s", "displ.", "d"]
    if several:
        names.insert(1, "feature")
    for name in names:
        justify: JustifyMethod = "left" if name in LEFT_COLUMNS else "right"
        table.add_column(name, justify=justify, no_wrap=True)
    for i in range(len(shown)):
        cells = _cells(shown, i, is_single)
        style = "bold reverse" if i == at else "red" if shown.verdict[i] == ANOMALOUS else ""
        table.add_row(*(cells if several else [cells[0], *cells[2:]]), style=style)
    return table


def _version(shown: Explanation) -> str:
    versions = list(dict.fromkeys(shown.versions.tolist()))
    return f"version {versions[0]}" if len(versions) == 1 else f"versions {', '.join(versions)}"


def _cells(e: Explanation, i: int, is_single: bool) -> list[str]:
    feature = e.strongest_feature(i)
    band = float(e.band_low[i, feature]), float(e.band_high[i, feature])
    observed, expected, between = against(float(e.observed[i, feature]), float(e.expected[i, feature]), band)
    event = EVENTS[int(e.event[i])]
    verdict = VERDICTS[int(e.verdict[i])].replace("_", " ")
    of_kind = (
        [_share(e.opening[i, feature]), f"{e.level[i, feature]:.2g}", f"{e.activity[i, feature]:.2g}"]
        if is_single
        else [_plain(e.entity[i]), _plain(e.entity_displacement[i])]
    )
    return [
        _time(e, i),
        e.features[feature],
        observed,
        expected,
        between,
        f"{e.score[i]:.2f}" if np.isfinite(e.score[i]) else "–",
        f"{e.threshold[i]:.2f}",
        EVENT_WORDS.get(event, verdict),
        e.signals[int(e.signal[i])] if e.signal[i] else "",
        {-1: "below", 1: "above"}[int(e.direction[i])] if e.signal[i] and e.direction[i] else "",
        *of_kind,
        f"{e.controller[i]:.2f}",
    ]


def _time(e: Explanation, i: int) -> str:
    """As much of the event time as tells it from its neighbours': to the minute, the second or the ms."""
    closest = int(np.diff(e.times_ms).min(initial=60_000))
    return iso_time(int(e.times_ms[i]))[5 : 16 if closest >= 60_000 else 19 if closest >= 1000 else 23].replace(
        "T", " "
    )


def _plain(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "–"


def _share(value: float) -> str:
    return f"{value:.0%}" if np.isfinite(value) else "–"


# -- scoring once more -------------------------------------------------------------------------------------------------


def _explain(args: argparse.Namespace, settings: Settings, console: Console) -> tuple[Explanation, list[Span]]:
    """The whole stream with all that stands behind it, and what is labelled in it."""
    if args.kafka is not None:
        raw = open_topic(build_cluster(settings), parse_topic_range(args.kafka.removeprefix(KAFKA)))
        return _explain_raw(raw, _committed(settings, raw), args, settings, console), []
    if is_record_file(args.recording):
        return _explain_raw(open_record_file(args.recording), {}, args, settings, console), []
    [stream] = load_streams([args.recording], Chosen((args.stream,)))[:1]
    [group] = group_by_profile([stream], settings.profiles, args.profile)
    if group.notice is not None:
        console.print(f"notice: {escape(group.notice)}", style="dim")
    offline = Offline(group.name, group.profile, device=choose_device(settings.engine.device), detail=True)
    return collect(offline.score_streams([stream]), stream.name, group.profile.features), _labels(stream)


def _labels(stream: RecordedStream) -> list[Span]:
    """The labelled stretches of a recording, for shading."""
    if stream.labels is None:
        return []
    edges = np.flatnonzero(np.diff(np.concatenate([[0], stream.labels > 0, [0]]).astype(np.int8)))
    last = len(stream) - 1
    times = stream.times_ms
    spans = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    return [Span(int(times[begin]), int(times[min(end, last)]), "label") for begin, end in spans]


def _committed(settings: Settings, raw: RawInput) -> dict[Partition, Committed]:
    """What the group's committed offsets carry, for the partitions that Tidewatch committed."""
    found: dict[Partition, Committed] = {}
    for partition, offset in build_cluster(settings).committed(settings.kafka.group).items():
        if partition.topic in raw.topics:
            try:
                found[partition] = from_offset(offset)
            except DecodeError:
                continue
    return found


def _explain_raw(
    raw: RawInput, committed: dict[Partition, Committed], args: argparse.Namespace, settings: Settings, console: Console
) -> Explanation:
    name = profile_of_raw(raw, settings, args.profile)
    profile = settings.profiles[name]
    device = choose_device(settings.engine.device)
    registry = Registry(settings.registry.folder)
    engine = build_engine(settings, registry, name, device, detail=True)
    offline = Offline(name, profile, device=device, detail=True)
    history = {p: c for p, c in committed.items() if all(engine.has_version(version) for _, version in c.history)}
    if args.kafka is not None and len(history) < len(committed):
        console.print("notice: recorded model versions are gone; scored with those of the settings", style="dim")
    if any(raw.begins.get(partition, 0) > c.origin for partition, c in committed.items()):
        console.print(
            "notice: a worker had read older records than these; what it remembered of them is missing here, and "
            "scores differ from those it gave",
            style="dim",
        )

    def batches() -> Iterator[Absorbed]:
        for partition, windows in _windows_of(raw, args.stream, name, settings):
            if partition in history:
                yield from with_recorded_versions(engine, history[partition], partition, windows)
            else:
                yield offline.score({partition: windows})

    return collect(batches(), args.stream, profile.features)


def _windows_of(raw: RawInput, stream: str, profile: str, settings: Settings) -> Iterator[tuple[Partition, Windows]]:
    """The stream's windows, batch by batch, in their order; records without a key are decoded to see whose they are."""
    key = stream.encode()
    columns = (TextColumn("reading"), BarColumn(), TextColumn("{task.completed:,}"), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("", total=raw.total)
        for batch in in_batches(raw.read(), BATCH_RECORDS):
            for partition, records in batch.items():
                progress.advance(task, len(records))
                mine = [record for record in records if record.key is None or record.key == key]
                windows, _ = decode_many(mine, partition, settings.profiles[profile], settings.limits)
                kept = np.array([name == stream for name in windows.stream_ids], np.bool_)
                if kept.any():
                    yield partition, windows.only(kept)
