"""How numbers and alerts are said to people, in a line."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.records import DISPLACEMENT_SIGNAL, Alert, FeatureEvidence

LEAST_DIGITS, MOST_DIGITS = 4, 9
PLAIN_BELOW = 1e12
MISSING = "missing"


def against(observed: float | None, expected: float, band: tuple[float, float]) -> tuple[str, str, str]:
    """Observed, expected and band (``"a to b"``, empty without one), each exact to a tenth of the band's width.

    What lies far outside of the band is exact to a hundredth of how far.
    """
    low, high = band
    width = high - low
    seen = MISSING if observed is None else number(observed, max(width, abs(observed - expected) / 10))
    between = f"{number(low, width)} to {number(high, width)}" if math.isfinite(width) else ""
    return seen, number(expected, width), between


def number(value: float, scale: float = 0.0) -> str:
    """A number exact to a tenth of ``scale``, with four digits at least, and an exponent only where it needs one."""
    if not math.isfinite(value):
        return "–"
    digits = LEAST_DIGITS
    if value and 0 < scale < math.inf:
        digits = min(MOST_DIGITS, max(LEAST_DIGITS, math.ceil(math.log10(abs(value) / scale)) + 2))
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+" in text and abs(value) < PLAIN_BELOW else text


def counted(number: int, noun: str) -> str:
    """``1 stream``, ``2 streams``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def usually(signal: str, feature: FeatureEvidence) -> str:
    """``usually 4.1`` or ``the others ask for 4.1``, where forecasts have long caught up; else empty."""
    if feature.usual is None:
        return ""
    level = number(feature.usual, feature.band[1] - feature.band[0])
    return f"usually {level}" if signal == DISPLACEMENT_SIGNAL else f"the others ask for {level}"


def strongest_feature(alert: Alert) -> str:
    """``pressure is 4.21, expected 4.1 (4.02 to 4.17)``; empty where no feature is named."""
    if not alert.features:
        return ""
    it = alert.features[0]
    observed, expected, band = against(it.observed, it.expected, it.band)
    return f"{it.name} is {observed}, {usually(alert.signal, it) or f'expected {expected} ({band})'}"


def printable(text: str) -> str:
    """The text as a terminal may have it: names come from messages, and could move its cursor or hide a line."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def shortened(text: str, most: int) -> str:
    """The text with its middle left out where it is longer than ``most``: ids differ at the beginning or at the end."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - half]}…{text[-half:]}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Lines of a table; columns ``right`` are numbers. The last column may be as long as it likes."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    return [line(head), line(["-" * width for width in widths]), *map(line, rows)]
