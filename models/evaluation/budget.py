"""What other alarm budgets would have given: the decisions of serving, made again from the same scores.

The score never contains the controller, so one fold serves all budgets: only :func:`models.tail.decide` is repeated.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import numpy.typing as npt
import torch

from models.tail import ANOMALOUS, OPENED, AlertLife, decide

Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


@torch.inference_mode()
def alarms_at(
    scores: Float32, elapsed_s: Float32, observations_per_alarm: npt.NDArray[np.floating]
) -> tuple[Bool, Bool]:
    """Where alerts would have opened, and where the verdict would have been anomalous.

    Parameters
    ----------
    scores
        ``(T, N)`` rounded scores, NaN where there is none.
    elapsed_s
        ``(T, N)`` seconds since the stream's previous observation.
    observations_per_alarm
        ``(N,)``: the budget of each column.

    Returns
    -------
    opened, alarmed
        ``(T, N)`` bool.
    """
    steps, streams = scores.shape
    life = AlertLife(*(torch.zeros(streams) for _ in fields(AlertLife)))
    budget = torch.as_tensor(observations_per_alarm, dtype=torch.float32)
    score = torch.from_numpy(np.nan_to_num(scores, nan=0.0))
    scored = torch.from_numpy(~np.isnan(scores))
    elapsed = torch.from_numpy(np.ascontiguousarray(elapsed_s, np.float32))
    opened = torch.empty(steps, streams, dtype=torch.bool)
    alarmed = torch.empty(steps, streams, dtype=torch.bool)
    for t in range(steps):
        decision = decide(life, score[t], scored[t], elapsed[t], budget)
        life.count.add_(scored[t])
        torch.eq(decision.event, OPENED, out=opened[t])
        torch.eq(decision.verdict, ANOMALOUS, out=alarmed[t])
    return opened.numpy(), alarmed.numpy()
