"""Connection logs to counters: every flow once per local host, no loss at borders, nothing lost silently."""

import gzip
import json
import runpy
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigurationError, DecodeError
from pipeline.importers import (
    COUNTERS,
    ConnLog,
    Flow,
    FlowColumns,
    HostCounters,
    counter_windows,
    counters_recording,
    read_flow_csv,
)
from pipeline.settings import Settings
from pipeline.sources.recording import RecordedWindow

HOSTS = ("10.0.0.1", "10.0.0.2", "192.168.7.7", "8.8.8.8", "1.1.1.1", "fe80::1")
LOCAL = {"10.0.0.1", "10.0.0.2", "192.168.7.7", "fe80::1"}
EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"


def flow(start_s: float, source: str = "10.0.0.1", target: str = "8.8.8.8", **fields: object) -> Flow:
    usual = {
        "start_s": start_s,
        "end_s": start_s,
        "source": source,
        "target": target,
        "target_port": 443,
        "source_bytes": 100,
        "target_bytes": 1000,
        "source_packets": 2,
        "target_packets": 3,
        "is_failed": False,
    }
    return Flow(**(usual | fields))  # type: ignore[arg-type]


def rows(windows: Sequence[RecordedWindow]) -> dict[tuple[str, int], dict[str, float]]:
    """Counters by host and minute."""
    return {
        (window.stream_id, int(window.times_ms[0]) // 60_000): dict(
            zip(COUNTERS, window.values[0].tolist(), strict=True)
        )
        for window in windows
    }


flows_strategy = st.lists(
    st.builds(
        flow,
        st.integers(0, 3600).map(float) | st.floats(0, 3600),
        st.sampled_from(HOSTS),
        st.sampled_from(HOSTS),
        target_port=st.integers(0, 3),
        source_bytes=st.integers(0, 1000),
        target_bytes=st.integers(0, 1000),
        source_packets=st.integers(0, 9),
        target_packets=st.integers(0, 9),
        is_failed=st.booleans(),
    ),
    max_size=60,
)


@given(flows=flows_strategy, delay=st.sampled_from([0.0, 90.0, 7200.0]), at=st.sampled_from(["start", "end"]))
def test_every_flow_is_counted_once_for_each_local_host(flows: list[Flow], delay: float, at: str) -> None:
    """Whatever the order and wherever borders fall, sums over time must be the sums over the flows."""
    counters = HostCounters(max_delay_s=delay, at=at)  # type: ignore[arg-type]
    windows = list(counter_windows(flows, counters))
    sums = {host: np.zeros(5) for host in LOCAL}
    for one in flows:
        if one.source in LOCAL:
            sums[one.source] += (1, one.target_bytes, one.source_bytes, one.target_packets, one.source_packets)
        if one.target in LOCAL and one.target != one.source:
            sums[one.target] += (1, one.source_bytes, one.target_bytes, one.source_packets, one.target_packets)
    counted = {host: np.zeros(5) for host in LOCAL}
    for window in windows:
        counted[window.stream_id] += window.values[0, :5]
    for host in LOCAL:
        np.testing.assert_array_equal(counted[host], sums[host])
    assert counters.flows == len(flows)
    assert counters.foreign == sum(one.source not in LOCAL and one.target not in LOCAL for one in flows)
    if delay >= 3600:
        assert counters.late == 0


