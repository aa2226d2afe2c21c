"""Model versions on disk: published atomically, loaded by name, the one to serve named by a pointer.

    <folder>/<profile>/versions/<version>/weights.safetensors   the weights and
                                          manifest.json         what is known of them
                                          fold.json             the settings that enter the fold
    <folder>/<profile>/current                                  the version to serve

A version is named by its content: publishing the same weights with the same settings twice is one version.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from pathlib import Path

from models.config import FoldConfig
from models.pretrained import BUILTIN, Weights, builtin
from models.step import Scorer
from pipeline.errors import VersionError

FOLD_FILE = "fold.json"


class Registry:
    """The versions of all profiles in one folder; safe for several processes at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def publish(self, profile: str, weights: Weights, fold: FoldConfig) -> str:
        """Write a version, whole or not at all; returns its name, 12 hex digits."""
        version = version_name(weights, fold)
        target = self._version_folder(profile, version)
        if target.exists():
            return version
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.parent / f".{version}.{secrets.token_hex(4)}"
        try:
            weights.save(draft)
            (draft / FOLD_FILE).write_text(fold.to_json() + "\n")
            os.replace(draft, target)
        except OSError as exc:
            shutil.rmtree(draft, ignore_errors=True)
            if not target.exists():  # another process was faster where it does
                raise VersionError(f"cannot publish version {version} in {target.parent}: {exc}") from exc
        return version

    def load(self, profile: str, version: str) -> tuple[Weights, FoldConfig]:
        """Weights and settings of a version.

        Raises
        ------
        VersionError
            It is not there, damaged, or its content is not what its name says.
        """
        folder = self._version_folder(profile, version)
        if not folder.is_dir():
            raise VersionError(f"profile {profile}: no version {version} in {folder.parent}")
        try:
            weights = Weights.load(folder)
            fold = FoldConfig.from_json((folder / FOLD_FILE).read_text())
        except (OSError, ValueError, TypeError) as exc:
            raise VersionError(f"profile {profile}: version {version} cannot be loaded: {exc}") from exc
        if version_name(weights, fold) != version:
            raise VersionError(f"profile {profile}: the content of {folder} is not version {version}")
        return weights, fold

    def scorer(self, profile: str, version: str, device: str) -> Scorer:
        """A version ready to score on ``device``. Raises VersionError as :meth:`load` does."""
        weights, fold = self.load(profile, version)
        return Scorer(weights, fold, device)

    def versions(self, profile: str) -> list[str]:
        """All versions of a profile, oldest first."""
        folder = self._folder / profile / "versions"
        found = [entry for entry in folder.glob("*") if not entry.name.startswith(".")] if folder.is_dir() else []
        return [entry.name for entry in sorted(found, key=lambda entry: (entry.stat().st_mtime_ns, entry.name))]

    def current(self, profile: str) -> str | None:
        """The version to serve; ``None`` before the first was named."""
        try:
            return (self._folder / profile / "current").read_text().strip() or None
        except FileNotFoundError:
            return None

    def serve(self, profile: str, version: str) -> None:
        """Name the version to serve; workers follow within seconds, each partition at a quiet commit."""
        self.load(profile, version)
        pointer = self._folder / profile / "current"
        draft = pointer.with_name(f".current.{secrets.token_hex(4)}")
        draft.write_text(version + "\n")
        os.replace(draft, pointer)

    def ensure(self, profile: str, predictor: str, fold: FoldConfig) -> str:
        """The version for these settings, published and served where it is new.

        Weights promoted since stay in force under the same predictor: only the settings are exchanged then.
        """
        current = self.current(profile)
        if current is not None:
            weights, serving = self.load(profile, current)
            if serving == fold and _same_predictor(weights, base_weights(predictor)):
                return current
            if not _same_predictor(weights, base_weights(predictor)):
                weights = base_weights(predictor)
        else:
            weights = base_weights(predictor)
        version = self.publish(profile, weights, fold)
        self.serve(profile, version)
        return version

    def _version_folder(self, profile: str, version: str) -> Path:
        return self._folder / profile / "versions" / version


def base_weights(predictor: str) -> Weights:
    """The weights a profile's ``predictor`` names: built in (``gru``, ``lstm``, ``gru32``), or a folder.

    Raises
    ------
    VersionError
        There are none.
    """
    try:
        return builtin(predictor) if predictor in BUILTIN else Weights.load(Path(predictor))
    except ValueError as exc:
        raise VersionError(f"predictor {predictor!r}: {exc}") from exc


def version_name(weights: Weights, fold: FoldConfig) -> str:
    """Twelve hex digits that name weights and settings together."""
    return hashlib.sha256(f"{weights.fingerprint()}:{fold.fingerprint()}".encode()).hexdigest()[:12]


def _same_predictor(one: Weights, other: Weights) -> bool:
    return one.predictor == other.predictor
