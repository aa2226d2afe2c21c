"""The end of a long-running command: the first signal asks, the second insists."""

from __future__ import annotations

import logging
import signal
import time
from types import FrameType

logger = logging.getLogger(__name__)

SLICE_S = 0.1


class Stopping:
    """Set by the first SIGTERM or Ctrl-C; the second ends the process at once.

    Parameters
    ----------
    doing
        What is done on the way out, for the log.
    """

    def __init__(self, doing: str) -> None:
        self.is_asked = False
        self._doing = doing
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._asked)

    def wait(self, seconds: float) -> None:
        """Let time pass, until a signal comes."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.is_asked:
            signal.sigtimedwait([], SLICE_S)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.is_asked:
            raise SystemExit(128 + number)
        self.is_asked = True
        logger.info("stopping: %s; a second signal stops at once", self._doing)
