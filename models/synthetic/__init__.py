"""Generated series: the pretraining corpus, and plants and networks with labelled faults."""

from models.synthetic.faults import FAULT_KINDS, Fault, LabelledStream
from models.synthetic.networks import ATTACKS, NETWORK_FEATURES, network
from models.synthetic.plants import SENSORS, plant
from models.synthetic.series import FAMILIES, MONDAY_MS, Corpus, corpus, undisturbed

__all__ = [
    "ATTACKS",
    "FAMILIES",
    "FAULT_KINDS",
    "MONDAY_MS",
    "NETWORK_FEATURES",
    "SENSORS",
    "Corpus",
    "Fault",
    "LabelledStream",
    "corpus",
    "network",
    "plant",
    "undisturbed",
]
