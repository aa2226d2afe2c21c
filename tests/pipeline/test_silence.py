"""Streams that stop, with time passed in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.open_alerts import OpenAlerts, at_its_worst
from pipeline.records import Alert, Partition
from pipeline.silence import MIN_GAPS, Silence
from pipeline.wire import decode_alert, encode_alert
from tests.alerts import make_alert

PLACE = Partition("sensor-windows", 3)
MINUTE = 60_000
START = 1_700_000_000_000
DAY = 86_400_000


class Story:
    """A monitor's view of some streams."""

    def __init__(self, min_silence_s: float = 60.0, max_streams: int = 100, idle_reset_s: float = 604_800.0) -> None:
        self.now = START
        self.silence = Silence(10, min_silence_s, {"sensor": idle_reset_s}, max_streams, START / 1000)
        self._offset = 0

    @property
    def now_s(self) -> float:
        """The monotonic clock."""
        return self.now / 1000

    def hear(self, stream: str = "s", late_ms: int = 0, span_ms: float = 0.0) -> Alert | None:
        """A record, made ``late_ms`` before it is read."""
        self._offset += 1
        return self.silence.hear("sensor", stream, PLACE, self._offset, self.now - late_ms, span_ms, self.now_s)

    def forget(self, stream: str = "s") -> Alert | None:
        """A goodbye."""
        self._offset += 1
        return self.silence.forget("sensor", stream, PLACE, self._offset, self.now, self.now)

    def regular(self, count: int, gap_ms: int = MINUTE, late_ms: int = 0) -> None:
        """Records at a steady pace; none may be called silent in between."""
        for _ in range(count):
            self.now += gap_ms
            assert self.hear(late_ms=late_ms) is None
            assert self.check() == []

    def restarted(self, said: Alert) -> Story:
        """A monitor that begins now, and reads what was said."""
        after = Story()
        after.now = self.now
        after.silence.adopt(said)
        return after

    def check(self) -> list[Alert]:
        """Look."""
        return list(self.silence.check(self.now_s, self.now))


def test_a_regular_stream_that_stops_opens_one_alert_and_resolves_it_when_it_speaks() -> None:
    """The one fault that leaves no record behind."""
    story = Story()
    story.regular(MIN_GAPS + 1)
    story.now += 9 * MINUTE
    assert story.check() == []
    story.now += 2 * MINUTE
    (opened,) = story.check()
    assert (opened.event, opened.signal, opened.stream_id, opened.severity) == ("opened", "silent", "s", "warning")
    assert opened.onset_ms == START + (MIN_GAPS + 1) * MINUTE
    story.now += 5 * MINUTE
    assert story.check() == []
    resolved = story.hear()
    assert resolved is not None
    assert (resolved.event, resolved.alert_id, resolved.time_ms) == ("resolved", opened.alert_id, story.now)


def test_a_backlog_written_at_once_says_nothing_about_the_rhythm() -> None:
    """Sixty windows of an hour come in a second; the next one is due in an hour, and ten of them make a silence."""
    story = Story()
    for _ in range(60):
        story.now += 10
        story.hear(span_ms=60 * MINUTE)
    story.now += 9 * 60 * MINUTE
    assert story.check() == []
    story.now += 2 * 60 * MINUTE
    assert len(story.check()) == 1


def test_one_window_across_an_outage_does_not_hide_the_silence_that_follows() -> None:
    """A gateway that was away for hours sends one window of two observations, and then its stream dies."""
    story = Story(idle_reset_s=86_400.0)
    for _ in range(40):
        story.now += MINUTE
        assert story.hear(span_ms=MINUTE) is None
    story.now += 180 * MINUTE
    story.hear(span_ms=360 * MINUTE)
    story.now += 6 * 60 * MINUTE
    assert len(story.check()) == 1


def test_its_alert_passes_the_wire() -> None:
    """It has no score; readers of the alerts topic must be able to take it all the same."""
    story = Story()
    story.regular(MIN_GAPS + 1)
    story.now += 30 * MINUTE
    (opened,) = story.check()
    assert decode_alert(encode_alert(opened)).alert_id == opened.alert_id
    assert b'"score":null' in encode_alert(opened)


