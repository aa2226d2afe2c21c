"""``tidewatch notify`` as a process, against a real Kafka and a real HTTP server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import BrokerAway
from pipeline.records import Alert, Partition
from pipeline.servers import create_topics
from pipeline.topics.kafka import Cluster
from pipeline.wire import encode_alert
from tests.alerts import make_alert
from tests.hook import Hook, Post
from tests.real_kafka import add_partitions, forget, produce, unique, until

pytestmark = pytest.mark.integration


class Rig:
    """An alerts topic, and notifiers of one group."""

    def __init__(self, bootstrap: str, folder: Path) -> None:
        self.bootstrap, self.folder = bootstrap, folder
        self.topic, self.group, self.said = unique("alerts"), unique("g"), ""
        create_topics(bootstrap, {self.topic: 1})

    def write(self, *alerts: Alert) -> None:
        """Write events to the topic."""
        with Cluster(self.bootstrap).feeder() as feeder:
            for alert in alerts:
                feeder.send(self.topic, alert.stream_id.encode(), encode_alert(alert))
            feeder.flush()

    def forget(self, before: int) -> None:
        """Let retention take what lies before an offset."""
        forget(self.bootstrap, Partition(self.topic, 0), before)

    def commit(self, offset: int) -> None:
        """Place the group's bookmark."""
        cluster = Cluster(self.bootstrap)
        with cluster.bookmark(f"{self.group}-notify") as bookmark:
            bookmark.commit(Partition(self.topic, 0), offset)

    def is_begun(self) -> bool:
        """Whether a notifier has marked its place."""
        try:
            return bool(Cluster(self.bootstrap).committed(f"{self.group}-notify"))
        except BrokerAway:  # a broker without any group yet
            return False

    @contextmanager
    def notifier(self, url: str, **notify: str) -> Iterator[subprocess.Popen[str]]:
        """A process that is ready; killed at the end of the block where it still runs."""
        environment = {
            "KAFKA_BOOTSTRAP_SERVERS": self.bootstrap,
            "TIDEWATCH_KAFKA__GROUP": self.group,
            "TIDEWATCH_KAFKA__ALERTS_TOPIC": self.topic,
            "TIDEWATCH_HTTP__PORT": "0",
            "TIDEWATCH_NOTIFY__URL": url,
            **{f"TIDEWATCH_NOTIFY__{name.upper()}": value for name, value in notify.items()},
        }
        log = self.folder / unique("log")
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", "notify"], env=os.environ | environment, stderr=stderr, text=True
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            self.said = log.read_text()
            assert "s3cret" not in self.said, "the webhook's token is a secret"


def told(posts: Sequence[Post]) -> list[tuple[str, str]]:
    """Alert and event of each post that was taken."""
    bodies = [json.loads(post.body) for post in posts if post.status == 200]
    return [(body["alert_id"], body["event"]) for body in bodies]


@pytest.mark.slow
def test_every_event_is_told_although_receiver_and_notifier_fail(kafka_bootstrap: str, tmp_path: Path) -> None:
    """A page that is lost because a server was restarted is a fault nobody looks at."""
    rig = Rig(kafka_bootstrap, tmp_path)
    opened = [make_alert(alert_id=name, stream_id=name) for name in ("a", "b", "c")]
    with Hook(503, 429) as hook:
        with rig.notifier(hook.url) as process:
            until(rig.is_begun)  # a first start tells what comes from then on
            rig.write(opened[0])
            hook.wait(1)
            process.send_signal(signal.SIGKILL)
            process.wait()
        rig.write(opened[1], replace(opened[0], event="resolved", index=5))
        with rig.notifier(hook.url) as process:
            hook.wait(5)
            rig.write(opened[2])
            posts = hook.wait(6)
            process.terminate()
            assert process.wait(20) == 0
    events = told(posts)
    assert events == [("a", "opened"), ("b", "opened"), ("a", "resolved"), ("c", "opened")]
    assert [post.status for post in posts[:3]] == [503, 429, 200]
    keys = [post.headers["Idempotency-Key"] for post in posts]
    assert keys[0] == keys[1] == keys[2], "whoever hears a repetition must know it for one"
    assert len(set(keys)) == len(events)


