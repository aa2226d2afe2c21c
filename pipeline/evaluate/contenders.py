"""Who is measured: the served predictor and the baselines beside it, which reports call controls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from river import anomaly, preprocessing

from models.controls import LastValue, LinearLags, Untrained
from models.pretrained import Weights
from pipeline.evaluate.fold import Group, Predictor, Track
from pipeline.evaluate.judge import DAY_S, replay_budgets
from pipeline.evaluate.series import LabelledSeries
from pipeline.profile import alarm_every_s
from pipeline.records import ANOMALOUS, OPENED, Float32

Kind = Literal["chain", "random", "river"]
GAUSSIAN_WINDOW = 500
LEAST_SIGMA = 1e-6
LEAST_TAIL = 1e-17  # below what float64 can lack of 1
HST_SEED = 1


@dataclass(frozen=True, slots=True)
class Contender:
    """One column of the results.

    Attributes
    ----------
    name
        Its key.
    kind
        ``chain``: forecasts through the production engine; ``random``: scores that know nothing, through the production
        decision; ``river``: a detector of the river package, which ranks but raises no alarms of its own.
    is_quick
        Whether the quick run, which has three minutes, has time for it unless asked.
    """

    name: str
    words: str
    kind: Kind
    is_quick: bool = True


_READ_OUT = "read out by fast weights; where rows have none, as fitted once to generated series"

SERVED = Contender("served", "the predictor that is served", "chain")
BASELINES = (
    Contender("naive", "last value through the same chain", "chain"),
    Contender("untrained", f"a network that never learned, {_READ_OUT}", "chain", is_quick=False),
    Contender("lags", f"AR(20): linear lags, {_READ_OUT}", "chain", is_quick=False),
    Contender("random", "random scores through the same decision", "random"),
    Contender("half_space_trees", "river HalfSpaceTrees", "river"),
    Contender("gaussian", "river GaussianScorer, largest feature", "river"),
)


def predictor_of(contender: Contender, weights: Weights) -> Predictor:
    """What a contender forecasts with; the pooled tails are those of the served weights."""
    if contender.name == "naive":
        return lambda config: LastValue(weights.pooled, config)
    if contender.name == "lags":
        return lambda config: LinearLags(weights.pooled, config)
    if contender.name == "untrained":
        return lambda config: Untrained(weights, config)
    return lambda config: weights


def random_tracks(group: Group) -> dict[str, Track]:
    """Scores of exactly the distribution they claim, and the alarms they give; a track for each series by its name."""
    tracks = {}
    for item in group.series:
        rng = np.random.default_rng([*item.name.encode()])  # the same scores whatever else is evaluated
        track, rows = Track.empty(len(item.stream), len(item.stream.features)), item.scored_rows
        track.score[rows] = np.round(-np.log10(rng.uniform(size=len(rows))), 3)
        track.ranked[:] = track.score
        track.threshold[rows] = 0.0
        track.contribution[:] = rng.uniform(size=track.contribution.shape)
        tracks[item.name] = track
    budget = {group.profile.alarm_budget: DAY_S / alarm_every_s(group.profile.alarm_budget)}
    for name, decided in replay_budgets(group.series, tracks, budget).items():
        [(opened, alarmed)] = decided.values()
        tracks[name].event[:] = opened * OPENED
        tracks[name].verdict[:] = alarmed * ANOMALOUS
    return tracks


def river_track(item: LabelledSeries, name: str) -> Track:
    """Scores of one of river's detectors: score a row, then learn it."""
    track = Track.empty(len(item.stream), len(item.stream.features))
    score = _trees if name == "half_space_trees" else gaussian_scores
    track.ranked[:] = score(item.stream.values)
    return track


def _trees(values: Float32) -> Float32:
    scale: Any = preprocessing.MinMaxScaler()  # published without types
    trees: Any = anomaly.HalfSpaceTrees(seed=HST_SEED)
    out = np.zeros(len(values), np.float32)
    for row, observed in enumerate(values):
        known = {number: float(x) for number, x in enumerate(observed) if not np.isnan(x)}
        if not known:
            continue
        scale.learn_one(known)
        scaled = scale.transform_one(known)
        out[row] = trees.score_one(scaled)
        trees.learn_one(scaled)
    return out


def gaussian_scores(values: Float32) -> Float32:
    """The largest of the features' scores, each with a detector of its own, as -log10 of what they lack of 1.

    The same order: from 5.6 deviations on river's score is 1 in float32, and the strongest outliers would tie.
    """
    out = np.zeros(len(values), np.float32)
    for column in values.T:
        out = np.maximum(out, _gaussian_of_one(column))
    return out


def _gaussian_of_one(values: Float32) -> Float32:
    """Scores of one feature.

    Where a window is constant, river (0.26) has either no deviation and scores every value 1, or by rounding a negative
    variance and fails: there, what equals the mean is normal and everything else is not.
    """
    make: Any = anomaly.GaussianScorer  # published without types
    detector = make(window_size=GAUSSIAN_WINDOW)
    known = np.flatnonzero(np.isfinite(values))
    moved = (values[known] - values[known[:1]]).astype(np.float64)
    out = np.zeros(len(values), np.float32)
    for row, x in zip(known.tolist(), moved.tolist(), strict=True):
        if detector.gaussian.n_samples >= detector.grace_period:
            sigma = detector.gaussian.sigma
            if isinstance(sigma, complex) or sigma < LEAST_SIGMA:
                score = float(abs(x - detector.gaussian.mu) > LEAST_SIGMA)
            else:
                score = detector.score_one(None, x)
            out[row] = -math.log10(max(1.0 - score, LEAST_TAIL))
        detector.learn_one(None, x)
    return out
