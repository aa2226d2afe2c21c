"""What the demo replays: a real recording, a generated plant and a generated network, with what is known of them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from models.synthetic import NETWORK_FEATURES, Fault, LabelledStream, network, plant
from pipeline.errors import ConfigurationError
from pipeline.profile import Profile
from pipeline.records import Float32, Int64, UInt8
from pipeline.sources.recording import RecordedStream
from pipeline.wire import encode_json, encode_packed

ALARM_BUDGET = "2 per week"
HOUR_MS = 3_600_000
PLANT_INTERVAL_S, NETWORK_INTERVAL_S = 300.0, 60.0
SEED = 2

Encode = Callable[[str, Int64, Float32, UInt8 | None], bytes]


@dataclass(frozen=True, slots=True)
class Size:
    """How much is generated. The default is a week of a plant and a day of a network.

    Attributes
    ----------
    sensors, sensor_observations, faults
        Streams of the plant, observations of each, faults in all.
    hosts, minutes, attacks
        The same of the network.
    flow_observations
        How much of the water-flow recording, from its end.
    """

    sensors: int = 208
    sensor_observations: int = 2016
    faults: int = 96
    hosts: int = 24
    minutes: int = 1440
    attacks: int = 12
    flow_observations: int = 1268


@dataclass(frozen=True, slots=True)
class Scene:
    """Streams of one kind, on their way to one topic.

    Attributes
    ----------
    name
        Of the scene and its profile.
    topic
        Where they go; of one partition, so that the few streams there are share every batch.
    profile
        How they are scored.
    window_length
        Observations in a message.
    encode
        The form of its messages.
    streams
        What was recorded.
    faults
        What is known to be wrong in it; ``None`` where nobody labelled it.
    """

    name: str
    topic: str
    profile: Profile
    window_length: int
    encode: Encode
    streams: tuple[RecordedStream, ...]
    faults: tuple[Fault, ...] | None

    @property
    def observations(self) -> int:
        """Observations of all streams."""
        return sum(map(len, self.streams))


def scenes(size: Size) -> tuple[Scene, ...]:
    """All scenes, ending at the same moment of event time."""
    flow = water_flow(size.flow_observations)
    end_ms = int(flow.streams[0].times_ms[-1])
    sensors = plant(
        size.sensors,
        size.sensor_observations,
        size.faults,
        SEED,
        interval_s=PLANT_INTERVAL_S,
        start_ms=end_ms - int(PLANT_INTERVAL_S * 1000) * (size.sensor_observations - 1),
    )
    hosts = network(size.hosts, size.minutes, size.attacks, SEED, start_ms=end_ms - 60_000 * (size.minutes - 1))
    return (
        flow,
        _generated("plant", _profile("plant", ("value",), PLANT_INTERVAL_S), 16, _packed, sensors),
        _generated("network", _profile("network", NETWORK_FEATURES, NETWORK_INTERVAL_S), 10, _json, hosts),
    )


def water_flow(observations: int) -> Scene:
    """The last ``observations`` hours of the water-flow recording that ships inside the river package.

    A flow in a pipeline branch in litres per second, spring 2022, given by Tecnojest s.r.l. It holds a few real
    incidents, but no labels.

    Raises
    ------
    ConfigurationError
        The package is not installed.
    """
    times_ms, values = _read_flow(_river_folder() / "datasets" / "water-flow.csv")
    stream = RecordedStream(
        "water-flow", ("flow",), 3600.0, times_ms[-observations:], values[-observations:], clock=True
    )
    profile = _profile("water-flow", ("flow",), 3600.0)
    return Scene("water-flow", profile.topics[0], profile, 1, _json, (stream,), None)


def _river_folder() -> Path:
    # The file behind river.datasets.WaterFlow, without that import: it takes seconds, for all of river's data sets.
    package = find_spec("river")
    if package is None or not package.submodule_search_locations:
        raise ConfigurationError("the demo's real recording is part of the package river: pip install river")
    return Path(package.submodule_search_locations[0])


def _read_flow(path: Path) -> tuple[Int64, Float32]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        times = [int(datetime.fromisoformat(row["Time"]).timestamp() * 1000) for row in rows]
        values = [[float(row["Water flow [l/s]"])] for row in rows]
    except (OSError, KeyError, ValueError) as exc:
        raise ConfigurationError(f"{path}: not the recording that was expected: {exc}") from exc
    return np.array(times, np.int64), np.array(values, np.float32)


def _profile(name: str, features: tuple[str, ...], interval_s: float) -> Profile:
    return Profile(topics=(f"{name}-windows",), features=features, interval_s=interval_s, alarm_budget=ALARM_BUDGET)


def _generated(
    name: str, profile: Profile, length: int, encode: Encode, recordings: tuple[LabelledStream, ...]
) -> Scene:
    streams = tuple(
        RecordedStream(r.stream_id, r.features, r.interval_s, r.times_ms, r.values, r.labels) for r in recordings
    )
    faults = tuple(fault for recording in recordings for fault in recording.faults)
    return Scene(name, profile.topics[0], profile, length, encode, streams, faults)


def _packed(stream_id: str, times_ms: Int64, values: Float32, labels: UInt8 | None) -> bytes:
    return encode_packed(stream_id, times_ms, values, labels=labels)


def _json(stream_id: str, times_ms: Int64, values: Float32, labels: UInt8 | None) -> bytes:
    return encode_json(stream_id, times_ms, values, labels=labels)
