"""``tidewatch alerts``: list, show or follow alerts in the terminal.

Reads the alerts topic beside all other readers and commits nothing. list: the latest event of each alert. show: the
whole life of one alert, with a small plot of what was observed against what was expected. tail: events as they come.

--json prints the messages as they are on the topic, one per line (show: one object with events and observations).
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from pipeline.clock import SystemClock
from pipeline.epoch import iso_time, parse_time
from pipeline.errors import DecodeError
from pipeline.open_alerts import OpenAlerts, at_its_worst
from pipeline.records import EVENTS, RESOLVED, Alert, Float32, Int64
from pipeline.settings import Settings
from pipeline.settings_option import add_settings_option
from pipeline.silence import SIGNAL
from pipeline.terminal_plot import Expectation, draw
from pipeline.topics.base import Instant
from pipeline.topics.kafka import Cluster
from pipeline.wire import decode_alert, decode_many, encode_alert
from pipeline.wiring import build_cluster
from pipeline.wording import printable, strongest_feature, table

EXAMPLES = """\
examples:
  tidewatch alerts list --since 1d --open
  tidewatch alerts list --group presses --severity critical --json
  tidewatch alerts show 3f9a01c2           the beginning of an alert's id is enough
  tidewatch alerts tail --profile sensor
"""

UNITS_S = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
EXIT_OK, EXIT_NONE = 0, 1
MAX_LISTED = 100
PLOT_BEFORE, PLOT_AFTER = 40, 40
REACH_RECORDS = 50_000
"""Records of all streams to look through before the onset and after the last event for those of this one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and with which alerts."""
    add_settings_option(parser)
    does = parser.add_subparsers(dest="action", metavar="list|show|tail", required=True)
    listed = does.add_parser("list", help="latest event of each alert")
    listed.add_argument("--open", action="store_true", help="only alerts that are not resolved")
    listed.add_argument(
        "--limit", type=int, default=MAX_LISTED, help=f"at most this many, the newest (default: {MAX_LISTED})"
    )
    shown = does.add_parser("show", help="one alert, with a plot")
    shown.add_argument("alert_id", metavar="ALERT", help="alert id, or the beginning of one")
    tail = does.add_parser("tail", help="events as they come, until Ctrl-C")
    for each, since in ((listed, "1d"), (shown, "30d"), (tail, "now")):
        add_settings_option(each, argparse.SUPPRESS)
        each.add_argument(
            "--since", default=since, metavar="TIME", help=f"how far back: 30m, 6h, 2d, or ISO 8601 (default: {since})"
        )
        each.add_argument("--json", action="store_true", help="print JSON")
    for each in (listed, tail):
        each.add_argument("--stream", metavar="GLOB", default="*", help="only these streams")
        each.add_argument("--profile", help="only this profile")
        each.add_argument("--group", help="only this group")
        each.add_argument("--severity", choices=("warning", "critical"), help="only this severity or worse")


def run(args: argparse.Namespace) -> int:
    """Print what was asked for; returns 1 where ``show`` finds no such alert, or ``list`` lists none.

    Raises
    ------
    ConfigurationError
        A time cannot be read, or the alerts topic does not exist.
    BrokerAway
        Kafka does not answer.
    """
    settings = Settings.load(args.settings)
    cluster = build_cluster(settings)
    begin = Instant(since(args.since, SystemClock().wall_ms()))
    topic = settings.kafka.alerts_topic
    if args.action == "list":
        return _list(list(_past(cluster, topic, begin)), args)
    if args.action == "show":
        return _show(list(_past(cluster, topic, begin)), args, settings, cluster)
    return _tail(_coming(cluster, topic, begin), args)


def since(text: str, now_ms: int) -> int:
    """A time in ms since the epoch: ``now``, so long ago, or ISO 8601.

    Raises
    ------
    ConfigurationError
        It is none of them.
    """
    if text == "now":
        return now_ms
    ago = re.fullmatch(r"(\d+)([mhdw])", text)
    return parse_time(text) if ago is None else max(0, now_ms - int(ago[1]) * UNITS_S[ago[2]] * 1000)


def wanted(args: argparse.Namespace) -> Callable[[Alert], bool]:
    """Whether an alert is among those asked for."""

    def matches(alert: Alert) -> bool:
        return (
            fnmatchcase(alert.stream_id, args.stream)
            and args.profile in (None, alert.profile)
            and args.group in (None, alert.group)
            and (args.severity != "critical" or alert.severity == "critical")
        )

    return matches


# --- reading ----------------------------------------------------------------------------------------------------------


def _past(cluster: Cluster, topic: str, begin: Instant) -> Iterator[Alert]:
    with cluster.reader(topic) as reader:
        for records in reader.read(reader.at(begin), reader.end()):
            yield from _decoded(record.value for _, record in records)


def _coming(cluster: Cluster, topic: str, begin: Instant) -> Iterator[Alert]:
    with cluster.reader(topic) as reader:
        for records in reader.read(reader.at(begin)):
            yield from _decoded(record.value for _, record in records)


def _decoded(values: Iterable[bytes | None]) -> Iterator[Alert]:
    for value in values:
        try:
            yield decode_alert(value or b"")
        except DecodeError as error:
            print(f"skipped: {error}", file=sys.stderr)


def _json(alert: Alert) -> str:
    return encode_alert(alert).decode()


# --- list and tail ----------------------------------------------------------------------------------------------------


def _list(events: list[Alert], args: argparse.Namespace) -> int:
    still_open = OpenAlerts()
    last: dict[str, Alert] = {}
    worst: dict[str, Alert] = {}
    for alert in events:
        if still_open.add(alert):
            last.pop(alert.alert_id, None)
            last[alert.alert_id] = alert
            worst[alert.alert_id] = at_its_worst(worst.get(alert.alert_id), alert)
    matches = wanted(args)
    chosen = [a for a in last.values() if matches(a) and (not args.open or a.event != EVENTS[RESOLVED])]
    chosen = sorted(chosen, key=lambda alert: alert.onset_ms)[max(0, len(chosen) - args.limit) :]
    if args.json:
        for alert in chosen:
            print(_json(alert))
    elif chosen:
        print(*_table([worst[alert.alert_id] for alert in chosen]), sep="\n")
    else:
        print("no alerts")
    return EXIT_OK if chosen else EXIT_NONE


def _table(alerts: Iterable[Alert]) -> list[str]:
    """A line for each, whatever the terminal's width: the longest column comes last."""
    head = ("alert", "onset (UTC)", "state", "severity", "stream", "signal", "peak", "strongest feature")
    rows = [
        (
            *(alert.alert_id[:10], iso_time(alert.onset_ms)[:19]),
            "resolved" if alert.event == EVENTS[RESOLVED] else "open",
            *(alert.severity, alert.stream_id, alert.signal),
            f"{alert.peak_score:.1f}" if np.isfinite(alert.peak_score) else "",
            strongest_feature(alert),
        )
        for alert in alerts
    ]
    return table(head, rows, right=(6,))


