"""Whether the model version of each profile loads, fits, and scores."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from models.config import FoldConfig
from models.pretrained import Weights
from models.row import Rows
from models.step import Scorer
from pipeline.checks.finding import Finding, ok, problem, warning
from pipeline.errors import ConfigurationError
from pipeline.registry import Registry, base_weights, version_name
from pipeline.settings import Settings

_TRIAL_STREAMS = 16
_TRIAL_OBSERVATIONS = 4


def check_versions(settings: Settings) -> Iterator[Finding]:
    """One finding for each profile; nothing is published."""
    registry = Registry(settings.registry.folder)
    for name, profile in settings.profiles.items():
        fold = profile.fold()
        try:
            base = base_weights(profile.builtin() or profile.predictor)
            current = registry.current(name)
            if current is None:
                _try_out(base, fold)
                yield ok(name, f"version {version_name(base, fold)} scores; the first worker publishes it")
                continue
            weights, serving = registry.load(name, current)
            _try_out(weights, serving)
        except ConfigurationError as exc:
            yield problem(name, str(exc))
            continue
        if serving == fold and weights.predictor == base.predictor:
            yield ok(name, f"version {current} is served, and scores")
        else:
            yield warning(
                name,
                f"version {current} is served, made with other settings ({_differences(serving, fold)}): "
                "the next worker publishes a new version, and running ones change over to it",
            )


def _try_out(weights: Weights, fold: FoldConfig) -> None:
    """Score a few observations of fresh streams.

    Raises
    ------
    ConfigurationError
        The weights do not fit the settings, or give no numbers.
    """
    try:
        scorer = Scorer(weights, fold, "cpu")
    except ValueError as exc:
        raise ConfigurationError(f"the weights do not fit the profile: {exc}") from exc
    rows = Rows.allocate(scorer.layout, _TRIAL_STREAMS, "cpu")
    shape = (_TRIAL_OBSERVATIONS, _TRIAL_STREAMS, len(fold.features))
    values = torch.arange(shape[0] * shape[1] * shape[2], dtype=torch.float32).reshape(shape).sin()
    step_ms = int(1000 * (fold.interval_s or 60.0))
    times_ms = step_ms * torch.arange(1, shape[0] + 1)[:, None].expand(shape[:2])
    last_ms = torch.full((_TRIAL_STREAMS,), -1)
    scores = scorer.score(rows, torch.arange(_TRIAL_STREAMS), values, times_ms, last_ms)
    if not torch.isfinite(scores.score).all():
        raise ConfigurationError("the weights give scores that are no numbers")


def _differences(serving: FoldConfig, wanted: FoldConfig) -> str:
    changed = [name for name in serving.__slots__ if getattr(serving, name) != getattr(wanted, name)]
    return ", ".join(changed) or "predictor"
