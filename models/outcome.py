"""What a fold says of observations: scores and events of all of them, evidence of those that matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.evidence.observed import DISPLACEMENT, MEANS, NONE, STILLNESS, VALUES, mixture_below, one_step_forecast
from models.tail import MISSING

TOLD = (
    "score",
    "threshold",
    "verdict",
    "signal",
    "feature",
    "event",
    "imputed",
    "nats",
    "peak",
    "controller",
    "severity",
)
"""What a fold says of a cell, one number each."""

GROUNDS = 18
"""Numbers of a feature that evidence is made of: x (NaN where missing), m, sigma, nats, gate, forecasts made 4 and 8
observations earlier, distance of the level of late from the usual one, that level (of coupled features, but for
displacement: from where the others ask for it), the nine of the one-step mixture."""

BAND = (0.01, 0.99)


EVIDENCE = "evidence"

Wanted = bool | frozenset[str]
"""What is kept of every observation: nothing more (False), evidence and trace (True), or what is named: so much of the
trace, and ``evidence``."""


def wants_evidence(wanted: Wanted) -> bool:
    """Whether evidence is kept of every observation, not only of those with an event."""
    return wanted is True or (wanted is not False and EVIDENCE in wanted)


Trace = Mapping[str, Tensor]
"""What ``explain`` and ``evaluate`` want of every observation, by name; NaN where it does not exist.

``(S, N, F)``: ``level`` (S as reported), ``raw_level``, ``record``, ``gate``; ``short_activity``, ``middle_activity``
and ``long_activity`` (A over 5, 20 and 60 observations), ``activity`` (the greatest of them), ``displacement``,
``stillness``, ``behaviour_nats`` (the strongest of A, displacement and stillness), ``surprise``, ``error_4``,
``expected`` (one step ahead), ``forecast_4``, ``forecast_8``, ``contribution``. ``(S, N)``: ``entity`` (s),
``entity_mean`` (ew(s, 10)), ``entity_rms`` (sqrt(ew(s^2, 10))), ``entity_displacement`` (ew(q, 10)), ``entity_unrest``
(sqrt(rms^2 + 4 displacement^2) (s + 0.05)^0.1), ``values``, ``residuals`` and ``means`` (T^2 / F), ``controller`` (d).
"""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What stands behind E cells of a call: those with an event, or all of them.

    Attributes
    ----------
    s, n
        ``(E,)`` int64: the cell.
    observed, expected, band_low, band_high, usual, nats
        ``(E, F)``: raw units (NaN where missing); band = 1 and 99 % points of the one-step mixture; the usual level
        is where displacement is measured from, of coupled features what would go with the others.
    direction
        ``(E,)`` int8: -1 below, +1 above what was expected (where it has a usual level, that level), 0 none.
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
    usual: Tensor
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
        uint8 index into :data:`models.evidence.observed.SIGNALS`.
    feature
        int16 strongest feature, -1 for an entity signal or none.
    imputed
        Share of values that were missing.
    event
        uint8: 0 none, 1 opened, 2 updated, 3 resolved.
    details
        Evidence of cells with an event (of all with ``detail=True``).
    trace
        What was wanted of it.
    """

    score: Tensor
    threshold: Tensor
    verdict: Tensor
    signal: Tensor
    feature: Tensor
    imputed: Tensor
    event: Tensor
    details: Evidence
    trace: Trace


def step_scores(told: Tensor, cells: Tensor, grounds: Tensor, features: int, trace: Trace) -> StepScores:
    """What a fold gives.

    Parameters
    ----------
    told
        ``(S, 11, N)`` in the order of :data:`TOLD`.
    cells
        ``(2, E)`` int64: s and n of the cells whose evidence is wanted.
    grounds
        ``(18, E F)``: what that is made of (see :data:`GROUNDS`), the features of a cell side by side.
    """
    of = dict(zip(TOLD, told.unbind(1), strict=True))
    nothing = of["score"] == 0
    return StepScores(
        torch.where(of["verdict"] == MISSING, torch.nan, of["score"]),
        of["threshold"],
        of["verdict"].to(torch.uint8),
        of["signal"].masked_fill(nothing, NONE).to(torch.uint8),
        of["feature"].masked_fill(nothing, -1).to(torch.int16),
        of["imputed"],
        of["event"].to(torch.uint8),
        _evidence(told[cells[0], :, cells[1]], cells, grounds, features),
        trace,
    )


def _evidence(told: Tensor, cells: Tensor, grounds: Tensor, features: int) -> Evidence:
    """Evidence of E cells from what was told of them ``(E, 11)`` and its grounds ``(18, E F)``."""
    if not len(told):
        return _no_evidence(cells[0], grounds.new_empty(0, features))
    of = dict(zip(TOLD, told.unbind(1), strict=True))
    observed, mean, sigma, nats, gate, four, eight, displaced, usual = grounds[:9].view(9, -1, features)
    mixture = grounds[9:]
    expected = one_step_forecast(mixture, mean.flatten(), sigma.flatten()).view_as(mean)
    low, high = (mean + sigma * torch.sinh(mixture_point(mixture, p)).view_as(mean) for p in BAND)
    strongest = nats.argmax(1, keepdim=True)

    def of_strongest(column: Tensor) -> Tensor:
        return column.gather(1, strongest).squeeze(1)

    ahead = of_strongest(eight)
    basis = torch.where(torch.isfinite(ahead), ahead, of_strongest(expected))
    direction = torch.sign(of_strongest(observed) - basis).nan_to_num_(0.0)
    has_usual = (of["signal"] == DISPLACEMENT) | (of["signal"] == VALUES) | (of["signal"] == MEANS)
    direction = torch.where(has_usual, of_strongest(displaced).sign(), direction)
    direction = direction.masked_fill(of["signal"] == STILLNESS, 0.0) * (of["nats"] > 0)
    return Evidence(
        cells[0],
        cells[1],
        observed,
        expected,
        low,
        high,
        usual,
        nats,
        direction.to(torch.int8),
        of_strongest(gate),
        of_strongest(four),
        ahead,
        of["peak"],
        of["controller"],
        of["severity"].to(torch.uint8),
    )


def _no_evidence(cell: Tensor, wide: Tensor) -> Evidence:
    """Evidence of no cell: an empty index, and no rows of F features."""
    flat = wide.new_empty(0)
    whole = flat.to(torch.int8), flat.to(torch.uint8)
    return Evidence(cell, cell, wide, wide, wide, wide, wide, wide, whole[0], flat, flat, flat, flat, flat, whole[1])


def mixture_point(mixture: Tensor, p: float) -> Tensor:
    """The p point of ``(9, R)`` mixtures of logistics, by bisection to 4e-5; 0 where there is no mixture."""
    low, high = mixture.new_full(mixture.shape[1:], -20.0), mixture.new_full(mixture.shape[1:], 20.0)
    for _ in range(20):
        middle = (low + high) * 0.5
        below = mixture_below(middle, mixture) < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(mixture[6] > 0, (low + high) * 0.5, 0.0)
