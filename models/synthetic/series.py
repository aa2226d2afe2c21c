"""The pretraining corpus: generated series of many kinds, none of them measured anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Generator = np.random.Generator
Family = Callable[[Generator, Float64], Float64]
Disturbance = Callable[[Generator, Float64, str], Float64]

DAY_S, WEEK_S = 86_400.0, 604_800.0
MONDAY_MS = 1_704_067_200_000  # 2024-01-01T00:00Z, a Monday: generated weeks begin here
INTERVALS_S = np.array([60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0])


@dataclass(frozen=True, slots=True)
class Corpus:
    """Generated series with their clocks.

    Attributes
    ----------
    values
        ``(B, T)`` float32, NaN where an observation is missing.
    times_ms
        ``(B, T)`` int64, event time of each observation, ms since the epoch.
    interval_s
        ``(B,)`` float64, seconds between observations.
    clock
        ``(B,)`` bool: whether the time of day is known to whoever predicts this series.
    family
        B names of the generators.
    """

    values: npt.NDArray[np.float32]
    times_ms: npt.NDArray[np.int64]
    interval_s: Float64
    clock: npt.NDArray[np.bool_]
    family: tuple[str, ...]


def corpus(n_series: int, length: int, seed: int) -> Corpus:
    """Generated series with all that happens to real recordings: what a predictor learns from.

    Families come in equal shares and in turn; the same seed gives the same bytes.

    Parameters
    ----------
    n_series, length
        B series of T observations.
    seed
        Fixes everything.
    """
    return _made(n_series, length, seed, _disturbed)


def undisturbed(n_series: int, length: int, seed: int) -> Corpus:
    """The families of :func:`corpus` without drifts, shifts, changed variance and drop-outs: what is normal."""
    return _made(n_series, length, seed, _as_it_is)


def _made(n_series: int, length: int, seed: int, disturb: Disturbance) -> Corpus:
    rng = np.random.default_rng(seed)
    names = tuple(FAMILIES)
    family = tuple(names[i % len(names)] for i in range(n_series))
    interval_s = rng.choice(INTERVALS_S, n_series)
    start_s = np.floor(rng.uniform(0.0, WEEK_S, n_series))
    seconds: Float64 = start_s[:, None] + interval_s[:, None] * np.arange(length, dtype=float)
    values = np.empty((n_series, length))
    for offset, name in enumerate(names):
        rows = slice(offset, n_series, len(names))
        values[rows] = disturb(rng, FAMILIES[name](rng, seconds[rows]), name)
    without_clock = np.array([name in CLOCKLESS for name in family])
    clock = rng.random(n_series) > np.where(without_clock, 0.6, 0.15)
    return Corpus(
        values=values.astype(np.float32),
        times_ms=MONDAY_MS + (seconds * 1000.0).astype(np.int64),
        interval_s=interval_s,
        clock=clock,
        family=family,
    )


# ---------------------------------------------------------------- pieces


def log_uniform(rng: Generator, low: float, high: float, size: int | tuple[int, ...]) -> Float64:
    """Draws whose logarithm is uniform between ``low`` and ``high``."""
    return np.exp(rng.uniform(np.log(low), np.log(high), size))


def autoregressive(rng: Generator, coefficients: Float64, shape: tuple[int, int]) -> Float64:
    """``(B, T)`` AR(p) of unit innovations with each row's own ``(B, p)`` coefficients, started after a run-in."""
    n, length = shape
    order = coefficients.shape[1]
    run_in = 64
    past = np.zeros((n, order))
    noise = rng.standard_normal((length + run_in, n))
    out = np.empty((length + run_in, n))
    for t in range(length + run_in):
        out[t] = (coefficients * past).sum(1) + noise[t]
        past = np.concatenate([out[t][:, None], past[:, :-1]], 1)
    return np.ascontiguousarray(out[run_in:].T)


def smooth_noise(rng: Generator, memory: float | Float64, shape: tuple[int, int]) -> Float64:
    """``(B, T)`` AR(1) of unit variance that forgets in about ``memory`` observations."""
    phi = np.broadcast_to(np.exp(-1.0 / np.asarray(memory, dtype=float)), shape[:1])
    steps = autoregressive(rng, phi[:, None], shape)
    return steps * np.sqrt(1.0 - phi**2)[:, None]


