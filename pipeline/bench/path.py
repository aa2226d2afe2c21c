"""Rates through real servers: the production worker's whole path, its latency, and reading alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from pipeline.errors import BrokerAway
from pipeline.messages import Messages
from pipeline.records import Int64, Partition
from pipeline.sources.base import Source
from pipeline.worker import Worker

PATIENCE_S = 60.0
"""Without progress for this long a measurement gives up."""

Ends = Mapping[Partition, int]


@dataclass(frozen=True, slots=True)
class Reached:
    """The committed offsets at a moment, by both clocks."""

    at_s: float
    at_ms: int
    offsets: dict[Partition, int]

    @property
    def total(self) -> int:
        """Messages committed in all."""
        return sum(self.offsets.values())


@dataclass(slots=True)
class Drive:
    """Steps a worker and notes when which offset was committed.

    Attributes
    ----------
    history
        Every change of the committed offsets.
    stages_s
        Seconds the worker spent in each of its stages.
    """

    worker: Worker
    history: list[Reached] = field(default_factory=list)
    stages_s: dict[str, float] = field(default_factory=dict)

    def step(self) -> None:
        """One step of the worker."""
        stats = self.worker.step()
        for stage, seconds in stats.seconds.items():
            self.stages_s[stage] = self.stages_s.get(stage, 0.0) + seconds
        offsets = {p: state.c for p, state in self.worker.partitions.items() if state.committed is not None}
        if not self.history or offsets != self.history[-1].offsets:
            self.history.append(Reached(time.perf_counter(), time.time_ns() // 1_000_000, offsets))

    def until(self, ends: Ends) -> Reached:
        """Step until everything below ``ends`` is committed. Raises as :meth:`until_total` does."""
        return self._until(lambda reached: all(reached.offsets.get(p, -1) >= end for p, end in ends.items()))

    def until_total(self, messages: int) -> Reached:
        """Step until so many messages are committed, of whatever partitions.

        Raises
        ------
        BrokerAway
            Nothing was committed for a minute.
        """
        return self._until(lambda reached: reached.total >= messages)

    def _until(self, is_there: Callable[[Reached], bool]) -> Reached:
        began = time.perf_counter()
        while not self.history or not is_there(self.history[-1]):
            self.step()
            newest = max(began, self.history[-1].at_s if self.history else began)
            if time.perf_counter() - newest > PATIENCE_S:
                raise BrokerAway(f"nothing was committed for {PATIENCE_S:g} s")
        return self.history[-1]


@dataclass(slots=True)
class PathRate:
    """Messages from topic to committed offset, in stretches of a full topic.

    Attributes
    ----------
    messages, seconds, stages_s
        Of all stretches; ``stages_s`` by stage of the worker.
    """

    messages: int = 0
    seconds: float = 0.0
    stages_s: dict[str, float] = field(default_factory=dict)

    def stretch(self, drive: Drive, total: int) -> None:
        """Let the worker go on from where it stands until ``total`` messages are committed."""
        before, stages = drive.history[-1].total, dict(drive.stages_s)
        began = time.perf_counter()
        stop = drive.until_total(total)
        self.seconds += time.perf_counter() - began
        self.messages += stop.total - before
        for stage, seconds in drive.stages_s.items():
            self.stages_s[stage] = self.stages_s.get(stage, 0.0) + seconds - stages.get(stage, 0.0)

    @property
    def messages_per_s(self) -> float:
        """Their rate."""
        return self.messages / self.seconds

    @property
    def stages(self) -> dict[str, float]:
        """Each stage's share of the time."""
        return {stage: seconds / self.seconds for stage, seconds in sorted(self.stages_s.items())}


def latencies_ms(history: list[Reached], partition: Partition, begin: int, arrived_ms: Int64) -> Int64:
    """From arrival to committed score, for the records of a partition from offset ``begin`` on.

    Parameters
    ----------
    arrived_ms
        ``(N,)`` Kafka timestamps, the broker's.
    """
    committed = np.array([reached.offsets.get(partition, -1) for reached in history], dtype=np.int64)
    at_ms = np.array([reached.at_ms for reached in history], dtype=np.int64)
    offsets = np.arange(begin, begin + len(arrived_ms))
    return at_ms[np.searchsorted(committed, offsets, side="right")] - arrived_ms


def read_rate(
    source: Source, messages: Messages, profile: str, first: Ends, ends: Ends, max_records: int, seconds: float
) -> float:
    """Messages/s of polling and decoding, and nothing else, from ``first`` to ``ends`` or for so many seconds."""
    _wait_for_assignment(source, ends)
    for partition, offset in first.items():
        source.seek(partition, offset)
    source.resume(ends)
    reached, done = dict(first), 0
    most = max(1, min(max_records, (sum(ends.values()) - sum(first.values())) // 4))
    began: float | None = None  # set by the first answer, which waits for connections and is not counted
    until = time.perf_counter() + PATIENCE_S
    while any(reached[partition] < end for partition, end in ends.items()) and time.perf_counter() < until:
        polled = source.poll(1.0, most)
        for partition, records in polled.items():
            windows, _ = messages.decode(profile, partition, records)
            reached[partition] = records[-1].offset + 1
            done += len(windows) if began is not None else 0
        if began is None and polled:
            began = time.perf_counter()
            until = began + seconds
    if began is None:
        raise BrokerAway(f"nothing was read for {PATIENCE_S:g} s")
    return done / (time.perf_counter() - began)


def _wait_for_assignment(source: Source, wanted: Ends) -> None:
    until = time.monotonic() + PATIENCE_S
    while (note := source.assignment()) is None or not note.partitions >= set(wanted):
        source.poll(0.1, 1)
        if time.monotonic() > until:
            raise BrokerAway(f"no partition was assigned within {PATIENCE_S:g} s")
