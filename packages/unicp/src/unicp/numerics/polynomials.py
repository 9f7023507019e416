"""Polynomials through points. Floats only, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence


def lagrange_weights(places: Sequence[float], at: float) -> list[float]:
    """How much each point counts in the value at `at` of the polynomial through all of them (Lagrange's form).

    Args:
        places: Of the points, all different.
        at: Place of the value.

    Returns:
        One weight for each place; they sum to 1.

    Example:
        >>> lagrange_weights([0.0, 1.0], 3.0)
        [-2.0, 3.0]
    """
    return [
        math.prod((at - other) / (place - other) for index, other in enumerate(places) if index != own)
        for own, place in enumerate(places)
    ]
