"""Sequence to sequence: an encoder whose state is carried, and a decoder that forecasts horizon after horizon.

The decoder starts from the encoder's last layer and takes one step for each of the horizons 1, 2, 4, 8, 16, 32; it is
fed its own last forecast. It is run anew at every observation and leaves no state, so a stream carries the encoder's
only.

References
----------
Sutskever et al., "Sequence to sequence learning with neural networks" (2014). One decoder step for each horizon instead
of one for each observation ahead: forecasts of 4 and 8 cost 4 steps instead of 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.config import PredictorConfig
from models.features import INPUTS
from models.predictor import (
    COMPONENTS,
    HORIZONS,
    LOG_SCALE_RANGE,
    SERVED,
    Cells,
    Mixture,
    Network,
    Served,
    point_forecast,
    recurrent_step,
    run_window,
    serving_cells,
)


class SequenceToSequence(Network):
    """A GRU encoder of L layers and a GRU decoder of one."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__(config)
        self.rnn = nn.GRU(self.input_width, config.hidden, config.layers)
        self.decoder = nn.GRUCell(self.features, config.hidden)
        self.head = nn.Linear(config.hidden + self.input_width, self.features * 3 * COMPONENTS)

    @staticmethod
    def sizes(config: PredictorConfig) -> tuple[int, int]:
        """L x H of the encoder; H."""
        return config.layers * config.hidden, config.hidden

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run whole windows (see :meth:`Network.forward`)."""
        if state is None:
            state = self.initial_state(inputs.shape[1])
        return run_window(self.rnn, inputs, state)

    def mixtures(self, hidden: Tensor, inputs: Tensor) -> Mixture:
        """See :meth:`Network.mixtures`."""
        lead = hidden.shape[:-1]
        flat = inputs.reshape(-1, self.input_width)
        raw = self.decoded(hidden.reshape(-1, hidden.shape[-1]), flat, len(HORIZONS))
        raw = raw if self.features > 1 else raw.squeeze(1)
        logits, location, log_scale = raw.view(*lead, *raw.shape[1:]).unbind(-2)
        return Mixture(logits, location, log_scale.clamp(*LOG_SCALE_RANGE))

    def decoded(self, hidden: Tensor, inputs: Tensor, steps: int) -> Tensor:
        """Raw numbers ``(B, F, steps, 3, 3)`` of the first horizons, from hidden ``(B, H)`` and inputs ``(B, I)``."""
        # What is fed first is the present value: asinh z, the first input of each feature.
        fed, made = inputs[:, ::INPUTS], []
        for _ in range(steps):
            hidden = self.decoder(fed, hidden)
            raw = self.head(torch.cat((hidden, inputs), 1)).view(-1, self.features, 3, COMPONENTS)
            fed = (torch.softmax(raw[:, :, 0], -1) * raw[:, :, 1]).sum(-1)
            made.append(raw)
        return torch.stack(made, 2)

    def serving(self) -> Served:
        """Encoder cells as contiguous matrices; the decoder as it is."""
        return ServedSequence(serving_cells(self.rnn), self)


@dataclass(frozen=True, slots=True)
class ServedSequence:
    """The encoder arranged for steps, and the network for its decoder."""

    cells: Cells
    network: SequenceToSequence

    def advance(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`models.predictor.Served`."""
        return recurrent_step(self.cells, inputs, state)

    def forecast(self, hidden: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`models.predictor.Served`; only as many decoder steps as horizon 8 needs."""
        places = [HORIZONS.index(k) for k in SERVED]
        raw = self.network.decoded(hidden, inputs.t(), places[-1] + 1)
        raw = raw.flatten(0, 1).permute(1, 2, 3, 0)
        first, four, eight = (raw[place] for place in places)
        scale = torch.exp(-first[2].clamp(*LOG_SCALE_RANGE))
        one = torch.cat((torch.softmax(first[0], 0), first[1], scale))
        return one, point_forecast(four[0], four[1]), point_forecast(eight[0], eight[1])
