"""Follows a plan in one run, with a guard that computes more where errors turn out larger than the plan announced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from unicp.context import Decision, Forecast, Observation, RunInfo, StepContext
from unicp.policies.base import CachePolicy
from unicp.policies.error_window import ErrorWindow, ErrorWindowPolicy
from unicp.policies.guard import Guard, Schedule
from unicp.settings import Settings, preset


class PlannedPolicy(ErrorWindowPolicy):
    """Full steps are those of the plan and those that the guard adds.

    Args:
        schedule: What the plan says of the run.
        settings: Of the session; windows go on predicting errors under them, for the trace.
    """

    is_adaptive = False

    def __init__(self, schedule: Schedule, settings: Settings):
        super().__init__(settings)
        self.guard = Guard(schedule)
        self._run: RunInfo | None = None

    def start_run(self, run: RunInfo) -> None:
        """Forgets all windows; the guard begins where the run is."""
        super().start_run(run)
        self._run = run

    def decide(self, step: StepContext, seen: Observation) -> Decision:
        """What the plan says, if the predictor is ready for it."""
        # Asked first in any case, since a step that is vetoed counts in the guard's account as well.
        self.guard.reason(step.step)
        while self.guard.events and self._run is not None:
            self._run.warn("guard", f"run {step.run}, {self.guard.events.pop(0)}")
        return super().decide(step, seen)

    def observe(self, step: StepContext, seen: Observation, errors: Sequence[float] | None) -> None:
        """Tells the guard what skipping would have cost."""
        self.guard.computed(step.step, step.branch, max(errors) if errors else None)
        super().observe(step, seen, errors)

    def refusal(self, window: ErrorWindow, step: StepContext) -> str:
        """Why the plan or its guard wants this step in full."""
        return self.guard.reason(step.step) or ("" if window.ready else "learning")


@dataclass(frozen=True)
class Course:
    """What a plan has a run follow: a schedule of full steps under a guard, or the rule of `balanced`.

    Attributes:
        forecast: How skipped steps are filled.
        schedule: The plan's full steps; `None` = the rule decides.
        tolerance: Of the rule.
    """

    forecast: Forecast
    schedule: Schedule | None = None
    tolerance: float = 0.0

    def policy(self, settings: Settings) -> CachePolicy:
        """The policy of a run. The rule is that of `balanced`, as it was calibrated, with this tolerance."""
        if self.schedule is not None:
            return PlannedPolicy(self.schedule, settings)
        known = preset("balanced")
        names = ("weighting", "max_window", "max_reach", "first", "last", "full_every", "full_steps")
        rule = replace(settings, tolerance=self.tolerance, **{name: getattr(known, name) for name in names})
        return ErrorWindowPolicy(rule)
