"""Saved streams as people look at them: whose state is current, and what the numbers of a row mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.row import RowLayout
from pipeline.errors import DecodeError, VersionError
from pipeline.partition import from_offset
from pipeline.records import Float32, Partition
from pipeline.registry import Registry, base_weights
from pipeline.settings import Settings
from pipeline.sources.base import CommittedOffset
from pipeline.state.base import Snapshot, StateKey, StateStore
from pipeline.state.codec import decode

SCAN_COUNT = 500


@dataclass(frozen=True, slots=True)
class StoredStream:
    """One stream as it was saved last; the worker that owns it is a few seconds ahead."""

    key: StateKey
    stream_id: str
    snapshot: Snapshot

    @property
    def partition(self) -> Partition:
        """Where its records are."""
        return self.key.partition

    def number(self, name: str) -> int | None:
        """A number of the header; ``None`` where it says there is none."""
        value = int(self.snapshot.header[name])
        return None if value < 0 else value

    def observations(self, layout: RowLayout | None) -> int | None:
        """Valid observations that its statistics rest on; ``None`` under an unknown layout."""
        if layout is None:
            return None
        entity = self.snapshot.rows[layout.features * layout.feature_width :]
        return int(entity[layout.columns("life.count")][0])


def current_keys(keys: Iterable[StateKey], committed: Mapping[Partition, CommittedOffset] | None) -> list[StateKey]:
    """Without the states that a partition left behind when it began a new incarnation.

    Parameters
    ----------
    committed
        The group's committed offsets, which name the incarnations in force; ``None`` where they cannot be had: all
        states are kept then.
    """
    if committed is None:
        return list(keys)
    in_force: dict[Partition, str] = {}
    for partition, offset in committed.items():
        try:
            in_force[partition] = from_offset(offset).incarnation
        except DecodeError:
            continue  # set by hand; the worker begins a new incarnation there
    return [key for key in keys if in_force.get(key.partition, key.incarnation) == key.incarnation]


def scan_streams(store: StateStore, keys: Iterable[StateKey]) -> Iterator[StoredStream]:
    """Every saved stream, each once.

    Raises
    ------
    StoreAway
        The store does not answer.
    """
    for key in keys:
        seen: set[str] = set()
        cursor = 0
        while True:
            cursor, values = store.scan(key, cursor, SCAN_COUNT)
            for stream_id, value in values.items():
                if stream_id not in seen:
                    seen.add(stream_id)
                    yield StoredStream(key, stream_id, decode(value))
            if cursor == 0:
                break


def find_stream(store: StateStore, keys: Iterable[StateKey], stream_id: str) -> list[StoredStream]:
    """A stream by its id: usually one, more where producers put it on several partitions."""
    return [
        StoredStream(key, stream_id, decode(value)) for key in keys for value in store.peek(key, [stream_id]).values()
    ]


class Layouts:
    """Row layouts of saved streams, by profile and version; each made once.

    Parameters
    ----------
    settings
        Which topic has which profile, and where the registry is. A version that is not in it (any more) is taken to
        have the layout of the profile as it is set now, if the layout's id says so.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._registry = Registry(settings.registry.folder)
        self._profile_of = settings.profile_names()
        self._known: dict[tuple[str, str], RowLayout | None] = {}

    def of(self, stream: StoredStream) -> RowLayout | None:
        """The layout of a stream's row, ``None`` where it cannot be told."""
        profile = self._profile_of.get(stream.partition.topic)
        if profile is None:
            return None
        place = (profile, stream.snapshot.model_version)
        if place not in self._known:
            self._known[place] = self._layout(*place)
        layout = self._known[place]
        return layout if layout is not None and layout.id == stream.snapshot.layout else None

    def _layout(self, name: str, version: str) -> RowLayout | None:
        profile = self._settings.profiles[name]
        try:
            weights, fold = self._registry.load(name, version)
        except VersionError:
            try:
                weights, fold = base_weights(profile.builtin() or profile.predictor), profile.fold()
            except VersionError:
                return None
        try:
            return RowLayout(fold, weights.predictor)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class NamedSlice:
    """One slice of a row: ``values`` are ``(F, width)`` of feature rows, or ``(1, width)`` of the entity row."""

    where: str
    name: str
    meaning: str
    values: Float32


def named_slices(snapshot: Snapshot, layout: RowLayout) -> list[NamedSlice]:
    """The whole row by name, in its order."""
    wide = layout.features * layout.feature_width
    parts: dict[str, npt.NDArray[np.float32]] = {
        "feature": snapshot.rows[:wide].reshape(layout.features, layout.feature_width),
        "entity": snapshot.rows[wide:].reshape(1, layout.entity_width),
    }
    return [
        NamedSlice(where, name, meaning, parts[where][:, offset : offset + width])
        for where, name, offset, width, meaning in layout.describe()
    ]
