"""Connection logs -> per-host windows of counters, the input of the shipped ``network`` profile."""

from pipeline.importers.counters import COUNTERS, HostCounters, counter_windows, counters_recording
from pipeline.importers.flows import NFDUMP_COLUMNS, ZEEK_COLUMNS, Flow, FlowColumns, read_flow_csv
from pipeline.importers.zeek import ConnLog

__all__ = [
    "COUNTERS",
    "NFDUMP_COLUMNS",
    "ZEEK_COLUMNS",
    "ConnLog",
    "Flow",
    "FlowColumns",
    "HostCounters",
    "counter_windows",
    "counters_recording",
    "read_flow_csv",
]
