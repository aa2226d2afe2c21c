"""Flows -> counters of every local host and interval, in event time.

A flow belongs to the interval in which it starts, or, with ``at="end"``, ends; it is counted there once for each local
host that took part. Choose the one by which the input is roughly ordered: connection logs are written when a
connection *ends*, flow tables are mostly sorted by *start*. An interval is closed when a flow ``max_delay_s`` after its
end has been seen. A flow that comes later still is counted in the oldest interval that is open, and in
:attr:`HostCounters.late`, so that sums over time stay right and the delay does not pass unseen.

Every host seen gets an observation for every interval, zeros included, until it has been silent for ``forget_after_s``.
The event time of an observation is the start of its interval.
"""

from __future__ import annotations

import ipaddress
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pipeline.errors import ConfigurationError
from pipeline.importers.flows import Flow
from pipeline.sources.recording import RecordedStream, RecordedWindow

COUNTERS = (
    "connections",
    "bytes_in",
    "bytes_out",
    "packets_in",
    "packets_out",
    "distinct_peers",
    "distinct_ports",
    "failed_share",
    "port_entropy",
)

# RFC 1918, RFC 4193 (unique local) and RFC 4291 (link local).
PRIVATE_NETWORKS = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fe80::/10")


@dataclass(slots=True)
class _Tally:
    """What is counted of one host in one interval."""

    sums: list[int] = field(default_factory=lambda: [0, 0, 0, 0, 0])
    failed: int = 0
    label: int = 0
    peers: set[str] = field(default_factory=set)
    ports: Counter[int] = field(default_factory=Counter)

    def add(self, flow: Flow, is_source: bool) -> None:
        if is_source:
            peer, received, sent = flow.target, flow.target_bytes, flow.source_bytes
            packets_in, packets_out = flow.target_packets, flow.source_packets
        else:
            peer, received, sent = flow.source, flow.source_bytes, flow.target_bytes
            packets_in, packets_out = flow.source_packets, flow.target_packets
        for i, number in enumerate((1, received, sent, packets_in, packets_out)):
            self.sums[i] += number
        self.failed += flow.is_failed
        self.label |= flow.label
        self.peers.add(peer)
        self.ports[flow.target_port] += 1

    def counters(self) -> list[float]:
        count = self.sums[0]
        if count == 0:
            return [0.0] * len(COUNTERS)
        entropy = -sum(n / count * math.log2(n / count) for n in self.ports.values())
        return [*map(float, self.sums), len(self.peers), len(self.ports), self.failed / count, max(entropy, 0.0)]


