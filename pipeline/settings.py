"""Settings: one frozen model per concern.

Where a value comes from, strongest first:

1. ``overrides`` of :meth:`Settings.load` (command-line options),
2. ``TIDEWATCH_<SECTION>__<KEY>``, for example ``TIDEWATCH_KAFKA__BOOTSTRAP_SERVERS``,
3. plain ``KAFKA_BOOTSTRAP_SERVERS`` and ``REDIS_URL``,
4. the TOML file (its path may come from ``TIDEWATCH_CONFIG``),
5. the defaults below, which run on a laptop.

A secret may be given by a file: ``kafka.security.password_file`` or ``TIDEWATCH_KAFKA__SECURITY__PASSWORD_FILE`` names
one that holds it (:data:`SECRETS` lists all that can).

A profile binds topics to what their streams are. Two ship with the package, ``sensor`` and ``network``
(``pipeline/profiles/*.toml``), and apply where the file has no ``[profiles]``. A profile in the file that is named
like a shipped one starts from it and overrides only the keys it gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlencode, urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from pipeline.errors import ConfigurationError
from pipeline.profile import Profile
from pipeline.section import Names, Section, Topic, listed, none_for
from pipeline.settings_given import (
    PREFIX,
    SECRETS,
    SHIPPED_PROFILES,
    merged,
    named_file,
    plain_environment,
    read_toml,
    refuse_unknown_variables,
    shipped_profile,
    with_secret_files,
    with_shipped_profiles,
)


class Security(Section):
    """How to talk to Kafka where it is not open.

    Attributes
    ----------
    protocol
        As Kafka names it.
    ca_file, cert_file, key_file
        PEM files for TLS; the system's authorities apply without ``ca_file``.
    key_password, password
        Secrets; better given by environment than by file.
    mechanism
        SASL mechanism, needed with a ``SASL_…`` protocol.
    """

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
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
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        if not self.protocol.endswith("SSL") and (self.ca_file is not None or self.cert_file is not None):
            raise ValueError(f"ca_file and cert_file need SSL or SASL_SSL, not {self.protocol}")
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


class Redis(Section):
    """Where rows are kept.

    Attributes
    ----------
    url
        ``redis://``, ``rediss://`` (TLS) or ``unix://`` of a server, or of any node of a Redis Cluster; it may hold
        user and password.
    username, password
        In place of those in ``url``.
    ca_file, cert_file, key_file
        PEM files for TLS; the system's authorities apply without ``ca_file``.
    save_interval_s
        Target age of saved rows, so about the longest stretch a successor replays.
    max_watermark_age_s
        With Redis away, input is paused once saved state is older than this.
    """

    url: SecretStr = SecretStr("redis://localhost:6379/0")
    username: str | None = None
    password: SecretStr | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
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
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        is_plain = not self.url.get_secret_value().startswith("rediss://")
        if is_plain and (self.ca_file is not None or self.cert_file is not None):
            raise ValueError("ca_file and cert_file need a url that begins with rediss://")
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


class Limits(Section):
    """What a message may be; anything over a limit goes to the dead-letter topic.

    Attributes
    ----------
    max_message_bytes
        Size of a record's value.
    max_window_length, max_features
        T and F of one window.
    max_clock_skew_s
        How far an event time may lie after its record's Kafka timestamp; "off" turns the check off.
    max_event_age_s
        How far it may lie before it; "off" by default, so that recordings and late-comers are welcome.
    max_stream_id_length
        Bytes of a stream id in UTF-8.
    """

    max_message_bytes: PositiveInt = 1024 * 1024
    # 32768 observations of scores fill one record of the scores topic, which is never split inside a window.
    max_window_length: Annotated[int, Field(gt=0, le=32768)] = 4096
    max_features: Annotated[int, Field(gt=0, le=4096)] = 64
    max_clock_skew_s: Annotated[PositiveFloat | None, none_for("off")] = 300.0
    max_event_age_s: Annotated[PositiveFloat | None, none_for("off")] = None
    max_stream_id_length: Annotated[int, Field(gt=0, le=4096)] = 256


class Engine(Section):
    """The device and what may lie on it.

    Attributes
    ----------
    threads
        CPU threads that share out a batch; 0 takes two, or one on a single core. More than four are not used: they
        would wait for each other, and further cores serve further workers. They change no result.
    max_resident_streams
        Rows kept on the device; those not used lately are evicted to Redis.
    max_batch_observations
        Observations (times) of one batch, over all its streams.
    hidden_on_swap
        What becomes of hidden state when a new model version takes over.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0
    max_resident_streams: PositiveInt = 100_000
    max_batch_observations: PositiveInt = 65_536
    hidden_on_swap: Literal["carry", "reset"] = "carry"


