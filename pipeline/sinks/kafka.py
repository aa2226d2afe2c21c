"""Outputs and input offsets in one Kafka transaction."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, TypeVar

from kafka import KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata

from pipeline.errors import BrokerAway, CommitRefused, ConfigurationError, OutcomeUnknown, TidewatchError, WorkerFenced
from pipeline.kafka import MISCONFIGURED, client_options, connect, mapped
from pipeline.records import Partition
from pipeline.sinks.base import check_metadata
from pipeline.sources.base import CommittedOffset, GroupNote

log = logging.getLogger(__name__)

Result = TypeVar("Result")

LINGER_S = 0.005  # how long records wait for others before they are sent
MAX_REQUEST_BYTES = 1_000_000  # largest record; the topics' max.message.bytes must allow it
RECORD_OVERHEAD_BYTES = 128  # batch header and record framing around one key and value, rounded up
PARCEL_RECORDS, PARCEL_BYTES = 256, 256 * 1024  # handed to the producer's thread together
# The group's two refusals: the transaction can be aborted. After anything else the producer is given up.
REFUSALS = (kafka_errors.CommitFailedError, kafka_errors.FencedInstanceIdError)


class Output(NamedTuple):
    """One record on its way out."""

    topic: str
    key: bytes | None
    value: bytes
    partition: int | None


class KafkaSink:
    """A transactional producer behind :class:`pipeline.sinks.base.Sink`.

    Every call that can block is made on a daemon thread that belongs to one producer, and waited for with a deadline
    of our own, because the client's calls may wait for ever (protocol.md rule 4). A producer of which anything is in
    doubt is never used again.

    Parameters
    ----------
    bootstrap_servers
        ``host:port``, one or several.
    transactional_id
        Names the worker's slot and must be used by one live process (protocol.md rule 8).
    client_id
        Name of this worker in the broker's logs.
    transaction_timeout_s
        How long the broker leaves a transaction open; more than the commit interval and a deadline.
    call_deadline_s
        Longest a call takes, except that a refused :meth:`commit` and :meth:`rebuild` take a few of them.
    security
        kafka-python's own options for TLS, SASL or a proxy.

    Raises
    ------
    BrokerAway
        No broker answered within the deadline.
    """

    def __init__(
        self,
        bootstrap_servers: str | Sequence[str],
        transactional_id: str,
        *,
        client_id: str = "tidewatch",
        transaction_timeout_s: float = 15.0,
        call_deadline_s: float = 8.0,
        security: Mapping[str, Any] | None = None,
    ) -> None:
        self._transactional_id = transactional_id
        self._transaction_timeout_s = transaction_timeout_s
        self._call_deadline_s = call_deadline_s
        self._options = {
            # A little less than our own deadline: the producer's thread then mostly ends by itself.
            **client_options(bootstrap_servers, client_id, call_deadline_s * 0.8, security or {}),
            "transactional_id": transactional_id,
            "transaction_timeout_ms": int(transaction_timeout_s * 1000),
            "max_block_ms": int(call_deadline_s * 800),
            "linger_ms": int(LINGER_S * 1000),
            "batch_size": 128 * 1024,
            "max_request_size": MAX_REQUEST_BYTES + RECORD_OVERHEAD_BYTES,
        }
        self._producer: _Producer | None = None
        self._ending: list[_Producer] = []
        self._parcel: list[Output] = []
        self._parcel_bytes = 0
        self._begun_s: float | None = None
        self._fenced_in_a_row = 0
        self._closed = False
        self.rebuild()

    def add(self, topic: str, key: bytes | None, value: bytes, partition: int | None = None) -> None:
        """See :meth:`pipeline.sinks.base.Sink.add`. Costs about a microsecond; sending happens on another thread.

        Raises
        ------
        OutcomeUnknown
            The producer can no longer be used; call :meth:`rebuild`.
        ConfigurationError
            The record is larger than :data:`MAX_REQUEST_BYTES`.
        """
        producer = self._usable()
        size = len(value) + (len(key) if key is not None else 0)
        if size > MAX_REQUEST_BYTES:
            raise ConfigurationError(
                f"a record of {size} bytes for topic {topic} is over the limit of {MAX_REQUEST_BYTES}"
            )
        if self._begun_s is None:
            self._begun_s = time.monotonic()
        self._parcel.append(Output(topic, key, value, partition))
        self._parcel_bytes += size
        if len(self._parcel) >= PARCEL_RECORDS or self._parcel_bytes >= PARCEL_BYTES:
            producer.send(self._take_parcel())

    def commit(self, offsets: Mapping[Partition, CommittedOffset], note: GroupNote) -> None:
        """See :meth:`pipeline.sinks.base.Sink.commit`.

        Raises
        ------
        CommitRefused, OutcomeUnknown, WorkerFenced
            As there. WorkerFenced also when the transactional id is taken from us twice in a row by another process;
            the first time counts as unknown, since a pause of this machine looks the same.
        ConfigurationError
            A record cannot be written because of limits or permissions; nothing was committed.
        """
        check_metadata(offsets)
        if note.generation < 0:
            # Rule 1: the broker would accept these from anybody.
            self.abort()
            raise CommitRefused(f"the group's note has generation {note.generation}: not a member")
        producer = self._usable()
        if self._begun_s is None:
            self._begun_s = time.monotonic()
        producer.send(self._take_parcel())
        try:
            self._wait(producer.commit(offsets, note), "commit")
        except REFUSALS as exc:
            self._refused(producer, exc)
        except Exception as exc:
            raise self._doubt(exc) from exc
        self._begun_s = None
        self._fenced_in_a_row = 0

    def abort(self) -> None:
        """See :meth:`pipeline.sinks.base.Sink.abort`."""
        if self._begun_s is None:
            return
        producer = self._usable()
        self._take_parcel()
        try:
            self._wait(producer.abort(), "abort")
        except Exception as exc:
            raise self._doubt(exc) from exc
        self._begun_s = None

    def rebuild(self) -> None:
        """See :meth:`pipeline.sinks.base.Sink.rebuild`. A transaction that was open is committed or aborted afterwards.

        The former producer's threads must have ended first: a producer in trouble renews its epoch by itself, and would
        fence its successor (protocol.md rule 8).

        Raises
        ------
        BrokerAway
            Not now; call again.
        ConfigurationError
            This transactional id cannot be used at all.
        """
        self._discard()
        deadline = time.monotonic() + self._call_deadline_s
        for producer in self._ending:
            producer.wait_until_ended(deadline)
        self._ending = [producer for producer in self._ending if not producer.has_ended]
        if self._ending:
            raise BrokerAway("the former producer has not ended yet")
        producer = _Producer(self._options, self._transactional_id)
        try:
            self._wait(producer.started, "init_transactions")
        except Exception as exc:
            producer.end()
            self._ending.append(producer)
            if "InvalidTransactionTimeout" in str(exc):
                raise ConfigurationError(
                    f"the broker allows no transaction of {self._transaction_timeout_s} s"
                ) from exc
            raise exc if isinstance(exc, TidewatchError) else mapped(exc, "init_transactions") from exc
        self._producer = producer

    def close(self) -> None:
        """See :meth:`pipeline.sinks.base.Sink.close`. An open transaction is aborted if that takes under a second."""
        if self._closed:
            return
        self._closed = True
        if self._producer is not None and self._begun_s is not None:
            # Left open it would hold up every read-committed reader until its timeout.
            self._producer.abort().add_done_callback(lambda done: None)
            self._producer.wait_until_idle(time.monotonic() + 1.0)
        self._discard()

    def _usable(self) -> _Producer:
        if self._producer is None:
            raise OutcomeUnknown("the producer was given up; rebuild first")
        return self._producer

    def _take_parcel(self) -> list[Output]:
        parcel, self._parcel, self._parcel_bytes = self._parcel, [], 0
        return parcel

    def _discard(self) -> None:
        if self._producer is not None:
            self._producer.end()
            self._ending.append(self._producer)
        self._producer = None
        self._begun_s = None
        self._take_parcel()

    def _wait(self, call: Future[Result], doing: str) -> Result:
        try:
            return call.result(timeout=self._call_deadline_s)
        except TimeoutError as exc:
            raise BrokerAway(f"{doing} took longer than {self._call_deadline_s} s") from exc

    def _refused(self, producer: _Producer, cause: Exception) -> None:
        """Abort after the group refused the offsets, and say so."""
        try:
            self._wait(producer.abort(), "abort")
        except Exception as exc:
            raise self._doubt(exc) from exc
        if isinstance(cause, kafka_errors.FencedInstanceIdError):
            self._discard()
            raise WorkerFenced(f"a live process has this worker's group instance id: {cause}") from cause
        try:
            # The client keeps refused offsets and would commit them with the next transaction, under the next note.
            self.rebuild()
        except TidewatchError as exc:
            log.warning("no new producer after a refused commit: %s", exc)
        raise CommitRefused(f"the group refused the offsets: {cause}") from cause

    def _doubt(self, cause: Exception) -> TidewatchError:
        """Give the producer up; returns what to raise."""
        age_s = 0.0 if self._begun_s is None else time.monotonic() - self._begun_s
        self._discard()
        if isinstance(cause, MISCONFIGURED):
            return ConfigurationError(f"an output cannot be written: {type(cause).__name__}: {cause}")
        # Only a newer producer of the same id, or the broker after the timeout, moves the epoch.
        if _is_fence(cause) and age_s < self._transaction_timeout_s:
            self._fenced_in_a_row += 1
            if self._fenced_in_a_row > 1:
                return WorkerFenced(f"a live process has the transactional id {self._transactional_id}: {cause}")
        return OutcomeUnknown(f"{type(cause).__name__}: {cause}")


class _Producer:
    """One producer and the daemon thread on which all its blocking calls are made, in order.

    After the first call that failed no other is made, except an abort.
    """

    def __init__(self, options: Mapping[str, Any], transactional_id: str) -> None:
        self._options = options
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._client: Any = None
        self._sends: list[Any] = []
        self._failure: Exception | None = None
        self._is_open = False
        self._is_given_up = False
        self.started: Future[None] = self._call(self._start)
        self._thread = Thread(target=self._run, name=f"producer-{transactional_id}", daemon=True)
        self._thread.start()

    def send(self, parcel: Sequence[Output]) -> None:
        """Hand records over; a failure shows at the commit."""
        if parcel:
            self._call(lambda: self._send(parcel))

    def commit(self, offsets: Mapping[Partition, CommittedOffset], note: GroupNote) -> Future[None]:
        """Commit everything handed over, and the offsets."""
        return self._call(lambda: self._commit(offsets, note))

    def abort(self) -> Future[None]:
        """Abort the open transaction, if there is one."""
        return self._call(self._abort)

    def end(self) -> None:
        """Stop without waiting: nothing more is sent once :attr:`has_ended`. A hung call is left to its thread."""
        self._is_given_up = True
        self._calls.put(None)
        if self._client is not None:
            _force_close(self._client)

    @property
    def has_ended(self) -> bool:
        """Whether nothing of this producer can reach a broker any more."""
        if self._client is None:
            return not self._thread.is_alive()
        return not self._client._sender.is_alive()

    def wait_until_ended(self, deadline: float) -> None:
        """Wait for :attr:`has_ended`, until ``deadline`` (monotonic seconds) at most."""
        if self._client is None:
            self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._client is not None:
            self._client._sender.join(max(0.0, deadline - time.monotonic()))
            if self.has_ended:
                self._client.close(timeout=0)  # what the first attempt left undone

    def wait_until_idle(self, deadline: float) -> None:
        """Wait until all calls made so far are done, until ``deadline`` at most."""
        done = self._call(lambda: None)
        try:
            done.result(max(0.0, deadline - time.monotonic()))
        except Exception:  # whatever failed is kept by the call that failed; here only the time counts
            return

    def _call(self, work: Callable[[], None]) -> Future[None]:
        done: Future[None] = Future()

        def run() -> None:
            try:
                work()
            except Exception as exc:
                self._failure = self._failure or exc
                done.set_exception(exc)
            else:
                done.set_result(None)

        self._calls.put(run)
        return done

    def _run(self) -> None:
        while (call := self._calls.get()) is not None and not self._is_given_up:
            call()

    def _start(self) -> None:
        client, _ = connect(KafkaProducer, **self._options)
        self._client = client
        if self._is_given_up:
            _force_close(client)
            return
        client.init_transactions()

    def _send(self, parcel: Sequence[Output]) -> None:
        self._begin()
        for topic, key, value, partition in parcel:
            sent = self._client.send(topic, value=value, key=key, partition=partition)
            sent.add_errback(self._stop_at_once)
            self._sends.append(sent)

    def _commit(self, offsets: Mapping[Partition, CommittedOffset], note: GroupNote) -> None:
        """Rule 3: flush, every delivery checked, offsets, commit."""
        self._begin()
        self._client.flush()
        for sent in self._sends:
            sent.get(timeout=self._options["max_block_ms"] / 1000)
        self._sends.clear()
        if offsets:
            positions = {
                TopicPartition(*partition): OffsetAndMetadata(committed.offset, committed.metadata, -1)
                for partition, committed in offsets.items()
            }
            self._client.send_offsets_to_transaction(positions, note.metadata)
        self._client.commit_transaction()
        self._is_open = False

    def _abort(self) -> None:
        if not self._is_open:
            return
        if self._failure is not None and not isinstance(self._failure, REFUSALS):
            raise self._failure  # the client's thread has been told to end: its abort would wait for ever
        self._client.abort_transaction()
        self._sends.clear()
        self._is_open = False
        self._failure = None

    def _begin(self) -> None:
        if self._failure is not None:
            raise self._failure
        if not self._is_open:
            self._client.begin_transaction()
            self._is_open = True

    def _stop_at_once(self, exc: Exception) -> None:
        """Called on the client's sending thread when a record could not be delivered.

        The client answers some failures by asking for a new epoch, which fences whoever took this id meanwhile. It
        would ask in its next round, so the thread is told to end in this one.
        """
        if not isinstance(exc, kafka_errors.TransactionAbortedError):  # that one is our own abort
            self._failure = self._failure or exc
            self._client._sender.force_close()


def _force_close(client: Any) -> None:
    try:
        client.close(timeout=0)
    except kafka_errors.KafkaTimeoutError:
        # With records under way close() raises before it has told its thread to end (3.0.12), which then goes on.
        client._sender.force_close()


def _is_fence(exc: Exception) -> bool:
    if isinstance(exc, (kafka_errors.ProducerFencedError, kafka_errors.InvalidProducerEpochError)):
        return True
    return "ProducerFenced" in str(exc) or "InvalidProducerEpoch" in str(exc)
