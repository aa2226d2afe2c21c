"""Whether the versions that a replay would need can still be used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.checks.finding import Finding, ok, problem, warning
from pipeline.errors import DecodeError, TidewatchError, VersionError
from pipeline.partition import from_offset
from pipeline.profile import Profile
from pipeline.registry import Registry, version_name
from pipeline.settings import Settings
from pipeline.sources.base import CommittedOffset
from pipeline.versions_in_use import Offsets

SUBJECT = "history"


def check_histories(settings: Settings, cluster: Offsets) -> Iterator[Finding]:
    """Versions that the group's committed offsets name: a replay scores each record with the one that scored it first.

    Nothing is said of a group that has committed nothing yet.
    """
    registry = Registry(settings.registry.folder)
    try:
        offsets = cluster.committed(settings.kafka.group)
    except TidewatchError as exc:
        yield problem(SUBJECT, f"what group {settings.kafka.group!r} committed cannot be read: {exc}")
        return
    for name, profile in settings.profiles.items():
        mine = [offset for partition, offset in offsets.items() if partition.topic in profile.topics]
        if mine:
            yield from _check_history(name, profile, mine, registry)


def _check_history(
    name: str, profile: Profile, offsets: Sequence[CommittedOffset], registry: Registry
) -> Iterator[Finding]:
    named: set[str] = set()
    for offset in offsets:
        try:
            named.update(version for _, version in from_offset(offset).history)
        except DecodeError as exc:
            yield warning(SUBJECT, f"{name}: {exc}: such partitions begin anew; does another program use this group?")
    there = named.intersection(registry.versions(name))
    missing = named - there
    coming = missing & _published_at_start(name, profile, registry) if missing else set()
    gone, refused = sorted(missing - coming), []
    for version in sorted(there):
        try:
            registry.load(name, version)
        except VersionError as exc:
            refused.append(str(exc))
    if gone:
        yield problem(
            SUBJECT,
            f"{name}: records that may have to be folded again were scored by versions that are not there: "
            f"{', '.join(gone)}. Is registry.folder the workers' one? Of a renamed profile, rename its folder in "
            "there, too. Else streams lose their past",
        )
    if refused:
        yield warning(
            SUBJECT,
            f"{name}: what these versions scored cannot be folded again, so streams of partitions that did not stop "
            "cleanly warm up once more:\n" + "\n".join(refused),
        )
    if coming:
        yield warning(
            SUBJECT,
            f"{name}: version {', '.join(coming)} scored what is committed and is not there; the first worker "
            "publishes it. Right where the profile was renamed; else registry.folder is not the workers' one",
        )
    if named and named == there and not refused:
        yield ok(SUBJECT, f"{name}: {len(offsets)} partitions committed; every version they name is there")


def _published_at_start(name: str, profile: Profile, registry: Registry) -> set[str]:
    """The version that the first worker publishes: after a profile was renamed, the one that is named already."""
    fold = profile.fold()
    try:
        weights = registry.wanted(name, profile.builtin() or profile.predictor, fold, profile.scope)
        return {version_name(weights, fold)}
    except (VersionError, ValueError):
        return set()
