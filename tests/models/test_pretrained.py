"""Weights on disk: what was saved is what is loaded, and nothing else is accepted."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.compression import load_weights, narrowed, save_packed
from models.config import PredictorConfig
from models.pretrained import MANIFEST_FILE, WEIGHTS_FILE, PooledTail, PooledTails, Weights, builtin, preconditioner

TINY = PredictorConfig(hidden=4)


def test_saved_weights_come_back_equal(tmp_path):
    """A version names its numbers: the same fingerprint before and after the disk."""
    weights = replace(
        Weights.random(TINY, 1), pooled=PooledTails(activity=PooledTail(1.5, 0.01, 0.2)), manifest={"seed": 1}
    )
    weights.save(tmp_path / "new" / "folder")
    loaded = Weights.load(tmp_path / "new" / "folder")
    assert loaded.fingerprint() == weights.fingerprint()
    assert len(loaded.fingerprint()) == 12
    assert loaded.pooled == weights.pooled
    assert loaded.manifest == {"seed": 1}
    assert all(torch.equal(loaded.network[name], weights.network[name]) for name in weights.network)


def test_fingerprint_names_what_enters_the_fold():
    """Two versions with one name would mix rows of different folds."""
    weights = Weights.random(TINY, 1)
    others = [Weights.random(TINY, 2), replace(weights, P0=weights.P0 * 2), replace(
        weights, pooled=PooledTails(activity=PooledTail(1.5, 0.01, 0.2)))]  # fmt: skip
    assert len({weights.fingerprint(), *(other.fingerprint() for other in others)}) == 4
    assert replace(weights, manifest={"note": "x"}).fingerprint() == weights.fingerprint()


def fill_up(monkeypatch, name):
    """From now on the disk is full when a file of this name, or its draft, is written: half of it is there."""
    write = Path.write_bytes

    def write_bytes(path, content):
        if name not in path.name:
            return write(path, content)
        write(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_bytes)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, MANIFEST_FILE])
@pytest.mark.parametrize("is_packed", [False, True])
def test_a_full_disk_leaves_the_weights_that_were_there(name, is_packed, tmp_path, monkeypatch):
    """A profile may name the folder: the old weights are whole until the new ones are, and no half file stays."""
    old, new = Weights.random(TINY, 1), narrowed(Weights.random(TINY, 2), "bf16")
    old.save(tmp_path)
    fill_up(monkeypatch, name)
    with pytest.raises(OSError, match="No space"):
        save_packed(new, tmp_path, "bf16") if is_packed else new.save(tmp_path)
    assert load_weights(tmp_path).fingerprint() == old.fingerprint()
    assert sorted(path.name for path in tmp_path.iterdir()) == [MANIFEST_FILE, WEIGHTS_FILE]


def _truncate(folder):
    content = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(content[:-20])


def _flip(folder):
    content = bytearray((folder / WEIGHTS_FILE).read_bytes())
    content[-3] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(bytes(content))


def _foreign(folder):
    (folder / MANIFEST_FILE).write_text('{"format": "somebody-elses/3"}')


def _not_json(folder):
    (folder / MANIFEST_FILE).write_text("{")


def _missing(folder):
    (folder / WEIGHTS_FILE).unlink()


def _other_predictor(folder):
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["predictor"]["hidden"] = 5
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


def _no_predictor(folder):
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    del manifest["predictor"]
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


DAMAGE = [_truncate, _flip, _foreign, _not_json, _missing, _other_predictor, _no_predictor]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused(tmp_path, damage):
    """Half a network scores everything wrong and nobody notices: loading must fail with the folder's name."""
    Weights.random(TINY, 1).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=tmp_path.name):
        Weights.load(tmp_path)


def test_non_finite_weights_are_refused(tmp_path):
    """A diverged training run must not be served."""
    weights = Weights.random(TINY, 1)
    mu0 = weights.mu0.clone()
    mu0[0] = torch.nan
    replace(weights, mu0=mu0).save(tmp_path)
    with pytest.raises(ValueError, match="not finite"):
        Weights.load(tmp_path)


def test_unknown_builtin_is_refused():
    """The message says what there is."""
    with pytest.raises(ValueError, match="gru"):
        builtin("transformer")


def test_preconditioner_inverts_the_covariance():
    """P0 turns correlated features into equally fast directions."""
    torch.manual_seed(0)
    phi = torch.randn(4000, 3) * torch.tensor([1.0, 0.1, 5.0]) + 2.0
    mu0, p0 = preconditioner(phi)
    torch.testing.assert_close(p0 @ torch.cov(phi.T), torch.eye(3), atol=0.02, rtol=0)
    torch.testing.assert_close(mu0, phi.mean(0))