def harmonics(rng: Generator, phase: Float64, highest: int) -> Float64:
    """A periodic shape of up to ``highest`` harmonics per row at ``phase`` (cycles), scaled to unit variance."""
    n = phase.shape[0]
    order = np.arange(1, highest + 1)
    amplitude = rng.standard_normal((n, highest)) / order ** rng.uniform(0.3, 2.0, (n, 1))
    amplitude *= order <= rng.integers(1, highest + 1, (n, 1))
    shift = rng.random((n, highest))
    shape = np.zeros_like(phase)
    for k in range(highest):
        shape += amplitude[:, k : k + 1] * np.sin(2 * np.pi * ((k + 1) * phase + shift[:, k : k + 1]))
    return np.asarray(shape / np.sqrt((amplitude**2).sum(1) / 2 + 1e-12)[:, None])


def jittered_phase(rng: Generator, period: Float64, jitter: Float64, length: int) -> Float64:
    """``(B, T)`` phase in cycles; each cycle's length differs from the row's period by ``jitter`` (a share of it)."""
    n = period.size
    cycles = int(length / period.min()) * 2 + 4
    lengths = period[:, None] * np.clip(1 + jitter[:, None] * rng.standard_normal((n, cycles)), 0.3, 3.0)
    starts = np.cumsum(lengths, 1) - rng.random((n, 1)) * lengths[:, :1]
    starts -= starts[:, :1] + rng.random((n, 1)) * period[:, None]
    time, count = np.arange(length), np.arange(cycles, dtype=float)
    return np.stack([np.interp(time, row, count) for row in starts])


def decaying(rng: Generator, impulses: Float64, memory: Float64) -> Float64:
    """``(B, T)`` impulses that each fade exponentially over the row's ``memory`` observations."""
    keep = np.exp(-1.0 / memory)
    out = np.empty_like(impulses)
    level = np.zeros(impulses.shape[0])
    for t in range(impulses.shape[1]):
        level = level * keep + impulses[:, t]
        out[:, t] = level
    return out


def day_shape(rng: Generator, seconds: Float64) -> Float64:
    """A daily shape of unit variance: harmonics, or working hours; some rows are quiet on weekends."""
    n = seconds.shape[0]
    waves = harmonics(rng, seconds / DAY_S, 6)
    hour = seconds % DAY_S / 3600.0
    opens, closes = rng.uniform(5, 10, (n, 1)), rng.uniform(14, 22, (n, 1))
    soft = rng.uniform(0.1, 1.0, (n, 1))
    hours = np.tanh((hour - opens) / soft) - np.tanh((hour - closes) / soft) - 1.0
    shape = np.where(rng.random((n, 1)) < 0.3, hours, waves)
    weekend = seconds // DAY_S % 7 >= 5
    quiet = np.where(rng.random((n, 1)) < 0.4, rng.uniform(0.0, 0.7, (n, 1)), 1.0)
    return np.asarray(np.where(weekend, shape * quiet - (1 - quiet), shape))


# ---------------------------------------------------------------- families


def _ar(rng: Generator, seconds: Float64) -> Float64:
    """Stationary AR(2) from a random pair of poles, real or complex."""
    n = seconds.shape[0]
    radius, angle = 1 - log_uniform(rng, 0.003, 0.7, n), rng.uniform(0, np.pi, n)
    second = rng.uniform(-0.5, 0.9, n)
    complex_pair = rng.random(n) < 0.5
    first = np.where(complex_pair, 2 * radius * np.cos(angle), radius + second)
    last = np.where(complex_pair, -(radius**2), -radius * second)
    return autoregressive(rng, np.stack([first, last], 1), seconds.shape)


def _walk(rng: Generator, seconds: Float64) -> Float64:
    n = seconds.shape[0]
    steps = np.where(rng.random((n, 1)) < 0.3, rng.standard_t(3, seconds.shape), rng.standard_normal(seconds.shape))
    steps += rng.normal(0, 0.03, (n, 1))
    pull = np.where(rng.random(n) < 0.5, 1.0, 1 - log_uniform(rng, 1e-3, 1e-2, n))
    walk = decaying(rng, steps, -1.0 / np.log(np.minimum(pull, 1 - 1e-9)))
    return walk + rng.uniform(0, 2, (n, 1)) * rng.standard_normal(seconds.shape)


def _daily(rng: Generator, seconds: Float64) -> Float64:
    n = seconds.shape[0]
    noise = log_uniform(rng, 0.02, 0.7, (n, 1))
    slow = smooth_noise(rng, log_uniform(rng, 5, 300, n), seconds.shape)
    shape = day_shape(rng, seconds) * (1 + 0.15 * slow * rng.random((n, 1)))
    return shape + noise * (rng.standard_normal(seconds.shape) + rng.random((n, 1)) * slow)


