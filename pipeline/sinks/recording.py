"""Keeping records: a writer of record files.

They are described and read in :mod:`pipeline.sources.record_file`. Equal records give equal bytes.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.errors import ConfigurationError
from pipeline.records import Partition, Record
from pipeline.sources.record_file import RECORD_FILE_HEADER
from pipeline.sources.recording import RECORD_FILE_ENDS


class RecordWriter:
    """Writes a record file, which gets its name only when it is complete.

    Parameters
    ----------
    path
        Must end in ``.records.jsonl`` or ``.records.jsonl.gz``; until :meth:`close` the file is called ``….partial``.

    Raises
    ------
    ConfigurationError
        Another ending, or the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        if not path.name.endswith(RECORD_FILE_ENDS):
            raise ConfigurationError(f"{path}: a record file ends in {' or '.join(RECORD_FILE_ENDS)}")
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._raw = self._partial.open("wb")
        except OSError as exc:
            raise ConfigurationError(f"{path}: cannot be written: {exc.strerror}") from exc
        # Without name and time in its header a gzip file depends on what it holds and on nothing else.
        packed = path.suffix == ".gz"
        self._out = gzip.GzipFile(filename="", mode="wb", fileobj=self._raw, mtime=0) if packed else self._raw
        self._write(RECORD_FILE_HEADER)
        self.count = 0

    def add(self, partition: Partition, record: Record) -> None:
        """Append one record."""
        self._write(
            {
                "topic": partition.topic,
                "partition": partition.partition,
                "offset": record.offset,
                "timestamp": record.timestamp,
                "key": _text(record.key),
                "value": _text(record.value),
            }
        )
        self.count += 1

    def close(self) -> None:
        """Complete the file and give it its name. A second call does nothing."""
        if self._raw.closed:
            return
        self._out.close()
        self._raw.close()
        self._partial.replace(self._path)

    def discard(self) -> None:
        """Close and remove what was written."""
        self._out.close()
        self._raw.close()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Ctrl-C ends a recording, it does not spoil it.
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.close()
        else:
            self.discard()

    def _write(self, line: Mapping[str, object]) -> None:
        self._out.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else base64.b64encode(raw).decode()
