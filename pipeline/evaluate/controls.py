"""Who is measured: the served predictor, controls through the same chain, and references from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from river import anomaly, preprocessing

from models.controls import LastValue, LinearLags, Untrained
from models.evaluation.budget import alarms_at
from models.pretrained import Weights
from pipeline.evaluate.fold import Predictor, Track
from pipeline.evaluate.judge import ANOMALOUS
from pipeline.evaluate.series import LabelledSeries
from pipeline.records import OPENED, Float32
from pipeline.settings import Profile, alarm_every_s

Kind = Literal["chain", "random", "river"]
GAUSSIAN_WINDOW = 500
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
    """

    name: str
    words: str
    kind: Kind


SERVED = Contender("served", "the predictor that is served", "chain")
CONTROLS = (
    Contender("naive", "last value through the same chain", "chain"),
    Contender("untrained", "a network that never learned, read out by fast weights (*)", "chain"),
    Contender("lags", "AR(20): linear lags, read out by fast weights (*)", "chain"),
    Contender("random", "random scores through the same decision", "random"),
    Contender("half_space_trees", "river HalfSpaceTrees", "river"),
    Contender("gaussian", "river GaussianScorer, largest feature", "river"),
)
READ_OUT_NOTE = "(*) where rows have no fast weights, a linear read-out fitted to generated series"


def predictor_of(contender: Contender, weights: Weights) -> Predictor:
    """What a contender forecasts with; the pooled tails are those of the served weights."""
    if contender.name == "naive":
        return lambda config: LastValue(weights.pooled, config)
    if contender.name == "lags":
        return lambda config: LinearLags(weights.pooled, config)
    if contender.name == "untrained":
        return lambda config: Untrained(weights, config)
    return lambda config: weights


def random_track(item: LabelledSeries, profile: Profile, seed: int) -> Track:
    """Scores of exactly the distribution they claim, and the alarms they give."""
    rng = np.random.default_rng([seed, *item.name.encode()])
    track, rows = Track.empty(len(item.stream), len(item.stream.features)), item.scored_rows
    track.score[rows] = np.round(-np.log10(rng.uniform(size=len(rows))), 3)
    track.ranked[:] = track.score
    track.threshold[rows] = 0.0
    track.contribution[:] = rng.uniform(size=track.contribution.shape)
    elapsed = np.diff(item.stream.times_ms[rows], prepend=item.stream.times_ms[rows[:1]])[:, None] / 1000.0
    budget = np.array([alarm_every_s(profile.alarm_budget) / max(item.row_s, 1e-3)])
    opened, alarmed = alarms_at(track.score[rows, None], elapsed.astype(np.float32), budget)
    track.event[rows] = opened[:, 0] * OPENED
    track.verdict[rows] = alarmed[:, 0] * ANOMALOUS
    return track


def river_track(item: LabelledSeries, name: str) -> Track:
    """Scores of one of river's detectors: score a row, then learn it."""
    track = Track.empty(len(item.stream), len(item.stream.features))
    score = _trees if name == "half_space_trees" else _gaussian
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


def _gaussian(values: Float32) -> Float32:
    """The largest of the features' scores, each with a detector of its own."""
    make: Any = anomaly.GaussianScorer  # published without types
    out = np.zeros(len(values), np.float32)
    for feature in range(values.shape[1]):
        detector = make(window_size=GAUSSIAN_WINDOW)
        for row, x in enumerate(values[:, feature].tolist()):
            if x == x:
                out[row] = max(out[row], detector.score_one(None, x))
                detector.learn_one(None, x)
    return out
