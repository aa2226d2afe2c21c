"""A real Redis Cluster on this machine, of servers that a test may move slots between, kill and promote."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from redis.crc import key_slot

from pipeline.servers import HOST, EmbeddedRedis, free_port

SLOTS = 16384
LAST_PORT = 55_535  # Redis 6 listens for the other nodes 10000 ports above
DEADLINE_S = 30.0


class RedisNode(EmbeddedRedis):
    """An embedded server in cluster mode."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        while port > LAST_PORT:
            port = free_port()
        super().__init__(folder, port)

    def ask(self, *command: Any) -> Any:
        """Send a command to this node. ``CLUSTER`` and what follows are words apart, or redis-py reads the answer."""
        with redis.Redis(HOST, self.port, socket_timeout=5) as client:
            return client.execute_command(*command)

    @property
    def id(self) -> str:
        """The node's name in the cluster."""
        return str(self.ask("CLUSTER MYID").decode())

    def port_of(self, key: str) -> int:
        """Port of the node that holds ``key`` by this node's account."""
        slot = key_slot(key.encode())
        for first, last, (_, port, *_), *_ in self.ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return int(port)
        raise LookupError(f"nobody holds {key}")

    def _command(self) -> list[str]:
        return [*super()._command(), "--cluster-enabled", "yes", "--cluster-node-timeout", "1000"]


class LocalCluster:
    """Three primaries that share the slots evenly.

    Parameters
    ----------
    folder
        Where the nodes keep their data.
    """

    def __init__(self, folder: Path) -> None:
        self.nodes = [RedisNode(folder / str(number)) for number in range(3)]
        self._opened = ExitStack()

    @property
    def address(self) -> str:
        """The URL of the first node."""
        return self.nodes[0].address

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            for node in self.nodes:
                opened.enter_context(node)
            for number, node in enumerate(self.nodes):
                own = range(number * SLOTS // len(self.nodes), (number + 1) * SLOTS // len(self.nodes))
                node.ask("CLUSTER ADDSLOTS", *own)
                node.ask("CLUSTER SET-CONFIG-EPOCH", number + 1)
            for node in self.nodes[1:]:
                self.nodes[0].ask("CLUSTER MEET", HOST, node.port)
            wait_until_sound(self.nodes)
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def holder(self, key: str) -> RedisNode:
        """The node that holds ``key`` by the first node's account."""
        port = self.nodes[0].port_of(key)
        return next(node for node in self.nodes if node.port == port)

    def move(self, key: str, target: RedisNode) -> None:
        """Give the slot of ``key``, with that key in it, to another node, as an operator does."""
        slot, source = key_slot(key.encode()), self.holder(key)
        target.ask("CLUSTER SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER SETSLOT", slot, "MIGRATING", target.id)
        source.ask("MIGRATE", HOST, target.port, key, 0, 5000)
        for node in (target, source):
            node.ask("CLUSTER SETSLOT", slot, "NODE", target.id)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until ``condition()`` holds; raises TimeoutError after :data:`DEADLINE_S`."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {DEADLINE_S:.0f} s")
        time.sleep(0.02)


def wait_until_sound(nodes: Sequence[RedisNode]) -> None:
    """Wait until each of ``nodes`` says that all slots are held."""
    wait_until(lambda: all(b"cluster_state:ok" in node.ask("CLUSTER", "INFO") for node in nodes))
