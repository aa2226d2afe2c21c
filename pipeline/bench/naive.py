"""What one would write first: one message at a time, its state fetched and stored around each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
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


@dataclass(slots=True)
class NaiveLoop:
    """Poll, unpack, GET of a stream's hidden states, network and head, SET; no transaction, no scoring, no batches.

    Attributes
    ----------
    values, seconds
        Done by :meth:`run`, over all its calls.
    """

    messages: Iterator[bytes]
    states: HiddenStates
    step: Step
    values: int = 0
    seconds: float = 0.0

    def warm_up(self, messages: int) -> None:
        """Take so many messages that are not counted."""
        for message in islice(self.messages, messages):
            self._take(message)

    def run(self, seconds: float) -> None:
        """Go on for so long, or to the end of the messages."""
        began = now = time.perf_counter()
        for message in self.messages:
            self.values += self._take(message)
            now = time.perf_counter()
            if now - began > seconds:
                break
        self.seconds += now - began

    @property
    def rate(self) -> float:
        """Observations/s.

        Raises
        ------
        ValueError
            There was no message to count.
        """
        if not self.values:
            raise ValueError("the naive loop found no message to count")
        return self.values / self.seconds

    def _take(self, message: bytes) -> int:
        unpacked = msgpack.unpackb(message)
        stream_id, values = unpacked[1], np.frombuffer(bytearray(unpacked[5]), "<f4").reshape(-1, FEATURES)
        self.states.set(stream_id, self.step(self.states.get(stream_id), values))
        return values.size
