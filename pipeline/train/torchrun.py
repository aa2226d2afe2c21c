"""Joining the processes that torchrun started: one on each GPU, or some on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.distributed as dist

from models.peers import Peers
from pipeline.errors import ConfigurationError

Device = Literal["auto", "cpu", "cuda"]


@contextmanager
def joined(wanted: Device) -> Iterator[Peers]:
    """The processes that learn together, and where this one learns; alone where torchrun did not start it.

    Raises
    ------
    ConfigurationError
        A GPU is wanted and there is none for this process.
    """
    has_gpu = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    is_alone = not dist.is_torchelastic_launched()
    local = 0 if is_alone else dist.get_node_local_rank()
    if has_gpu and local >= torch.cuda.device_count():
        raise ConfigurationError(
            f"process {local} of this machine wants a GPU of its own, and torch sees {torch.cuda.device_count()}; "
            "start fewer processes, or give --device cpu"
        )
    device = torch.device("cuda", local) if has_gpu else torch.device("cpu")
    if is_alone:
        yield Peers(device=device)
        return
    if has_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if has_gpu else "gloo")
    try:
        yield Peers(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()
