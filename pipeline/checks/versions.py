"""Whether the model version of each profile loads and fits, and those that a replay would need are still there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from models.config import FoldConfig
from models.pretrained import Weights
from models.row import RowLayout
from models.step import Scorer
from pipeline.checks.finding import Finding, ok, problem, warning
from pipeline.errors import ConfigurationError, DecodeError, TidewatchError, VersionError
from pipeline.partition import from_offset
from pipeline.registry import Registry, base_weights, version_name
from pipeline.settings import Settings
from pipeline.sources.base import CommittedOffset
from pipeline.versions_in_use import Offsets

HISTORY = "history"


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
            before = RowLayout(serving, weights.predictor)
            after = RowLayout(fold, (weights if is_kept else base).predictor)
            rows = (
                "rows are carried whole" if before.id == after.id else "of the rows, what both layouts have is carried"
            )
            yield warning(
                name,
                f"version {current} is served, made with other settings ({_differences(serving, fold)}): "
                f"the next worker publishes a new version, and running ones change over to it; {rows}",
            )


def check_histories(settings: Settings, cluster: Offsets) -> Iterator[Finding]:
    """Versions that the group's committed offsets name: a replay scores each record with the one that scored it first.

    Nothing is said of a group that has committed nothing yet.
    """
    registry = Registry(settings.registry.folder)
    try:
        offsets = cluster.committed(settings.kafka.group)
    except TidewatchError as exc:
        yield problem(HISTORY, f"what group {settings.kafka.group!r} committed cannot be read: {exc}")
        return
    for name, profile in settings.profiles.items():
        mine = [offset for partition, offset in offsets.items() if partition.topic in profile.topics]
        if mine:
            yield from _check_history(name, mine, registry)


def _check_history(name: str, offsets: Sequence[CommittedOffset], registry: Registry) -> Iterator[Finding]:
    named: set[str] = set()
    for offset in offsets:
        try:
            named.update(version for _, version in from_offset(offset).history)
        except DecodeError as exc:
            yield warning(HISTORY, f"{name}: {exc}: such partitions begin anew; does another program use this group?")
    gone = []
    for version in sorted(named):
        try:
            registry.load(name, version)
        except VersionError as exc:
            gone.append(str(exc))
    if gone:
        yield problem(
            HISTORY,
            f"{name}: records that may have to be folded again were scored by versions that are not to be had; bring "
            "them back (is registry.folder the workers' one? tidewatch models import), or streams lose their past:\n"
            + "\n".join(gone),
        )
    elif named:
        yield ok(HISTORY, f"{name}: {len(offsets)} partitions committed; every version they name is there")


def _require_fit(weights: Weights, fold: FoldConfig) -> None:
    try:
        Scorer(weights, fold, "cpu")
    except ValueError as exc:
        raise ConfigurationError(f"the weights do not fit the profile: {exc}") from exc


def _differences(serving: FoldConfig, wanted: FoldConfig) -> str:
    changed = [name for name in serving.__slots__ if getattr(serving, name) != getattr(wanted, name)]
    return ", ".join(changed) or "predictor"
