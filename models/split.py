"""Recorded streams as lessons for offline training: split in time order, cut into segments that learn side by side.

What a predictor sees is made by :func:`models.features.window_inputs`, causally, from each stream's first observation
on, as when serving: missing values get a stand-in and no target, outliers are clipped. Nothing that is fitted (weights,
preconditioner, units of the report) sees an observation after the training part.

Shapes: T time, F features, B segments (times features, for a predictor that sees one at a time), K horizons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.config import GAP_INTERVALS, Scope
from models.features import CLIP_SIGMAS, INPUTS, VALUE_LIMIT, window_inputs
from models.training import FIRST_TARGET, Lessons

LEAST_MOVE = 1e-9
"""What moves by a smaller part of its level stands still: that is how sums of equal numbers err."""
SIGMAS_OF_99 = 2.576
"""So far from its mean is one in a hundred values of a normal distribution, in standard deviations."""
FEWEST = 64


@dataclass(frozen=True, slots=True)
class Series:
    """One recorded stream: ``times_ms`` (T,) increasing, ``values`` (T, F) with NaN where missing.

    ``has_clock`` and ``has_week``: what the rows of its profile remember of times.
    """

    name: str
    times_ms: Tensor
    values: Tensor
    interval_s: float | None
    has_clock: bool
    has_week: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """How streams become lessons.

    Attributes
    ----------
    train, validation
        Shares of every stream, in time order; the rest is for the test.
    segment
        Observations of a segment.
    lead
        Observations before a segment that only warm its state up.
    """

    train: float = 0.6
    validation: float = 0.2
    segment: int = 1024
    lead: int = 64


@dataclass(frozen=True, slots=True)
class Part:
    """Segments of one part.

    Attributes
    ----------
    lessons
        ``x`` is NaN outside the part, ``sigma`` NaN where nothing can be forecast yet: no targets there.
    unit
        ``(B,)`` or ``(B, F)``: standard deviation of the segment's stream over its training part, wild values clipped;
        NaN where it stood still there, or had no value.
    stream
        ``(B,)`` int64: which stream (and feature, counted on) a segment is of.
    """

    lessons: Lessons
    unit: Tensor
    stream: Tensor

    @property
    def has_targets(self) -> bool:
        """Whether there is a value in it that can be forecast."""
        return bool((self.lessons.x[1:].isfinite() & self.lessons.sigma[:-1].isfinite()).any())


@dataclass(frozen=True, slots=True)
class Split:
    """The three parts of all streams, and the plan that made them."""

    train: Part
    validation: Part
    test: Part
    plan: Plan


def split_of(streams: Sequence[Series], scope: Scope, plan: Plan = Plan()) -> Split:
    """Lessons of recorded streams, all with the same F features.

    Raises
    ------
    ValueError
        Shares that leave a part empty, a stream too short to be split, or nothing to forecast in the training or the
        validation part.
    """
    if plan.train <= 0 or plan.validation <= 0 or plan.train + plan.validation >= 1:
        raise ValueError(f"train {plan.train} and validation {plan.validation} must leave something for the test")
    short = [stream.name for stream in streams if len(stream.times_ms) < FEWEST]
    if short or not streams:
        raise ValueError(f"streams need at least {FEWEST} observations each: {', '.join(short) or 'there are none'}")
    seen = _seen(streams)
    ends = [(int(plan.train * len(s.times_ms)), int((plan.train + plan.validation) * len(s.times_ms))) for s in streams]
    units = [_unit(s.values[:end]) for s, (end, _) in zip(streams, ends, strict=True)]
    spans = {
        "training": [(0, end) for end, _ in ends],
        "validation": ends,
        "test": [(end, len(s.times_ms)) for s, (_, end) in zip(streams, ends, strict=True)],
    }
    for name, span in spans.items():
        if all(start == stop for start, stop in span):
            raise ValueError(f"the {name} part has no row; give it a larger share, or longer recordings")
    train, validation, test = (_part(seen, units, span, scope, plan) for span in spans.values())
    for name, part in (("training", train), ("validation", validation)):
        if not part.has_targets:
            raise ValueError(
                f"the {name} part has no value to forecast: all are missing, or among the first {FIRST_TARGET} "
                "observations of a stream; choose other streams, or other shares"
            )
    return Split(train, validation, test, plan)


def _seen(streams: Sequence[Series]) -> list[Lessons]:
    """Each stream as ``(T, F, …)`` lessons; streams of equal interval are folded side by side."""
    made: dict[int, Lessons] = {}
    kinds: dict[tuple[float | None, bool, bool], list[int]] = {}
    for number, stream in enumerate(streams):
        kinds.setdefault((stream.interval_s, stream.has_clock, stream.has_week), []).append(number)
    for (interval_s, has_clock, has_week), numbers in kinds.items():
        group = [streams[number] for number in numbers]
        longest, features = max(len(s.times_ms) for s in group), group[0].values.shape[1]
        x = torch.full((longest, len(group), features), torch.nan)
        times_ms = torch.zeros(longest, len(group), dtype=torch.int64)
        after_gap = torch.zeros(longest, len(group), dtype=torch.bool)
        for column, stream in enumerate(group):
            length = len(stream.times_ms)
            x[:length, column], times_ms[:length, column] = stream.values, stream.times_ms
            times_ms[length:, column] = stream.times_ms[-1]
            if interval_s is not None:
                after_gap[1:length, column] = stream.times_ms.diff() > GAP_INTERVALS * 1000 * interval_s
        known = interval_s if has_clock else None
        wide = times_ms.repeat_interleave(features, 1), after_gap.repeat_interleave(features, 1)
        folded = window_inputs(x.flatten(1), None if known is None else wide[0], known, wide[1], has_week)
        inputs = folded.inputs.reshape(longest, len(group), features, INPUTS)
        mean, sigma = folded.mean.view_as(x), folded.sigma.clone().view_as(x)
        sigma[:FIRST_TARGET] = torch.nan
        for column, number in enumerate(numbers):
            end = len(streams[number].times_ms)
            made[number] = Lessons(inputs[:end, column], x[:end, column], mean[:end, column], sigma[:end, column])
    return [made[number] for number in range(len(streams))]


def _part(
    seen: Sequence[Lessons], units: Sequence[Tensor], spans: Sequence[tuple[int, int]], scope: Scope, plan: Plan
) -> Part:
    """The segments of one span of each stream."""
    length = plan.lead + plan.segment
    cuts = [
        (number, at, min(at + plan.segment, stop))
        for number, (start, stop) in enumerate(spans)
        for at in range(start, stop, plan.segment)
    ]
    features = seen[0].x.shape[1]
    shape = (length, len(cuts), features)
    inputs = torch.zeros(*shape, INPUTS)
    x, mean, sigma = torch.full(shape, torch.nan), torch.zeros(shape), torch.full(shape, torch.nan)
    for column, (number, at, stop) in enumerate(cuts):
        begin, lessons = max(0, at - plan.lead), seen[number]
        inside = slice(0, stop - begin)
        inputs[inside, column] = lessons.inputs[begin:stop]
        x[at - begin : stop - begin, column] = lessons.x[at:stop]
        mean[inside, column], sigma[inside, column] = lessons.mean[begin:stop], lessons.sigma[begin:stop]
    unit = torch.stack([units[number] for number, *_ in cuts])
    stream = torch.tensor([number for number, *_ in cuts])
    if scope == "stream" and features > 1:
        return Part(Lessons(inputs.flatten(2), x, mean, sigma), unit, stream)
    own = (stream.unsqueeze(1) * features + torch.arange(features)).flatten()
    flat = Lessons(inputs.flatten(1, 2), x.flatten(1), mean.flatten(1), sigma.flatten(1))
    return Part(flat, unit.flatten(), own)


def _unit(values: Tensor) -> Tensor:
    """Standard deviation ``(F,)`` of what is there of ``(T, F)`` values, NaN where nothing moves.

    Values are clipped about as the normaliser clips them, at 10 sigma: with a wild one among them as unit, all errors
    would be nothing. Sigma is taken from the distance from the median that one in a hundred exceeds, of those that are
    not the median itself, for a stream may rest most of the time.
    """
    known = torch.where(torch.isfinite(values), values.double().clamp(-VALUE_LIMIT, VALUE_LIMIT), torch.nan)
    median = known.nanmedian(0).values
    distance = (known - median).abs()
    moved = torch.where(distance > 0, distance, torch.nan).sort(0).values  # NaN last
    place = (0.99 * (moved.isfinite().sum(0, keepdim=True) - 1).clamp_min(0)).long()  # never the largest of several
    reach = CLIP_SIGMAS * moved.gather(0, place)[0] / SIGMAS_OF_99
    clipped = torch.minimum(torch.maximum(known, median - reach), median + reach)
    sd = (clipped - clipped.nanmean(0)).square().nanmean(0).sqrt()
    level = clipped.abs().nan_to_num(0.0).amax(0)
    return torch.where(sd > LEAST_MOVE * level, sd, torch.nan).float()
