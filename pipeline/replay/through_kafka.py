"""A replay through Kafka: windows produced when due, scored by a worker of the replay's own, outputs read back.

Everything a replay makes is named after its run: input topics, output topics and consumer group. Its worker keeps its
rows in memory, so nothing reaches the state store.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.clock import Clock
from pipeline.offline import window_length
from pipeline.profile import Profile
from pipeline.records import Partition, Record
from pipeline.replay.inputs import History, Records, SeriesGroup
from pipeline.replay.outputs import Outputs
from pipeline.replay.through_engine import pasts_of
from pipeline.settings import Limits, Settings
from pipeline.sources.recording import WindowSequence
from pipeline.topics.kafka import Cluster, Feeder
from pipeline.wire import decode_alert, decode_many, decode_scores, encode_packed
from pipeline.worker import Worker

PREFIX = "tidewatch-replay"
BURST = 2_000
HISTORY_LENGTH = 64
PATIENCE_S = 0.2
OWN_TOPIC = {"retention.ms": "-1", "message.timestamp.type": "CreateTime"}
"""Recorded times are old: by the usual retention the broker would delete them under the reader."""


class Message(NamedTuple):
    """One record to be produced, when ``due_ms`` of recorded time comes."""

    due_ms: int
    topic: str
    partition: int | None
    key: bytes | None
    value: bytes | None
    timestamp_ms: int


def series_messages(group: SeriesGroup, topic: str, length: int, history: History) -> Iterator[Message]:
    """Windows of recorded streams in the order in which they were made; a stream's history goes before its first."""
    for window in WindowSequence(group.streams, window_length(length, group.streams, group.profile)):
        key = window.stream_id.encode()
        due_ms = int(window.times_ms[-1])
        past = history.before(window.stream_id, int(window.times_ms[0]), group.profile.features)
        if past is not None:
            for old in WindowSequence([past], window_length(HISTORY_LENGTH, [past], group.profile)):
                silent = encode_packed(old.stream_id, old.times_ms, old.values, silent=True)
                yield Message(due_ms, topic, None, key, silent, int(old.times_ms[-1]))
        value = encode_packed(window.stream_id, window.times_ms, window.values, labels=window.labels)
        yield Message(due_ms, topic, None, key, value, due_ms)


def raw_messages(records: Records, topic: str, profile: Profile, limits: Limits, history: History) -> Iterator[Message]:
    """Records as they were, each on the partition it was on; a stream's history goes before its first."""
    for partition, record in records:
        yield from _silent_pasts(partition, record, topic, profile, limits, history)
        at = record.timestamp
        yield Message(at, topic, partition.partition, record.key, record.value, at)


def _silent_pasts(
    partition: Partition, record: Record, topic: str, profile: Profile, limits: Limits, history: History
) -> Iterator[Message]:
    if not history.streams:
        return
    windows, _ = decode_many([record], partition, profile, limits)
    for past in pasts_of(windows, history):
        for old in WindowSequence([past], window_length(HISTORY_LENGTH, [past], profile)):
            silent = encode_packed(old.stream_id, old.times_ms, old.values, silent=True)
            key, at = old.stream_id.encode(), int(old.times_ms[-1])
            yield Message(record.timestamp, topic, partition.partition, key, silent, at)


def merged(parts: Sequence[Iterator[Message]]) -> Iterator[Message]:
    """Several sequences of messages as one, in the order of their times."""
    return parts[0] if len(parts) == 1 else heapq.merge(*parts, key=lambda message: message.due_ms)


class Pacer:
    """When messages are due: recorded time passes ``speed`` times as fast as the clock.

    Parameters
    ----------
    speed
        ``None``: everything is due at once.
    """

    def __init__(self, speed: float | None, clock: Clock) -> None:
        self._speed, self._clock = speed, clock
        self._first: tuple[int, float] | None = None

    def wait_s(self, due_ms: int) -> float:
        """Seconds until a message is due, 0 where it is."""
        if self._speed is None:
            return 0.0
        now_s = self._clock.monotonic()
        if self._first is None:
            self._first = (due_ms, now_s)
        first_ms, began_s = self._first
        return max(0.0, (due_ms - first_ms) / 1000 / self._speed - (now_s - began_s))