class HostCounters:
    """Counts flows per local host and interval as they come, and gives out what is complete.

    Parameters
    ----------
    interval_s
        Length of an interval, whole seconds; intervals begin at multiples of it.
    local
        Networks whose hosts are watched.
    at
        Whether a flow belongs to the interval of its start or of its end.
    max_delay_s
        How much later than a flow's own time its record may come.
    forget_after_s
        A host without any flow for so long gets no more zeros, until it is seen again.
    max_hosts
        Hosts watched at once; flows of further ones are counted in :attr:`refused` only.

    Attributes
    ----------
    flows, late, foreign, refused
        Flows seen; counted in a later interval than their own; without any local host; of hosts beyond ``max_hosts``.
    """

    def __init__(
        self,
        *,
        interval_s: int = 60,
        local: Sequence[str] = PRIVATE_NETWORKS,
        at: Literal["start", "end"] = "start",
        max_delay_s: float = 300.0,
        forget_after_s: float = 86_400.0,
        max_hosts: int = 100_000,
    ) -> None:
        if interval_s < 1:
            raise ConfigurationError(f"interval_s is {interval_s}, must be at least 1")
        try:
            self._local = [ipaddress.ip_network(network) for network in local]
        except ValueError as exc:
            raise ConfigurationError(f"local networks: {exc}") from exc
        self.flows = self.late = self.foreign = self.refused = 0
        self.interval_s = interval_s
        self._at_end = at == "end"
        self._max_delay_s = max_delay_s
        self._forget_after = math.ceil(forget_after_s / interval_s)
        self._max_hosts = max_hosts
        self._is_local: dict[str, bool] = {}
        self._open: dict[int, dict[str, _Tally]] = {}
        # Intervals of the first and the last flow of every host that is watched.
        self._first: dict[str, int] = {}
        self._last: dict[str, int] = {}
        # The oldest interval still open; unknown until the first flow.
        self._oldest: int | None = None

    def add(self, flow: Flow) -> list[RecordedWindow]:
        """Count one flow.

        Returns
        -------
        list of windows
            One observation per host for each interval that this flow shows to be complete, by time, then host.
        """
        self.flows += 1
        time_s = flow.end_s if self._at_end else flow.start_s
        closed = self.advance(time_s)
        hosts = [host for host in dict.fromkeys((flow.source, flow.target)) if self._is_watched(host)]
        if not hosts:
            self.foreign += 1
            return closed
        if self._oldest is None:
            self._oldest = math.floor((time_s - self._max_delay_s) / self.interval_s)
        interval = math.floor(time_s / self.interval_s)
        if interval < self._oldest:
            self.late += 1
            interval = self._oldest
        for host in hosts:
            if host not in self._first and len(self._first) >= self._max_hosts:
                self.refused += 1
                continue
            self._open.setdefault(interval, {}).setdefault(host, _Tally()).add(flow, host == flow.source)
            self._first[host] = min(interval, self._first.get(host, interval))
            self._last[host] = max(interval, self._last.get(host, interval))
        return closed

    def advance(self, now_s: float) -> list[RecordedWindow]:
        """Close what ``now_s`` shows to be complete; call it with the clock where a live log is quiet."""
        return self._close_below(math.floor((now_s - self._max_delay_s) / self.interval_s))

    def flush(self) -> list[RecordedWindow]:
        """Close every interval that has been begun; what comes for them later is late."""
        return self._close_below(max(self._open) + 1) if self._open else []

    def _close_below(self, end: int) -> list[RecordedWindow]:
        closed: list[RecordedWindow] = []
        while self._oldest is not None and self._oldest < end:
            if not self._first:  # nobody is left to give zeros to
                self._oldest = end
                break
            interval = self._oldest
            tallies = self._open.pop(interval, {})
            known = sorted(host for host, first in self._first.items() if first <= interval)
            closed += [self._window(host, interval, tallies.get(host)) for host in known]
            for host in known:
                if interval - self._last[host] >= self._forget_after:
                    del self._first[host], self._last[host]
            self._oldest = interval + 1
        return closed

    def _window(self, host: str, interval: int, tally: _Tally | None) -> RecordedWindow:
        values = np.zeros((1, len(COUNTERS)), np.float32)
        if tally is not None:
            values[0] = tally.counters()
        time_ms = np.array([interval * self.interval_s * 1000], np.int64)
        return RecordedWindow(host, time_ms, values, np.array([0 if tally is None else tally.label], np.uint8))

    def _is_watched(self, host: str) -> bool:
        known = self._is_local.get(host)
        if known is None:
            try:
                address = ipaddress.ip_address(host)
            except ValueError:
                return False
            known = any(address in network for network in self._local)
            # Every address of a scan passes here once: remember, but not for ever.
            if len(self._is_local) >= 4 * self._max_hosts:
                self._is_local.clear()
            self._is_local[host] = known
        return known


def counter_windows(flows: Iterable[Flow], counters: HostCounters) -> Iterator[RecordedWindow]:
    """Windows of one observation for each host and interval, as they become complete."""
    for flow in flows:
        yield from counters.add(flow)
    yield from counters.flush()


def counters_recording(flows: Iterable[Flow], counters: HostCounters) -> list[RecordedStream]:
    """All windows of some flows as one recorded stream per host."""
    found: dict[str, list[RecordedWindow]] = {}
    for window in counter_windows(flows, counters):
        found.setdefault(window.stream_id, []).append(window)
    return [
        RecordedStream(
            host,
            COUNTERS,
            float(counters.interval_s),
            np.concatenate([window.times_ms for window in parts]),
            np.concatenate([window.values for window in parts]),
            np.concatenate([window.labels for window in parts if window.labels is not None]),
        )
        for host, parts in sorted(found.items())
    ]
