"""How each data set is scored and judged, and which part of it makes the quick run.

Plans are settings, not formulas: which kinds of evidence a production profile for such streams would have, and which
quantity ranks rows. Data sets without a plan get the defaults of a profile and are ranked by the score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.config import Evidence

Ranked = Literal["score", "level", "activity", "entity", "entity_smooth", "values", "residuals"]


@dataclass(frozen=True, slots=True)
class Quick:
    """The part of a data set that the quick run takes.

    Attributes
    ----------
    series
        Their names; ``None`` takes all that have at most ``rows_at_most`` rows.
    first_row, rows_at_most
        Where series begin, and where they end.
    """

    series: tuple[str, ...] | None = None
    first_row: int = 0
    rows_at_most: int = 10**9


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
    is_prefix_clean
        Whether nothing happens before the training prefix ends, so that alarms there are false.
    rows_at_most
        Only the first so many rows of a series.
    quick
        The quick run's part.
    """

    evidence: Evidence | None = None
    ranked: Ranked = "score"
    columns: tuple[str, ...] = ()
    budget: str = "1 per week"
    is_prefix_clean: bool = False
    rows_at_most: int | None = None
    quick: Quick | None = None


_TELEMETRY = ("telemetry",)

PLANS = {
    "nab": Plan("single", "level", quick=Quick(rows_at_most=5_000)),
    "ucr": Plan("single", "activity", quick=Quick(rows_at_most=12_000)),
    "smap": Plan("single", "activity", _TELEMETRY, is_prefix_clean=True, quick=Quick()),
    "msl": Plan("single", "activity", _TELEMETRY, is_prefix_clean=True, quick=Quick()),
    "mscloud": Plan("single", "activity", quick=Quick(rows_at_most=2_000)),
    "netman_kpi": Plan("single", "activity"),
    "smd": Plan(
        "jump",
        "entity_smooth",
        is_prefix_clean=True,
        quick=Quick(("machine-1-3", "machine-1-6", "machine-2-1", "machine-2-4"), 20_000, 14_000),
    ),
    "asd": Plan("jump", "entity_smooth", is_prefix_clean=True),
    "skab": Plan("coupled", "values", quick=Quick(rows_at_most=2_000)),
    "3w": Plan("jump", "entity_smooth"),
    "gecco2018": Plan("jump", "entity_smooth"),
    "kdd99": Plan("jump", "entity_smooth", rows_at_most=60_000),
    "modbus": Plan("jump", "entity_smooth"),
    "zeek": Plan("jump", "entity_smooth"),
}


def plan_of(data_set: str) -> Plan:
    """The plan of a data set."""
    return PLANS.get(data_set, Plan(quick=Quick()))
