"""What is told, to whom, how often; against a real HTTP server, with a clock that a test moves."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from pipeline.connections import Notify
from pipeline.epoch import iso_time
from pipeline.errors import ConfigurationError
from pipeline.notify.alertmanager import encode
from pipeline.notify.choice import Choice
from pipeline.notify.http import Receiver
from pipeline.notify.metrics import NotifyMetrics
from pipeline.notify.notifier import Notifier
from pipeline.notify_command import build_receiver
from pipeline.records import Alert, Partition, StoredRecord
from pipeline.wire import encode_alert
from tests.alerts import make_alert
from tests.builders import FakeClock
from tests.hook import Hook

PLACE = Partition("alerts", 0)


class Rig:
    """A notifier to a receiver, and what it committed."""

    def __init__(self, url: str, **settings: Any) -> None:
        notify = Notify(url=url, **settings)
        self.clock, self.committed, self.is_ending = FakeClock(0.0, tick_s=0.0), dict[Partition, int](), False
        self.commit_s, self.beats = 0.0, 0
        self.registry = CollectorRegistry()
        self.notifier = Notifier(
            *(notify, build_receiver(notify), Choice(notify.events, notify.min_severity), self),
            *(NotifyMetrics(self.registry), self.clock, self.beat, self.clock.advance, lambda: self.is_ending),
        )

    def commit(self, partition: Partition, next_offset: int) -> None:
        """Take a note, which takes ``commit_s``."""
        self.committed[partition] = next_offset
        self.clock.advance(self.commit_s)

    def beat(self) -> None:
        """Count a sign of life."""
        self.beats += 1

    def take(self, *alerts: Alert) -> None:
        """Give these to the notifier, from offset 0."""
        self.notifier.take([(PLACE, StoredRecord(n, 0, None, encode_alert(a))) for n, a in enumerate(alerts)])

    def outcome(self, name: str) -> float | None:
        """How many events ended so."""
        return self.registry.get_sample_value("anomaly_notifications_total", {"outcome": name})


class EndingRig(Rig):
    """One whose process is asked to end while it commits."""

    def commit(self, partition: Partition, next_offset: int) -> None:
        """Take a note."""
        super().commit(partition, next_offset)
        self.is_ending = True


@pytest.mark.parametrize(
    ("events", "least", "told"),
    [
        (("opened", "resolved"), "warning", ["opened warning", "updated critical", "resolved critical"]),
        (("opened", "updated", "resolved"), "warning", ["opened warning", "updated critical", "resolved critical"]),
        (("opened", "resolved"), "critical", ["updated critical", "resolved critical"]),
        (("resolved",), "warning", ["resolved critical"]),
    ],
)
def test_an_alert_is_told_once_it_is_bad_enough_and_then_to_its_end(
    events: tuple[str, ...], least: str, told: list[str]
) -> None:
    """Whoever is told must hear that a warning has become critical, and that it is over, whatever they asked for."""
    choice = Choice(events, least)
    life = [
        make_alert(),
        make_alert(event="updated", severity="critical", offset=2),
        make_alert(event="resolved", severity="critical", offset=3),
    ]
    assert [f"{alert.event} {alert.severity}" for alert in life + life if choice.wants(alert)] == told


def test_a_repeated_event_is_told_once() -> None:
    """The alerts topic may hold a silence twice; people should not."""
    with Hook() as hook:
        rig = Rig(hook.url)
        rig.take(make_alert(), make_alert(), make_alert(event="resolved", offset=9), make_alert(event="resolved"))
        assert [json.loads(post.body)["event"] for post in hook.posts] == ["opened", "resolved"]
    assert rig.committed == {PLACE: 4}


def test_an_event_is_tried_until_it_is_taken() -> None:
    """Receivers restart, and ask for patience."""
    with Hook(503, 500, 429, 200) as hook:
        rig = Rig(hook.url)
        rig.take(make_alert())
        assert [post.status for post in hook.posts] == [503, 500, 429, 200]
        assert len({post.headers["Idempotency-Key"] for post in hook.posts}) == 1
    assert rig.clock.now_s == 0.5 + 1 + 2
    assert rig.outcome("delivered") == 1


def test_after_the_deadline_an_event_is_given_up_and_the_next_has_its_turn() -> None:
    """One receiver that is gone must not hold up tomorrow's alerts; that it was given up is counted."""
    with Hook(*[503] * 8) as hook:
        rig = Rig(hook.url, deadline_s=60)
        rig.take(make_alert(), make_alert(alert_id="b"))
        assert hook.posts[-1].status == 200
    assert rig.clock.now_s == 60
    assert (rig.outcome("given_up"), rig.outcome("delivered")) == (1, 1)
    assert rig.committed == {PLACE: 2}


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_a_refusal_is_not_repeated(status: int) -> None:
    """A wrong address stays wrong; a redirect would carry the token somewhere else."""
    with Hook(status) as hook:
        rig = Rig(hook.url)
        rig.take(make_alert())
        assert len(hook.posts) == 1
    assert rig.outcome("refused") == 1


def test_an_end_while_trying_commits_nothing() -> None:
    """What is in hand at the end is told again by the next process."""
    with Hook(503) as hook:
        rig = Rig(hook.url)
        rig.is_ending = True
        rig.take(make_alert())
        assert len(hook.posts) == 1
    assert rig.committed == {}


