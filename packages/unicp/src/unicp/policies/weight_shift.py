"""DWS, the dynamic weight shift: of all that could be done, the cheapest whose error is within its tolerance.

That is the whole rule (the paper's "dynamic switching between pruned and cached outputs", our reading): skip, slice at
some width, or compute in full. Switching changes no weight and copies nothing, as widths are views of one stored basis.
Skipping is asked first, since its error is predicted; the error of a slice is measured in the call itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SKIP, SLICED, COMPUTED = "skip", "slice", "full"


@dataclass(frozen=True)
class Option:
    """One thing that could be done now.

    Attributes:
        action: "skip", "slice" or "full".
        cost: Share of the cost of a full computation.
        error: Expected relative error, worst sample.
        tolerance: Largest error that this action may have.
        width: Channels of a head, for a slice.
    """

    action: str
    cost: float
    error: float
    tolerance: float
    width: int | None = None


FULL = Option(COMPUTED, 1.0, 0.0, 0.0)


def cheapest_within_tolerance(options: Iterable[Option]) -> Option:
    """The cheapest option with error <= tolerance; `FULL` if there is none, and on a tie.

    An error that is not a number is never within a tolerance.

    Example:
        >>> cheapest_within_tolerance([Option("slice", 0.5, 0.01, 0.03, 32), Option("skip", 0.0, 0.2, 0.1)]).width
        32
    """
    best = FULL
    for option in options:
        if option.error <= option.tolerance and option.cost < best.cost:
            best = option
    return best
