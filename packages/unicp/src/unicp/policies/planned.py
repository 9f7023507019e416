"""Follows a plan in one run: which steps are full was chosen when the run began, and what is measured may add to them.

A plan has the full steps of least loss (`unicp.policies.run_loss`). At every full step the error that skipping it would
have had is measured anyway, and compared with what the plan announced. Where that ratio leaps, the run is harder here
than it was: the full steps to come are chosen anew, more of them. A sample that does not follow from the sampler's last
step is vetoed before any policy is asked. Floats only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from unicp.context import Decision, Forecast, Observation, RunInfo, StepContext
from unicp.policies.base import CachePolicy, policies
from unicp.policies.error_window import ErrorWindowPolicy
from unicp.policies.run_loss import RunLoss
from unicp.settings import Settings

# A leap: so many times the larger of the last two ratios. Chosen: those of the test-beds rise at most 2.2 times from
# one full step to the next.
LEAP = 4.0
# Leaps are told from so many ratios.
KNOWN = 2
# Tolerances of the online rule, which stands in where a run cannot be planned, in those of a plan. Chosen: "balanced"
# then skips about as many steps either way.
RULE_TOLERANCE = 2.0


@dataclass(frozen=True)
class Schedule:
    """What a run follows.

    Attributes:
        steps: Length of the run.
        full: The full steps, rising.
        loss: Of any choice of them; `None` = nothing is announced, and no step is added.
        can_add: Whether full steps may be added where the run turns out harder.
        forecast: How skipped steps are filled; `None` = as the settings say.
    """

    steps: int
    full: tuple[int, ...]
    loss: RunLoss | None = None
    can_add: bool = True
    forecast: Forecast | None = None

    def policy(self) -> CachePolicy:
        """The policy of a run that follows this."""
        return PlannedPolicy(self)


class PlannedPolicy(CachePolicy):
    """Full steps are those of the schedule, and those that a leap adds.

    Args:
        schedule: Of the run.
    """

    starts_early = True

    def __init__(self, schedule: Schedule):
        self.schedule = schedule
        self.full = frozenset(schedule.full)
        self._warn = RunInfo("", 1).warn
        self._known: list[int] = []  # full steps so far
        self._ratios: list[float] = []
        self._at, self._reason = -1, ""
        self._errors: dict[str, float] = {}
        self._is_full = False

    def start_run(self, run: RunInfo) -> None:
        """Nothing is known of the run yet."""
        self._warn = run.warn

    def decide(self, step: StepContext, seen: Observation) -> Decision:
        """What the plan says, and what was added to it. The same for all calls of a step."""
        if step.step != self._at:
            self._enter(step.step)
        reason = self._reason or seen.veto or seen.not_ready
        if reason:
            return Decision(False, reason)
        return Decision(True, "plan", predicted=self._announced(step))

    def observe(self, step: StepContext, seen: Observation, errors: Sequence[float] | None) -> None:
        """Takes in a full step and the error that skipping it would have had."""
        if step.step != self._at:
            self._enter(step.step)
        self._is_full = True
        if errors:
            self._errors[step.branch] = max(errors) if not any(map(math.isnan, errors)) else math.nan

    def _enter(self, step: int) -> None:
        """Closes the step before, and opens this one."""
        if self._is_full:
            self._close(self._at)
        self._at, self._errors, self._is_full = step, {}, False
        is_planned = step in self.schedule.full or step >= self.schedule.steps
        self._reason = "plan" if is_planned else "guard" if step in self.full else ""

    def _close(self, step: int) -> None:
        """A full step is done: its error tells whether the run is as the plan expects."""
        known, loss = self._known, self.schedule.loss
        self._known = [*known, step]
        # From a first step at noise alone, or as good as, a line tells nothing.
        if loss is None or not self._errors or len(known) < 2 or known[-2] == 0:
            return
        announced = loss.relative(known[-2], known[-1], step)
        seen = math.sqrt(math.fsum(error * error for error in self._errors.values()) / len(self._errors))
        if not announced > 0:
            return
        ratio = seen / announced
        if self.schedule.can_add and _leaps(ratio, self._ratios):
            usual = max(self._ratios[-KNOWN:], default=0.0)
            self._add(step, ratio / usual if math.isfinite(ratio) and usual else math.inf)
        if math.isfinite(ratio):
            self._ratios.append(ratio)

    def _add(self, step: int, harder: float) -> None:
        """Chooses the full steps to come anew: their loss, so many times larger now, may be what it was to be."""
        loss = self.schedule.loss
        ahead = sorted(one for one in self.full if one > step)
        if loss is None or step >= self.schedule.steps - 1:
            return
        ends = [*self._known[-2:], *ahead, self.schedule.steps]
        allowed = math.fsum(loss.window(*three) for three in zip(ends, ends[1:], ends[2:])) / harder
        paths = loss.best(self._known)
        count = min((n for n, path in paths.items() if path.loss <= allowed), default=max(paths))
        chosen = frozenset(one for one in paths[count].computed if one > step) | frozenset(ahead)
        self.full = frozenset(one for one in self.full if one <= step) | chosen
        added = sorted(chosen - frozenset(ahead))
        if added:
            listed = ", ".join(map(str, added))
            self._warn("guard", f"step {step}: errors {harder:.2g} times those before, also computes {listed}")

    def _announced(self, step: StepContext) -> tuple[float, ...] | None:
        """The error that the plan announces for a skipped step, by what this run measured so far."""
        loss = self.schedule.loss
        if loss is None or len(self._known) < 2:
            return None
        usual = max(self._ratios[-KNOWN:], default=1.0)
        return (usual * loss.relative(self._known[-2], self._known[-1], step.step),) * step.samples


def _leaps(value: float, before: Sequence[float]) -> bool:
    """Whether a ratio is so much larger than those before that the run has changed; what is no number always is."""
    if not math.isfinite(value):
        return True
    return len(before) >= KNOWN and value > LEAP * max(before[-KNOWN:])


def _unplanned(settings: Settings) -> CachePolicy:
    """What decides until a run is planned, and where it cannot be: the online rule."""
    return ErrorWindowPolicy(replace(settings, tolerance=RULE_TOLERANCE * settings.tolerance))


policies.add("planned", _unplanned)
