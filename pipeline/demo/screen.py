"""What the demo shows: alerts as they open, progress, the table at the end, and what to type next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from models.synthetic import Fault
from pipeline.demo.judgement import Summary, is_excused
from pipeline.epoch import iso_time
from pipeline.records import Alert
from pipeline.wording import against, usually

SHOWN_FEATURES = 3
SEVERITY_STYLE = {"warning": "yellow", "critical": "bold red"}


def progress_bar(console: Console) -> Progress:
    """Observations scored of all that are replayed, with rate and time left."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        expand=True,
    )


def alert_line(alert: Alert, note: str | None) -> Text:
    """An alert at its opening: when, which stream, its score, what was observed and expected, which features."""
    line = Text()
    line.append(iso_time(alert.time_ms)[5:16].replace("T", " ") + "  ", "dim")
    line.append(f"{alert.stream_id:<24}", SEVERITY_STYLE.get(alert.severity, ""))
    line.append(f"{alert.score:5.1f} ", "bold")
    line.append(_strongest(alert))
    also = ", ".join(feature.name for feature in alert.features[1:SHOWN_FEATURES])
    line.append(f", also {also}" if also else "")
    line.append(f"  {note}" if note is not None else "", "green")
    return line


def _strongest(alert: Alert) -> str:
    """``0 (expected 128 to 136)``, after the feature's name where there are several."""
    it = alert.features[0]
    seen, _, band = against(it.observed, it.expected, it.band)
    name = f"{it.name} " if len(alert.features) > 1 else ""
    return f"{name}{seen} ({usually(alert.signal, it) or f'expected {band}'})"


def label_note(alert: Alert, faults: Sequence[Fault], interval_ms: int) -> str | None:
    """The labelled fault that an alert belongs to, if any."""
    for fault in faults:
        if fault.stream_id == alert.stream_id and is_excused(alert.onset_ms, [fault], interval_ms):
            return f"✓ {fault.kind.replace('_', ' ')}"
    return None


def outcome_table(summary: Summary) -> Table:
    """One line for each scene and one for all."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("recording")
    for name in ("streams", "observations", "alerts", "caught", "delay", "false alarms"):
        table.add_column(name, justify="right", no_wrap=True)
    for outcome in summary.outcomes:
        known = outcome.clean_days > 0
        delays = sorted(outcome.delays)
        table.add_row(
            outcome.name,
            f"{outcome.streams}",
            f"{outcome.observations:,}",
            f"{outcome.alerts}",
            f"{outcome.caught} of {outcome.labelled}" if known else "no labels",
            f"{delays[len(delays) // 2]}" if delays else "",
            f"{outcome.false_alarms} in {outcome.clean_days:,.0f} days" if known else "",
        )
    return table


def verdict_lines(summary: Summary) -> list[str]:
    """Speed, catch and false alarms against the budget, in words."""
    content = summary.content()
    rate, delay = summary.false_alarms_per_stream_day, summary.median_delay
    caught = (
        f"[bold]{summary.caught} of {summary.labelled}[/bold] labelled faults and attacks caught "
        f"({summary.caught / max(summary.labelled, 1):.0%})"
    )
    late = summary.content()["faults_noticed_at_their_end"]
    soon = "at once" if not delay else f"within {delay:g} observations"
    lines = [f"{caught}, half of them {soon}; {late} more were noticed only as they ended."]
    if rate is not None:
        lines.append(
            f"[bold]{rate * 7:.2f} false alarms[/bold] per stream and week while nothing was wrong; "
            f"the alarm budget is {summary.alarm_budget}."
        )
    lines.append(
        f"{content['observations']:,} observations in {summary.replay_s:.1f} s: "
        f"[bold]{content['observations_per_s']:,.0f} per second[/bold] through Kafka, scored, and back."
    )
    return lines


def next_steps(folder: Path, picture: Path | None, opener: str, command: str) -> list[str]:
    """What to type now: the picture's viewer and our own command, as they are called from here."""
    steps = [
        (f"{opener} {picture}", "the worst alert: what was expected, what came"),
        (f"cat {folder / 'summary.json'}", "all of this in numbers"),
        (f"{command} servers", "a Kafka and a Redis to feed with your own streams"),
        (f"{command} check --settings {folder / 'worker.toml'} --row plant", "what a stream costs"),
        (f"{command} --help", "everything else"),
    ]
    shown = steps if picture is not None else steps[1:]
    width = max(len(typed) for typed, _ in shown) + 2
    return ["  " + escape(typed.ljust(width)) + f"[dim]# {why}[/dim]" for typed, why in shown]
