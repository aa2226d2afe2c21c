"""Both ends of the demo's replay: windows into the scenes' topics, scores and alerts out of the worker's."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import merge
from typing import Self

from pipeline.demo.processes import ALERTS, DEAD_LETTERS, SCORES
from pipeline.demo.scenes import Scene
from pipeline.errors import ConfigurationError
from pipeline.records import Alert
from pipeline.sources.recording import RecordedWindow, windows
from pipeline.topics.kafka import Cluster, TopicReader
from pipeline.wire import decode_alert, decode_dead_letter, decode_scores


def create_topics(cluster: Cluster, scenes: Sequence[Scene]) -> None:
    """The topics of all scenes and of the worker's output.

    Records carry the time of what they recorded, which is years ago: they must not be deleted for their age.
    """
    topics = [*(scene.topic for scene in scenes), SCORES, ALERTS, DEAD_LETTERS]
    cluster.create(dict.fromkeys(topics, 1), {"retention.ms": "-1"})


class Replay:
    """Writes scenes into their topics, in the order of event time and as fast as Kafka takes them, beside other work.

    Parameters
    ----------
    cluster
        Where the topics are.
    scenes
        What is replayed.
    """

    def __init__(self, cluster: Cluster, scenes: Sequence[Scene]) -> None:
        self._cluster, self._scenes = cluster, scenes
        self._stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Write while the ``with`` block lasts; what is not written when it is left never will be."""
        with ThreadPoolExecutor(1, "replay") as thread:
            self._writing = thread.submit(self._write)
            try:
                yield self
            finally:
                self._stop.set()

    def check(self) -> None:
        """Raise what kept the records from being written."""
        if self._writing.done():
            self._writing.result()

    def _write(self) -> None:
        with self._cluster.feeder() as feeder:
            for scene, window in in_event_time(self._scenes):
                if self._stop.is_set():
                    return
                key, newest_ms = window.stream_id.encode(), int(window.times_ms[-1])
                feeder.send(scene.topic, key, scene.encode(*window), newest_ms)
            feeder.flush()


def in_event_time(scenes: Sequence[Scene]) -> Iterator[tuple[Scene, RecordedWindow]]:
    """The windows of all scenes in the order in which they would have been sent."""

    def of(scene: Scene) -> Iterator[tuple[Scene, RecordedWindow]]:
        return ((scene, window) for window in windows([scene.streams], scene.window_length))

    return merge(*map(of, scenes), key=lambda sent: int(sent[1].times_ms[-1]))


@dataclass(frozen=True, slots=True)
class Seen:
    """What the worker had committed at a look: observations scored so far, and alert events since the last look."""

    scored: int
    alerts: list[Alert]


class Outputs:
    """Reads what the worker committed, from the beginning of its topics."""

    def __init__(self, cluster: Cluster) -> None:
        self._readers = [TopicReader(cluster, topic) for topic in (SCORES, ALERTS, DEAD_LETTERS)]
        self._scores, self._alerts, self._letters = (reader.read(reader.beginning()) for reader in self._readers)
        self._scored = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._readers:
            reader.close()

    def look(self) -> Seen:
        """What came since the last look; waits for some tenths of a second where nothing did."""
        scores = next(self._scores)  # before the alerts: a score's alert is committed with it
        self._scored += sum(int(decode_scores(record.value or b"").lengths.sum()) for _, record in scores)
        return Seen(self._scored, [decode_alert(record.value or b"") for _, record in next(self._alerts)])

    def check(self) -> None:
        """Raise ConfigurationError where the worker refused a record: it would be waited for in vain."""
        for _, record in next(self._letters):
            letter = decode_dead_letter(record.value or b"")
            raise ConfigurationError(f"the worker refused a record of {letter.partition}: {letter.reason}")
