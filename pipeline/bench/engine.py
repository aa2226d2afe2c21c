"""Rates without servers: the engine alone, and torch's own recurrent network on the same batches."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import nn

from models.features import INPUTS
from pipeline.bench.traffic import FEATURES, Traffic
from pipeline.engine import Engine, Share, tile_streams
from pipeline.records import Float32, Partition, Windows
from pipeline.resident import ResidentRows

PARTITION = Partition("bench", 0)
MIN_BATCHES = 3
HIDDEN = 64
HEAD_OUTPUTS = 6 * 3 * 3
"""Six horizons, three numbers of three logistics each."""


@dataclass(frozen=True, slots=True)
class ComputeRates:
    """Observations/s of the engine, and of torch's module on the same batches with the same threads."""

    engine: float
    model: float


class RecurrentNetwork:
    """torch's own module on random inputs, with one hidden state for each feature row.

    Parameters
    ----------
    hidden
        Width of the hidden state.
    streams, steps
        Most streams and observations of one batch.
    threads
        Threads that share out the tiles of a batch, which are cut as the engine's; on a GPU there is one tile.
    device
        Torch device of network, inputs and states.
    """

    def __init__(self, hidden: int, streams: int, steps: int, threads: int, device: str = "cpu") -> None:
        self._rnn = nn.GRU(INPUTS, hidden).to(device)
        self._inputs = torch.randn(steps, streams * FEATURES, INPUTS, device=device)
        self._hidden = torch.randn(1, streams * FEATURES, hidden, device=device)
        self._threads, self._device = threads, device
        self._tilers = ThreadPoolExecutor(threads)

    def run(self, streams: int) -> None:
        """Step all observations of the first ``streams`` streams."""
        rows = streams * FEATURES
        if self._device != "cpu":
            self._step(slice(0, rows))
            torch.cuda.synchronize()
            return
        size = tile_streams(streams, FEATURES, self._threads) * FEATURES
        tiles = [slice(begin, min(rows, begin + size)) for begin in range(0, rows, size)]
        deque(self._tilers.map(self._step, tiles), maxlen=0)

    @torch.inference_mode()
    def _step(self, rows: slice) -> None:
        self._rnn(self._inputs[:, rows].contiguous(), self._hidden[:, rows].contiguous())

    def close(self) -> None:
        """End its threads."""
        self._tilers.shutdown()


def compute_rates(
    engine: Engine, version: str, traffic: Traffic, per_batch: int, seconds: float, threads: int = 1
) -> ComputeRates:
    """Engine and network by turns, batch after batch, so that both meet the same neighbours on the machine.

    Every stream begins before the clock does. The rates are those of the median batch.
    """
    table = _with_every_stream(engine, version, traffic)
    batches = traffic.windows(per_batch)
    for _ in range(-(-traffic.streams // per_batch)):
        _engine_s(engine, table, next(batches))
    by_engine: list[float] = []
    by_network: list[float] = []
    hidden = table.scorer.weights.predictor.hidden
    streams = min(per_batch, traffic.streams)
    with closing(RecurrentNetwork(hidden, streams, traffic.length, threads, table.device)) as network:
        until = time.monotonic() + seconds
        while time.monotonic() < until or len(by_engine) < MIN_BATCHES:
            windows = next(batches)
            by_engine.append(windows.values.size / _engine_s(engine, table, windows))
            by_network.append(windows.values.size / _network_s(network, len(windows)))
    return ComputeRates(median(by_engine), median(by_network))


def _with_every_stream(engine: Engine, version: str, traffic: Traffic) -> ResidentRows:
    engine.bring_to(PARTITION, version)
    table = engine.table(version)
    if not table.make_room(traffic.streams):
        raise ValueError(f"{traffic.streams} streams do not fit into {table.max_streams} resident ones")
    table.admit_fresh(PARTITION, [traffic.stream_id(stream) for stream in range(traffic.streams)], 0)
    return table


def _engine_s(engine: Engine, table: ResidentRows, windows: Windows) -> float:
    table.begin_batch()
    began = time.perf_counter()
    engine.absorb(table, [Share(PARTITION, windows, 0)], 0.0)
    return time.perf_counter() - began


def _network_s(network: RecurrentNetwork, streams: int) -> float:
    began = time.perf_counter()
    network.run(streams)
    return time.perf_counter() - began


class NaiveNetwork:
    """The naive loop's step: torch's GRU and a linear head for one message, hidden states in and out as bytes.

    Of the network's twelve inputs eleven are zeros, since nothing computes them.
    """

    def __init__(self, hidden: int = HIDDEN) -> None:
        self._rnn, self._head = nn.GRU(INPUTS, hidden), nn.Linear(hidden + INPUTS, HEAD_OUTPUTS)
        self._fresh = bytes(4 * FEATURES * hidden)

    @torch.inference_mode()
    def step(self, hidden: bytes | None, values: Float32) -> bytes:
        """Next hidden states after ``values`` ``(T, F)``; ``None`` where the stream is new."""
        before = np.frombuffer(bytearray(hidden or self._fresh), np.float32).reshape(1, FEATURES, -1)
        inputs = torch.zeros(*values.shape, INPUTS)
        inputs[:, :, 0] = torch.from_numpy(values)
        outputs, after = self._rnn(inputs, torch.from_numpy(before))
        self._head(torch.cat((outputs, inputs), -1))
        return bytes(after.numpy().tobytes())