@given(flows=flows_strategy, delay=st.sampled_from([0.0, 90.0]))
def test_minutes_of_a_host_are_complete_and_in_order(flows: list[Flow], delay: float) -> None:
    """A quiet minute is an observation too: without zeros a host that falls silent would look like a gap."""
    windows = list(counter_windows(flows, HostCounters(max_delay_s=delay)))
    minutes = [int(window.times_ms[0]) // 60_000 for window in windows]
    assert minutes == sorted(minutes)
    for host in {window.stream_id for window in windows}:
        mine = [minute for minute, window in zip(minutes, windows, strict=True) if window.stream_id == host]
        assert mine == list(range(mine[0], mine[-1] + 1))


def test_counters_mean_what_they_say() -> None:
    """Each number as a person would count it by hand, seen from the host."""
    flows = [
        flow(0, target_port=80, target="8.8.8.8"),
        flow(10, target_port=80, target="1.1.1.1", is_failed=True),
        flow(20, target_port=53, target="1.1.1.1"),
        flow(59.9, source="9.9.9.9", target="10.0.0.1", target_port=22, source_bytes=7, source_packets=1),
        flow(60, target_port=80),
    ]
    counted = rows(list(counter_windows(flows, HostCounters())))
    first = counted["10.0.0.1", 0]
    assert first["connections"] == 4
    assert (first["bytes_in"], first["bytes_out"]) == (3007, 1300)
    assert (first["packets_in"], first["packets_out"]) == (10, 9)
    assert (first["distinct_peers"], first["distinct_ports"]) == (3, 3)
    assert first["failed_share"] == 0.25
    assert first["port_entropy"] == 1.5
    assert counted["10.0.0.1", 1]["connections"] == 1
    assert counted["10.0.0.1", 1]["port_entropy"] == 0


def test_network_profile_takes_these_counters() -> None:
    """Importer and shipped profile are two ends of one contract."""
    assert Settings().profiles["network"].features == COUNTERS


def test_flow_belongs_to_the_minute_of_its_start_or_end() -> None:
    """Logs are ordered by the one, tables by the other; the choice is the user's and must hold."""
    long = [flow(30, end_s=3000)]
    assert ("10.0.0.1", 0) in rows(list(counter_windows(long, HostCounters(at="start"))))
    assert ("10.0.0.1", 50) in rows(list(counter_windows(long, HostCounters(at="end"))))


def test_flow_within_the_delay_goes_where_it_belongs_and_a_later_one_is_counted_as_late() -> None:
    """Zeek writes a connection minutes after it ended; beyond the bound it must show, and still not be lost."""
    counters = HostCounters(max_delay_s=120)
    windows = [window for start in (0, 170, 30, 400, 50) for window in counters.add(flow(start))]
    counted = rows([*windows, *counters.flush()])
    assert counters.late == 1
    assert [counted["10.0.0.1", minute]["connections"] for minute in range(7)] == [2, 0, 1, 0, 1, 0, 1]


def test_quiet_log_is_closed_by_the_clock() -> None:
    """The last minute before a silence must not wait for the next connection."""
    counters = HostCounters(max_delay_s=60)
    assert counters.advance(1e9) == []
    counters.add(flow(30))
    assert counters.advance(119) == []
    counted = rows(counters.advance(240))
    assert [counted["10.0.0.1", minute]["connections"] for minute in range(3)] == [1, 0, 0]


def test_silent_host_is_forgotten_and_memory_stays_bounded() -> None:
    """A scan over a network makes thousands of hosts for one packet each; they must not be kept for ever."""
    counters = HostCounters(forget_after_s=180, max_delay_s=0, max_hosts=2)
    for host in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
        counters.add(flow(0, source=host))
    assert counters.refused == 1
    windows = counters.advance(1e6)
    assert len(windows) == 2 * 4
    counters.add(flow(1e6, source="10.0.0.3"))
    assert counters.refused == 1
    assert len(counters.flush()) == 1


def test_local_networks_are_a_choice() -> None:
    """Public addresses are a provider's own hosts."""
    windows = list(counter_windows([flow(0)], HostCounters(local=["8.8.0.0/16"])))
    assert {window.stream_id for window in windows} == {"8.8.8.8"}
    with pytest.raises(ConfigurationError, match="local networks"):
        HostCounters(local=["8.8.0.0/99"])


def test_labels_of_flows_mark_their_minute() -> None:
    """Labelled captures are how detection is judged."""
    [host] = counters_recording([flow(0), flow(70, label=1), flow(130)], HostCounters())
    assert host.labels is not None
    assert host.labels.tolist() == [0, 1, 0]
    assert (host.interval_s, host.features) == (60.0, COUNTERS)


# --- Zeek -------------------------------------------------------------------------------------------------------------

FIELDS = [
    *("ts", "uid", "id.orig_h", "id.orig_p", "id.resp_h", "id.resp_p", "proto", "service", "duration"),
    *("orig_bytes", "resp_bytes", "conn_state", "local_orig", "missed_bytes", "history"),
    *("orig_pkts", "orig_ip_bytes", "resp_pkts", "resp_ip_bytes", "tunnel_parents"),
]
CONNECTIONS = [
    "1750000000.250000 C1 10.0.0.1 50000 8.8.8.8 443 tcp ssl 1.500000 500 900 SF T 0 ShADadFf 10 1020 9 1368 (empty)",
    "1750000001.000000 C2 10.0.0.1 50001 1.1.1.1 22 tcp - - - - S0 T 0 S 1 60 0 0 (empty)",
    "1750000002.000000 C3 fe80::1 130 ff02::1 131 icmp - 0.000100 0 0 OTH T 0 - 1 76 0 0 (empty)",
]


def tsv(separator: str = "\t", unset: str = "-") -> list[str]:
    header = [
        f"#separator \\x{ord(separator):02x}",
        separator.join(["#set_separator", ","]),
        separator.join(["#empty_field", "(empty)"]),
        separator.join(["#unset_field", unset]),
        separator.join(["#path", "conn"]),
        separator.join(["#fields", *FIELDS]),
        separator.join(["#types", *["string"] * len(FIELDS)]),
    ]
    rows = [separator.join(unset if cell == "-" else cell for cell in line.split()) for line in CONNECTIONS]
    return [*header, *rows, separator.join(["#close", "2025-06-15-16-00-00"])]


def as_json(iso: bool = False) -> list[str]:
    numbers = {"ts", "id.orig_p", "id.resp_p", "duration", "orig_pkts", "orig_ip_bytes", "resp_pkts", "resp_ip_bytes"}
    lines = []
    for line in CONNECTIONS:
        cells = {name: cell for name, cell in zip(FIELDS, line.split(), strict=True) if cell not in ("-", "(empty)")}
        record = {name: json.loads(cell) if name in numbers else cell for name, cell in cells.items()}
        if iso:
            record["ts"] = f"2025-06-15T15:06:{40 + record['ts'] - 1_750_000_000:09.6f}Z"
        lines.append(json.dumps(record))
    return lines


@pytest.mark.parametrize("lines", [tsv(), tsv("|", "?"), as_json(), as_json(iso=True)])
def test_conn_log_reads_the_same_in_every_form(lines: list[str]) -> None:
    """Zeek's configuration decides about form, separator and times, not the network."""
    log = ConnLog()
    flows = list(log.read(f"{line}\n" for line in lines))
    assert log.malformed == 0
    assert flows == [
        Flow(1750000000.25, 1750000001.75, "10.0.0.1", "8.8.8.8", 443, 1020, 1368, 10, 9, is_failed=False),
        Flow(1750000001.0, 1750000001.0, "10.0.0.1", "1.1.1.1", 22, 60, 0, 1, 0, is_failed=True),
        Flow(1750000002.0, 1750000002.0001, "fe80::1", "ff02::1", 131, 76, 0, 1, 0, is_failed=False),
    ]


def test_header_may_come_again_and_differ() -> None:
    """A tailed log is rotated every hour, and its configuration may have changed with a restart."""
    log = ConnLog()
    assert len(list(log.read([*tsv(), *tsv("|", "?")]))) == 6
    assert log.malformed == 0


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1\t2\t3", "3 cells for 20 fields"),
        ("\t".join(["yesterday", *["1"] * 19]), "not a flow"),
        ("\t".join(["-", *["1"] * 19]), "no time"),
        ("{", "not JSON"),
        ('{"ts": 1.0}', "not a flow"),
        ('{"ts": 1e999, "id.orig_h": "a", "id.resp_h": "b"}', "time is inf"),
        ('{"ts": 1.0, "id.orig_h": "a", "id.resp_h": "b", "id.resp_p": -1}', "id.resp_p is -1"),
    ],
)
def test_line_that_is_no_connection_is_skipped_and_counted(line: str, reason: str) -> None:
    """A half-written line must not stop a producer that runs for months."""
    log = ConnLog()
    flows = list(log.read([*tsv(), line, *as_json()]))
    assert (len(flows), log.malformed) == (6, 1)
    with pytest.raises(DecodeError, match=reason):
        log.parse(line)


