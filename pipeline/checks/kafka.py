"""Whether Kafka answers, and its topics are what a worker needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType

from pipeline.checks.finding import Facts, Finding, ok, problem, warning
from pipeline.engine import WARM_UP_OBSERVATIONS
from pipeline.errors import TidewatchError
from pipeline.kafka import client_options, connect, mapped
from pipeline.settings import Settings
from pipeline.wording import counted

SUBJECT = "kafka"
UNKNOWN_TOPIC = 3
WANTED = ("cleanup.policy", "retention.ms", "retention.bytes")


def check_kafka(settings: Settings, security: Mapping[str, Any], facts: Facts) -> Iterator[Finding]:
    """Brokers, then each topic; changes nothing.

    Parameters
    ----------
    security
        kafka-python's own options.
    facts
        Partitions are filled in.
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
        yield ok(SUBJECT, f"{places}: {counted(brokers, 'broker')}, group {kafka.group!r}")
        topics = {topic["name"]: topic for topic in admin.describe_topics([*inputs, *outputs])}
        configs = _configs(admin, [name for name, topic in topics.items() if topic["error_code"] == 0])
    except kafka_errors.KafkaError as exc:
        yield problem(SUBJECT, str(mapped(exc, f"asking {places}")))
        return
    finally:
        admin.close()
    for name, profile in inputs.items():
        yield from _check_topic(f"input {name} (profile {profile})", topics[name], brokers)
        if name in configs:
            least = len(topics[name]["partitions"])
            facts.partitions[profile] = min(facts.partitions.get(profile, least), least)
            yield from _check_retention(name, configs[name], *_needed_s(settings, profile))
    for name in outputs:
        yield from _check_topic(f"output {name}", topics[name], brokers)
    if kafka.alerts_topic in configs:
        yield from _check_alerts(configs[kafka.alerts_topic], settings.monitor.alerts_lookback_s)


def _configs(admin: KafkaAdminClient, topics: list[str]) -> dict[str, dict[str, str]]:
    if not topics:
        return {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, topic, list(WANTED)) for topic in topics]
    found = admin.describe_configs(resources, config_filter="all")["topic"]
    return {
        topic: {key: str(entry["value"]) for key, entry in values.items() if key in WANTED}
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
    text = f"{what}: {counted(len(partitions), 'partition')}, replication {replicas}"
    if behind:
        yield warning(SUBJECT, f"{text}; {behind} of them lack a replica at present")
    elif replicas < 2 <= brokers:
        yield warning(SUBJECT, f"{text}; one broker's loss loses records: replicate it")
    else:
        yield ok(SUBJECT, text)


def _needed_s(settings: Settings, profile: str) -> tuple[float, float]:
    """How far back a rebuild must reach at least, and to be complete, in seconds.

    At least: the records behind saved rows (Redis may be away for so long), and a stream's warm-up. Complete: a stream
    may rest for ``idle_reset_s`` and go on as itself, so its last records must still be there.
    """
    it = settings.profiles[profile]
    warm_up_s = WARM_UP_OBSERVATIONS * (it.interval_s or 0.0)
    least_s = max(settings.redis.max_watermark_age_s, warm_up_s)
    return least_s, max(least_s, it.idle_reset_s)


def _check_retention(topic: str, configs: Mapping[str, str], least_s: float, whole_s: float) -> Iterator[Finding]:
    """Kafka is the truth that rows are rebuilt from: records must stay long enough, and must not be thinned out."""
    if not configs.keys() >= set(WANTED):
        yield warning(
            SUBJECT,
            f"how long input {topic} is kept may not be asked (that takes DescribeConfigs): look yourself that it is "
            f"for {_time(whole_s)} or longer, and by time",
        )
        return
    if "compact" in configs["cleanup.policy"]:
        yield warning(
            SUBJECT,
            f"input {topic} is compacted: old records of a stream vanish, and rows cannot be rebuilt from it exactly",
        )
    if "delete" not in configs["cleanup.policy"]:
        return
    if int(configs["retention.bytes"]) >= 0:
        yield warning(
            SUBJECT,
            f"input {topic} is also cut by size (retention.bytes): how far back a rebuild reaches depends on traffic",
        )
    kept_s = int(configs["retention.ms"]) / 1000
    if kept_s < 0:
        yield ok(SUBJECT, f"input {topic} is kept for ever: rows that Redis loses can be rebuilt")
    elif kept_s < least_s:
        yield problem(
            SUBJECT,
            f"input {topic} is kept for {_time(kept_s)}: rebuilding rows needs {_time(least_s)} at the least, and "
            f"{_time(whole_s)} to be complete; raise retention.ms to {whole_s * 1000:.0f}",
        )
    elif kept_s < whole_s:
        yield warning(
            SUBJECT,
            f"input {topic} is kept for {_time(kept_s)}: if Redis loses its rows, streams that rested for longer begin "
            f"anew; with retention.ms above idle_reset_s ({_time(whole_s)}) they would not",
        )
    else:
        yield ok(SUBJECT, f"input {topic} is kept for {_time(kept_s)}: rows that Redis loses can be rebuilt")


def _check_alerts(configs: Mapping[str, str], lookback_s: float) -> Iterator[Finding]:
    kept_s = int(configs.get("retention.ms", -1000)) / 1000
    if 0 <= kept_s < lookback_s:
        yield warning(
            SUBJECT,
            f"alerts are kept for {_time(kept_s)}: the monitor and the notifier forget open ones that are older "
            f"(monitor.alerts_lookback_s is {_time(lookback_s)})",
        )


def _time(seconds: float) -> str:
    for unit, size in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            number = f"{seconds / size:.3g}"
            return f"{number} {unit}" + ("" if number == "1" else "s")
    return f"{seconds:g} s"
