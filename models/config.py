"""Everything that enters a fold besides the weights, and everything that rebuilds a network from its weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

Evidence = Literal["single", "jump", "coupled"]
Cell = Literal["rnn", "gru", "lstm", "tdnn", "conv", "seq2seq", "hmm", "ar", "naive", "smoother"]
Scope = Literal["feature", "stream"]
HiddenOnSwap = Literal["carry", "reset"]

GAP_INTERVALS = 1.5
"""A gap is longer than so many intervals of the profile."""


@dataclass(frozen=True, slots=True)
class PredictorConfig:
    """What is needed to rebuild a network from a checkpoint.

    Parameters
    ----------
    cell
        The family: recurrent (``rnn``, ``gru``, ``lstm``), causal convolutions (``tdnn``), a convolution before a GRU
        (``conv``), encoder and decoder (``seq2seq``), Gaussian HMM filter (``hmm``), AR(p) (``ar``), last value
        (``naive``); ``smoother`` reads the future and is refused for serving.
    hidden
        H, the width of the hidden state; of an HMM the number of its states, of an AR(p) its order p.
    layers
        L, the number of stacked cells or convolutions, 1 to 4; 1 for families without layers.
    scope
        ``feature``: one network steps every feature of a stream on its own (hidden state ``(F, L, H)`` per stream);
        ``stream``: one network sees all features of a stream at once (hidden state ``(L, H)`` per stream).
    features
        F, only for ``scope="stream"``, where the input is ``12 F`` numbers wide; 1 otherwise.
    kernel
        Observations that a convolution sees; only for ``tdnn`` and ``conv``.
    """

    cell: Cell = "gru"
    hidden: int = 64
    layers: int = 1
    scope: Scope = "feature"
    features: int = 1
    kernel: int = 3

    def to_dict(self) -> dict[str, Any]:
        """What a manifest says of it; ``kernel`` only where it is not 3, so that older fingerprints hold."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "kernel" or self.kernel != f.default}


@dataclass(frozen=True, slots=True)
class FoldConfig:
    """The settings that enter the fold: changing one of them is a new version, as it changes scores.

    Parameters
    ----------
    features
        Names of the F features, in the order of a window's columns.
    interval_s
        Expected seconds between observations; ``None`` when the stream has no fixed interval.
    evidence
        Which kinds of evidence exist (``single``, ``jump``, ``coupled``; see docs/score.md).
    alarm_every_s
        The alarm budget: seconds of event time per stream in which one false alarm is allowed.
    idle_reset_s
        A gap longer than this between two observations of a stream starts a fresh row.
    clock
        Whether event times are clock times (UTC), so that times of day and week mean something.
    light
        The narrow row: no fast weights, no seasonal memory, gate on the frozen forecast.
    record_weight_p
        Weight of the record of P (docs/score.md, "Evidence: single"); 0 for very few false alarms.
    """

    features: tuple[str, ...]
    interval_s: float | None = None
    evidence: Evidence = "single"
    alarm_every_s: float = 604800.0
    idle_reset_s: float = 604800.0
    clock: bool = True
    light: bool = False
    record_weight_p: float = 0.4

    def to_json(self) -> str:
        """The settings as canonical JSON: equal settings give equal text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> FoldConfig:
        """The settings that :meth:`to_json` wrote."""
        raw: dict[str, Any] = json.loads(text)
        return replace(cls(**raw), features=tuple(raw["features"]))

    def fingerprint(self) -> str:
        """Sixteen hex digits that name these settings."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]
