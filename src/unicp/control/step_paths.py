"""Which steps of a run to compute: the exact best choice for every number of them, by a shortest path.

A first-order forecast depends on the last two computed steps, so a path goes over pairs of computed steps. What the
steps served between two computed ones do is asked of a function; its meaning (which error, weighed how) is the
caller's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

# (step computed before last, step computed last, next computed step) -> the change that serving the steps between the
# latter two makes; inf = not servable. The number of steps of a run stands for the next step where none is computed.
Change = Callable[[int, int, int], float]
# A first-order forecast needs two computed steps, and one more at which its error is measured before it serves.
WARM_UP = (0, 1, 2)
MAX_WINDOW = 8
# Farthest a forecast may reach beyond its newer point, in distances between its two points, as in the online rule:
# farther ones came apart on hard prompts, whatever the errors of others were.
MAX_REACH = 1.0


@dataclass(frozen=True)
class WindowLoss:
    """How the changes that single served steps make add up to the loss of a run (our reading).

    Within one window, the steps served between two computed ones, they add up as they are: a straight line misses a
    curve on one side. Windows add as change ** power, because errors of different windows are hardly in phase.

    row: how many times more a window of several steps does than its steps do one by one, with a computed step after
    each (which mends most of what it did). end: the same of the window that reaches the end of the run, after which
    nothing mends it.
    """

    power: float = 1.0
    row: float = 1.0
    end: float = 1.0

    def __call__(self, change: float, served: int, is_end: bool) -> float:
        """The loss of one window of `served` steps with this sum of changes."""
        return change**self.power * (self.end if is_end else self.row if served > 1 else 1.0) ** self.power


SUM = WindowLoss()


def one_by_one(change: Callable[[int, int, int], float]) -> Change:
    """The sum of what served steps do, each alone: change is of (computed before last, computed last, served)."""
    return lambda before, last, following: math.fsum(change(before, last, one) for one in range(last + 1, following))


@dataclass(frozen=True)
class StepPath:
    """Steps computed, in order, those at the start included, and the loss, summed over windows."""

    computed: tuple[int, ...]
    loss: float


def best_paths(
    steps: int,
    change: Change,
    start: Sequence[int] = WARM_UP,
    required: Collection[int] = (),
    max_window: int = MAX_WINDOW,
    max_reach: float = MAX_REACH,
    rule: WindowLoss = SUM,
) -> dict[int, StepPath]:
    """The path of least loss for each possible number of computed steps, by that number.

    start: steps computed already, in order, at least two; the path goes on after them. required: steps that are
    computed in any case. max_window: most steps served in a row. max_reach: of a forecast beyond its newer point, in
    distances between its two points. rule: how changes add up. Numbers that no path of finite loss has are left out;
    that of computing everything is always there. Source: a shortest path, as in LeMiCa (arXiv 2511.00090), here over
    pairs.
    """
    begin = tuple(step for step in start if step < steps)
    if len(begin) < min(2, steps):
        raise ValueError(f"a path of {steps} steps that starts with {begin}")
    if len(begin) == steps:
        return {steps: StepPath(begin, 0.0)}
    # The best path so far by the last two computed steps, all with the same number of computed steps.
    layer: dict[tuple[int, int], StepPath] = {(begin[-2], begin[-1]): StepPath(begin, 0.0)}
    change = functools.cache(change)
    found: dict[int, StepPath] = {}
    while layer:
        longer: dict[tuple[int, int], StepPath] = {}
        for (before, last), path in layer.items():
            window = min(max_window, max_reach * (last - before))
            ended = _extend(path, before, last, steps, change, frozenset(required), window, rule, longer)
            count = len(path.computed)
            if ended < math.inf and (count not in found or ended < found[count].loss):
                found[count] = StepPath(path.computed, ended)
        layer = longer
    return found


def _extend(
    path: StepPath,
    before: int,
    last: int,
    steps: int,
    change: Change,
    required: frozenset[int],
    max_window: float,
    rule: WindowLoss,
    longer: dict[tuple[int, int], StepPath],
) -> float:
    """Puts every path with one more computed step into `longer`; the loss if none is computed any more, or inf."""
    for following in range(last + 1, steps + 1):
        served, spent = following - last - 1, path.loss
        if served > max_window:
            return math.inf
        if served:
            spent += rule(change(before, last, following), served, is_end=following == steps)
        # Not a number is no loss that could be compared: such a step is computed.
        if not spent < math.inf:
            return math.inf
        if following == steps:
            return spent
        key = (last, following)
        if key not in longer or spent < longer[key].loss:
            longer[key] = StepPath((*path.computed, following), spent)
        if following in required:
            return math.inf
    return math.inf


def path_loss(computed: Sequence[int], steps: int, change: Change, rule: WindowLoss = SUM) -> float:
    """The loss of a given schedule: `computed` in order, all other steps after the second one served."""
    following = [*computed, steps]
    windows = [window for window in zip(following, following[1:], following[2:]) if window[2] - window[1] > 1]
    return sum(rule(change(*window), window[2] - window[1] - 1, is_end=window[2] == steps) for window in windows)
