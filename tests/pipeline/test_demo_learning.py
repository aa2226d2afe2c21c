"""``make demo-learning``: what it shows, and that it shows it in time."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path

import pytest

from pipeline.demo.learning import INTERVAL_MS, RULES, Story, draw, main

DAY = RULES.stretch * INTERVAL_MS / 86_400_000
"""Days of a stretch."""
PNG = b"\x89PNG\r\n\x1a\n"


def _story() -> Story:
    losses = [0.6, 0.6, 3.0, 3.0, 0.4, 0.4]
    days = [DAY * (number + 1) for number in range(len(losses))]
    return Story(days, losses, [(days[2], "drift"), (days[3], "promoted")], [math.sin(k) for k in range(288)])


def test_error_before_and_after_an_event_is_that_of_the_stretches_next_to_it() -> None:
    """The figures under the picture are read off by people who do not look at the picture."""
    assert _story().around("promoted") == (3.0, 0.4)
    assert all(map(math.isnan, _story().around("rolled back")))


def test_a_story_without_a_rollback_is_drawn_all_the_same(tmp_path: Path) -> None:
    """A demo that went wrong must still show what happened."""
    draw(_story(), 2 * DAY, tmp_path / "learning.png")
    assert (tmp_path / "learning.png").read_bytes()[:8] == PNG


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(400)
def test_the_demo_shows_promotion_and_rollback_within_three_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As issue 5 asks, on two cores; main fails where an error did not fall."""
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    assert main() == 0
    assert time.monotonic() - began < 180
    said = capsys.readouterr().out
    assert re.search(r"^  day .* promoted ", said, re.MULTILINE)
    assert re.search(r"^  day .* rolled back ", said, re.MULTILINE)
    assert (tmp_path / "runs" / "demo-learning" / "learning.png").read_bytes()[:8] == PNG
