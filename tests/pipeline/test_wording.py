"""What people read of an alert tells them what was wrong."""

from __future__ import annotations

import math

import pytest

from models.evidence.observed import SIGNALS
from pipeline.records import DISPLACEMENT_SIGNAL, FeatureEvidence
from pipeline.wording import against, printable, shortened, strongest_feature, table
from tests.alerts import make_alert


@pytest.mark.parametrize(
    ("observed", "expected", "band", "said"),
    [
        (18_373_360.0, 18_373_606.0, (18_373_512.0, 18_373_700.0), ("18373360", "18373606", "18373512 to 18373700")),
        (79.018745, 79.018801, (79.01829, 79.01932), ("79.01874", "79.0188", "79.01829 to 79.01932")),
        (3069.0, 0.971744, (-0.100658, 2.6941), ("3069", "0.9717", "-0.1007 to 2.694")),
        (2_945_024.0, 59.4884, (-289.518, 1228.05), ("2945024", "59.49", "-289.5 to 1228")),
        (None, 4.1, (4.02, 4.17), ("missing", "4.1", "4.02 to 4.17")),
        (9.0, 5.0, (5.0, 5.0), ("9", "5", "5 to 5")),
        (0.0, 0.0, (-1e-9, 1e-9), ("0", "0", "-1e-09 to 1e-09")),
        (2.5e16, 1.0, (0.0, 2.0), ("2.5e+16", "1", "0 to 2")),
        (1.0, math.nan, (math.nan, math.nan), ("1", "–", "")),
    ],
)
def test_numbers_show_where_the_observation_lies_in_its_band(
    observed: float | None, expected: float, band: tuple[float, float], said: tuple[str, str, str]
) -> None:
    """Large numbers that hardly differ have digits enough to differ on paper; small ones have no idle digits."""
    assert against(observed, expected, band) == said


def test_the_strongest_feature_is_said_with_what_it_is_measured_against() -> None:
    """A displaced level lies where forecasts expect it by now: what counts is where it used to be."""
    assert DISPLACEMENT_SIGNAL in SIGNALS
    assert strongest_feature(make_alert()) == "value is 9, expected 5 (4 to 6)"
    displaced = FeatureEvidence("value", 9.0, 9.1, (8.5, 9.7), 12.0, usual=5.25)
    assert strongest_feature(make_alert(signal="displacement", features=(displaced,))) == "value is 9, usually 5.25"
    told = strongest_feature(make_alert(signal="means", features=(displaced,)))
    assert told == "value is 9, the others ask for 5.25"
    assert strongest_feature(make_alert(features=())) == ""


@pytest.mark.parametrize("most", [20, 21])
def test_a_long_id_keeps_its_beginning_and_its_end(most: int) -> None:
    """Ids of one plant begin alike, and those of one kind of sensor end alike."""
    short = shortened("north-hall/" + "x" * 240 + "/pump-7", most)
    assert len(short) == most
    assert short.startswith("north-hall")
    assert short.endswith("xx/pump-7")
    assert shortened("x" * most, most) == "x" * most


def test_names_from_messages_do_not_steer_the_terminal() -> None:
    """Whoever may name a stream must not be able to hide an alert from who looks for it."""
    name = "pump\x1b[2K\r\n\u202e"
    assert printable(name) == "pump\N{REPLACEMENT CHARACTER}[2K" + "\N{REPLACEMENT CHARACTER}" * 3
    assert all(line.isprintable() for line in table(("stream",), [(name,)]))
    assert printable("halle/ofen-ä 3 – °C") == "halle/ofen-ä 3 – °C"
