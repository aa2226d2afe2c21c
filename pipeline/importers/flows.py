"""Flows: one network connection each, and tables of them as exporters write them."""

from __future__ import annotations

import csv
import io
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import ConfigurationError, DecodeError
from pipeline.sources.tables import open_binary


class Flow(NamedTuple):
    """One connection, or one direction of it where the exporter tells directions apart.

    Attributes
    ----------
    start_s, end_s
        Seconds since the epoch.
    source, target
        Addresses of who opened it and whom.
    target_port
        0 where there is none (ICMP).
    source_bytes, target_bytes, source_packets, target_packets
        What each side sent.
    is_failed
        It was attempted and not established.
    label
        1 where it is known to be malicious.
    """

    start_s: float
    end_s: float
    source: str
    target: str
    target_port: int
    source_bytes: int
    target_bytes: int
    source_packets: int
    target_packets: int
    is_failed: bool
    label: int = 0


@dataclass(frozen=True, slots=True)
class FlowColumns:
    """Names of a flow table's columns; an empty name means that there is none.

    Attributes
    ----------
    start, end, duration_s
        ISO 8601 (UTC without a zone) or seconds since the epoch; one of ``end`` and ``duration_s``.
    state, failed_states
        Column and those of its values that mean "attempted, not established".
    flags
        TCP flags as letters; only ``S`` means "attempted, not established".
    label
        0 or 1, or a text of which ``benign`` or nothing mean 0.
    """

    start: str
    source: str
    target: str
    target_port: str
    source_bytes: str
    source_packets: str
    end: str = ""
    duration_s: str = ""
    target_bytes: str = ""
    target_packets: str = ""
    state: str = ""
    failed_states: frozenset[str] = frozenset()
    flags: str = ""
    label: str = "label"


# Zeek's conn_state: attempts that never became a connection
# (https://docs.zeek.org/en/master/scripts/base/protocols/conn/main.zeek.html, conn_state).
FAILED_STATES = frozenset({"S0", "REJ", "RSTOS0", "RSTRH", "SH", "SHR"})
ZEEK_COLUMNS = FlowColumns(
    start="timestamp",
    duration_s="duration",
    source="orig_h",
    target="resp_h",
    target_port="resp_p",
    source_bytes="orig_ip_bytes",
    target_bytes="resp_ip_bytes",
    source_packets="orig_pkts",
    target_packets="resp_pkts",
    state="conn_state",
    failed_states=FAILED_STATES,
)
# Output of `nfdump -o csv`; its records are one direction each, so nothing comes back in the same one.
NFDUMP_COLUMNS = FlowColumns(
    start="ts",
    end="te",
    source="sa",
    target="da",
    target_port="dp",
    source_bytes="ibyt",
    target_bytes="obyt",
    source_packets="ipkt",
    target_packets="opkt",
    flags="flg",
)


def read_flow_csv(path: Path, columns: FlowColumns | None = None) -> Iterator[Flow]:
    """Flows of a CSV table, in its order.

    Parameters
    ----------
    columns
        Names of the columns; ``None`` knows Zeek's and nfdump's by their header.

    Raises
    ------
    ConfigurationError
        Unreadable, unknown header, or a row that is no flow; the message names the line.
    """
    line = 1
    try:
        with io.TextIOWrapper(open_binary(path), encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text)
            chosen = columns or _known_columns(reader.fieldnames or [])
            for row in reader:
                line = reader.line_num
                # nfdump ends its output with a summary under a header of its own.
                if chosen is NFDUMP_COLUMNS and row[chosen.start] == "Summary":
                    return
                yield flow_of_row(row, chosen)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, DecodeError) as exc:
        raise ConfigurationError(f"{path}, line {line}: {exc}") from exc


def _known_columns(header: Sequence[str]) -> FlowColumns:
    for known in (ZEEK_COLUMNS, NFDUMP_COLUMNS):
        if {known.start, known.source, known.target, known.source_bytes} <= set(header):
            return known
    raise DecodeError(f"no known flow table (Zeek, nfdump); name the columns: {', '.join(header)}")


def flow_of_row(row: Mapping[str, str | None], columns: FlowColumns) -> Flow:
    """One row of a flow table; absent counts are 0.

    Raises
    ------
    DecodeError
        A cell is not what its column must be.
    """
    try:
        start_s = _seconds(row[columns.start])
        end_s = _seconds(row[columns.end]) if columns.end else start_s + float(_cell(row, columns.duration_s) or 0)
        if not row[columns.source] or not row[columns.target]:
            raise ValueError("no address")
        flags = (_cell(row, columns.flags) or "").replace(".", "").upper()
        return Flow(
            start_s,
            end_s,
            source=row[columns.source] or "",
            target=row[columns.target] or "",
            target_port=_count(row, columns.target_port),
            source_bytes=_count(row, columns.source_bytes),
            target_bytes=_count(row, columns.target_bytes),
            source_packets=_count(row, columns.source_packets),
            target_packets=_count(row, columns.target_packets),
            is_failed=_cell(row, columns.state) in columns.failed_states or flags == "S",
            label=int((_cell(row, columns.label) or "0").strip().lower() not in ("0", "benign", "false")),
        )
    except (ValueError, TypeError, KeyError, OverflowError) as exc:
        raise DecodeError(f"not a flow: {exc}") from exc


def _cell(row: Mapping[str, str | None], name: str) -> str | None:
    return row.get(name) if name else None


def _count(row: Mapping[str, str | None], name: str) -> int:
    text = _cell(row, name)
    # nfdump writes an ICMP type as port 8.0
    count = int(float(text)) if text else 0
    if count < 0:
        raise ValueError(f"{name} is {text}")
    return count


def _seconds(text: str | None) -> float:
    if not text:
        raise ValueError("no time")
    try:
        seconds = float(text)
    except ValueError:
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(seconds):
        raise ValueError(f"time is {text}")
    return seconds
