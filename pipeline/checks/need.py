"""What so many streams need: memory in Redis and in a worker, and how many workers like this machine."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from statistics import median

import numpy as np

from models.step import Scorer
from pipeline.checks.finding import Facts, Finding, ok
from pipeline.checks.row import cost_of, gigabytes, layout_of
from pipeline.engine import Engine, Share
from pipeline.profile import Profile
from pipeline.records import CONTROL_NONE, Partition, Windows
from pipeline.registry import base_weights
from pipeline.resident import SCRATCH
from pipeline.settings import Settings

SUBJECT = "need"

PROCESS_BYTES = 700_000_000
"""A worker without streams: Python, torch, the weights and the clients (measured: 0.6 GB resident)."""

STREAM_BYTES = 500
"""What a resident stream costs beside its row: its name in two tables, its place, its header (measured: 460)."""

TABLES = 2
"""While a table grows, or rows change over to another version, the old one and the new one are both there."""

MESSAGE_S = 8e-6
"""Reading and decoding one record, whatever is in it (``read`` of ``tidewatch bench``: 7.3 us)."""

PATH_SHARE = 0.9
"""Of the rest, what commits, saves and the interpreter's other threads leave.

From the engine's rates that ``tidewatch bench`` gave for windows of one observation of 8 features, this makes 237,000
values/s of the jump row and 450,000 of the light one; the whole path measured beside them took 261,000 and 342,000.
"""

MEASURED_S = 0.4
MOST_MEASURED = 4096
INTERVAL_MS = 60_000


@dataclass(frozen=True, slots=True)
class Need:
    """What the streams of one profile need.

    Attributes
    ----------
    streams
        How many there are.
    redis_bytes
        Of all of them, in Redis.
    worker_bytes
        Of those a worker holds when it is left alone with them, at most ``engine.max_resident_streams``.
    rate
        Observations a second that a worker on this machine scores, Kafka included, one in each record: the slowest way.
    load
        Workers like this machine that are kept busy; ``None`` where the profile names no interval.
    every_s
        So often a single worker can take an observation of each stream.
    """

    profile: str
    streams: int
    redis_bytes: int
    worker_bytes: int
    rate: float
    load: float | None
    every_s: float


def need_of(name: str, profile: Profile, streams: int, settings: Settings, device: str, threads: int) -> Need:
    """What ``streams`` streams of a profile need; measures this machine for about a second.

    Raises
    ------
    ConfigurationError
        The profile's weights are not there, or do not fit it.
    """
    layout = layout_of(profile)
    resident = min(streams, settings.engine.max_resident_streams)
    table = 4 * layout.numbers * table_slots(resident, settings.engine.max_resident_streams)
    folding_s = len(profile.features) / fold_rate(profile, min(streams, MOST_MEASURED), device, threads)
    rate = PATH_SHARE / (MESSAGE_S + folding_s)
    every_s = streams / rate
    return Need(
        name,
        streams,
        streams * cost_of(layout).redis_bytes,
        TABLES * table + resident * STREAM_BYTES,
        rate,
        None if profile.interval_s is None else every_s / profile.interval_s,
        every_s,
    )


def table_slots(streams: int, max_streams: int) -> int:
    """Slots of a table that has grown, by doubling, until it holds so many streams."""
    slots = SCRATCH + min(max_streams, 1024)
    while slots < streams + SCRATCH:
        slots = min(2 * slots, max_streams + SCRATCH)
    return slots


def fold_rate(profile: Profile, streams: int, device: str, threads: int) -> float:
    """Values a second that the engine folds here, in batches of one observation of each stream.

    The median batch counts, so that a neighbour on the machine who comes and goes changes little.
    """
    scorer = Scorer(base_weights(profile.builtin() or profile.predictor), profile.fold(), device)
    partition, version = Partition("check", 0), "check"
    engine = Engine("check", profile, lambda _: scorer, streams, device, threads=threads)
    engine.bring_to(partition, version)
    table = engine.table(version)
    table.make_room(streams)
    names = [str(number) for number in range(streams)]
    table.admit_fresh(partition, names, 0)
    random = np.random.default_rng(0)
    seconds: list[float] = []
    until = math.inf
    for number in count():
        shape = (streams, len(profile.features))
        windows = Windows(
            names,
            number * streams + np.arange(streams),
            np.full(streams, number * INTERVAL_MS),
            np.ones(streams, np.int64),
            np.zeros(streams, np.bool_),
            np.full(streams, CONTROL_NONE, np.uint8),
            np.full(streams, number * INTERVAL_MS),
            random.standard_normal(shape).astype(np.float32),
        )
        table.begin_batch()
        began = time.perf_counter()
        engine.absorb(table, [Share(partition, windows, 0)], 0.0)
        ended = time.perf_counter()
        if number == 0:  # the first batch makes what the others use again
            until = ended + MEASURED_S
            continue
        seconds.append(ended - began)
        if ended > until:
            return streams * len(profile.features) / median(seconds)
    raise AssertionError("unreachable")


Lack = Callable[[str, str], Finding]


def check_needs(needs: Sequence[Need], facts: Facts, lack: Lack) -> Iterator[Finding]:
    """Whether there is as much as is needed.

    Parameters
    ----------
    facts
        What there is; what was not asked is not judged.
    lack
        What it is where there is too little: :func:`problem` for streams that were named, :func:`warning` for a guess.
    """
    for need in needs:
        share = "" if need.load is None else "under 1%" if need.load < 0.01 else f"{need.load:.0%}"
        load = f"\nat their interval they keep {share} of a worker busy" if share else ""
        yield ok(
            SUBJECT,
            f"{need.streams:,} streams of {need.profile}: {gigabytes(need.redis_bytes)} in Redis\n"
            f"a worker here takes about {_round(need.rate):,} observations/s, one of each stream every "
            f"{_seconds(need.every_s)}{load}",
        )
    yield from _check_workers(needs, facts.partitions, lack)
    yield _check_memory(PROCESS_BYTES + sum(need.worker_bytes for need in needs), machine_bytes(), lack)
    if facts.redis_bytes is not None:
        yield _check_redis(sum(need.redis_bytes for need in needs), facts.redis_bytes, lack)


def _check_workers(needs: Sequence[Need], partitions: Mapping[str, int], lack: Lack) -> Iterator[Finding]:
    loads = [need.load for need in needs if need.load is not None]
    if not loads:
        return
    workers = max(1, math.ceil(sum(loads)))
    said = "one worker like this machine is" if workers == 1 else f"{workers} workers like this machine are"
    yield ok(SUBJECT, f"{said} enough for profiles with an interval\nhalf as much again can catch up after a stop")
    for need in needs:
        most = partitions.get(need.profile)
        if most is not None and need.load is not None and math.ceil(need.load) > most:
            yield lack(
                SUBJECT,
                f"{need.profile}: this is work for {math.ceil(need.load)} workers, and no more than {most} can share "
                f"{most} partitions: make its topics with more (added later, they move streams away from their past)",
            )


def _check_memory(needed: int, there: int, lack: Lack) -> Finding:
    text = f"a worker left alone with them needs {gigabytes(needed)} of memory; this machine has {gigabytes(there)}"
    if needed > there:
        return lack(SUBJECT, f"{text}: lower engine.max_resident_streams, the others then wait in Redis")
    return ok(SUBJECT, text)


def _check_redis(needed: int, most: int, lack: Lack) -> Finding:
    text = f"all of them need {gigabytes(needed)} in Redis, which may use {gigabytes(most)}"
    if needed > most:
        return lack(SUBJECT, f"{text}: raise maxmemory, or it refuses writes; light rows are smaller (--row)")
    return ok(SUBJECT, text)


def machine_bytes() -> int:
    """Memory of this machine, or of this container where that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError), open(limit, encoding="ascii") as file:
            machine = min(machine, int(file.read()))
    return machine


def _round(rate: float) -> int:
    """Two figures: it is no more exact than that."""
    return int(float(f"{rate:.1e}"))


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
