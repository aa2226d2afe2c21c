"""Files and folders that come out of long work: refused before it where they cannot be written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryFile

from pipeline.errors import ConfigurationError


def make_writable(folder: Path) -> None:
    """Make the folder where there is none, and see that a file can be made in it; leaves none.

    Raises
    ------
    ConfigurationError
        It cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as exc:
        raise ConfigurationError(f"{folder}: nothing can be written there: {exc}") from exc


def make_ready(path: Path) -> None:
    """Make the folder of a file to come.

    Raises
    ------
    ConfigurationError
        The file could not be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigurationError(f"{path}: cannot be written: {exc}") from exc
    if path.is_dir():
        raise ConfigurationError(f"{path}: cannot be written: it is a folder")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigurationError(f"{path}: cannot be written: no permission")


def write_all(texts: Iterable[tuple[Path, str]], tell: Callable[[str], None]) -> None:
    """Write each of them, whatever becomes of the others; ``tell`` hears of each that is written.

    Raises
    ------
    ConfigurationError
        Some could not be written; it names all of these.
    """
    failed = []
    for path, text in texts:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as exc:
            failed.append(f"{path}: cannot be written: {exc}")
        else:
            tell(f"{path} written")
    if failed:
        raise ConfigurationError("; ".join(failed))