def _counts(rng: Generator, seconds: Float64) -> Float64:
    """Poisson or negative-binomial counts of a daily rate with bursts."""
    n = seconds.shape[0]
    base = log_uniform(rng, 0.1, 200, (n, 1))
    rate = base * np.exp(rng.uniform(0, 0.8, (n, 1)) * day_shape(rng, seconds))
    starts = (rng.random(seconds.shape) < log_uniform(rng, 5e-4, 2e-2, (n, 1))) * rng.exponential(3, seconds.shape)
    rate *= 1 + decaying(rng, starts, log_uniform(rng, 1, 30, n))
    dispersion = np.where(rng.random((n, 1)) < 0.5, 1e3, log_uniform(rng, 0.5, 20, (n, 1)))
    return rng.poisson(np.minimum(rate * rng.gamma(dispersion, 1 / dispersion, seconds.shape), 1e6)).astype(float)


def _waves(rng: Generator, seconds: Float64) -> Float64:
    """Square and saw waves with nearly exact periods."""
    n, length = seconds.shape
    phase = jittered_phase(rng, log_uniform(rng, 6, 400, n), 0.02 * rng.random((n,)), length) % 1.0
    duty = rng.uniform(0.15, 0.85, (n, 1))
    square = np.where(phase < duty, 1.0, -1.0)
    saw = 2 * np.where(phase < duty, phase / duty, (1 - phase) / (1 - duty)) - 1
    one_sided = 2 * phase - 1
    kind = rng.integers(0, 3, (n, 1))
    wave = np.choose(np.broadcast_to(kind, phase.shape), [square, saw, one_sided])
    return wave + log_uniform(rng, 0.005, 0.3, (n, 1)) * rng.standard_normal((n, length))


def _markov(rng: Generator, seconds: Float64) -> Float64:
    """Levels that a chain of 2 to 6 states visits, with noise of each level's own."""
    n, length = seconds.shape
    states = rng.integers(2, 7, (n, 1))
    leave = rng.random((n, length)) < 1 / log_uniform(rng, 5, 300, (n, 1))
    visit = np.floor(rng.random((n, length)) * states).astype(int)
    last = np.maximum.accumulate(np.where(leave, np.arange(length), 0), 1)
    state = np.take_along_axis(visit, last, 1)
    level, noise = rng.standard_normal((n, 6)), log_uniform(rng, 0.005, 0.4, (n, 6))
    at = np.take_along_axis(level, state, 1)
    return at + np.take_along_axis(noise, state, 1) * rng.standard_normal((n, length))


def _pareto(rng: Generator, seconds: Float64) -> Float64:
    """A noisy floor with spikes of heavy tail, some of which fade slowly."""
    n = seconds.shape[0]
    floor = smooth_noise(rng, log_uniform(rng, 1, 50, n), seconds.shape)
    often = rng.random(seconds.shape) < log_uniform(rng, 2e-3, 0.1, (n, 1))
    size = np.minimum(1 + rng.pareto(rng.uniform(1.2, 3.0, (n, 1)), seconds.shape), 50.0)
    spikes = decaying(rng, often * size * rng.uniform(1, 5, (n, 1)), log_uniform(rng, 0.2, 5, n))
    return spikes + floor * rng.uniform(0.1, 1.0, (n, 1))


def _quantised(rng: Generator, seconds: Float64) -> Float64:
    """Something smooth, read out in coarse steps."""
    n = seconds.shape[0]
    slow = smooth_noise(rng, log_uniform(rng, 20, 400, n), seconds.shape)
    smooth = slow + rng.uniform(0, 1.5, (n, 1)) * day_shape(rng, seconds)
    step = log_uniform(rng, 0.02, 1.5, (n, 1))
    return np.asarray(np.round((smooth + 0.05 * rng.standard_normal(seconds.shape)) / step) * step)


def _quasi_harmonic(rng: Generator, seconds: Float64) -> Float64:
    """Periodic without a clock: up to 8 harmonics, period and amplitude wander."""
    n, length = seconds.shape
    period = log_uniform(rng, 4, 400, n)
    phase = jittered_phase(rng, period, 0.08 * rng.random((n,)) ** 2, length)
    amplitude = 1 + 0.3 * rng.random((n, 1)) * smooth_noise(rng, 3 * period, (n, length))
    return harmonics(rng, phase, 8) * amplitude + log_uniform(rng, 0.003, 0.3, (n, 1)) * rng.standard_normal(
        (n, length)
    )