def _tail(events: Iterable[Alert], args: argparse.Namespace) -> int:
    matches = wanted(args)
    for alert in events:
        if not matches(alert):
            continue
        if args.json:
            print(_json(alert), flush=True)
        else:
            line = f"{iso_time(alert.time_ms)[:19]}  {alert.event:<8}  {alert.severity:<8}  {alert.alert_id[:10]}"
            print(printable(f"{line}  {alert.stream_id}  {alert.signal}  {strongest_feature(alert)}"), flush=True)
    return EXIT_OK


# --- show -------------------------------------------------------------------------------------------------------------


def _show(events: list[Alert], args: argparse.Namespace, settings: Settings, cluster: Cluster) -> int:
    found = {alert.alert_id for alert in events if alert.alert_id.startswith(args.alert_id)}
    if len(found) != 1:
        several = f"these alerts begin with {args.alert_id}: {', '.join(sorted(found))}"
        print(several if found else f"no alert since {args.since} begins with {args.alert_id}", file=sys.stderr)
        return EXIT_NONE
    mine = [alert for alert in events if alert.alert_id in found]
    told = OpenAlerts()
    life = [alert for alert in mine if told.add(alert)]
    times_ms, values = _observed(life, settings, cluster)
    if args.json:
        print(json.dumps(_as_object(life, times_ms, values, settings)))
        return EXIT_OK
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    first, last = life[0], life[-1]
    state = "resolved" if last.event == EVENTS[RESOLVED] else "open"
    console.print(f"[b]{first.alert_id}[/b]  {state}  {last.severity}  profile {escape(first.profile)}")
    console.print(f"stream {escape(first.stream_id)}, group {escape(first.group or 'none')}")
    for alert in life:
        score = f"score {alert.score:.1f}, threshold {alert.threshold:.1f}  " if np.isfinite(alert.score) else ""
        console.print(f"  {iso_time(alert.time_ms)[:19]}  {alert.event:<8}  {score}{alert.signal}  ", end="")
        console.print(escape(strongest_feature(alert)))
    strongest = next((alert.features[0].name for alert in life if alert.features), None)
    known = settings.profiles[first.profile].features if len(times_ms) else ()
    if strongest in known:  # features may have been renamed since
        feature = known.index(strongest)
        expected = [
            Expectation(alert.time_ms, it.expected, *it.band)
            for alert in life
            for it in alert.features
            if it.name == strongest
        ]
        console.print(f"\n{escape(strongest)}", *draw(times_ms, values[:, feature], expected), sep="\n", markup=False)
    if first.signal != SIGNAL:  # there is nothing to explain about a record that did not come
        print(f"\nmore: {printable(explaining(first, args.settings))}")
    return EXIT_OK


