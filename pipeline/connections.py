"""Whom Tidewatch talks to: the sections of the settings that hold addresses and secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlencode, urlsplit

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, SecretStr, field_validator, model_validator

from pipeline.section import Names, Section, Topic, listed


class TlsFiles(Section):
    """PEM files for a connection over TLS.

    Attributes
    ----------
    ca_file
        Authorities that vouch for the server; without it, those of the system.
    cert_file, key_file
        This side's certificate and its key, where the server asks for one.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def _check_files(self, has_tls: bool, needed: str) -> None:
        """Raise ValueError where half of the pair is missing, or files are given to a connection without TLS."""
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        if not has_tls and (self.ca_file is not None or self.cert_file is not None):
            raise ValueError(f"ca_file and cert_file need {needed}")


class Security(TlsFiles):
    """How to encrypt and authenticate connections to Kafka.

    Attributes
    ----------
    protocol
        As Kafka names it.
    key_password, password
        Secrets; better given by environment than by file.
    mechanism
        SASL mechanism, needed with a ``SASL_…`` protocol.
    """

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    key_password: SecretStr | None = None
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    username: str | None = None
    password: SecretStr | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.protocol.startswith("SASL"):
            absent = [k for k in ("mechanism", "username", "password") if getattr(self, k) is None]
            if absent:
                raise ValueError(f"protocol {self.protocol} needs {', '.join(absent)}")
        elif self.username is not None or self.password is not None or self.mechanism is not None:
            raise ValueError(f"mechanism, username and password need a SASL protocol, not {self.protocol}")
        self._check_files(self.protocol.endswith("SSL"), f"SSL or SASL_SSL, not {self.protocol}")
        return self


class Kafka(Section):
    """The cluster, the group, the output topics, and how often work is committed.

    Attributes
    ----------
    worker_name
        Stable name of this worker's slot (a StatefulSet's pod name); random per process when absent. With
        ``static_membership`` a restarted worker of the same name takes its partitions back without a rebalance.
    start
        Where a partition begins that this group never committed: with its oldest record, or at its end; one that was
        added while the worker ran begins with its first record since the worker's start.
    commit_interval_s, max_uncommitted_records
        A commit is due at whichever comes first.
    transaction_timeout_s, call_deadline_s
        How long the broker keeps an open transaction; how long one blocking call may take before its outcome counts
        as unknown.
    """

    bootstrap_servers: Names = ("localhost:9092",)
    group: Annotated[str, Field(min_length=1, max_length=200)] = "tidewatch"
    worker_name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    static_membership: bool = False
    scores_topic: Topic = "tidewatch-scores"
    alerts_topic: Topic = "tidewatch-alerts"
    dead_letter_topic: Topic = "tidewatch-dead-letters"
    start: Literal["earliest", "latest"] = "earliest"
    commit_interval_s: PositiveFloat = 0.5
    max_uncommitted_records: PositiveInt = 20_000
    max_poll_records: PositiveInt = 5_000
    session_timeout_s: Annotated[float, Field(ge=6, le=1800)] = 10.0
    transaction_timeout_s: PositiveFloat = 15.0
    call_deadline_s: PositiveFloat = 8.0
    security: Security = Security()

    @field_validator("bootstrap_servers")
    @classmethod
    def _addresses(cls, servers: tuple[str, ...]) -> tuple[str, ...]:
        for server in servers:
            host, _, port = server.rpartition(":")
            if not host or not port.isdigit():
                raise ValueError(f"{server!r} is not host:port")
        return servers

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        outputs = (self.scores_topic, self.alerts_topic, self.dead_letter_topic)
        if len(set(outputs)) < len(outputs):
            raise ValueError("scores_topic, alerts_topic and dead_letter_topic must differ")
        if self.static_membership and self.worker_name is None:
            raise ValueError("static_membership needs a worker_name that stays the same after a restart")
        # protocol.md rule 8: a transaction must outlive the interval it collects in and the calls that end it.
        if self.transaction_timeout_s <= self.commit_interval_s + self.call_deadline_s:
            raise ValueError("transaction_timeout_s must be more than commit_interval_s + call_deadline_s")
        return self