class Http(Section):
    """Where ``/metrics``, ``/healthz`` and ``/readyz`` are served; port 0 picks a free one."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 9464


class Registry(Section):
    """The folder of model versions."""

    folder: Path = Path("runs/registry")


class Monitor(Section):
    """What ``tidewatch monitor`` watches beside the fold.

    Attributes
    ----------
    lookback_s, alerts_lookback_s
        How much of the input topics and of the alerts topic it reads at its start: the first to learn the rhythm of
        streams, the second to know which alerts are open.
    silent_after_gaps, min_silence_s
        A stream is silent after so many of its mean gaps without a record, and not before so many seconds.
    max_streams
        Streams it remembers; further ones are not watched.
    max_shown_alerts
        Open alerts it shows one by one to Prometheus, the newest; each is some series.
    """

    lookback_s: PositiveFloat = 3600.0
    alerts_lookback_s: PositiveFloat = 604_800.0
    silent_after_gaps: Annotated[float, Field(ge=3)] = 10.0
    min_silence_s: PositiveFloat = 60.0
    max_streams: PositiveInt = 200_000
    max_shown_alerts: Annotated[int, Field(ge=0, le=1000)] = 50


class Notify(Section):
    """Whom ``tidewatch notify`` tells about alerts, and how.

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
        Which events of an alert's life are told, and from which severity on (once told, an alert is told to its end).
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


class Learner(Section):
    """How ``tidewatch learner`` learns the shared weights, and when it may change what is served.

    Attributes
    ----------
    lookback_s
        How much of the input topics it reads again at its start, by Kafka timestamps, to know its streams.
    max_streams
        Streams of a profile it follows: a sample is enough.
    stretch
        Observations that are learned from at a time: a window of one stream as the learner cuts it.
    reservoir
        Stretches of a profile kept for rehearsal, in equal shares of its streams.
    batch, rate, gradient_norm
        Stretches in one update, Adam's rate, and the length gradients are shortened to.
    cpu_share, drift_cpu_share
        Share of one core that learning may take, and while the family drifts.
    candidate_updates
        Updates between two candidates; so many are also made by a forced retraining.
    shadow_stretches, probation_stretches
        Fresh stretches on which a candidate is compared before it is promoted, and on which it is watched afterwards.
    margin
        Nats per target by which a candidate must predict better.
    lasting_s
        Event time for which a change must last before a stream that alarmed teaches again. More than a day: a fault of
        a day is never learned.
    max_imputed
        Share of missing values above which a stretch does not teach.
    tail_series, tail_observations
        Generated series folded for a version's pooled tails, and observations of each.
    keep_versions
        Newest versions never removed.
    """

    lookback_s: PositiveFloat = 86_400.0
    max_streams: PositiveInt = 256
    stretch: Annotated[int, Field(ge=32, le=4096)] = 128
    reservoir: PositiveInt = 1024
    batch: PositiveInt = 16
    rate: Annotated[float, Field(gt=0, le=0.1)] = 3e-4
    gradient_norm: PositiveFloat = 1.0
    cpu_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    drift_cpu_share: Annotated[float, Field(gt=0, le=1)] = 0.75
    candidate_updates: PositiveInt = 200
    shadow_stretches: Annotated[int, Field(ge=4)] = 256
    probation_stretches: Annotated[int, Field(ge=4)] = 256
    margin: PositiveFloat = 0.02
    lasting_s: PositiveFloat = 129_600.0
    max_imputed: Annotated[float, Field(ge=0, le=1)] = 0.1
    tail_series: Annotated[int, Field(ge=16)] = 88
    tail_observations: Annotated[int, Field(ge=500)] = 1024
    keep_versions: Annotated[int, Field(ge=1)] = 10


class TopicPlan(Section):
    """How topics of one purpose are made: partitions, and hours that a record is kept ("forever": no end)."""

    partitions: PositiveInt
    retention_h: Annotated[PositiveFloat | None, none_for("forever")]


