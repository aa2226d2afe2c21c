"""One thing that was looked at, and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum


class Level(Enum):
    """How bad it is; only problems fail a check."""

    OK = "ok"
    WARNING = "warn"
    PROBLEM = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: what was looked at, and what was found or has to be changed."""

    level: Level
    subject: str
    text: str

    def line(self) -> str:
        """The finding as printed; further lines of a long text are indented under the first."""
        return f"{self.level.value:<4}  {self.subject:<10}  " + self.text.replace("\n", "\n" + " " * 18)


@dataclass(slots=True)
class Facts:
    """What the servers said, filled in as they are checked.

    Attributes
    ----------
    partitions
        By profile, of the input topic that has the fewest; without profiles whose topics are missing.
    redis_bytes
        What Redis may use: ``maxmemory``, or its machine's memory where none is set; ``None``: not asked, or not said.
    """

    partitions: dict[str, int] = field(default_factory=dict)
    redis_bytes: int | None = None


def ok(subject: str, text: str) -> Finding:
    """A finding that is as it must be."""
    return Finding(Level.OK, subject, text)


def warning(subject: str, text: str) -> Finding:
    """A finding that works, and may surprise."""
    return Finding(Level.WARNING, subject, text)


def problem(subject: str, text: str) -> Finding:
    """A finding with which a worker would not run, or not as promised."""
    return Finding(Level.PROBLEM, subject, text)


def summary(findings: Sequence[Finding], left_out: str = "") -> str:
    """One sentence about all of them; ``left_out`` names what was not looked at."""
    problems = sum(finding.level is Level.PROBLEM for finding in findings)
    warnings = sum(finding.level is Level.WARNING for finding in findings)
    also = f", {_count(warnings, 'warning')}" if warnings else ""
    without = f" ({left_out} not checked)" if left_out else ""
    if problems:
        return f"not ready{without}: {_count(problems, 'problem')}{also}."
    return f"ready{also}{without}: start with `tidewatch worker`."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
