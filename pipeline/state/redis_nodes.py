"""Which Redis server holds a key: the one there is, or a node of a Redis Cluster."""

from __future__ import annotations

import threading
from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry

from pipeline.errors import ConfigurationError


class RedisNodes:
    """Clients of a Redis server, or of the primaries of the Redis Cluster it belongs to. Safe for several threads.

    Whether it is a cluster is asked with the first call, and who holds what again after each :meth:`doubt`. No client
    repeats or redirects a command by itself: a repeat must be the caller's, because only the caller knows which number
    it carries and for how long it may be repeated (protocol.md rule 20).

    Parameters
    ----------
    url
        ``redis://``, ``rediss://`` or ``unix://``, with user, password and database where needed; of a cluster, any
        node's.
    timeout_s
        Seconds to wait for a connection, and for each answer.

    Raises
    ------
    ConfigurationError
        The URL cannot be read. The message does not repeat it, since it may hold a password.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._options: dict[str, Any] = {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "protocol": 2,
            "decode_responses": False,
        }
        try:
            self._named = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **self._options)
        except (ValueError, TypeError):
            raise ConfigurationError(
                "the Redis URL cannot be read; it looks like redis://[user:password@]host:port/database, "
                "with reserved characters in the password percent-encoded"
            ) from None
        self._cluster: Any = None  # a RedisCluster, whose methods have no types
        self._is_known = False
        self._lock = threading.Lock()

    @property
    def place(self) -> str:
        """The address that the URL names, for messages."""
        return place_of(self._named)

    def of(self, key: str) -> redis.Redis:
        """The server that holds ``key``.

        Raises
        ------
        redis.exceptions.RedisError, redis.exceptions.RedisClusterException
            No server answers, or none holds that part of the cluster.
        """
        cluster = self._known()
        if cluster is None:
            return self._named
        return cast("redis.Redis", cluster.get_redis_connection(cluster.get_node_from_key(key)))

    def primaries(self) -> list[redis.Redis]:
        """All servers that hold keys; raises as :meth:`of` does."""
        cluster = self._known()
        if cluster is None:
            return [self._named]
        return [cluster.get_redis_connection(node) for node in cluster.get_primaries()]

    def doubt(self) -> None:
        """Ask again who holds what, over new connections: after a fail-over an address leads to another server.

        Only idle connections are closed: another thread may be in the midst of a call.
        """
        with self._lock:
            self._is_known = False
            for client in self._clients():
                client.connection_pool.disconnect(inuse_connections=False)

    def close(self) -> None:
        """Close connections. A second call does nothing."""
        for client in self._clients():
            client.close()

    def _known(self) -> Any:
        with self._lock:
            if not self._is_known:
                if self._cluster is not None:
                    self._cluster.nodes_manager.initialize()
                elif self._named.info("cluster").get("cluster_enabled"):
                    # Whether a part that nobody holds stops the others is for the servers to say.
                    self._cluster = RedisCluster.from_url(self._url, require_full_coverage=False, **self._options)
                self._is_known = True
            return self._cluster

    def _clients(self) -> list[redis.Redis]:
        nodes = [] if self._cluster is None else self._cluster.get_nodes()
        return [self._named, *(node.redis_connection for node in nodes if node.redis_connection is not None)]


def place_of(client: redis.Redis) -> str:
    """The address of a client's server, for messages."""
    where = client.connection_pool.connection_kwargs
    return where.get("path") or f"{where.get('host', 'localhost')}:{where.get('port', 6379)}"
