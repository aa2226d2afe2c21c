"""Whether the model version of each profile loads and fits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from models.config import FoldConfig
from models.pretrained import Weights
from models.step import Scorer
from pipeline.checks.finding import Finding, ok, problem, warning
from pipeline.errors import ConfigurationError
from pipeline.registry import ROW_LAYOUT, Registry, version_name
from pipeline.settings import Settings


def check_versions(settings: Settings) -> Iterator[Finding]:
    """One finding for each profile, and one where a version cannot be published; nothing is."""
    registry, is_new = Registry(settings.registry.folder), False
    for name, profile in settings.profiles.items():
        fold = profile.fold()
        try:
            weights = registry.wanted(name, profile.builtin() or profile.predictor, fold, profile.scope)
            _require_fit(weights, fold)
        except ConfigurationError as exc:
            yield problem(name, str(exc))
            continue
        current, version = registry.current(name), version_name(weights, fold)
        is_new |= current != version
        if current is None:
            yield ok(name, f"version {version} loads and fits; the first worker publishes it")
        elif current == version:
            yield ok(name, f"version {current} is served, loads and fits")
        else:
            served, serving = registry.read(name, current)
            changed = _differences(serving, fold) or (
                "predictor" if served.fingerprint() != weights.fingerprint() else ROW_LAYOUT
            )
            yield warning(
                name,
                f"version {current} is served, made with other settings ({changed}): "
                "the next worker publishes a new version, and running ones change over to it",
            )
    if is_new and (reason := _why_unwritable(settings.registry.folder)) is not None:
        say = problem if settings.registry.folder.exists() else warning  # it may be made elsewhere, or by another user
        yield say(
            "registry",
            f"{reason}, and workers publish new versions in {settings.registry.folder}: "
            "give their user a folder to write, or name another with registry.folder",
        )


def _why_unwritable(folder: Path) -> str | None:
    """Why versions cannot be written to a folder, which may still have to be made; None where they can."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        return f"{there} is no folder"
    return None if os.access(there, os.W_OK | os.X_OK) else f"{there} cannot be written by this user"


def _require_fit(weights: Weights, fold: FoldConfig) -> None:
    try:
        Scorer(weights, fold, "cpu")
    except ValueError as exc:
        raise ConfigurationError(f"the weights do not fit the profile: {exc}") from exc


def _differences(serving: FoldConfig, wanted: FoldConfig) -> str:
    changed = [name for name in serving.__slots__ if getattr(serving, name) != getattr(wanted, name)]
    return ", ".join(changed)
