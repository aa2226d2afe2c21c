"""Changes of the model version where rows are many, and saves slow (protocol.md rules 12 and 14)."""

from __future__ import annotations

import zlib
from dataclasses import replace

import pytest

from pipeline.partition import from_offset, to_offset
from pipeline.records import Partition
from pipeline.worker import Worker
from tests.builders import (
    GROUP,
    INTERVAL_MS,
    START_MS,
    VERSION_A,
    VERSION_B,
    World,
    assert_same_output,
    make_pace,
    make_series,
)
from tests.fakes import GatedStore

pytestmark = pytest.mark.slow

ONE, TWO = Partition("input", 0), Partition("input", 1)


def streams_of(partition: int, count: int) -> list[str]:
    """Names that their keys bring to one of two partitions."""
    names = (f"s{number}" for number in range(1000))
    return [name for name in names if zlib.crc32(name.encode()) % 2 == partition][:count]


def put(world: World, streams: list[str], first: int, windows: int) -> None:
    """Windows of four observations of each stream, in turn."""
    for window in range(first, first + windows):
        for stream in streams:
            world.produce(stream, make_series(window, 4), start_ms=START_MS + 4 * window * INTERVAL_MS)


def promote(world: World, worker: Worker) -> None:
    """Name version B, and let the worker go over to it."""
    world.target = VERSION_B
    world.clock.advance(5)
    for _ in range(5):
        worker.step()


def test_a_swap_comes_about_where_saves_outlast_a_steps_patience() -> None:
    """A pointer that moved must be followed, and the input must not rest again and again meanwhile."""
    store = GatedStore()
    world = World(partitions=1, store=store, pace=make_pace(saves_wait_s=0.05))
    put(world, ["s"], 0, 10)
    worker = world.worker()
    world.run(worker)
    assert worker.keeper.drain(worker.partitions, 60.0)
    store.shut()
    world.target = VERSION_B
    world.clock.advance(5)
    for _ in range(6):
        worker.step()
        store.let(1)
        assert worker.keeper.drain(worker.partitions, 60.0)
    assert world.rows(worker).version == VERSION_B
    assert worker.status().rows_resident == {"p": 1}
    store.let(1000)
    put(world, ["s"], 10, 10)
    world.run(worker)
    assert set(world.output().versions.values()) == {VERSION_A, VERSION_B}
    worker.stop()


def test_rows_in_flight_are_saved_before_a_replay_takes_them_to_another_version() -> None:
    """Else they look saved there, are evicted, and come back as the older rows that the store still has."""
    expected, world = replayed_world(), replayed_world()
    expected.run(expected.worker())
    store = world.store
    assert isinstance(store, GatedStore)
    worker = world.worker()
    while not (worker.partitions.get(ONE) and worker.partitions[ONE].owned and worker.partitions[ONE].next >= 58):
        worker.step()
    store.shut()
    for _ in range(10):
        worker.step()
    assert worker.partitions[ONE].next == 60  # where the version changes
    store.let(10**6)
    world.run(worker, max_steps=3000)
    assert_same_output(world.output(), expected.output())
    worker.stop()


def replayed_world() -> World:
    """Sixty records under A and some more under B, all scored, and nothing of it in the store any more."""
    pace = make_pace(max_poll_records=1, save_interval_s=0.01, commit_interval_s=0.01, saves_wait_s=0.05)
    world = World(partitions=1, max_streams=4, pace=pace, store=GatedStore())
    put(world, ["a", "b"], 0, 30)
    worker = world.worker()
    world.run(worker)
    promote(world, worker)
    put(world, ["c", "d"], 30, 1)
    put(world, ["e"], 31, 1)
    put(world, ["a", "b"], 32, 30)
    world.run(worker)
    worker.stop()
    assert from_offset(world.broker.committed(GROUP, ONE)).history[1] == (60, VERSION_B)  # type: ignore[arg-type]
    put(world, ["a", "b"], 62, 10)
    world.store.wipe()
    return world


def test_a_replay_across_versions_finds_room_for_its_rows() -> None:
    """Two partitions that changed at different offsets meet in one table; it holds as many streams as ever."""
    world = World(max_streams=4)
    ones, twos = streams_of(0, 4), streams_of(1, 2)
    put(world, ones[:2], 0, 2)
    put(world, twos, 0, 2)
    worker = world.worker()
    world.run(worker)
    promote(world, worker)
    put(world, ones, 2, 40)
    put(world, twos, 2, 40)
    world.run(worker, max_steps=4000)
    worker.stop()
    scored = len(world.output().scores)
    found = world.broker.committed(GROUP, TWO)
    assert found is not None
    later = replace(from_offset(found), history=((0, VERSION_A), (60, VERSION_B)))
    world.broker.move_offset(GROUP, TWO, to_offset(later))
    world.store.wipe()
    put(world, ones[:1] + twos[:1], 42, 4)
    again = world.worker()
    world.run(again, max_steps=4000)
    assert len(world.output().scores) == scored + 2 * 16
    again.stop()
