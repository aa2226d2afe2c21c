"""Causal convolutions: a TDNN, and a convolutional front end before a GRU.

A convolution's state is its last inputs, oldest first; zeros are a past of zeros.

Shapes: B batch, T time, C channels in, H channels out, K kernel, D dilation, M = (K - 1) D remembered observations.

References
----------
TDNN: Waibel et al., "Phoneme recognition using time-delay neural networks" (1989). Dilation doubling with depth: van
den Oord et al., "WaveNet" (2016), section 2.1; the queues of its step: Le Paine et al., "Fast WaveNet generation"
(2016).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.config import PredictorConfig
from models.features import INPUTS
from models.predictor import (
    Cells,
    Mixture,
    Network,
    Served,
    ServingHead,
    mixture_head,
    recurrent_step,
    run_window,
    serving_cells,
    serving_head,
    split_mixture,
)


class CausalConvolution(nn.Module):
    """y_t = tanh(b + sum over j of W_j x_{t - j D}), j = 0 … K - 1.

    Parameters
    ----------
    channels, hidden, kernel, dilation
        C, H, K, D. The weights of the K taps lie side by side, oldest first, in one ``(H, K C)`` matrix.
    """

    def __init__(self, channels: int, hidden: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.taps = nn.Linear(kernel * channels, hidden)
        self.channels, self.kernel, self.dilation = channels, kernel, dilation

    @property
    def memory(self) -> int:
        """M, the earlier observations it needs."""
        return (self.kernel - 1) * self.dilation

    def forward(self, inputs: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Whole window: inputs ``(T, B, C)`` and memory ``(B, M C)`` to ``(T, B, H)`` and the memory after it."""
        steps, batch, channels = inputs.shape
        past = memory.view(batch, self.memory, channels).transpose(0, 1)
        known = torch.cat((past, inputs))
        taps = [known[j * self.dilation : j * self.dilation + steps] for j in range(self.kernel)]
        last = known[steps:].transpose(0, 1).reshape(batch, -1)
        return torch.tanh(self.taps(torch.cat(taps, -1))), last


@dataclass(frozen=True, slots=True)
class ServedConvolution:
    """One convolution for serving; ``taps`` is ``(K C, H)``."""

    taps: Tensor
    bias: Tensor
    channels: int
    dilation: int
    width: int

    @classmethod
    def of(cls, module: CausalConvolution) -> ServedConvolution:
        """The same weights, transposed once; ``width`` is M C, the numbers of its state."""
        weights = module.taps.weight.t().contiguous()
        return cls(weights, module.taps.bias, module.channels, module.dilation, module.memory * module.channels)

    def __call__(self, inputs: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """One observation: inputs ``(B, C)`` and memory ``(B, M C)`` to ``(B, H)`` and the next memory."""
        known = torch.cat((memory, inputs), 1)
        taps = known.view(inputs.shape[0], -1, self.channels)[:, :: self.dilation].reshape(inputs.shape[0], -1)
        return torch.addmm(self.bias, taps, self.taps).tanh_(), known[:, self.channels :]


class Tdnn(Network):
    """L causal convolutions, dilation 1, 2, 4, …, and a linear head on [last layer, input]."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(
            CausalConvolution(self.input_width if layer == 0 else config.hidden, config.hidden, config.kernel, 2**layer)
            for layer in range(config.layers)
        )
        self.head = mixture_head(config.hidden + self.input_width, self.features)

    @staticmethod
    def sizes(config: PredictorConfig) -> tuple[int, int]:
        """The last (K - 1) D inputs of every layer; H."""
        widths = [_channels(config), *(config.hidden for _ in range(config.layers - 1))]
        return sum((config.kernel - 1) * 2**layer * width for layer, width in enumerate(widths)), config.hidden

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run whole windows (see :meth:`Network.forward`)."""
        if state is None:
            state = self.initial_state(inputs.shape[1])
        parts, below, at = [], inputs, 0
        for layer in self.layers:
            assert isinstance(layer, CausalConvolution)
            width = layer.memory * layer.channels
            below, part = layer(below, state[:, at : at + width])
            parts.append(part)
            at += width
        return below, torch.cat(parts, 1)

    def mixtures(self, hidden: Tensor, inputs: Tensor) -> Mixture:
        """See :meth:`Network.mixtures`."""
        return split_mixture(self.head(torch.cat((hidden, inputs), -1)), self.features)

    def serving(self) -> Served:
        """Convolutions and head as contiguous matrices."""
        layers = tuple(ServedConvolution.of(layer) for layer in self.layers if isinstance(layer, CausalConvolution))
        return ServedTdnn(layers, serving_head(self.head, self.features))


@dataclass(frozen=True, slots=True)
class ServedTdnn:
    """Convolutions one above the other, and a linear head."""

    layers: tuple[ServedConvolution, ...]
    head: ServingHead

    def advance(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`models.predictor.Served`."""
        below, parts, at = inputs, [], 0
        for layer in self.layers:
            below, part = layer(below, state[:, at : at + layer.width])
            parts.append(part)
            at += layer.width
        return below, torch.cat(parts, 1)

    def forecast(self, hidden: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`models.predictor.Served`."""
        return self.head(hidden, inputs)


class ConvolutionRecurrent(Network):
    """One causal convolution of the inputs, a GRU of L layers on it, and a linear head on [h, input]."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__(config)
        self.front = CausalConvolution(self.input_width, config.hidden, config.kernel, 1)
        self.rnn = nn.GRU(config.hidden, config.hidden, config.layers)
        self.head = mixture_head(config.hidden + self.input_width, self.features)

    @staticmethod
    def sizes(config: PredictorConfig) -> tuple[int, int]:
        """The last K - 1 inputs, then L x H; H."""
        return (config.kernel - 1) * _channels(config) + config.layers * config.hidden, config.hidden

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run whole windows (see :meth:`Network.forward`)."""
        if state is None:
            state = self.initial_state(inputs.shape[1])
        split = self.front.memory * self.front.channels
        seen, memory = self.front(inputs, state[:, :split])
        hidden, h = run_window(self.rnn, seen, state[:, split:].contiguous())
        return hidden, torch.cat((memory, h), 1)

    def mixtures(self, hidden: Tensor, inputs: Tensor) -> Mixture:
        """See :meth:`Network.mixtures`."""
        return split_mixture(self.head(torch.cat((hidden, inputs), -1)), self.features)

    def serving(self) -> Served:
        """Convolution, cells and head as contiguous matrices."""
        head = serving_head(self.head, self.features)
        return ServedConvolutionRecurrent(ServedConvolution.of(self.front), serving_cells(self.rnn), head)


@dataclass(frozen=True, slots=True)
class ServedConvolutionRecurrent:
    """A convolution, recurrent cells and a linear head."""

    front: ServedConvolution
    cells: Cells
    head: ServingHead

    def advance(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`models.predictor.Served`."""
        seen, memory = self.front(inputs, state[:, : self.front.width])
        hidden, h = recurrent_step(self.cells, seen, state[:, self.front.width :])
        return hidden, torch.cat((memory, h), 1)

    def forecast(self, hidden: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`models.predictor.Served`."""
        return self.head(hidden, inputs)


def _channels(config: PredictorConfig) -> int:
    return INPUTS * (config.features if config.scope == "stream" else 1)
