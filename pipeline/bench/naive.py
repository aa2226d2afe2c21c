"""What one would write first: one message at a time, its state fetched and stored around each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

import msgpack
import numpy as np

from pipeline.bench.traffic import FEATURES
from pipeline.records import Float32

Step = Callable[[bytes | None, Float32], bytes]


class HiddenStates(Protocol):
    """Where the naive loop keeps the hidden states of a stream."""

    def get(self, stream_id: str) -> bytes | None:
        """One GET."""
        ...

    def set(self, stream_id: str, hidden: bytes) -> None:
        """One SET."""
        ...


def naive_rate(messages: Iterator[bytes], states: HiddenStates, step: Step, warm_up: int, seconds: float) -> float:
    """Observations/s of: poll, unpack, GET of a stream's hidden states, network and head, SET.

    No transaction, no scoring, nothing batched. The first ``warm_up`` messages are not counted; then as many as there
    are, for ``seconds`` at most.
    """
    observations = 0
    began = now = 0.0
    for number, message in enumerate(messages):
        if number == warm_up:
            began = time.perf_counter()
        unpacked = msgpack.unpackb(message)
        stream_id, values = unpacked[1], np.frombuffer(bytearray(unpacked[5]), "<f4").reshape(-1, FEATURES)
        states.set(stream_id, step(states.get(stream_id), values))
        if number >= warm_up:
            observations += values.size
            now = time.perf_counter()
            if now - began > seconds:
                break
    if not observations:
        raise ValueError(f"no more than the {warm_up} messages that are not counted")
    return observations / (now - began)
