"""What the Kafka source and sink share: settings of the client, its construction, and the map of its errors."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient

from pipeline.errors import BrokerAway, ConfigurationError, OffsetsGone, TidewatchError, WorkerFenced
from pipeline.records import Partition

Client = TypeVar("Client")

PROBE_S = 1.0

# Nothing that waiting could mend: settings, permissions, missing codecs, limits of the cluster.
MISCONFIGURED = (
    kafka_errors.AuthorizationError,
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.UnsupportedSaslMechanismError,
    kafka_errors.IllegalSaslStateError,
    kafka_errors.SecurityDisabledError,
    kafka_errors.UnsupportedVersionError,
    kafka_errors.UnsupportedCodecError,
    kafka_errors.UnsupportedCompressionTypeError,
    kafka_errors.UnsupportedForMessageFormatError,
    kafka_errors.InvalidTopicError,
    kafka_errors.InvalidGroupIdError,
    kafka_errors.InvalidSessionTimeoutError,
    kafka_errors.InconsistentGroupProtocolError,
    kafka_errors.GroupMaxSizeReachedError,
    kafka_errors.InvalidTransactionTimeoutError,
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
    kafka_errors.OffsetMetadataTooLargeError,
    kafka_errors.KafkaConfigurationError,
)


def client_options(
    bootstrap_servers: str | Sequence[str], client_id: str, call_deadline_s: float, security: Mapping[str, Any]
) -> dict[str, Any]:
    """Options every client takes, in kafka-python's names.

    Parameters
    ----------
    call_deadline_s
        Longest wait for a first connection.
    security
        kafka-python's own options (``security_protocol``, ``ssl_cafile``, ``sasl_mechanism``, ``proxy_url``, …).
    """
    return {
        "bootstrap_servers": bootstrap_servers if isinstance(bootstrap_servers, str) else list(bootstrap_servers),
        "client_id": client_id,
        "bootstrap_timeout_ms": int(call_deadline_s * 1000),
        "request_timeout_ms": 5000,  # the default 30 s is longer than any deadline of ours
        "reconnect_backoff_max_ms": 1000,  # default 30 s: a broker that came back would stay unnoticed for that long
        "retry_backoff_ms": 20,  # half the latency of a commit (protocol.md, facts)
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
        **security,
    }


def connect(client: Callable[..., Client], *args: str, **options: Any) -> tuple[Client, KafkaNetClient]:
    """A connected client and its network side.

    The constructor asks the broker for its version and raises when none answers; the half-built client would then keep
    its threads and sockets, so they are closed here.

    Raises
    ------
    BrokerAway
        No broker answered in time.
    ConfigurationError
        Settings that cannot work.
    """
    networks: list[KafkaNetClient] = []

    def network(**settings: Any) -> KafkaNetClient:
        networks.append(KafkaNetClient(**settings))
        return networks[-1]

    try:
        return client(*args, kafka_client=network, **options), networks[0]
    except Exception as exc:
        for half_built in networks:
            half_built.close()
        error = mapped(exc, f"connecting to {options['bootstrap_servers']}")
        if isinstance(error, BrokerAway):
            error = BrokerAway(f"{error}{_hint(options)}")
        raise error from exc


class Presence:
    """Whether a broker has been there of late, for readers whose client answers nothing with silence.

    Parameters
    ----------
    network
        The client's network side.
    patience_s
        So long may every broker be away.
    """

    def __init__(self, network: KafkaNetClient, patience_s: float) -> None:
        self._network, self._patience_s = network, patience_s
        self._last_seen_s = time.monotonic()

    def check(self, something_came: bool) -> None:
        """Look once more, after a poll.

        Raises
        ------
        BrokerAway
            None has been connected for ``patience_s``.
        """
        now_s = time.monotonic()
        if something_came or self._is_connected():
            self._last_seen_s = now_s
        elif now_s - self._last_seen_s > self._patience_s:
            raise BrokerAway(f"no broker has been connected for {self._patience_s:g} s")

    def _is_connected(self) -> bool:
        return any(self._network.connected(broker.node_id) for broker in self._network.cluster.brokers())


def _hint(options: Mapping[str, Any]) -> str:
    """What to look at where somebody listens and no conversation comes about.

    A broker ends the connection of whom it does not know, and the client reports that as it reports any other loss.
    """
    servers = options["bootstrap_servers"]
    for server in servers.split(",") if isinstance(servers, str) else servers:
        host, _, port = server.rpartition(":")
        try:
            socket.create_connection((host, int(port)), PROBE_S).close()
        except (OSError, ValueError):
            continue
        protocol = options.get("security_protocol", "PLAINTEXT")
        return (
            f"; {server} does accept connections: is kafka.security right (protocol {protocol}, certificates, user and "
            "password)?"
        )
    return ""


def mapped(exc: Exception, doing: str) -> TidewatchError:
    """Our error for one of the client's; what is not the client's comes back as an error of configuration.

    Most specific first. What Kafka does not name final counts as away: asking again is harmless outside transactions,
    and those are mapped by the sink.
    """
    text = f"{doing}: {type(exc).__name__}: {exc}"
    if isinstance(exc, kafka_errors.FencedInstanceIdError):
        return WorkerFenced(f"{text} (a live process has this worker's group instance id)")
    if isinstance(exc, kafka_errors.OffsetOutOfRangeError):
        return OffsetsGone(text, tuple(Partition(*p) for p in exc.args[0]))
    if isinstance(exc, kafka_errors.LogTruncationError):
        return OffsetsGone(text, tuple(Partition(*p) for p in exc.divergent_offsets))
    if isinstance(exc, MISCONFIGURED):
        return ConfigurationError(text)
    if isinstance(exc, (kafka_errors.KafkaError, OSError)):
        return BrokerAway(text)
    return ConfigurationError(text)