def test_lines_before_any_header_are_malformed() -> None:
    """Without field names a guess would count bytes as ports."""
    with pytest.raises(DecodeError, match="before the #fields header"):
        ConnLog().parse(tsv()[8])


# --- flow tables ------------------------------------------------------------------------------------------------------

ZEEK_TABLE = """timestamp,duration,orig_bytes,resp_bytes,missed_bytes,orig_pkts,orig_ip_bytes,resp_pkts,resp_ip_bytes,\
proto,service,conn_state,history,orig_h,orig_p,resp_h,resp_p,label
2025-06-15T15:06:40.250000,1.5,500,900,0,10,1020,9,1368,tcp,ssl,SF,ShADadFf,10.0.0.1,50000,8.8.8.8,443,0
2025-06-15T15:06:41,,,,0,1,60,0,0,tcp,,S0,S,10.0.0.1,50001,1.1.1.1,22,1
"""
NFDUMP_TABLE = """ts,te,td,sa,da,sp,dp,pr,flg,fwd,stos,ipkt,ibyt,opkt,obyt
2025-06-15 15:06:40.250,2025-06-15 15:06:41.750,1.5,10.0.0.1,8.8.8.8,50000,443,TCP,.AP.SF,0,0,10,1020,9,1368
2025-06-15 15:06:41.000,2025-06-15 15:06:41.000,0.0,10.0.0.1,1.1.1.1,50001,22,TCP,....S.,0,0,1,60,0,0
Summary
flows,bytes,packets,avg_bps,avg_pps,avg_bpp
"""
OWN_TABLE = """when,until,from,to,port,out,back,po,pi,class
1750000000.25,1750000001.75,10.0.0.1,8.8.8.8,443,1020,1368,10,9,Benign
1750000001,1750000001,10.0.0.1,1.1.1.1,22,60,0,1,0,DDoS
"""
OWN_COLUMNS = FlowColumns(
    start="when",
    end="until",
    source="from",
    target="to",
    target_port="port",
    source_bytes="out",
    target_bytes="back",
    source_packets="po",
    target_packets="pi",
    label="class",
)


