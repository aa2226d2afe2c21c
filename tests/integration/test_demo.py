"""``tidewatch demo`` as a newcomer runs it: a process that starts others, and leaves none behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.pipeline.test_demo import KEYS

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
STREAMS = 1 + 24 + 3


@dataclass
class Demo:
    """A running demo, its temporary folder, and every process it was seen to have started."""

    process: subprocess.Popen[str]
    folder: Path
    children: set[int] = field(default_factory=set)

    def lines(self) -> Iterator[str]:
        """What it prints; its children are noted with each line."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.children |= descendants(self.process.pid)
            yield line

    def left_over(self) -> set[int]:
        """Children that still run, after some time to be gone."""
        deadline = time.monotonic() + 10
        while (left := self.children & running()) and time.monotonic() < deadline:
            pass
        return left


def running() -> set[int]:
    return {pid for pid, (_, state) in processes().items() if not state.startswith("Z")}


def processes() -> dict[int, tuple[int, str]]:
    """Parent and state of every process of this machine."""
    found = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True)
    rows = (line.split() for line in found.stdout.splitlines())
    return {int(pid): (int(parent), state) for pid, parent, state in rows}


def descendants(root: int) -> set[int]:
    parents = {pid: parent for pid, (parent, _) in processes().items()}
    found: set[int] = set()
    newest = {root}
    while newest:
        newest = {pid for pid, parent in parents.items() if parent in newest} - found
        found |= newest
    return found


@contextmanager
def started(folder: Path, *, out: Path) -> Iterator[Demo]:
    """A short demo whose own settings would be spoilt if it listened to those of the environment."""
    temporary = folder / "temporary"
    temporary.mkdir()
    environment = os.environ | {"TMPDIR": str(temporary), "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "demo", "--quick", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    demo = Demo(process, temporary)
    try:
        yield demo
    finally:
        process.kill()
        process.communicate()


def test_demo_leaves_a_summary_a_picture_and_no_process(tmp_path: Path) -> None:
    """The first thing anyone runs: it shows alerts, says how good they were, and cleans up after itself."""
    with started(tmp_path, out=tmp_path / "out") as demo:
        printed = "".join(demo.lines())
        assert demo.process.wait(30) == 0, printed
        assert len(demo.children) >= 3
        assert demo.left_over() == set()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary.keys() >= KEYS
    assert summary["streams"] == STREAMS
    assert summary["faults_labelled"] == 12 + 2
    assert 0 < summary["faults_caught"] <= summary["faults_labelled"]
    assert summary["alerts"] >= summary["faults_caught"]
    assert (tmp_path / "out" / "worst_alert.png").read_bytes().startswith(b"\x89PNG")
    assert "What to type next" in printed
    assert "expected" in printed
    assert list(demo.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "starting Apache Kafka"),
        (signal.SIGTERM, "replaying"),
        (signal.SIGINT, "unit-"),
    ],
    ids=["while Kafka starts", "while the worker starts", "among the alerts"],
)
def test_a_signal_at_any_moment_ends_every_process(number: signal.Signals, moment: str, tmp_path: Path) -> None:
    """Who presses Ctrl-C wants it gone: a broker left behind would hold memory and ports until the next reboot."""
    with started(tmp_path, out=tmp_path / "out") as demo:
        next(line for line in demo.lines() if moment in line)
        demo.process.send_signal(number)
        demo.process.send_signal(number)
        for _ in demo.lines():
            pass
        assert demo.process.wait(30) == 130
        assert demo.left_over() == set()
    assert not (tmp_path / "out" / "summary.json").exists()
    assert list(demo.folder.iterdir()) == []
