"""The monitor: reads the input topics and the alerts topic beside the workers, and says what the fold cannot.

A stream that has stopped leaves no record behind, so its silence is found by a clock. Outside the exactly-once
promise: after a crash the same silence may be said twice, under the same alert id.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from pipeline.clock import Clock
from pipeline.errors import DecodeError
from pipeline.messages import Messages
from pipeline.monitor_metrics import MonitorMetrics
from pipeline.open_alerts import OpenAlerts
from pipeline.profile import Profile
from pipeline.records import CONTROL_FORGET, Alert, Partition, Record, Windows
from pipeline.silence import SIGNAL, Silence
from pipeline.topics.base import Follower, Instant, by_partition
from pipeline.wire import decode_alert

logger = logging.getLogger(__name__)

CHECK_S = 2.0


class Followed:
    """A topic being read from a time on; ``profile`` where it is an input."""

    def __init__(self, reader: Follower, begin: Instant, profile: str = "") -> None:
        self.profile = profile
        self._reader = reader
        self._records = reader.read(reader.at(begin))
        self._ends = reader.end()

    def some(self) -> list[tuple[Partition, Record]]:
        """What comes next; nothing after about a fifth of a second."""
        return next(self._records)

    def is_caught_up(self) -> bool:
        """Whether all is read that was there at the call before; asks the brokers, as an old answer proves nothing."""
        before, self._ends = self._ends, self._reader.end()
        return self._reader.has_reached(before)


class Monitor:
    """One step reads a little of every topic; every other second or so it looks for silence.

    Parameters
    ----------
    inputs, alerts
        What is read.
    profiles
        By name: features and groups.
    send
        Writes an alert to the alerts topic, and returns when it is there.
    """

    def __init__(
        self,
        inputs: Sequence[Followed],
        alerts: Followed,
        profiles: Mapping[str, Profile],
        messages: Messages,
        silence: Silence,
        metrics: MonitorMetrics,
        send: Callable[[Alert], None],
        clock: Clock,
    ) -> None:
        self._inputs, self._alerts, self._profiles = inputs, alerts, profiles
        self._messages, self._silence, self._metrics, self._send = messages, silence, metrics, send
        self._clock = clock
        self._start_ms = clock.wall_ms()
        self._check_due_s = clock.monotonic()
        self.open = OpenAlerts()
        self._observed: dict[tuple[str, str], dict[str, float]] = {}

    def step(self) -> None:
        """Read a little of each topic; look for silence when it is time.

        Raises
        ------
        BrokerAway
            Kafka does not answer: make a new monitor when it does. What was said already stays said.
        """
        self._take_alerts(self._alerts.some())
        for each in self._inputs:
            self._take_windows(each.profile, each.some())
        if self._clock.monotonic() >= self._check_due_s:
            self._check_due_s = self._clock.monotonic() + CHECK_S
            self._check()

    def _take_alerts(self, records: list[tuple[Partition, Record]]) -> None:
        for _, record in records:
            try:
                alert = decode_alert(record.value or b"")
            except DecodeError as error:
                logger.warning("skipped a record of the alerts topic: %s", error)
                continue
            if not self.open.add(alert) or alert.profile not in self._profiles:
                continue
            if record.timestamp >= self._start_ms:
                self._metrics.count(alert)
            if alert.signal == SIGNAL and self.open.get(alert.alert_id) is not None:
                self._silence.adopt(alert)
            elif alert.signal == SIGNAL:
                self._silence.release(alert)

    def _take_windows(self, profile: str, records: list[tuple[Partition, Record]]) -> None:
        shown = {alert.stream_id for alert in self.open if alert.profile == profile}
        for partition, mine in by_partition(records).items():
            windows, _ = self._messages.decode(profile, partition, mine)
            self._hear(profile, partition, windows, shown)

    def _hear(self, profile: str, partition: Partition, windows: Windows, shown: set[str]) -> None:
        now_s, now_ms = self._clock.monotonic(), self._clock.wall_ms()
        ends = windows.lengths.cumsum().tolist()
        spans_ms = _spans_ms(windows, self._profiles[profile].interval_s)
        for number, stream_id in enumerate(windows.stream_ids):
            place = (partition, int(windows.offsets[number]), int(windows.record_ms[number]))
            if windows.control[number] == CONTROL_FORGET:
                event = self._silence.forget(profile, stream_id, *place, now_ms)
            else:
                event = self._silence.hear(profile, stream_id, *place, spans_ms[number], now_s)
            if event is not None:
                self._say(event)
            if stream_id in shown and windows.lengths[number]:
                last = windows.values[ends[number] - 1].tolist()
                self._observed[profile, stream_id] = dict(zip(self._profiles[profile].features, last, strict=True))

    def _check(self) -> None:
        states = [each.is_caught_up() for each in (self._alerts, *self._inputs)]
        is_caught_up = all(states)
        if is_caught_up:
            for event in self._silence.check(self._clock.monotonic(), self._clock.wall_ms()):
                self._say(event)
        shown = {(alert.profile, alert.stream_id) for alert in self.open}
        self._observed = {at: values for at, values in self._observed.items() if at in shown}
        self._metrics.show_alerts(list(self.open), self._observed)
        self._metrics.show_silence(self._silence.counts())
        self._metrics.show_caught_up(is_caught_up)

    def _say(self, event: Alert) -> None:
        event = replace(event, group=self._profiles[event.profile].group_of(event.stream_id))
        logger.info("%s stream=%s profile=%s alert=%s", event.event, event.stream_id, event.profile, event.alert_id)
        self._send(event)


def _spans_ms(windows: Windows, interval_s: float | None) -> list[float]:
    """Event time that each window stands for: its observations, each with the interval behind it; 0 where not known."""
    ends, steps = windows.lengths.cumsum(), np.maximum(windows.lengths - 1, 0)
    edges = np.append(windows.times_ms, 0)  # a window without observations may stand at the end
    covered = np.where(steps > 0, edges[ends - 1] - edges[ends - windows.lengths], 0).astype(np.float64)
    last = covered / np.maximum(steps, 1) if interval_s is None else np.where(windows.lengths > 0, 1000 * interval_s, 0)
    return list((covered + last).tolist())
