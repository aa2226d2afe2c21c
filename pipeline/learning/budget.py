"""The learner's share of time: learning may take so much of a core, whatever there is to learn."""

from __future__ import annotations

from collections.abc import Callable

SAVED_S = 20.0
"""Most time that may be saved up while there is nothing to learn."""


class Budget:
    """Time to spend, earned as the clock runs.

    Parameters
    ----------
    monotonic
        Seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._at_s = monotonic()
        self._balance_s = 1.0

    def earn(self, share: float) -> None:
        """Add ``share`` of the time since the last call."""
        now = self._monotonic()
        self._balance_s = min(SAVED_S, self._balance_s + share * (now - self._at_s))
        self._at_s = now

    def spend(self, seconds: float) -> None:
        """Take what learning took; a long update is paid back before the next one."""
        self._balance_s -= seconds

    @property
    def is_left(self) -> bool:
        """Whether there is time to spend."""
        return self._balance_s > 0
