"""A replay straight through the engine: no server, nothing left behind but the files asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.engine import Absorbed
from pipeline.offline import Offline
from pipeline.records import Partition, Windows
from pipeline.replay.inputs import Chosen, History, RawInput, SeriesGroup, choose_records, in_batches
from pipeline.replay.outputs import Outputs
from pipeline.settings import Limits
from pipeline.sources.recording import RecordedStream
from pipeline.wire import decode_many

RECORDS_AT_ONCE = 5_000

Advance = Callable[[int], None]
"""Told how many observations (of series) or records (of raw inputs) were done."""


def replay_series(
    offline: Offline, group: SeriesGroup, history: History, length: int, outputs: Outputs, advance: Advance
) -> None:
    """Score recorded streams from fresh rows, or rows warmed up with their history."""
    firsts = ((stream.name, int(stream.times_ms.min())) for stream in group.streams)
    pasts = [past for name, at in firsts if (past := history.before(name, at, group.profile.features)) is not None]
    for absorbed in offline.warm(pasts):
        outputs.tally.silent += absorbed.observations
    for absorbed in offline.score_streams(group.streams, length):
        _take(absorbed, outputs)
        advance(absorbed.observations + absorbed.late)


def replay_raw(
    offline: Offline,
    raw: RawInput,
    chosen: Chosen,
    limits: Limits,
    history: History,
    outputs: Outputs,
    advance: Advance,
) -> None:
    """Score the records of a topic as a worker would: decoded, control records obeyed, bad ones counted."""
    profile = offline.profile
    records = choose_records(raw.read(), chosen, profile, limits)
    for batch in in_batches(records, RECORDS_AT_ONCE):
        parts: dict[Partition, Windows] = {}
        for partition, found in batch.items():
            parts[partition], dead = decode_many(found, partition, profile, limits)
            outputs.tally.dead_letters += len(dead)
            for past in pasts_of(parts[partition], history):
                for absorbed in offline.warm([past], partition):
                    outputs.tally.silent += absorbed.observations
        _take(offline.score(parts), outputs)
        advance(sum(map(len, batch.values())))


def pasts_of(windows: Windows, history: History) -> list[RecordedStream]:
    """Histories of the streams that appear in these windows for the first time."""
    if not history.streams:
        return []
    first_time = (np.cumsum(windows.lengths) - windows.lengths).tolist()
    found = []
    for window, stream in enumerate(windows.stream_ids):
        if stream in history.streams and windows.lengths[window] > 0:
            features = history.streams[stream].features
            past = history.before(stream, int(windows.times_ms[first_time[window]]), features)
            if past is not None and len(features) == windows.values.shape[1]:
                found.append(past)
    return found


def _take(absorbed: Absorbed, outputs: Outputs) -> None:
    for scores in absorbed.scores:
        outputs.add(scores)
    outputs.add_alerts(absorbed.alerts)
    outputs.tally.late += absorbed.late
