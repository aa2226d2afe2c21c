"""A version that scores beside the workers: same inputs, own states, no output."""

from __future__ import annotations

from collections.abc import Mapping

from models.config import HiddenOnSwap
from models.learner import Forecaster
from models.pretrained import Weights
from pipeline.engine import Absorbed
from pipeline.offline import Offline
from pipeline.records import EVENTS, OPENED, Partition, Windows
from pipeline.settings import Profile


class Shadow(Offline):
    """One version on the learner's streams: rows for its alarms, recurrent states for its losses.

    Attributes
    ----------
    weights
        The version's.
    forecaster
        Its losses on stretches.
    """

    def __init__(self, name: str, profile: Profile, weights: Weights, max_streams: int, device: str) -> None:
        super().__init__(name, profile, weights, max_streams=max_streams, device=device)
        self.weights = weights
        self.forecaster = Forecaster(weights, device)

    def begin_like(self, other: Shadow, hidden: HiddenOnSwap) -> None:
        """Take over copies of another version's rows, carried as a worker carries them at a swap."""
        theirs, ours = other._engine.rows(other.version), self._engine.rows(self.version)
        for partition in list(theirs.slots_of):
            self._engine.bring_to(partition, self.version)
            theirs.copy_to(ours, partition, hidden)
        if hidden == "carry":
            self.forecaster.follow(other.forecaster)

    def forget(self, stream_id: str) -> None:
        """Give up a stream's row."""
        rows = self._engine.rows(self.version)
        for partition in list(rows.slots_of):
            rows.release(partition, stream_id)

    def absorb(self, parts: Mapping[Partition, Windows]) -> tuple[Absorbed, int]:
        """Fold a batch; its scores, and how many alarms it opened."""
        absorbed = self.score(parts)
        return absorbed, sum(alert.event == EVENTS[OPENED] for alert in absorbed.alerts)
