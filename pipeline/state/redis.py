"""The state store on Redis: three scripts, one hash per partition (protocol.md rules 18 to 21). All key names are here.

Each call concerns one key, which lies on one server: a Redis Cluster spreads partitions over its nodes.

The hash of a partition holds the field ``!meta`` and one field per stream. ``!meta`` is the text
``generation nonce seq watermark layout``, with ``-`` for no watermark or layout. The field of a stream is its id in
UTF-8, with one more ``!`` in front where the id begins with one, so that no id can be taken for ``!meta``.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import redis
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)

from pipeline.errors import ConfigurationError, OwnershipError, StaleToken, StateLost, StoreAway
from pipeline.records import Partition
from pipeline.state.base import Load, StateKey, Taken, Token
from pipeline.state.redis_nodes import RedisNodes, place_of

META = b"!meta"
EXPIRY_S = 30 * 24 * 3600
MAX_ROWS = 1000
MAX_BYTES = 1 << 20
EXPECTED_VALUE_BYTES = 20_000
"""First guess of a saved value's size, by which loads are cut into calls of about 1 MiB; sizes seen replace it."""

# Answers of a server that is full, busy, starting, in the middle of a fail-over, or that gave the key to another node
# of its cluster (MOVED, ASK): the same call may succeed later. Inside a script Redis 6 hands the code on in the text
# of another error.
PASSING_ERRORS = (OutOfMemoryError, ReadOnlyError, ClusterDownError, TryAgainError, AskError)
PASSING_CODES = re.compile(r"(^|\W)(OOM|READONLY|BUSY|LOADING|MASTERDOWN|MISCONF|NOREPLICAS)\b")

_READ_META = """
local meta = redis.call('HGET', KEYS[1], '!meta')
local generation, nonce, seq, watermark, layout
if meta then
  generation, nonce, seq, watermark, layout = string.match(meta, '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
end
"""
_CHECK_TOKEN = """
if not meta then return 'LOST' end
if generation ~= ARGV[1] or nonce ~= ARGV[2] then
  if tonumber(generation) > tonumber(ARGV[1]) then return 'STALE' end
  return 'LOST'
end
"""
# generation, nonce, expiry
_TAKE = f"""{_READ_META}
if meta and tonumber(generation) > tonumber(ARGV[1]) then return 'STALE' end
seq = string.format('%.0f', tonumber(seq or '0') + 1)
watermark, layout = watermark or '-', layout or '-'
redis.call('HSET', KEYS[1], '!meta', table.concat({{ARGV[1], ARGV[2], seq, watermark, layout}}, ' '))
redis.call('EXPIRE', KEYS[1], ARGV[3])
return {{watermark, seq}}
"""
# generation, nonce, acknowledged seq, field...
_LOAD = f"""{_READ_META}{_CHECK_TOKEN}
if tonumber(seq) < tonumber(ARGV[3]) then return 'LOST' end
return redis.call('HMGET', KEYS[1], unpack(ARGV, 4))
"""
# generation, nonce, seq, watermark, layout, expiry, number of rows, (field, value)..., deleted field...
# The first write is one that a full server refuses; once a script has written, Redis lets it finish: all or nothing.
# `unpack` fails below 8000 values, so long lists go in slices.
_SAVE = f"""{_READ_META}{_CHECK_TOKEN}
if tonumber(seq) == tonumber(ARGV[3]) + 1 then return 'DONE' end
if tonumber(seq) ~= tonumber(ARGV[3]) then return 'LOST' end
seq = string.format('%.0f', tonumber(seq) + 1)
if ARGV[4] ~= '-' then watermark = ARGV[4] end
if ARGV[5] ~= '-' then layout = ARGV[5] end
redis.call('HSET', KEYS[1], '!meta', table.concat({{generation, nonce, seq, watermark, layout}}, ' '))
local rows_end = 7 + 2 * tonumber(ARGV[7])
for from = 8, rows_end, 2000 do
  redis.call('HSET', KEYS[1], unpack(ARGV, from, math.min(from + 1999, rows_end)))
end
for from = rows_end + 1, #ARGV, 1000 do
  redis.call('HDEL', KEYS[1], unpack(ARGV, from, math.min(from + 999, #ARGV)))
end
redis.call('EXPIRE', KEYS[1], ARGV[6])
return 'OK'
"""


@dataclass(frozen=True, slots=True)
class _Script:
    text: str

    @property
    def sha(self) -> str:
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


