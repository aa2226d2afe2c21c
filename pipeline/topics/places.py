"""Places in a topic as people write them."""

from __future__ import annotations

from pipeline.epoch import parse_time
from pipeline.topics.base import Instant, Offset, Place


def parse_place(text: str) -> Place:
    """An offset, where it is a whole number, else a time.

    Raises
    ------
    ConfigurationError
        It is neither.
    """
    text = text.strip()
    return Offset(int(text)) if text.isdigit() else Instant(parse_time(text))
