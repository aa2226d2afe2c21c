"""One promise list for every state store (protocol.md rules 18 to 21)."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from redis.cluster import RedisCluster

from pipeline.errors import StaleToken, StateLost
from pipeline.records import Partition
from pipeline.state.base import Load, StateKey, StateStore, Taken, Token
from pipeline.state.memory import MemoryStateStore
from pipeline.state.redis import RedisStateStore
from tests.clusters import LocalCluster

FIRST, SECOND = Token(4, "aa"), Token(5, "bb")


@dataclass(frozen=True)
class World:
    """A store, a key nobody else uses, and the accidents that happen to servers."""

    store: StateStore
    key: StateKey
    dump: Callable[[], Any]
    restore: Callable[[Any], None]
    wipe: Callable[[], None]

    def load(self, token: Token, seq: int, *stream_ids: str) -> dict[str, bytes]:
        """Load from the one key."""
        return self.store.load_many([Load(self.key, token, seq, stream_ids)])[0]


@pytest.fixture(scope="module")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Redis Cluster of three nodes. Tests own their key prefix."""
    with LocalCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster.address


@pytest.fixture(
    params=[
        "memory",
        pytest.param("redis_url", marks=pytest.mark.integration),
        pytest.param("cluster_url", marks=pytest.mark.integration),
    ]
)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Both implementations, the Redis one against a real server and a real cluster."""
    key = StateKey(f"contract-{uuid.uuid4().hex}", Partition("plant", 3), "0a1b")
    if request.param == "memory":
        memory = MemoryStateStore()
        yield World(memory, key, memory.dump, memory.restore, memory.wipe)
        return
    url = request.getfixturevalue(request.param)
    store = RedisStateStore.connect(url)
    with RedisCluster.from_url(url) if request.param == "cluster_url" else redis.Redis.from_url(url) as client:
        yield World(
            store,
            key,
            dump=lambda: client.dump(str(key)),
            restore=lambda dump: client.restore(str(key), 0, dump, replace=True),
            wipe=lambda: client.delete(str(key)),
        )
        client.delete(str(key))
    store.close()


def test_a_store_that_keeps_everything_passes_the_check(world: World) -> None:
    """A worker starts only on a store that says it drops nothing by itself (rule 21)."""
    world.store.check()


def test_first_take_finds_nothing(world: World) -> None:
    """No watermark means: nothing saved yet, replay from the origin."""
    assert world.store.take(world.key, FIRST) == Taken(watermark=None, seq=1)


def test_saved_rows_come_back_with_their_watermark(world: World) -> None:
    """What a successor takes and loads is what its predecessor saved, byte for byte."""
    seq = world.store.take(world.key, FIRST).seq
    seq = world.store.save(world.key, FIRST, seq, {"a": b"\x00\xff", "b": b"2"}, [], 17)
    assert world.load(FIRST, seq, "a", "b", "c") == {"a": b"\x00\xff", "b": b"2"}
    assert world.store.take(world.key, SECOND) == Taken(watermark=17, seq=seq + 1)
    assert world.load(SECOND, seq + 1, "b") == {"b": b"2"}


def test_each_write_takes_the_next_number(world: World) -> None:
    """The number acknowledged last is what a later load compares with (rule 20)."""
    taken = world.store.take(world.key, FIRST)
    assert world.store.save(world.key, FIRST, taken.seq, {}, [], None) == taken.seq + 1
    assert world.store.save(world.key, FIRST, taken.seq + 1, {}, [], None) == taken.seq + 2


def test_a_save_without_watermark_keeps_the_old_one(world: World) -> None:
    """W speaks only with the last call of an image; until then the older W stays true."""
    seq = world.store.take(world.key, FIRST).seq
    seq = world.store.save(world.key, FIRST, seq, {}, [], 17)
    seq = world.store.save(world.key, FIRST, seq, {"a": b"1"}, [], None)
    assert world.store.take(world.key, FIRST).watermark == 17


def test_a_repeated_save_is_recognised_and_changes_nothing(world: World) -> None:
    """A save whose reply was lost is repeated unchanged: done once, answered twice (rule 20)."""
    seq = world.store.take(world.key, FIRST).seq
    after = world.store.save(world.key, FIRST, seq, {"a": b"1"}, [], 5)
    assert world.store.save(world.key, FIRST, seq, {"a": b"other"}, ["a"], 99) == after
    assert world.load(FIRST, after, "a") == {"a": b"1"}
    assert world.store.take(world.key, FIRST).watermark == 5


@pytest.mark.parametrize("ahead", [-2, 1, 7])
def test_a_save_with_a_foreign_number_is_refused(world: World, ahead: int) -> None:
    """A gap in the numbers is the only sign of a server that forgot writes (rule 20)."""
    seq = world.store.take(world.key, FIRST).seq
    for _ in range(3):
        seq = world.store.save(world.key, FIRST, seq, {}, [], None)
    with pytest.raises(StateLost):
        world.store.save(world.key, FIRST, seq + ahead, {"a": b"1"}, [], 5)
    assert world.load(FIRST, seq, "a") == {}


def test_a_newer_generation_displaces_the_older_one(world: World) -> None:
    """After a rebalance only the new owner may write; the old one learns that it is out (rules 18, 19)."""
    seq = world.store.take(world.key, FIRST).seq
    world.store.take(world.key, SECOND)
    with pytest.raises(StaleToken) as refused:
        world.store.save(world.key, FIRST, seq, {"a": b"1"}, [], 5)
    assert refused.value.partition == world.key.partition
    with pytest.raises(StaleToken):
        world.load(FIRST, seq, "a")
    with pytest.raises(StaleToken):
        world.store.take(world.key, FIRST)
    assert world.load(SECOND, seq + 1, "a") == {}


def test_an_equal_generation_with_another_nonce_is_lost_not_stale(world: World) -> None:
    """A static member's replacement has its predecessor's generation; the group must decide between them (rule 19)."""
    seq = world.store.take(world.key, FIRST).seq
    replacement = Token(FIRST.generation, "cc")
    seq = world.store.take(world.key, replacement).seq
    with pytest.raises(StateLost):
        world.store.save(world.key, FIRST, seq, {"a": b"1"}, [], 5)
    with pytest.raises(StateLost):
        world.load(FIRST, 0, "a")
    assert world.store.save(world.key, replacement, seq, {}, [], None) == seq + 1


def test_generations_are_compared_as_numbers(world: World) -> None:
    """Generation 10 is newer than 9, though not as text."""
    world.store.take(world.key, Token(9, "aa"))
    world.store.take(world.key, Token(10, "bb"))
    with pytest.raises(StaleToken):
        world.store.take(world.key, Token(9, "aa"))


def test_a_token_of_a_newer_generation_than_stored_is_lost(world: World) -> None:
    """A server rolled back behind my own take no longer knows me (rule 20)."""
    world.store.take(world.key, FIRST)
    with pytest.raises(StateLost):
        world.load(SECOND, 0, "a")


def test_a_server_that_came_back_with_an_older_dump_is_noticed(world: World) -> None:
    """Redis may return without its last writes and answer as if nothing had happened (rule 20)."""
    seq = world.store.take(world.key, FIRST).seq
    seq = world.store.save(world.key, FIRST, seq, {"a": b"old"}, [], 5)
    older = world.dump()
    newer = world.store.save(world.key, FIRST, seq, {"a": b"new"}, [], 9)
    world.restore(older)
    with pytest.raises(StateLost):
        world.load(FIRST, newer, "a")
    with pytest.raises(StateLost):
        world.store.save(world.key, FIRST, newer, {"a": b"newest"}, [], 12)
    # The older rows and the older W are consistent with each other: start-up continues from them.
    taken = world.store.take(world.key, FIRST)
    assert taken.watermark == 5
    assert world.load(FIRST, taken.seq, "a") == {"a": b"old"}


def test_a_wiped_server_is_noticed(world: World) -> None:
    """An empty answer must not look like "a new stream" (rule 20)."""
    seq = world.store.take(world.key, FIRST).seq
    seq = world.store.save(world.key, FIRST, seq, {"a": b"1"}, [], 5)
    world.wipe()
    with pytest.raises(StateLost):
        world.load(FIRST, seq, "a")
    with pytest.raises(StateLost):
        world.store.save(world.key, FIRST, seq, {"a": b"2"}, [], 6)
    assert world.store.take(world.key, FIRST) == Taken(watermark=None, seq=1)


def test_deleted_streams_are_gone_and_others_stay(world: World) -> None:
    """The owner ends streams by their own time; deleting one that is not there does no harm (rule 16)."""
    seq = world.store.take(world.key, FIRST).seq
    seq = world.store.save(world.key, FIRST, seq, {"a": b"1", "b": b"2"}, [], 5)
    seq = world.store.save(world.key, FIRST, seq, {"c": b"3"}, ["a", "unknown"], 6)
    assert world.load(FIRST, seq, "a", "b", "c") == {"b": b"2", "c": b"3"}


@pytest.mark.parametrize(
    "stream_id", ["!meta", "!", "!!meta", "", "Pumpe 7 / Öl °C", "流量", "a\nb c", "\ud800", "*?[x]"]
)
def test_any_text_can_name_a_stream(world: World, stream_id: str) -> None:
    """An id from outside must not be able to overwrite the token, nor be confused with another id."""
    seq = world.store.take(world.key, FIRST).seq
    seq = world.store.save(world.key, FIRST, seq, {stream_id: b"1", "other": b"2"}, [], 5)
    assert world.load(FIRST, seq, stream_id, "!" + stream_id) == {stream_id: b"1"}
    assert world.store.scan(world.key, 0, 100) == (0, {stream_id: b"1", "other": b"2"})
    seq = world.store.save(world.key, FIRST, seq, {}, [stream_id], None)
    assert world.load(FIRST, seq, stream_id, "other") == {"other": b"2"}
    assert world.store.take(world.key, FIRST).watermark == 5


def test_partitions_are_loaded_in_one_call_and_fenced_one_by_one(world: World) -> None:
    """A batch touches several partitions; the one that was lost must be named."""
    other = world.key._replace(partition=Partition("plant", 4), incarnation=world.key.incarnation)
    seqs = {}
    for key in (world.key, other):
        seq = world.store.take(key, FIRST).seq
        seqs[key] = world.store.save(key, FIRST, seq, {"a": str(key.partition).encode()}, [], 1)
    loads = [Load(key, FIRST, seq, ["a", "b"]) for key, seq in seqs.items()]
    assert world.store.load_many(loads) == [{"a": b"plant-3"}, {"a": b"plant-4"}]
    assert world.store.keys(world.key.group) == [world.key, other]
    world.store.take(other, SECOND)
    with pytest.raises(StaleToken) as refused:
        world.store.load_many(loads)
    assert refused.value.partition == other.partition


def test_loading_nothing_finds_nothing(world: World) -> None:
    """An empty batch is no reason for an error."""
    assert world.store.load_many([]) == []
    world.store.take(world.key, FIRST)
    assert world.load(FIRST, 1) == {}


def test_many_and_large_rows_survive(world: World) -> None:
    """Reads are cut into calls of about 1 MiB inside the store; the caller need not know."""
    seq = world.store.take(world.key, FIRST).seq
    rows = {f"s{number}": bytes([number % 256]) * 2000 for number in range(world.store.max_save_rows)}
    seq = world.store.save(world.key, FIRST, seq, rows, [f"gone{number}" for number in range(5000)], 5)
    large = {f"large{number}": bytes(300_000) for number in range(3)}
    seq = world.store.save(world.key, FIRST, seq, large, [], 6)
    assert world.load(FIRST, seq, *rows, *large) == rows | large


def test_more_rows_than_the_limit_are_refused_before_anything_is_written(world: World) -> None:
    """The server stands still during a call, so its size is bounded."""
    seq = world.store.take(world.key, FIRST).seq
    rows = {f"s{number}": b"1" for number in range(world.store.max_save_rows + 1)}
    with pytest.raises(ValueError):
        world.store.save(world.key, FIRST, seq, rows, [], 5)
    assert world.load(FIRST, seq, "s0") == {}


def test_a_scan_sees_every_stream_once_it_comes_round(world: World) -> None:
    """Sweeps for ended streams read a slice at a time and must reach all of them."""
    seq = world.store.take(world.key, FIRST).seq
    rows = {f"s{number}": bytes(100) for number in range(700)}
    world.store.save(world.key, FIRST, seq, rows, [], 5)
    seen: dict[str, bytes] = {}
    cursor, found = world.store.scan(world.key, 0, 50)
    seen |= found
    while cursor != 0:
        cursor, found = world.store.scan(world.key, cursor, 50)
        seen |= found
    assert seen == rows


def test_anybody_may_look_at_single_streams(world: World) -> None:
    """Whoever resets a stream by hand must find it without a token, and without reading all others."""
    assert world.store.peek(world.key, ["a"]) == {}
    seq = world.store.take(world.key, FIRST).seq
    world.store.save(world.key, FIRST, seq, {"a": b"1", "!b": b"2", "c": b"3"}, [], None)
    assert world.store.peek(world.key, ["!b", "a", "absent"]) == {"!b": b"2", "a": b"1"}
    assert world.store.peek(world.key, []) == {}


def test_listing_knows_its_own_group_only(world: World) -> None:
    """A group whose name begins like another one is another group."""
    longer = world.key._replace(group=world.key.group + ":x")
    world.store.take(world.key, FIRST)
    world.store.take(longer, FIRST)
    assert world.store.keys(world.key.group) == [world.key]
    assert world.store.keys(longer.group) == [longer]
    assert world.store.keys("nobody") == []


def test_closing_twice_does_nothing(world: World) -> None:
    """Shutdown may come from several places."""
    world.store.close()
    world.store.close()
