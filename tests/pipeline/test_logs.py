"""What a process logs."""

from __future__ import annotations

import logging
import sys

from pipeline.logs import REPEAT_S, KeyValueFormatter, Repeats

BEGIN_S = 1_767_225_600.0


def test_log_lines_are_one_line_of_keys_and_values() -> None:
    """Whatever a message holds, a line stays a line that a machine can take apart."""
    record = logging.LogRecord("pipeline.worker", logging.INFO, "worker.py", 1, 'said "%s"\nand more', ("hi",), None)
    record.created = 1_767_225_600.25
    line = KeyValueFormatter(with_traceback=False).format(record)
    assert line == 'time=2026-01-01T00:00:00.250Z level=info at=pipeline.worker message="said \\"hi\\"\\nand more"'


def test_a_logged_exception_shows_its_traceback_only_on_request() -> None:
    """Logs name the error; the way to it is for those who debug."""
    try:
        raise ValueError("broken")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "x.py", 1, "failed", (), sys.exc_info())
    assert "error=\"ValueError('broken')\"" in KeyValueFormatter(with_traceback=False).format(record)
    assert "Traceback" not in KeyValueFormatter(with_traceback=False).format(record)
    assert "Traceback" in KeyValueFormatter(with_traceback=True).format(record)


class Lines:
    """What comes through."""

    def __init__(self) -> None:
        self._repeats, self.written = Repeats(), list[str]()

    def say(self, at_s: float, text: str, name: str, line: int = 1, level: int = logging.WARNING) -> None:
        """One event."""
        record = logging.LogRecord(name, level, "x.py", line, text, (), None)
        record.created = BEGIN_S + at_s
        if self._repeats.filter(record):
            self.written.append(record.getMessage())


def test_a_warning_that_is_said_again_and_again_is_written_once_a_minute() -> None:
    """Hours without Redis would bury the line that says why; how often it was said is not lost."""
    lines = Lines()
    for tick in range(2 * 60 + 1):
        lines.say(tick / 2, "waiting for redis: away", "pipeline.worker")
    assert lines.written == ["waiting for redis: away", "waiting for redis: away (119 more like it since)"]
    lines.say(REPEAT_S + 1, "waiting for redis: another reason", "pipeline.worker")
    assert lines.written[2:] == ["waiting for redis: another reason"]


def test_the_kafka_client_is_held_back_by_the_line_of_its_code() -> None:
    """Its attempts have another node and another delay in each text."""
    lines = Lines()
    for attempt in range(50):
        lines.say(attempt / 10, f"node {attempt} failed, backing off", "kafka.net.manager", line=7)
    lines.say(5.0, "not authorised", "kafka.net.manager", line=8)
    assert lines.written == ["node 0 failed, backing off", "not authorised"]


def test_what_is_no_warning_is_written_each_time() -> None:
    """Two rebalances in a minute are two events."""
    lines = Lines()
    for second in range(3):
        lines.say(second, "assigned partitions=3", "pipeline.worker", level=logging.INFO)
    assert len(lines.written) == 3
