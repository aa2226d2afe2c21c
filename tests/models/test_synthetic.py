"""Generated series are reproducible, finite where they claim to be, and labelled where they were damaged."""

from __future__ import annotations

import numpy as np
import pytest

from models.synthetic import ATTACKS, FAMILIES, FAULT_KINDS, NETWORK_FEATURES, LabelledStream, corpus, network, plant


def as_bytes(streams: tuple[LabelledStream, ...]) -> bytes:
    """Everything a fleet holds, as bytes to compare."""
    return b"".join(s.values.tobytes() + s.labels.tobytes() + s.times_ms.tobytes() for s in streams)


def test_corpus_of_a_seed_is_always_the_same() -> None:
    """The shipped weights name a seed; that only means something if the seed names the data."""
    first, again, other = corpus(44, 400, 7), corpus(44, 400, 7), corpus(44, 400, 8)
    assert first.values.tobytes() == again.values.tobytes()
    assert first.times_ms.tobytes() == again.times_ms.tobytes()
    assert first.values.tobytes() != other.values.tobytes()


def test_corpus_is_finite_except_for_drop_outs() -> None:
    """One infinite value would end a pretraining with NaN weights."""
    made = corpus(330, 1024, 3)
    assert not np.isinf(made.values).any()
    assert 0.001 < np.isnan(made.values).mean() < 0.05
    assert np.isfinite(made.values[:, 0]).all()
    assert (np.nanstd(made.values.astype(float), axis=1) > 0).all()


def test_corpus_families_come_in_equal_shares() -> None:
    """The recipe's mixture is part of the result."""
    made = corpus(3 * len(FAMILIES), 64, 3)
    assert {name: made.family.count(name) for name in FAMILIES} == dict.fromkeys(FAMILIES, 3)


def test_corpus_times_follow_the_interval() -> None:
    """Seasonal inputs of training are only right if the clock of a series is."""
    made = corpus(22, 100, 1)
    steps = np.diff(made.times_ms, axis=1)
    assert (steps == (made.interval_s * 1000).astype(np.int64)[:, None]).all()
    assert made.clock.any()
    assert not made.clock.all()


def test_quasi_periodic_series_repeat_without_a_clock() -> None:
    """The family that fast weights live on must really come back to itself after some number of observations."""
    made = corpus(len(FAMILIES) * 10, 2048, 5)
    rows = [i for i, name in enumerate(made.family) if name == "quasi_pulses" and np.isfinite(made.values[i]).all()]
    best = []
    for i in rows:
        x = made.values[i, 1024:].astype(float)
        x = x - x.mean()
        autocorrelation = np.correlate(x, x, "full")[x.size - 1 :] / (x @ x)
        falls = int(np.argmax(autocorrelation < 0.2))
        best.append(autocorrelation[falls:450].max())
    assert np.median(best) > 0.4


@pytest.mark.parametrize("fleet", [lambda seed: plant(40, 1500, 20, seed), lambda seed: network(12, 1440, 6, seed)])
def test_fleet_of_a_seed_is_always_the_same(fleet) -> None:  # type: ignore[no-untyped-def]
    """A demo that reports caught faults must report the same ones tomorrow."""
    assert as_bytes(fleet(4)) == as_bytes(fleet(4))
    assert as_bytes(fleet(4)) != as_bytes(fleet(5))


def test_plant_labels_are_where_its_faults_are() -> None:
    """Labels that miss the damage would judge a detector wrongly."""
    damaged, clean = plant(64, 1500, 64, 2), plant(64, 1500, 0, 2)
    assert sum(len(s.faults) for s in damaged) == 64
    for stream, untouched in zip(damaged, clean, strict=True):
        (fault,) = stream.faults
        assert stream.labels.sum() == fault.end - fault.start
        assert stream.labels[fault.start : fault.end].all()
        assert fault.start_ms == stream.times_ms[fault.start]
        assert fault.end_ms - fault.start_ms == (fault.end - fault.start) * 300_000
        assert fault.start >= 0.45 * 1500
        differs = np.flatnonzero((stream.values != untouched.values).any(1))
        assert differs.size > 0
        assert differs.min() >= fault.start
        assert differs.max() < fault.end


def test_plant_has_every_kind_of_fault() -> None:
    """Otherwise the share caught would speak of fewer kinds than it claims."""
    kinds = {fault.kind for stream in plant(400, 1500, 400, 1) for fault in stream.faults}
    assert kinds == set(FAULT_KINDS)


def test_plant_set_points_return_before_the_first_fault() -> None:
    """Set-point changes are normal: a detector must have had the chance to see each level while nothing was wrong."""
    for stream in plant(200, 2880, 0, 9):
        if stream.stream_id.endswith(".flow"):
            x = stream.values[:, 0]
            early, late = x[: int(0.45 * x.size)], x[int(0.45 * x.size) :]
            reach = np.ptp(x)
            assert early.min() - 0.15 * reach < late.min()
            assert late.max() < early.max() + 0.15 * reach


def test_plant_sensors_of_a_unit_belong_together() -> None:
    """Related sensors are what groups and incidents are for: flow falls when the valve closes."""
    by_id = {s.stream_id: s.values[:, 0] for s in plant(16, 2880, 0, 3)}
    assert np.corrcoef(by_id["unit-00.flow"], by_id["unit-00.valve"])[0, 1] > 0.9
    assert np.corrcoef(by_id["unit-00.flow"], by_id["unit-00.pressure_out"])[0, 1] < -0.7
    assert abs(np.corrcoef(by_id["unit-00.flow"], by_id["unit-01.flow"])[0, 1]) < 0.6


def test_network_counters_are_possible_counts() -> None:
    """Counters must obey what counting implies: whole, non-negative, shares within 0 and 1."""
    for stream in network(24, 1440, 24, 1):
        assert stream.values.shape == (1440, len(NETWORK_FEATURES))
        assert (stream.values >= 0).all()
        assert (stream.values[:, :7] == np.round(stream.values[:, :7])).all()
        assert (stream.values[:, 7] <= 1).all()
        connections, peers, ports = stream.values[:, 0], stream.values[:, 5], stream.values[:, 6]
        assert (peers <= connections).all()
        assert (ports <= connections).all()


def test_network_has_every_kind_of_attack_in_its_second_half() -> None:
    """The first half is what a detector learns normal from."""
    faults = [fault for stream in network(120, 720, 120, 1) for fault in stream.faults]
    assert {fault.kind for fault in faults} == set(ATTACKS)
    assert min(fault.start for fault in faults) >= 360


def test_impossible_fleets_are_refused() -> None:
    """More faults than streams would silently report fewer faults than were asked for."""
    with pytest.raises(ValueError, match="at most one"):
        plant(8, 1500, 9, 1)
    with pytest.raises(ValueError, match="too few"):
        plant(8, 100, 1, 1)
    with pytest.raises(ValueError, match="at most one"):
        network(3, 1440, 4, 1)
    with pytest.raises(ValueError, match="too few"):
        network(3, 100, 1, 1)


def test_faults_are_neither_hidden_nor_huge() -> None:
    """A demo on faults nobody can find, or nobody can miss, says nothing."""
    sizes = []
    for damaged, clean in zip(plant(400, 1500, 400, 6), plant(400, 1500, 0, 6), strict=True):
        (fault,) = damaged.faults
        if fault.kind == "zero":
            continue
        change = np.abs(damaged.values - clean.values)[fault.start : fault.end, 0]
        sizes.append(float(change.max() / np.ptp(clean.values)))
    assert max(sizes) < 2.0
    assert np.median(sizes) < 1.0
    assert min(sizes) > 0.1
