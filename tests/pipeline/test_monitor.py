"""The monitor over topics in memory, with a clock that a test moves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from pipeline.monitor import Followed, Monitor
from pipeline.monitor_metrics import MonitorMetrics
from pipeline.records import Alert, Partition, Record, StoredRecord
from pipeline.settings import Settings
from pipeline.silence import MIN_GAPS, Silence
from pipeline.topics.base import Instant, Offset, Place
from pipeline.wire import decode_alert, encode_alert, encode_control, encode_packed
from pipeline.wiring import build_messages
from tests.alerts import make_alert

START_MS, MINUTE = 1_700_000_000_000, 60_000
HOUR = 60 * MINUTE


class Clock:
    """Time that passes only where a test lets it; ``set_ms`` is by how much the wall clock was set since."""

    def __init__(self) -> None:
        self.now_ms, self.set_ms = START_MS, 0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now_ms / 1000

    def wall_ms(self) -> int:
        """Milliseconds since the epoch."""
        return self.now_ms + self.set_ms


class Log:
    """A topic of one partition."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.place, self._clock = Partition(name, 0), clock
        self.records: list[Record] = []

    def write(self, key: str, value: bytes) -> None:
        """Write a record of now."""
        self.records.append(StoredRecord(len(self.records), self._clock.now_ms, key.encode(), value))


class Reader:
    """Reads a log."""

    def __init__(self, log: Log) -> None:
        self._log, self._place, self._next = log, log.place, 0

    def at(self, place: Place) -> dict[Partition, int]:
        """The first record that is late enough."""
        assert not isinstance(place, Offset)
        return {self._place: sum(record.timestamp < place.time_ms for record in self._log.records)}

    def end(self) -> dict[Partition, int]:
        """How many there are."""
        return {self._place: len(self._log.records)}

    def has_reached(self, ends: Mapping[Partition, int]) -> bool:
        """Whether so many were read."""
        return self._next >= ends[self._place]

    def read(
        self, begin: Mapping[Partition, int], end: Mapping[Partition, int] | None = None
    ) -> Iterator[list[tuple[Partition, Record]]]:
        """All there are."""
        assert end is None
        self._next = begin[self._place]
        while True:
            found, self._next = self._log.records[self._next :], len(self._log.records)
            yield [(self._place, record) for record in found]


class Site:
    """One stream, and monitors of it, one after another."""

    def __init__(self) -> None:
        self.clock, self.settings = Clock(), Settings()
        self.inputs, self.alerts = Log("sensor-windows", self.clock), Log("alerts", self.clock)
        self.monitor = self.started()

    def started(self) -> Monitor:
        """A monitor that knows nothing yet."""
        self.metrics = MonitorMetrics({"sensor": []}, 5, CollectorRegistry())
        now_ms = self.clock.now_ms
        return Monitor(
            [Followed(Reader(self.inputs), Instant(now_ms - HOUR), "sensor")],
            Followed(Reader(self.alerts), Instant(now_ms - 168 * HOUR)),
            self.settings.profiles,
            build_messages(self.settings),
            Silence(10, 60.0, {"sensor": 604_800.0}, 100, self.clock.monotonic()),
            self.metrics,
            lambda alert: self.alerts.write(alert.stream_id, encode_alert(alert)),
            self.clock,
        )

    def pass_time(self, minutes: int, speaks: bool) -> None:
        """Look once a minute."""
        for _ in range(minutes):
            self.clock.now_ms += MINUTE
            if speaks:
                window = encode_packed("pump-1", np.array([self.clock.now_ms]), np.ones((1, 1), np.float32))
                self.inputs.write("pump-1", window)
            self.monitor.step()

    def said(self) -> list[Alert]:
        """What the alerts topic holds."""
        return [decode_alert(record.value or b"") for record in self.alerts.records]

    def silent(self) -> float | None:
        """What Prometheus sees."""
        return self.metrics.registry.get_sample_value("anomaly_silent_streams", {"profile": "sensor"})


def test_a_silence_outlives_a_restart_and_the_next_one_is_said_too() -> None:
    """Else it would end by records from before it, and never be said again, as its id stands for a resolved alert."""
    site = Site()
    site.pass_time(MIN_GAPS + 5, speaks=True)
    site.pass_time(20, speaks=False)
    assert [alert.event for alert in site.said()] == ["opened"]
    site.monitor = site.started()
    site.pass_time(20, speaks=False)
    assert [alert.event for alert in site.said()] == ["opened"]
    assert site.silent() == 1
    site.pass_time(5, speaks=True)
    site.pass_time(100, speaks=False)
    first, ended, second = site.said()
    assert (first.event, ended.event, second.event) == ("opened", "resolved", "opened")
    assert first.alert_id == ended.alert_id != second.alert_id


@pytest.mark.parametrize("set_ms", [HOUR, -HOUR])
def test_silence_is_as_long_as_it_lasts_whatever_the_wall_clock_says(set_ms: int) -> None:
    """Set forward it would call every stream silent at once, set back it would say nothing for as long."""
    site = Site()
    site.pass_time(MIN_GAPS + 5, speaks=True)
    site.clock.set_ms = set_ms
    site.pass_time(9, speaks=False)
    assert site.said() == []
    site.pass_time(3, speaks=False)
    (opened,) = site.said()
    assert opened.event == "opened"
    assert opened.time_ms == site.clock.wall_ms() - MINUTE


@pytest.mark.parametrize("event", ["opened", "resolved"])
def test_only_silences_that_were_not_ended_are_taken_over(event: str) -> None:
    """A week of alerts is read at a start; a stream would be shown as silent for as long as it is remembered."""
    site = Site()
    for each in dict.fromkeys(("opened", event)):
        site.alerts.write("pump-1", encode_alert(make_alert(signal="silent", event=each)))
    site.monitor = site.started()
    site.pass_time(2, speaks=False)
    assert site.silent() == (event == "opened")


def test_after_a_backlog_the_next_window_is_awaited_for_as_long_as_windows_are() -> None:
    """Thirty windows of an hour are written in three seconds, a goodbye of another stream between them."""
    site = Site()
    for number in range(30):
        site.clock.now_ms += 100
        times_ms = site.clock.now_ms - HOUR * (30 - number) + MINUTE * np.arange(60)
        site.inputs.write("pump-1", encode_packed("pump-1", times_ms, np.ones((60, 1), np.float32)))
        site.inputs.write("pump-2", encode_control("pump-2", "forget"))
    site.pass_time(9 * 60, speaks=False)
    assert site.said() == []
    site.pass_time(2 * 60, speaks=False)
    assert [alert.event for alert in site.said()] == ["opened"]
