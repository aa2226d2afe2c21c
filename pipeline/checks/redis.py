"""Whether Redis answers, keeps what it is given, and has room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from redis.exceptions import RedisClusterException, RedisError

from pipeline.checks.finding import Facts, Finding, ok, problem, warning
from pipeline.checks.row import gigabytes
from pipeline.errors import ConfigurationError
from pipeline.settings import Settings
from pipeline.state.redis_nodes import RedisNodes, place_of

SUBJECT = "redis"
OLDEST = (6, 2)
NEARLY_FULL = 0.8


def check_redis(settings: Settings, stream_bytes: Mapping[str, int], facts: Facts) -> Iterator[Finding]:
    """Version, policy and memory; changes nothing.

    Parameters
    ----------
    stream_bytes
        Redis memory of one stream, by profile.
    facts
        Redis's memory is filled in.
    """
    try:
        nodes = RedisNodes(settings.redis.address().get_secret_value(), settings.redis.call_deadline_s)
    except ConfigurationError as exc:
        yield problem(SUBJECT, str(exc))
        return
    try:
        found = {place_of(server): server.info() for server in nodes.primaries()}
    except (RedisError, RedisClusterException) as exc:
        yield problem(SUBJECT, f"no answer from {nodes.place}: {exc}")
        return
    finally:
        nodes.close()
    rooms = [int(server["maxmemory"]) or int(server.get("total_system_memory", 0)) for server in found.values()]
    facts.redis_bytes = sum(rooms) or None
    if any(server.get("cluster_enabled") for server in found.values()):
        yield ok(SUBJECT, f"a Redis Cluster of {len(found)} primaries, which share the partitions")
    for place, server in found.items():
        yield from _check_server(place, server)
        yield from _check_room(server, stream_bytes)


def _check_server(place: str, found: Mapping[str, Any]) -> Iterator[Finding]:
    version = str(found["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        yield problem(SUBJECT, f"{place} is Redis {version}: 6.2 or newer is needed")
    elif found.get("loading"):
        yield warning(SUBJECT, f"{place}: Redis {version} is loading its data; a worker waits until it has")
    else:
        yield ok(SUBJECT, f"{place}: Redis {version}, {_persistence(found)}")
    policy = found["maxmemory_policy"]
    if policy == "noeviction":
        yield ok(SUBJECT, "maxmemory-policy noeviction")
    else:
        yield problem(
            SUBJECT, f"maxmemory-policy is {policy}: it would drop the state of streams at random; set it to noeviction"
        )


def _persistence(found: Mapping[str, Any]) -> str:
    if found.get("aof_enabled"):
        return "append-only file on"
    return "no append-only file (after a crash, rows come back from its last snapshot, or from Kafka)"


def _check_room(found: Mapping[str, Any], stream_bytes: Mapping[str, int]) -> Iterator[Finding]:
    used, most = int(found["used_memory"]), int(found["maxmemory"])
    if most <= 0:
        machine = int(found.get("total_system_memory", 0))
        yield ok(SUBJECT, f"{gigabytes(used)} used, no maxmemory set, {gigabytes(machine)} in the machine")
        return
    fits = ", ".join(f"{max(0, most - used) / size:,.0f} of {name}" for name, size in stream_bytes.items())
    text = f"{gigabytes(used)} of {gigabytes(most)} used; room for more streams: {fits}"
    yield warning(SUBJECT, text) if used > NEARLY_FULL * most else ok(SUBJECT, text)
