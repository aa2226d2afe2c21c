"""A generated network: what each host's flows add up to per minute, and attacks on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from models.synthetic.faults import LabelledStream, labelled
from models.synthetic.series import DAY_S, MONDAY_MS, Float64, Generator, smooth_noise

NETWORK_FEATURES = (
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
QUIET_SHARE = 0.5  # of a recording, from its beginning: no attack


@dataclass(frozen=True, slots=True)
class Role:
    """What kind of host: connections per minute, how much the day matters, peers and ports it talks to, bytes."""

    name: str
    rate: float
    daily: float
    peers: float
    ports: float
    bytes_in: float
    bytes_out: float


ROLES = (
    Role("workstation", 25, 0.8, 14, 5, 40_000, 6_000),
    Role("server", 160, 0.4, 60, 4, 5_000, 45_000),
    Role("camera", 8, 0.05, 3, 2, 1_500, 90_000),
)


def network(
    hosts: int, minutes: int, attacks: int, seed: int, *, start_ms: int = MONDAY_MS
) -> tuple[LabelledStream, ...]:
    """Per-host counters of one minute each, with labelled attacks.

    Parameters
    ----------
    hosts
        How many streams, of NETWORK_FEATURES each.
    minutes
        T of each stream.
    attacks
        How many attacks in all, at most one per host, in the second half of the recording.
    seed
        Fixes everything.
    start_ms
        Event time of the first minute, ms since the epoch.

    Raises
    ------
    ValueError
        More attacks than hosts, or a recording too short to hold one.
    """
    if attacks > hosts:
        raise ValueError(f"{attacks} attacks do not fit {hosts} hosts: a host has at most one")
    if minutes < 200:
        raise ValueError(f"{minutes} minutes are too few: an attack needs 200 or more")
    rng = np.random.default_rng(seed)
    times_ms = start_ms + 60_000 * np.arange(minutes, dtype=np.int64)
    attacked = set(rng.permutation(hosts)[:attacks].tolist())
    recordings = []
    for index in range(hosts):
        role = ROLES[index % len(ROLES)]
        traffic = _Traffic.of(rng, role, times_ms / 1000.0)
        where = [_attacked(rng, traffic)] if index in attacked else []
        host = f"{role.name}-{index:03d}"
        recordings.append(
            labelled(host, f"segment-{index // 10}", NETWORK_FEATURES, times_ms, traffic.counters(), where)
        )
    return tuple(recordings)


@dataclass(slots=True)
class _Traffic:
    """One host's minutes while they are being made: ``(T,)`` each; attacks add to them before they are counted."""

    connections: Float64
    bytes_in: Float64
    bytes_out: Float64
    packets_in: Float64
    packets_out: Float64
    peers: Float64
    ports: Float64
    failed: Float64
    entropy: Float64

    @classmethod
    def of(cls, rng: Generator, role: Role, seconds: Float64) -> _Traffic:
        """Normal minutes of a host of this role."""
        size = seconds.size
        hour = seconds % DAY_S / 3600.0
        day = 1 - role.daily + role.daily * np.exp(-0.5 * ((hour - rng.uniform(12, 15)) / 4.5) ** 2)
        wander = np.exp(0.2 * smooth_noise(rng, 30.0, (1, size))[0])
        rate = role.rate * rng.uniform(0.6, 1.6) * day * wander
        connections = rng.poisson(rate * rng.gamma(12.0, 1 / 12.0, size)).astype(float)
        share = connections / role.rate
        peers = np.minimum(rng.poisson(role.peers * share**0.6), connections)
        ports = np.minimum(1 + rng.poisson((role.ports - 1) * share**0.3), connections)
        bytes_in = connections * role.bytes_in * rng.lognormal(0, 0.35, size)
        bytes_out = connections * role.bytes_out * rng.lognormal(0, 0.35, size)
        failed = rng.binomial(connections.astype(int), 0.02).astype(float)
        entropy = np.log2(1 + ports) * rng.uniform(0.55, 0.75, size)
        packets_in, packets_out = bytes_in / 900 + 4 * connections, bytes_out / 900 + 4 * connections
        return cls(connections, bytes_in, bytes_out, packets_in, packets_out, peers, ports, failed, entropy)

    def add(self, at: slice, connections: Float64, *, sent: float, received: float, failed: float) -> None:
        """Adds connections of so many bytes sent and received each, a share of which fails."""
        self.connections[at] += connections
        self.bytes_out[at] += connections * sent
        self.bytes_in[at] += connections * received
        self.packets_out[at] += connections * (1 + sent / 900)
        self.packets_in[at] += connections * received / 900
        self.failed[at] += connections * failed

    def counters(self) -> Float64:
        """``(T, 9)`` in the order of NETWORK_FEATURES."""
        failed_share = self.failed / np.maximum(self.connections, 1)
        volume = (self.bytes_in, self.bytes_out, self.packets_in, self.packets_out)
        whole = [np.round(column) for column in (self.connections, *volume, self.peers, self.ports)]
        return np.stack([*whole, failed_share, self.entropy], 1)


