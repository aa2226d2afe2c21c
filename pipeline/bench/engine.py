"""Rates without servers: the engine alone, and torch's own recurrent network on the same batches."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from models.features import INPUTS
from models.pretrained import Weights
from pipeline.bench.traffic import FEATURES, Traffic
from pipeline.engine import MAX_CALL_ROWS, Engine, Share
from pipeline.records import Float32, Partition, Windows
from pipeline.resident import ResidentRows

PARTITION = Partition("bench", 0)
MIN_BATCHES = 3


@dataclass(frozen=True, slots=True)
class ComputeRates:
    """Observations/s of the engine, and of torch's module on the same batches with the same threads."""

    engine: float
    model: float


class RecurrentNetwork:
    """torch's own module with trained weights, on random inputs, with one hidden state for each feature row.

    Parameters
    ----------
    weights
        What to run.
    rows, steps
        Most feature rows and observations of one batch.
    """

    def __init__(self, weights: Weights, rows: int, steps: int) -> None:
        self._rnn = weights.build().rnn
        self._inputs = torch.randn(steps, rows, INPUTS)
        self._hidden = torch.randn(weights.predictor.layers, rows, weights.predictor.hidden)

    @torch.inference_mode()
    def run(self, rows: int, rows_per_call: int) -> None:
        """Step all observations of ``rows`` rows, ``rows_per_call`` rows at a time."""
        for begin in range(0, rows, rows_per_call):
            part = slice(begin, min(rows, begin + rows_per_call))
            self._rnn(self._inputs[:, part].contiguous(), self._hidden[:, part].contiguous())


def compute_rates(
    engine: Engine, version: str, weights: Weights, traffic: Traffic, per_batch: int, seconds: float
) -> ComputeRates:
    """Engine and network by turns, batch after batch, so that both meet the same neighbours on the machine.

    Every stream begins before the clock does. The rates are those of the median batch. The network gets the better of
    two forms: a whole batch in one call, and calls of the engine's own size.
    """
    rows = _with_every_stream(engine, version, traffic)
    network = RecurrentNetwork(weights, min(per_batch, traffic.streams) * FEATURES, traffic.length)
    batches = traffic.windows(per_batch)
    for _ in range(-(-traffic.streams // per_batch)):
        _engine_s(engine, rows, next(batches))
    by_engine: list[float] = []
    whole: list[float] = []
    tiled: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(by_engine) < MIN_BATCHES:
        windows = next(batches)
        observations, feature_rows = windows.values.size, len(windows) * FEATURES
        by_engine.append(observations / _engine_s(engine, rows, windows))
        whole.append(observations / _network_s(network, feature_rows, feature_rows))
        tiled.append(observations / _network_s(network, feature_rows, MAX_CALL_ROWS))
    return ComputeRates(median(by_engine), max(median(whole), median(tiled)))


def _with_every_stream(engine: Engine, version: str, traffic: Traffic) -> ResidentRows:
    engine.bring_to(PARTITION, version)
    rows = engine.rows(version)
    if not rows.make_room(traffic.streams):
        raise ValueError(f"{traffic.streams} streams do not fit into {rows.max_streams} resident ones")
    rows.admit_fresh(PARTITION, [traffic.stream_id(stream) for stream in range(traffic.streams)], 0)
    return rows


def _engine_s(engine: Engine, rows: ResidentRows, windows: Windows) -> float:
    rows.begin_batch()
    began = time.perf_counter()
    engine.absorb(rows, [Share(PARTITION, windows, 0)], 0.0)
    return time.perf_counter() - began


def _network_s(network: RecurrentNetwork, rows: int, rows_per_call: int) -> float:
    began = time.perf_counter()
    network.run(rows, rows_per_call)
    return time.perf_counter() - began


class NaiveNetwork:
    """The naive loop's step: torch's module and the head for one message, the hidden states in and out as bytes.

    The network's other eleven inputs are zeros, since nothing computes them.
    """

    def __init__(self, weights: Weights) -> None:
        self._network = weights.build()
        self._fresh = bytes(4 * FEATURES * self._network.state_width)

    @torch.inference_mode()
    def step(self, hidden: bytes | None, values: Float32) -> bytes:
        """Next hidden states after ``values`` ``(T, F)``; ``None`` where the stream is new."""
        before = np.frombuffer(bytearray(hidden or self._fresh), np.float32).reshape(FEATURES, -1)
        inputs = torch.zeros(*values.shape, INPUTS)
        inputs[:, :, 0] = torch.from_numpy(values)
        outputs, after = self._network(inputs, torch.from_numpy(before))
        self._network.mixtures(outputs, inputs)
        return bytes(after.numpy().tobytes())
