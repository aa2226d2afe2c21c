"""``make demo-learning``: a family of streams changes its dynamics, and the shared weights follow.

The learner's own parts, on generated streams, as fast as they go: the family changes; its error rises; the learner
waits until the change has lasted, learns it, tries a candidate in shadow and promotes it. Then a spoiled version is
put in service by hand, as if it had been promoted, and goes back by itself. No Kafka and no Redis are needed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from pipeline.clock import SystemClock
from pipeline.errors import ConfigurationError
from pipeline.learning.course import Course
from pipeline.records import Partition, Windows
from pipeline.registry import Decision, Registry
from pipeline.settings import Learner as Rules
from pipeline.settings import Profile

STREAMS, INTERVAL_MS, START_MS = 8, 600_000, 1_767_225_600_000
BEFORE, AFTER, SPOILED = 18, 24, 7
"""Stretches of the first kind, of the second, and after a spoiled version was put in service."""

SHOWN = {
    "drift": "#8a6d1d",
    "candidate": "#5b7fa6",
    "promoted": "#2a7f4f",
    "confirmed": "#2a7f4f",
    "rejected": "#888888",
    "spoiled": "#b3261e",
    "rolled back": "#b3261e",
}
RULES = Rules(
    stretch=48,
    reservoir=256,
    batch=8,
    rate=2e-3,
    candidate_updates=56,
    shadow_stretches=24,
    probation_stretches=32,
    tail_series=16,
    tail_observations=500,
)
HERE = Partition("demo", 0)


@dataclass(slots=True)
class Story:
    """What happened: the serving version's loss by event time, and the decisions."""

    times_ms: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    events: list[tuple[int, str]] = field(default_factory=list)


class Family:
    """Eight noisy streams of one kind, which becomes another one."""

    def __init__(self) -> None:
        self.at = self.offset = 0

    def windows(self, is_new: bool) -> Windows:
        """The next stretch of every stream, one window each."""
        t = np.arange(self.at, self.at + RULES.stretch)
        phase = np.arange(STREAMS)[:, None]
        noise = np.random.default_rng(self.at).standard_normal((STREAMS, RULES.stretch))
        values: npt.NDArray[Any]
        if is_new:
            values = 1.5 * np.sign(np.sin(2 * np.pi * t / 14 + phase)) + 0.1 * noise
        else:
            values = np.sin(2 * np.pi * t / 24 + phase) + 0.1 * noise
        times = START_MS + INTERVAL_MS * t
        made = Windows(
            [f"unit-{number}" for number in range(STREAMS)],
            np.arange(self.offset, self.offset + STREAMS),
            np.full(STREAMS, times[-1]),
            np.full(STREAMS, RULES.stretch),
            np.zeros(STREAMS, bool),
            np.zeros(STREAMS, np.uint8),
            np.tile(times, STREAMS),
            np.ascontiguousarray(values.reshape(-1, 1), np.float32),
        )
        self.at += RULES.stretch
        self.offset += STREAMS
        return made


def main() -> int:
    """Run it; the picture goes to ``runs/demo-learning/learning.png``."""
    console, began = Console(highlight=False), time.monotonic()
    folder = Path("runs/demo-learning")
    folder.mkdir(parents=True, exist_ok=True)
    profile = Profile(topics=("demo",), features=("value",), interval_s=INTERVAL_MS / 1000, clock=False, light=True)
    story = Story()
    with tempfile.TemporaryDirectory(prefix="tidewatch-demo-") as scratch:
        registry = Registry(Path(scratch))
        registry.ensure("demo", "gru32", profile.fold())
        course, family = _course(profile, registry), Family()
        console.print(f"{STREAMS} streams of one family; pretrained weights serve.")
        _live(console, course, registry, family, story, BEFORE, is_new=False)
        console.print("[bold]Now the family changes its dynamics.[/bold] (Not a fault: it lasts.)")
        _live(console, course, registry, family, story, AFTER, is_new=True)
        console.print("[bold]Now a spoiled version is put in service.[/bold]")
        course = _spoil(profile, registry, family, story)
        _live(console, course, registry, family, story, SPOILED, is_new=True)
    picture = folder / "learning.png"
    draw(story, START_MS + BEFORE * RULES.stretch * INTERVAL_MS, picture)
    console.print(f"picture: {picture}   ({time.monotonic() - began:.0f} s)")
    return 0 if {"promoted", "rolled back"} <= {name for _, name in story.events} else 1


