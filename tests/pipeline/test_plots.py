"""Pictures: drawn from whatever a stream did, and refused in plain words where matplotlib is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ConfigurationError
from pipeline.explanation import Explanation, collect
from pipeline.offline import Offline
from pipeline.plots import Span, draw_episode, draw_explanation
from pipeline.sources.recording import RecordedStream
from tests.builders import INTERVAL_MS, START_MS, make_profile, make_series, tiny_weights

LENGTH = 180


def make_explanation(features: tuple[str, ...] = ("value",), *, with_holes: bool = False) -> Explanation:
    values = np.concatenate([make_series(seed, LENGTH) for seed in range(len(features))], axis=1)
    times_ms = START_MS + INTERVAL_MS * np.arange(LENGTH)
    if with_holes:
        values[120:130] = np.nan
        times_ms[150:] += 50 * INTERVAL_MS
    stream = RecordedStream("pump", features, 60.0, times_ms, values)
    offline = Offline("p", make_profile(features=features), tiny_weights(), detail=True)
    return collect(offline.score_streams([stream]), "pump", features)


@pytest.mark.parametrize("draw", [draw_episode, draw_explanation])
@pytest.mark.parametrize("features", [("value",), ("a", "b", "c")])
def test_every_kind_of_stream_can_be_drawn(draw: object, features: tuple[str, ...], tmp_path: Path) -> None:
    """One feature or several, missing values, gaps, warm-up, labels: a picture must not fail when it is needed."""
    path = tmp_path / "new folder" / "picture.png"
    label = Span(START_MS + 140 * INTERVAL_MS, START_MS + 150 * INTERVAL_MS, "label: drift")
    draw(make_explanation(features, with_holes=True), 160, path, "pump", [label])  # type: ignore[operator]
    assert path.read_bytes().startswith(b"\x89PNG")


def test_names_with_dollars_are_drawn_as_they_are(tmp_path: Path) -> None:
    """Two of them would begin a formula, and the picture would fail; numbers at the axes need no formula either."""
    path = tmp_path / "picture.svg"
    draw_explanation(make_explanation(("p$a_$",)), 150, path, "pump $x_$")
    text = path.read_text(encoding="utf-8")
    assert "pump $x_$" in text
    assert "p$a_$" in text
    assert "mathdefault" not in text


def test_equal_explanations_give_equal_pictures(tmp_path: Path) -> None:
    """A picture in a report can be made again, to the byte."""
    explanation = make_explanation()
    for name in ("one.png", "two.png"):
        draw_episode(explanation, 150, tmp_path / name, "pump")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@pytest.mark.parametrize("draw", [draw_episode, draw_explanation])
def test_labels_outside_of_the_times_shown_leave_the_picture_as_it_is(draw: object, tmp_path: Path) -> None:
    """A label of last month would squeeze the hours that somebody asked about into a corner."""
    days = 5000 * INTERVAL_MS
    labels = [Span(START_MS - 2 * days, START_MS - days, "before"), Span(START_MS + days, START_MS + 2 * days, "after")]
    for name, spans in (("bare.png", []), ("labelled.png", labels)):
        draw(make_explanation(), 150, tmp_path / name, "pump", spans)  # type: ignore[operator]
    assert (tmp_path / "bare.png").read_bytes() == (tmp_path / "labelled.png").read_bytes()


def test_without_matplotlib_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib is optional: who asks for a picture learns what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigurationError, match=r"tidewatch\[plots\]"):
        draw_episode(make_explanation(), 150, tmp_path / "picture.png", "pump")


def test_a_picture_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """An ending that is no picture is the user's mistake, not a crash."""
    with pytest.raises(ConfigurationError, match="cannot be written"):
        draw_episode(make_explanation(), 150, tmp_path / "picture.docx", "pump")
