"""How each data set is scored and judged, and which part of it a run takes.

Plans are settings, not formulas: which kinds of evidence a production profile for such streams would have, and which
quantity ranks rows. Data sets without a plan get the defaults of a profile and are ranked by the score.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from models.config import Evidence

Ranked = Literal["score", "level", "behaviour_nats", "entity", "entity_unrest", "values", "residuals", "means"]
Clean = Literal["prefix", "unlabelled", "nothing"]

BEFORE_FIRST_EVENT = 4_000


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a data set that a run takes.

    Attributes
    ----------
    longest
        Series with more rows are left out.
    rows
        At most so many rows of a series.
    begin
        Where they begin: at the beginning of the series, 4000 rows before its first event after the training prefix, or
        so that its middle event lies in the middle.
    """

    longest: int | None = None
    rows: int | None = None
    begin: Literal["start", "first event", "events"] = "start"


@dataclass(frozen=True, slots=True)
class Plan:
    """How one data set is evaluated.

    Attributes
    ----------
    evidence
        As in a profile; ``None`` takes the default for the number of features.
    ranked
        The quantity that ranks rows.
    columns
        The features that are scored; empty takes all.
    budget
        Alarm budget, as in a profile.
    clean
        Where alarms are false for sure, so that they measure the budget: in training prefixes, in series without a
        labelled row, or nowhere.
    is_each_apart
        Whether its series have too little in common for a mean: each is a data set of its own in tables.
    part, quick
        What the full and the quick run take; the quick one may leave the data set out.
    """

    evidence: Evidence | None = None
    ranked: Ranked = "score"
    columns: tuple[str, ...] = ()
    budget: str = "1 per week"
    clean: Clean = "nothing"
    is_each_apart: bool = False
    part: Part = Part()
    quick: Part | None = None


_TELEMETRY = ("telemetry",)

PLANTS = "plants"
"""Generated plants, part of every run: nothing happens in them, so they measure the alarm budget."""

PLANS = {
    PLANTS: Plan("single", "level", clean="prefix", part=Part(rows=17_280), quick=Part(rows=4_032)),
    "nab": Plan("single", "level", quick=Part(longest=5_000)),
    "ucr": Plan("single", "behaviour_nats", quick=Part(longest=12_000)),
    "smap": Plan("single", "behaviour_nats", _TELEMETRY, clean="prefix", quick=Part()),
    "msl": Plan("single", "behaviour_nats", _TELEMETRY, clean="prefix", quick=Part()),
    "mscloud": Plan("single", "behaviour_nats", quick=Part(longest=2_000)),
    "netman_kpi": Plan("single", "behaviour_nats"),
    "smd": Plan("jump", "entity_unrest", clean="prefix", quick=Part(rows=6_000, begin="first event")),
    "asd": Plan("jump", "entity_unrest", clean="prefix"),
    "skab": Plan("coupled", "means", quick=Part(longest=2_000)),
    "3w": Plan("coupled", "means", clean="unlabelled", part=Part(rows=25_000)),
    "gecco2018": Plan("jump", "entity_unrest"),
    "kdd99": Plan("jump", "entity_unrest", is_each_apart=True, part=Part(rows=25_000, begin="events")),
    # Three numbers a connection, whose combination tells more than their course.
    **dict.fromkeys(
        ("kdd99/http*", "kdd99/smtp*"),
        Plan("coupled", "values", is_each_apart=True, part=Part(rows=25_000, begin="events")),
    ),
    "modbus": Plan("jump", is_each_apart=True, quick=Part(longest=2_000)),
    "zeek": Plan("jump", is_each_apart=True, quick=Part(longest=2_000)),
    "zeek/*_flows": Plan("coupled", is_each_apart=True),
    "ctu13": Plan("jump", is_each_apart=True, part=Part(rows=25_000, begin="events")),
}
_UNKNOWN = Plan(clean="prefix", quick=Part(rows=5_000, begin="events"))


def plan_of(name: str) -> Plan:
    """The plan of ``data set/series``: that of a pattern of series, else of the data set."""
    alike = [plan for key, plan in PLANS.items() if "/" in key and fnmatchcase(name, key)]
    return alike[0] if alike else PLANS.get(name.partition("/")[0], _UNKNOWN)
