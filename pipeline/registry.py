"""Model versions on disk: published atomically, loaded by name, the one to serve named by a pointer.

    <folder>/<profile>/versions/<version>/weights.safetensors   the weights and
                                          manifest.json         what is known of them
                                          fold.json             the settings that enter the fold
    <folder>/<profile>/current                                  the version to serve
    <folder>/<profile>/pinned                                   exists while no learner may change that
    <folder>/<profile>/retrain                                  asks a running learner to train harder
    <folder>/<profile>/history.jsonl                            every decision with its figures, oldest first,
                       history.old.jsonl                        and those before; the oldest are dropped
    <folder>/<profile>/learner.json                             what a learner knows of its streams over a restart

A version is named by its content: publishing the same weights with the same settings twice is one version. Its name
covers the row layout, too, since rows mean something only with theirs: a release that lays rows out otherwise makes a
version of its own of the same weights, and refuses the older one. docs/versions.md says what goes with what.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from models.compression import Form, form_of, load_weights, save_packed
from models.config import FoldConfig, Scope
from models.pretrained import BUILTIN, MANIFEST_FILE, WEIGHTS_FILE, Weights, builtin
from models.row import RowLayout
from models.step import Scorer
from pipeline import __version__
from pipeline.clock import Clock, SystemClock
from pipeline.errors import RegistryAway, VersionError

FOLD_FILE = "fold.json"
ROW_LAYOUT = "row_layout"
"""Where a version's manifest says how its rows are laid out."""
ABSENT = (FileNotFoundError, NotADirectoryError)
"""What reading a file raises that is not there; any other OSError says nothing about that."""

HISTORY_BYTES = 1 << 20
"""Two files of this size keep some thousand decisions: years of a learner."""

DRAFTS_LIVE_S = 3600.0
"""Drafts older than this were left by a process that died."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One line of a profile's history.

    Attributes
    ----------
    time_ms
        Wall clock.
    event
        ``candidate``, ``promoted``, ``rejected``, ``rolled back``, ``confirmed``, ``held``, ``pinned``,
        ``unpinned``, ``imported``, ``retrain``, ``drift``, ``abandoned``, ``followed``, ``resting``, ``removed``,
        ``compressed``, ``configured``.
    version
        The version it is about: the one served from now on, the one given up by a rollback.
    by
        ``learner``, ``operator``, or ``settings`` where a process that starts found others than before.
    parent
        The version it was compared with or made from; served before a promotion, and again after a rollback.
    reason
        In words.
    figures
        The numbers the decision rests on.
    """

    time_ms: int
    event: str
    version: str
    by: str
    parent: str | None = None
    reason: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


