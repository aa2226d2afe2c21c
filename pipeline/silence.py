"""Streams that used to be regular and have stopped. Pure: time is passed in.

Silence depends on a clock and on no record, so it cannot be part of the fold: it is found by a monitor beside it, is
outside the exactly-once promise, and may be said twice, under the same alert id.

A stream counts as silent when its last record is longer ago than ``max(min_silence_s, gaps * mean gap, gaps * mean span
of its windows, 1.5 * longest pause)``, once ``MIN_GAPS`` gaps are known. The span stands for the gaps where a backlog
is written at once: when that is over, windows of an hour come hourly. The means follow about the last 50 gaps and
windows. The longest pause fades by half every week, so a machine that rests at night is missed on its first evening,
and from then on only when it oversleeps. Irregular streams have long pauses beside their mean gap, and by that a
patience of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from pipeline.records import EVENTS, OPENED, RESOLVED, Alert, Partition

SIGNAL = "silent"
MIN_GAPS = 20
MEAN_OF = 50
PAUSE_MARGIN = 1.5
PAUSE_HALF_LIFE_MS = 7 * 86_400_000


@dataclass(slots=True)
class _Stream:
    """What is known of one stream: when it was last heard (monotonic), its own times, and its rhythm, in ms."""

    profile: str
    partition: Partition
    offset: int
    heard_s: float
    last_ms: int
    gaps: int = 0
    mean_ms: float = 0.0
    pause_ms: float = 0.0
    span_ms: float = 0.0
    windows: int = 0
    alert: Alert | None = None
    ended: str = ""  # id of the last alert that this process ended: its beginning may be read back after its end

    def hear(self, partition: Partition, offset: int, record_ms: int, span_ms: float, now_s: float) -> None:
        if not self.gaps:  # an adopted stream's last record is known before the lookback brings those that led to it
            self.last_ms = min(self.last_ms, record_ms)
        gap = record_ms - self.last_ms
        if gap > 0:  # several records of one moment are one sign of life
            faded = self.pause_ms * 0.5 ** (gap / PAUSE_HALF_LIFE_MS)
            self.pause_ms = max(float(gap), faded)
            self.gaps += 1
            usual = min(float(gap), 10 * self.mean_ms) if self.gaps > 1 else float(gap)
            self.mean_ms += (usual - self.mean_ms) / min(self.gaps, MEAN_OF)
            self.last_ms = record_ms
        self.windows += 1
        usual = min(span_ms, 10 * self.span_ms) if self.windows > 1 else span_ms
        self.span_ms += (usual - self.span_ms) / min(self.windows, MEAN_OF)
        self.partition, self.offset, self.heard_s = partition, offset, now_s

    def is_ended_by(self, partition: Partition, offset: int, record_ms: int) -> bool:
        """Whether a record came after the silence began; a lookback brings those from before it once more.

        By its offset where the silence began in the same partition, and by its time where the stream has moved to
        another one, or the topic was made anew.
        """
        if self.alert is None:
            return False
        is_further = partition == self.alert.partition and offset > self.alert.offset
        return is_further or record_ms > self.alert.onset_ms


class Silence:
    """Finds streams that have gone silent, and those that speak again.

    Parameters
    ----------
    after_gaps, min_silence_s
        See the module.
    idle_reset_s
        Per profile: a stream silent for longer has ended, and is forgotten.
    max_streams
        Further streams are not watched; :attr:`unwatched` counts their windows.
    now_s
        Monotonic clock at the start: silence from before it is not held against anyone.
    """

    def __init__(
        self,
        after_gaps: float,
        min_silence_s: float,
        idle_reset_s: Mapping[str, float],
        max_streams: int,
        now_s: float,
    ) -> None:
        self._after_gaps, self._min_ms = after_gaps, min_silence_s * 1000
        self._idle_ms = {profile: seconds * 1000 for profile, seconds in idle_reset_s.items()}
        self._max_streams, self._start_s = max_streams, now_s
        self._streams: dict[tuple[str, str], _Stream] = {}
        self.unwatched = 0

    def hear(
        self,
        profile: str,
        stream_id: str,
        partition: Partition,
        offset: int,
        record_ms: int,
        span_ms: float,
        now_s: float,
    ) -> Alert | None:
        """A window came; returns the event that ends a silence.

        Parameters
        ----------
        record_ms
            Its Kafka timestamp, by which gaps are measured.
        span_ms
            Event time that the window stands for, its last interval included; one beyond ``idle_reset_s`` counts as 0.
        now_s
            When we read it (monotonic), by which silence is measured: a producer's clock may be wrong, ours may be set.
        """
        stream = self._streams.get((profile, stream_id))
        if stream is None:
            if len(self._streams) >= self._max_streams:
                self.unwatched += 1
                return None
            self._streams[profile, stream_id] = _Stream(profile, partition, offset, now_s, record_ms)
            return None
        believed_ms = span_ms if span_ms <= self._idle_ms[profile] else 0.0
        stream.hear(partition, offset, record_ms, believed_ms, now_s)
        return _end(stream, record_ms) if stream.is_ended_by(partition, offset, record_ms) else None

    def forget(
        self, profile: str, stream_id: str, partition: Partition, offset: int, record_ms: int, now_ms: int
    ) -> Alert | None:
        """The stream is no more; returns the event that ends a silence. One that began later is let be."""
        stream = self._streams.get((profile, stream_id))
        if stream is None or (stream.alert and not stream.is_ended_by(partition, offset, record_ms)):
            return None
        del self._streams[profile, stream_id]
        return _end(stream, now_ms)

    def adopt(self, alert: Alert) -> None:
        """Take over a silence that was said before this process began; the stream's records may be yet to come."""
        at = (alert.profile, alert.stream_id)
        if at not in self._streams:  # also beyond max_streams: nobody else would ever end it
            self._streams[at] = _Stream(alert.profile, alert.partition, alert.offset, self._start_s, alert.onset_ms)
        if self._streams[at].ended != alert.alert_id:
            self._streams[at].alert = alert

    def release(self, alert: Alert) -> None:
        """Its end was said too: the next silence of this stream is news again."""
        stream = self._streams.get((alert.profile, alert.stream_id))
        if stream is not None and stream.alert is not None and stream.alert.alert_id == alert.alert_id:
            stream.alert = None

    def check(self, now_s: float, now_ms: int) -> Iterator[Alert]:
        """Silences that begin now, and those that end because the stream has been gone for too long.

        Parameters
        ----------
        now_s
            Monotonic, by which silence is measured.
        now_ms
            Wall clock, which the events show.
        """
        ended = []
        for (profile, stream_id), stream in self._streams.items():
            silent_ms = 1000 * (now_s - stream.heard_s)
            if stream.alert is None and stream.gaps >= MIN_GAPS and silent_ms > self._patience_ms(stream):
                stream.alert = _begin(profile, stream_id, stream, now_ms)
                yield stream.alert
            if silent_ms > self._idle_ms[profile]:
                ended.append((profile, stream_id))
        for at in ended:
            event = _end(self._streams.pop(at), now_ms)
            if event is not None:
                yield event

    def counts(self) -> Iterator[tuple[str, int, int]]:
        """Of each profile: how many streams are watched, and how many of them are silent."""
        for profile in self._idle_ms:
            mine = [stream for (name, _), stream in self._streams.items() if name == profile]
            yield profile, len(mine), sum(stream.alert is not None for stream in mine)

    def _patience_ms(self, stream: _Stream) -> float:
        usual_ms = max(stream.mean_ms, stream.span_ms)
        return max(self._min_ms, self._after_gaps * usual_ms, PAUSE_MARGIN * stream.pause_ms)


def _begin(profile: str, stream_id: str, stream: _Stream, now_ms: int) -> Alert:
    place = f"{SIGNAL}:{stream.partition.topic}:{stream.partition.partition}:{stream.offset}:{stream_id}"
    return Alert(
        alert_id=hashlib.sha256(place.encode()).hexdigest()[:20],
        event=EVENTS[OPENED],
        profile=profile,
        stream_id=stream_id,
        group=None,
        partition=stream.partition,
        offset=stream.offset,
        index=0,
        time_ms=now_ms,
        onset_offset=stream.offset,
        onset_ms=stream.last_ms,
        score=float("nan"),
        peak_score=float("nan"),
        threshold=float("nan"),
        severity="warning",
        verdict="missing",
        signal=SIGNAL,
        direction="none",
        features=(),
        imputed_share=1.0,
        model_version="",
    )


def _end(stream: _Stream, time_ms: int) -> Alert | None:
    if stream.alert is None:
        return None
    alert, stream.alert = stream.alert, None
    stream.ended = alert.alert_id
    return replace(alert, event=EVENTS[RESOLVED], time_ms=time_ms, offset=stream.offset)
