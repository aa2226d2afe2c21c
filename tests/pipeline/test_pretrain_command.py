"""``tidewatch pretrain --tails``: what shipped weights know of normal evidence is what evidence is now."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from models.pretrained import PooledTails, Weights, builtin
from pipeline.__main__ import main
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
