"""``tidewatch streams``: list and show saved streams; reset or forget them safely while workers run.

list and show read what workers have saved in Redis, which is a few seconds behind what they know; they change nothing.

reset and forget do not touch Redis. They write a control record into the stream's own topic, on its partition. A worker
obeys it when it comes to that place: between the same two observations of the stream in every replay, on every worker,
after every crash. A change made in Redis by hand would be undone by the next replay; this is not. After reset the
stream starts afresh and warms up again (about 100 observations without a verdict); after forget nothing is kept of
it, and it starts afresh if it ever sends again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.row import RowLayout
from pipeline.epoch import iso_time
from pipeline.errors import BrokerAway, ConfigurationError
from pipeline.records import Partition
from pipeline.settings import Settings
from pipeline.settings_option import add_settings_option
from pipeline.state.base import StateKey, StateStore
from pipeline.stored import Layouts, NamedSlice, StoredStream, current_keys, find_stream, named_slices, scan_streams
from pipeline.wire import encode_control
from pipeline.wiring import build_cluster, build_store
from pipeline.wording import shortened, table

SHOWN_NUMBERS = 4
LONGEST_ID = 48
"""Characters of a stream id that list shows on a terminal: one long id would push every other line off its edge."""

EXAMPLES = """\
examples:
  tidewatch streams list                              what is saved for the group of the settings
  tidewatch streams list 'press-*' --json             for other programs, one object a line
  tidewatch streams show press-07                     header and every named number of its row
  tidewatch streams reset press-07                    its sensor was replaced: start afresh
  tidewatch streams forget press-07 --yes             it is gone for good
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One parser for each action."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    common = argparse.ArgumentParser(add_help=False)
    add_settings_option(common)
    common.add_argument("--group", help="consumer group whose state to use (default: that of the settings)")
    common.add_argument("--topic", help="only this topic; needed to reset a stream that was never saved")
    listing = actions.add_parser(
        "list",
        parents=[common],
        help="every saved stream, with position and open alert",
        description="Every saved stream, with position and open alert. Observations are those with a valid value, less "
        "what gaps take off: how many its statistics rest on, not how many ever came. On a terminal long ids are "
        "shortened in the middle; a pipe and --json get them in full.",
    )
    listing.add_argument("pattern", nargs="?", default="*", metavar="GLOB", help="only streams that match this pattern")
    listing.add_argument("--limit", type=int, default=100, help="at most this many; 0 for all (default: 100)")
    listing.add_argument("--json", action="store_true", help="print one JSON object for each stream")
    show = actions.add_parser("show", parents=[common], help="everything that is remembered about a stream, by name")
    show.add_argument("stream", metavar="STREAM")
    show.add_argument("--all", action="store_true", help="print every value of wide fields instead of only their range")
    show.add_argument("--json", action="store_true", help="print one JSON object with every number")
    for action, what in (("reset", "start a stream afresh"), ("forget", "drop all that is kept of a stream")):
        control = actions.add_parser(action, parents=[common], help=f"{what}, by a control record in its topic")
        control.add_argument("streams", nargs="+", metavar="STREAM")
        control.add_argument("--yes", action="store_true", help="do not ask")