class Redis(TlsFiles):
    """The Redis that keeps the rows, and how often they are saved.

    Attributes
    ----------
    url
        ``redis://``, ``rediss://`` (TLS) or ``unix://`` of a server, or of any node of a Redis Cluster; it may hold
        user and password.
    username, password
        In place of those in ``url``.
    save_interval_s
        Target age of saved rows, so about the longest stretch a successor replays.
    max_watermark_age_s
        With Redis away, input is paused once saved state is older than this.
    """

    url: SecretStr = SecretStr("redis://localhost:6379/0")
    username: str | None = None
    password: SecretStr | None = None
    save_interval_s: PositiveFloat = 5.0
    max_watermark_age_s: PositiveFloat = 60.0
    call_deadline_s: PositiveFloat = 5.0

    @field_validator("url")
    @classmethod
    def _scheme(cls, url: SecretStr) -> SecretStr:
        if not url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must start with redis://, rediss:// or unix://")
        _host(url.get_secret_value())
        return url

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.save_interval_s >= self.max_watermark_age_s:
            raise ValueError("save_interval_s must be less than max_watermark_age_s")
        self._check_files(self.url.get_secret_value().startswith("rediss://"), "a url that begins with rediss://")
        return self

    def address(self) -> SecretStr:
        """The URL with everything in it, as redis-py reads it."""
        password = None if self.password is None else self.password.get_secret_value()
        options = {
            "username": self.username,
            "password": password,
            "ssl_ca_certs": self.ca_file,
            "ssl_certfile": self.cert_file,
            "ssl_keyfile": self.key_file,
        }
        query = urlencode({name: str(value) for name, value in options.items() if value is not None})
        url = self.url.get_secret_value()
        return SecretStr(url + ("&" if "?" in url else "?") * bool(query) + query)


class Notify(Section):
    """Where ``tidewatch notify`` sends alerts, which ones, and how.

    Attributes
    ----------
    kind
        ``webhook``: every event as one POST of the alert's JSON; ``alertmanager``: Alertmanager's API, version 2.
    url
        Where to; secret, because webhooks carry their token in it. Whitespace around it and around the token is
        dropped.
    token
        Sent as ``Authorization: Bearer``.
    events, min_severity
        Which events of an alert's life are told, and from which severity on. Once told, an alert is told to its end,
        and once more when it becomes critical.
    timeout_s, deadline_s
        How long one attempt may take, and how long one event is tried before it is given up.
    resend_s
        Alertmanager forgets an alert that is not repeated: open ones are sent again this often.
    """

    kind: Literal["webhook", "alertmanager"] = "webhook"
    url: SecretStr | None = None
    token: SecretStr | None = None
    events: Annotated[
        tuple[Literal["opened", "updated", "resolved"], ...], BeforeValidator(listed), Field(min_length=1)
    ] = ("opened", "resolved")
    min_severity: Literal["warning", "critical"] = "warning"
    timeout_s: PositiveFloat = 10.0
    deadline_s: PositiveFloat = 600.0
    resend_s: PositiveFloat = 60.0

    @field_validator("url", "token")
    @classmethod
    def _sendable(cls, secret: SecretStr | None) -> SecretStr | None:
        text = "" if secret is None else secret.get_secret_value().strip()
        if not text:  # a variable of a compose file that was not set
            return None
        if not all("!" <= letter <= "~" for letter in text):
            raise ValueError("must be ASCII without spaces or control characters inside")
        return SecretStr(text)

    @field_validator("url")
    @classmethod
    def _http(cls, url: SecretStr | None) -> SecretStr | None:
        if url is None:
            return None
        if not url.get_secret_value().startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        if not _host(url.get_secret_value()):
            raise ValueError("names no host")
        return url


def _host(url: str) -> str | None:
    """The host of a secret URL, refused where it cannot be parsed: the parser's own text repeats a piece of it."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # parsed only now
        return parts.hostname
    except ValueError:
        raise ValueError("host or port cannot be read; / ? # in a password are written %2F %3F %23") from None
