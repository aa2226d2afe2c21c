"""``tidewatch demo``: show the main job on this machine, with a real Kafka and a real Redis, in under a minute.

It starts both in a temporary folder, replays a real recording, a generated plant and a generated network with labelled
faults through Kafka, lets a worker score them, and shows each alert as it opens. Ctrl-C ends it and all it started.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TaskID

from models.synthetic import Fault
from pipeline.demo.judgement import Summary, judge
from pipeline.demo.processes import Processes, processes
from pipeline.demo.scenes import ALARM_BUDGET, Scene, Size, scenes
from pipeline.demo.screen import alert_line, label_note, next_steps, outcome_table, progress_bar, verdict_lines
from pipeline.demo.traffic import Outputs, Replay, create_topics
from pipeline.errors import ConfigurationError
from pipeline.explanation import collect
from pipeline.offline import Offline
from pipeline.output_files import make_writable
from pipeline.plots import Span, draw_episode, utc
from pipeline.profile import alarm_every_s
from pipeline.records import Alert
from pipeline.topics.kafka import Cluster

PATIENCE_S, CHECK_S = 120.0, 5.0
"""Without a new score for this long the demo gives up, or first asks why."""

BEFORE, AFTER = 120, 60
"""Observations shown before and after the worst alert's episode."""


@dataclass(slots=True)
class Found:
    """What the demo has seen of the alerts: each at its opening, and the highest score it reached since."""

    opened: dict[str, Alert] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    ended_ms: dict[str, int] = field(default_factory=dict)

    def add(self, alert: Alert) -> bool:
        """Note an event; whether it opened an alert."""
        name = alert.alert_id
        self.peaks[name] = max(self.peaks.get(name, 0.0), alert.peak_score)
        self.ended_ms[name] = alert.time_ms
        if alert.event == "opened":
            self.opened[name] = alert
        return alert.event == "opened"

    def worst(self) -> Alert | None:
        """The alert whose score rose highest above its threshold."""
        return max(self.opened.values(), key=lambda alert: self.peaks[alert.alert_id] - alert.threshold, default=None)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder for summary and picture (default: runs/demo)"
    )
    parser.add_argument("--quick", action="store_true", help="use an eighth of the streams")


def run(args: argparse.Namespace) -> int:
    """Start everything, replay, show alerts, end everything; returns the exit code.

    Raises
    ------
    ConfigurationError
        Nothing can be written to ``--out``, or a process could not start or ended by itself; the message holds the end
        of its log.
    """
    make_writable(args.out)
    began_s = time.monotonic()
    console = Console(highlight=False)
    torch.set_num_threads(1)  # the picture's part of the work is small, and the worker wants the cores
    try:
        with processes(lambda text: console.print(text, style="dim")) as running:
            found, recorded, replay_s = _replay(running, _size(args), console)
            if running.worker is not None:
                shutil.copyfile(running.worker.settings_file, args.out / "worker.toml")
            console.print("worker, Kafka and Redis are stopped", style="dim")
            running.stop()
    except KeyboardInterrupt:
        console.print("stopped; nothing is left running")
        raise
    picture = _draw_worst(found, recorded, args.out / "worst_alert.png", console)
    outcomes = tuple(judge(scene, _of(scene, found.opened)) for scene in recorded)
    budget_s = alarm_every_s(ALARM_BUDGET)
    summary = Summary(outcomes, ALARM_BUDGET, budget_s, replay_s, time.monotonic() - began_s)
    _write(args.out / "summary.json", summary)
    _show(console, summary, args.out, picture)
    return 0


def _size(args: argparse.Namespace) -> Size:
    if not args.quick:
        return Size()
    return Size(sensors=24, faults=12, hosts=3, attacks=2)


# -- the replay --------------------------------------------------------------------------------------------------------


def _replay(running: Processes, size: Size, console: Console) -> tuple[Found, Sequence[Scene], float]:
    """Bring everything up, replay, and watch until all is scored; the last number is how long that took, in seconds."""
    running.start_servers()
    recorded = scenes(size)
    cluster = Cluster(running.kafka.address)
    create_topics(cluster, recorded)
    ready = running.begin_worker({scene.name: scene.profile for scene in recorded})
    streams, observations = sum(len(s.streams) for s in recorded), sum(scene.observations for scene in recorded)
    console.print(f"{running.kafka.name} on {running.kafka.address}, redis on {running.redis.address}", style="dim")
    console.print(f"replaying {observations:,} observations of {streams} streams; a worker scores them\n", style="dim")
    console.print("time (UTC)   stream                  score and observed value, label in green", style="dim")
    found = Found()
    with Replay(cluster, recorded).running() as replay, Outputs(cluster) as outputs, progress_bar(console) as progress:
        task = progress.add_task("starting the worker", total=observations, rate="")
        while not ready.done():
            replay.check()
            running.check()
            outputs.look()
        ready.result()
        replay_s = _watch(running, replay, outputs, found, _Screen(console, progress, task, recorded))
    return found, recorded, replay_s


