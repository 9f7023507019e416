"""Fixed schedules, whatever the error: the baselines that error-aware windows must beat."""

from __future__ import annotations

from unicp.context import StepContext
from unicp.policies.base import policies
from unicp.policies.error_window import ErrorWindow, ErrorWindowPolicy


class FixedWindowPolicy(ErrorWindowPolicy):
    """One full step in every `Settings.full_every`, from `Settings.first` to before the last `Settings.last` steps."""

    is_adaptive = False

    def refusal(self, window: ErrorWindow, step: StepContext) -> str:
        """As that of the adaptive window; only that the window has one length."""
        reason = super().refusal(window, step)
        if reason not in ("", "window", "reach"):
            return reason
        return "window" if window.skipped >= (self.settings.full_every or 1) - 1 else ""


class FixedStepsPolicy(ErrorWindowPolicy):
    """Full steps are those of `Settings.full_steps`, and the first one, without which nothing can be filled in."""

    is_adaptive = False
    starts_early = True

    def refusal(self, window: ErrorWindow, step: StepContext) -> str:
        """Whether the schedule has this step."""
        if step.step in (self.settings.full_steps or ()):
            return "schedule"
        return ""


policies.add("fixed_window", FixedWindowPolicy)
policies.add("fixed_steps", FixedStepsPolicy)