def run(args: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code: 1 where a stream was not found, or the answer was no.

    Raises
    ------
    ConfigurationError
        A topic is needed, or there is nobody to ask for confirmation.
    StoreAway, BrokerAway
        Redis or Kafka does not answer.
    """
    settings = Settings.load(args.settings)
    if args.group is not None:
        settings = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"group": args.group})})
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    store = build_store(settings)
    try:
        keys = _keys(store, settings, args.topic)
        if args.action == "list":
            return _list(args, settings, store, keys, console)
        if args.action == "show":
            return _show(args, settings, store, keys, console)
        return _control(args, settings, store, keys, console)
    finally:
        store.close()


def _keys(store: StateStore, settings: Settings, topic: str | None) -> list[StateKey]:
    """States of the group; Kafka is asked which ones are current only where a partition has several."""
    keys = [key for key in store.keys(settings.kafka.group) if topic in (None, key.partition.topic)]
    if len({key.partition for key in keys}) == len(keys):
        return keys
    try:
        return current_keys(keys, build_cluster(settings).committed(settings.kafka.group))
    except BrokerAway as error:
        print(f"Kafka does not say which states are current ({error}); all are shown", file=sys.stderr)
        return keys


# --- looking ----------------------------------------------------------------------------------------------------------


def _list(
    args: argparse.Namespace, settings: Settings, store: StateStore, keys: Sequence[StateKey], console: Console
) -> int:
    layouts = Layouts(settings)
    found = (stream for stream in scan_streams(store, keys) if fnmatchcase(stream.stream_id, args.pattern))
    streams = sorted(found, key=lambda stream: (stream.partition, stream.stream_id))
    shown = streams if args.limit <= 0 else streams[: args.limit]
    if args.json:
        for stream in shown:
            print(json.dumps(_summary(stream, layouts.of(stream)), ensure_ascii=False))
        return 0
    rows = []
    longest = LONGEST_ID if sys.stdout.isatty() else sys.maxsize
    for stream in shown:
        count = stream.observations(layouts.of(stream))
        rows.append(
            (
                *(shortened(stream.stream_id, longest), str(stream.partition), str(stream.number("position"))),
                *(_time(stream.number("last_event_ms")), "?" if count is None else str(count)),
                _time(stream.number("onset_ms")),
            )
        )
    if rows:
        head = ("stream", "partition", "position", "last event", "observations", "open alert since")
        print(*table(head, rows, right=(2, 4)), sep="\n")
    more = f", {len(shown):,} of them shown; --limit 0 shows all" if len(shown) < len(streams) else ""
    console.print(f"{len(streams):,} streams saved for group {settings.kafka.group}{more}")
    return 0


def _summary(stream: StoredStream, layout: RowLayout | None) -> dict[str, object]:
    snapshot = stream.snapshot
    return {
        "stream_id": stream.stream_id,
        "topic": stream.partition.topic,
        "partition": stream.partition.partition,
        "incarnation": stream.key.incarnation,
        "position": stream.number("position"),
        "last_event_ms": stream.number("last_event_ms"),
        "last_record_ms": stream.number("last_record_ms"),
        "observations": stream.observations(layout),
        "open_alert_since_ms": stream.number("onset_ms"),
        "open_alert_offset": stream.number("onset_offset"),
        "partial_left": stream.number("partial_left"),
        "model_version": snapshot.model_version,
        "layout": snapshot.layout,
    }


def _show(
    args: argparse.Namespace, settings: Settings, store: StateStore, keys: Sequence[StateKey], console: Console
) -> int:
    found = find_stream(store, keys, args.stream)
    layouts = Layouts(settings)
    for stream in found:
        layout = layouts.of(stream)
        slices = [] if layout is None else named_slices(stream.snapshot, layout)
        if args.json:
            named = {f"{part.where}.{part.name}": part.values.tolist() for part in slices}
            print(json.dumps(_summary(stream, layout) | {"row": _finite(named)}, ensure_ascii=False))
            continue
        for name, value in _summary(stream, layout).items():
            is_time = name.endswith("_ms") and isinstance(value, int)
            console.print(f"{name:>20}  {iso_time(value) if is_time and isinstance(value, int) else value}")
        if layout is None:
            console.print(f"its layout {stream.snapshot.layout} is not that of any version at hand: numbers unnamed")
            continue
        console.print(_slices_table(slices, layout, args.all))
    if not found:
        console.print(f"nothing is saved of {args.stream!r} for group {settings.kafka.group}")
    return 0 if found else 1


def _slices_table(slices: Sequence[NamedSlice], layout: RowLayout, everything: bool) -> Table:
    table = Table(box=None, title=f"row of {layout.numbers} numbers", title_justify="left")
    for name in ("slice", "of", "value", "meaning"):
        table.add_column(name, overflow="fold")
    for part in slices:
        owners = layout.config.features if part.where == "feature" else ("stream",)
        for owner, values in zip(owners, part.values, strict=True):
            table.add_row(part.name, escape(owner), _numbers(values, everything), part.meaning)
    return table


def _numbers(values: np.ndarray, everything: bool) -> str:
    if everything or len(values) <= SHOWN_NUMBERS:
        return " ".join(f"{value:.6g}" for value in values.tolist())
    return f"{len(values)} numbers, {values.min():.4g} to {values.max():.4g}, mean {values.mean():.4g}"


def _finite(named: dict[str, list[list[float]]]) -> dict[str, list[list[float | None]]]:
    """JSON knows no infinities."""
    return {
        name: [[value if np.isfinite(value) else None for value in row] for row in rows] for name, rows in named.items()
    }


def _time(time_ms: int | None) -> str:
    return "-" if time_ms is None else iso_time(time_ms)


# --- control records --------------------------------------------------------------------------------------------------


def _control(
    args: argparse.Namespace, settings: Settings, store: StateStore, keys: Sequence[StateKey], console: Console
) -> int:
    control: Literal["reset", "forget"] = args.action
    places = [(stream, place) for stream in args.streams for place in _places(stream, args, settings, store, keys)]
    for stream, (topic, partition) in places:
        where = f"{topic}-{partition}" if partition is not None else f"{topic}, on the partition of its key"
        console.print(f"{control} {stream!r} by a record in {where}")
    if not args.yes and not _is_confirmed(control, len(places)):
        console.print("nothing was written")
        return 1
    with build_cluster(settings).feeder() as feeder:
        for stream, (topic, partition) in places:
            feeder.send(topic, stream.encode(), encode_control(stream, control), partition=partition)
        feeder.flush()
        for partition_written, end in sorted(feeder.ends.items()):
            console.print(f"written: {partition_written}, offset {end - 1}")
    console.print("Workers obey when they come to that place, and every replay obeys at the same one.")
    return 0


def _places(
    stream: str, args: argparse.Namespace, settings: Settings, store: StateStore, keys: Sequence[StateKey]
) -> Iterator[tuple[str, int | None]]:
    """Where a stream's records are: as saved, else the topic given and the partition that its key hashes to."""
    saved: list[Partition] = sorted({found.partition for found in find_stream(store, keys, stream)})
    if saved:
        yield from saved
        return
    topics = list(settings.profile_names())
    if args.topic is not None:
        if args.topic not in topics:
            raise ConfigurationError(f"--topic {args.topic}: no profile reads it; there are {', '.join(topics)}")
        topics = [args.topic]
    if len(topics) > 1:
        raise ConfigurationError(
            f"nothing is saved of {stream!r} for group {settings.kafka.group}, so its topic is not known; if the name "
            f"is right, say which with --topic ({', '.join(topics)})"
        )
    yield topics[0], None


def _is_confirmed(control: str, count: int) -> bool:
    """The answer of whoever sits there.

    Raises
    ------
    ConfigurationError
        Nobody does.
    """
    if not sys.stdin.isatty():
        raise ConfigurationError(f"{control} asks before it writes, and stdin is no terminal; --yes takes it as asked")
    records = "this record" if count == 1 else f"these {count} records"
    return input(f"Write {records}? What the stream learned is lost. [y/N] ").strip().lower() in ("y", "yes")