def explaining(alert: Alert, settings: Path | None) -> str:
    """The command, for a shell, that explains an alert's onset."""
    options = ["--at", iso_time(alert.onset_ms).removesuffix("Z"), "--kafka", alert.partition.topic]
    options += [] if settings is None else ["--settings", str(settings)]
    stream = alert.stream_id
    words = [*options, "--", stream] if stream.startswith("-") else [stream, *options]
    return shlex.join(["tidewatch", "explain", *words])


def _observed(life: list[Alert], settings: Settings, cluster: Cluster) -> tuple[Int64, Float32]:
    """The stream's observations around the alert, from its input topic, as far as they are still there."""
    first, last = life[0], life[-1]
    profile = settings.profiles.get(first.profile)
    nothing = (np.empty(0, np.int64), np.empty((0, 0), np.float32))
    if profile is None:
        return nothing
    partition = first.partition
    times: list[Int64] = []
    values: list[Float32] = []
    with cluster.reader(partition.topic) as reader:
        if partition not in reader.partitions:
            return nothing
        begin, end = reader.beginning()[partition], reader.end()[partition]
        begin = max(begin, first.onset_offset - REACH_RECORDS)
        end = min(end, last.offset + REACH_RECORDS)
        for records in reader.read({partition: begin}, {partition: end}):
            windows, _ = decode_many([record for _, record in records], partition, profile, settings.limits)
            ends = windows.lengths.cumsum()
            for number, stream_id in enumerate(windows.stream_ids):
                if stream_id == first.stream_id:
                    cut = slice(int(ends[number] - windows.lengths[number]), int(ends[number]))
                    times.append(windows.times_ms[cut])
                    values.append(windows.values[cut])
    if not times:
        return nothing
    return _cut(np.concatenate(times), np.concatenate(values), first.onset_ms, last.time_ms)


def _cut(times_ms: Int64, values: Float32, onset_ms: int, last_ms: int) -> tuple[Int64, Float32]:
    """Some observations before the onset, all of the alert, and some after its last event, in order of time."""
    order = np.argsort(times_ms, kind="stable")
    times_ms, values = times_ms[order], values[order]
    begin = max(0, int(np.searchsorted(times_ms, onset_ms)) - PLOT_BEFORE)
    end = int(np.searchsorted(times_ms, last_ms, side="right")) + PLOT_AFTER
    return times_ms[begin:end], values[begin:end]


def _as_object(life: list[Alert], times_ms: Int64, values: Float32, settings: Settings) -> dict[str, Any]:
    profile = settings.profiles.get(life[0].profile)
    names = profile.features if profile is not None and len(times_ms) else ()
    columns = {
        name: [value if np.isfinite(value) else None for value in values[:, number].tolist()]
        for number, name in enumerate(names)
    }
    return {
        "alert_id": life[0].alert_id,
        "is_open": life[-1].event != EVENTS[RESOLVED],
        "events": [json.loads(_json(alert)) for alert in life],
        "observed": {"times_ms": times_ms.tolist(), "values": columns},
    }
