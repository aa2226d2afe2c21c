"""What the streams of some topics are, and how they are scored."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, PositiveFloat, field_validator, model_validator

from models.config import Evidence, FoldConfig, Scope
from pipeline.section import Names, Section, TopicNames, table_of

BUILTIN_PREDICTORS = ("gru", "lstm", "gru32")

# Seconds in the units an alarm budget may name; a month is 30 days and a year 365.
_UNIT_S = {"hour": 3600, "day": 86400, "week": 7 * 86400, "month": 30 * 86400, "year": 365 * 86400}
_BUDGET = re.compile(r"(?P<alarms>\d+(?:\.\d+)?)\s+per\s+(?:(?P<units>\d+(?:\.\d+)?)\s+)?(?P<unit>[a-z]+?)s?")


def alarm_every_s(budget: str) -> float:
    """Seconds of event time per stream in which ``budget`` allows one false alarm.

    Parameters
    ----------
    budget
        ``"1 per week"``, ``"2 per month"``, ``"0.5 per day"``, ``"1 per 3 days"``.

    Raises
    ------
    ValueError
        The text is not of that form, or allows no alarm at all.
    """
    match = _BUDGET.fullmatch(budget.strip().lower())
    if match is None or match["unit"] not in _UNIT_S:
        raise ValueError(f'write it as "1 per week" (hour, day, week, month, year), not {budget!r}')
    alarms, units = float(match["alarms"]), float(match["units"] or 1)
    if alarms <= 0 or units <= 0:
        raise ValueError(f"{budget!r} allows no alarm at all; name a positive number")
    return units * _UNIT_S[match["unit"]] / alarms


class Profile(Section):
    """What the streams of some topics are, and how they are scored.

    Attributes
    ----------
    topics
        Input topics bound to this profile; a topic belongs to one profile.
    features
        Names of the F columns of a window, in order.
    interval_s
        Expected seconds between observations; absent where there is no fixed interval. A gap is more than 1.5 of them;
        without one, more than 1.5 times the longest pause of late, and times of day and week are not remembered.
    clock
        Whether event times are clock times (UTC), so that times of day and week mean something.
    predictor
        ``gru``, ``lstm`` or ``gru32`` (shipped in the package), or the path of a version folder.
    scope
        ``feature``: one predictor sees each feature of a stream by itself; ``stream``: it sees all of them at once, as
        ``tidewatch train`` then makes it. When absent, as the predictor was trained.
    light
        The narrow row: no fast weights, no seasonal memory; with ``predictor = "gru"`` the shipped GRU of 32.
    evidence
        ``single``: features by themselves; ``jump``: many at once, as on servers; ``coupled``: jump, and the distance
        of up to 16 that go together, as the sensors of a machine do. When absent ``single`` for one feature, ``jump``
        for several.
    alarm_budget
        False alarms allowed per stream, as text: ``"1 per week"``.
    idle_reset_s
        A longer gap than this starts a stream afresh.
    record_weight_p
        Only with evidence ``single``. Two things count there: values that go further than any before them, and values
        that surprise the predictor more than any before them (P, over about five observations). This is the weight of
        the second, from 0 to 1; 0 leaves the first alone, for very few false alarms, and misses what is strange only
        in its order.
    groups
        Glob pattern of stream ids -> group name; the first match counts.
    """

    topics: TopicNames
    features: Names
    interval_s: Annotated[float, Field(ge=0.001)] | None = None
    clock: bool = True
    predictor: Annotated[str, Field(min_length=1)] = "gru"
    scope: Scope | None = None
    light: bool = False
    evidence: Evidence | None = None
    alarm_budget: str = "1 per week"
    idle_reset_s: PositiveFloat = 604_800.0
    record_weight_p: Annotated[float, Field(ge=0, le=1)] = 0.4
    groups: Annotated[dict[str, str], BeforeValidator(table_of)] = Field(default_factory=dict)

    @field_validator("alarm_budget")
    @classmethod
    def _readable(cls, budget: str) -> str:
        alarm_every_s(budget)
        return budget

    @field_validator("features", "topics")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"named twice: {', '.join(twice)}")
        if "" in names:
            raise ValueError("a name is empty")
        return names

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.evidence == "coupled" and not 2 <= len(self.features) <= 16:
            raise ValueError(f'evidence "coupled" is for 2 to 16 features, not {len(self.features)}')
        if self.light and self.evidence == "coupled":
            raise ValueError('a light row has no "coupled" evidence; choose single or jump')
        if self.light and self.predictor == "lstm":
            raise ValueError('no light LSTM ships; use predictor = "gru" or a version folder')
        if self.interval_s is not None and self.idle_reset_s <= 10 * self.interval_s:
            raise ValueError("idle_reset_s must be more than ten intervals, or a short gap erases the stream")
        return self

    def builtin(self) -> str | None:
        """Name of the shipped weights, or ``None`` where ``predictor`` is the path of a version folder."""
        if self.light and self.predictor == "gru":
            return "gru32"
        return self.predictor if self.predictor in BUILTIN_PREDICTORS else None

    def fold(self) -> FoldConfig:
        """The settings of this profile that enter the fold."""
        default: Evidence = "single" if len(self.features) == 1 else "jump"
        return FoldConfig(
            features=self.features,
            interval_s=self.interval_s,
            evidence=default if self.evidence is None else self.evidence,
            alarm_every_s=alarm_every_s(self.alarm_budget),
            idle_reset_s=self.idle_reset_s,
            clock=self.clock,
            light=self.light,
            record_weight_p=self.record_weight_p,
        )

    def group_of(self, stream_id: str) -> str | None:
        """The group whose pattern matches first, or ``None``."""
        for pattern, group in self.groups.items():
            if fnmatchcase(stream_id, pattern):
                return group
        return None
