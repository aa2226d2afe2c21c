"""A generated plant: units of eight related sensors, set-point changes that are normal, faults that are not."""

from __future__ import annotations

import numpy as np

from models.synthetic.faults import FAULT_KINDS, LabelledStream, Scale, labelled
from models.synthetic.series import DAY_S, MONDAY_MS, Float64, Generator, jittered_phase, smooth_noise

SENSORS = (
    "temperature_in",
    "temperature_out",
    "pressure_in",
    "pressure_out",
    "flow",
    "vibration",
    "level",
    "valve",
)
LIKELY_FAULTS = {
    "temperature_in": ("drift", "spike", "level_shift", "noise_burst", "zero"),
    "temperature_out": ("drift", "spike", "level_shift", "zero"),
    "pressure_in": ("oscillation", "level_shift", "noise_burst", "drift"),
    "pressure_out": ("leak", "spike", "oscillation"),
    "flow": ("zero", "spike", "oscillation", "level_shift"),
    "vibration": ("noise_burst", "level_shift", "spike"),
    "level": ("stuck", "wrong_shape", "leak", "zero"),
    "valve": ("zero", "oscillation", "level_shift"),
}
SET_POINTS = (0.55, 0.72, 0.9)
QUIET_SHARE = 0.45  # of a recording, from its beginning: no fault, so that a stream can learn what is normal


def plant(
    streams: int, observations: int, faults: int, seed: int, *, interval_s: float = 300.0, start_ms: int = MONDAY_MS
) -> tuple[LabelledStream, ...]:
    """A plant of single sensors, each a stream of one feature, ``value``.

    Parameters
    ----------
    streams
        How many sensors; eight make a unit (``group``), the last unit may be incomplete.
    observations
        T of each stream.
    faults
        How many faults in all, at most one per stream, all in the last 55 % of the recording.
    seed
        Fixes everything.
    interval_s, start_ms
        Seconds between observations; event time of the first one, ms since the epoch.

    Raises
    ------
    ValueError
        More faults than streams, or a recording too short to hold one.
    """
    if faults > streams:
        raise ValueError(f"{faults} faults do not fit {streams} streams: a stream has at most one")
    if observations < 500:
        raise ValueError(f"{observations} observations are too few: a fault needs 500 or more")
    rng = np.random.default_rng(seed)
    times_ms = start_ms + (interval_s * 1000.0 * np.arange(observations)).astype(np.int64)
    readings = _units(rng, -(-streams // len(SENSORS)), times_ms / 1000.0)
    faulty = set(rng.permutation(streams)[:faults].tolist())
    recordings = []
    for index in range(streams):
        unit, sensor = divmod(index, len(SENSORS))
        name, values = SENSORS[sensor], readings[unit, sensor].copy()
        where = [_damaged(rng, name, values)] if index in faulty else []
        group = f"unit-{unit:02d}"
        recordings.append(labelled(f"{group}.{name}", group, ("value",), times_ms, values[:, None], where))
    return tuple(recordings)


def _damaged(rng: Generator, sensor: str, values: Float64) -> tuple[str, int, int]:
    """Damages ``values`` in place with one likely fault and says which one and where."""
    kind = str(rng.choice(LIKELY_FAULTS[sensor]))
    fault = FAULT_KINDS[kind]
    quiet = int(QUIET_SHARE * values.size)
    duration = int(rng.integers(fault.shortest, min(fault.longest, (values.size - quiet) // 2) + 1))
    start = int(rng.integers(quiet, values.size - duration))
    values[start : start + duration] = fault.damage(rng, values[start : start + duration], Scale.of(values))
    return kind, start, start + duration


def _units(rng: Generator, units: int, seconds: Float64) -> Float64:
    """``(units, 8, T)`` clean readings, in the order of SENSORS."""
    shape = (units, seconds.size)

    def white(size: float) -> Float64:
        return size * rng.standard_normal(shape)

    demand = _demand(rng, units, seconds)
    pressure_in = rng.uniform(5, 8, (units, 1)) + 0.1 * smooth_noise(rng, 40.0, shape) + white(0.03)
    flow = rng.uniform(80, 200, (units, 1)) * (demand + white(0.01))
    pressure_out = pressure_in - 2.2 * demand**2 + white(0.02)
    outdoors = np.sin(2 * np.pi * (seconds / DAY_S - 0.4 + 0.02 * rng.standard_normal((units, 1))))
    temperature_in = rng.uniform(12, 22, (units, 1)) + 3 * outdoors + 0.2 * smooth_noise(rng, 60.0, shape) + white(0.05)
    temperature_out = temperature_in + rng.uniform(25, 45, (units, 1)) * _lagged(demand, 15.0) + white(0.15)
    vibration = (1.2 + 1.5 * demand) * np.exp(0.08 * smooth_noise(rng, 20.0, shape) + white(0.08))
    valve = np.round(np.clip(105 * demand - 4 + white(0.3), 0, 100) * 2) / 2
    level = _level(rng, units, seconds.size) + white(0.4)
    readings = (temperature_in, temperature_out, pressure_in, pressure_out, flow, vibration, level, valve)
    return np.stack(readings, 1)


def _demand(rng: Generator, units: int, seconds: Float64) -> Float64:
    """``(units, T)`` share of full load: three set-points in turn, each many times, approached slowly.

    Every set-point is visited while nothing is wrong yet, so that a later change to it is nothing new.
    """
    elapsed = seconds - seconds[0]
    longest_s = min(9 * 3600.0, QUIET_SHARE * float(elapsed[-1]) / len(SET_POINTS))
    rounds = int(elapsed[-1] / (0.4 * longest_s * len(SET_POINTS))) + 1
    order = rng.permuted(np.tile(np.arange(len(SET_POINTS)), (units, rounds, 1)), axis=2).reshape(units, -1)
    changes = np.cumsum(rng.uniform(0.4, 1.0, order.shape) * longest_s, 1)
    levels = np.array(SET_POINTS)[order]
    held = np.stack([row[np.searchsorted(at[:-1], elapsed)] for row, at in zip(levels, changes, strict=True)])
    wander = 0.015 * smooth_noise(rng, 30.0, held.shape)
    return _lagged(_lagged(held, 8.0), 8.0) + wander


def _lagged(x: Float64, memory: float) -> Float64:
    """First-order lag of ``(units, T)``, in observations."""
    rate = 1 - np.exp(-1 / memory)
    out = np.empty_like(x)
    level = x[:, 0]
    for t in range(x.shape[1]):
        level = level + rate * (x[:, t] - level)
        out[:, t] = level
    return out


def _level(rng: Generator, units: int, observations: int) -> Float64:
    """A tank that fills and empties between two marks: a cycle without a clock."""
    phase = jittered_phase(rng, rng.uniform(40, 90, units), np.full(units, 0.02), observations) % 1.0
    filling = rng.uniform(0.3, 0.7, (units, 1))
    triangle = np.where(phase < filling, phase / filling, (1 - phase) / (1 - filling))
    return 30 + 40 * triangle
