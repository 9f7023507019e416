"""Which steps of a run are to be full: the exact best choice for every number of them, by a shortest path.

A first-order forecast depends on the last two full steps, so a path goes over pairs of full steps. What the
steps skipped between two full ones do is asked of a function; its meaning (which error, weighed how) is the
caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# (full step before last, last full step, next full step) -> the change that skipping the steps between the
# latter two makes; inf = cannot be skipped. The number of steps of a run stands for the next step where there is none.
Change = Callable[[int, int, int], float]


@dataclass(frozen=True)
class StepPath:
    """Full steps, in order, those at the start included, and the loss, summed over windows."""

    computed: tuple[int, ...]
    loss: float


def best_paths(
    steps: int,
    change: Change,
    start: Sequence[int],
    max_window: int,
    max_reach: float,
) -> dict[int, StepPath]:
    """The path of least loss for each possible number of full steps, by that number.

    start: full steps so far, in order, at least two; the path goes on after them. max_window: most steps skipped in a
    row. max_reach: of a forecast beyond its newer point, in distances between its two points. Numbers that no path of
    finite loss has are left out; that of all full steps is always there. Source: a shortest path, as in LeMiCa (arXiv
    2511.00090), here over pairs.
    """
    begin = tuple(step for step in start if step < steps)
    if len(begin) < min(2, steps):
        raise ValueError(f"a path of {steps} steps that starts with {begin}")
    if len(begin) == steps:
        return {steps: StepPath(begin, 0.0)}
    # From diffusers. Not with the module: what only prints or follows a plan needs no arrays.
    import numpy as np

    windows = _windows(steps, change, begin, max_window, max_reach)
    # Losses of the best paths so far by (last full step, distance to the one before), all with the same number of
    # full steps; and, for each number, the distance that the step before last had on the way there.
    layer = np.full(windows.end.shape, np.inf)
    layer[begin[-1], begin[-1] - begin[-2]] = 0.0
    came_from: list[NDArray[np.int64]] = []
    found: dict[int, StepPath] = {}
    while np.isfinite(layer).any():
        with np.errstate(over="ignore"):  # losses too large for a float are no paths
            ended, longer = layer + windows.end, layer[:, :, None] + windows.between
        last, gap = np.unravel_index(int(ended.argmin()), ended.shape)
        if ended[last, gap] < np.inf:
            computed = (*begin, *_way_back(came_from, int(last), int(gap)))
            found[len(computed)] = StepPath(computed, float(ended[last, gap]))
        # Of equal ones that from the earliest step.
        best = longer.shape[1] - 1 - longer[:, ::-1].argmin(axis=1)
        losses = np.take_along_axis(longer, best[:, None], axis=1)[:, 0]
        layer = np.full(windows.end.shape, np.inf)
        origin = np.zeros(windows.end.shape, np.int64)
        for ahead in range(1, min(losses.shape[1], steps)):
            layer[ahead:, ahead], origin[ahead:, ahead] = losses[:-ahead, ahead], best[:-ahead, ahead]
        came_from.append(origin)
    return found


@dataclass(frozen=True)
class _Windows:
    """What may follow two full steps, and its loss; inf = may not.

    By (last full step, distance to the one before): between: and by the distance to the next full step.
    end: no full step any more.
    """

    between: NDArray[np.float64]
    end: NDArray[np.float64]


def _windows(
    steps: int,
    change: Change,
    begin: tuple[int, ...],
    max_window: int,
    max_reach: float,
) -> _Windows:
    import numpy as np

    first = begin[-1]
    widest = min(max_window, steps - first - 1) + 1
    size = max(widest, first - begin[-2]) + 1
    found = _Windows(np.full((steps, size, widest + 1), np.inf), np.full((steps, size), np.inf))
    for last in range(first, steps):
        # Before the last step of the beginning only the one before it is known.
        for gap in range(1, min(last - first, widest) + 1) if last > first else [first - begin[-2]]:
            for following in range(last + 1, steps + 1):
                skipped, loss = following - last - 1, 0.0
                if skipped > min(max_window, max_reach * gap):
                    break
                if skipped:
                    loss = change(last - gap, last, following)
                # Not a number is no loss that could be compared: such a window is none.
                if not loss < math.inf:
                    continue
                if following == steps:
                    found.end[last, gap] = loss
                else:
                    found.between[last, gap, following - last] = loss
    return found


def _way_back(came_from: Sequence[NDArray[np.int64]], last: int, gap: int) -> list[int]:
    """The steps computed after the beginning, in order, of the path that ends here."""
    steps: list[int] = []
    for origin in reversed(came_from):
        steps.append(last)
        last, gap = last - gap, int(origin[last, gap])
    return steps[::-1]
