"""Liveness, readiness and metrics, asked over HTTP."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter

from pipeline.errors import ConfigurationError
from pipeline.health import Health
from tests.builders import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still."""
    return FakeClock(tick_s=0.0)


@pytest.fixture
def health(clock: FakeClock) -> Iterator[Health]:
    """A server on a free port with one counter."""
    registry = CollectorRegistry()
    Counter("anomaly_messages", "Records.", registry=registry).inc(3)
    with Health("127.0.0.1", 0, registry, clock=clock.monotonic) as running:
        yield running


def ask(health: Health, path: str, accept: str = "") -> tuple[int, str, str]:
    """Status, content type and body."""
    request = urllib.request.Request(health.address + path, headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def test_metrics_are_prometheus_text(health: Health) -> None:
    """What Prometheus scrapes, with the content type it wants."""
    status, content_type, body = ask(health, "/metrics")
    assert status == 200
    assert content_type.startswith("text/plain")
    assert "anomaly_messages_total 3.0" in body


def test_openmetrics_is_given_to_those_who_ask(health: Health) -> None:
    """Newer scrapers negotiate the format; the end mark proves a whole answer."""
    _, content_type, body = ask(health, "/metrics", "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")


def test_not_ready_until_told_and_says_why(health: Health) -> None:
    """Nobody sends traffic to a worker that waits, and a person sees what it waits for."""
    assert ask(health, "/readyz")[0] == 503
    health.set_ready(False, "waiting for redis")
    status, _, body = ask(health, "/readyz")
    assert (status, json.loads(body)) == (503, {"ready": False, "reason": "waiting for redis"})
    health.set_ready(True, "serving")
    status, _, body = ask(health, "/readyz")
    assert (status, json.loads(body)) == (200, {"ready": True, "reason": "serving"})


def test_waiting_is_alive(health: Health) -> None:
    """A worker whose broker is away must not be restarted for it."""
    health.set_ready(False, "waiting for kafka")
    assert ask(health, "/healthz")[0] == 200


def test_a_silent_loop_is_dead_and_a_beat_revives_it(health: Health, clock: FakeClock) -> None:
    """A stuck loop is restarted by whoever watches; one that goes on is not."""
    health.set_ready(True, "serving")
    clock.advance(60)
    assert ask(health, "/healthz")[0] == 200
    clock.advance(1)
    status, _, body = ask(health, "/healthz")
    assert status == 503
    assert "61 s" in json.loads(body)["reason"]
    assert ask(health, "/readyz")[0] == 503
    health.beat()
    assert ask(health, "/healthz")[0] == 200


def test_waiting_to_connect_is_a_sign_of_life(health: Health, clock: FakeClock) -> None:
    """Start-up may wait for servers for hours; each try is reported, and that is enough."""
    for _ in range(5):
        clock.advance(59)
        health.set_ready(False, "waiting to connect")
    assert ask(health, "/healthz")[0] == 200


def test_unknown_paths_are_not_found(health: Health) -> None:
    """A wrong path in a probe shows at once."""
    status, _, body = ask(health, "/health")
    assert status == 404
    assert "/healthz" in body


def test_a_client_that_says_nothing_holds_nobody_up(health: Health) -> None:
    """One open connection must not make the probes fail."""
    host, port = health.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10):
        assert ask(health, "/healthz")[0] == 200


def test_a_taken_port_is_an_error_that_says_what_to_do(health: Health) -> None:
    """Two workers on one machine: the second one's message names the setting."""
    port = int(health.address.rsplit(":", 1)[1])
    with pytest.raises(ConfigurationError, match=r"http\.port"), Health("127.0.0.1", port, CollectorRegistry()):
        pass


def test_nothing_is_left_after_the_block() -> None:
    """The port is free and the thread is gone, so that tests and restarts can follow at once."""
    before = threading.active_count()
    with Health("127.0.0.1", 0, CollectorRegistry()) as health:
        address = health.address
    assert threading.active_count() == before
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address + "/healthz", timeout=10)
