"""Drift detectors: they find lasting changes and keep quiet on noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.drift import DriftDetector


@pytest.mark.parametrize(
    "detector", [lambda: DriftDetector("adwin"), lambda: DriftDetector("page_hinkley", delta=0.1, threshold=5.0)]
)
@pytest.mark.parametrize("step", [1.5, -1.5])
def test_a_changed_level_is_found_and_its_direction_named(detector, step):
    """Only a loss that rises means that the family has moved."""
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(1, 0.3, 200), random.normal(1 + step, 0.3, 100)])
    watch = detector()
    signals = [(at, signal) for at, value in enumerate(values) if (signal := watch.update(float(value)))]
    assert signals
    assert 200 <= signals[0][0] < 240
    assert signals[0][1].is_rise == (step > 0)


def test_one_value_that_happens_to_be_low_does_not_turn_a_rise_around():
    """The detector speaks once; a rise taken for a fall would never be followed."""
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(1, 0.1, 100), random.normal(2, 0.8, 60)])
    watch = DriftDetector("adwin")
    signals = [signal for value in values if (signal := watch.update(float(value)))]
    assert [signal.is_rise for signal in signals] == [True] * len(signals)
    assert signals


def test_noise_is_no_drift():
    """A learner that works harder all the time takes the time of others."""
    random = np.random.default_rng(1)
    watch = DriftDetector("adwin")
    assert not any(watch.update(float(value)) for value in random.normal(1, 0.3, 2000))


def test_values_that_are_none_are_passed_over():
    """A stretch without targets has no loss, and must not blind the detector."""
    watch = DriftDetector("page_hinkley", delta=0.1, threshold=2.0)
    for value in (0.3, math.nan, 0.3, math.inf, 0.3, 0.3):
        assert watch.update(value) is None
    assert any(watch.update(3.0) for _ in range(5))


def test_reset_forgets():
    """What came before says nothing about what begins anew."""
    watch = DriftDetector("page_hinkley", delta=0.1, threshold=2.0)
    for _ in range(20):
        watch.update(0.0)
    watch.reset()
    assert not any(watch.update(5.0) for _ in range(3))
