"""Windows straight through the production engine, without Kafka and Redis: for replays, evaluation and explanation.

Every run begins with fresh rows and one version. All streams of a run lie in one engine, so that one step serves
hundreds of them, and memory holds what they carry; nothing is evicted, nothing is saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from models.pretrained import Weights
from models.step import Scorer, Wanted
from pipeline.engine import Absorbed, Engine
from pipeline.errors import ConfigurationError
from pipeline.profile import Profile
from pipeline.records import CONTROL_NONE, Int64, Partition, Windows
from pipeline.registry import base_weights, version_name
from pipeline.sources.recording import RecordedStream

RECORDING = Partition("recording", 0)
"""Where recorded series lie that come from no topic."""

WINDOW_LENGTH = 64
MAX_BATCH_OBSERVATIONS = 65_536
MAX_STRETCH = 256
"""Observations of one stream in a batch, so that a run of few streams shows progress, too."""


class Offline:
    """One run of one profile.

    Parameters
    ----------
    name, profile
        The profile and its name.
    weights
        ``None`` takes those the profile's predictor names; a ready scorer stands for itself (controls).
    max_streams
        Most streams of the run.
    device
        Torch device.
    detail
        True keeps evidence and trace of every observation, names so much of the trace: ``Absorbed.details`` beside
        ``Absorbed.scores``.

    Attributes
    ----------
    version
        The version that scores.

    Raises
    ------
    VersionError
        There are no such weights.
    """

    def __init__(
        self,
        name: str,
        profile: Profile,
        weights: Weights | Scorer | None = None,
        *,
        max_streams: int = 100_000,
        device: str = "cpu",
        detail: Wanted = False,
        threads: int = 1,
    ) -> None:
        if weights is None:
            weights = base_weights(profile.builtin() or profile.predictor, profile.scope)
        self.name, self.profile = name, profile
        try:
            scorer = weights if isinstance(weights, Scorer) else Scorer(weights, profile.fold(), device)
        except ValueError as exc:
            raise ConfigurationError(f"profile {name}: {exc}") from exc
        self.version = version_name(scorer.weights, scorer.config)
        self._engine = Engine(
            name, profile, lambda version: scorer, max_streams, device, detail=detail, threads=threads
        )

    def score(self, parts: Mapping[Partition, Windows]) -> Absorbed:
        """Fold one batch: some windows of each of these partitions, following on what came before.

        Raises
        ------
        ConfigurationError
            The run has more than ``max_streams`` streams.
        """
        return self._engine.absorb_fresh(parts, self.version)

    def score_streams(
        self,
        streams: Sequence[RecordedStream],
        length: int = WINDOW_LENGTH,
        max_batch_observations: int = MAX_BATCH_OBSERVATIONS,
    ) -> Iterator[Absorbed]:
        """Score recorded streams side by side, each from its first observation to its last.

        Yields one batch's results at a time; a stream's observations come in their order. Offset and index count
        within the stream, so that nothing of a stream's output depends on its neighbours. An observation that does not
        lie after all earlier ones of its stream is late and has no score.

        Parameters
        ----------
        streams
            All with the profile's features.
        length
            Most observations in a window.
        max_batch_observations
            Observation vectors in one batch.
        """
        length = window_length(length, streams, self.profile)
        for windows in in_rounds(streams, length, max_batch_observations):
            yield self.score({RECORDING: windows})

    def warm(
        self, histories: Sequence[RecordedStream], partition: Partition = RECORDING, length: int = WINDOW_LENGTH
    ) -> Iterator[Absorbed]:
        """Fold the history of streams without output, before their first window; its positions do not count."""
        table = self._engine.table(self.version)
        for windows in in_rounds(histories, window_length(length, histories, self.profile), silent=True):
            yield self.score({partition: windows})
            slots = table.slots(partition, windows.stream_ids)
            table.header["position"][slots] = 0
            table.header["last_record_ms"][slots] = -1


def window_length(most: int, streams: Sequence[RecordedStream], profile: Profile) -> int:
    """Observations in a window of recorded streams: ``most``, or so few that none of them spans an idle reset.

    What is recorded has no record time, so that a window's is the time of its last observation: beside the window
    before, a longer one would look like a silence, and every one of them would begin its stream anew.
    """
    spans_ms = [float(np.ptp(stream.times_ms)) / (len(stream) - 1) for stream in streams if len(stream) > most]
    apart_ms = max(spans_ms, default=0.0)
    return max(1, min(most, int(1000.0 * profile.fold().idle_reset_s / apart_ms))) if apart_ms > 0 else most


def in_rounds(
    streams: Sequence[RecordedStream],
    length: int = WINDOW_LENGTH,
    max_batch_observations: int = MAX_BATCH_OBSERVATIONS,
    *,
    silent: bool = False,
) -> Iterator[Windows]:
    """Batches of windows with as many streams side by side as there are: the next stretch of each of them.

    Windows have ``length`` observations, the last one of a stream what remains; their offset is their number within
    the stream.
    """
    at = np.zeros(len(streams), np.int64)
    ends = np.array([len(stream) for stream in streams], np.int64)
    most = max(1, max_batch_observations // length)
    while len(unfinished := np.flatnonzero(at < ends)):
        for start in range(0, len(unfinished), most):
            live = unfinished[start : start + most]
            stretch = max(1, min(MAX_STRETCH, max_batch_observations // len(live)) // length) * length
            until = np.minimum(at[live] + stretch, ends[live])
            yield _laid_out([streams[i] for i in live.tolist()], at[live], until, length, silent)
            at[live] = until


def _laid_out(streams: Sequence[RecordedStream], begin: Int64, end: Int64, length: int, silent: bool) -> Windows:
    """Observations ``begin`` to ``end`` of each stream, cut into windows."""
    counts = -(-(end - begin) // length)
    stream = np.repeat(np.arange(len(streams)), counts)
    number = np.arange(len(stream)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = begin[stream] + number * length
    spans = list(zip(streams, begin.tolist(), end.tolist(), strict=True))
    times_ms = np.concatenate([s.times_ms[b:e] for s, b, e in spans])
    lengths = np.minimum(length, end[stream] - first)
    return Windows(
        stream_ids=[name for s, count in zip(streams, counts.tolist(), strict=True) for name in [s.name] * count],
        offsets=first // length,
        record_ms=times_ms[np.cumsum(lengths) - 1],
        lengths=lengths,
        silent=np.full(len(stream), silent),
        control=np.full(len(stream), CONTROL_NONE, np.uint8),
        times_ms=times_ms,
        values=np.concatenate([s.values[b:e] for s, b, e in spans]),
    )