class Topics(Section):
    """What ``tidewatch topics --create`` makes; a worker never reads it. deploy/kafka/README.md explains the numbers.

    Attributes
    ----------
    replication
        Copies of every record; -1 leaves it to the cluster.
    """

    replication: Annotated[int, Field(ge=-1, le=32)] = -1
    inputs: TopicPlan = TopicPlan(partitions=12, retention_h=192.0)
    scores: TopicPlan = TopicPlan(partitions=4, retention_h=24.0)
    alerts: TopicPlan = TopicPlan(partitions=4, retention_h=720.0)
    dead_letters: TopicPlan = TopicPlan(partitions=1, retention_h=336.0)

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, given: Any) -> Any:
        """A plan that names only some of its numbers keeps the others of its purpose."""
        if not isinstance(given, Mapping):
            return given
        defaults = {name: item.default.model_dump() for name, item in cls.model_fields.items() if name != "replication"}
        return {
            name: {**defaults[name], **plan} if isinstance(plan, Mapping) and name in defaults else plan
            for name, plan in given.items()
        }

    @field_validator("replication")
    @classmethod
    def _some(cls, replication: int) -> int:
        if replication == 0:
            raise ValueError("0 copies of a record are none; -1 leaves the number to the cluster")
        return replication


class Settings(Section):
    """Everything a role needs to know; made by :meth:`load`, or by hand in tests (which then sees no environment)."""

    kafka: Kafka = Kafka()
    redis: Redis = Redis()
    limits: Limits = Limits()
    engine: Engine = Engine()
    http: Http = Http()
    registry: Registry = Registry()
    topics: Topics = Topics()
    monitor: Monitor = Monitor()
    notify: Notify = Notify()
    learner: Learner = Learner()
    profiles: Annotated[dict[str, Profile], Field(min_length=1)] = Field(
        default_factory=lambda: {name: Profile(**shipped_profile(name)) for name in SHIPPED_PROFILES}
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        outputs = {self.kafka.scores_topic, self.kafka.alerts_topic, self.kafka.dead_letter_topic}
        bound: dict[str, str] = {}
        for name, profile in self.profiles.items():
            for topic in profile.topics:
                if topic in bound:
                    raise ValueError(f"topic {topic!r} is bound to the profiles {bound[topic]!r} and {name!r}")
                if topic in outputs:
                    raise ValueError(f"topic {topic!r} of profile {name!r} is an output topic in [kafka]")
                bound[topic] = name
            if len(profile.features) > self.limits.max_features:
                raise ValueError(f"profile {name!r} has {len(profile.features)} features, over limits.max_features")
        if self.engine.max_batch_observations < self.limits.max_window_length:
            raise ValueError("engine.max_batch_observations must hold one window of limits.max_window_length")
        return self

    def profile_names(self) -> dict[str, str]:
        """Input topic -> name of its profile."""
        return {topic: name for name, profile in self.profiles.items() for topic in profile.topics}

    @classmethod
    def load(cls, path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
        """Settings from overrides, environment, file and defaults, in this order of strength.

        Parameters
        ----------
        path
            TOML file; ``None`` takes ``TIDEWATCH_CONFIG`` where set, else no file.
        overrides
            Nested mapping of sections and keys, strongest of all.

        Raises
        ------
        ConfigurationError
            Unreadable file, unknown key or wrong value; the message lists every place and what is wrong there.
        """
        path = path or named_file()
        from_file = {} if path is None else read_toml(path)
        refuse_unknown_variables(set(cls.model_fields))
        layers = (plain_environment(), EnvSettingsSource(_Environment)(), dict(overrides or {}))
        raw = with_shipped_profiles(from_file)
        for layer in layers:
            raw = merged(raw, layer)
        raw = with_secret_files(raw)
        try:
            return cls.model_validate(raw)
        except ValidationError as exc:
            origin = "settings" if path is None else str(path)
            raise ConfigurationError(f"{origin}:\n" + "\n".join(_complaints(exc))) from exc


class _Environment(Settings, BaseSettings):
    """Shows pydantic-settings the fields to look for in the environment; never constructed."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", enable_decoding=False)


def _host(url: str) -> str | None:
    """The host of a secret URL, refused where it cannot be parsed: the parser's own text repeats a piece of it."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # parsed only now
        return parts.hostname
    except ValueError:
        raise ValueError("host or port cannot be read; / ? # in a password are written %2F %3F %23") from None


def _complaints(error: ValidationError) -> Iterator[str]:
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"]) or "(whole)"
        message = item["msg"].removeprefix("Value error, ")
        is_unknown = item["type"] == "extra_forbidden"
        is_secret = tuple(part for part in item["loc"] if isinstance(part, str)) in SECRETS
        if is_unknown:
            message = "unknown key"
        elif is_secret and item["type"] == "string_type":
            message += "; put it in quotes"
        # Only numbers and words are shown back: texts may hold secrets, tables are long. Nor is the number that stands
        # for a secret, or under an unknown key, which may be a secret's with a typing error.
        is_shown = isinstance(item["input"], int | float) and not is_secret and not is_unknown
        yield f"  {place}: {message}" + (f" (got {item['input']!r})" if is_shown else "")
