"""What a benchmark found: figures, their JSON, and the table people read."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from rich.table import Table

PACKAGES = ("torch", "numpy", "kafka-python", "redis", "hiredis", "msgpack")


@dataclass(slots=True)
class RowFigures:
    """Figures of one row layout, in values/s; ``None`` where it was not measured."""

    engine: float | None = None
    model: float | None = None
    path: float | None = None
    path_stages: dict[str, float] = field(default_factory=dict)

    def as_json(self, naive: float | None) -> dict[str, Any]:
        """The figures with their ratios."""
        return {
            "engine": _whole(self.engine),
            "model": _whole(self.model),
            "path": _whole(self.path),
            "engine_over_model": _ratio(self.engine, self.model),
            "path_over_model": _ratio(self.path, self.model),
            "path_over_naive": _ratio(self.path, naive),
            "path_stages": {stage: round(share, 3) for stage, share in self.path_stages.items()},
        }


@dataclass(slots=True)
class LengthFigures:
    """Everything found for windows of one length."""

    single: RowFigures = field(default_factory=RowFigures)
    jump: RowFigures = field(default_factory=RowFigures)
    light: RowFigures = field(default_factory=RowFigures)
    read: float | None = None
    naive: float | None = None
    latency_ms_p50: float | None = None
    latency_ms_p99: float | None = None
    latency_rate: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The full single row at the top, the other rows beside it."""
        return {
            **self.single.as_json(self.naive),
            "read": _whole(self.read),
            "naive": _whole(self.naive),
            "latency_ms_p50": self.latency_ms_p50,
            "latency_ms_p99": self.latency_ms_p99,
            "latency_rate": _whole(self.latency_rate),
            "jump": self.jump.as_json(self.naive),
            "light": self.light.as_json(self.naive),
        }


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the figures were taken."""

    processor: str
    cores: int
    threads: int
    load_before: float
    gpu: str | None

    def as_json(self) -> dict[str, Any]:
        """As it stands in the file."""
        return {**asdict(self), "system": platform.platform(), "python": platform.python_version()}


def versions() -> dict[str, str]:
    """Versions of the packages that decide the figures."""
    return {name: metadata.version(name) for name in PACKAGES}


def table(title: str, figures: LengthFigures) -> Table:
    """Rates in thousands of values/s, and ratios."""
    shown = Table(title=title, title_justify="left")
    for heading in ("", "single", "jump", "light"):
        shown.add_column(heading, justify="left" if not heading else "right")
    rows = [kind.as_json(figures.naive) for kind in (figures.single, figures.jump, figures.light)]
    for name in ("engine", "model", "path"):
        shown.add_row(name, *(_thousands(row[name]) for row in rows))
    shown.add_row("read", _thousands(_whole(figures.read)), "", "")
    shown.add_row("naive", _thousands(_whole(figures.naive)), "", "")
    for name in ("engine_over_model", "path_over_naive", "path_over_model"):
        shown.add_row(name.replace("_", " "), *("-" if row[name] is None else f"{row[name]:.2f}" for row in rows))
    for name in ("latency_ms_p50", "latency_ms_p99"):
        value = getattr(figures, name)
        shown.add_row(name.replace("_", " "), "-" if value is None else f"{value:.0f}", "", "")
    return shown


def _thousands(rate: int | None) -> str:
    return "-" if rate is None else f"{rate / 1000:,.0f} k/s"


def _whole(rate: float | None) -> int | None:
    return None if rate is None else round(rate)


def _ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else round(one / other, 4)
