"""Progress is kept for quiet partitions too; with a clock that a test moves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace

from pipeline.learning.learner import Learner, Reading
from pipeline.records import Partition, Record
from pipeline.topics.base import Place
from pipeline.topics.renewed import Renewed
from tests.builders import FakeClock

DAY_S = 86_400.0
BUSY, QUIET = Partition("alerts", 0), Partition("alerts", 1)


class ForgetfulBroker:
    """Keeps each partition's offset for a week after its own last commit, as Kafka does for a group without members."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock, self._kept = clock, dict[Partition, tuple[int, float]]()

    def commit(self, partition: Partition, next_offset: int) -> None:
        """Keep it."""
        self._kept[partition] = (next_offset, self._clock.now_s)

    def committed(self) -> dict[Partition, int]:
        """What is not forgotten."""
        return {p: offset for p, (offset, at_s) in self._kept.items() if self._clock.now_s - at_s < 7 * DAY_S}


def test_a_quiet_partition_keeps_its_place_for_longer_than_the_broker_would() -> None:
    """A notifier that finds no place begins at the end, and an alert that came while it was down is never told."""
    clock = FakeClock(tick_s=0.0)
    broker = ForgetfulBroker(clock)
    place = Renewed(broker, {BUSY: 3, QUIET: 8}, clock)
    for day in range(30):
        place.renew()
        place.commit(BUSY, 4 + day)
        clock.advance(DAY_S)
    assert broker.committed() == {BUSY: 33, QUIET: 8}


def test_places_are_renewed_while_one_batch_takes_days() -> None:
    """With a receiver that is away every event takes its deadline, and nothing but commits happens in between."""
    clock = FakeClock(tick_s=0.0)
    broker = ForgetfulBroker(clock)
    place = Renewed(broker, {BUSY: 0, QUIET: 8}, clock)
    place.renew()
    for hours in range(24 * 30):
        place.commit(BUSY, hours)
        clock.advance(3600)
    assert broker.committed()[QUIET] == 8


def test_a_place_is_committed_again_no_more_than_once_a_day() -> None:
    """It is asked for five times a second."""
    clock = FakeClock(tick_s=0.0)
    place = Renewed(broker := ForgetfulBroker(clock), {QUIET: 8}, clock)
    place.renew()
    clock.advance(DAY_S - 1)
    place.renew()
    clock.advance(6 * DAY_S + 1)
    assert broker.committed() == {}


class Silence:
    """A topic in which nothing is written: one partition, with so many old records."""

    def __init__(self, partition: Partition, records: int) -> None:
        self._ends = {partition: records}

    def at(self, place: Place) -> dict[Partition, int]:
        """At its end: all is old."""
        return self._ends

    def end(self) -> dict[Partition, int]:
        """Where it always was."""
        return self._ends

    def has_reached(self, ends: Mapping[Partition, int]) -> bool:
        """There is nothing to read."""
        return True

    def read(
        self, begin: Mapping[Partition, int], end: Mapping[Partition, int] | None = None
    ) -> Iterator[list[tuple[Partition, Record]]]:
        """Nothing, for ever."""
        while True:
            yield []


def test_a_learner_of_quiet_topics_keeps_its_place_for_longer_than_the_broker_would() -> None:
    """Without a place it would begin at the end, and what came while it was down would never teach."""
    clock = FakeClock()
    broker = ForgetfulBroker(clock)
    reading = Reading("p", Silence(QUIET, 8), {QUIET: 8}, {QUIET: 8})
    course = SimpleNamespace(
        is_drifting=False, wants_to_study=lambda: False, decide=lambda: None, remember=lambda: None
    )
    learner = Learner([reading], {"p": course}, None, broker, clock, 0.5, 0.5)  # type: ignore[dict-item, arg-type]
    for _ in range(24 * 30):
        clock.advance(3600)
        learner.step()
    assert broker.committed() == {QUIET: 8}
