"""What storing a version in fewer bits does to its scores: both versions over the same streams, through the engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from models.pretrained import Weights
from models.synthetic import plant
from pipeline.offline import Offline
from pipeline.profile import Profile
from pipeline.records import ANOMALOUS, Scores
from pipeline.sources.recording import RecordedStream

SENSORS, FEWEST_STREAMS, OBSERVATIONS, SEED = 96, 12, 1500, 1
INTERVAL_S = 300.0


@dataclass(frozen=True, slots=True)
class Effect:
    """Scores of two versions beside each other.

    Attributes
    ----------
    observations, anomalous, changed
        Scored; called anomalous by one version or both; called so by one of them only.
    score_mean, score_most
        Mean and greatest difference of the scores, -log10.
    speed, speed_after
        Observations per second that each version scored.
    """

    observations: int
    anomalous: int
    changed: int
    score_mean: float
    score_most: float
    speed: float
    speed_after: float

    @property
    def changed_share(self) -> float:
        """Share of the anomalous verdicts that are not the same; 0 where there is none."""
        return self.changed / max(1, self.anomalous)


def trial_streams(profile: Profile) -> list[RecordedStream]:
    """Streams of a generated plant, a fault in half of its sensors, in the shape of a profile's."""
    features = len(profile.features)
    streams = max(FEWEST_STREAMS, SENSORS // features)
    interval_s = INTERVAL_S if profile.interval_s is None else profile.interval_s
    made = plant(streams * features, OBSERVATIONS, streams * features // 2, SEED, interval_s=interval_s)
    units = [made[first : first + features] for first in range(0, len(made), features)]
    return [
        RecordedStream(
            f"unit-{number}",
            profile.features,
            interval_s,
            sensors[0].times_ms,
            np.concatenate([s.values for s in sensors], 1),
        )
        for number, sensors in enumerate(units)
    ]


def effect_of(
    name: str, profile: Profile, before: Weights, after: Weights, streams: Sequence[RecordedStream]
) -> Effect:
    """Score streams with two sets of weights under one profile.

    Raises
    ------
    ConfigurationError
        The weights do not fit the profile.
    """
    list(_scores(Offline(name, profile, before), streams[:1]))  # what a first call costs is not the weights' own
    runs = []
    for weights in (before, after):
        offline, began_s = Offline(name, profile, weights), time.monotonic()
        runs.append((list(_scores(offline, streams)), time.monotonic() - began_s))
    (one, seconds), (two, seconds_after) = runs
    score, score_after = (np.concatenate([scores.score for scores in run]) for run in (one, two))
    verdict, verdict_after = (np.concatenate([scores.verdict for scores in run]) == ANOMALOUS for run in (one, two))
    difference = np.abs(score_after - score)
    return Effect(
        observations=len(score),
        anomalous=int((verdict | verdict_after).sum()),
        changed=int((verdict ^ verdict_after).sum()),
        score_mean=float(np.nanmean(difference)),
        score_most=float(np.nanmax(difference)),
        speed=len(score) / seconds,
        speed_after=len(score) / seconds_after,
    )


def _scores(offline: Offline, streams: Sequence[RecordedStream]) -> Iterator[Scores]:
    for absorbed in offline.score_streams(streams):
        yield from absorbed.scores
