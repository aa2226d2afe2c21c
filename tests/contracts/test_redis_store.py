"""What only a Redis server can do: expire, evict, fill up, restart, keep silent, lose a reply."""

from __future__ import annotations

import socket
import threading
import traceback
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
import redis

from pipeline.errors import ConfigurationError, StateLost, StoreAway
from pipeline.records import Partition
from pipeline.servers import EmbeddedRedis
from pipeline.state.base import Load, StateKey, Token
from pipeline.state.redis import RedisStateStore

pytestmark = pytest.mark.integration

TOKEN = Token(1, "aa")
DAY_S = 24 * 3600


@pytest.fixture
def key() -> StateKey:
    """A key nobody else uses."""
    return StateKey(f"redis-{uuid.uuid4().hex}", Partition("plant", 0), "0a")


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A server this test may configure, kill and restart."""
    with EmbeddedRedis(tmp_path) as server:
        yield server


class LossyProxy:
    """Stands between client and server.

    :meth:`lose_reply` lets one request through and swallows its answer; :meth:`lead_to` is a fail-over.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self.requests_seen = 0
        self._losing = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(timeout=5)

    def lose_reply(self) -> None:
        """The next request reaches the server, its answer does not come back: the connection closes instead."""
        self._losing.set()

    def lead_to(self, port: int) -> None:
        """New connections reach another server from now on; open ones stay where they are."""
        self._server_port = port

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._server_port)) as server:
            while request := client.recv(1 << 20):
                self.requests_seen += request.count(b"EVALSHA")
                server.sendall(request)
                reply = server.recv(1 << 20)
                if self._losing.is_set() and b"EVALSHA" in request:
                    self._losing.clear()
                    return
                client.sendall(reply)


def test_the_whole_key_expires_thirty_days_after_its_last_write(redis_url: str, key: StateKey) -> None:
    """State of a group that is gone for good must not stay for ever, and never expires row by row (rule 16)."""
    store = RedisStateStore.connect(redis_url)
    with redis.Redis.from_url(redis_url) as client:
        seq = store.take(key, TOKEN).seq
        assert 29 * DAY_S < client.ttl(str(key)) <= 30 * DAY_S
        client.expire(str(key), 100)
        store.load_many([Load(key, TOKEN, seq, ["a"])])
        assert client.ttl(str(key)) <= 100
        store.save(key, TOKEN, seq, {"a": b"1"}, [], 1)
        assert 29 * DAY_S < client.ttl(str(key)) <= 30 * DAY_S
    store.close()


def test_the_key_is_the_documented_hash(redis_url: str, key: StateKey) -> None:
    """Operators look at it with redis-cli, and Redis Cluster places it by its hash tag."""
    store = RedisStateStore.connect(redis_url)
    seq = store.take(key, TOKEN).seq
    store.save(key, TOKEN, seq, {"a": b"1"}, [], 7, "0123456789abcdef")
    with redis.Redis.from_url(redis_url) as client:
        name = f"tw:{{{key.group}:plant:0}}:0a"
        assert client.hgetall(name) == {b"!meta": b"1 aa 2 7 0123456789abcdef", b"a": b"1"}
    store.close()


def test_a_server_that_evicts_is_refused(own_redis: EmbeddedRedis) -> None:
    """Losing keys at random is the one loss the protocol cannot survive (rule 21)."""
    store = RedisStateStore.connect(own_redis.address)
    with redis.Redis.from_url(own_redis.address) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(ConfigurationError, match="allkeys-lru"):
        store.check()
    store.close()


def test_a_full_server_refuses_all_or_nothing_and_can_be_asked_again(own_redis: EmbeddedRedis, key: StateKey) -> None:
    """Half a save would put W over rows that are not there; a full Redis is one that is away (rule 15)."""
    store = RedisStateStore.connect(own_redis.address)
    seq = store.take(key, TOKEN).seq
    with redis.Redis.from_url(own_redis.address) as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(StoreAway):
            store.save(key, TOKEN, seq, {"a": b"1"}, ["b"], 9)
        assert client.hkeys(str(key)) == [b"!meta"]
        client.config_set("maxmemory", "0")
    assert store.save(key, TOKEN, seq, {"a": b"1"}, ["b"], 9) == seq + 1
    store.close()


def test_a_killed_server_with_an_older_dump_is_noticed_by_load_and_by_save(
    own_redis: EmbeddedRedis, key: StateKey
) -> None:
    """redis-py reconnects without a word; the numbers tell (rule 20)."""
    store = RedisStateStore.connect(own_redis.address, timeout_s=1)
    seq = store.take(key, TOKEN).seq
    with redis.Redis.from_url(own_redis.address) as client:
        client.save()
    newer = store.save(key, TOKEN, seq, {"a": b"1"}, [], 5)
    own_redis.kill()
    with pytest.raises(StoreAway):
        store.load_many([Load(key, TOKEN, newer, ["a"])])
    own_redis.start()
    with pytest.raises(StateLost):
        store.load_many([Load(key, TOKEN, newer, ["a"])])
    with pytest.raises(StateLost):
        store.save(key, TOKEN, newer, {"a": b"2"}, [], 6)
    assert store.take(key, TOKEN).watermark is None
    store.close()


