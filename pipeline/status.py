"""How a worker stands, for metrics: partitions, lag, rows, versions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from pipeline.engine import Engine
from pipeline.errors import BrokerAway
from pipeline.partition import PartitionState
from pipeline.records import Partition, WorkerStatus
from pipeline.sources.base import Source

LAG_REFRESH_S = 5.0


class LogEnds:
    """The ends of the logs, asked for at most every few seconds.

    The client also knows an end from its last fetch, without asking; but that one stands still while a partition is
    paused, which is when lag matters most.

    Parameters
    ----------
    source
        Who is asked.
    monotonic
        Seconds.
    """

    def __init__(self, source: Source, monotonic: Callable[[], float]) -> None:
        self._source, self._monotonic = source, monotonic
        self._ends: dict[Partition, int] = {}
        self._due_s = monotonic()

    def lag(self, partitions: Mapping[Partition, PartitionState]) -> dict[str, int]:
        """Records behind the end of the log by profile, over the partitions whose committed offset is known.

        With Kafka away, the last answer stands.
        """
        if self._monotonic() >= self._due_s:
            self._refresh(partitions)
        behind: Counter[str] = Counter()
        for partition, state in partitions.items():
            end = self._ends.get(partition)
            if state.committed is not None and end is not None:
                behind[state.profile] += max(0, end - state.c)
        return dict(behind)

    def _refresh(self, partitions: Mapping[Partition, PartitionState]) -> None:
        try:
            self._ends = self._source.end_offsets(partitions) if partitions else {}
        except BrokerAway:
            pass
        finally:
            self._due_s = self._monotonic() + LAG_REFRESH_S


def worker_status(
    partitions: Mapping[Partition, PartitionState],
    engines: Mapping[str, Engine],
    ends: LogEnds,
    unsaved_age_s: float,
    waiting_for: str | None,
) -> WorkerStatus:
    """Put together what a worker knows about itself; every profile it has an engine for is named."""
    lag = ends.lag(partitions)
    tables = {name: engine.tables() for name, engine in engines.items()}
    serving: dict[str, set[str]] = {name: {table.version for table in found} for name, found in tables.items()}
    for state in partitions.values():
        if state.committed is not None and state.committed.history:
            serving[state.profile].add(state.committed.history[-1][1])
    return WorkerStatus(
        partitions=dict(Counter(state.phase.value for state in partitions.values())),
        lag={name: lag.get(name, 0) for name in engines},
        rows_resident={name: sum(map(len, found)) for name, found in tables.items()},
        rows_evicted={name: sum(table.evicted for table in found) for name, found in tables.items()},
        unsaved_age_s=unsaved_age_s,
        model_versions={name: tuple(sorted(versions)) for name, versions in serving.items()},
        waiting_for=waiting_for,
    )
