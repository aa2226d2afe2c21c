"""``make demo-learning``: a family of streams changes its dynamics, and the shared weights follow.

The learner's own parts, on generated streams, as fast as they go: the family changes; its error rises; the learner
waits until the change has lasted, learns it, tries a candidate in shadow and promotes it. Then a spoiled version is
put in service, as if it had been promoted, and goes back by itself. No Kafka and no Redis are needed, and one core.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from pipeline.clock import SystemClock
from pipeline.errors import ConfigurationError
from pipeline.learning.course import Course
from pipeline.profile import Profile
from pipeline.records import Partition, Windows
from pipeline.registry import Decision, Registry
from pipeline.settings import LearnerSettings

STREAMS, INTERVAL_MS, START_MS = 8, 600_000, 1_767_225_600_000
BEFORE, AFTER, SPOILED = 18, 24, 7
"""Stretches of the first kind, of the second, and after a spoiled version was put in service."""
LOOKBACK = 24
"""Stretches that a learner reads again when it starts."""

SHOWN = {
    "drift": "#8a6d1d",
    "candidate": "#5b7fa6",
    "promoted": "#2a7f4f",
    "confirmed": "#2a7f4f",
    "rejected": "#888888",
    "spoiled version": "#b3261e",
    "rolled back": "#b3261e",
}
"""Events in the picture, with their colours."""
RULES = LearnerSettings(
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
    """What happened, by event time in days: the serving version's loss, the decisions, and one of the streams."""

    days: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)
    stream: list[float] = field(default_factory=list)

    def mean_loss(self, begin: float, end: float) -> float:
        """Mean of the losses after ``begin`` up to and with ``end``, nats per target."""
        found = [loss for day, loss in zip(self.days, self.losses, strict=True) if begin + 1e-9 < day <= end + 1e-9]
        return float(np.nanmean(found)) if found else float("nan")

    def around(self, event: str) -> tuple[float, float]:
        """Loss on the last stretches before the last event of this kind, and on the next ones; NaN without one."""
        at = next((day for day, name in reversed(self.events) if name == event), None)
        days = RULES.stretch * INTERVAL_MS / 86_400_000
        return (math.nan, math.nan) if at is None else (self.mean_loss(at - days, at), self.mean_loss(at, at + days))


class Family:
    """Eight noisy streams of one kind, which becomes another one."""

    def __init__(self) -> None:
        self.at = self.offset = 0
        self.recent: deque[Windows] = deque(maxlen=LOOKBACK)

    @property
    def day(self) -> float:
        """Event time."""
        return self.at * INTERVAL_MS / 86_400_000

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
        self.recent.append(made)
        return made


def main() -> int:
    """Run it; the picture goes to ``runs/demo-learning/learning.png``."""
    torch.set_num_threads(1)  # of small matrices several threads make slower work, much slower beside other work
    console, began = Console(highlight=False, soft_wrap=True), time.monotonic()
    folder = Path("runs/demo-learning")
    folder.mkdir(parents=True, exist_ok=True)
    profile = Profile(topics=("demo",), features=("value",), interval_s=INTERVAL_MS / 1000, clock=False, light=True)
    story = Story()
    with tempfile.TemporaryDirectory(prefix="tidewatch-demo-") as scratch:
        registry = Registry(Path(scratch))
        registry.ensure("demo", "gru32", profile.fold())
        course, family = _course(profile, registry), Family()
        console.print(f"{STREAMS} streams of one family; pretrained weights serve, and the learner follows.")
        _live(console, course, registry, family, story, BEFORE, is_new=False)
        console.print("[bold]Now the family changes its dynamics.[/bold] (Not a fault: it lasts.)")
        changed = family.day
        _live(console, course, registry, family, story, AFTER, is_new=True)
        before, after = story.around("promoted")
        console.print("[bold]Now a spoiled version is put in service.[/bold] (The learner finds it so when it starts.)")
        course = _spoil(profile, registry, family, story)
        _live(console, course, registry, family, story, SPOILED, is_new=True)
    spoiled, back = story.around("rolled back")
    picture = folder / "learning.png"
    draw(story, changed, picture)
    console.print(
        f"error of the serving version on the new dynamics, nats per target: {before:+.2f} before the promotion, "
        f"{after:+.2f} after it; {spoiled:+.2f} with the spoiled version, {back:+.2f} after the rollback"
    )
    console.print(f"picture: {picture}   ({time.monotonic() - began:.0f} s)")
    return 0 if after < before and back < spoiled else 1