@pytest.mark.parametrize(
    ("text", "columns", "is_failed", "label"),
    [(ZEEK_TABLE, None, True, 1), (NFDUMP_TABLE, None, True, 0), (OWN_TABLE, OWN_COLUMNS, False, 1)],
)
def test_flow_tables_read_to_the_same_flows(
    tmp_path: Path, text: str, columns: FlowColumns | None, is_failed: bool, label: int
) -> None:
    """Exporters name their columns as they like; counters must not depend on it."""
    path = tmp_path / "flows.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    assert list(read_flow_csv(path, columns)) == [
        Flow(1750000000.25, 1750000001.75, "10.0.0.1", "8.8.8.8", 443, 1020, 1368, 10, 9, is_failed=False),
        Flow(1750000001.0, 1750000001.0, "10.0.0.1", "1.1.1.1", 22, 60, 0, 1, 0, is_failed=is_failed, label=label),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a,b\n1,2\n", "line 1: no known flow table"),
        (ZEEK_TABLE + "2025-06-15T15:06:42,soon\n", "line 4: not a flow"),
    ],
)
def test_table_that_holds_no_flows_is_refused_by_line(tmp_path: Path, text: str, reason: str) -> None:
    """A recording is read once and by hand, so it may stop where it is wrong."""
    path = tmp_path / "flows.csv"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=reason):
        list(read_flow_csv(path))


# --- the example that feeds a topic from a live log -------------------------------------------------------------------


def test_zeek_example_follows_a_log_across_rotations(tmp_path: Path) -> None:
    """What a newcomer copies to a production sensor must not lose a line when Zeek rotates its log."""
    follow = SimpleNamespace(**runpy.run_path(str(EXAMPLES / "zeek_host.py"))).follow
    path = tmp_path / "conn.log"
    path.write_text("#fields\tts\nold 1\nold 2\n")

    def append(text: str) -> None:
        with path.open("a") as log:
            log.write(text)

    def rotate() -> None:
        append("last\n")
        path.rename(tmp_path / "conn.1.log")

    def begin_again() -> None:
        path.write_text("#fields\tts\nnew 1\n")

    def steps() -> Iterator[None]:
        yield append("one\nhal")
        yield append("f\n")
        yield rotate()
        yield begin_again()
        yield append("new 2\n")

    happening = steps()
    lines = []
    for line in follow(path, lambda: next(happening, None)):
        if line is not None:
            lines.append(line.strip())
        if line == "new 2\n":
            break
    assert lines == ["#fields\tts", "one", "half", "last", "#fields\tts", "new 1", "new 2"]