def _quasi_pulses(rng: Generator, seconds: Float64) -> Float64:
    """One to four pulses per cycle, as heart beats and strokes have them; each beat has its own height."""
    n, length = seconds.shape
    phase = jittered_phase(rng, log_uniform(rng, 8, 400, n), 0.1 * rng.random((n,)) ** 2, length)
    beat = np.clip(phase.astype(int), 0, None)
    height = 1 + 0.2 * rng.random((n, 1)) * rng.standard_normal((n, int(beat.max()) + 1))
    out = np.zeros((n, length))
    for pulse in range(4):
        there = (pulse == 0) | (rng.random((n, 1)) < 0.6)
        width = log_uniform(rng, 0.01, 0.15, (n, 1))
        distance = (phase - rng.random((n, 1)) + 0.5) % 1.0 - 0.5
        out += there * rng.standard_normal((n, 1)) * np.exp(-0.5 * (distance / width) ** 2)
    out *= np.take_along_axis(height, beat, 1)
    return out + log_uniform(rng, 0.002, 0.1, (n, 1)) * rng.standard_normal((n, length))


def _bursts(rng: Generator, seconds: Float64) -> Float64:
    """Rest, then bursts that rise at once and fade, some of them ringing."""
    n, length = seconds.shape
    starts = (rng.random((n, length)) < log_uniform(rng, 2e-3, 3e-2, (n, 1))) * rng.lognormal(0, 0.5, (n, length))
    envelope = decaying(rng, starts, log_uniform(rng, 3, 100, n))
    ring = np.cos(2 * np.pi * np.arange(length) / log_uniform(rng, 4, 60, (n, 1)))
    carrier = np.where(rng.random((n, 1)) < 0.4, ring, 1.0)
    return envelope * carrier + log_uniform(rng, 0.01, 0.2, (n, 1)) * rng.standard_normal((n, length))


FAMILIES: dict[str, Family] = {
    "ar": _ar,
    "walk": _walk,
    "daily": _daily,
    "counts": _counts,
    "waves": _waves,
    "markov": _markov,
    "pareto": _pareto,
    "quantised": _quantised,
    "quasi_harmonic": _quasi_harmonic,
    "quasi_pulses": _quasi_pulses,
    "bursts": _bursts,
}
COUNTS = frozenset({"counts"})
CLOCKLESS = frozenset({"quasi_harmonic", "quasi_pulses", "waves", "bursts"})


# ---------------------------------------------------------------- disturbances


def _as_it_is(rng: Generator, x: Float64, family: str) -> Float64:
    return x


def _disturbed(rng: Generator, x: Float64, family: str) -> Float64:
    """Drifts, shifts, changed variance, units of measurement, drop-outs: what real recordings do to any shape."""
    n, length = x.shape
    spread = x.std(1, keepdims=True) + 1e-9
    if family not in COUNTS:
        middle = x.mean(1, keepdims=True)
        x = middle + (x - middle) * _segments(rng, n, length, often=0.15, low=np.log(0.3), high=np.log(3.0), power=True)
        x = x + spread * _segments(rng, n, length, often=0.25, low=-4.0, high=4.0, power=False)
        drifts = (rng.random((n, 1)) < 0.2) * rng.uniform(-4, 4, (n, 1)) * np.linspace(0, 1, length)
        x = x + spread * drifts
        x = (x / spread + (rng.random((n, 1)) < 0.7) * rng.uniform(-20, 20, (n, 1))) * log_uniform(
            rng, 1e-2, 1e4, (n, 1)
        )
    missing = _runs(rng, n, length, often=0.12, longest=60)
    missing |= (rng.random((n, 1)) < 0.06) & (rng.random((n, length)) < rng.uniform(0.01, 0.3, (n, 1)))
    missing[:, 0] = False
    held = _runs(rng, n, length, often=0.05, longest=60)
    x = np.where(held, np.where(rng.random((n, 1)) < 0.5, 0.0, x[:, :1]), x)
    return np.where(missing, np.nan, x)


def _segments(rng: Generator, n: int, length: int, *, often: float, low: float, high: float, power: bool) -> Float64:
    """``(n, length)`` steps: up to three lasting changes in a share ``often`` of the rows, elsewhere none."""
    total = np.zeros((n, length))
    time = np.arange(length)
    for change in range(3):
        present = rng.random((n, 1)) < (often if change == 0 else often / 3)
        total += present * rng.uniform(low, high, (n, 1)) * (time >= rng.integers(0, length, (n, 1)))
    return np.exp(total) if power else total


def _runs(rng: Generator, n: int, length: int, *, often: float, longest: int) -> npt.NDArray[np.bool_]:
    """``(n, length)`` bool: one to three runs of up to ``longest`` observations in a share ``often`` of the rows."""
    inside = np.zeros((n, length), dtype=bool)
    time = np.arange(length)
    for run in range(3):
        present = rng.random((n, 1)) < (often if run == 0 else often / 2)
        start = rng.integers(0, length, (n, 1))
        inside |= present & (time >= start) & (time < start + rng.integers(1, longest + 1, (n, 1)))
    return inside
