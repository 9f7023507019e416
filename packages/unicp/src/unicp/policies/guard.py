"""Watches a run that follows a plan, and adds full steps where errors turn out larger than the plan announced.

At every full step the error that skipping it would have had is measured anyway. Its ratio to the error announced for
that very forecast says how hard this run is here. The guard keeps an account of what the skipped steps have cost so
far, scales what lies ahead by the ratio, and solves the rest of the run anew: as few full steps as the allowance
permits, the plan's own among them. It never computes less than the plan, and knows nothing of other runs. Floats only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from unicp.context import Forecast
from unicp.policies.step_paths import WARM_UP, StepPath, WindowLoss, best_paths, path_loss

ROUNDING = 1e-6  # a run whose errors are just those announced must not be taken for a harder one
# What an error does grows faster than the error: on prompts of the test-bed whose errors were larger, the same error
# also changed the clip more. `python -m experiments.constants` shows this and the three below beside other values.
HARDNESS = 1.5
# What is spent cannot be had back: once the allowance is used up, this share of it more may be spent (0.4 dB).
LOST = 0.1
# Larger ratios are not taken at their word. After skipped steps the sample is a little off, and most of what is then
# measured is the model's answer to that, which corrects it.
LARGEST = 1.5
MEMORY = 0.5  # weight of the ratios before the newest one, as logarithms


@dataclass(frozen=True)
class Schedule:
    """What a plan says about one run, for the guard.

    Attributes:
        steps: Length of the run.
        computed: The planned full steps, in order.
        error: Announced relative error of a forecast, rms over a sample, from (full step before last, last full step,
            skipped step).
        weights: Change of the clip per relative error, by step; inf where a step cannot be skipped.
        rule: How changes add up to the loss.
        allowance: Largest loss that the target permits.
        most: Most steps that may be full (a target of speed).
        forecast: How skipped steps are filled.
        left: Announced error that stays once a skipped step is replayed, from (full step before last, last full step,
            next full step, skipped step); `None` = that of the forecast.
    """

    steps: int
    computed: tuple[int, ...]
    error: Callable[[int, int, int], float]
    weights: Sequence[float]
    rule: WindowLoss
    allowance: float
    most: int
    forecast: Forecast = Forecast("noise", "log_snr")
    left: Callable[[int, int, int, int], float] | None = field(default=None, compare=False)

    def change(self, before: int, last: int, following: int) -> float:
        """The change of the clip by skipping the steps between `last` and `following`, which is `steps` at the end."""
        skipped = range(last + 1, following)
        if any(math.isinf(self.weights[step]) for step in skipped):
            return math.inf
        if self.left is None or following >= self.steps:
            return math.fsum(self.weights[step] * self.error(before, last, step) for step in skipped)
        return math.fsum(self.weights[step] * self.left(before, last, following, step) for step in skipped)


@dataclass
class Guard:
    """State of one run under a `Schedule`. Ask `reason` for each step in order, tell `computed` of each full one.

    Attributes:
        ratio: How many times larger than announced errors are taken to be from here on.
        spent: Estimated loss so far.
        events: One line for each time the guard added steps.
    """

    schedule: Schedule
    ratio: float = 1.0
    spent: float = 0.0
    events: list[str] = field(default_factory=list)
    _points: list[int] = field(default_factory=list)
    _chosen: frozenset[int] = frozenset()
    _now: int = -1
    _measured: dict[str, float] = field(default_factory=dict)
    _was_computed: bool = False

    def __post_init__(self) -> None:
        self._chosen = frozenset(self.schedule.computed)

    def reason(self, step: int) -> str:
        """Why this step is full, "plan" or "guard"; "" if it is skipped. The same answer for all its calls."""
        if step != self._now:
            self._enter(step)
        if step in self.schedule.computed or step in WARM_UP or step >= self.schedule.steps:
            return "plan"
        return "guard" if step in self._chosen else ""

    def computed(self, step: int, branch: str, error: float | None) -> None:
        """A call was computed.

        Args:
            step, branch: Where.
            error: The relative error that skipping it would have had; `None` = not measured.
        """
        if step != self._now:
            self._enter(step)
        self._was_computed = True
        if error is not None:
            self._measured[branch] = error

    def _enter(self, step: int) -> None:
        """Closes the account of the step before, and opens this one's."""
        previous = self._now
        self._now = step
        if previous < 0:
            # A plan is made once a run has shown itself: the steps before were full.
            self._points = list(range(step))
            return
        if self._was_computed:
            self._take_in(previous)
        self._measured, self._was_computed = {}, False

    @property
    def _scale(self) -> float:
        """How many times larger losses are taken to be than announced; without limit where errors are no numbers."""
        known = min(self.ratio, LARGEST) if math.isfinite(self.ratio) else self.ratio
        return known ** (HARDNESS * self.schedule.rule.power)

    def _take_in(self, step: int) -> None:
        """A full step is done: its error says what the window before it really cost, and what to expect."""
        if self._measured and len(self._points) >= 2:
            self._learn(step)
        if len(self._points) >= 2 and step - self._points[-1] > 1:
            change = self.schedule.change(self._points[-2], self._points[-1], step)
            skipped = step - self._points[-1] - 1
            self.spent += self.schedule.rule(change, skipped, is_end=False) * self._scale if change < math.inf else 0.0
        self._points = [*self._points, step]
        if len(self._points) >= len(WARM_UP):
            self._solve(step)

    def _learn(self, step: int) -> None:
        if self._points[-2] == 0:
            # The first step is at noise alone, or as good as: what a line through it misses by tells nothing.
            return
        announced = self.schedule.error(self._points[-2], self._points[-1], step)
        seen = math.sqrt(sum(error * error for error in self._measured.values()) / len(self._measured))
        if not announced > 0:
            return
        # What is no number, or infinite, is larger than anything announced: the rest is computed.
        newest = seen / announced if math.isfinite(seen) else math.inf
        # A rise is followed at once, a fall slowly.
        self.ratio = max(newest, newest ** (1 - MEMORY) * self.ratio**MEMORY) if newest > 0 else self.ratio * MEMORY

    def _solve(self, step: int) -> None:
        """Chooses the full steps to come: as few as the allowance permits, the plan's among them."""
        plan = self.schedule
        ahead = frozenset(one for one in plan.computed if one > step)
        before, self._chosen = self._chosen, ahead
        scale = self._scale
        left = max(plan.allowance * (1 + ROUNDING) - self.spent, LOST * self.spent)
        start = self._points
        if plan.most <= len(start) + len(ahead):
            return
        rest = path_loss([*start[-2:], *sorted(ahead)], plan.steps, plan.change, plan.rule)
        if math.isfinite(scale) and rest * scale <= left:
            return
        paths = best_paths(plan.steps, plan.change, start, ahead, rule=plan.rule)
        allowed = {count: path for count, path in paths.items() if count <= plan.most}
        if not allowed:
            return
        # After an error that is no number nothing more is allowed.
        chosen = _cheapest(allowed, left / scale if math.isfinite(scale) else 0.0)
        self._chosen = frozenset(one for one in chosen.computed if one > step)
        added = sorted(self._chosen - ahead - before)
        if added:
            listed = ", ".join(map(str, added))
            self.events.append(f"step {step}: errors {self.ratio:.2g} times those announced, also computes {listed}")


def _cheapest(paths: dict[int, StepPath], loss: float) -> StepPath:
    """The path with the fewest full steps whose loss is at most `loss`, else the one with the most."""
    for count in sorted(paths):
        if paths[count].loss <= loss:
            return paths[count]
    return paths[max(paths)]
