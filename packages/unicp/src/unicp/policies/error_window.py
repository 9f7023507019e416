"""EDCW, the error-aware dynamic cache window: skips while the predicted error of the window is within the tolerance.

The error of skipping is measured at every full step, where the true output is there anyway, and predicted in between.
The paper's rule (eq. 1, known second-hand) compares attention outputs of two steps with one threshold; how the error is
predicted where nothing was computed is our reading:

* growth: the error of reusing an output grows with the distance h to it, that of a first-order forecast from points a
  gap g apart with h * (h + g) (the remainder of linear extrapolation); the factor is learnt at each measurement;
* drift: the change of what enters the cache point since the last full step, seen at once at every step. Where it
  exceeds what its last measured rate announced, the prediction is raised in the same proportion, so that a sudden spike
  closes the window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from unicp.context import Decision, Observation, RunInfo, StepContext
from unicp.policies.base import CachePolicy, policies
from unicp.policies.impact import LAST_STEPS, SKIP_POWER, later_weight, step_tolerance
from unicp.policies.weight_shift import FULL, SKIP, Option, cheapest_within_tolerance
from unicp.settings import Settings

# Weight of the newest measurement in the learnt factor (ours). A rise is followed at once whatever the weight.
SMOOTHING = 0.5


@dataclass
class ErrorWindow:
    """The window of one branch: learns from measurements, and predicts the error of skipping. Holds floats only.

    Attributes:
        points: How many full steps a prediction is made from: 1 = reuse, 2 = a line.
        steps: The last full steps, oldest first.
        factors: Learnt error per unit of growth, one for each sample; `None` before the first measurement.
        drift_rate: Relative change of the input per step, as last measured, one for each sample.
        errors: Predicted for the steps skipped since the last full one (worst sample).
    """

    points: int
    steps: list[int] = field(default_factory=list)
    factors: list[float] | None = None
    drift_rate: list[float] | None = None
    errors: list[float] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        """How many steps in a row were skipped."""
        return len(self.errors)

    @property
    def ready(self) -> bool:
        """True once there are enough full steps and an error has been measured."""
        return len(self.steps) >= self.points and self.factors is not None

    def total(self, error: float, later: float = 1.0) -> float:
        """Predicted errors of the window with one more step of this error.

        From its second step on they count `later` times.
        """
        first, *rest = *self.errors, error
        return first + later * math.fsum(rest)

    def growth(self, step: int) -> float:
        """How the error at `step` compares with that one step after the last full one, in steps: h, or h * (h + g).

        Steps measure it whatever the axis: the first log-SNR is nearly infinite, and would make any reach look short.
        """
        reach, gap = abs(step - self.steps[-1]), self._gap
        return float(reach) if gap is None else float(reach * (reach + gap))

    def reach(self, step: int) -> float:
        """How far `step` lies beyond the last full one, in gaps between the last two; 0 for reuse."""
        gap = self._gap
        if gap is None:
            return 0.0
        return abs(step - self.steps[-1]) / gap if gap else math.inf

    @property
    def _gap(self) -> int | None:
        """Steps between the last two full ones; `None` where a prediction is made from one."""
        return None if self.points < 2 or len(self.steps) < 2 else abs(self.steps[-1] - self.steps[-2])

    def predict(self, step: int, drift: Sequence[float] | None = None) -> list[float]:
        """The predicted error of skipping `step`, one number for each sample.

        Args:
            step: Step of the run.
            drift: Relative change of the input since the last full step, for each sample; `None` = not known.

        Raises:
            RuntimeError: Nothing was measured yet.
        """
        if self.factors is None:
            raise RuntimeError("predict() before any measurement")
        growth = self.growth(step)
        errors = [factor * growth for factor in self.factors]
        if drift is None:
            return errors
        # Not error * inf: that is not a number where the learnt error is 0.
        spikes = self._spikes(step, drift)
        return [error * spike if math.isfinite(spike) else math.inf for error, spike in zip(errors, spikes)]

    def _spikes(self, step: int, drift: Sequence[float]) -> list[float]:
        if self.drift_rate is None or len(self.drift_rate) != len(drift):
            return [1.0] * len(drift)
        distance = abs(step - self.steps[-1])
        return [_spike(seen, rate * distance) for seen, rate in zip(drift, self.drift_rate)]

    def observe(self, step: int, errors: Sequence[float] | None, drift: Sequence[float] | None = None) -> None:
        """Takes in a full step, and closes the window.

        Args:
            step: Step of the run.
            errors: What skipping it would have cost, for each sample; `None` = not known.
            drift: Relative change of the input since the full step before.
        """
        if errors is not None:
            self._learn(self.growth(step), errors)
        distance = abs(step - self.steps[-1]) if self.steps else 0
        if drift is not None and distance > 0:
            self.drift_rate = [value / distance for value in drift]
        self.steps = [*self.steps, step][-self.points :]
        self.errors = []

    def _learn(self, growth: float, errors: Sequence[float]) -> None:
        new = [error / growth for error in errors] if growth > 0 else [math.inf]
        if not all(math.isfinite(factor) for factor in new):
            self.factors = None
            return
        if self.factors is not None and len(self.factors) == len(new):
            # A rise is followed at once, a fall slowly: a spike must not be averaged away.
            new = [max(n, SMOOTHING * n + (1 - SMOOTHING) * o) for n, o in zip(new, self.factors)]
        self.factors = new


def _spike(seen: float, announced: float) -> float:
    """How many times more drift was seen than announced, at least 1; what is not finite is an infinite spike."""
    if not math.isfinite(seen):
        return math.inf
    if announced > 0:
        return max(1.0, seen / announced)
    return math.inf if seen > 0 else 1.0


class ErrorWindowPolicy(CachePolicy):
    """EDCW with one window for each branch of a run.

    A step is skipped while the errors predicted for its window, added up, are within the tolerance of the step. The
    first branch of a step also asks for the others that the step before had: what is skipped in one alone saves little,
    and its difference to the others is multiplied by guidance.

    Args:
        settings: tolerance, weighting, max_window, max_reach, first and last are used.
    """

    asks_for_others = True
    # Whether predicted errors close the window; a fixed schedule is followed whatever they are.
    is_adaptive = True

    def __init__(self, settings: Settings):
        self.settings = settings
        self.windows: dict[str, ErrorWindow] = {}
        self._points = 1
        # The replayed steps of a window are corrected at the next full step. That is less well known of several than
        # of one, and at the end of a run no full step follows.
        is_replayed = settings.replay and settings.level in ("model", "stack")
        self._later = later_weight(settings.tolerance) if is_replayed else 1.0

    def start_run(self, run: RunInfo) -> None:
        """Forgets all windows."""
        self.windows, self._points = {}, run.points

    def decide(self, step: StepContext, seen: Observation) -> Decision:
        """Skips if the window of this branch, with this step in it, is within the tolerance of the step."""
        window, tolerance = self._window(step.branch), self.tolerance(step)
        reason = seen.veto or self.refusal(window, step)
        if not reason and any(self._refuses(self.windows[name], step, tolerance) for name in seen.others):
            reason = "other branch"
        if reason := reason or seen.not_ready:
            return Decision(False, reason, tolerance)
        # A fixed schedule may skip before anything was measured.
        predicted = tuple(window.predict(step.step, seen.since_full())) if window.ready else None
        worst = max(predicted or (), default=0.0)
        if cheapest_within_tolerance(self._options(window, worst, tolerance)) is FULL:
            calm = window.total(max(window.predict(step.step) if predicted else [], default=0.0), self._later)
            is_spike = calm <= tolerance < window.total(worst, self._later)
            return Decision(False, "spike" if is_spike else "tolerance", tolerance, predicted)
        window.errors.append(worst + seen.base_error)
        return Decision(True, "within", tolerance, predicted)

    def observe(self, step: StepContext, seen: Observation, errors: Sequence[float] | None) -> None:
        """Learns from a full step."""
        self._window(step.branch).observe(step.step, errors, seen.since_full())

    def tolerance(self, step: StepContext) -> float:
        """Largest total of predicted errors of a window that skips this step; smaller at the last steps of a run."""
        tolerance = step_tolerance(self.settings.tolerance, self.settings.weighting, step, SKIP_POWER)
        is_end = step.steps is not None and step.step >= step.steps - LAST_STEPS
        return tolerance / self._later if is_end else tolerance

    def refusal(self, window: ErrorWindow, step: StepContext) -> str:
        """Why skipping is out of the question before any prediction, "" = it is not."""
        settings = self.settings
        if step.step < settings.first:
            return "first"
        if step.steps is not None and step.step >= step.steps - settings.last:
            return "last"
        if not window.ready:
            return "learning"
        if window.skipped >= settings.max_window:
            return "window"
        return "reach" if window.reach(step.step) > settings.max_reach else ""

    def _window(self, branch: str) -> ErrorWindow:
        if branch not in self.windows:
            self.windows[branch] = ErrorWindow(self._points)
        return self.windows[branch]

    def _refuses(self, window: ErrorWindow, step: StepContext, tolerance: float) -> bool:
        if self.refusal(window, step):
            return True
        worst = max(window.predict(step.step), default=0.0) if window.ready else 0.0
        return cheapest_within_tolerance(self._options(window, worst, tolerance)) is FULL

    def _options(self, window: ErrorWindow, error: float, tolerance: float) -> list[Option]:
        """Skipping, for DWS to weigh. Tolerance 0 skips nothing, even where the prediction is 0."""
        total = window.total(error, self._later) if self.is_adaptive else 0.0
        return [Option(SKIP, 0.0, total, tolerance)] if tolerance > 0 else []


policies.add("error_window", ErrorWindowPolicy)
