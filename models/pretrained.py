"""A predictor's weights with what ships beside them: preconditioner, pooled tails and a manifest. Nothing is pickled.

A folder holds ``weights.safetensors`` (network, mu0, P0) and ``manifest.json`` (predictor, pooled tails, digest of the
weights file, and whatever training wants to say about itself).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from models.config import PredictorConfig
from models.families import build, hidden_width
from models.features import INPUTS
from models.predictor import Network

FORMAT = "tidewatch-weights/1"
WEIGHTS_FILE = "weights.safetensors"
MANIFEST_FILE = "manifest.json"
BUILTIN = ("gru", "lstm", "gru32")
_BUILTIN_FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True, slots=True)
class PooledTail:
    """Where a kind of evidence starts on a stream without a past (:mod:`models.tail`).

    Attributes
    ----------
    level
        The 95 % quantile q; 0.01 for S.
    rate
        Clusters above q per observation; for S, R: n times the rate of S > 0.01 on the n-th observation.
    beta
        Mean of ln(s / q) over cluster peaks; of ln(S / 0.01) over exceedances for S.
    """

    level: float
    rate: float
    beta: float


@dataclass(frozen=True, slots=True)
class PooledTails:
    """Pooled tails of every kind of evidence; the defaults serve random weights and are replaced by pretraining.

    ``level`` is of S; ``short_activity``, ``activity`` and ``long_activity`` of A over 5, 20 and 60 observations;
    ``displacement`` and ``stillness`` of themselves;
    ``entity`` of s, ``entity_mean`` and ``entity_rms`` of s over 10,
    ``entity_displacement`` of ew(q, 10); ``values``, ``residuals`` and ``means`` of T^2 / F.
    """

    level: PooledTail = PooledTail(0.01, 5.0, 1.4)
    short_activity: PooledTail = PooledTail(1.9, 0.01, 0.3)
    activity: PooledTail = PooledTail(1.7, 0.004, 0.3)
    long_activity: PooledTail = PooledTail(1.5, 0.002, 0.3)
    displacement: PooledTail = PooledTail(2.5, 0.004, 0.5)
    stillness: PooledTail = PooledTail(1.0, 0.004, 0.5)
    entity: PooledTail = PooledTail(4.0, 0.015, 0.3)
    entity_mean: PooledTail = PooledTail(2.8, 0.005, 0.3)
    entity_rms: PooledTail = PooledTail(3.0, 0.005, 0.3)
    entity_displacement: PooledTail = PooledTail(2.5, 0.005, 0.3)
    values: PooledTail = PooledTail(3.8, 0.008, 0.3)
    residuals: PooledTail = PooledTail(1.6, 0.005, 0.3)
    means: PooledTail = PooledTail(6.0, 0.005, 0.3)


@dataclass(frozen=True, slots=True)
class Weights:
    """All that a fold takes from training.

    Attributes
    ----------
    predictor
        What to build.
    network
        State dict of a :class:`models.predictor.Network`, float32 on the CPU.
    mu0, P0
        Mean ``(H + 12,)`` and preconditioner ``(H + 12, H + 12)`` of phi = [h, input] for the fast weights.
    pooled
        Pooled tails.
    manifest
        JSON object with what training says about itself; not part of the fingerprint.
    """

    predictor: PredictorConfig
    network: dict[str, Tensor]
    mu0: Tensor
    P0: Tensor
    pooled: PooledTails = PooledTails()
    manifest: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def random(cls, predictor: PredictorConfig, seed: int = 0) -> Weights:
        """An untrained network with the preconditioner that its own random features have on noise."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = build(predictor)
            inputs = torch.randn(64, 64, network.input_width)
            with torch.no_grad():
                hidden, _ = network(inputs)
            phi = torch.cat((hidden, inputs[..., :INPUTS]), -1).flatten(0, 1)
        mu0, p0 = preconditioner(phi)
        return cls(predictor, {k: v.detach().clone() for k, v in network.state_dict().items()}, mu0, p0)

    def build(self) -> Network:
        """The network with these weights, in evaluation mode, without gradients."""
        network = build(self.predictor)
        network.load_state_dict(self.network)
        return network.eval().requires_grad_(False)

    def fingerprint(self) -> str:
        """Twelve hex digits of everything that enters the fold."""
        digest = hashlib.sha256(_canonical(self.description()).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    def save(self, folder: Path) -> None:
        """Write both files into ``folder``, creating it; a write that fails leaves what was there."""
        write_files(self, folder, self._tensors())

    @classmethod
    def load(cls, folder: Path) -> Weights:
        """Read what :meth:`save` wrote.

        Raises
        ------
        ValueError
            Files are missing, truncated, damaged, not ours, hold non-finite numbers, or do not fit the predictor they
            name; the text says which.
        """
        try:
            content = (folder / WEIGHTS_FILE).read_bytes()
            manifest = json.loads((folder / MANIFEST_FILE).read_text())
        except OSError as exc:
            raise ValueError(f"{folder}: cannot read weights: {exc}") from exc
        except ValueError as exc:
            raise ValueError(f"{folder}/{MANIFEST_FILE} is not JSON: {exc}") from exc
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ValueError(f"{folder}/{MANIFEST_FILE} does not say format {FORMAT!r}")
        if hashlib.sha256(content).hexdigest() != manifest.get("sha256"):
            raise ValueError(f"{folder}/{WEIGHTS_FILE} is damaged: its digest is not the manifest's")
        try:
            tensors = parse_safetensors(content)
            predictor = PredictorConfig(**manifest["predictor"])
            pooled = PooledTails(**{kind: PooledTail(**tail) for kind, tail in manifest["pooled"].items()})
            about = dict(manifest["about"])
        except (SafetensorError, KeyError, TypeError) as exc:
            raise ValueError(f"{folder}: not a complete set of weights: {exc!r}") from exc
        _check(folder, predictor, tensors)
        network = {name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")}
        return cls(predictor, network, tensors["mu0"], tensors["P0"], pooled, about)

    def description(self) -> dict[str, Any]:
        """What of the manifest enters the fold."""
        pooled = asdict(self.pooled)
        if self.pooled.means == PooledTails().means:  # came later: weights from before it keep their name
            del pooled["means"]
        return {"predictor": self.predictor.to_dict(), "pooled": pooled}

    def _tensors(self) -> dict[str, Tensor]:
        return {"mu0": self.mu0, "P0": self.P0, **{f"network.{name}": t for name, t in self.network.items()}}


def write_files(weights: Weights, folder: Path, tensors: dict[str, Tensor], **stored: str) -> None:
    """Write tensors and the manifest of ``weights`` into ``folder``, creating it; ``stored`` says in which form.

    Both files are whole beside the old ones before they take their places: a full disk costs nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = to_safetensors({name: t.contiguous() for name, t in tensors.items()})
    manifest = {
        "format": FORMAT,
        **weights.description(),
        "sha256": hashlib.sha256(content).hexdigest(),
        "fingerprint": weights.fingerprint(),
        "about": weights.manifest,
        **stored,
    }
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    drafts = {folder / f".{name}.draft": folder / name for name in (WEIGHTS_FILE, MANIFEST_FILE)}
    try:
        for draft, written in zip(drafts, (content, text.encode()), strict=True):
            draft.write_bytes(written)
        for draft, place in drafts.items():
            draft.replace(place)
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)


def builtin(name: str) -> Weights:
    """The weights that ship with the package.

    Raises
    ------
    ValueError
        There are none of that name.
    """
    if name not in BUILTIN:
        raise ValueError(f"no built-in weights {name!r}; there are {', '.join(BUILTIN)}")
    return Weights.load(_BUILTIN_FOLDER / name)


def preconditioner(phi: Tensor) -> tuple[Tensor, Tensor]:
    """mu0 and P0 of features ``phi`` ``(n, H + 12)``: mean, and inverse of (covariance + 1e-4 I)."""
    phi = phi.double()
    covariance = torch.cov(phi.T) + 1e-4 * torch.eye(phi.shape[1], dtype=torch.float64)
    inverse = torch.linalg.inv(covariance)
    return phi.mean(0).float(), (0.5 * (inverse + inverse.T)).float()


def _check(folder: Path, predictor: PredictorConfig, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that are not finite float32 of the names and shapes that ``predictor`` needs."""
    try:
        wanted = {f"network.{name}": tuple(t.shape) for name, t in build(predictor).state_dict().items()}
    except (RuntimeError, TypeError, ValueError) as exc:
        raise ValueError(f"{folder}: impossible predictor {predictor}: {exc}") from exc
    width = hidden_width(predictor) + INPUTS
    wanted |= {"mu0": (width,), "P0": (width, width)}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if found != wanted:
        odd = sorted(found.items() ^ wanted.items())
        raise ValueError(f"{folder}: tensors do not fit {predictor}: {odd}")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{folder}: {name} is not finite float32")


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
