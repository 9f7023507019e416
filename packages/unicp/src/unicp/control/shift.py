"""DWS, dynamic weight shift: the cheapest action whose predicted error is within its tolerance (DESIGN 3.3).

That is the whole rule. Switching changes no weight and copies nothing: widths are views of one stored basis.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from unicp.records import Action


@dataclass(frozen=True)
class Option:
    """One thing that could be done now.

    cost: share of the operations of a full computation. error: predicted relative error, worst sample.
    tolerance: the largest error this action may have; a full computation has no error.
    """

    action: Action
    cost: float
    error: float
    tolerance: float
    width: int | None = None


FULL = Option(Action.COMPUTE, 1.0, 0.0, 0.0)


def cheapest_within_tolerance(options: Iterable[Option]) -> Option:
    """The cheapest option with error <= tolerance; full computation if there is none, and on a tie.

    An error that is not a number is never within a tolerance.
    """
    best = FULL
    for option in options:
        if option.error <= option.tolerance and option.cost < best.cost:
            best = option
    return best
