"""Settings in, ready objects out: the only file where concrete classes meet."""

from __future__ import annotations

import gc
import os
import secrets
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import torch

from models.step import Scorer
from pipeline.batcher import Batcher
from pipeline.clock import SystemClock
from pipeline.connections import Security
from pipeline.engine import Engine
from pipeline.errors import ConfigurationError
from pipeline.messages import Messages
from pipeline.profile import Profile
from pipeline.records import StepStats
from pipeline.registry import Registry
from pipeline.settings import Settings
from pipeline.sinks.kafka import KafkaSink
from pipeline.sources.kafka import KafkaSource
from pipeline.state.base import StateStore
from pipeline.state.redis import RedisStateStore
from pipeline.topics.kafka import Cluster
from pipeline.worker import Pace, Worker

MOST_THREADS = 4
COLLECTOR_THRESHOLDS = (50_000, 20, 100)
"""New objects until a collection, collections until one of the next generation, and of the last."""


def build_worker(settings: Settings, listener: Callable[[StepStats], None], store: StateStore | None = None) -> Worker:
    """A worker connected to Kafka and Redis, its model versions published, not yet started.

    Parameters
    ----------
    listener
        Told what each step did.
    store
        Takes the place of Redis, for a worker that is to leave no state behind.

    Raises
    ------
    ConfigurationError
        Redis may drop keys, a model version is damaged, a topic is missing.
    BrokerAway, StoreAway
        A server does not answer.
    """
    apply_threads()
    device = choose_device(settings.engine.device)
    registry = Registry(settings.registry.folder)
    for name, profile in settings.profiles.items():
        registry.ensure(name, profile.builtin() or profile.predictor, profile.fold(), profile.scope)
    name = settings.kafka.worker_name or f"{socket.gethostname()}-{secrets.token_hex(4)}"
    with ExitStack() as opened:  # a server that is away leaves nothing open behind: the caller tries again and again
        store = store or opened.enter_context(closing(build_store(settings)))
        store.check()
        worker = Worker(
            opened.enter_context(closing(build_source(settings, name))),
            opened.enter_context(closing(build_sink(settings, name))),
            store,
            {name: build_engine(settings, registry, name, device) for name in settings.profiles},
            settings.profile_names(),
            served_version(registry),
            build_messages(settings),
            Batcher(settings.engine.max_batch_observations),
            build_pace(settings),
            SystemClock(),
            listener,
        )
        opened.pop_all()
    return worker


def build_store(settings: Settings) -> StateStore:
    """The state of all streams, in Redis."""
    return RedisStateStore.connect(settings.redis.address().get_secret_value(), settings.redis.call_deadline_s)


def build_cluster(settings: Settings) -> Cluster:
    """Kafka without a group: topics, ranges of records, plain producing."""
    kafka = settings.kafka
    return Cluster(kafka.bootstrap_servers, kafka.call_deadline_s, security_options(kafka.security))


def build_source(settings: Settings, worker_name: str) -> KafkaSource:
    """The consumer of every topic that a profile is bound to."""
    kafka = settings.kafka
    return KafkaSource(
        kafka.bootstrap_servers,
        kafka.group,
        settings.profile_names(),
        client_id=f"tidewatch-{worker_name}",
        group_instance_id=worker_name if kafka.static_membership else None,
        session_timeout_s=kafka.session_timeout_s,
        call_deadline_s=kafka.call_deadline_s,
        security=security_options(kafka.security),
    )


def build_sink(settings: Settings, worker_name: str) -> KafkaSink:
    """The transactional producer of this worker's slot (protocol.md rule 8)."""
    kafka = settings.kafka
    return KafkaSink(
        kafka.bootstrap_servers,
        f"{kafka.group}.{worker_name}",
        client_id=f"tidewatch-{worker_name}",
        transaction_timeout_s=kafka.transaction_timeout_s,
        call_deadline_s=kafka.call_deadline_s,
        security=security_options(kafka.security),
    )


