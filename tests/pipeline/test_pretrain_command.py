"""``tidewatch pretrain``: what is refused before it learns; ``--tails``: shipped weights know evidence as it is now."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from models.pretrained import WEIGHTS_FILE, PooledTails, Weights, builtin
from pipeline import pretrain_command
from pipeline.__main__ import EXIT_CONFIGURATION, main
from tests.builders import tiny_weights


@pytest.mark.slow
def test_shipped_tails_are_those_that_evidence_has_now(tmp_path: Path) -> None:
    """Whoever changes evidence changes what new streams should start from: `make tails` does."""
    shipped = builtin("gru")
    replace(shipped, pooled=PooledTails()).save(tmp_path)

    assert main(["pretrain", "--tails", "--out", str(tmp_path)]) == 0

    measured = Weights.load(tmp_path)
    for kind, tail in asdict(shipped.pooled).items():
        assert asdict(measured.pooled)[kind] == pytest.approx(tail, rel=0.03), f"{kind}: run `make tails`"
    assert all(torch.equal(tensor, shipped.network[name]) for name, tensor in measured.network.items())
    assert measured.manifest == shipped.manifest


def test_weights_without_a_seed_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights that were learned from recordings have the tails of their own training."""
    tiny_weights(0).save(tmp_path)
    before = Weights.load(tmp_path).fingerprint()

    assert main(["pretrain", "--tails", "--out", str(tmp_path)]) == 2

    assert "names no seed" in capsys.readouterr().err
    assert Weights.load(tmp_path).fingerprint() == before


def test_a_folder_without_weights_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error, most likely."""
    assert main(["pretrain", "--tails", "--out", str(tmp_path / "nothing")]) == 2
    assert "nothing: cannot read weights" in capsys.readouterr().err


@pytest.fixture
def no_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong must be found before the first minute is spent."""

    def fail(*_: object) -> None:
        pytest.fail("the learning began")

    monkeypatch.setattr(pretrain_command, "pretrain", fail)


@pytest.mark.usefixtures("no_learning")
@pytest.mark.parametrize(
    ("option", "value", "least"),
    [
        ("hidden", 0, 1),
        ("seed", -1, 0),
        ("epochs", 0, 1),
        ("series", 10, 128),
        ("length", 10, 22),
        ("threads", 0, 1),
    ],
)
def test_impossible_numbers_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: int, least: int
) -> None:
    """One line that says what is wrong, before anything is learned."""
    assert main(["pretrain", "--out", str(tmp_path), f"--{option}", str(value)]) == EXIT_CONFIGURATION
    assert f"--{option} must be at least {least}" in capsys.readouterr().err


@pytest.mark.usefixtures("no_learning")
def test_weights_are_not_replaced_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A profile may name them."""
    tiny_weights(0).save(tmp_path)
    assert main(["pretrain", "--out", str(tmp_path)]) == EXIT_CONFIGURATION
    assert f"{tmp_path / WEIGHTS_FILE} exists; --force replaces it" in capsys.readouterr().err


@pytest.mark.usefixtures("no_learning")
@pytest.mark.parametrize("inside", ["", "inside"])
def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], inside: str
) -> None:
    """Minutes of learning must not end in a traceback."""
    (tmp_path / "file").write_text("in the way")
    assert main(["pretrain", "--out", str(tmp_path / "file" / inside)]) == EXIT_CONFIGURATION
    assert "nothing can be written there" in capsys.readouterr().err
