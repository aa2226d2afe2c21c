"""Labelled series through the production engine: many series side by side, one track for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from models.config import FoldConfig
from models.pretrained import Weights
from models.step import EVIDENCE, Scorer
from pipeline.evaluate.series import LabelledSeries
from pipeline.observations import Detail
from pipeline.offline import Offline
from pipeline.profile import Profile
from pipeline.records import Float32, Scores, UInt8

MAX_BATCH_VALUES = 500_000

Predictor = Callable[[FoldConfig], Weights | Scorer]


@dataclass(slots=True)
class Track:
    """What the engine said of one series, ``(T,)`` per row of the recording; NaN and 0 where it said nothing.

    Attributes
    ----------
    score, threshold, verdict, event
        As emitted: score -log10 p, threshold in force, verdict (1 anomalous), event (1 opened, 2 updated, 3 resolved).
    ranked
        The quantity that ranks rows.
    signal
        Index into the scorer's signals.
    contribution
        ``(T, F)``, nats.
    expected, low, high
        ``(T, F)``, one-step expectation and band in raw units, where wanted.
    """

    score: Float32
    threshold: Float32
    verdict: UInt8
    event: UInt8
    signal: UInt8
    ranked: Float32
    contribution: npt.NDArray[np.float16]
    expected: Float32
    low: Float32
    high: Float32

    @classmethod
    def empty(cls, rows: int, features: int) -> Track:
        """A track of which nothing is known yet."""
        flat = [np.full(rows, np.nan, np.float32) for _ in range(3)]
        small = [np.zeros(rows, np.uint8) for _ in range(3)]
        wide = [np.full((rows, features), np.nan, np.float32) for _ in range(3)]
        contribution = np.zeros((rows, features), np.float16)
        return cls(flat[0], flat[1], small[0], small[1], small[2], flat[2], contribution, *wide)


@dataclass(frozen=True, slots=True)
class Group:
    """Series that one engine scores side by side: equal evidence, features, interval, clock and budget."""

    name: str
    profile: Profile
    series: tuple[LabelledSeries, ...]

    @property
    def steps(self) -> int:
        """Observations of the longest series: what the time of a run goes with."""
        return max(len(series.stream) for series in self.series)


def groups_of(series: Sequence[LabelledSeries], base: Profile | None = None) -> list[Group]:
    """The fewest engines for these series, longest run first.

    Parameters
    ----------
    base
        A profile whose predictor and other knobs are used; features, interval, clock, evidence and budget come from
        the series.
    """
    together: dict[tuple[object, ...], list[LabelledSeries]] = {}
    for item in series:
        stream, plan = item.stream, item.plan
        key = (plan.evidence, len(stream.features), _interval(item), stream.clock, plan.budget)
        together.setdefault(key, []).append(item)
    made = []
    for members in together.values():
        first = members[0]
        names = sorted({item.entry.dataset for item in members})
        made.append(Group("+".join(names), _profile(first, base), tuple(members)))
    return sorted(made, key=lambda group: -group.steps)


def _interval(item: LabelledSeries) -> float | None:
    return None if item.entry.timestamp_kind == "row_index" else item.stream.interval_s


def _profile(item: LabelledSeries, base: Profile | None) -> Profile:
    knobs = {} if base is None else base.model_dump(exclude_unset=True)
    known = {
        "topics": ("recording",),
        "features": tuple(f"f{i}" for i in range(len(item.stream.features))),
        "interval_s": _interval(item),
        "clock": item.stream.clock,
        "evidence": item.plan.evidence,
        "alarm_budget": item.plan.budget,
    }
    return Profile(**{**knobs, **known})


def fold(
    group: Group,
    predictor: Predictor,
    progress: Callable[[int], None] = lambda rows: None,
    *,
    has_bands: bool = False,
) -> dict[str, Track]:
    """Run a group through the production engine; a track for each series by its name.

    Parameters
    ----------
    predictor
        Weights, or a baseline's scorer, for the settings of the fold.
    progress
        Called with the number of observations folded since the last call.
    has_bands
        Whether tracks say what was expected: pictures need it, and it costs a quarter of the time.
    """
    named = frozenset({"contribution", *(item.plan.ranked for item in group.series)}) - {"score"}
    wanted = named | {EVIDENCE} if has_bands else named
    offline = Offline(group.name, group.profile, predictor(group.profile.fold()), detail=wanted)
    features = len(group.profile.features)
    collectors = {item.name: _Collector(item) for item in group.series}
    streams = [replace(item.stream, features=group.profile.features) for item in group.series]
    at_most = max(64 * len(streams), MAX_BATCH_VALUES // features)
    for absorbed in offline.score_streams(streams, max_batch_observations=at_most):
        for scores, detail in zip(absorbed.scores, absorbed.details, strict=True):
            for name, cells in _cells(scores):
                collectors[name].add(scores, detail, cells)
        progress(absorbed.observations + absorbed.late)
    return {name: collector.track for name, collector in collectors.items()}


def _cells(scores: Scores) -> Iterator[tuple[str, slice]]:
    """Stretches of observations of one stream."""
    ends = np.cumsum(scores.lengths).tolist()
    begin = 0
    for number, (name, end) in enumerate(zip(scores.stream_ids, ends, strict=True)):
        if number + 1 < len(ends) and scores.stream_ids[number + 1] == name:
            continue
        yield name, slice(begin, end)
        begin = end


class _Collector:
    """Puts the results of one series to its rows, in the order in which they come."""

    def __init__(self, item: LabelledSeries) -> None:
        self._item = item
        self._done = 0
        self.track = Track.empty(len(item.stream), len(item.stream.features))

    def add(self, scores: Scores, detail: Detail, cells: slice) -> None:
        """The next observations."""
        count = cells.stop - cells.start
        rows = self._item.scored_rows[self._done : self._done + count]
        self._done += count
        track = self.track
        track.score[rows] = scores.score[cells]
        track.threshold[rows] = scores.threshold[cells]
        track.verdict[rows] = scores.verdict[cells]
        track.signal[rows] = scores.signal[cells]
        track.event[rows] = detail.event[cells]
        track.ranked[rows] = self._ranked(scores, detail, cells)
        track.contribution[rows] = detail.trace["contribution"][cells]
        if detail.evidence:
            track.expected[rows] = detail.evidence["expected"][cells]
            track.low[rows] = detail.evidence["band_low"][cells]
            track.high[rows] = detail.evidence["band_high"][cells]

    def _ranked(self, scores: Scores, detail: Detail, cells: slice) -> Float32:
        kind = self._item.plan.ranked
        if kind == "score":
            return scores.score[cells]
        values: Float32 = detail.trace[kind][cells]
        return values if values.ndim == 1 else np.fmax.reduce(values, axis=1)  # NaN where no feature has a value
