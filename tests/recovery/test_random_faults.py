"""Whatever dies whenever: the committed output equals that of an undisturbed run (invariants 1, 3 and 4)."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.builders import GROUP, Output, World, assert_same_output, make_pace, make_series

pytestmark = pytest.mark.slow

STREAMS, LENGTH = 6, 220


class Died(BaseException):
    """The process ends here."""


def _filled(**settings: object) -> World:
    world = World(**settings)  # type: ignore[arg-type]
    series = {f"s{number}": make_series(number, LENGTH) for number in range(STREAMS)}
    chance = random.Random(5)
    for begin in range(0, LENGTH, 20):
        for stream, values in series.items():
            world.produce(
                stream,
                values[begin : begin + 20],
                start_ms=1_700_000_000_000 + begin * 60_000,
                cuts=lambda at: chance.choice((1, 3, 7, 20)),
            )
    return world


@pytest.fixture(scope="module")
def undisturbed() -> Output:
    """One worker, no faults."""
    world = _filled()
    worker = world.worker()
    world.run(worker)
    worker.stop()
    return world.output()


def test_undisturbed_run_scores_every_observation_once(undisturbed: Output) -> None:
    """The yardstick of the other tests is itself complete, and has alerts to lose."""
    assert len(undisturbed.scores) == STREAMS * LENGTH
    assert undisturbed.duplicates == 0
    assert {alert.event for alert in undisturbed.alerts} >= {"opened", "resolved"}


@pytest.mark.parametrize("seed", range(12))
def test_kills_and_rebalances_at_random_moments_change_nothing(seed: int, undisturbed: Output) -> None:
    """A worker dies before any step of the protocol, others join and leave: exactly once, same values."""
    world = _filled()
    chance = random.Random(seed)

    def interrupt(step: str) -> None:
        if chance.random() < 0.02:
            raise Died(step)

    workers = [world.worker("w0")]
    names = 1
    for _ in range(3000):
        if world.is_done():
            break
        index = chance.randrange(len(workers))
        worker = workers[index]
        world.broker.interrupt = interrupt
        try:
            worker.step()
        except Died:
            world.broker.interrupt = lambda step: None
            world.crash(worker)
            workers[index] = world.worker(f"w{names}" if chance.random() < 0.5 else f"w{index}")
            names += 1
        world.broker.interrupt = lambda step: None
        if chance.random() < 0.01 and len(workers) < 3:
            workers.append(world.worker(f"w{names}"))
            names += 1
    world.broker.interrupt = lambda step: None
    for name in [f"{GROUP}.w{n}" for n in range(names)]:
        if name in world.broker._slots:
            world.broker.expire_transaction(name)
    world.run(*workers, max_steps=3000)
    assert_same_output(world.output(), undisturbed)


def test_few_resident_rows_change_nothing(undisturbed: Output) -> None:
    """A device of two rows evicts all the time; only saved rows may go (rule 14)."""
    world = _filled(max_streams=2)
    worker = world.worker()
    world.run(worker, max_steps=5000)
    assert_same_output(world.output(), undisturbed)


def test_store_wiped_in_mid_run_is_rebuilt_from_the_log(undisturbed: Output) -> None:
    """Kafka is the truth: without any saved row the replay from the origin gives the same output (rules 10, 21)."""
    world = _filled(pace=make_pace(save_interval_s=0.5))
    worker = world.worker()
    for _ in range(40):
        worker.step()
    world.store.wipe()
    world.run(worker, max_steps=3000)
    assert_same_output(world.output(), undisturbed)


@pytest.mark.parametrize("seed", range(4))
def test_store_rolled_back_is_noticed_and_replayed(seed: int, undisturbed: Output) -> None:
    """A store that forgot acknowledged writes answers as if nothing had happened; its number tells (rule 20)."""
    chance = random.Random(seed)
    world = _filled(max_streams=3, pace=make_pace(save_interval_s=0.5))
    worker = world.worker()
    for _ in range(chance.randrange(10, 60)):
        worker.step()
    dump = world.store.dump()
    for _ in range(chance.randrange(10, 60)):
        worker.step()
    world.store.restore(dump)
    world.run(worker, max_steps=5000)
    assert_same_output(world.output(), undisturbed)


def test_recutting_messages_changes_no_score(undisturbed: Output) -> None:
    """Batches of one observation and of two hundred give the same scores (invariant 1)."""
    world = World(partitions=1)
    for number in range(STREAMS):
        world.produce(f"s{number}", make_series(number, LENGTH), cuts=lambda at: 200)
    worker = world.worker()
    world.run(worker)
    found = world.output()
    assert found.scores.keys() == undisturbed.scores.keys()
    places = sorted(found.scores)
    np.testing.assert_allclose(
        [found.scores[place] for place in places], [undisturbed.scores[place] for place in places], atol=1e-3
    )
