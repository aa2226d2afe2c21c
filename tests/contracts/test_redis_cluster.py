"""Rows spread over a real Redis Cluster: who holds which partition may change at any time."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.checks.finding import Facts, Level
from pipeline.checks.redis import check_redis
from pipeline.connections import Redis
from pipeline.errors import ConfigurationError, StoreAway
from pipeline.records import Partition
from pipeline.settings import Settings
from pipeline.state.base import Load, StateKey, Token
from pipeline.state.redis import RedisStateStore
from tests.clusters import LocalCluster, RedisNode, wait_until, wait_until_sound

pytestmark = pytest.mark.integration

TOKEN = Token(1, "aa")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    """A cluster this test may disturb."""
    with LocalCluster(tmp_path) as cluster:
        yield cluster


@pytest.fixture
def store(cluster: LocalCluster) -> Iterator[RedisStateStore]:
    """A store that was told of the first node only."""
    store = RedisStateStore.connect(cluster.address, timeout_s=2)
    yield store
    store.close()


def keys_of(partitions: int) -> list[StateKey]:
    """Keys of partitions of one topic and of a group nobody else uses."""
    group = f"cluster-{uuid.uuid4().hex}"
    return [StateKey(group, Partition("plant", number), "0a") for number in range(partitions)]


def held_by(cluster: LocalCluster, node: RedisNode) -> StateKey:
    """A key that ``node`` holds."""
    return next(key for key in keys_of(100) if cluster.holder(str(key)) is node)


def test_partitions_lie_on_all_nodes_and_one_load_reads_them(cluster: LocalCluster, store: RedisStateStore) -> None:
    """Otherwise a larger Redis means a single larger server."""
    keys = keys_of(24)
    loads = []
    for key in keys:
        seq = store.take(key, TOKEN).seq
        seq = store.save(key, TOKEN, seq, {"a": str(key).encode()}, [], 7)
        loads.append(Load(key, TOKEN, seq, ["a"]))
    assert {cluster.holder(str(key)).port for key in keys} == {node.port for node in cluster.nodes}
    assert store.load_many(loads) == [{"a": str(key).encode()} for key in keys]
    assert store.keys(keys[0].group) == keys


def test_a_partition_that_moved_to_another_node_is_found_there(cluster: LocalCluster, store: RedisStateStore) -> None:
    """Operators add nodes while workers run; to them it is a Redis that was away for one call."""
    key = held_by(cluster, cluster.nodes[1])
    seq = store.take(key, TOKEN).seq
    seq = store.save(key, TOKEN, seq, {"a": b"1"}, [], 5)
    cluster.move(str(key), cluster.nodes[2])
    with pytest.raises(StoreAway, match="Moved"):
        store.save(key, TOKEN, seq, {"a": b"2"}, [], 6)
    assert store.save(key, TOKEN, seq, {"a": b"2"}, [], 6) == seq + 1
    assert store.load_many([Load(key, TOKEN, seq + 1, ["a"])]) == [{"a": b"2"}]


def test_the_replica_of_a_dead_node_is_found_even_where_the_url_named_the_dead_one(
    cluster: LocalCluster, store: RedisStateStore, tmp_path: Path
) -> None:
    """The URL is one address of many; the store knows the others since its first call."""
    first = cluster.nodes[0]
    key = held_by(cluster, first)
    with RedisNode(tmp_path / "replica") as replica:
        replica.ask("CLUSTER", "MEET", "127.0.0.1", first.port)
        # All, not the first alone: what the replica has not heard of by the first's death it would never hear of.
        wait_until(lambda: all(node.id.encode() in replica.ask("CLUSTER", "NODES") for node in cluster.nodes))
        replica.ask("CLUSTER", "REPLICATE", first.id)
        seq = store.take(key, TOKEN).seq
        seq = store.save(key, TOKEN, seq, {"a": b"1"}, [], 5)
        wait_until(lambda: replica.ask("INFO", "replication").get("master_link_status") == "up")
        wait_until(lambda: all(replica.id.encode() in node.ask("CLUSTER", "NODES") for node in cluster.nodes))
        assert first.ask("WAIT", 1, 5000) == 1
        first.kill()
        replica.ask("CLUSTER", "FAILOVER", "TAKEOVER")
        others = [*cluster.nodes[1:], replica]
        wait_until(lambda: {node.port_of(str(key)) for node in others} == {replica.port})
        wait_until_sound(others)
        with pytest.raises(StoreAway):
            store.load_many([Load(key, TOKEN, seq, ["a"])])
        assert store.load_many([Load(key, TOKEN, seq, ["a"])]) == [{"a": b"1"}]


def test_a_node_that_evicts_is_refused(cluster: LocalCluster, store: RedisStateStore) -> None:
    """One such node is enough to lose rows at random (rule 21)."""
    store.check()
    cluster.nodes[2].ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with pytest.raises(ConfigurationError, match=f"{cluster.nodes[2].port} has maxmemory-policy allkeys-lru"):
        store.check()


def test_check_looks_at_every_node(cluster: LocalCluster) -> None:
    """A node without room or with another policy fails the streams that lie on it."""
    cluster.nodes[1].ask("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    settings = Settings(redis=Redis.model_validate({"url": cluster.address}))
    findings = list(check_redis(settings, {"sensor": 2000}, Facts()))
    assert "a Redis Cluster of 3 primaries" in findings[0].text
    assert all(any(f":{node.port}: Redis" in finding.text for finding in findings) for node in cluster.nodes)
    assert [finding.level for finding in findings].count(Level.PROBLEM) == 1
