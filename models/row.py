"""The row layout: every number a stream carries between windows, by name, with its width and meaning.

A stream has F feature rows and one entity row. Numbers that are read and written with every observation come first
(scalars, then rings and mixture), wide slices that move only when due come last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.config import FoldConfig, PredictorConfig
from models.families import hidden_width, state_width
from models.features import BINS, INPUTS, WEEK_BINS

Where = Literal["feature", "entity"]

MIXTURE_WIDTH = 9
QUIET_RING = 10
KEY_EXTRAS = 4
# No value reaches this (features.VALUE_LIMIT), so an empty range is one that any value extends.
EMPTY_LOW, EMPTY_HIGH = 1e30, -1e30
# The pooled start of a beta counts as ten exceedances.
FIRST_EXCEEDANCES = 10.0
MAX_COUPLED_FEATURES = 16


@dataclass(frozen=True, slots=True)
class Slice:
    """A named run of numbers of a feature row or of the entity row.

    ``of_network`` marks what is made by the network and is meaningless under another one (reset on a swap).
    """

    where: Where
    name: str
    offset: int
    width: int
    meaning: str
    fresh: float = 0.0
    of_network: bool = False

    @property
    def end(self) -> int:
        """Offset of the number after the last."""
        return self.offset + self.width


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    meaning: str
    width: int = 1
    fresh: float = 0.0
    of_network: bool = False


NORMALISER = (
    _Field("count", "n: valid observations (reduced by gaps)"),
    _Field("mean", "m: running mean, W = 500"),
    _Field("variance", "v: running variance, W = 500"),
    _Field("fast_mean", "running mean, W = 10"),
    _Field("fast_variance", "running variance, W = 10"),
    _Field("change", "mean |dx|, W = 500"),
    _Field("last", "last valid value"),
)
LEVELS = (
    _Field("level_20", "ew(x, 20)"),
    _Field("level_300", "ew(x, 300)"),
    _Field("low", "least x so far", fresh=EMPTY_LOW),
    _Field("high", "greatest x so far", fresh=EMPTY_HIGH),
    _Field("low_20", "least ew(x, 20) so far", fresh=EMPTY_LOW),
    _Field("high_20", "greatest ew(x, 20) so far", fresh=EMPTY_HIGH),
    _Field("above_300", "greatest x - ew(x, 300) so far"),
    _Field("below_300", "greatest ew(x, 300) - x so far"),
    _Field("surprise", "P = ew(surprise, 5)"),
    _Field("surprise_record", "decaying maximum of P"),
    _Field("gate_scale", "ew(|x - forecast_8|, 500)"),
)
SEASON_LEVELS = (
    _Field("level_1500", "ew(x, 1500)"),
    _Field("variance_1500", "ew((x - ew(x, 1500))^2, 1500)"),
    _Field("residual_variance", "ew(sr^2, 1500), sr the seasonal residual"),
    _Field("residual_5", "ew(sr, 5)"),
    _Field("above_season", "greatest sr so far"),
    _Field("below_season", "greatest -sr so far"),
    _Field("above_season_5", "greatest ew(sr, 5) so far"),
    _Field("below_season_5", "greatest -ew(sr, 5) so far"),
)
ACTIVITY = (
    _Field("recent", "ew(e_4^2, 5), ew(e_8^2, 20), ew(e_4^2, 60); e_k = x - forecast_k", 3),
    _Field("usual", "s_A: slow, capped means of e_4^2 and e_8^2", 2),
)
BEARING = (
    _Field("level", "ew(x, 50)"),
    _Field("usual_level", "mu: ew(x, 5000)"),
    _Field("usual_variance", "variance about mu, W = 5000"),
    _Field("move", "ew(sqrt|dx|, 30)"),
    _Field("usual_move", "ew(sqrt|dx|, 5000)"),
)
RATE_TAIL = (
    _Field("seen", "observations with S > 0.01, fading over 5000"),
    _Field("expected", "how many of them the pooled rate led to expect, fading alike"),
    _Field("beta", "mean ln(S / 0.01) over exceedances"),
    _Field("exceedances", "exceedances counted", fresh=FIRST_EXCEEDANCES),
)
ADAPTATION = (
    _Field("variance_4", "s2_4: running error variance of the adapted forecast", fresh=1.0, of_network=True),
    _Field("variance_8", "s2_8", fresh=1.0, of_network=True),
    _Field("updates_4", "updates of v_4", of_network=True),
    _Field("updates_8", "updates of v_8", of_network=True),
    _Field("phase", "observations until the next key", of_network=True),
    _Field("keys_held", "stored keys that are valid: 0, 1 or 2", of_network=True),
)
RESIDUAL = (
    _Field("variance", "s^2: slow, capped variance of the one-step residual"),
    _Field("edge", "ew(e^2, 5000) of the network's one-step forecast less that of the last value, capped like s^2"),
    _Field("low", "lower end of the feature's range, shrinking towards m", fresh=EMPTY_LOW),
    _Field("high", "upper end of the feature's range, shrinking towards m", fresh=EMPTY_HIGH),
    _Field("slow_mean", "mu: ew(x, 20000)"),
    _Field("slow_variance", "variance about mu, W = 20000"),
    _Field("level_square", "rms^2 = ew(asinh((x - mu) / sigma_slow)^2, 20000)"),
    _Field("spread_variance", "variance about mu of what lies within 4 spreads, W = 20000"),
)
LIFE = (
    _Field("count", "n: observations with a valid value (reduced by gaps)"),
    _Field("forecasts", "observations since forecasts last became invalid, at most 8", of_network=True),
    _Field("interval_s", "ew(dt, 500), only moved where the profile has no interval"),
    _Field("pause_s", "longest dt of late, shrinking by 1 / 5000 with each"),
    _Field("intervals", "updates of interval_s and pause_s"),
    _Field("controller", "d: nats added to the threshold by recent episodes"),
    _Field("controller_rest", "what float32 lost of d (compensated sum)"),
    _Field("open", "1 while an alert is open"),
    _Field("quiet_count", "scored observations since it last alarmed or held an alert open"),
    _Field("quiet_s", "seconds since it last alarmed or held an alert open"),
    _Field("peak", "greatest score of the episode"),
    _Field("reported", "score at the episode's last event"),
    _Field("severity", "0 none, 1 warning, 2 critical"),
)
TOGETHER = (
    _Field("mean_10", "ew(x, 10) from the 21st value on, x within 10 sigma of m; the last value before"),
    _Field("silent", "observations since its last value, at most 1000"),
    _Field("member", "1 where it takes part in T^2"),
)
ENTITY_RESIDUAL = (_Field("recent", "ew(s, 10), ew(s^2, 10), ew(q, 10)", 3),)


def _cluster_tail(kinds: int) -> tuple[_Field, ...]:
    """A tail for each of several kinds of evidence."""
    meanings = (
        ("quantile", "q: running 95 % quantile"),
        ("deviation", "D: running mean deviation from q"),
        ("rate", "clusters above q per observation"),
        ("beta", "mean of ln(s / q) over cluster peaks"),
        ("clusters", "clusters that have ended"),
        ("peak", "greatest ln(s / q) of the present cluster"),
        ("length", "observations since the present cluster began, 0 outside"),
        ("below", "of these, the last ones below q"),
    )
    return tuple(_Field(name, meaning, kinds) for name, meaning in meanings)


DISTANCES = ("values", "residuals", "means")
"""What ``coupled`` profiles take T^2 of, in the order of the signals: values, four-step forecast errors, ew(x, 10)."""


def _distances(features: int) -> tuple[_Field, ...]:
    kinds, packed = len(DISTANCES), features * (features + 1) // 2
    return (
        _Field(
            "gathered", "for T^2 of values, residuals, means: 400 complete observations, then those measured", kinds
        ),
        _Field("mean", "their means", kinds * features),
        _Field("factor", "their covariances, then inverse Cholesky factors, packed lower triangles", kinds * packed),
        _Field("smooth", "ew(T^2 / F, 10) of the residuals"),
    )


class RowLayout:
    """Where each number of a stream lies, for one profile and predictor.

    Parameters
    ----------
    config
        The settings of the fold: evidence, features and ``light`` decide which slices exist.
    predictor
        Its widths decide the hidden state, keys and fast weights. With ``scope="stream"`` the hidden state lies in
        the entity row.

    Raises
    ------
    ValueError
        The profile cannot be scored: no features, too many coupled ones, or a predictor for another number of them.
    """

    def __init__(self, config: FoldConfig, predictor: PredictorConfig) -> None:
        _refuse_impossible(config, predictor)
        self.config = config
        self.predictor = predictor
        self.features = len(config.features)
        self.slices: dict[str, Slice] = {}
        self.feature_width = self._add("feature", _feature_fields(config, predictor))
        self.entity_width = self._add("entity", _entity_fields(config, predictor))

    def _add(self, where: Where, fields: Iterator[tuple[str, _Field]]) -> int:
        offset = 0
        for group, item in fields:
            name = f"{group}.{item.name}" if item.name else group
            self.slices[name] = Slice(where, name, offset, item.width, item.meaning, item.fresh, item.of_network)
            offset += item.width
        return offset

    @property
    def numbers(self) -> int:
        """Numbers of one stream: F feature rows, then the entity row."""
        return self.features * self.feature_width + self.entity_width

    @property
    def id(self) -> str:
        """Sixteen hex digits of names, widths and order: rows of equal id mean the same."""
        text = f"{self.features};" + ";".join(f"{s.where}:{s.name}:{s.width}" for s in self.slices.values())
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def has(self, name: str) -> bool:
        """Whether a slice, or a group of slices, of this name exists."""
        return any(key == name or key.startswith(f"{name}.") for key in self.slices)

    def columns(self, name: str) -> slice:
        """The columns of a slice, or of a whole group, within its row."""
        members = self.members(name)
        return slice(members[0].offset, members[-1].end)

    def members(self, name: str) -> list[Slice]:
        """A slice, or the slices of a group, in the order of the row. Raises KeyError where there is none."""
        members = [s for key, s in self.slices.items() if key == name or key.startswith(f"{name}.")]
        if not members:
            raise KeyError(name)
        return members

    @property
    def scalar_columns(self) -> int:
        """How many leading numbers of a feature row move with every observation."""
        return self.slices["mixture"].end

    @property
    def entity_scalar_columns(self) -> int:
        """How many leading numbers of an entity row move with every observation (all but a hidden state)."""
        return self.slices["hidden"].offset if self.slices["hidden"].where == "entity" else self.entity_width

    def describe(self) -> list[tuple[str, str, int, int, str]]:
        """(where, name, offset, width, meaning) of every slice, in the order of the row."""
        return [(s.where, s.name, s.offset, s.width, s.meaning) for s in self.slices.values()]

    def fresh(self) -> Tensor:
        """The row of a stream without a past: float32 ``(numbers,)``."""
        feature, entity = self.fresh_parts()
        return torch.cat((feature.repeat(self.features), entity))

    def fresh_parts(self) -> tuple[Tensor, Tensor]:
        """One fresh feature row and one fresh entity row."""
        parts = {"feature": torch.zeros(self.feature_width), "entity": torch.zeros(self.entity_width)}
        for item in self.slices.values():
            parts[item.where][item.offset : item.end] = item.fresh
        return parts["feature"], parts["entity"]

    def carry(self, row: Tensor, older: RowLayout, hidden: Literal["carry", "reset"]) -> Tensor:
        """A row of another layout in this one.

        Slices of equal place, name and width are copied, others are fresh; ``hidden="reset"`` also makes fresh what the
        network made: hidden state, mixture, pending forecasts, keys and fast weights. Under other evidence the stream
        warms up again: beside a high count fresh statistics would move at the slow rates of old ones, and everything
        would be unheard of until they have come near.

        Parameters
        ----------
        row
            ``(..., older.numbers)``; not changed.

        Returns
        -------
        Tensor
            ``(..., numbers)``.

        Raises
        ------
        ValueError
            The number of features differs: the rows speak of other streams.
        """
        if older.features != self.features:
            raise ValueError(f"a row of {older.features} features cannot become one of {self.features}")
        lead = row.shape[:-1]
        old_feature, old_entity = older.split(row)
        new = self.fresh().to(row).expand(*lead, self.numbers).clone()
        feature, entity = self.split(new)
        for item in self.slices.values():
            was = older.slices.get(item.name)
            if was is None or (was.where, was.width) != (item.where, item.width):
                continue
            if hidden == "reset" and item.of_network:
                continue
            source, target = (old_feature, feature) if item.where == "feature" else (old_entity, entity)
            target[..., item.offset : item.end] = source[..., was.offset : was.end]
        if older.config.evidence != self.config.evidence:
            feature[..., self.columns("normaliser.count")] = 0.0
            entity[..., self.columns("life.count")] = 0.0
        return new

    def split(self, row: Tensor) -> tuple[Tensor, Tensor]:
        """Views ``(..., F, feature_width)`` and ``(..., entity_width)`` of rows ``(..., numbers)``."""
        wide = self.features * self.feature_width
        return row[..., :wide].unflatten(-1, (self.features, self.feature_width)), row[..., wide:]


def _refuse_impossible(config: FoldConfig, predictor: PredictorConfig) -> None:
    features = len(config.features)
    if features < 1:
        raise ValueError("a profile needs at least one feature")
    if config.evidence == "coupled" and features > MAX_COUPLED_FEATURES:
        raise ValueError(f"coupled evidence takes at most {MAX_COUPLED_FEATURES} features, not {features}")
    if predictor.scope == "stream" and predictor.features != features:
        raise ValueError(f"the predictor sees {predictor.features} features at once, the profile has {features}")


def has_season(config: FoldConfig) -> bool:
    """Whether rows remember times of day: it needs a clock and an interval."""
    return config.clock and config.interval_s is not None and not config.light


def has_week(config: FoldConfig) -> bool:
    """Whether the memory of times knows the week: in the rows of features that are watched by themselves."""
    return config.evidence == "single" and has_season(config)


def has_fast_weights(config: FoldConfig) -> bool:
    """Whether rows carry an adapted read-out."""
    return config.evidence == "single" and not config.light


def _group(name: str, fields: tuple[_Field, ...]) -> Iterator[tuple[str, _Field]]:
    return ((name, item) for item in fields)


def _wide(name: str, width: int, meaning: str, of_network: bool = True) -> tuple[str, _Field]:
    return name, _Field("", meaning, width, of_network=of_network)


def _feature_fields(config: FoldConfig, predictor: PredictorConfig) -> Iterator[tuple[str, _Field]]:
    yield from _group("normaliser", NORMALISER)
    if config.evidence == "single":
        yield from _group("levels", LEVELS)
        if has_season(config):
            yield from _group("season_levels", SEASON_LEVELS)
            yield _wide(
                "season_errors", 2, "mean |x - expected| over a week: by time of day, of week", of_network=False
            )
        yield from _group("activity", ACTIVITY)
        yield from _group("bearing", BEARING)
        yield from _group("level_tail", RATE_TAIL)
        yield from _group("behaviour_tail", _cluster_tail(5))
    else:
        yield from _group("residual", RESIDUAL)
    if config.evidence == "coupled":
        yield from _group("together", TOGETHER)
    if has_fast_weights(config):
        yield from _group("adaptation", ADAPTATION)
    if config.evidence == "single":
        yield _wide("quiet_ring", QUIET_RING, "S of the last 10 observations, oldest first", of_network=False)
    if config.evidence != "jump":
        yield _wide("pending_4", 4, "forecasts of the next 4 observations made 4 earlier, raw units, oldest first")
    if config.evidence == "single":
        yield _wide("pending_8", 8, "forecasts of the next 8 observations made 8 earlier, raw units, oldest first")
    yield _wide("mixture", MIXTURE_WIDTH, "one-step mixture: 3 weights, 3 locations, 3 inverse scales")
    if predictor.scope == "feature":
        yield _wide("hidden", state_width(predictor), "hidden state of the recurrent network")
    if has_fast_weights(config):
        phi = hidden_width(predictor) + INPUTS
        yield _wide("fast_weights", 2 * (phi + 1), "v_4, c_4, v_8, c_8: the stream's own correction of the read-out")
        yield _wide("keys", 2 * (phi + KEY_EXTRAS), "phi, m, sigma, B_4, B_8 of the two last keys, newest first")
    if has_season(config):
        yield "season_mean", _Field("", "time-of-day means, 48 bins of half an hour (UTC)", BINS)
        yield "season_count", _Field("", "observations in each bin", BINS)
        if has_week(config):
            yield "season_week", _Field("", "by how much 84 bins of two hours of the week differ from them", WEEK_BINS)


def _entity_fields(config: FoldConfig, predictor: PredictorConfig) -> Iterator[tuple[str, _Field]]:
    yield from _group("life", LIFE)
    if config.evidence != "single":
        yield from _group("entity", ENTITY_RESIDUAL)
        yield from _group("entity_tail", _cluster_tail(4))
    if config.evidence == "coupled":
        yield from _group("distance", _distances(len(config.features)))
        yield from _group("distance_tail", _cluster_tail(len(DISTANCES)))
    if predictor.scope == "stream":
        yield _wide("hidden", state_width(predictor), "hidden state of the recurrent network")


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of many streams on a device, by slot.

    Attributes
    ----------
    feature
        ``(capacity, F, feature_width)``; the F rows of a stream lie side by side.
    entity
        ``(capacity, entity_width)``.
    """

    layout: RowLayout
    feature: Tensor
    entity: Tensor

    @classmethod
    def allocate(
        cls,
        layout: RowLayout,
        capacity: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Rows:
        """``capacity`` fresh rows; ``dtype`` is float32 except in reference tests."""
        feature, entity = (part.to(device, dtype) for part in layout.fresh_parts())
        return cls(
            layout,
            feature.expand(capacity, layout.features, -1).clone(memory_format=torch.contiguous_format),
            entity.expand(capacity, -1).clone(memory_format=torch.contiguous_format),
        )

    @property
    def capacity(self) -> int:
        """How many streams fit."""
        return self.feature.shape[0]

    def read(self, slots: Tensor) -> Tensor:
        """Copies of rows ``(N, numbers)`` on the CPU (waits for the device)."""
        slots = slots.to(self.feature.device)
        wide = self.feature.index_select(0, slots).flatten(1)
        return torch.cat((wide, self.entity.index_select(0, slots)), 1).cpu()

    def write(self, slots: Tensor, rows: Tensor) -> None:
        """Replace rows by ``(N, numbers)``; slots must be distinct."""
        feature, entity = self.layout.split(rows.to(self.feature))
        slots = slots.to(self.feature.device)
        self.feature.index_copy_(0, slots, feature.contiguous())
        self.entity.index_copy_(0, slots, entity.contiguous())

    def clear(self, slots: Tensor) -> None:
        """Make rows fresh."""
        feature, entity = (part.to(self.feature) for part in self.layout.fresh_parts())
        slots = slots.to(self.feature.device)
        self.feature[slots] = feature
        self.entity[slots] = entity

    def grown(self, capacity: int) -> Rows:
        """A larger table with the same rows in the same slots; the new slots are fresh."""
        larger = Rows.allocate(self.layout, capacity, self.feature.device, self.feature.dtype)
        larger.feature[: self.capacity].copy_(self.feature)
        larger.entity[: self.capacity].copy_(self.entity)
        return larger
