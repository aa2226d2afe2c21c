"""Progress is kept for quiet partitions too; with a clock that a test moves."""

from __future__ import annotations

from pipeline.notify.kafka import Renewed
from pipeline.records import Partition

DAY_S = 86_400.0
BUSY, QUIET = Partition("alerts", 0), Partition("alerts", 1)


class Clock:
    """Time that passes only where a test lets it."""

    def __init__(self) -> None:
        self.now_s = 5.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now_s

    def wall_ms(self) -> int:
        """Milliseconds since the epoch."""
        return 1_700_000_000_000 + int(self.now_s * 1000)


class ForgetfulBroker:
    """Keeps each partition's offset for a week after its own last commit, as Kafka does for a group without members."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._kept = clock, dict[Partition, tuple[int, float]]()

    def commit(self, partition: Partition, next_offset: int) -> None:
        """Keep it."""
        self._kept[partition] = (next_offset, self._clock.now_s)

    def committed(self) -> dict[Partition, int]:
        """What is not forgotten."""
        return {p: offset for p, (offset, at_s) in self._kept.items() if self._clock.now_s - at_s < 7 * DAY_S}


def test_a_quiet_partition_keeps_its_place_for_longer_than_the_broker_would() -> None:
    """A notifier that finds no place begins at the end, and an alert that came while it was down is never told."""
    clock = Clock()
    broker = ForgetfulBroker(clock)
    place = Renewed(broker, {BUSY: 3, QUIET: 8}, clock)
    for day in range(30):
        place.renew()
        place.commit(BUSY, 4 + day)
        clock.now_s += DAY_S
    assert broker.committed() == {BUSY: 33, QUIET: 8}


def test_places_are_renewed_while_one_batch_takes_days() -> None:
    """With a receiver that is away every event takes its deadline, and nothing but commits happens in between."""
    clock = Clock()
    broker = ForgetfulBroker(clock)
    place = Renewed(broker, {BUSY: 0, QUIET: 8}, clock)
    place.renew()
    for hours in range(24 * 30):
        place.commit(BUSY, hours)
        clock.now_s += 3600
    assert broker.committed()[QUIET] == 8


def test_a_place_is_committed_again_no_more_than_once_a_day() -> None:
    """It is asked for five times a second."""
    clock = Clock()
    place = Renewed(broker := ForgetfulBroker(clock), {QUIET: 8}, clock)
    place.renew()
    clock.now_s += DAY_S - 1
    place.renew()
    clock.now_s += 6 * DAY_S + 1
    assert broker.committed() == {}