def _course(profile: Profile, registry: Registry) -> Course:
    return Course("demo", profile, registry, RULES, SystemClock().wall_ms)


def _live(
    console: Console, course: Course, registry: Registry, family: Family, story: Story, stretches: int, is_new: bool
) -> None:
    told = len(registry.history("demo"))
    for number in range(stretches):
        windows = family.windows(is_new)
        course.absorb(HERE, windows)
        while course.wants_to_study():
            course.study()
        course.decide()
        status = course.status()
        story.days.append(family.day)
        latest = list(course.teaching.latest)[-STREAMS:]
        story.losses.append(float(np.mean(latest)) if latest else math.nan)
        story.stream += windows.values[: RULES.stretch, 0].tolist()
        for decision in registry.history("demo")[told:]:
            told += 1
            story.events.append((family.day, decision.event))
            figures = "  ".join(f"{key}={value:g}" for key, value in list(decision.figures.items())[:5])
            console.print(f"  day {family.day:5.1f}  {decision.event:<11} {decision.version}  {figures}")
        if number % 8 == 7:
            console.print(
                f"  day {family.day:5.1f}  error now {story.losses[-1]:+.2f}  closed streams {status.closed}  "
                f"updates {status.updates}  {status.phase.value}",
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
    story.events.append((family.day, "spoiled version"))
    course = _course(profile, registry)
    for windows in list(family.recent):
        course.absorb(HERE, windows, is_fresh=False)
    return course


def draw(story: Story, changed: float, path: Path) -> None:
    """One of the streams, and the error over event time with what was decided.

    Parameters
    ----------
    changed
        Day on which the family changed.

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
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(2, 1, sharex=True, height_ratios=(1, 3))
    above, below = axes
    days = INTERVAL_MS / 86_400_000 * np.arange(len(story.stream))
    above.plot(days, story.stream, color="#7d8ca3", linewidth=0.6)
    above.set_ylabel("one of the\nstreams")
    below.plot(story.days, story.losses, color="#1d3557", linewidth=1.6, marker="o", markersize=3)
    events = [(changed, "family changes"), *((day, name) for day, name in story.events if name in SHOWN)]
    low, high = below.get_ylim()
    below.set_ylim(low, high + 0.25 * (high - low))  # room for the names
    for number, (day, name) in enumerate(sorted(events)):
        colour = SHOWN.get(name, "#555555")
        for axis in axes:
            axis.axvline(day, color=colour, linewidth=1, alpha=0.7, linestyle="-" if name in SHOWN else (0, (2, 2)))
        place = below.get_xaxis_transform()
        below.text(
            day, 0.97 - 0.05 * (number % 4), f" {name} ", transform=place, color=colour, fontsize=9, va="top",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85},
        )  # fmt: skip
    for event, text in (
        ("promoted", "promotion:\n{:+.2f} to {:+.2f}"),
        ("rolled back", "rollback:\n{:+.2f} to {:+.2f}"),
    ):
        before, after = story.around(event)
        if math.isfinite(before) and math.isfinite(after):
            at = max(day for day, name in story.events if name == event)
            below.annotate(
                text.format(before, after), (at, (before + after) / 2), xytext=(8, 0), textcoords="offset points",
                fontsize=10, fontweight="bold", color=SHOWN[event], va="center",
            )  # fmt: skip
    below.set_ylabel("error of the serving version\n(nats per target; lower is better)")
    below.set_xlabel("event time, days")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
