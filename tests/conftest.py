"""What many tests need: real servers, started once per run where none are given."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from pipeline.errors import ConfigurationError
from pipeline.servers import EmbeddedKafka, EmbeddedRedis, EmbeddedServer

# The same examples in every run, and no verdict about a machine that is busy with something else.
hypothesis.settings.register_profile("tidewatch", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("tidewatch")

# A run in the background may have been started with Ctrl-C ignored, and its children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def kafka_bootstrap() -> Iterator[str]:
    """A real Kafka: ``KAFKA_BOOTSTRAP_SERVERS`` where set, else an embedded broker. Tests own their topics."""
    yield from _address("KAFKA_BOOTSTRAP_SERVERS", EmbeddedKafka)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real Redis: ``REDIS_URL`` where set, else an embedded server. Tests own their key prefix."""
    yield from _address("REDIS_URL", EmbeddedRedis)


def _address(variable: str, server: type[EmbeddedServer]) -> Iterator[str]:
    given = os.environ.get(variable)
    if given:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="tidewatch-tests-", ignore_cleanup_errors=True) as folder:
        running = server(Path(folder))
        try:
            running.start()
        except ConfigurationError as exc:
            message = f"{variable} is not set, and the embedded server cannot start: {exc}"
            raise pytest.fail.Exception(message, pytrace=False) from None
        try:
            yield running.address
        finally:
            running.stop()