def build_engine(settings: Settings, registry: Registry, name: str, device: str, detail: bool = False) -> Engine:
    """The engine of one profile, its versions read from the registry."""
    profile: Profile = settings.profiles[name]

    def load(version: str) -> Scorer:
        return registry.scorer(name, version, device)

    limits = settings.engine
    threads = fold_threads(settings)
    return Engine(name, profile, load, limits.max_resident_streams, device, limits.hidden_on_swap, detail, threads)


def build_messages(settings: Settings) -> Messages:
    """Message formats under the settings' limits and topics."""
    kafka = settings.kafka
    return Messages(settings.profiles, settings.limits, kafka.scores_topic, kafka.alerts_topic, kafka.dead_letter_topic)


def build_pace(settings: Settings) -> Pace:
    """Rhythm of reading, committing and saving."""
    kafka, redis = settings.kafka, settings.redis
    return Pace(
        group=kafka.group,
        start=kafka.start,
        commit_interval_s=kafka.commit_interval_s,
        max_uncommitted_records=kafka.max_uncommitted_records,
        max_poll_records=kafka.max_poll_records,
        save_interval_s=redis.save_interval_s,
        max_watermark_age_s=redis.max_watermark_age_s,
    )


def served_version(registry: Registry) -> Callable[[str], str]:
    """Follows the registry's pointer."""

    def target(profile: str) -> str:
        version = registry.current(profile)
        if version is None:
            raise ConfigurationError(f"profile {profile}: the registry names no version to serve")
        return version

    return target


def security_options(security: Security) -> dict[str, Any]:
    """kafka-python's names for the security settings; secrets are opened here and nowhere else."""
    password, key_password = security.password, security.key_password
    options = {
        "security_protocol": security.protocol,
        "ssl_cafile": security.ca_file and str(security.ca_file),
        "ssl_certfile": security.cert_file and str(security.cert_file),
        "ssl_keyfile": security.key_file and str(security.key_file),
        "ssl_password": key_password and _Unshown(key_password.get_secret_value()),
        "sasl_mechanism": security.mechanism,
        "sasl_plain_username": security.username,
        "sasl_plain_password": password and _Unshown(password.get_secret_value()),
    }
    return {name: value for name, value in options.items() if value is not None}


class _Unshown(str):
    """A secret for a client that writes its options to the log (kafka-python does, at debug)."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'**********'"


def choose_device(wish: str) -> str:
    """``cuda`` where there is one and it is not refused, else ``cpu``.

    Raises
    ------
    ConfigurationError
        ``cuda`` was asked for and there is none.
    """
    if wish == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError('engine.device is "cuda" and torch sees no GPU; use "auto" or "cpu"')
    return "cuda" if wish != "cpu" and torch.cuda.is_available() else "cpu"


def gpu_name(device: str) -> str | None:
    """What the GPU calls itself; ``None`` for a CPU."""
    return torch.cuda.get_device_name(device) if device != "cpu" else None


def settle_memory() -> None:
    """Let the garbage collector look at what comes from now on, and that less often; for a process with one worker.

    Each record read is a few objects to the collector, which else walks through all of torch's and pydantic's after
    every few thousand of them: 40 % of reading and decoding.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


def apply_threads() -> None:
    """Leave threads to the engine, whose tiles wait for each other once a batch.

    Torch's own wait within every operation, and do so by spinning: where Kafka's and the saver's threads, or other
    processes, take one of their cores for a moment, all of them stand still. On two busy cores two of torch's threads
    were ten times slower than one.
    """
    torch.set_num_threads(1)


def fold_threads(settings: Settings) -> int:
    """Threads that share out the tiles of a batch: the settings', at most four, or two where there are two cores.

    Every operation of a tile takes Python's lock anew. On 16 cores a batch of 5000 messages was folded 1.2 to 1.8
    times as fast with two threads as with one, up to 2.3 times with four large tiles, and 0.3 times with 16.
    """
    return min(MOST_THREADS, settings.engine.threads) or min(2, os.cpu_count() or 1)
