"""The benchmark's streams: many, all alike, each with one window in every round."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from pipeline.records import CONTROL_NONE, Float32, Int64, Partition, Windows
from pipeline.wire import encode_packed

FEATURES = 8
INTERVAL_MS = 60_000
START_MS = 1_735_689_600_000  # 2025-01-01: fixed, and old enough that no window ends in the future
NOISE_SERIES = 257


@dataclass(frozen=True, slots=True)
class Message:
    """One window on its way to Kafka."""

    partition: int
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Traffic:
    """Windows of ``length`` observations for ``streams`` streams; each round has all of them in another order.

    Round -1 comes first and has one observation of each stream, so that whatever a stream's beginning costs is over
    before anything is measured. Values depend on seed, stream and time only: all measurements see the same.
    """

    streams: int
    length: int
    partitions: int
    seed: int = 1

    @property
    def values_per_message(self) -> int:
        """Values in one window: T F."""
        return self.length * FEATURES

    def ends(self, topic: str, rounds: int) -> dict[Partition, int]:
        """Offset of each partition behind ``rounds`` rounds, counted from round -1."""
        return {
            Partition(topic, number): rounds * len(range(number, self.streams, self.partitions))
            for number in range(self.partitions)
        }

    def ends_after(self, topic: str, first_round: int, count: int) -> dict[Partition, int]:
        """Offsets behind all rounds before ``first_round`` and ``count`` messages from there on."""
        ends = self.ends(topic, first_round + 1)
        whole, rest = divmod(count, self.streams)
        for partition in ends:
            among_rest = self.order(first_round + whole)[:rest] % self.partitions == partition.partition
            ends[partition] += whole * len(range(partition.partition, self.streams, self.partitions))
            ends[partition] += int(among_rest.sum())
        return ends

    def stream_id(self, stream: int) -> str:
        """Name of a stream."""
        return f"unit-{stream:06d}"

    def order(self, number: int) -> Int64:
        """Streams in the order of their windows in round ``number``."""
        return np.random.default_rng((self.seed, number + 1)).permutation(self.streams)

    def times_ms(self, number: int) -> Int64:
        """Event times of round ``number``: ``(T,)``, and ``(1,)`` for round -1, in which every stream begins."""
        if number < 0:
            return np.array([START_MS - INTERVAL_MS])
        return START_MS + INTERVAL_MS * (number * self.length + np.arange(self.length, dtype=np.int64))

    def values(self, number: int, streams: Int64) -> Float32:
        """Values ``(N, T, F)``: a daily wave and noise, both at a phase of the stream's own."""
        at = (self.times_ms(number) - START_MS) // INTERVAL_MS
        noise = np.random.default_rng((self.seed, 0)).standard_normal((NOISE_SERIES, FEATURES))
        wave = np.sin(2 * np.pi * at / 1440 + streams[:, None])[:, :, None]
        ripple = noise[(streams[:, None] * 31 + at * 17) % NOISE_SERIES]
        values: Float32 = (20.0 + 5.0 * wave + 0.5 * ripple).astype(np.float32)
        return values

    def messages(self, first_round: int = -1) -> Iterator[Message]:
        """Packed windows, round after round, without end."""
        for number in count(first_round):
            yield from self._round_of(number)

    def _round_of(self, number: int) -> Iterator[Message]:
        times, order = self.times_ms(number), self.order(number)
        for begin in range(0, self.streams, 500):
            streams = order[begin : begin + 500]
            for stream, values in zip(streams.tolist(), self.values(number, streams), strict=True):
                stream_id = self.stream_id(stream)
                yield Message(stream % self.partitions, stream_id.encode(), encode_packed(stream_id, times, values))

    def windows(self, per_batch: int) -> Iterator[Windows]:
        """The same as decoded batches of at most ``per_batch`` windows of one partition."""
        offset = 0
        for number in count(-1):
            times, order = self.times_ms(number), self.order(number)
            for begin in range(0, self.streams, per_batch):
                streams = order[begin : begin + per_batch]
                windows = len(streams)
                yield Windows(
                    [self.stream_id(stream) for stream in streams.tolist()],
                    np.arange(offset, offset + windows),
                    np.full(windows, times[-1]),
                    np.full(windows, len(times)),
                    np.zeros(windows, np.bool_),
                    np.full(windows, CONTROL_NONE, np.uint8),
                    np.tile(times, windows),
                    self.values(number, streams).reshape(-1, FEATURES),
                )
                offset += windows