_TAKE_SCRIPT, _LOAD_SCRIPT, _SAVE_SCRIPT = _Script(_TAKE), _Script(_LOAD), _Script(_SAVE)


class RedisStateStore:
    """:class:`pipeline.state.base.StateStore` on Redis, 6.2 or newer. Safe to call from several threads.

    Parameters
    ----------
    nodes
        The server, or those of a cluster; see :meth:`connect`, which makes them.
    """

    max_save_rows = MAX_ROWS
    max_save_bytes = MAX_BYTES

    def __init__(self, nodes: RedisNodes) -> None:
        self._nodes = nodes
        self._largest_seen = 0
        self._lock = threading.Lock()

    @classmethod
    def connect(cls, url: str, timeout_s: float = 5.0) -> RedisStateStore:
        """A store on the server or cluster at ``url``; the first connection is made by the first call.

        For parameters and errors see :class:`pipeline.state.redis_nodes.RedisNodes` and the class.
        """
        return cls(RedisNodes(url, timeout_s))

    def check(self) -> None:
        """Refuse a server that may drop keys by itself; see the protocol."""
        with self._mapped_errors("check"):
            policies = {
                place_of(server): server.info("memory")["maxmemory_policy"] for server in self._nodes.primaries()
            }
        for place, policy in policies.items():
            if policy != "noeviction":
                raise ConfigurationError(
                    f"Redis at {place} has maxmemory-policy {policy}: it would drop the state of streams at random. "
                    "Set it to noeviction."
                )

    def take(self, key: StateKey, token: Token) -> Taken:
        """Become the only writer; see the protocol."""
        reply = self._run(_TAKE_SCRIPT, key, token.generation, token.nonce, EXPIRY_S)
        if isinstance(reply, bytes):
            raise _refused(reply, key)
        watermark, seq = reply
        return Taken(None if watermark == b"-" else int(watermark), int(seq))

    def load_many(self, loads: Sequence[Load]) -> list[dict[str, bytes]]:
        """Saved values of the named streams, in one round trip; see the protocol."""
        share = max(1, min(MAX_ROWS, MAX_BYTES // self._value_bytes()))
        calls = [
            (index, load.stream_ids[start : start + share])
            for index, load in enumerate(loads)
            for start in range(0, len(load.stream_ids), share)
        ]
        with self._mapped_errors("load"):
            replies = self._load_replies(loads, calls)
        found: list[dict[str, bytes]] = [{} for _ in loads]
        for (index, stream_ids), reply in zip(calls, replies, strict=True):
            if isinstance(reply, bytes):
                raise _refused(reply, loads[index].key)
            found[index].update(
                (stream_id, value) for stream_id, value in zip(stream_ids, reply, strict=True) if value is not None
            )
        self._note_sizes(value for rows in found for value in rows.values())
        return found

    def save(
        self,
        key: StateKey,
        token: Token,
        seq: int,
        rows: Mapping[str, bytes],
        deletions: Iterable[str],
        watermark: int | None,
        layout: str = "",
    ) -> int:
        """Write rows, deletions and the watermark as the successor of ``seq``; see the protocol."""
        if len(rows) > MAX_ROWS:
            raise ValueError(f"{len(rows)} rows in one save of {key.partition}, at most {MAX_ROWS}")
        pairs = [part for stream_id, value in rows.items() for part in (_field(stream_id), value)]
        header = ("-" if watermark is None else watermark, layout or "-", EXPIRY_S, len(rows))
        deleted = [_field(stream_id) for stream_id in deletions]
        reply = self._run(_SAVE_SCRIPT, key, token.generation, token.nonce, seq, *header, *pairs, *deleted)
        if reply not in (b"OK", b"DONE"):
            raise _refused(reply, key)
        self._note_sizes(rows.values())
        return seq + 1

    def scan(self, key: StateKey, cursor: int, count: int) -> tuple[int, dict[str, bytes]]:
        """A slice of all saved streams; see the protocol."""
        with self._mapped_errors("scan"):
            following, fields = cast("Any", self._nodes.of(str(key)).hscan(str(key), cursor, count=count))
        return int(following), {_stream_id(field): value for field, value in fields.items() if field != META}

    def peek(self, key: StateKey, stream_ids: Sequence[str]) -> dict[str, bytes]:
        """Saved values of some streams; see the protocol."""
        found: dict[str, bytes] = {}
        for start in range(0, len(stream_ids), MAX_ROWS):
            part = stream_ids[start : start + MAX_ROWS]
            with self._mapped_errors("peek"):
                server = self._nodes.of(str(key))
                values = cast("Any", server.hmget(str(key), [_field(stream_id) for stream_id in part]))
            found.update((name, value) for name, value in zip(part, values, strict=True) if value is not None)
        return found

    def keys(self, group: str) -> list[StateKey]:
        """All partition states of a group; see the protocol."""
        pattern = _literal(f"tw:{{{group}:") + "*"
        with self._mapped_errors("list keys"):
            names = [
                bytes(name).decode("utf-8", "surrogatepass")
                for server in self._nodes.primaries()
                for name in server.scan_iter(pattern, count=1000)
            ]
        # A group whose name goes on with ":" shares the prefix.
        return sorted(key for key in map(_parse_key, names) if key.group == group)

    def close(self) -> None:
        """Close connections. A second call does nothing."""
        self._nodes.close()

    def _run(self, script: _Script, key: StateKey, *arguments: Any) -> Any:
        with self._mapped_errors("call"):
            server = self._nodes.of(str(key))
            try:
                return server.evalsha(script.sha, 1, str(key), *arguments)
            except NoScriptError:  # not run: a restarted server has forgotten the script
                return server.eval(script.text, 1, str(key), *arguments)

    def _load_replies(self, loads: Sequence[Load], calls: Sequence[tuple[int, Sequence[str]]]) -> list[Any]:
        shares: dict[redis.Redis, list[int]] = {}
        for number, (index, _) in enumerate(calls):
            shares.setdefault(self._nodes.of(str(loads[index].key)), []).append(number)
        replies: list[Any] = [None] * len(calls)
        for server, numbers in shares.items():
            share = [calls[number] for number in numbers]
            answers = _ask(server, loads, share)
            if any(isinstance(answer, NoScriptError) for answer in answers):
                server.script_load(_LOAD_SCRIPT.text)
                answers = _ask(server, loads, share)
            for number, answer in zip(numbers, answers, strict=True):
                if isinstance(answer, RedisError):
                    raise answer
                replies[number] = answer
        return replies

    def _value_bytes(self) -> int:
        return self._largest_seen if self._largest_seen > 0 else EXPECTED_VALUE_BYTES

    def _note_sizes(self, values: Iterable[bytes]) -> None:
        largest = max(map(len, values), default=0)
        with self._lock:
            self._largest_seen = max(self._largest_seen, largest)

    @contextmanager
    def _mapped_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (AuthenticationError, AuthorizationError, NoPermissionError) as exc:
            raise ConfigurationError(f"Redis at {self._nodes.place} refuses user or password: {exc}") from exc
        except (RedisError, RedisClusterException) as exc:
            kind = ConfigurationError if isinstance(exc, ResponseError) and not _may_pass(exc) else StoreAway
            if kind is StoreAway:
                self._nodes.doubt()
            raise kind(f"{what} at Redis {self._nodes.place}: {type(exc).__name__}: {exc}") from exc


def _ask(server: redis.Redis, loads: Sequence[Load], calls: Sequence[tuple[int, Sequence[str]]]) -> list[Any]:
    pipeline = server.pipeline(transaction=False)
    for index, stream_ids in calls:
        key, (generation, nonce), acknowledged, _ = loads[index]
        fields = [_field(stream_id) for stream_id in stream_ids]
        pipeline.evalsha(_LOAD_SCRIPT.sha, 1, str(key), generation, nonce, acknowledged, *fields)
    return pipeline.execute(raise_on_error=False)


def _may_pass(error: ResponseError) -> bool:
    return isinstance(error, PASSING_ERRORS) or bool(PASSING_CODES.search(str(error)))


def _refused(reply: bytes, key: StateKey) -> OwnershipError:
    kind = StaleToken if reply == b"STALE" else StateLost
    return kind(f"{reply.decode()} for {key}", key.partition)


def _field(stream_id: str) -> bytes:
    field = stream_id.encode("utf-8", "surrogatepass")
    return b"!" + field if field.startswith(b"!") else field


def _stream_id(field: bytes) -> str:
    return field.removeprefix(b"!").decode("utf-8", "surrogatepass")


def _literal(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "*?[]\\^" else letter for letter in text)


def _parse_key(name: str) -> StateKey:
    place, incarnation = name.rsplit(":", 1)
    group, topic, partition = place.removeprefix("tw:{").removesuffix("}").rsplit(":", 2)
    return StateKey(group, Partition(topic, int(partition)), incarnation)
