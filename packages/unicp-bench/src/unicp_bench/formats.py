"""Formats numbers and words, for the page and the tables of the documents."""

from __future__ import annotations

import math
from collections.abc import Iterable

MISSING = "–"


def number(value: float, digits: int = 1) -> str:
    """Fixed digits; a dash for NaN."""
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{digits}f}".replace("-", "−")


def speed(value: float) -> str:
    """A speed-up: "2.00x"."""
    if math.isnan(value):
        return MISSING
    return "over 1000x" if value >= 1000 else f"{value:.2f}x"


def signed(value: float) -> str:
    """A difference in tenths, always with its sign; "0.0" has none."""
    rounded = round(value, 1)
    return f"+{rounded:.1f}" if rounded > 0 else number(rounded or 0.0)


def counted(count: int, noun: str) -> str:
    """ "1 clip", "2 clips"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listed(words: Iterable[object]) -> str:
    """Words in a row: "a, b and c"."""
    *first, last = [str(word) for word in words] or [""]
    return f"{', '.join(first)} and {last}" if first else last
