"""A real HTTP server that takes notifications, and answers what a test tells it to."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


@dataclass(frozen=True, slots=True)
class Post:
    """What was posted, and what was answered."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    status: int


class Hook:
    """Listens while the ``with`` block lasts; ``answers`` are used up first, then everything is taken with 200."""

    def __init__(self, *answers: int, port: int = 0) -> None:
        self.posts: list[Post] = []
        self._answers = list(answers)
        self._came = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook?token=s3cret"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait(self, count: int, deadline_s: float = 40.0) -> list[Post]:
        """Everything posted, once there are so many."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.posts) >= count, deadline_s), [p.headers for p in self.posts]
            return list(self.posts)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hook = self

        class Requests(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with hook._came:
                    status = hook._answers.pop(0) if hook._answers else 200
                    hook.posts.append(Post(self.path, dict(self.headers), body, status))
                    hook._came.notify_all()
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # http.server's name
                """Say nothing."""

        return Requests
