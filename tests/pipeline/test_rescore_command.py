"""``tidewatch rescore``: a smoother over complete recordings, from a file to a file."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from pipeline.__main__ import EXIT_CONFIGURATION, main
from tests.builders import make_series
from tests.pipeline.test_replay import write_csv

pytestmark = pytest.mark.slow

SPIKE, LENGTH, EDGE = 150, 260, 20


def test_the_fault_is_the_most_surprising_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each value that has two sides; the planted one first."""
    values = {name: make_series(seed, LENGTH, spikes=0) for seed, name in enumerate("ab")}
    values["b"][SPIKE] += 1.5
    values["a"][90] = np.nan
    recording = write_csv(tmp_path / "pumps.csv", values)
    words = ["--hidden", "8", "--epochs", "40", "--top", "1", "--out", str(tmp_path / "out.csv")]
    assert main(["rescore", str(recording), *words]) == 0
    with (tmp_path / "out.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (LENGTH - 2 - 2 * EDGE) - 1
    first = max(rows, key=lambda row: float(row["surprise"]))
    assert first["stream"].endswith("b")
    assert float(first["value"]) == pytest.approx(float(values["b"][SPIKE, 0]), abs=1e-3)
    assert first["time"] in capsys.readouterr().out


def test_a_place_that_cannot_be_written_is_refused_before_the_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An hour of fitting is not lost to a slip of the pen; a folder that is not there yet is made."""
    recording = write_csv(tmp_path / "short.csv", {"a": make_series(1, 30, spikes=0)})
    assert main(["rescore", str(recording), "--out", str(tmp_path)]) == EXIT_CONFIGURATION
    assert f"{tmp_path}: cannot be written: it is a folder" in capsys.readouterr().err
    assert main(["rescore", str(recording), "--out", str(recording / "out.csv")]) == EXIT_CONFIGURATION
    assert "out.csv: cannot be written" in capsys.readouterr().err
    assert main(["rescore", str(recording), "--out", str(tmp_path / "new" / "out.csv")]) == EXIT_CONFIGURATION
    assert "too few to smooth" in capsys.readouterr().err
    assert (tmp_path / "new").is_dir()


def test_recordings_without_two_sides_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a reason, before anything is fitted."""
    recording = write_csv(tmp_path / "short.csv", {"a": make_series(1, 30, spikes=0)})
    assert main(["rescore", str(recording), "--out", str(tmp_path / "out.csv")]) == EXIT_CONFIGURATION
    assert "too few to smooth" in capsys.readouterr().err
