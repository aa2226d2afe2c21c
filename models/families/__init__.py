"""Every family of predictors behind one protocol, :class:`models.predictor.Network`.

The recurrent ones are in models/predictor.py; the bidirectional smoother in models/smoother.py is no ``Network``: it
reads the future.
"""

from __future__ import annotations

from models.config import PredictorConfig
from models.families.convolution import ConvolutionRecurrent, Tdnn
from models.families.linear import Autoregression, LastValueNetwork
from models.families.markov import GaussianMarkov
from models.families.sequence import SequenceToSequence
from models.predictor import Network, Predictor

MAX_LAYERS = 4
LAYERED = ("rnn", "gru", "lstm", "tdnn", "conv", "seq2seq")
FAMILIES: dict[str, type[Network]] = {
    "rnn": Predictor,
    "gru": Predictor,
    "lstm": Predictor,
    "tdnn": Tdnn,
    "conv": ConvolutionRecurrent,
    "seq2seq": SequenceToSequence,
    "hmm": GaussianMarkov,
    "ar": Autoregression,
    "naive": LastValueNetwork,
}


def build(config: PredictorConfig) -> Network:
    """A network with first weights from torch's generator.

    Raises
    ------
    ValueError
        The family is unknown or cannot be served, or its sizes are impossible.
    """
    _refuse_impossible(config)
    return FAMILIES[config.cell](config)


def state_width(config: PredictorConfig) -> int:
    """Numbers of state per sequence that a stream's row carries. Raises ValueError as :func:`build` does."""
    return sizes(config)[0]


def hidden_width(config: PredictorConfig) -> int:
    """Numbers that a stream's own read-out sees beside the inputs. Raises ValueError as :func:`build` does."""
    return sizes(config)[1]


def sizes(config: PredictorConfig) -> tuple[int, int]:
    """State width and hidden width; builds nothing."""
    _refuse_impossible(config)
    return FAMILIES[config.cell].sizes(config)


def _refuse_impossible(config: PredictorConfig) -> None:
    if config.cell == "smoother":
        raise ValueError("a smoother reads the future of what it scores: it re-scores recordings and is never served")
    if config.cell not in FAMILIES:
        raise ValueError(f"no family of predictors {config.cell!r}; there are {', '.join(FAMILIES)}")
    most = MAX_LAYERS if config.cell in LAYERED else 1
    if not 1 <= config.layers <= most:
        raise ValueError(f"{config.cell} takes 1 to {most} layers, not {config.layers}")
    if config.hidden < 1 or config.kernel < 1 or config.features < 1:
        raise ValueError(f"hidden, kernel and features must be at least 1: {config}")
