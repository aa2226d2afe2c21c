"""Weights stored in fewer bits: the network's matrices as bfloat16 or as int8 with a scale for each row.

They are widened to float32 when they are loaded, so what a worker computes with has the same size and speed as ever;
what shrinks is the file. Biases, mu0 and P0 stay float32: they are small, or (P0) the inverse of a covariance, which
must stay positive definite for the fast weights to be stable.

References
----------
Symmetric int8 with a scale for each output row: Jacob et al., "Quantization and training of neural networks for
efficient integer-arithmetic-only inference" (2018), section 2, here for storage alone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import Tensor

from models.config import PredictorConfig
from models.pretrained import MANIFEST_FILE, WEIGHTS_FILE, PooledTail, PooledTails, Weights, write_files

Form = Literal["bf16", "int8"]
PACKED = "tidewatch-packed/1"
LARGEST, LEAST_SCALE = 127.0, 1e-30
NETWORK, SCALE = "network.", ".scale"


def narrowed(weights: Weights, form: Form) -> Weights:
    """The weights as they are after a trip through the stored form, float32."""
    network = {name: _widened(*_narrow(t, form)) for name, t in weights.network.items()}
    return replace(weights, network=network)


def save_packed(weights: Weights, folder: Path, form: Form) -> None:
    """Write weights that :func:`narrowed` made into ``folder``, creating it; :func:`load_weights` reads them.

    Raises
    ------
    ValueError
        They would change on their way through the stored form.
    """
    if narrowed(weights, form).fingerprint() != weights.fingerprint():
        raise ValueError(f"these weights have not been narrowed to {form}")
    tensors: dict[str, Tensor] = {"mu0": weights.mu0, "P0": weights.P0}
    for name, tensor in weights.network.items():
        stored, scale = _narrow(tensor, form)
        tensors[NETWORK + name] = stored
        if scale is not None:
            tensors[NETWORK + name + SCALE] = scale
    write_files(weights, folder, tensors, format=PACKED, form=form)


def load_weights(folder: Path) -> Weights:
    """The weights in a folder, packed or not.

    Raises
    ------
    ValueError
        As :meth:`models.pretrained.Weights.load` does.
    """
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text())
        content = (folder / WEIGHTS_FILE).read_bytes()
    except (OSError, ValueError):
        return Weights.load(folder)  # which says what is wrong
    if not isinstance(manifest, dict) or manifest.get("format") != PACKED:
        return Weights.load(folder)
    if hashlib.sha256(content).hexdigest() != manifest.get("sha256"):
        raise ValueError(f"{folder}/{WEIGHTS_FILE} is damaged: its digest is not the manifest's")
    try:
        stored = parse_safetensors(content)
        network = {
            name.removeprefix(NETWORK): _widened(tensor, stored.get(name + SCALE))
            for name, tensor in stored.items()
            if name.startswith(NETWORK) and not name.endswith(SCALE)
        }
        pooled = PooledTails(**{kind: PooledTail(**tail) for kind, tail in manifest["pooled"].items()})
        predictor, about = PredictorConfig(**manifest["predictor"]), dict(manifest["about"])
        weights = Weights(predictor, network, stored["mu0"], stored["P0"], pooled, about)
        weights.build()
    except (SafetensorError, KeyError, TypeError, RuntimeError) as exc:
        raise ValueError(f"{folder}: not a complete set of weights: {exc!r}") from exc
    if weights.fingerprint() != manifest.get("fingerprint"):
        raise ValueError(f"{folder}: the content is not that of the weights that its manifest names")
    if not all(bool(torch.isfinite(t).all()) for t in (weights.mu0, weights.P0, *network.values())):
        raise ValueError(f"{folder}: weights are not finite")
    return weights


def form_of(folder: Path) -> Form | None:
    """In which form the weights in a folder that :func:`load_weights` reads are stored; None for float32."""
    form: Form | None = json.loads((folder / MANIFEST_FILE).read_text()).get("form")
    return form


def _narrow(tensor: Tensor, form: Form) -> tuple[Tensor, Tensor | None]:
    """A tensor as it is stored, and the scales of its rows; vectors stay as they are."""
    if tensor.dim() < 2:
        return tensor, None
    if form == "bf16":
        return tensor.to(torch.bfloat16), None
    rows = tensor.flatten(1)
    # A power of two: widening is exact then, and what was narrowed once is not changed by narrowing it again.
    scale = torch.exp2(torch.ceil(torch.log2((rows.abs().amax(1) / LARGEST).clamp_min(LEAST_SCALE))))
    return torch.round(rows / scale.unsqueeze(1)).clamp(-LARGEST, LARGEST).to(torch.int8).view_as(tensor), scale


def _widened(stored: Tensor, scale: Tensor | None) -> Tensor:
    wide = stored.float()
    return wide if scale is None else (wide.flatten(1) * scale.unsqueeze(1)).view_as(wide)
