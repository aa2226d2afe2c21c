"""How each data set is scored and judged, and which of its series make the quick run.

Plans are settings, not formulas: which kinds of evidence a production profile for such streams would have, and which
quantity ranks rows (shared recipe). Data sets without a plan get the defaults of a profile and are ranked by the score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.config import Evidence

Ranked = Literal["score", "level", "activity", "entity", "entity_smooth", "values", "residuals"]


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
    rows_at_most
        Only the first so many rows of a series.
    quick
        The series of the quick run; ``None`` takes all of them.
    """

    evidence: Evidence | None = None
    ranked: Ranked = "score"
    columns: tuple[str, ...] = ()
    budget: str = "1 per week"
    rows_at_most: int | None = None
    quick: tuple[str, ...] | None = None


PLANS = {
    "nab": Plan("single", "level"),
    "ucr": Plan("single", "activity"),
    "smap": Plan("single", "activity", ("telemetry",)),
    "msl": Plan("single", "activity", ("telemetry",)),
    "mscloud": Plan("single", "activity"),
    "netman_kpi": Plan("single", "activity", quick=()),
    "smd": Plan("jump", "entity_smooth", quick=("machine-1-5", "machine-2-1")),
    "asd": Plan("jump", "entity_smooth", quick=("omi-1", "omi-4")),
    "skab": Plan("coupled", "values"),
    "3w": Plan("jump", "entity_smooth", quick=()),
    "gecco2018": Plan("jump", "entity_smooth", quick=()),
    "kdd99": Plan("jump", "entity_smooth", rows_at_most=60_000, quick=()),
    "modbus": Plan("jump", "entity_smooth", quick=()),
    "zeek": Plan("jump", "entity_smooth", quick=("iot23_34-1_1min",)),
}


def plan_of(data_set: str) -> Plan:
    """The plan of a data set."""
    return PLANS.get(data_set, Plan())
