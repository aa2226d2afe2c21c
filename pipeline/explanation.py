"""What stands behind every observation of one stream: evidence, gate, controller, threshold; and what decided."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.evidence.single import GATE_FULL
from models.tail import LN10
from pipeline.engine import Absorbed, Engine
from pipeline.errors import ConfigurationError
from pipeline.observations import Detail
from pipeline.partition import version_at
from pipeline.records import (
    ANOMALOUS,
    DISPLACEMENT_SIGNAL,
    EVENTS,
    MISSING,
    WARMING_UP,
    WITH_USUAL_LEVEL,
    Bool,
    Committed,
    Float32,
    Int64,
    Partition,
    Scores,
    UInt8,
    Windows,
)
from pipeline.wording import number

LEVEL_SIGNAL = "level"
SIGNAL_WORDS = {
    LEVEL_SIGNAL: "a level that the stream has not had before",
    "activity": "moves of a kind that the forecast keeps missing",
    DISPLACEMENT_SIGNAL: "a level that stays away from where it used to be",
    "stillness": "moves that have become smaller or rarer than they used to be",
    "jump": "several features that leave their forecasts together",
    "values": "values that do not go together as they used to",
    "residuals": "forecast errors that do not go together as they used to",
    "means": "levels of late that do not go together as they used to",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """One stream, observation by observation, as the production engine saw it.

    T observations of F features. NaN stands where something does not exist for an observation.

    Attributes
    ----------
    stream_id, features
        Which stream, and the names of its F columns.
    versions
        ``(T,)`` model version of each observation.
    times_ms
        ``(T,)`` event times.
    score, threshold, verdict, event
        ``(T,)``: -log10 p; the threshold in force; index into VERDICTS; index into EVENTS.
    signal, signals
        ``(T,)`` index into ``signals``, the names of the kinds of evidence.
    feature
        ``(T,)`` index of the strongest feature, -1 for an entity signal.
    direction
        ``(T,)`` -1 below, 1 above what was expected, 0 none.
    observed, expected, band_low, band_high
        ``(T, F)`` in raw units; the band holds 98 % of what was expected one step ahead.
    usual
        ``(T, F)`` where a feature used to be (displacement), or would be beside the others (values, means).
    contribution
        ``(T, F)`` nats.
    level, raw_level, record, gate, activity, displacement, stillness
        ``(T, F)``: S as it counts; S before suppression of repeats; the record it is made of, before the gate; g, the
        gate; A; how far the mean of late is from the usual one, in standard deviations; how many times more than of
        late it usually moves, less one.
    entity, entity_displacement
        ``(T,)`` of several features: s; how many spreads beyond five the three farthest are from their usual level.
    controller
        ``(T,)`` d in nats: by how much earlier alarms raise the threshold.
    peak
        ``(T,)`` highest score of the episode so far.
    """

    stream_id: str
    features: tuple[str, ...]
    versions: npt.NDArray[np.str_]
    times_ms: Int64
    score: Float32
    threshold: Float32
    verdict: UInt8
    event: UInt8
    signal: UInt8
    signals: tuple[str, ...]
    feature: npt.NDArray[np.int16]
    direction: npt.NDArray[np.int8]
    observed: Float32
    expected: Float32
    band_low: Float32
    band_high: Float32
    usual: Float32
    contribution: Float32
    level: Float32
    raw_level: Float32
    record: Float32
    gate: Float32
    activity: Float32
    displacement: Float32
    stillness: Float32
    entity: Float32
    entity_displacement: Float32
    controller: Float32
    peak: Float32

    def __len__(self) -> int:
        return len(self.times_ms)

    def part(self, begin: int, end: int) -> Explanation:
        """Observations ``begin`` to ``end``."""
        cut = slice(max(begin, 0), end)
        return Explanation(
            self.stream_id,
            self.features,
            signals=self.signals,
            **{name: getattr(self, name)[cut] for name in _COLUMNS},
        )

    @property
    def opening(self) -> Float32:
        """``(T, F)``: what share of a record the gate let count, 0 to 1."""
        share: Float32 = np.minimum(self.gate / GATE_FULL, 1.0)
        return share

    def nearest(self, time_ms: int) -> int:
        """Index of the observation closest in event time."""
        return int(np.abs(self.times_ms - time_ms).argmin())

    def strongest_feature(self, at: int) -> int:
        """The feature to look at: the one that won, else the one that contributed most."""
        if self.feature[at] >= 0:
            return int(self.feature[at])
        return int(np.nan_to_num(self.contribution[at], nan=-1.0).argmax())


_OF_SCORES = ("times_ms", "score", "threshold", "verdict", "signal", "feature")
_OF_EVIDENCE = ("observed", "expected", "band_low", "band_high", "usual", "direction", "peak")
_OF_TRACE = (
    *("contribution", "level", "raw_level", "record", "gate", "activity", "displacement", "stillness"),
    *("entity", "entity_displacement", "controller"),
)
_COLUMNS = (*_OF_SCORES, *_OF_EVIDENCE, *_OF_TRACE, "versions", "event")


def collect(batches: Iterable[Absorbed], stream_id: str, features: tuple[str, ...]) -> Explanation:
    """Everything one stream's batches tell, of an engine that keeps details.

    Raises
    ------
    ConfigurationError
        The stream has no scored observation.
    """
    parts: list[Mapping[str, npt.NDArray[Any]]] = []
    signals: tuple[str, ...] = ()
    for absorbed in batches:
        for scores, detail in zip(absorbed.scores, absorbed.details, strict=True):
            mine = np.repeat([name == stream_id for name in scores.stream_ids], scores.lengths)
            if mine.any():
                parts.append(_columns(scores, detail, mine))
                signals = scores.signals
    if not parts:
        raise ConfigurationError(f"stream {stream_id!r} has no scored observation here")
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Explanation(stream_id, features, signals=signals, **joined)


def _columns(scores: Scores, detail: Detail, mine: Bool) -> Mapping[str, npt.NDArray[Any]]:
    return {
        **{name: getattr(scores, name)[mine] for name in _OF_SCORES},
        **{name: detail.evidence[name][mine] for name in _OF_EVIDENCE},
        **{name: detail.trace[name][mine] for name in _OF_TRACE},
        "versions": np.full(int(mine.sum()), scores.model_version),
        "event": detail.event[mine],
    }


def with_recorded_versions(
    engine: Engine, committed: Committed, partition: Partition, windows: Windows
) -> Iterator[Absorbed]:
    """Fold windows with the version that scored each of them first, carrying the rows where it changes."""
    oldest = committed.history[0][1]
    versions = [version_at(committed, offset) or oldest for offset in windows.offsets.tolist()]
    begin = 0
    while begin < len(windows):
        version = versions[begin]
        end = next((i for i in range(begin, len(windows)) if versions[i] != version), len(windows))
        yield engine.absorb_fresh({partition: windows.part(begin, end)}, version)
        begin = end


def sentence(e: Explanation, at: int) -> str:
    """Why there was an alert at this observation, or why there was none, in plain words."""
    verdict = int(e.verdict[at])
    score, threshold = float(e.score[at]), float(e.threshold[at])
    if verdict == MISSING:
        return "Every value of this observation is missing, so there is nothing to score."
    if verdict == WARMING_UP:
        return "The stream was still warming up: it is judged from its 100th valid observation on."
    cause, numbers = _cause(e, at), f"score {score:.2f}, threshold {threshold:.2f}"
    if verdict == ANOMALOUS:
        event = EVENTS[int(e.event[at])]
        opening = {"opened": "An alert opened here", "updated": "An open alert got worse here"}.get(event, "Anomalous")
        return f"{opening} ({numbers}): {cause}.{_raised(e, at)}"
    if score == 0.0:
        return f"No alert (score 0, threshold {threshold:.2f}): {_silence(e, at)}."
    return f"No alert ({numbers}): the strongest evidence was {cause}; {_shortfall(e, at)}.{_raised(e, at)}"


def _cause(e: Explanation, at: int) -> str:
    name = e.signals[int(e.signal[at])]
    strongest = e.strongest_feature(at)
    feature, is_entity = e.features[strongest], int(e.feature[at]) < 0
    usual = number(float(e.usual[at, strongest]), float(e.band_high[at, strongest] - e.band_low[at, strongest]))
    against = "what was expected"
    if name in WITH_USUAL_LEVEL:
        against = f"the usual {usual}" if name == DISPLACEMENT_SIGNAL else f"the {usual} that the others ask for"
    side = {-1: f", below {against}", 1: f", above {against}", 0: ""}[int(e.direction[at])]
    about = "" if len(e.features) == 1 else f", most of all {feature}" if is_entity else f" in {feature}"
    return f"{SIGNAL_WORDS.get(name, 'nothing in particular')} ({name}){about}{side}{_gate(e, at, name)}"


def _gate(e: Explanation, at: int, signal: str) -> str:
    opening = float(e.opening[at, e.strongest_feature(at)])
    if signal != LEVEL_SIGNAL or not math.isfinite(opening):
        return ""
    if opening >= 1.0:
        return "; the gate let all of it count, for the forecast had not seen it coming"
    return f"; the gate let {opening:.0%} of it count, for the forecast had partly seen it coming"


def _shortfall(e: Explanation, at: int) -> str:
    """By what factor evidence of this strength is too common."""
    factor = 10.0 ** float(e.threshold[at] - e.score[at])
    shown = f"{factor:,.0f}" if factor >= 10 else f"{factor:.1f}"
    return f"on normal data, evidence of that strength turns up {shown} times as often as the alarm budget allows"


def _silence(e: Explanation, at: int) -> str:
    feature = e.strongest_feature(at)
    record, raw, level = (float(numbers[at, feature]) for numbers in (e.record, e.raw_level, e.level))
    if math.isfinite(raw) and raw > level:
        return "the level was new, but one in the last ten observations was newer still: this is no event of its own"
    if math.isfinite(record) and record > 0:
        return "the level was new, but the forecast made eight observations earlier saw it coming and shut the gate"
    return "the observation lay within what the stream had shown before"


def _raised(e: Explanation, at: int) -> str:
    d = float(e.controller[at])
    if d < 0.5:
        return ""
    return f" Earlier alarms of the stream have raised the threshold by {d / LN10:.2f}."
