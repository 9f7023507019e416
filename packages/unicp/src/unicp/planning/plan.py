"""A solved schedule for one run: what it computes, what is predicted of it, and all its guard needs; a JSON file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from unicp.context import Action, Axis, Forecast, Quantity
from unicp.errors import FileFormatError, InputError
from unicp.files import Decibels, Finite, NotNegative, Number, Positive, Step, load_record, save_record
from unicp.numerics.noise_levels import NoiseLevel
from unicp.planning.curves import ForecastErrors
from unicp.policies.guard import Schedule
from unicp.policies.planned import Course
from unicp.policies.step_paths import SUM, WindowLoss
from unicp.records import Trace

PLAN_TYPE, PLAN_VERSION = "unicp.plan", 5
# Relative difference of noise levels up to which a run is taken for the one a plan was made for.
SAME_LEVEL = 1e-4


@dataclass(frozen=True)
class Curves:
    """What the guard compares with: see `unicp.planning.curves.ForecastErrors`; weights: inf where not servable.

    power, row, end: see `unicp.policies.step_paths.WindowLoss`.
    """

    places: list[Finite]
    products: list[list[Finite]]
    scales: list[NotNegative]
    weights: list[NotNegative]
    power: Number
    row: Positive
    end: Positive
    mended: bool = False


@dataclass(frozen=True)
class Plan:
    """Which steps of a run are computed; all others are served.

    target: what was asked, "" for a replay. model: class of the transformer. steps, sigmas: of the run, noise levels
    of its steps. computed: steps, in order. quantity, abscissa: what is forecast, over what. allowance: the loss
    that the guard may spend, 0 with no guard. most: most steps that may be computed. expected: steps that are expected
    to be computed in the end, by the guard too. psnr, psnr_low, psnr_high: predicted, in dB (None = not known).
    speed_up, seconds: predicted of the whole run. fewer: the plain pipeline with this many steps is better, and what
    is predicted is of it (None = it is not); fewer_computed: which steps of the run these are ([] = evenly spaced
    ones). curves: None = a replay.
    tolerance: of the online rule of `balanced`, which then decides, and `computed` is empty (None = a schedule does).
    notes: what a user should know, a line each.
    """

    target: str
    model: str
    steps: Step
    sigmas: list[NotNegative]
    computed: list[Step]
    quantity: str
    abscissa: str
    allowance: NotNegative = 0.0
    most: Step = 0
    expected: NotNegative = 0.0
    psnr: Decibels | None = None
    psnr_low: Decibels | None = None
    psnr_high: Decibels | None = None
    speed_up: NotNegative | None = None
    seconds: NotNegative | None = None
    fewer: Step | None = None
    fewer_computed: list[Step] = field(default_factory=list)
    curves: Curves | None = None
    tolerance: Positive | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise FileFormatError("a plan", problem, "make it again")

    @property
    def forecast(self) -> Forecast:
        """The one way to serve in a run under this plan."""
        return Forecast(self.quantity, self.abscissa)  # type: ignore[arg-type]

    @property
    def schedule(self) -> Schedule:
        """What the guard follows. Without curves it only follows."""
        curves, computed = self.curves, tuple(self.computed)
        if curves is None:
            weights = [0.0] * self.steps
            most = len(self.computed)
            return Schedule(self.steps, computed, lambda *_: 0.0, weights, SUM, math.inf, most, self.forecast)
        errors = ForecastErrors(self.forecast, curves.places, curves.products, curves.scales, curves.mended)
        rule = WindowLoss(curves.power, curves.row, curves.end)
        most = max(self.most, len(self.computed))
        return Schedule(
            self.steps, computed, errors, curves.weights, rule, self.allowance, most, self.forecast, errors.left
        )

    @property
    def course(self) -> Course:
        """What a run follows: a guard of the schedule, or the online rule."""
        if self.tolerance is not None:
            return Course(self.forecast, None, self.tolerance)
        return Course(self.forecast, self.schedule)

    def fits(self, levels: Sequence[NoiseLevel]) -> bool:
        """Whether a run at these noise levels, one for each step, is the one this plan was made for."""
        pairs = zip(self.sigmas, (level.sigma for level in levels))
        return len(levels) == self.steps and all(math.isclose(a, b, rel_tol=SAME_LEVEL, abs_tol=1e-6) for a, b in pairs)

    def drawing(self) -> str:
        """One character per step: "C" computed, "." served, "?" where the online rule decides."""
        if self.tolerance is not None:
            return "?" * self.steps
        chosen = set(self.computed)
        return "".join("C" if step in chosen else "." for step in range(self.steps))

    def text(self) -> str:
        """What a user wants to know, a few lines."""
        if self.tolerance is None:
            lines = [f"plan for {self.target or 'a replay'}: {len(self.computed)} of {self.steps} steps computed"]
            lines.append(f"  {self.drawing()}")
        else:
            lines = [f"plan for {self.target}: the online rule with tolerance {self.tolerance:.3g} decides"]
            lines.append(f"  about {self.expected:.1f} of {self.steps} steps computed, more on hard prompts")
        if self.fewer is not None:
            how = f"the steps {self.fewer_computed} of {self.steps}" if self.fewer_computed else "evenly spaced"
            lines = [f"plan for {self.target}: the plain pipeline with {self.fewer} steps, {how}"]
        if self.speed_up is not None:
            seconds = "" if self.seconds is None else f", {self.seconds:.3g} s a clip"
            guard = (
                f" (about {self.expected:.1f} steps computed with the guard)"
                if self.allowance and self.fewer is None
                else ""
            )
            lines.append(f"  speed: {self.speed_up:.2f}x{seconds}{guard}")
        if self.psnr is not None and math.isfinite(self.psnr):
            lines.append(f"  PSNR: {self.psnr:.1f} dB, 90 % of clips from {self.psnr_low:.1f} to {self.psnr_high:.1f}")
        elif self.psnr is not None:
            lines.append("  PSNR: equal to the plain clip, nothing is served")
        if self.fewer is None:
            lines.append(f"  served: {self.quantity} over {self.abscissa}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def __str__(self) -> str:
        return self.text()


def all_computed(steps: int) -> Course:
    """What a run follows in which nothing is served."""
    every = Forecast("output", "step")
    schedule = Schedule(steps, tuple(range(steps)), lambda *_: 0.0, [0.0] * steps, SUM, math.inf, steps, every)
    return Course(every, schedule)


def save_plan(plan: Plan, path: str | Path) -> None:
    """Writes a plan; errors as for `unicp.files.save_trace`."""
    save_record(plan, PLAN_TYPE, PLAN_VERSION, path)


def load_plan(path: str | Path) -> Plan:
    """Reads a plan. Raises InputError where there is no readable file, FileFormatError where it is no sound plan."""
    return load_record(Plan, PLAN_TYPE, PLAN_VERSION, path, "make it again")


def plan_of_trace(trace: Trace, run: int | None = None) -> Plan:
    """A plan that computes just what a run of a trace computed, and serves the rest in the same way, without a guard.

    run: which one, None = the last. Raises InputError where the trace has no such run, served spans other than the
    model's output, did not compute or serve whole steps, or changed its way of forecasting.
    """
    entries = [entry for entry in trace.entries if entry.unit == "model"]
    wanted = max((entry.run for entry in entries), default=0) if run is None else run
    own = [entry for entry in entries if entry.run == wanted]
    asked = f"a plan from run {wanted} of a trace"
    if not own or len(own) < sum(entry.run == wanted for entry in trace.entries):
        raise InputError(asked, "no such run of level model", "name a run that served the model's output")
    actions: dict[int, set[str]] = {}
    for entry in own:
        actions.setdefault(entry.step, set()).add(entry.action)
    unusual = {Action.SLICE.value, Action.REUSE.value} & set().union(*actions.values())
    if unusual or any(len(found) > 1 for found in actions.values()):
        raise InputError(asked, "steps that are neither computed nor forecast as a whole", "replay another run")
    ways = {entry.predictor for entry in own if entry.action == Action.FORECAST.value} or {"noise over log_snr"}
    if len(ways) > 1:
        raise InputError(asked, f"several ways to forecast ({', '.join(sorted(map(str, ways)))})", "replay another run")
    quantity, _, abscissa = str(next(iter(ways))).partition(" over ")
    steps = max(actions) + 1
    sigmas = {entry.step: entry.sigma for entry in own}
    if sorted(actions) != list(range(steps)) or any(sigma is None for sigma in sigmas.values()):
        raise InputError(asked, "steps that are missing or of unknown noise level", "replay a whole run")
    if steps < trace.run_steps.get(str(wanted), steps):
        found = f"a run that was given up after {steps} of {trace.run_steps[str(wanted)]} steps"
        raise InputError(asked, found, "replay a whole run")
    computed = [step for step in range(steps) if actions[step] == {Action.FULL.value}]
    levels = [float(sigmas[step] or 0.0) for step in range(steps)]
    return Plan("", trace.model, steps, levels, computed, quantity, abscissa, expected=float(len(computed)))


def _problem(plan: Plan) -> str:
    """What is wrong with a plan, "" for nothing."""
    if plan.steps < 1 or len(plan.sigmas) != plan.steps:
        return f"{len(plan.sigmas)} noise levels for {plan.steps} steps"
    if sorted(set(plan.computed)) != plan.computed or not all(0 <= step < plan.steps for step in plan.computed):
        return "computed steps that are not in order or not of the run"
    if plan.quantity not in get_args(Quantity) or plan.abscissa not in get_args(Axis):
        return f"a forecast of {plan.quantity!r:.40} over {plan.abscissa!r:.40}"
    if plan.tolerance is not None and (plan.computed or not 0 < plan.tolerance < math.inf):
        return "an online rule beside computed steps, or with a tolerance that is not positive"
    if plan.fewer is not None and not 0 < plan.fewer <= plan.steps:
        return f"a plain run of {plan.fewer} of {plan.steps} steps"
    if plan.fewer_computed and len(plan.fewer_computed) != plan.fewer:
        return f"{len(plan.fewer_computed)} chosen steps for {plan.fewer}"
    if not all(0 <= step < plan.steps for step in plan.fewer_computed):
        return "chosen steps that are not of the run"
    if len({bound is None for bound in (plan.psnr, plan.psnr_low, plan.psnr_high)}) > 1:
        return "a predicted PSNR without its bounds"
    curves = plan.curves
    if curves is None:
        return ""
    lengths = {len(curves.places), len(curves.products), len(curves.scales), len(curves.weights)}
    rows = [len(row) for row in curves.products]
    if lengths != {plan.steps} or rows != list(range(1, plan.steps + 1)):
        return "curves of another number of steps"
    if not (1 <= curves.power <= 2 and 0 < curves.row < math.inf and 0 < curves.end < math.inf):
        return "curves that do not say how errors add up"
    return ""
