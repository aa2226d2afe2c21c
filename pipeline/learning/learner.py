"""The learner: reads the input topics beside the workers, and takes each profile's course a step further.

It keeps a position of its own, under a group of its own; losing it, or being killed anywhere, costs some learning and
never a score. What it reads again after a restart teaches from memory only, and what it knew of its streams lies beside
the versions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from models.learner import UpdateReport
from pipeline.clock import Clock
from pipeline.learning.budget import Budget
from pipeline.learning.course import Course
from pipeline.messages import Messages
from pipeline.records import Partition, Record
from pipeline.topics.base import Follower, Progress, by_partition
from pipeline.topics.renewed import Renewed

logger = logging.getLogger(__name__)

COMMIT_S, DECIDE_S, LAG_S, REMEMBER_S = 5.0, 1.0, 5.0, 60.0
STUDY_SLICE_S = 0.5
"""How long it learns at a stretch before it looks for records again."""


@dataclass(slots=True)
class Reading:
    """One input topic being read.

    Attributes
    ----------
    begin
        Where reading begins, some way before ``known``.
    known
        The position committed before: below it nothing is fresh.
    """

    profile: str
    reader: Follower
    begin: Mapping[Partition, int]
    known: Mapping[Partition, int]
    next: dict[Partition, int] = field(default_factory=dict)
    records: Iterator[list[tuple[Partition, Record]]] = field(init=False)

    def __post_init__(self) -> None:
        self.records = self.reader.read(self.begin)

    def lag(self) -> int:
        """Records not read yet."""
        return sum(max(0, end - self.next.get(p, self.begin.get(p, end))) for p, end in self.reader.end().items())


class Learner:
    """One step reads a little, learns a little within its budget, and decides where it is time.

    Parameters
    ----------
    readings, courses
        What is read, and each profile's course.
    progress
        Where positions are committed: again each day, so that a topic may be quiet for long.
    cpu_share, drift_cpu_share
        Of one core.
    updated
        Told of every update: profile, report, seconds.
    """

    def __init__(
        self,
        readings: Sequence[Reading],
        courses: Mapping[str, Course],
        messages: Messages,
        progress: Progress,
        clock: Clock,
        cpu_share: float,
        drift_cpu_share: float,
        updated: Callable[[str, UpdateReport, float], None] = lambda profile, report, seconds: None,
    ) -> None:
        self._readings, self.courses, self._messages = readings, courses, messages
        self._clock, self._shares, self._updated = clock, (cpu_share, drift_cpu_share), updated
        self._budget = Budget(clock.monotonic)
        now = clock.monotonic()
        self._commit_due_s, self._decide_due_s, self._lag_due_s = now + COMMIT_S, now, now
        self._remember_due_s = now + REMEMBER_S
        self._place = Renewed(progress, {p: known for each in readings for p, known in each.known.items()}, clock)
        self._committed: dict[Partition, int] = {}
        self.lag: dict[str, int] = dict.fromkeys(courses, 0)

    def step(self) -> int:
        """Read, learn, decide, commit; returns how many records were read.

        Raises
        ------
        BrokerAway, RegistryAway
            Kafka does not answer, or the folder of versions: open the readings again when it does, and go on with the
            same courses.
        """
        read = sum(self._read(each) for each in self._readings)
        self._study()
        now = self._clock.monotonic()
        if now >= self._decide_due_s:
            self._decide_due_s = now + DECIDE_S
            for course in self.courses.values():
                course.decide()
            self._budget.spend(self._clock.monotonic() - now)  # the pooled tails of a candidate take a while
        if now >= self._lag_due_s:
            self._lag_due_s = now + LAG_S
            self.lag = dict.fromkeys(self.courses, 0)
            for each in self._readings:
                self.lag[each.profile] += each.lag()
        if now >= self._remember_due_s:
            self._remember_due_s = now + REMEMBER_S
            self._remember()
        if now >= self._commit_due_s:
            self.commit()
        return read

    def stop(self) -> None:
        """Keep what the courses know of their streams, and the position."""
        self._remember()
        self.commit()

    def _remember(self) -> None:
        for course in self.courses.values():
            course.remember()

    def commit(self) -> None:
        """Keep the position, that of quiet partitions too."""
        self._commit_due_s = self._clock.monotonic() + COMMIT_S
        for each in self._readings:
            for partition, offset in each.next.items():
                if offset > max(self._committed.get(partition, 0), each.known.get(partition, 0)):
                    self._place.commit(partition, offset)
                    self._committed[partition] = offset
        self._place.renew()

    def _read(self, reading: Reading) -> int:
        some = next(reading.records)
        course = self.courses[reading.profile]
        for partition, records in by_partition(some).items():
            known = reading.known.get(partition, 0)
            for mine, is_fresh in (
                ([record for record in records if record.offset < known], False),
                ([record for record in records if record.offset >= known], True),
            ):
                if mine:
                    windows, _ = self._messages.decode(reading.profile, partition, mine)
                    course.absorb(partition, windows, is_fresh)
            reading.next[partition] = records[-1].offset + 1
        return len(some)

    def _study(self) -> None:
        """Learn while there is budget, profile by profile; more of it while one of them drifts."""
        drifts = any(course.is_drifting for course in self.courses.values())
        self._budget.earn(self._shares[1] if drifts else self._shares[0])
        until = self._clock.monotonic() + STUDY_SLICE_S
        while self._budget.is_left and self._clock.monotonic() < until:
            due = [(name, course) for name, course in self.courses.items() if course.wants_to_study()]
            if not due:
                return
            for name, course in due:
                began = self._clock.monotonic()
                report = course.study()
                seconds = self._clock.monotonic() - began
                self._budget.spend(seconds)
                self._updated(name, report, seconds)
