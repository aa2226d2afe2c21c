"""One POST: delivered, refused, or to be tried again."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

Result = Literal["delivered", "refused", "again"]

TRY_AGAIN = frozenset({408, 425, 429})
MAX_RETRY_AFTER_S = 300.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a POST; ``after_s``: not again before so many seconds, where the receiver said so."""

    result: Result
    reason: str
    after_s: float = 0.0


class Receiver:
    """Where notifications go.

    Parameters
    ----------
    url
        Its address; what follows the host is never shown, since it may hold a secret.
    headers
        Sent with every request.
    timeout_s
        How long to wait for a connection, and again for each part of the answer.
    """

    def __init__(self, url: str, headers: Mapping[str, str], timeout_s: float) -> None:
        parts = urlsplit(url)
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        # Without a port http.client looks for one in the host, and takes the end of an IPv6 address for it.
        self._host, self._port = parts.hostname or "", parts.port or self._kind.default_port
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = {"Content-Type": "application/json", "User-Agent": "tidewatch", **headers}
        self._timeout_s = timeout_s
        self.name = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")

    def post(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send once. Redirects are refusals: they would turn the POST into a GET, or carry the token elsewhere.

        So is what cannot be put into a request. Except for the system's own errors a reason is never an exception's
        text: http.client repeats in it the URL or the header that it refuses, and what the receiver said.
        """
        connection = self._kind(self._host, self._port, timeout=self._timeout_s)
        try:
            connection.request("POST", self._target, body, {**self._headers, **headers})
            answer = connection.getresponse()
            answer.read(64 * 1024)
            return _judged(answer.status, answer.getheader("Retry-After"))
        except OSError as exc:  # first: some of them are ValueErrors too
            return Answer("again", f"{type(exc).__name__}: {exc}")
        except (http.client.InvalidURL, ValueError) as exc:
            return Answer("refused", f"{type(exc).__name__}: URL or headers cannot be sent")
        except http.client.HTTPException as exc:
            return Answer("again", type(exc).__name__)
        finally:
            connection.close()


def _judged(status: int, retry_after: str | None) -> Answer:
    if 200 <= status < 300:
        return Answer("delivered", str(status))
    if status >= 500 or status in TRY_AGAIN:
        after_s = float(retry_after) if retry_after is not None and retry_after.isdecimal() else 0.0
        return Answer("again", f"answered {status}", min(after_s, MAX_RETRY_AFTER_S))
    return Answer("refused", f"answered {status}")
