"""What goes wrong with one sensor: labelled disturbances of a clean series."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.synthetic.series import Float64, Generator


@dataclass(frozen=True, slots=True)
class Fault:
    """Something a detector should notice.

    Attributes
    ----------
    stream_id, kind
        Where, and what.
    start, end
        Observations ``[start, end)`` of the stream that are not as they should be.
    start_ms, end_ms
        Event time of the first of them and of the first one after them.
    """

    stream_id: str
    kind: str
    start: int
    end: int
    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class LabelledStream:
    """A generated recording of one stream.

    Attributes
    ----------
    stream_id, group
        The stream, and what it belongs to (unit, network segment).
    features
        F names, the columns of ``values``.
    interval_s
        Seconds between observations.
    times_ms
        ``(T,)`` int64, ms since the epoch.
    values
        ``(T, F)`` float32.
    labels
        ``(T,)`` uint8, 1 inside a fault.
    faults
        The faults, in order of their start; they do not overlap.
    """

    stream_id: str
    group: str
    features: tuple[str, ...]
    interval_s: float
    times_ms: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    faults: tuple[Fault, ...]


def labelled(
    stream_id: str,
    group: str,
    features: tuple[str, ...],
    times_ms: npt.NDArray[np.int64],
    values: Float64,
    where: list[tuple[str, int, int]],
) -> LabelledStream:
    """A recording with its labels filled in from ``where``: (kind, start, end) of each fault."""
    interval_ms = int(times_ms[1] - times_ms[0])
    ordered = sorted(where, key=lambda fault: fault[1])
    labels = np.zeros(times_ms.size, dtype=np.uint8)
    for _, start, end in ordered:
        labels[start:end] = 1
    return LabelledStream(
        stream_id=stream_id,
        group=group,
        features=features,
        interval_s=interval_ms / 1000.0,
        times_ms=times_ms,
        values=values.astype(np.float32),
        labels=labels,
        faults=tuple(
            Fault(stream_id, kind, start, end, int(times_ms[start]), int(times_ms[start]) + (end - start) * interval_ms)
            for kind, start, end in ordered
        ),
    )


# ---------------------------------------------------------------- one sensor goes wrong

Damage = Callable[[Generator, Float64, "Scale"], Float64]


@dataclass(frozen=True, slots=True)
class Scale:
    """How large a fault must be to mean something to one sensor.

    Attributes
    ----------
    spread
        Standard deviation of the clean series: what the process does to it.
    reach
        Distance between the smallest and the largest clean value.
    """

    spread: float
    reach: float

    @classmethod
    def of(cls, x: Float64) -> Scale:
        """The scale of a clean series ``x`` (T,)."""
        return cls(spread=float(x.std()) + 1e-9, reach=float(np.ptp(x)) + 1e-9)


def _sign(rng: Generator) -> float:
    return 1.0 if rng.random() < 0.5 else -1.0


def _stuck(rng: Generator, x: Float64, scale: Scale) -> Float64:
    return np.full(x.size, x[0])


def _drift(rng: Generator, x: Float64, scale: Scale) -> Float64:
    return x + _sign(rng) * rng.uniform(0.5, 1.1) * scale.reach * np.linspace(0, 1, x.size)


def _spike(rng: Generator, x: Float64, scale: Scale) -> Float64:
    return x + _sign(rng) * rng.uniform(0.4, 1.0) * scale.reach


def _level_shift(rng: Generator, x: Float64, scale: Scale) -> Float64:
    return x + _sign(rng) * rng.uniform(0.35, 0.8) * scale.reach


def _leak(rng: Generator, x: Float64, scale: Scale) -> Float64:
    """Falls as a vessel empties: fast, then ever slower."""
    lost = 1 - np.exp(-np.arange(1, x.size + 1) / (0.3 * x.size))
    return x - rng.uniform(0.5, 0.9) * scale.reach * lost


def _oscillation(rng: Generator, x: Float64, scale: Scale) -> Float64:
    """A control loop that hunts."""
    period, height = rng.uniform(5, 12), rng.uniform(0.2, 0.45) * scale.reach
    return np.asarray(x + height * np.sin(2 * np.pi * np.arange(1, x.size + 1) / period))


def _noise_burst(rng: Generator, x: Float64, scale: Scale) -> Float64:
    return x + rng.uniform(0.2, 0.4) * scale.reach * rng.standard_normal(x.size)


def _zero(rng: Generator, x: Float64, scale: Scale) -> Float64:
    return np.zeros(x.size)


def _wrong_shape(rng: Generator, x: Float64, scale: Scale) -> Float64:
    """Every value is an ordinary one, in an order the sensor never showed: a cycle at another speed."""
    faster = np.arange(x.size) * rng.uniform(2.5, 4.0)
    return np.asarray(np.interp(faster % (x.size - 1), np.arange(x.size), x))


@dataclass(frozen=True, slots=True)
class FaultKind:
    """A kind of fault: what it does, and its shortest and longest duration in observations."""

    damage: Damage
    shortest: int
    longest: int


FAULT_KINDS: dict[str, FaultKind] = {
    "stuck": FaultKind(_stuck, 120, 240),
    "drift": FaultKind(_drift, 150, 300),
    "spike": FaultKind(_spike, 1, 4),
    "level_shift": FaultKind(_level_shift, 60, 200),
    "leak": FaultKind(_leak, 80, 200),
    "oscillation": FaultKind(_oscillation, 60, 150),
    "noise_burst": FaultKind(_noise_burst, 40, 120),
    "zero": FaultKind(_zero, 10, 90),
    "wrong_shape": FaultKind(_wrong_shape, 120, 240),
}
