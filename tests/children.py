"""Child processes of tests: whatever a test ends with, they end too."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def child(words: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A process whose output can be read; killed where it is still there at the end, so that no test waits for ever."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
