"""Zeek's ``conn.log`` -> flows: tab-separated with its ``#`` header lines, or one JSON object per line."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace

from pipeline.errors import DecodeError
from pipeline.importers.flows import ZEEK_COLUMNS, Flow, flow_of_row

log = logging.getLogger(__name__)

# As in Zeek's own log; timestamps are seconds since the epoch, or ISO 8601 where JSON is so configured.
_COLUMNS = replace(ZEEK_COLUMNS, start="ts", source="id.orig_h", target="id.resp_h", target_port="id.resp_p")


class ConnLog:
    """Reads the lines of a ``conn.log``, live or complete; a header may come again, as it does after a rotation.

    Attributes
    ----------
    malformed
        Lines that were no connection; they are skipped, the first one of a kind is logged.
    """

    def __init__(self) -> None:
        self.malformed = 0
        self._separator = "\t"
        self._unset: tuple[str, ...] = ("-", "(empty)")
        self._fields: list[str] = []

    def read(self, lines: Iterable[str]) -> Iterator[Flow]:
        """Flows of some lines; what is no connection is counted in :attr:`malformed` and skipped."""
        for line in lines:
            try:
                flow = self.parse(line)
            except DecodeError as exc:
                if self.malformed == 0:
                    log.warning("conn_log_line=malformed reason=%s", exc)
                self.malformed += 1
                continue
            if flow is not None:
                yield flow

    def parse(self, line: str) -> Flow | None:
        """The flow of one line; ``None`` for headers and empty lines.

        Raises
        ------
        DecodeError
            The line is no connection.
        """
        line = line.rstrip("\r\n")
        if not line:
            return None
        if line.startswith("#"):
            self._take_header(line)
            return None
        return flow_of_row(self._cells_of_json(line) if line.startswith("{") else self._cells(line), _COLUMNS)

    def _cells(self, line: str) -> dict[str, str | None]:
        if not self._fields:
            raise DecodeError("a line before the #fields header")
        cells = line.split(self._separator)
        if len(cells) != len(self._fields):
            raise DecodeError(f"{len(cells)} cells for {len(self._fields)} fields")
        return {name: None if cell in self._unset else cell for name, cell in zip(self._fields, cells, strict=True)}

    def _cells_of_json(self, line: str) -> dict[str, str | None]:
        try:
            record = json.loads(line)
        except ValueError as exc:
            raise DecodeError(f"not JSON: {exc}") from exc
        return {name: None if value is None else str(value) for name, value in record.items()}

    def _take_header(self, line: str) -> None:
        name, _, rest = line.partition(" " if line.startswith("#separator ") else self._separator)
        if name == "#separator":
            self._separator = rest.encode().decode("unicode_escape")
        elif name == "#fields":
            self._fields = rest.split(self._separator)
        elif name == "#unset_field":
            self._unset = (rest, *self._unset[1:])
        elif name == "#empty_field":
            self._unset = (self._unset[0], rest)
