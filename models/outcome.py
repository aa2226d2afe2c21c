"""What a fold says of observations: scores and events of all of them, evidence of those that matter."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Trace:
    """Everything ``explain`` and ``evaluate`` want of every observation; NaN where it does not exist.

    ``(S, N, F)``: ``level`` (S as reported), ``raw_level``, ``record``, ``gate``; ``short_activity``,
    ``middle_activity`` and ``long_activity`` (A over 5, 20 and 60 observations), ``activity`` (the greatest of them),
    ``displacement``, ``stillness``, ``behaviour_nats`` (the strongest of A, displacement and stillness), ``surprise``,
    ``error_4``, ``expected`` (one step ahead), ``forecast_4``, ``forecast_8``, ``contribution``. ``(S, N)``: ``entity``
    (s), ``entity_mean`` (ew(s, 10)), ``entity_rms`` (sqrt(ew(s^2, 10))), ``values`` and ``residuals`` (T^2 / F),
    ``controller`` (d).
    """

    level: Tensor
    raw_level: Tensor
    record: Tensor
    gate: Tensor
    activity: Tensor
    short_activity: Tensor
    middle_activity: Tensor
    long_activity: Tensor
    displacement: Tensor
    stillness: Tensor
    behaviour_nats: Tensor
    surprise: Tensor
    error_4: Tensor
    expected: Tensor
    forecast_4: Tensor
    forecast_8: Tensor
    contribution: Tensor
    entity: Tensor
    entity_mean: Tensor
    entity_rms: Tensor
    values: Tensor
    residuals: Tensor
    controller: Tensor


@dataclass(frozen=True, slots=True)
class Evidence:
    """What stands behind E cells of a call: those with an event, or all of them.

    Attributes
    ----------
    s, n
        ``(E,)`` int64: the cell.
    observed, expected, band_low, band_high, nats
        ``(E, F)``: raw units (NaN where missing); band = 1 and 99 % points of the one-step mixture.
    direction
        ``(E,)`` int8: -1 below, +1 above what was expected (of a displacement, what was usual), 0 none.
    gate, forecast_4, forecast_8
        ``(E,)`` of the strongest feature; NaN where they do not exist.
    peak, d, severity
        ``(E,)``: peak score of the episode, controller in force, 0 none, 1 warning, 2 critical.
    """

    s: Tensor
    n: Tensor
    observed: Tensor
    expected: Tensor
    band_low: Tensor
    band_high: Tensor
    nats: Tensor
    direction: Tensor
    gate: Tensor
    forecast_4: Tensor
    forecast_8: Tensor
    peak: Tensor
    d: Tensor
    severity: Tensor


@dataclass(frozen=True, slots=True)
class StepScores:
    """Scores and events of S observations of N streams, ``(S, N)`` each.

    Attributes
    ----------
    score
        -log10 p, rounded to 3 decimals; NaN where every value was missing.
    threshold
        In force for this observation, -log10.
    verdict
        uint8: 0 normal, 1 anomalous, 2 warming_up, 3 missing.
    signal
        uint8 index into :data:`models.evidence.SIGNALS`.
    feature
        int16 strongest feature, -1 for an entity signal or none.
    imputed
        Share of values that were missing.
    event
        uint8: 0 none, 1 opened, 2 updated, 3 resolved.
    details
        Evidence of cells with an event (of all with ``detail=True``).
    trace
        Only with ``detail=True``.
    """

    score: Tensor
    threshold: Tensor
    verdict: Tensor
    signal: Tensor
    feature: Tensor
    imputed: Tensor
    event: Tensor
    details: Evidence
    trace: Trace | None
