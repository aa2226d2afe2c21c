"""Settings: one frozen model per concern; those with addresses and secrets are in :mod:`pipeline.connections`.

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

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from pipeline.connections import Kafka, Notify, Redis
from pipeline.errors import ConfigurationError
from pipeline.profile import Profile
from pipeline.section import Section, none_for
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
    variable_of,
    with_secret_files,
    with_shipped_profiles,
)


class Limits(Section):
    """Limits of a message; one that exceeds any of them goes to the dead-letter topic.

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


class EngineSettings(Section):
    """The device that scores, and how much it may hold.

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


class RegistrySettings(Section):
    """Where model versions are kept."""

    folder: Path = Path("runs/registry")


class MonitorSettings(Section):
    """What ``tidewatch monitor`` watches for, and how far back it reads.

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


class LearnerSettings(Section):
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
    """Topics of one purpose: partitions, and hours for which records are kept ("forever": without end)."""

    partitions: PositiveInt
    retention_h: Annotated[PositiveFloat | None, none_for("forever")]


class Topics(Section):
    """What ``tidewatch topics --create`` creates; workers ignore it. deploy/kafka/README.md explains the numbers.

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
    """All settings of a process, made by :meth:`load`; made by hand, as in tests, they ignore the environment."""

    kafka: Kafka = Kafka()
    redis: Redis = Redis()
    limits: Limits = Limits()
    engine: EngineSettings = EngineSettings()
    http: Http = Http()
    registry: RegistrySettings = RegistrySettings()
    topics: Topics = Topics()
    monitor: MonitorSettings = MonitorSettings()
    notify: Notify = Notify()
    learner: LearnerSettings = LearnerSettings()
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
        environment = merged(plain_environment(), EnvSettingsSource(_Environment)())
        raw = with_shipped_profiles(from_file)
        for layer in (environment, overrides or {}):
            raw = merged(raw, layer)
        raw = with_secret_files(raw)
        try:
            return cls.model_validate(raw)
        except ValidationError as exc:
            origin = "settings" if path is None else str(path)
            raise ConfigurationError(f"{origin}:\n" + "\n".join(_complaints(exc, environment))) from exc


class _Environment(Settings, BaseSettings):
    """Shows pydantic-settings the fields to look for in the environment; never constructed."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", enable_decoding=False)


def _complaints(error: ValidationError, environment: Mapping[str, Any]) -> Iterator[str]:
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
        variable = variable_of(item["loc"], environment)
        shown = f" (got {item['input']!r})" if is_shown else ""
        yield f"  {place}: {message}{shown}" + ("" if variable is None else f" (set by {variable})")
