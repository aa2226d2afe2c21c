"""A version that scores beside the workers: same inputs, own states, no output."""

from __future__ import annotations

from collections.abc import Mapping

from models.config import FoldConfig, HiddenOnSwap, PredictorConfig
from models.learner import Forecaster
from models.pretrained import Weights
from models.row import has_season, has_week
from models.step import Scorer
from pipeline.engine import Absorbed
from pipeline.offline import Offline
from pipeline.profile import Profile
from pipeline.records import EVENTS, OPENED, Partition, Windows


class Shadow(Offline):
    """One version on the learner's streams: rows for its alarms, recurrent states for its losses.

    Attributes
    ----------
    weights, fold
        The version's; its settings may be others than the profile has here.
    forecaster
        Its losses on stretches.

    Raises
    ------
    ValueError
        The predictor sees all features at once.
    """

    def __init__(
        self, name: str, profile: Profile, weights: Weights, fold: FoldConfig, max_streams: int, device: str
    ) -> None:
        super().__init__(name, profile, Scorer(weights, fold, device), max_streams=max_streams, device=device)
        self.weights, self.fold = weights, fold
        self.forecaster = Forecaster(weights, device)

    @property
    def kind(self) -> tuple[PredictorConfig, float | None, bool, bool]:
        """What lessons are made by; those of one kind are of no use to another."""
        return self.weights.predictor, self.fold.interval_s, self.has_clock, self.has_week

    @property
    def has_clock(self) -> bool:
        """Whether its rows have a time-of-day memory."""
        return has_season(self.fold)

    @property
    def has_week(self) -> bool:
        """Whether that memory knows the week, too: one with it and one without are of two widths."""
        return has_week(self.fold)

    def begin_like(self, other: Shadow, hidden: HiddenOnSwap) -> None:
        """Take over copies of another version's rows, carried as a worker carries them at a swap."""
        theirs, ours = other._engine.table(other.version), self._engine.table(self.version)
        for partition in list(theirs.slots_of):
            self._engine.bring_to(partition, self.version)
            theirs.copy_to(ours, partition, hidden)
        if hidden == "carry" and self.weights.predictor == other.weights.predictor:
            self.forecaster.begin_like(other.forecaster)

    def forget(self, stream_id: str) -> None:
        """Give up a stream's row."""
        table = self._engine.table(self.version)
        for partition in list(table.slots_of):
            table.release(partition, stream_id)

    def absorb(self, parts: Mapping[Partition, Windows]) -> tuple[Absorbed, int]:
        """Fold a batch; its scores, and how many alarms it opened."""
        absorbed = self.score(parts)
        return absorbed, sum(alert.event == EVENTS[OPENED] for alert in absorbed.alerts)