@dataclass(slots=True)
class _Screen:
    """Where alerts and progress are shown, with what is known about the streams."""

    console: Console
    progress: Progress
    task: TaskID
    scenes: Sequence[Scene]

    def show(self, alert: Alert) -> None:
        """Print one alert, with the label it belongs to."""
        scene = next(scene for scene in self.scenes if scene.name == alert.profile)
        interval_ms = round((scene.profile.interval_s or 0.0) * 1000)
        self.console.print(alert_line(alert, label_note(alert, scene.faults or (), interval_ms)), soft_wrap=True)

    def move(self, scored: int, elapsed_s: float) -> None:
        """Move the bar."""
        rate = f"{scored / max(elapsed_s, 1e-3):,.0f}/s" if scored else ""
        self.progress.update(self.task, completed=scored, rate=rate, description="scoring")


def _watch(running: Processes, replay: Replay, outputs: Outputs, found: Found, screen: _Screen) -> float:
    """Show what comes until everything is scored."""
    began_s = progressed_s = checked_s = time.monotonic()
    total, scored = sum(scene.observations for scene in screen.scenes), 0
    while scored < total:
        seen, now = outputs.look(), time.monotonic()
        for alert in seen.alerts:
            if found.add(alert):
                screen.show(alert)
        if seen.scored > scored:
            scored, progressed_s = seen.scored, now
        screen.move(scored, now - began_s)
        replay.check()
        running.check()
        if now - max(progressed_s, checked_s) > CHECK_S:
            outputs.check()
            checked_s = now
        if now - progressed_s > PATIENCE_S:
            raise ConfigurationError(
                f"no new score for {PATIENCE_S:g} s, {scored:,} of {total:,}\n"
                + (running.worker.end_of_log() if running.worker is not None else "")
            )
    for alert in outputs.look().alerts:
        if found.add(alert):
            screen.show(alert)
    return time.monotonic() - began_s


# -- what is left behind -----------------------------------------------------------------------------------------------


def _of(scene: Scene, opened: Mapping[str, Alert]) -> list[Alert]:
    return [alert for alert in opened.values() if alert.profile == scene.name]


def _draw_worst(found: Found, recorded: Sequence[Scene], path: Path, console: Console) -> Path | None:
    """The worst alert's episode, scored once more by the same engine with everything behind each score kept."""
    alert = found.worst()
    if alert is None:
        return None
    scene = next(scene for scene in recorded if scene.name == alert.profile)
    stream = next(stream for stream in scene.streams if stream.name == alert.stream_id)
    offline = Offline(scene.name, scene.profile, detail=True)
    begin, end = np.searchsorted(stream.times_ms, [alert.onset_ms, found.ended_ms[alert.alert_id]])
    until = slice(0, int(end) + AFTER)
    past = replace(stream, times_ms=stream.times_ms[until], values=stream.values[until])
    whole = collect(offline.score_streams([past]), stream.name, scene.profile.features)
    shown = whole.part(int(begin) - BEFORE, len(whole))
    faults = [fault for fault in scene.faults or () if fault.stream_id == stream.name]
    title = f"{stream.name}: alert opened {utc(alert.onset_ms)}, score up to {found.peaks[alert.alert_id]:.1f}"
    try:
        draw_episode(shown, shown.nearest(alert.onset_ms), path, title, [_span(fault) for fault in faults])
    except ConfigurationError as error:
        console.print(f"no picture: {error}", style="yellow")
        return None
    return path


def _span(fault: Fault) -> Span:
    return Span(fault.start_ms, fault.end_ms, f"label: {fault.kind.replace('_', ' ')}")


def _write(path: Path, summary: Summary) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(summary.content(), indent=2) + "\n")
    os.replace(draft, path)


def _show(console: Console, summary: Summary, folder: Path, picture: Path | None) -> None:
    console.print()
    console.print(outcome_table(summary))
    console.print()
    for line in verdict_lines(summary):
        console.print(line, soft_wrap=True)
    console.print(f"\nAll of it took {summary.seconds:.0f} s. What to type next:\n")
    opener = "open" if sys.platform == "darwin" else "xdg-open"
    for step in next_steps(folder, picture, opener, _own_command()):
        console.print(step, soft_wrap=True)


def _own_command() -> str:
    """How to call us again from here: by name where that is found, else by its place, as after ``make demo``."""
    if shutil.which("tidewatch") is not None:
        return "tidewatch"
    beside = Path(sys.executable).with_name("tidewatch")
    if not beside.exists():
        return "python -m pipeline"
    here = Path.cwd()
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)
