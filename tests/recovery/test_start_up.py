"""Start-up of partitions while a server, or the registry, cannot say what is needed (protocol.md, "Start-up")."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import pytest

from models.step import Scorer
from pipeline.errors import BrokerAway, RegistryAway
from pipeline.partition import Phase, from_offset
from pipeline.records import Partition
from pipeline.sources.base import CommittedOffset
from pipeline.sources.memory import MemorySource
from pipeline.state.memory import MemoryStateStore
from pipeline.wire import encode_packed
from pipeline.worker import Worker
from pipeline.worker_command import doing
from tests.builders import (
    GROUP,
    INTERVAL_MS,
    START_MS,
    VERSION_A,
    FakeClock,
    World,
    assert_same_output,
    make_pace,
    make_series,
)

pytestmark = pytest.mark.slow

ONE, TWO = Partition("input", 0), Partition("input", 1)
LATEST = make_pace(start="latest")
QUIET = make_pace(save_interval_s=1e6)


def send(world: World, partition: Partition, windows: int, first: int = 0) -> None:
    """Windows of four observations of a stream of that partition."""
    for window in range(first, first + windows):
        times = START_MS + INTERVAL_MS * np.arange(4 * window, 4 * window + 4)
        name, values = f"s{partition.partition}", make_series(window, 4)
        value = encode_packed(name, times, values)
        world.broker.append("input", name.encode(), value, partition.partition, int(times[-1]))


class LeaderlessSource(MemorySource):
    """Partition two has no leader, who would know its offsets."""

    def beginning_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        asked = list(partitions)
        if TWO in asked:
            raise BrokerAway(f"no leader of {TWO}")
        return super().beginning_offsets(asked)


class SlowSource(MemorySource):
    """Committed offsets take a call's whole deadline, and nobody knows those of partition two."""

    def __init__(self, clock: FakeClock, *args: Any) -> None:
        super().__init__(*args)
        self._clock = clock

    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, CommittedOffset | None]:
        asked = list(partitions)
        self._clock.advance(8)
        if TWO in asked:
            raise BrokerAway("no coordinator")
        return super().committed(asked)


def test_a_partition_whose_offsets_cannot_be_told_holds_up_no_neighbour() -> None:
    """A new partition may lack its leader for minutes."""
    world = World(partitions=2, source=LeaderlessSource)
    send(world, ONE, 50)
    worker = world.worker()
    for _ in range(100):
        worker.step()
    assert len(world.output().scores) == 200
    assert worker.partitions[TWO].phase is Phase.ASSIGNED


def test_a_step_ends_while_servers_take_their_whole_deadline_for_each_partition() -> None:
    """The loop has to poll, or the group takes the worker for dead, and everyone has a turn although one waits."""
    clock = FakeClock()
    world = World(partitions=20, clock=clock, source=partial(SlowSource, clock))
    worker = world.worker()
    for _ in range(60):
        began_s = world.clock.now_s
        worker.step()
        assert world.clock.now_s - began_s < 30
    waiting = [partition for partition, state in worker.partitions.items() if not state.is_folding]
    assert waiting == [TWO]


def crashed_world() -> World:
    """A stream of which nothing is saved, so that all is to be replayed."""
    world = World(partitions=1, pace=QUIET)
    send(world, ONE, 40)
    worker = world.worker()
    world.run(worker)
    world.crash(worker)
    worker.abandon()
    send(world, ONE, 10, first=40)
    return world


def test_a_version_that_cannot_be_read_for_a_moment_is_not_gone() -> None:
    """Records of a version that is gone are passed over for good; a hiccup of a volume must not cost them."""
    expected, world = crashed_world(), crashed_world()
    expected.run(expected.worker())
    loaded, hiccups = world.load, iter([True])

    def load(version: str) -> Scorer:
        if next(hiccups, False):
            raise RegistryAway("Stale file handle")
        return loaded(version)

    world.load = load  # type: ignore[method-assign]
    world.run(world.worker())
    assert_same_output(world.output(), expected.output())
    assert not any(world.output().partial.values())


def test_a_registry_that_is_away_delays_a_new_partition_and_nothing_else() -> None:
    """Which version it begins with has to be known; the others have theirs."""
    world = World(partitions=1)
    send(world, ONE, 10)
    worker = world.worker()
    world.run(worker)

    world.target = RegistryAway("Stale file handle")
    world.broker.create_topic("input", 2)
    world.broker.rebalance(GROUP)
    send(world, ONE, 10, first=10)
    for _ in range(60):
        worker.step()
    assert len(world.output().scores) == 80
    assert worker.waiting_for == "registry"
    world.target = VERSION_A
    world.clock.advance(5)
    send(world, TWO, 10)
    world.run(worker)
    assert len(world.output().scores) == 120


def test_readiness_says_that_rows_are_rebuilt() -> None:
    """Redis came back empty: for minutes nothing is scored, and "serving" would send people to look elsewhere."""
    world = World(partitions=1, pace=make_pace(max_poll_records=10))
    send(world, ONE, 40)
    worker = world.worker()
    world.run(worker)
    world.crash(worker)
    worker.abandon()
    world.store = MemoryStateStore()
    worker, said = world.worker(), list[str]()
    for _ in range(20):
        worker.step()
        said.append(doing(worker))
    assert "replaying 1 of 1 partitions" in said
    assert said[-1] == "serving"


def test_latest_start_reads_what_came_to_a_new_partition_before_the_group_saw_it() -> None:
    """Producers find an added partition minutes before consumers do; what lies in it then was never read by anybody."""
    world = World(partitions=1, pace=LATEST)
    world.produce("old", make_series(0, 8))
    worker = started(world)
    world.broker.create_topic("input", 2)
    added = next(name for name in map(str, range(100)) if zlib.crc32(name.encode()) % 2)
    world.produce(added, make_series(1, 8), start_ms=world.clock.wall_ms())
    world.crash(worker)
    world.run(worker)
    assert {stream for stream, _ in world.output().scores} == {added}


def test_a_record_of_the_future_does_not_bring_the_past_into_a_latest_start() -> None:
    """One device with a wrong clock must not have a week of old records scored, and their alerts told."""
    world = World(partitions=1, pace=LATEST)
    send(world, ONE, 10)
    world.send("s0", encode_packed("s0", START_MS + INTERVAL_MS * np.arange(40, 44), make_series(10, 4)), 4 * 10**12)
    send(world, ONE, 10, first=11)
    worker = started(world)
    assert from_offset(world.broker.committed(GROUP, ONE)).origin == world.last(ONE)  # type: ignore[arg-type]
    worker.stop()


def started(world: World) -> Worker:
    """A worker that has committed its first offsets."""
    worker = world.worker()
    while world.broker.committed(GROUP, ONE) is None:
        worker.step()
    return worker
