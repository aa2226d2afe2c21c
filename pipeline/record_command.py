"""``tidewatch record``: write the records of a topic to a file, bit for bit.

Takes a range of what is there, or with --follow what comes, until Ctrl-C or until --to has passed. Key, value,
timestamp, partition and offset of every committed record are kept, so that tidewatch replay can give each one to the
engine, or back to Kafka, as it was: packed windows, control records and bad input alike. Nothing is committed and no
group is joined, so workers do not notice.

Places (--from, --to) are offsets, which apply to every partition, or times (ISO 8601, UTC), which are compared with
Kafka timestamps.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.clock import SystemClock
from pipeline.errors import ConfigurationError
from pipeline.records import Partition, Record
from pipeline.settings import Settings
from pipeline.settings_option import add_settings_option
from pipeline.sinks.recording import RecordWriter
from pipeline.topics.base import Instant, Offset, Place
from pipeline.topics.kafka import TopicReader
from pipeline.topics.places import parse_place
from pipeline.wiring import build_cluster

EXAMPLES = """\
examples:
  tidewatch record pump-windows --out pumps.records.jsonl.gz               all that is in the topic now
  tidewatch record pump-windows --from 2026-03-01T06:00 --to 2026-03-01T12:00 --out morning.records.jsonl.gz
  tidewatch record pump-windows --follow --out live.records.jsonl.gz       what comes, until Ctrl-C
  tidewatch replay morning.records.jsonl.gz --profile pump                 and back
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which records, and where they go."""
    parser.add_argument("topic", metavar="TOPIC", help="topic to read")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="file to write; its name ends in .records.jsonl.gz or .records.jsonl",
    )
    parser.add_argument(
        "--from",
        dest="begin",
        metavar="PLACE",
        help="begin with this offset or time (default: the oldest; with --follow: now)",
    )
    parser.add_argument("--to", dest="end", metavar="PLACE", help="stop before this offset or time (default: now)")
    parser.add_argument("--follow", action="store_true", help="go on with what comes, until Ctrl-C or --to")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    add_settings_option(parser)


def run(args: argparse.Namespace) -> int:
    """Record, show progress, say what was written; returns the exit code, 1 where there was no record.

    Raises
    ------
    ConfigurationError
        No such topic, a wrong place, or the file cannot be written, or exists.
    BrokerAway
        Kafka does not answer; what was read until then is discarded.
    """
    begin = None if args.begin is None else parse_place(args.begin)
    end = None if args.end is None else parse_place(args.end)
    if args.follow and isinstance(end, Offset):
        raise ConfigurationError("--follow ends at a time, or by Ctrl-C, not at an offset")
    if args.out.exists() and not args.force:
        raise ConfigurationError(f"{args.out} exists; --force replaces it")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends a recording as Ctrl-C does
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    with build_cluster(Settings.load(args.settings)).reader(args.topic) as reader, RecordWriter(args.out) as writer:
        try:
            if args.follow:
                _follow(reader, writer, begin, end if isinstance(end, Instant) else None, console)
            else:
                _record(reader, writer, begin, end)
        except KeyboardInterrupt:
            console.print("ended by hand")
        if writer.count == 0:
            writer.discard()
            print(f"{args.topic}: no record in the range asked for; nothing was written", file=sys.stderr)
            return 1
    console.print(f"{args.out}: {writer.count:,} records of {args.topic}")
    return 0


def _record(reader: TopicReader, writer: RecordWriter, begin: Place | None, end: Place | None) -> None:
    """What is in the topic now."""
    first = reader.beginning() if begin is None else reader.at(begin)
    last = reader.end() if end is None else reader.at(end)
    total = sum(max(0, last[partition] - first[partition]) for partition in first)
    columns = (TextColumn("recording"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task("", total=total, rate="")
        done = dict(first)
        for records in reader.read(first, last):
            for partition, record in records:
                writer.add(partition, record)
                done[partition] = record.offset + 1  # offsets that transactions used are passed over
            speed = bar.tasks[0].speed
            bar.update(task, completed=_passed(first, done), rate="" if speed is None else f"{speed:,.0f}/s")
        bar.update(task, completed=total)


def _passed(first: Mapping[Partition, int], done: Mapping[Partition, int]) -> int:
    return sum(done[partition] - first[partition] for partition in first)


def _follow(
    reader: TopicReader, writer: RecordWriter, begin: Place | None, end: Instant | None, console: Console
) -> None:
    """What comes, in the order in which it comes."""
    first = reader.end() if begin is None else reader.at(begin)
    console.print(f"recording what comes; Ctrl-C {'ends' if end is None else 'or the time of --to ends'} it")
    with Progress(
        TextColumn("recording, {task.completed} records"), console=Console(stderr=True), disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task("", total=None)
        for partition, record in _coming(reader, first, end):
            writer.add(partition, record)
            bar.advance(task)


def _coming(
    reader: TopicReader, first: Mapping[Partition, int], end: Instant | None
) -> Iterator[tuple[Partition, Record]]:
    """Records as they come; over once the clock has passed ``end`` and nothing older is left to read."""
    clock = SystemClock()
    for records in reader.read(first):
        yield from (pair for pair in records if end is None or pair[1].timestamp < end.time_ms)
        if end is not None and not records and clock.wall_ms() >= end.time_ms:
            return
