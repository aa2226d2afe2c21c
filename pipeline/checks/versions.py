"""Whether the model version of each profile loads and fits."""

from __future__ import annotations

from collections.abc import Iterator

from models.config import FoldConfig
from models.pretrained import Weights
from models.step import Scorer
from pipeline.checks.finding import Finding, ok, problem, warning
from pipeline.errors import ConfigurationError
from pipeline.registry import Registry, base_weights, version_name
from pipeline.settings import Settings


def check_versions(settings: Settings) -> Iterator[Finding]:
    """One finding for each profile; nothing is published."""
    registry = Registry(settings.registry.folder)
    for name, profile in settings.profiles.items():
        fold = profile.fold()
        try:
            base = base_weights(profile.builtin() or profile.predictor)
            current = registry.current(name)
            if current is None:
                _require_fit(base, fold)
                yield ok(name, f"version {version_name(base, fold)} loads and fits; the first worker publishes it")
                continue
            weights, serving = registry.load(name, current)
            is_kept = weights.predictor == base.predictor
            _require_fit(weights if is_kept else base, fold)
        except ConfigurationError as exc:
            yield problem(name, str(exc))
            continue
        if serving == fold and is_kept:
            yield ok(name, f"version {current} is served, loads and fits")
        else:
            yield warning(
                name,
                f"version {current} is served, made with other settings ({_differences(serving, fold)}): "
                "the next worker publishes a new version, and running ones change over to it",
            )


def _require_fit(weights: Weights, fold: FoldConfig) -> None:
    try:
        Scorer(weights, fold, "cpu")
    except ValueError as exc:
        raise ConfigurationError(f"the weights do not fit the profile: {exc}") from exc


def _differences(serving: FoldConfig, wanted: FoldConfig) -> str:
    changed = [name for name in serving.__slots__ if getattr(serving, name) != getattr(wanted, name)]
    return ", ".join(changed) or "predictor"