def _course(profile: Profile, registry: Registry) -> Course:
    return Course("demo", profile, registry, RULES, SystemClock().wall_ms)


def _live(
    console: Console, course: Course, registry: Registry, family: Family, story: Story, stretches: int, is_new: bool
) -> None:
    told = len(registry.history("demo"))
    for number in range(stretches):
        course.absorb(HERE, family.windows(is_new))
        while course.wants_to_study():
            course.study()
        course.decide()
        now_ms, status = START_MS + family.at * INTERVAL_MS, course.status()
        story.times_ms.append(now_ms)
        story.losses.append(float(np.mean(course.latest(STREAMS))) if course.latest(STREAMS) else float("nan"))
        for decision in registry.history("demo")[told:]:
            told += 1
            story.events.append((now_ms, decision.event))
            figures = "  ".join(f"{key}={value:g}" for key, value in list(decision.figures.items())[:5])
            console.print(f"  {_day(now_ms)}  {decision.event:<11} {decision.version}  {figures}")
        if number % 8 == 7:
            console.print(
                f"  {_day(now_ms)}  error now {story.losses[-1]:+.2f}  closed streams {status.closed}  "
                f"updates {status.updates}  {status.phase}",
                style="dim",
            )


def _spoil(profile: Profile, registry: Registry, family: Family, story: Story) -> Course:
    """Serve a version with swollen weights as if a learner had promoted it; a learner that starts finds it so."""
    parent = registry.current("demo")
    assert parent is not None
    weights, fold = registry.load("demo", parent)
    spoiled = replace(weights, network={name: 1.6 * tensor for name, tensor in weights.network.items()})
    version = registry.publish("demo", spoiled, fold)
    registry.note("demo", Decision(SystemClock().wall_ms(), "promoted", version, "learner", parent, "by the demo"))
    registry.serve("demo", version)
    story.events.append((START_MS + family.at * INTERVAL_MS, "spoiled"))
    return _course(profile, registry)


def draw(story: Story, changed_ms: int, path: Path) -> None:
    """The error over event time, with what was decided.

    Raises
    ------
    ConfigurationError
        matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise ConfigurationError("pictures need matplotlib: pip install 'tidewatch[plots]'") from exc
    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axis: Any = figure.add_subplot()
    axis.plot([_date(ms) for ms in story.times_ms], story.losses, color="#1d3557", linewidth=1.4)
    axis.axvline(_date(changed_ms), color="#555555", linestyle=(0, (2, 2)), linewidth=1)
    axis.text(_date(changed_ms), 1.01, "family changes", transform=axis.get_xaxis_transform(), fontsize=9, ha="center")
    for number, (ms, name) in enumerate(each for each in story.events if each[1] in SHOWN):
        axis.axvline(_date(ms), color=SHOWN[name], linewidth=1, alpha=0.7)
        height = 0.97 - 0.05 * (number % 5)
        axis.text(
            _date(ms), height, f" {name}", transform=axis.get_xaxis_transform(), color=SHOWN[name], fontsize=9, va="top"
        )
    axis.set_ylabel("error of the serving version\n(nats per target; lower is better)")
    axis.set_xlabel("event time")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    figure.savefig(path, dpi=130)


def _date(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _day(ms: int) -> str:
    return f"day {(ms - START_MS) / 86_400_000:5.1f}"


if __name__ == "__main__":
    sys.exit(main())