def test_an_irregular_stream_is_given_more_time() -> None:
    """Bursts with hours between them are no rhythm to be missed."""
    story = Story()
    for _ in range(5):
        story.regular(10, 1000)
        story.now += 3 * 60 * MINUTE
        story.check()
        story.hear()
    story.regular(10, 1000)
    story.now += 4 * 60 * MINUTE
    assert story.check() == []


def test_a_machine_that_rests_at_night_is_missed_once() -> None:
    """An alert each evening would be switched off; one that oversleeps is news."""
    story = Story()
    opened = 0
    for _ in range(5):
        story.regular(14 * 12, 5 * MINUTE)
        for _ in range(10):
            story.now += 60 * MINUTE
            opened += len(story.check())
        story.hear()
    assert opened == 1
    story.regular(14 * 12, 5 * MINUTE)
    story.now += 20 * 60 * MINUTE
    assert len(story.check()) == 1


def test_a_producer_with_a_wrong_clock_is_not_silent() -> None:
    """Silence is measured by our clock; theirs may be an hour behind."""
    story = Story()
    story.regular(3 * MIN_GAPS, late_ms=60 * MINUTE)


def test_unknown_rhythm_is_not_silence() -> None:
    """A stream seen a few times has promised nothing."""
    story = Story()
    story.regular(MIN_GAPS - 1)
    story.now += DAY
    assert story.check() == []


def test_what_was_silent_before_the_monitor_began_is_given_its_time_again() -> None:
    """A restart in the middle of a backlog must not call everybody silent."""
    story = Story()
    for minute in range(MIN_GAPS + 5):
        at = START - DAY + minute * MINUTE
        story.silence.hear("sensor", "s", PLACE, minute, at, 0.0, START / 1000)
    assert story.check() == []
    story.now += 11 * MINUTE
    assert len(story.check()) == 1


def test_a_silence_said_before_a_restart_is_resolved_after_it() -> None:
    """Else it would stay open for ever."""
    story = Story()
    story.regular(MIN_GAPS + 1)
    story.now += 30 * MINUTE
    (opened,) = story.check()
    after = story.restarted(opened)
    assert after.check() == []
    resolved = after.hear()
    assert resolved is not None
    assert resolved.alert_id == opened.alert_id


@pytest.mark.parametrize("place", [PLACE, Partition("sensor-windows", 4)])
def test_records_from_before_a_silence_do_not_end_it_after_a_restart(place: Partition) -> None:
    """The lookback brings them once more; and from them the stream's rhythm is known, so that it is missed again."""
    story = Story()
    story.regular(MIN_GAPS + 1)
    story.now += 30 * MINUTE
    (opened,) = story.check()
    after = Story()
    after.silence = Silence(10, 60.0, {"sensor": 604_800.0}, 100, story.now_s)
    after.now = story.now
    after.silence.adopt(opened)
    for number in range(1, MIN_GAPS + 2):
        at = START + number * MINUTE
        assert after.silence.hear("sensor", "s", PLACE, number, at, 0.0, after.now_s) is None
    assert after.check() == []
    assert list(after.silence.counts()) == [("sensor", 1, 1)]
    after.now += 5 * MINUTE
    resolved = after.silence.hear("sensor", "s", place, MIN_GAPS + 2, after.now, 0.0, after.now_s)
    assert resolved is not None
    assert (resolved.event, resolved.alert_id) == ("resolved", opened.alert_id)
    after.now += DAY
    (again,) = after.check()
    assert again.alert_id != opened.alert_id


def test_a_silence_of_a_topic_made_anew_ends_by_time() -> None:
    """Its offsets begin at 0 once more, below the alert's."""
    story = Story()
    story.regular(MIN_GAPS + 1)
    story.now += 30 * MINUTE
    story.check()
    assert story.silence.hear("sensor", "s", PLACE, 0, story.now, 0.0, story.now_s) is not None


