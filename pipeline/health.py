"""Metrics, liveness and readiness over HTTP, from a thread of its own.

``GET /metrics``
    Prometheus text.
``GET /healthz``
    200 while the loop turns; 503 once nothing was heard from it for a minute: restart the process.
``GET /readyz``
    200 while work is done, or 503; the reason in JSON. Nothing has to be restarted: it waits for what it names.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from pipeline.errors import ConfigurationError

logger = logging.getLogger(__name__)

MAX_SILENCE_S = 60.0
REQUEST_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether work is being done, and what it waits for if not."""

    ready: bool
    reason: str


class Health:
    """An HTTP server while the ``with`` block lasts.

    :meth:`beat` and :meth:`set_ready` may be called from any thread; both count as a sign of life.

    Parameters
    ----------
    host, port
        Where to listen; port 0 picks a free one, which :attr:`address` names.
    registry
        What ``/metrics`` shows.
    max_silence_s
        Without a sign of life for this long the process counts as stuck.
    clock
        Monotonic seconds.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        max_silence_s: float = MAX_SILENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host, self._port, self._registry = host, port, registry
        self._max_silence_s, self._clock = max_silence_s, clock
        self._readiness = Readiness(False, "starting")
        self._last_beat_s = clock()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Listen.

        Raises
        ------
        ConfigurationError
            The address cannot be listened on.
        """
        try:
            self._server = _Server((self._host, self._port), self)
        except OSError as exc:
            raise ConfigurationError(
                f"cannot serve metrics on {self._host}:{self._port}: {exc.strerror}; "
                "choose another http.host or http.port (0 picks a free port)"
            ) from exc
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="http", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        assert self._thread is not None
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def address(self) -> str:
        """``http://host:port`` with the port that was chosen."""
        assert self._server is not None, "not listening"
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._server.server_address[1]}"

    def beat(self) -> None:
        """The loop turned."""
        self._last_beat_s = self._clock()

    def set_ready(self, ready: bool, reason: str) -> None:
        """Say whether work is being done, and why not; also a sign of life."""
        self._readiness = Readiness(ready, reason)
        self.beat()

    def liveness(self) -> Readiness:
        """What ``/healthz`` answers."""
        silence_s = self._clock() - self._last_beat_s
        if silence_s > self._max_silence_s:
            return Readiness(False, f"no sign of life for {silence_s:.0f} s")
        return Readiness(True, "alive")

    def readiness(self) -> Readiness:
        """What ``/readyz`` answers: a process that is stuck is not ready, whatever it said last."""
        life = self.liveness()
        return self._readiness if life.ready else life

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """What ``/metrics`` answers, in the best format ``accept`` names, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, place: tuple[str, int], health: Health) -> None:
        self.health = health
        self.address_family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        super().__init__(place, _Requests)

    def server_bind(self) -> None:
        """Bind without the reverse name lookup of HTTPServer, which can hang for seconds where there is no DNS."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


class _Requests(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_TIMEOUT_S
    server_version = "tidewatch"
    sys_version = ""

    def do_GET(self) -> None:
        health = self.server.health
        path = self.path.partition("?")[0]
        if path == "/metrics":
            body, content_type = health.metrics(self.headers.get("Accept", ""))
            self._answer(HTTPStatus.OK, body, content_type)
        elif path == "/healthz":
            self._answer_state(health.liveness(), "alive")
        elif path == "/readyz":
            self._answer_state(health.readiness(), "ready")
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"try /metrics, /healthz or /readyz\n", "text/plain; charset=utf-8")

    do_HEAD = do_GET  # noqa: N815  # http.server's name

    def _answer_state(self, state: Readiness, name: str) -> None:
        body = json.dumps({name: state.ready, "reason": state.reason}).encode() + b"\n"
        status = HTTPStatus.OK if state.ready else HTTPStatus.SERVICE_UNAVAILABLE
        self._answer(status, body, "application/json")

    def _answer(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # http.server's name
        logger.debug("http %s", format % args)