def feed(
    messages: Iterator[Message],
    feeder: Feeder,
    pacer: Pacer,
    between: Callable[[float], None],
    advance: Callable[[int], None],
    *,
    with_times: bool = True,
) -> int:
    """Produce every message when it is due, and wait until all are acknowledged; returns how many there were.

    Parameters
    ----------
    between
        Called between bursts with the seconds until the next message is due.
    advance
        Told how many were produced.
    with_times
        Records carry the recorded time as their Kafka timestamp; else the present.
    """
    count = 0
    pending = next(messages, None)
    while pending is not None:
        sent = 0
        while pending is not None and sent < BURST and pacer.wait_s(pending.due_ms) == 0.0:
            at = pending.timestamp_ms if with_times else None
            feeder.send(pending.topic, pending.key, pending.value, at, pending.partition)
            sent += 1
            pending = next(messages, None)
        count += sent
        advance(sent)
        between(0.0 if pending is None else pacer.wait_s(pending.due_ms))
    feeder.flush()
    return count


def pause(wait_s: float) -> None:
    """Let the time pass until the next message is due, a little at a time."""
    time.sleep(min(wait_s, PATIENCE_S))


@dataclass(frozen=True, slots=True)
class Run:
    """The names of everything one replay makes."""

    name: str

    @property
    def group(self) -> str:
        """Consumer group, and what every topic's name begins with."""
        return f"{PREFIX}-{self.name}"

    def input(self, profile: str) -> str:
        """Input topic of a profile."""
        return f"{self.group}-in-{profile}"

    @property
    def scores(self) -> str:
        """Topic of scores."""
        return f"{self.group}-scores"

    @property
    def alerts(self) -> str:
        """Topic of alerts."""
        return f"{self.group}-alerts"

    @property
    def dead_letters(self) -> str:
        """Topic of dead letters."""
        return f"{self.group}-dead-letters"

    def settings(self, settings: Settings, profiles: Mapping[str, Profile], registry: Path) -> Settings:
        """Settings of the replay's own worker: nothing in them is shared with production but the servers."""
        kafka = settings.kafka.model_copy(
            update={
                "group": self.group,
                "worker_name": self.name,
                "static_membership": False,
                "start": "earliest",
                "scores_topic": self.scores,
                "alerts_topic": self.alerts,
                "dead_letter_topic": self.dead_letters,
            }
        )
        own = {name: p.model_copy(update={"topics": (self.input(name),)}) for name, p in profiles.items()}
        folder = settings.registry.model_copy(update={"folder": registry})
        return settings.model_copy(update={"kafka": kafka, "profiles": own, "registry": folder})

    def create(self, cluster: Cluster, partitions: Mapping[str, int]) -> list[str]:
        """Create input topics (profile -> partitions) and output topics; returns their names.

        Raises
        ------
        ConfigurationError
            A run of this name has been made before, or topics may not be created.
        """
        topics = {self.input(profile): count for profile, count in partitions.items()}
        topics |= {self.scores: 1, self.alerts: 1, self.dead_letters: 1}
        cluster.create(topics, OWN_TOPIC)
        return list(topics)

    def delete(self, cluster: Cluster) -> list[str]:
        """Delete every topic of the run, and its group; returns the topics' names."""
        outputs = {self.scores, self.alerts, self.dead_letters}
        mine = sorted(t for t in cluster.topics() if t in outputs or t.startswith(self.input("")))
        if mine:
            cluster.delete(mine)
        cluster.delete_group(self.group)
        return mine


def finish(worker: Worker, ends: Mapping[Partition, int]) -> None:
    """Step a worker until it has committed every partition up to its end."""
    while not all(_is_committed(worker, partition, end) for partition, end in ends.items()):
        worker.step()


def _is_committed(worker: Worker, partition: Partition, end: int) -> bool:
    state = worker.partitions.get(partition)
    return state is not None and state.committed is not None and state.committed.offset >= end


def read_back(cluster: Cluster, run: Run, outputs: Outputs) -> None:
    """Take everything the run's worker has emitted."""
    for record in _everything(cluster, run.scores):
        outputs.add(decode_scores(record.value or b""))
    for record in _everything(cluster, run.alerts):
        outputs.add_alerts([decode_alert(record.value or b"")])
    outputs.tally.dead_letters += sum(1 for _ in _everything(cluster, run.dead_letters))


def _everything(cluster: Cluster, topic: str) -> Iterator[Record]:
    with cluster.reader(topic) as reader:
        for records in reader.read(reader.beginning(), reader.end()):
            for _, record in records:
                yield record