def test_a_goodbye_from_before_a_silence_does_not_end_it() -> None:
    """After a restart the lookback brings it once more."""
    story = Story()
    story.regular(3)
    at, offset = story.now, 3
    story.forget()
    story.regular(MIN_GAPS + 2)
    story.now += 30 * MINUTE
    (opened,) = story.check()
    after = story.restarted(opened)
    assert after.silence.forget("sensor", "s", PLACE, offset + 1, at, after.now) is None
    assert list(after.silence.counts()) == [("sensor", 1, 1)]


def test_a_stream_that_is_gone_ends() -> None:
    """Memory is bounded by the streams that are alive, and a sensor that was taken away does not stay red."""
    story = Story(idle_reset_s=3600)
    story.regular(MIN_GAPS + 1)
    story.now += 30 * MINUTE
    (opened,) = story.check()
    story.now += 40 * MINUTE
    (resolved,) = story.check()
    assert (resolved.event, resolved.alert_id) == ("resolved", opened.alert_id)
    assert list(story.silence.counts()) == [("sensor", 0, 0)]


def test_a_forgotten_stream_is_not_missed() -> None:
    """`tidewatch streams forget` is a goodbye."""
    story = Story()
    story.regular(MIN_GAPS + 1)
    story.now += 30 * MINUTE
    story.check()
    resolved = story.forget()
    assert resolved is not None
    assert resolved.event == "resolved"
    assert list(story.silence.counts()) == [("sensor", 0, 0)]


def test_streams_beyond_the_limit_are_counted_not_kept() -> None:
    """Stream ids come from outside; a producer that invents them must not fill the memory."""
    story = Story(max_streams=2)
    for name in "abcd":
        story.hear(name)
    assert list(story.silence.counts()) == [("sensor", 2, 0)]
    assert story.silence.unwatched == 2


def test_a_silence_that_is_over_is_not_taken_up_again_when_its_beginning_is_read_back() -> None:
    """The monitor reads what it said itself, maybe after the stream has spoken; its end would be told twice."""
    story = Story()
    story.regular(30)
    story.now += 60 * MINUTE
    [begun] = story.check()
    story.now += MINUTE
    ended = story.hear()
    assert ended is not None
    story.silence.adopt(begun)
    story.now += MINUTE
    assert story.hear() is None


def test_a_silence_said_before_is_ended_also_beyond_the_limit_of_streams() -> None:
    """Nobody else would ever end it."""
    before = Story()
    before.regular(30)
    before.now += 60 * MINUTE
    [begun] = before.check()
    story = Story(max_streams=0)
    story.silence.adopt(begun)
    story.now = before.now + MINUTE
    story._offset = 100
    ended = story.hear()
    assert ended is not None
    assert ended.alert_id == begun.alert_id


@pytest.mark.parametrize("repeats", [1, 3])
def test_open_alerts_are_those_not_resolved_however_often_they_are_told(repeats: int) -> None:
    """The alerts topic is read again at every start."""
    events = [
        make_alert(),
        make_alert(alert_id="b", stream_id="pump-2"),
        make_alert(event="updated", severity="critical", features=(), offset=2),
        make_alert(alert_id="b", event="resolved", offset=4),
    ]
    alerts = OpenAlerts()
    news = [alerts.add(alert) for _ in range(repeats) for alert in events]
    assert sum(news) == 4
    (still,) = alerts
    assert still == replace(make_alert(), event="updated", severity="critical", offset=2)


def test_open_alerts_are_bounded() -> None:
    """A storm of alerts must not take the process down."""
    alerts = OpenAlerts(max_open=10)
    for number in range(100):
        alerts.add(make_alert(alert_id=str(number)))
    assert len(alerts) == 10


def test_an_alert_is_never_told_lower_than_it_was() -> None:
    """What resolves the alert of a row that was lost knows no figures, and must not wipe those told before."""
    worst = make_alert(event="updated", severity="critical", score=9.0, peak_score=9.0, offset=2)
    end = make_alert(event="resolved", severity="none", score=0.0, peak_score=0.0, features=(), offset=3)
    assert at_its_worst(worst, end) == replace(worst, event="resolved", offset=3)
    later = make_alert(event="resolved", severity="critical", score=1.0, peak_score=9.5, offset=3)
    assert at_its_worst(worst, later) == replace(worst, event="resolved", offset=3, peak_score=9.5)