def test_scripts_are_sent_again_to_a_server_that_forgot_them(redis_url: str, key: StateKey) -> None:
    """A restarted server has an empty script cache; that is no error of the caller's."""
    store = RedisStateStore.connect(redis_url)
    with redis.Redis.from_url(redis_url) as client:
        client.script_flush()
        seq = store.take(key, TOKEN).seq
        client.script_flush()
        seq = store.save(key, TOKEN, seq, {"a": b"1"}, [], 5)
        client.script_flush()
        assert store.load_many([Load(key, TOKEN, seq, ["a"])]) == [{"a": b"1"}]
    store.close()


def test_a_save_whose_reply_was_lost_ran_once_and_its_repeat_is_done(own_redis: EmbeddedRedis, key: StateKey) -> None:
    """Only the caller repeats: a repeat hidden in the client would hide the doubt as well (rule 20)."""
    with LossyProxy(own_redis.port) as proxy:
        store = RedisStateStore.connect(proxy.url, timeout_s=2)
        seq = store.take(key, TOKEN).seq
        seq = store.save(key, TOKEN, seq, {"a": b"1"}, [], 4)
        before = proxy.requests_seen
        proxy.lose_reply()
        with pytest.raises(StoreAway):
            store.save(key, TOKEN, seq, {"a": b"2"}, [], 5)
        assert proxy.requests_seen == before + 1
        assert store.save(key, TOKEN, seq, {"a": b"2"}, [], 5) == seq + 1
        assert store.take(key, TOKEN) == (5, seq + 2)
        store.close()


def test_a_fail_over_is_followed_although_the_old_server_goes_on_as_a_replica(
    own_redis: EmbeddedRedis, key: StateKey, tmp_path: Path
) -> None:
    """It refuses writes and keeps its connections, so a client that kept its own would be refused for ever."""
    with EmbeddedRedis(tmp_path / "new") as new, LossyProxy(own_redis.port) as proxy:
        store = RedisStateStore.connect(proxy.url, timeout_s=2)
        store.take(key, TOKEN)
        with redis.Redis.from_url(own_redis.address) as client:
            client.replicaof("127.0.0.1", new.port)
        proxy.lead_to(new.port)
        with pytest.raises(StoreAway, match="READONLY"):
            store.take(key, TOKEN)
        assert store.take(key, TOKEN) == (None, 1)
        store.close()


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_one(own_redis: EmbeddedRedis, key: StateKey) -> None:
    """After a timeout the connection is dropped: answers must never be shifted by one."""
    store = RedisStateStore.connect(own_redis.address, timeout_s=0.3)
    seq = store.take(key, TOKEN).seq
    seq = store.save(key, TOKEN, seq, {"a": b"1"}, [], 5)
    own_redis.suspend()
    with pytest.raises(StoreAway):
        store.load_many([Load(key, TOKEN, seq, ["a"])])
    own_redis.resume()
    assert store.load_many([Load(key, TOKEN, seq, ["b"])]) == [{}]
    assert store.take(key, TOKEN) == (5, seq + 1)
    store.close()


def test_something_else_under_the_key_is_a_configuration_error(redis_url: str, key: StateKey) -> None:
    """Waiting does not mend it, so it must not look like a server that is away."""
    store = RedisStateStore.connect(redis_url)
    with redis.Redis.from_url(redis_url) as client:
        client.set(str(key), "taken")
        with pytest.raises(ConfigurationError):
            store.take(key, TOKEN)
        client.delete(str(key))
    store.close()


@pytest.mark.parametrize("url", ["redis://u:hunter2@127.0.0.1:1/0", "redis://:hun/ter2@host:6379/0", "http://hunter2"])
def test_no_error_shows_the_password(url: str, key: StateKey) -> None:
    """Messages end in logs."""
    with pytest.raises((StoreAway, ConfigurationError)) as refused:
        RedisStateStore.connect(url, timeout_s=0.5).take(key, TOKEN)
    assert "hun" not in "".join(traceback.format_exception(refused.value))


def test_a_wrong_password_is_a_configuration_error(own_redis: EmbeddedRedis, key: StateKey) -> None:
    """Nobody should wait for a server that will never let them in."""
    with redis.Redis.from_url(own_redis.address) as client:
        client.config_set("requirepass", "right")
    for url in (own_redis.address, own_redis.address.replace("redis://", "redis://:wrong@")):
        store = RedisStateStore.connect(url)
        with pytest.raises(ConfigurationError):
            store.check()
        store.close()
