"""The life of a role beside the workers: at work until a signal asks for its end; servers may come and go."""

from __future__ import annotations

import logging
from collections.abc import Callable

from pipeline.errors import OffsetsGone, TransientError
from pipeline.health import Health
from pipeline.stopping import Stopping

logger = logging.getLogger(__name__)

RETRY_S = 2.0


def serve(work: Callable[[], None], health: Health, stopping: Stopping) -> None:
    """Work, and begin anew where the other side was away or has forgotten what was to be read.

    Parameters
    ----------
    work
        Opens what it needs and returns once the end is asked for; what it raises, waiting apart, ends the process.
    """
    while not stopping.is_asked:
        try:
            work()
        except TransientError as error:
            logger.warning("waiting for %s: %s", error.server, error)
            health.set_ready(False, f"waiting for {error.server}: {error}")
            stopping.wait(RETRY_S)
        except OffsetsGone as error:
            logger.info("opening again where the log begins now: %s", error)
            stopping.wait(RETRY_S)
