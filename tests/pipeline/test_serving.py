"""What a role says while it waits, and how it goes on; with a clock that a test moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from pipeline.errors import BrokerAway, ConfigurationError, OffsetsGone, RegistryAway, StoreAway
from pipeline.health import Health
from pipeline.learning.course import Course
from pipeline.learning.learner import Learner
from pipeline.registry import Registry
from pipeline.serving import serve
from pipeline.settings import LearnerSettings
from tests.builders import START_MS, FakeClock, make_profile, tiny_weights


class Ending:
    """Asked to stop once it was waited for so many times; ``meanwhile`` happens at each."""

    def __init__(self, after: int, meanwhile: Callable[[], None] = lambda: None) -> None:
        self._left, self._meanwhile = after, meanwhile

    @property
    def is_asked(self) -> bool:
        """Whether it was."""
        return self._left == 0

    def wait(self, seconds: float) -> None:
        """Time passes."""
        self._left -= 1
        self._meanwhile()


@pytest.fixture
def health() -> Health:
    """One that nobody asks over HTTP."""
    return Health("127.0.0.1", 0, CollectorRegistry())


@pytest.mark.parametrize(("error", "server"), [(BrokerAway, "kafka"), (StoreAway, "redis"), (RegistryAway, "registry")])
def test_what_is_waited_for_is_named(
    error: type[Exception], server: str, health: Health, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever is paged looks at the server that is named, and at no other."""

    def work() -> None:
        raise error("gone")

    serve(work, health, Ending(2))  # type: ignore[arg-type]
    assert health.readiness().reason == f"waiting for {server}: gone"
    assert not health.readiness().ready
    assert caplog.messages == [f"waiting for {server}: gone"] * 2


def test_a_place_that_left_the_log_is_opened_again_and_anything_else_ends_the_process(health: Health) -> None:
    """Records that are gone are no reason to end; settings that cannot work are."""
    errors = [OffsetsGone("gone"), ConfigurationError("no such topic")]

    def work() -> None:
        raise errors.pop(0)

    with pytest.raises(ConfigurationError):
        serve(work, health, Ending(9))  # type: ignore[arg-type]


def test_a_learner_whose_registry_cannot_be_read_says_so_and_goes_on(
    tmp_path: Path, health: Health, caplog: pytest.LogCaptureFixture
) -> None:
    """Its volume had a hiccup; "waiting for kafka" would send people to brokers that are well."""
    registry, profile, clock = Registry(tmp_path), make_profile(light=True), FakeClock()
    registry.serve("p", registry.publish("p", tiny_weights(1), profile.fold()))
    course = Course("p", profile, registry, LearnerSettings(), lambda: START_MS)
    pointer, aside = tmp_path / "p" / "current", tmp_path / "aside"
    pointer.rename(aside)
    pointer.mkdir()  # there, and not to be read
    said = []

    def work() -> None:
        learner = Learner([], {"p": course}, None, None, clock, 0.5, 0.5)  # type: ignore[arg-type]
        learner.step()
        health.set_ready(True, "learning")
        ending.wait(0)

    def mended() -> None:
        said.append(health.readiness().reason)
        if pointer.is_dir():
            pointer.rmdir()
            aside.rename(pointer)

    ending = Ending(2, mended)
    serve(work, health, ending)  # type: ignore[arg-type]
    assert said[0].startswith("waiting for registry: profile p: which version to serve cannot be read")
    assert said[1:] == ["learning"]
    assert [message for message in caplog.messages if message.startswith("waiting")] == said[:1]