class Registry:
    """The versions of all profiles in one folder; safe for several processes at a time."""

    def __init__(self, folder: Path, clock: Clock | None = None) -> None:
        self._folder, self._clock = folder, clock or SystemClock()

    def publish(self, profile: str, weights: Weights, fold: FoldConfig, form: Form | None = None) -> str:
        """Write a version, whole or not at all; returns its name, 12 hex digits.

        Parameters
        ----------
        form
            Store weights that were narrowed to it in fewer bits (:mod:`models.compression`).

        Raises
        ------
        VersionError
            The weights do not fit the settings, or the folder cannot be written.
        """
        try:
            version = version_name(weights, fold)
        except ValueError as exc:
            raise VersionError(f"profile {profile}: {exc}") from exc
        target = self._version_folder(profile, version)
        if target.exists():
            return version
        draft = target.parent / f".{version}.{secrets.token_hex(4)}"
        ours = {ROW_LAYOUT: _layout(weights, fold), "code_version": __version__}
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            named = replace(weights, manifest={**weights.manifest, **ours})
            if form is None:
                named.save(draft)
            else:
                save_packed(named, draft, form)
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
            It is not there, damaged, not what its name says, or of a release that laid rows out otherwise.
        RegistryAway
            It is there and cannot be read now.
        """
        weights, fold = self.read(profile, version)
        made, ours = weights.manifest.get(ROW_LAYOUT), _layout(weights, fold)
        if made is not None and made != ours:
            raise VersionError(
                f"profile {profile}: version {version} has row layout {made} (release "
                f"{weights.manifest.get('code_version')}); release {__version__} lays its rows out as {ours}. A worker "
                "that starts publishes the same weights anew; by hand: tidewatch models import "
                f"{self._version_folder(profile, version)} --profile {profile}"
            )
        if version_name(weights, fold) != version:
            raise VersionError(
                f"profile {profile}: the content of {self._version_folder(profile, version)} is not version {version}"
            )
        return weights, fold

    def read(self, profile: str, version: str) -> tuple[Weights, FoldConfig]:
        """As :meth:`load`, whatever release made it: to look at and to publish anew, not to score with.

        Raises
        ------
        RegistryAway
            Its files are there and cannot be read now.
        """
        folder = self._version_folder(profile, version)
        if not folder.is_dir():
            raise VersionError(f"profile {profile}: no version {version} in {folder.parent}")
        try:
            weights = _weights_in(folder)
            fold = FoldConfig.from_json((folder / FOLD_FILE).read_text())
        except (OSError, ValueError, TypeError) as exc:
            cause = exc if isinstance(exc, OSError) else exc.__cause__
            if isinstance(cause, OSError) and not isinstance(cause, ABSENT):
                raise RegistryAway(f"profile {profile}: version {version} cannot be read: {exc}") from exc
            raise VersionError(f"profile {profile}: version {version} cannot be loaded: {exc}") from exc
        return weights, fold

    def scorer(self, profile: str, version: str, device: str) -> Scorer:
        """A version ready to score on ``device``. Raises VersionError as :meth:`load` does."""
        weights, fold = self.load(profile, version)
        return Scorer(weights, fold, device)

    def size_bytes(self, profile: str, version: str) -> int:
        """What the weights of a version take on disk."""
        return (self._version_folder(profile, version) / WEIGHTS_FILE).stat().st_size

    def versions(self, profile: str) -> list[str]:
        """All versions of a profile, oldest first."""
        folder = self._folder / profile / "versions"
        found = [entry for entry in folder.glob("*") if not entry.name.startswith(".")] if folder.is_dir() else []
        return [entry.name for entry in sorted(found, key=lambda entry: (entry.stat().st_mtime_ns, entry.name))]

    def current(self, profile: str) -> str | None:
        """The version to serve; ``None`` before the first was named. Raises RegistryAway where that cannot be told."""
        try:
            return (self._folder / profile / "current").read_text().strip() or None
        except ABSENT:
            return None
        except OSError as exc:
            raise RegistryAway(f"profile {profile}: which version to serve cannot be read: {exc}") from exc

    def serve(self, profile: str, version: str) -> None:
        """Name the version to serve; workers follow within seconds, each partition at a quiet commit."""
        self.load(profile, version)
        self._put(self._folder / profile / "current", version)

    def ensure(self, profile: str, predictor: str, fold: FoldConfig, scope: Scope | None = None) -> str:
        """The version for these settings, published and served where it is new.

        Weights promoted since stay in force as long as the settings name the same predictor: only the settings, or the
        row layout of this release, are exchanged then.

        Raises
        ------
        VersionError
            As :meth:`wanted`.
        """
        weights = self.wanted(profile, predictor, fold, scope)
        version = self.publish(profile, weights, fold)
        before = self.current(profile)
        if version != before:
            self.serve(profile, version)
        origin = _origin(predictor, base_weights(predictor, scope))
        if origin != self._named_origin(profile):
            self._put(self._folder / profile / "predictor", origin)
        if before not in (None, version):
            reason = "other settings, another predictor, or a release of another row layout"
            self.note(profile, Decision(self._clock.wall_ms(), "configured", version, "settings", before, reason))
        return version

    def wanted(self, profile: str, predictor: str, fold: FoldConfig, scope: Scope | None = None) -> Weights:
        """The weights that a worker with these settings serves; nothing is written.

        Raises
        ------
        VersionError
            What is served, or what ``predictor`` names, cannot be loaded; or it is of another number of features, or
            of the same ones in another order.
        """
        current, base = self.current(profile), base_weights(predictor, scope)
        if current is None:
            return base
        weights, serving = self.read(profile, current)
        if len(serving.features) != len(fold.features):
            raise VersionError(
                f"profile {profile}: version {current} is of {len(serving.features)} features, the settings name "
                f"{len(fold.features)}: the rows of its streams cannot be carried over. Other features are other "
                "streams: give them a profile, topics and a kafka.group of their own"
            )
        if serving.features != fold.features and set(serving.features) == set(fold.features):
            raise VersionError(
                f"profile {profile}: version {current} is of {', '.join(serving.features)}, the settings name them in "
                "another order: each feature would go on with the rows of another one. Columns that have moved are "
                "other streams: give them a profile, topics and a kafka.group of their own"
            )
        is_named_anew = self._named_origin(profile) not in (None, _origin(predictor, base))
        return base if is_named_anew or weights.predictor != base.predictor else weights

    def _named_origin(self, profile: str) -> str | None:
        """What the settings named when weights were last made sure of."""
        try:
            return (self._folder / profile / "predictor").read_text().strip()
        except ABSENT:
            return None

    # -- decisions -----------------------------------------------------------------------------------------------

    def note(self, profile: str, decision: Decision) -> None:
        """Append a decision to the profile's history: one write, so that readers see whole lines."""
        figures = {name: value for name, value in decision.figures.items() if math.isfinite(value)}
        line = json.dumps({**asdict(decision), "figures": figures}, separators=(",", ":")) + "\n"
        place = self._folder / profile / "history.jsonl"
        place.parent.mkdir(parents=True, exist_ok=True)
        handle = _opened_alone(place)
        try:
            end = os.fstat(handle).st_size
            is_cut = end > 0 and os.pread(handle, 1, end - 1) != b"\n"  # a crash in mid-write costs its own line only
            os.write(handle, (b"\n" if is_cut else b"") + line.encode())
            os.fsync(handle)
            if end + len(line) > HISTORY_BYTES:
                os.replace(place, place.with_name("history.old.jsonl"))
        finally:
            os.close(handle)

    def served_before(self, profile: str) -> str | None:
        """What a rollback serves again: the parent of the last promotion of what is served now."""
        current = self.current(profile)
        promotions = (it for it in reversed(self.history(profile)) if it.event == "promoted" and it.version == current)
        return next((promotion.parent for promotion in promotions if promotion.parent), None)

    def history(self, profile: str) -> list[Decision]:
        """All decisions that are kept, oldest first; a line cut short by a crash is passed over."""
        lines: list[str] = []
        for name in ("history.old.jsonl", "history.jsonl"):
            with suppress(FileNotFoundError):
                lines += (self._folder / profile / name).read_text(encoding="utf-8").splitlines()
        found = []
        for line in lines:
            try:
                found.append(Decision(**json.loads(line)))
            except (ValueError, TypeError):
                continue
        return found

    def pin(self, profile: str, is_pinned: bool) -> None:
        """Forbid, or allow again, that a learner changes what is served; an operator always may."""
        place = self._folder / profile / "pinned"
        if is_pinned:
            self._put(place, self.current(profile) or "")
        else:
            place.unlink(missing_ok=True)

    def is_pinned(self, profile: str) -> bool:
        """Whether a learner must leave alone what is served."""
        return (self._folder / profile / "pinned").exists()

    def ask_retrain(self, profile: str) -> None:
        """Ask the running learner for a forced retraining."""
        self._put(self._folder / profile / "retrain", "1")

    def take_retrain(self, profile: str) -> bool:
        """Whether one was asked for; the asking ends with the answer."""
        try:
            (self._folder / profile / "retrain").unlink()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def remember(self, profile: str, memory: Mapping[str, Any]) -> None:
        """Keep what a learner knows of its streams, in JSON's types."""
        self._put(self._folder / profile / "learner.json", json.dumps(memory, separators=(",", ":")))

    def recall(self, profile: str) -> dict[str, Any]:
        """What was kept last; empty where nothing was, or where it is damaged."""
        try:
            found = json.loads((self._folder / profile / "learner.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    # -- moving and removing -------------------------------------------------------------------------------------

    def export(self, profile: str, version: str, target: Path) -> None:
        """Copy a version into a new folder, from where :meth:`bring_in` takes it elsewhere.

        Raises
        ------
        VersionError
            There is no such version, it is damaged, or ``target`` exists.
        """
        self.load(profile, version)
        try:
            shutil.copytree(self._version_folder(profile, version), target)
        except OSError as exc:
            raise VersionError(f"cannot export version {version} to {target}: {exc}") from exc

    def bring_in(self, profile: str, source: Path, fold: FoldConfig) -> str:
        """Publish the weights in a folder under this profile's settings; returns the version's name.

        Whatever settings they were exported with do not count: a version served here folds as this profile says.

        Raises
        ------
        VersionError
            Files are missing, truncated, damaged, not ours, hold non-finite numbers, or do not fit the profile.
        """
        try:
            weights = _weights_in(source)
            Scorer(weights, fold, "cpu")
        except ValueError as exc:
            raise VersionError(f"cannot be imported for profile {profile}: {exc}") from exc
        return self.publish(profile, weights, fold, form_of(source))

    def remove_unused(self, profile: str, keep: Collection[str], newest: int, now_s: float) -> list[str]:
        """Delete versions nobody needs; returns their names.

        Kept are the served one and the one before it, those in ``keep`` (live histories: protocol.md rule 11) and the
        ``newest`` ones.
        """
        versions = self.versions(profile)
        needed = {self.current(profile), self.served_before(profile), *keep, *(versions[-newest:] if newest else [])}
        removed = [version for version in versions if version not in needed]
        for version in removed:
            # Renamed first: whoever loads it meanwhile finds all of it or nothing.
            grave = self._version_folder(profile, f".{version}.{secrets.token_hex(4)}")
            os.replace(self._version_folder(profile, version), grave)
            shutil.rmtree(grave, ignore_errors=True)
        for draft in (self._folder / profile / "versions").glob(".*"):
            if now_s - draft.stat().st_mtime > DRAFTS_LIVE_S:
                shutil.rmtree(draft, ignore_errors=True)
        return removed

    def _put(self, place: Path, text: str) -> None:
        """Write a small file, whole or not at all: an empty ``current`` would say that nothing is served yet."""
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
        with draft.open("w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, place)

    def _version_folder(self, profile: str, version: str) -> Path:
        return self._folder / profile / "versions" / version


def _origin(predictor: str, base: Weights) -> str:
    """What a profile's ``predictor`` is known by: a shipped one by name, whatever release; a folder by its weights."""
    return predictor if predictor in BUILTIN else base.fingerprint()


def base_weights(predictor: str, scope: Scope | None = None) -> Weights:
    """The weights a profile's ``predictor`` names: built in (``gru``, ``lstm``, ``gru32``), or a folder.

    Parameters
    ----------
    scope
        What the profile says they must see; None takes them as they are.

    Raises
    ------
    VersionError
        There are none, or they see something else.
    """
    if predictor not in BUILTIN and not Path(predictor).is_dir():
        raise VersionError(f"predictor {predictor!r} is neither shipped ({', '.join(BUILTIN)}) nor a folder of weights")
    try:
        weights = builtin(predictor) if predictor in BUILTIN else _weights_in(Path(predictor))
    except ValueError as exc:
        raise VersionError(f"predictor {predictor!r}: {exc}") from exc
    if scope is not None and weights.predictor.scope != scope:
        sees = {"feature": "each feature by itself", "stream": "all features at once"}
        raise VersionError(
            f"predictor {predictor!r} sees {sees[weights.predictor.scope]}, and the profile's scope is {scope!r}: "
            f"train one that sees {sees[scope]} (tidewatch train --scope {scope}), and name its folder as predictor"
        )
    return weights


def _weights_in(folder: Path) -> Weights:
    """Weights whose pooled tails are numbers, too: they lie in the manifest, which no digest covers."""
    weights = load_weights(folder)
    for kind, tail in asdict(weights.pooled).items():
        for name, value in tail.items():
            if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise ValueError(
                    f"{folder}/{MANIFEST_FILE}: pooled tail {kind}.{name} is {value!r}, no positive number"
                )
    return weights


def _opened_alone(place: Path) -> int:
    """A file for appending, locked until it is closed: not one that another process has just moved away."""
    while True:
        handle = os.open(place, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        fcntl.flock(handle, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(place)):
                return handle
        os.close(handle)


def version_name(weights: Weights, fold: FoldConfig) -> str:
    """Twelve hex digits that name weights, settings and row layout together; ValueError where they do not fit."""
    parts = (weights.fingerprint(), fold.fingerprint(), _layout(weights, fold))
    return hashlib.sha256(":".join(parts).encode()).hexdigest()[:12]


def _layout(weights: Weights, fold: FoldConfig) -> str:
    return RowLayout(fold, weights.predictor).id
