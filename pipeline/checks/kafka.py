"""Whether Kafka answers, and its topics are what a worker needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType

from pipeline.checks.finding import Finding, ok, problem, warning
from pipeline.errors import TidewatchError
from pipeline.kafka import client_options, connect, mapped
from pipeline.settings import Settings

SUBJECT = "kafka"
UNKNOWN_TOPIC = 3


def check_kafka(settings: Settings, security: Mapping[str, Any]) -> Iterator[Finding]:
    """Brokers, then each topic; changes nothing.

    Parameters
    ----------
    security
        kafka-python's own options.
    """
    kafka = settings.kafka
    places = ", ".join(kafka.bootstrap_servers)
    options = client_options(kafka.bootstrap_servers, "tidewatch-check", kafka.call_deadline_s, security)
    known = {name: value for name, value in options.items() if name in KafkaAdminClient.DEFAULT_CONFIG}
    try:
        admin, _ = connect(KafkaAdminClient, **known)
    except TidewatchError as exc:
        yield problem(SUBJECT, f"no answer from {places}: {exc}")
        return
    inputs = settings.profile_names()
    outputs = (kafka.scores_topic, kafka.alerts_topic, kafka.dead_letter_topic)
    try:
        brokers = len(admin.describe_cluster()["brokers"])
        yield ok(SUBJECT, f"{places}: {_plural(brokers, 'broker')}, group {kafka.group!r}")
        topics = {topic["name"]: topic for topic in admin.describe_topics([*inputs, *outputs])}
        configs = _configs(admin, [name for name, topic in topics.items() if topic["error_code"] == 0])
    except kafka_errors.KafkaError as exc:
        yield problem(SUBJECT, str(mapped(exc, f"asking {places}")))
        return
    finally:
        admin.close()
    for name, profile in inputs.items():
        yield from _check_topic(f"input {name} (profile {profile})", topics[name], brokers)
        yield from _check_retention(name, configs.get(name, {}))
    for name in outputs:
        yield from _check_topic(f"output {name}", topics[name], brokers)


def _configs(admin: KafkaAdminClient, topics: list[str]) -> dict[str, dict[str, str]]:
    if not topics:
        return {}
    wanted = ["cleanup.policy", "retention.ms"]
    resources = [ConfigResource(ConfigResourceType.TOPIC, topic, wanted) for topic in topics]
    found = admin.describe_configs(resources, config_filter="all")["topic"]
    return {
        topic: {key: str(entry["value"]) for key, entry in values.items() if key in wanted}
        for topic, values in found.items()
    }


def _check_topic(what: str, topic: Mapping[str, Any], brokers: int) -> Iterator[Finding]:
    if topic["error_code"] == UNKNOWN_TOPIC:
        yield problem(SUBJECT, f"{what} does not exist: create it")
        return
    if topic["error_code"]:
        yield problem(SUBJECT, f"{what}: {kafka_errors.for_code(topic['error_code']).__name__}")
        return
    partitions = topic["partitions"]
    leaderless = [p["partition_index"] for p in partitions if p["leader_id"] < 0]
    if leaderless:
        yield problem(SUBJECT, f"{what}: no leader for partitions {leaderless}")
        return
    replicas = min(len(p["replica_nodes"]) for p in partitions)
    behind = sum(len(p["isr_nodes"]) < len(p["replica_nodes"]) for p in partitions)
    text = f"{what}: {_plural(len(partitions), 'partition')}, replication {replicas}"
    if behind:
        yield warning(SUBJECT, f"{text}; {behind} of them lack a replica at present")
    elif replicas < 2 <= brokers:
        yield warning(SUBJECT, f"{text}; one broker's loss loses records: replicate it")
    else:
        yield ok(SUBJECT, text)


def _check_retention(topic: str, configs: Mapping[str, str]) -> Iterator[Finding]:
    """Kafka is the truth that rows are rebuilt from, so records must not be thinned out."""
    if "compact" in configs.get("cleanup.policy", ""):
        yield warning(
            SUBJECT,
            f"input {topic} is compacted: old records of a stream vanish, and rows cannot be rebuilt from it exactly",
        )


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