def test_an_end_between_two_events_leaves_the_next_one_to_the_next_process() -> None:
    """A backlog of thousands takes minutes, and who asked for the end does not wait for so long."""
    with Hook() as hook:
        rig = EndingRig(hook.url)
        rig.take(make_alert(), make_alert(alert_id="b"))
        assert [json.loads(post.body)["alert_id"] for post in hook.posts] == ["a1"]
    assert rig.committed == {PLACE: 1}


def test_every_event_and_every_pause_is_a_sign_of_life() -> None:
    """A notifier that works through a backlog must not be restarted for a stuck one."""
    with Hook(503) as hook:
        rig = Rig(hook.url)
        rig.take(make_alert(), make_alert(alert_id="b"), make_alert(alert_id="c"))
    assert rig.beats == 3 + 1


def test_nobody_listening_is_tried_again() -> None:
    """A refused connection is a receiver that restarts."""
    with Hook() as hook:
        url = hook.url
    rig = Rig(url, deadline_s=3)
    rig.take(make_alert())
    assert rig.outcome("given_up") == 1


def test_the_token_is_sent_and_never_shown() -> None:
    """The address in the log must not let its reader post."""
    with Hook() as hook:
        rig = Rig(hook.url, token="t0p")
        rig.take(make_alert())
        (post,) = hook.posts
    assert post.headers["Authorization"] == "Bearer t0p"
    assert post.path == "/hook?token=s3cret"
    assert "s3cret" not in Receiver(hook.url, {}, 1).name
    assert "s3cret" not in repr(Notify(url=hook.url))


@pytest.mark.parametrize(
    ("path", "token"),
    [
        ("/services/s3cret x", "t"),
        ("/services/s3cret\x01", "t"),
        ("/services/s3cret\u00e9", "t"),
        ("/", "s3cret\n"),
        ("/", "s3cret\u20ac"),
    ],
)
def test_what_cannot_be_sent_is_refused_by_the_name_of_the_error_alone(path: str, token: str) -> None:
    """http.client's errors repeat the URL or the header; the reason is logged, an exception is a traceback."""
    with Hook() as hook:
        receiver = Receiver(hook.url.partition("/hook")[0] + path, {"Authorization": f"Bearer {token}"}, 5)
        answer = receiver.post(b"{}", {})
        assert hook.posts == []
    assert answer.result == "refused"
    assert "s3cret" not in answer.reason
    assert answer.reason.startswith(("InvalidURL", "ValueError", "UnicodeEncodeError"))


def test_a_receiver_may_be_named_by_an_ipv6_address() -> None:
    """http.client takes the last group of a bare address for a port, or ends the notifier with InvalidURL."""
    answer = Receiver("http://[::ffff:ffff]/hook", {}, 0.2).post(b"{}", {})
    assert "InvalidURL" not in answer.reason


def test_nobody_to_tell_is_said() -> None:
    """A notifier without an address would be silent for ever."""
    with pytest.raises(ConfigurationError, match=r"notify\.url"):
        build_receiver(Notify())


def test_alertmanager_hears_of_open_alerts_again_and_again() -> None:
    """It takes what is not repeated for resolved."""
    with Hook() as hook:
        rig = Rig(hook.url.partition("/hook")[0], kind="alertmanager", resend_s=60)
        rig.take(make_alert(), make_alert(alert_id="b"), make_alert(alert_id="b", event="resolved", offset=7))
        rig.notifier.resend()
        rig.notifier.resend()
        rig.clock.advance(61)
        rig.notifier.resend()
        posts = [json.loads(post.body) for post in hook.posts]
        assert {post.path for post in hook.posts} == {"/api/v2/alerts"}
    assert [[entry["labels"]["alert_id"] for entry in body] for body in posts] == [["a1"], ["b"], ["b"], ["a1"], ["a1"]]
    assert posts[4][0]["endsAt"] > posts[3][0]["endsAt"] > posts[3][0]["startsAt"]


def test_open_alerts_outlive_a_backlog() -> None:
    """Alertmanager takes them for resolved after four minutes, however many others are waiting to be told."""
    with Hook() as hook:
        rig = Rig(hook.url.partition("/hook")[0], kind="alertmanager", resend_s=60)
        rig.commit_s = 1.0
        rig.take(*(make_alert(alert_id=str(number)) for number in range(300)))
        entries = [entry for post in hook.posts for entry in json.loads(post.body)]
    ends = {entry["labels"]["alert_id"]: entry["endsAt"] for entry in entries}
    assert len(ends) == 300
    assert min(ends.values()) > iso_time(rig.clock.wall_ms())


def test_alertmanager_knows_an_alert_by_labels_that_stay_the_same() -> None:
    """To Alertmanager other labels are another alert, and the first would never be resolved."""
    life = [
        make_alert(group="hall 1"),
        make_alert(group="hall 1", event="updated", severity="critical", signal="jump", score=9.0),
        make_alert(group="hall 1", event="resolved", features=()),
    ]
    entries = [json.loads(encode([alert], 1_700_000_200_000, 240_000))[0] for alert in life]
    assert entries[0]["labels"] == entries[1]["labels"] == entries[2]["labels"]
    assert entries[2]["endsAt"] == "2023-11-14T22:16:40.000Z"
    assert "value is 9, expected 5" in entries[0]["annotations"]["summary"]
