"""From settings to a worker: what is opened on the way is closed where the way ends early."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import BrokerAway
from pipeline.settings import Settings
from pipeline.state.memory import MemoryStateStore
from pipeline.wiring import build_worker


class OpenSource:
    """A consumer that was built."""

    is_open = True

    def close(self) -> None:
        """Leave the group."""
        self.is_open = False


def test_a_broker_that_takes_no_transactions_leaves_no_consumer_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Connecting is tried again every few seconds: a thread and sockets for each try would add up to a dead process."""
    source = OpenSource()

    def refuse(settings: Settings, worker_name: str) -> None:
        raise BrokerAway("no coordinator for transactions")

    monkeypatch.setattr("pipeline.wiring.build_source", lambda settings, worker_name: source)
    monkeypatch.setattr("pipeline.wiring.build_sink", refuse)
    settings = Settings.model_validate({"registry": {"folder": str(tmp_path)}})
    with pytest.raises(BrokerAway):
        build_worker(settings, lambda stats: None, MemoryStateStore())
    assert not source.is_open
