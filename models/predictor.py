"""The recurrent predictors, in the order data flows: inputs, cells, mixture head (docs/score.md, "Predictor").

:class:`Network` is the protocol of all families (the others are in models/families). ``forward`` takes whole windows
and is what training uses; ``step`` takes one observation and is what serving uses. They agree
(tests/models/test_families.py). The state is an explicit argument and result of both.

Shapes: B batch, T time, F features (1 unless ``scope="stream"``), L layers, H hidden, I = 12 F inputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.config import PredictorConfig
from models.features import INPUTS

HORIZONS = (1, 2, 4, 8, 16, 32)
COMPONENTS = 3
LOG_SCALE_RANGE = (-4.5, 2.5)
FORECAST_LIMIT = 50.0


@dataclass(frozen=True, slots=True)
class Mixture:
    """A mixture of three logistics over asinh((x - m) / sigma); each tensor ends in an axis of 3 components."""

    logits: Tensor
    location: Tensor
    log_scale: Tensor

    def log_prob(self, u: Tensor) -> Tensor:
        """Log density at ``u`` (the shape of a component's tensors without the last axis).

        References
        ----------
        Mixture of logistics: Salimans et al., "PixelCNN++" (2017), section 2.1, here continuous.
        """
        standard = (u.unsqueeze(-1) - self.location) * torch.exp(-self.log_scale)
        log_density = -standard - self.log_scale - 2.0 * functional.softplus(-standard)
        return torch.logsumexp(functional.log_softmax(self.logits, -1) + log_density, -1)

    def point(self) -> Tensor:
        """Point forecast B = sinh(sum of weight x location), within 50, in units of (m, sigma)."""
        centre = (torch.softmax(self.logits, -1) * self.location).sum(-1)
        return torch.sinh(centre).clamp(-FORECAST_LIMIT, FORECAST_LIMIT)


class Served(Protocol):
    """A network arranged once for serving: pure functions of tensors that write into none of their arguments."""

    def advance(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One observation: inputs ``(B, I)`` and state to hidden ``(B, H)`` and the next state ``(B, state_width)``."""
        ...

    def forecast(self, hidden: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From hidden ``(B, H)`` and inputs ``(I, B)`` to the served forecasts.

        Returns
        -------
        mixture
            ``(9, B x F)``: weights, locations and inverse scales of the one-step mixture.
        four, eight
            ``(B x F,)`` point forecasts B_4 and B_8, in units of (m, sigma).
        """
        ...


class Network(nn.Module, ABC):
    """What every family of predictors is: state in, window in; hidden state for the read-out, state out.

    ``hidden`` is what a stream's own read-out sees beside the inputs; ``state`` is all that is carried from one
    observation to the next. A state of zeros is that of a sequence without a past.

    Parameters
    ----------
    config
        What to build. With ``scope="stream"`` one network sees the inputs of all F features side by side and
        forecasts each of them.

    Attributes
    ----------
    is_adaptive
        Whether each stream may correct the forecasts by fast weights.
    """

    is_adaptive = True

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        self.features = config.features if config.scope == "stream" else 1
        self.input_width = INPUTS * self.features
        self.register_buffer("_zero", torch.zeros(()), persistent=False)

    @staticmethod
    @abstractmethod
    def sizes(config: PredictorConfig) -> tuple[int, int]:
        """State width and hidden width: numbers that a sequence carries, and numbers that its read-out sees."""

    @property
    def state_width(self) -> int:
        """Numbers of state per sequence."""
        return self.sizes(self.config)[0]

    @property
    def hidden_width(self) -> int:
        """Numbers that the read-out sees beside the inputs."""
        return self.sizes(self.config)[1]

    def initial_state(self, batch: int) -> Tensor:
        """The state ``(B, state_width)`` of sequences without a past: zeros."""
        return self.get_buffer("_zero").new_zeros(batch, self.state_width)

    @abstractmethod
    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run whole windows.

        Parameters
        ----------
        inputs
            ``(T, B, I)``.
        state
            ``(B, state_width)``, or None for zeros.

        Returns
        -------
        hidden
            ``(T, B, H)`` after each observation.
        state
            ``(B, state_width)`` after the last one.
        """

    @abstractmethod
    def mixtures(self, hidden: Tensor, inputs: Tensor) -> Mixture:
        """Forecast distributions of all horizons: tensors ``(..., F, 6, 3)``, without the F axis for one feature."""

    @abstractmethod
    def serving(self) -> Served:
        """The same network, arranged for one observation at a time."""

    def step(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One observation: inputs ``(B, I)`` and state to hidden ``(B, H)`` and the next state; writes into neither."""
        return self.serving().advance(inputs, state)


class Predictor(Network):
    """Tanh RNN, GRU or LSTM with a linear head on [h, input] for six horizons.

    References
    ----------
    Tanh RNN: Elman (1990). GRU: Cho et al. (2014), in the form of torch.nn.GRU (reset gate after the product). LSTM:
    Hochreiter and Schmidhuber (1997), with the forget gate of Gers et al. (2000).
    """

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__(config)
        families: dict[str, type[nn.RNN | nn.GRU | nn.LSTM]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
        if config.cell not in families:
            raise ValueError(f"{config.cell!r} is no recurrent cell; there are {', '.join(families)}")
        self.rnn: nn.RNNBase = families[config.cell](self.input_width, config.hidden, config.layers)
        self.head = mixture_head(config.hidden + self.input_width, self.features)

    @staticmethod
    def sizes(config: PredictorConfig) -> tuple[int, int]:
        """L x H, twice that for an LSTM; H."""
        return config.layers * config.hidden * (2 if config.cell == "lstm" else 1), config.hidden

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run whole windows (see :meth:`Network.forward`); hidden is that of the last layer."""
        if state is None:
            state = self.initial_state(inputs.shape[1])
        return run_window(self.rnn, inputs, state)

    def mixtures(self, hidden: Tensor, inputs: Tensor) -> Mixture:
        """Forecast distributions of all horizons: tensors ``(..., F, 6, 3)``, without the F axis for one feature."""
        return split_mixture(self.head(torch.cat((hidden, inputs), -1)), self.features)

    def serving(self) -> Served:
        """Cells and head as contiguous matrices."""
        return ServedRecurrent(serving_cells(self.rnn), serving_head(self.head, self.features))


def mixture_head(width: int, features: int) -> nn.Linear:
    """A linear read-out of the mixtures of six horizons for each feature."""
    return nn.Linear(width, features * len(HORIZONS) * 3 * COMPONENTS)


def split_mixture(raw: Tensor, features: int) -> Mixture:
    """The numbers of :func:`mixture_head` as distributions."""
    shape = (len(HORIZONS), 3, COMPONENTS) if features == 1 else (features, len(HORIZONS), 3, COMPONENTS)
    logits, location, log_scale = raw.view(*raw.shape[:-1], *shape).unbind(-2)
    return Mixture(logits, location, log_scale.clamp(*LOG_SCALE_RANGE))


def run_window(rnn: nn.RNNBase, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """A whole window through torch's own cells: inputs ``(T, B, I)`` and state to hidden ``(T, B, H)`` and state."""
    batch = inputs.shape[1]
    parts = state.view(batch, -1, rnn.num_layers, rnn.hidden_size).permute(1, 2, 0, 3).contiguous()
    if not isinstance(rnn, nn.LSTM):
        hidden, h = rnn(inputs, parts[0])
        return hidden, h.permute(1, 0, 2).reshape(batch, -1)
    hidden, (h, c) = rnn(inputs, (parts[0], parts[1]))
    return hidden, torch.stack((h, c)).permute(2, 0, 1, 3).reshape(batch, -1)


@dataclass(frozen=True, slots=True)
class RnnCell:
    """One layer's weights, transposed for ``addmm``."""

    inputs: Tensor
    hidden: Tensor
    bias: Tensor

    @property
    def width(self) -> int:
        """H."""
        return self.hidden.shape[0]

    def __call__(self, inputs: Tensor, h: Tensor) -> Tensor:
        """The next hidden state ``(B, H)``: tanh(W x + U h + b)."""
        return torch.addmm(self.bias, inputs, self.inputs).addmm_(h, self.hidden).tanh_()


@dataclass(frozen=True, slots=True)
class GruCell:
    """One layer's weights, transposed for ``addmm``: gates r, z together and the candidate's two halves apart."""

    input_gates: Tensor
    hidden_gates: Tensor
    gates_bias: Tensor
    input_candidate: Tensor
    input_bias: Tensor
    hidden_candidate: Tensor
    hidden_bias: Tensor

    @property
    def width(self) -> int:
        """H."""
        return self.hidden_candidate.shape[0]

    def __call__(self, inputs: Tensor, h: Tensor) -> Tensor:
        """The next hidden state ``(B, H)``."""
        gates = torch.addmm(self.gates_bias, inputs, self.input_gates).addmm_(h, self.hidden_gates).sigmoid_()
        reset, update = gates.chunk(2, 1)
        recurrent = torch.addmm(self.hidden_bias, h, self.hidden_candidate).mul_(reset)
        candidate = torch.addmm(self.input_bias, inputs, self.input_candidate).add_(recurrent).tanh_()
        return torch.lerp(candidate, h, update)


@dataclass(frozen=True, slots=True)
class LstmCell:
    """One layer's weights, transposed for ``addmm``; gates in torch's order i, f, g, o."""

    inputs: Tensor
    hidden: Tensor
    bias: Tensor

    @property
    def width(self) -> int:
        """H."""
        return self.hidden.shape[0]

    def __call__(self, inputs: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The next hidden and cell state, ``(B, H)`` each."""
        gates = torch.addmm(self.bias, inputs, self.inputs).addmm_(h, self.hidden)
        write, keep, value, show = gates.chunk(4, 1)
        c = torch.sigmoid(keep).mul_(c).addcmul_(torch.sigmoid(write), torch.tanh(value))
        return torch.sigmoid(show).mul_(torch.tanh(c)), c


Cells = tuple[RnnCell | GruCell | LstmCell, ...]


def serving_cells(rnn: nn.RNNBase) -> Cells:
    """The recurrent weights, arranged once for :func:`recurrent_step`."""
    split = 2 * rnn.hidden_size
    cells: list[RnnCell | GruCell | LstmCell] = []
    for layer in range(rnn.num_layers):
        w_i, w_h, b_i, b_h = (
            getattr(rnn, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        if not isinstance(rnn, nn.GRU):
            kind = LstmCell if isinstance(rnn, nn.LSTM) else RnnCell
            cells.append(kind(w_i.t().contiguous(), w_h.t().contiguous(), b_i + b_h))
            continue
        cells.append(
            GruCell(
                w_i[:split].t().contiguous(),
                w_h[:split].t().contiguous(),
                b_i[:split] + b_h[:split],
                w_i[split:].t().contiguous(),
                b_i[split:],
                w_h[split:].t().contiguous(),
                b_h[split:],
            )
        )
    return tuple(cells)


def recurrent_step(cells: Cells, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One observation of B sequences: hidden ``(B, H)`` of the last layer and the next state ``(B, state_width)``."""
    below = inputs
    h_parts: list[Tensor] = []
    c_parts: list[Tensor] = []
    width = cells[0].width
    for layer, cell in enumerate(cells):
        h = state[:, layer * width : (layer + 1) * width]
        if not isinstance(cell, LstmCell):
            below = cell(below, h)
        else:
            below, c = cell(below, h, state[:, (len(cells) + layer) * width : (len(cells) + layer + 1) * width])
            c_parts.append(c)
        h_parts.append(below)
    parts = h_parts + c_parts
    return below, parts[0] if len(parts) == 1 else torch.cat(parts, 1)


SERVED = (1, 4, 8)


@dataclass(frozen=True, slots=True)
class ServingHead:
    """The head's rows that serving needs: the mixture for k = 1, weights and locations for k = 4 and 8.

    Works on transposed tensors: ``on_hidden`` (F x 21, H) and ``on_inputs`` (F x 21, I).
    """

    on_hidden: Tensor
    on_inputs: Tensor
    bias: Tensor
    features: int

    def __call__(self, hidden: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From hidden ``(B, H)`` and inputs ``(I, B)`` to the served forecasts.

        Returns
        -------
        mixture
            ``(9, B x F)``: weights, locations and inverse scales of the one-step mixture.
        four, eight
            ``(B x F,)`` point forecasts B_4 and B_8, in units of (m, sigma).
        """
        raw = torch.addmm(self.bias, self.on_hidden, hidden.t()).addmm_(self.on_inputs, inputs)
        if self.features > 1:
            raw = raw.view(self.features, -1, raw.shape[1]).permute(1, 2, 0).reshape(raw.shape[0] // self.features, -1)
        mixture = raw[:9]
        mixture[:3] = torch.softmax(mixture[:3], 0)
        mixture[6:9].clamp_(*LOG_SCALE_RANGE).neg_().exp_()
        return mixture, point_forecast(raw[9:12], raw[12:15]), point_forecast(raw[15:18], raw[18:21])


def point_forecast(logits: Tensor, location: Tensor) -> Tensor:
    """B = sinh(sum of weight x location), within 50; component axis first."""
    centre = (torch.softmax(logits, 0) * location).sum(0)
    return torch.sinh(centre).clamp_(-FORECAST_LIMIT, FORECAST_LIMIT)


def serving_head(head: nn.Linear, features: int) -> ServingHead:
    """The served rows of a mixture head, arranged once for :class:`ServingHead`."""
    hidden = head.in_features - INPUTS * features
    per_feature = len(HORIZONS) * 3 * COMPONENTS
    rows: list[int] = []
    for feature in range(features):
        for k in SERVED:
            first = feature * per_feature + HORIZONS.index(k) * 3 * COMPONENTS
            rows.extend(range(first, first + (9 if k == 1 else 6)))
    weight, bias = head.weight[rows], head.bias[rows]
    return ServingHead(weight[:, :hidden].contiguous(), weight[:, hidden:].contiguous(), bias.unsqueeze(1), features)


@dataclass(frozen=True, slots=True)
class ServedRecurrent:
    """Recurrent cells and a linear head."""

    cells: Cells
    head: ServingHead

    def advance(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Served`."""
        return recurrent_step(self.cells, inputs, state)

    def forecast(self, hidden: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`Served`."""
        return self.head(hidden, inputs)


def served_forecast(mixture: Mixture) -> tuple[Tensor, Tensor, Tensor]:
    """The forecasts of :meth:`Served.forecast` from distributions ``(B, F, 6, 3)`` or ``(B, 6, 3)``."""
    parts = (part.reshape(-1, len(HORIZONS), COMPONENTS) for part in (mixture.logits, mixture.location))
    logits, location = (part.permute(1, 2, 0) for part in parts)
    log_scale = mixture.log_scale.reshape(-1, len(HORIZONS), COMPONENTS)[:, 0].t()
    one = torch.cat((torch.softmax(logits[0], 0), location[0], torch.exp(-log_scale)))
    four, eight = (HORIZONS.index(k) for k in SERVED[1:])
    return one, point_forecast(logits[four], location[four]), point_forecast(logits[eight], location[eight])
