"""Weights in fewer bits: smaller files, numbers that are near, and nothing that was damaged is taken for weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.compression import form_of, load_weights, narrowed, save_packed
from models.config import PredictorConfig
from models.pretrained import MANIFEST_FILE, WEIGHTS_FILE, Weights, builtin

SHARE_OF_ROW = {"bf16": 2.0**-8, "int8": 1.0 / 127.0}
"""Greatest error of a number, as a share of the largest one in its row: half a step of bf16, of an int8 scale that was
rounded up to a power of two."""


@pytest.mark.parametrize("form", ["bf16", "int8"])
def test_narrowed_weights_are_near_and_narrow_again_to_themselves(form):
    """A version is named by its numbers: a copy of a copy must keep the name."""
    weights = builtin("gru")
    small = narrowed(weights, form)
    for name, tensor in weights.network.items():
        error = (small.network[name] - tensor).abs()
        largest = tensor.abs().amax(-1, keepdim=True) if tensor.dim() > 1 else torch.zeros(1)
        assert bool((error <= SHARE_OF_ROW[form] * largest).all()), name
    assert narrowed(small, form).fingerprint() == small.fingerprint() != weights.fingerprint()
    assert torch.equal(small.P0, weights.P0)


@pytest.mark.parametrize("form", ["bf16", "int8"])
@pytest.mark.parametrize("cell", ["gru", "conv", "hmm", "ar", "naive"])
def test_packed_weights_come_back_bit_for_bit(form, cell, tmp_path: Path):
    """What was measured is what is served, in every family."""
    small = narrowed(Weights.random(PredictorConfig(cell, hidden=5)), form)
    save_packed(small, tmp_path, form)
    assert load_weights(tmp_path).fingerprint() == small.fingerprint()
    assert form_of(tmp_path) == form


def test_files_shrink_and_whole_ones_are_read_as_ever(tmp_path: Path):
    """The matrices take a half and a quarter; P0 stays whole, and is a quarter of the file."""
    weights, sizes = builtin("gru"), {}
    for form in ("bf16", "int8"):
        save_packed(narrowed(weights, form), tmp_path / form, form)
        sizes[form] = (tmp_path / form / WEIGHTS_FILE).stat().st_size
    weights.save(tmp_path / "whole")
    whole = (tmp_path / "whole" / WEIGHTS_FILE).stat().st_size
    assert sizes["bf16"] < 0.65 * whole
    assert sizes["int8"] < 0.5 * whole
    assert load_weights(tmp_path / "whole").fingerprint() == weights.fingerprint()
    assert form_of(tmp_path / "whole") is None


def test_weights_that_were_not_narrowed_are_not_packed(tmp_path: Path):
    """They would be saved under the name of numbers that they are not."""
    with pytest.raises(ValueError, match="narrowed"):
        save_packed(builtin("gru32"), tmp_path, "int8")


def _truncated(folder: Path) -> None:
    (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:-9])


def _other_scale(folder: Path) -> None:
    """A file that is whole, with another number in it, and a manifest that knows its digest."""
    tensors = load_file(folder / WEIGHTS_FILE)
    tensors["network.head.weight.scale"] *= 2.0
    save_file(tensors, folder / WEIGHTS_FILE)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["sha256"] = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


def _other_predictor(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["predictor"]["hidden"] = 7
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


def _no_manifest(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()


@pytest.mark.parametrize(
    ("damage", "text"),
    [(_truncated, "damaged"), (_other_scale, "not that of"), (_other_predictor, "complete"), (_no_manifest, "read")],
)
def test_damaged_packed_weights_are_refused(damage, text, tmp_path: Path):
    """With a reason, as whole ones are."""
    save_packed(narrowed(builtin("gru32"), "int8"), tmp_path, "int8")
    damage(tmp_path)
    with pytest.raises(ValueError, match=text):
        load_weights(tmp_path)
