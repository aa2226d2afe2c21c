"""Stand-ins for what cannot be provoked: a network that loses one request or reply, a store that is away or slow."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pipeline.errors import StoreAway
from pipeline.state.memory import MemoryStateStore

END_TXN, OFFSET_FETCH, TXN_OFFSET_COMMIT = 26, 9, 28  # Kafka's numbers for its requests


class LossyProxy:
    """A SOCKS5 proxy between Kafka clients and their broker that reads the frames it passes on.

    Clients use it by the option ``proxy_url``. Connections stay open whatever is lost. Unarmed it loses nothing.
    """

    def __init__(self) -> None:
        self._requests: dict[int, Callable[[], None]] = {}
        self._replies: dict[int, Callable[[], None]] = {}
        self._gate = threading.Event()
        self._gate.set()
        self._held_api: int | None = None
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"socks5://127.0.0.1:{self._listener.getsockname()[1]}"
        self.holding = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_request(self, api: int, then: Callable[[], None] = lambda: None) -> None:
        """Keep the next request of this kind from the broker, and call ``then``."""
        self._requests[api] = then

    def lose_reply(self, api: int, then: Callable[[], None] = lambda: None) -> None:
        """Keep the broker's answer to the next request of this kind from the client, and call ``then``."""
        self._replies[api] = then

    def hold_reply(self, api: int) -> None:
        """Hold the next answer of this kind back, and all that follows on its connection, until :meth:`release`."""
        self._gate.clear()
        self.holding.clear()
        self._held_api = api

    def release(self) -> None:
        """Let held answers go."""
        self._held_api = None
        self._gate.set()

    def close(self) -> None:
        """Cut all connections."""
        self._gate.set()
        for each in [self._listener, *self._sockets]:
            # Without the shutdown a thread that waits in recv or accept would go on waiting.
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError, ConnectionError):
            _, methods = _exactly(client, 2)
            _exactly(client, methods)
            client.sendall(b"\x05\x00")
            *_, kind = _exactly(client, 4)
            length = {1: 4, 4: 16}.get(kind) or _exactly(client, 1)[0]
            address, (port,) = _exactly(client, length), struct.unpack(">H", _exactly(client, 2))
            host = socket.inet_ntoa(address) if kind == 1 else address.decode()
            try:
                broker = socket.create_connection((host, port), timeout=5)
            except OSError:
                client.sendall(b"\x05\x05\x00\x01" + bytes(6))
                client.close()
                return
            broker.settimeout(None)
            self._sockets.append(broker)
            client.sendall(b"\x05\x00\x00\x01" + bytes(6))
            swallowed: dict[int, Callable[[], None]] = {}
            held: set[int] = set()
            threading.Thread(target=self._pass_replies, args=(broker, client, swallowed, held), daemon=True).start()
            self._pass_requests(client, broker, swallowed, held)

    def _pass_requests(
        self, client: socket.socket, broker: socket.socket, swallowed: dict[int, Callable[[], None]], held: set[int]
    ) -> None:
        with suppress(OSError, ConnectionError):
            while True:
                frame = _frame(client)
                api, _, correlation = struct.unpack_from(">hhi", frame, 4)
                if api in self._requests:
                    self._requests.pop(api)()
                    continue
                if api in self._replies:
                    swallowed[correlation] = self._replies.pop(api)
                if api == self._held_api:
                    held.add(correlation)
                broker.sendall(frame)
        _cut(client, broker)

    def _pass_replies(
        self, broker: socket.socket, client: socket.socket, swallowed: dict[int, Callable[[], None]], held: set[int]
    ) -> None:
        with suppress(OSError, ConnectionError):
            while True:
                frame = _frame(broker)
                (correlation,) = struct.unpack_from(">i", frame, 4)
                if correlation in swallowed:
                    swallowed.pop(correlation)()
                    continue
                if correlation in held:
                    held.discard(correlation)
                    self.holding.set()
                    self._gate.wait()
                client.sendall(frame)
        _cut(client, broker)


class AwayStore(MemoryStateStore):
    """Nobody answers while ``is_away``."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = False

    def take(self, *args: Any) -> Any:
        """As the store does, where it answers; so the others."""
        return self._answer(super().take, *args)

    def load_many(self, *args: Any) -> Any:
        return self._answer(super().load_many, *args)

    def save(self, *args: Any) -> Any:
        return self._answer(super().save, *args)

    def scan(self, *args: Any) -> Any:
        return self._answer(super().scan, *args)

    def _answer(self, call: Callable[..., Any], *args: Any) -> Any:
        if self.is_away:
            raise StoreAway("nobody answers")
        return call(*args)


class GatedStore(MemoryStateStore):
    """Saves wait at a gate: open, shut, or letting through so many."""

    def __init__(self) -> None:
        super().__init__()
        self.tickets = threading.Semaphore(10**9)

    def shut(self) -> None:
        """No save ends from now on."""
        self.tickets = threading.Semaphore(0)

    def let(self, saves: int) -> None:
        """So many of those that wait, or come, may end."""
        self.tickets.release(saves)

    def save(self, *args: Any, **named: Any) -> int:
        """As the store does, once there is a ticket."""
        self.tickets.acquire()
        return super().save(*args, **named)


def _cut(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


def _frame(source: socket.socket) -> bytes:
    header = _exactly(source, 4)
    return header + _exactly(source, struct.unpack(">i", header)[0])


def _exactly(source: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        piece = source.recv(count - len(received))
        if not piece:
            raise ConnectionError("closed")
        received += piece
    return bytes(received)
