"""What a process logs: a line for each event on stderr, and no flood where a server is away."""

from __future__ import annotations

import logging
import math
from datetime import UTC, datetime

REPEAT_S, MAX_REPEATS = 60.0, 1000


class KeyValueFormatter(logging.Formatter):
    """One line for each event: ``time=… level=… at=… message="…"``."""

    def __init__(self, with_traceback: bool) -> None:
        super().__init__()
        self._with_traceback = with_traceback

    def format(self, record: logging.LogRecord) -> str:
        """Write one event; an exception's traceback follows only on request."""
        stamp = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        line = f"time={stamp}Z level={record.levelname.lower()} at={record.name} message={_quoted(record.getMessage())}"
        if record.exc_info and record.exc_info[1] is not None:
            line += f" error={_quoted(repr(record.exc_info[1]))}"
            if self._with_traceback:
                line += "\n" + self.formatException(record.exc_info)
        return line


class Repeats(logging.Filter):
    """Lets a warning through once a minute, with how many like it were held back.

    Alike are equal texts, and of the Kafka client all from one line of its code, errors too: while a broker is away it
    writes ten a second, each with another number in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._since: dict[tuple[str, object], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is to be written."""
        if record.levelno < logging.WARNING:
            return True
        is_client = record.name.partition(".")[0] == "kafka"
        if record.levelno >= logging.ERROR and not is_client:
            return True
        alike = (record.name, record.lineno if is_client else (str(record.msg), repr(record.args)))
        begun_s, held = self._since.get(alike, (-math.inf, 0))
        if 0 <= record.created - begun_s < REPEAT_S:  # a clock that was set back holds nothing back
            self._since[alike] = begun_s, held + 1
            return False
        if len(self._since) >= MAX_REPEATS:
            self._since.clear()
        self._since[alike] = record.created, 0
        if held and isinstance(record.args, tuple):
            record.msg, record.args = f"{record.msg} (%d more like it since)", (*record.args, held)
        return True


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def configure_logging(level: str) -> None:
    """Log to stderr as key=value lines; but for ``debug`` repeats are held back, and the Kafka client's information."""
    handler = logging.StreamHandler()
    handler.setFormatter(KeyValueFormatter(with_traceback=level == "debug"))
    if level != "debug":
        handler.addFilter(Repeats())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if level == "info":
        logging.getLogger("kafka").setLevel(logging.WARNING)