# ---------------------------------------------------------------- attacks


def _port_scan(rng: Generator, traffic: _Traffic, at: slice) -> None:
    probes = rng.poisson(rng.uniform(150, 500), at.stop - at.start).astype(float)
    traffic.add(at, probes, sent=60, received=40, failed=0.95)
    traffic.ports[at] += probes * 0.95
    traffic.entropy[at] = np.log2(1 + traffic.ports[at]) * 0.97


def _ddos(rng: Generator, traffic: _Traffic, at: slice) -> None:
    """The host is flooded by many others."""
    flood = rng.poisson(rng.uniform(2000, 6000), at.stop - at.start).astype(float)
    traffic.add(at, flood, sent=0, received=400, failed=0.6)
    traffic.peers[at] += flood * 0.3
    traffic.entropy[at] *= 0.4


def _exfiltration(rng: Generator, traffic: _Traffic, at: slice) -> None:
    """Uploads that carry far more out than a connection of this host usually does."""
    uploads = rng.poisson(0.6 * float(traffic.connections.mean()), at.stop - at.start) + 3.0
    usual = float((traffic.bytes_out / np.maximum(traffic.connections, 1)).mean())
    traffic.add(at, uploads, sent=usual * rng.uniform(20.0, 60.0), received=500, failed=0.0)
    traffic.peers[at] += 1


def _beaconing(rng: Generator, traffic: _Traffic, at: slice) -> None:
    """Malware calls home in bursts at a fixed rhythm, most calls unanswered."""
    minute = np.arange(at.stop - at.start)
    calls = np.where(minute % int(rng.integers(3, 8)) == 0, rng.poisson(rng.uniform(250, 500), minute.size), 0.0)
    traffic.add(at, calls, sent=300, received=100, failed=0.7)
    traffic.ports[at] += calls > 0
    traffic.entropy[at] = np.where(calls > 0, traffic.entropy[at] * 0.5, traffic.entropy[at])


def _worm(rng: Generator, traffic: _Traffic, at: slice) -> None:
    """An infected host tries ever more neighbours on one port."""
    growth = np.linspace(0.4, 1, at.stop - at.start) * rng.uniform(400, 900)
    tries = rng.poisson(growth).astype(float)
    traffic.add(at, tries, sent=800, received=60, failed=0.85)
    traffic.peers[at] += tries * 0.9
    traffic.entropy[at] *= 0.5


ATTACKS: dict[str, Callable[[Generator, _Traffic, slice], None]] = {
    "port_scan": _port_scan,
    "ddos": _ddos,
    "exfiltration": _exfiltration,
    "beaconing": _beaconing,
    "worm": _worm,
}


def _attacked(rng: Generator, traffic: _Traffic) -> tuple[str, int, int]:
    """Adds one attack to a host's minutes and says which one and when."""
    kind = str(rng.choice(tuple(ATTACKS)))
    minutes = traffic.connections.size
    duration = int(rng.integers(15, 61))
    start = int(rng.integers(int(QUIET_SHARE * minutes), minutes - duration))
    ATTACKS[kind](rng, traffic, slice(start, start + duration))
    return kind, start, start + duration
