"""The worker's side of the message formats: which topic, which key, and the bytes of ``pipeline.wire``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from pipeline.profile import Profile
from pipeline.records import Alert, DeadLetter, Partition, Record, Scores, Windows
from pipeline.settings import Limits
from pipeline.sinks.base import Sink
from pipeline.wire import decode_many, encode_alert, encode_dead_letter, encode_scores

logger = logging.getLogger(__name__)

SECONDS_BELOW_MS = 10**11
"""The year 1973 in milliseconds and 5138 in seconds: a clock time below it was meant in seconds."""


class Messages:
    """Decodes the records of every profile and emits to three topics.

    Parameters
    ----------
    profiles, limits
        What input must look like.
    scores_topic, alerts_topic, dead_letter_topic
        Where output goes.
    """

    def __init__(
        self,
        profiles: Mapping[str, Profile],
        limits: Limits,
        scores_topic: str,
        alerts_topic: str,
        dead_letter_topic: str,
    ) -> None:
        self._profiles, self._limits = profiles, limits
        self._scores, self._alerts, self._dead_letters = scores_topic, alerts_topic, dead_letter_topic
        self._doubted: set[str] = set()

    def decode(
        self, profile: str, partition: Partition, records: Sequence[Record]
    ) -> tuple[Windows, Sequence[DeadLetter]]:
        """Windows of the good records, dead letters of the bad ones."""
        windows, letters = decode_many(records, partition, self._profiles[profile], self._limits)
        if len(windows.times_ms) and windows.times_ms.min() < SECONDS_BELOW_MS and profile not in self._doubted:
            self._doubt_times(profile, windows)
        return windows, letters

    def _doubt_times(self, profile: str, windows: Windows) -> None:
        """Say once that event times look like seconds: they are valid, and place all in January 1970."""
        self._doubted.add(profile)
        if self._profiles[profile].clock:
            at = int(windows.times_ms.argmin())
            stream = windows.stream_ids[int(windows.lengths.cumsum().searchsorted(at, side="right"))]
            told = "profile=%s stream=%s: event time %d counts milliseconds; was it meant in seconds? (said once)"
            logger.warning(told, profile, stream, windows.times_ms[at])

    def emit(
        self, sink: Sink, scores: Sequence[Scores], alerts: Sequence[Alert], letters: Sequence[DeadLetter]
    ) -> None:
        """Scores as one record for each partition and batch, alerts keyed by stream, dead letters by their place."""
        for batch in scores:
            key = str(batch.partition).encode()
            for value in encode_scores(batch):
                sink.add(self._scores, key, value)
        for alert in alerts:
            sink.add(self._alerts, alert.stream_id.encode(), encode_alert(alert))
        for letter in letters:
            sink.add(self._dead_letters, str(letter.partition).encode(), encode_dead_letter(letter))