@pytest.mark.slow
def test_a_notifier_that_starts_again_after_it_has_told_goes_on_telling(kafka_bootstrap: str, tmp_path: Path) -> None:
    """It first reads what was told before it began, and then what comes, with one reader."""
    rig = Rig(kafka_bootstrap, tmp_path)
    with Hook() as hook:
        for name in ("a", "b"):
            with rig.notifier(hook.url) as process:
                until(rig.is_begun)
                rig.write(make_alert(alert_id=name, stream_id=name))
                posts = hook.wait(1 if name == "a" else 2)
                process.terminate()  # its place is committed by then
                assert process.wait(20) == 0
    assert told(posts) == [("a", "opened"), ("b", "opened")]


@pytest.mark.slow
def test_alerts_that_left_the_log_are_counted_and_the_next_one_is_told(kafka_bootstrap: str, tmp_path: Path) -> None:
    """A notifier that was down for longer than the topic keeps alerts would otherwise end at every start."""
    rig = Rig(kafka_bootstrap, tmp_path)
    rig.commit(0)
    rig.write(*(make_alert(alert_id=name, stream_id=name) for name in ("a", "b", "c")))
    rig.forget(2)
    with Hook() as hook, rig.notifier(hook.url) as process:
        assert told(hook.wait(1)) == [("c", "opened")]
        process.terminate()
        assert process.wait(20) == 0
    [warning] = [line for line in rig.said.splitlines() if "no longer in the log" in line]
    assert f"at most 2 records passed over, no longer in the log: topic={rig.topic} partition=0" in warning


@pytest.mark.slow
def test_a_notifier_overtaken_by_retention_goes_on(kafka_bootstrap: str, tmp_path: Path) -> None:
    """A receiver that takes its time can hold a notifier back for days; alerts of today still have to be told."""
    rig = Rig(kafka_bootstrap, tmp_path)
    with Hook() as hook, rig.notifier(hook.url) as process:
        until(rig.is_begun)
        process.send_signal(signal.SIGSTOP)
        for name in ("a", "b", "c"):  # a fetch under way may bring the first one
            rig.write(make_alert(alert_id=name, stream_id=name))
        rig.forget(2)
        process.send_signal(signal.SIGCONT)
        until(lambda: ("c", "opened") in told(hook.posts) or process.poll() is not None)
        assert ("b", "opened") not in told(hook.posts)
        process.terminate()
        assert process.wait(20) == 0
    assert "no longer in the log" in rig.said


def test_only_a_partition_added_later_begins_at_its_beginning(kafka_bootstrap: str) -> None:
    """What was written to it while no notifier ran is untold; at a first start it is what came before."""
    cluster, old, other = Cluster(kafka_bootstrap), unique("old"), unique("other")
    create_topics(kafka_bootstrap, {old: 2, other: 1})
    with cluster.bookmark(unique("g")) as bookmark:
        ends = {Partition(old, 0): 5, Partition(old, 1): 7}
        assert bookmark.committed(ends) == ends
        add_partitions(kafka_bootstrap, old, 3)
        bookmark.commit(Partition(old, 0), 6)
        ends = {Partition(old, 0): 9, Partition(old, 1): 9, Partition(old, 2): 4, Partition(other, 0): 8}
        places = {Partition(old, 0): 6, Partition(old, 1): 7, Partition(old, 2): 0, Partition(other, 0): 8}
        assert bookmark.committed(ends) == places
        assert bookmark.committed(dict.fromkeys(ends, 99)) == places, "committed at once"


@pytest.mark.slow
def test_alerts_of_a_partition_added_meanwhile_are_told(kafka_bootstrap: str, tmp_path: Path) -> None:
    """Streams move to it with their alerts, and the notifier's place is from before."""
    rig = Rig(kafka_bootstrap, tmp_path)
    rig.commit(0)
    add_partitions(kafka_bootstrap, rig.topic, 2)
    produce(kafka_bootstrap, rig.topic, [encode_alert(make_alert())], partition=1)
    with Hook() as hook, rig.notifier(hook.url):
        assert told(hook.wait(1)) == [("a1", "opened")]


@pytest.mark.slow
def test_a_place_past_the_end_of_the_topic_is_refused(kafka_bootstrap: str, tmp_path: Path) -> None:
    """The topic was made anew: which of its alerts are untold only a person can say, and waiting helps nobody."""
    rig = Rig(kafka_bootstrap, tmp_path)
    rig.commit(9)
    with Hook() as hook, rig.notifier(hook.url) as process:
        assert process.wait(20) == 2
    assert f"offset 9 of group {rig.group}-notify lies past the end" in rig.said
