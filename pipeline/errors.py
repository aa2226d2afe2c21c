"""What can go wrong, by fate.

TidewatchError
├── TransientError          wait and try again; ``retriable = True``
│   ├── BrokerAway          Kafka does not answer, or asks to try again
│   ├── StoreAway           Redis does not answer, or its answer was lost
│   └── RegistryAway        the folder of model versions cannot be read now
├── DecodeError             bad input: costs its own record, which goes to the dead-letter topic
├── OwnershipError          this worker's view of a partition is over; start-up decides what it still owns
│   ├── StaleToken          somebody newer took the partition's state
│   ├── StateLost           the store forgot writes it had acknowledged
│   ├── RowAhead            a saved row is beyond the committed offset
│   ├── CommitRefused       the group refused the offsets; the transaction is aborted, the producer is good
│   └── OutcomeUnknown      a transaction may or may not have been committed; the producer must be rebuilt
├── WorkerFenced            a live process has this worker's name: end
├── DamagedSnapshot         a saved row cannot be read: also a ValueError
│   └── UnknownSnapshot     of a format that this release does not know
├── OffsetsGone             records that are needed are no longer in the log
└── ConfigurationError      nothing starts; the message says what to change
    └── VersionError        a model version is missing, damaged or foreign
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:  # every command imports this file, and `tidewatch --help` need not wait for numpy
    from pipeline.records import Partition


class TidewatchError(Exception):
    """Root of everything Tidewatch raises on purpose."""

    retriable = False


class TransientError(TidewatchError):
    """The other side, ``server``, is away; the same call may succeed later."""

    retriable = True
    server: ClassVar[str]


class BrokerAway(TransientError):
    """Kafka does not answer in time, or asks to try again."""

    server = "kafka"


class StoreAway(TransientError):
    """The state store does not answer; what was asked may or may not have happened."""

    server = "redis"


class RegistryAway(TransientError):
    """A file of the registry is there and cannot be read: a hiccup of its volume, not a version that is gone."""

    server = "registry"


class DecodeError(TidewatchError):
    """A record that cannot be used; the message is the reason written beside it in the dead-letter topic."""


class OwnershipError(TidewatchError):
    """Our view of a partition is over; ``partition`` is ``None`` where not one alone is meant."""

    def __init__(self, message: str, partition: Partition | None = None) -> None:
        super().__init__(message)
        self.partition = partition


class StaleToken(OwnershipError):
    """Another worker with a newer generation took the partition's state."""


class StateLost(OwnershipError):
    """The store no longer holds what it had acknowledged, or holds another token of the same generation."""


class RowAhead(OwnershipError):
    """A saved row has records below ``position`` in it, and the group's offset is below that (protocol.md rule 23)."""

    def __init__(self, message: str, partition: Partition, position: int) -> None:
        super().__init__(message, partition)
        self.position = position


class CommitRefused(OwnershipError):
    """The group refused the offsets. The transaction was aborted and nothing of it is visible."""


class OutcomeUnknown(OwnershipError):
    """A transaction's outcome is unknown: neither success nor failure (protocol.md rule 5)."""


class WorkerFenced(TidewatchError):
    """A live process holds this worker's name (static membership or transactional id)."""


class OffsetsGone(TidewatchError):
    """The log no longer holds the offsets asked for."""

    def __init__(self, message: str, partitions: tuple[Partition, ...] = ()) -> None:
        super().__init__(message)
        self.partitions = partitions


class DamagedSnapshot(TidewatchError, ValueError):
    """A saved row is cut short or changed; its stream starts afresh, and is flagged until it has warmed up."""


class UnknownSnapshot(DamagedSnapshot):
    """A saved row has a format that this release does not know; another release can read it."""


class ConfigurationError(TidewatchError):
    """Settings, connections or files are not as they must be; the message says what to do."""


class VersionError(ConfigurationError):
    """A model version is missing, damaged, or made for something else."""


class CannotLearnError(VersionError):
    """A profile's predictor cannot learn while it runs; it serves as it is."""
