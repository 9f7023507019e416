"""A plan for one run: which steps are full, what is predicted of it, and what its guard needs; a JSON file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from unicp.context import Action, Forecast
from unicp.errors import FileFormatError, InputError
from unicp.files import Finite, NotNegative, Positive, Step, Within, load_record, renamed, save_record
from unicp.numerics.noise_levels import NoiseLevel
from unicp.planning.curves import ForecastErrors
from unicp.planning.fidelity import Psnr
from unicp.policies.guard import Schedule
from unicp.policies.planned import Course
from unicp.policies.step_paths import SUM, WindowLoss
from unicp.records import Trace

PLAN_TYPE, PLAN_VERSION = "unicp.plan", 7
# Largest relative difference of noise levels at which a plan fits a run. Chosen: schedulers keep levels in float32,
# which is good to 1e-7, and neighbouring steps of 1,000 differ by 1e-3.
SAME_LEVEL = 1e-4


@dataclass(frozen=True)
class Curves:
    """What the guard compares measured errors with, one value for each step of the run.

    Attributes:
        places: Steps on the axis of the forecast.
        products: Lower triangle of mean products of the forecast quantity, see `unicp.planning.curves.ForecastErrors`.
        scales: Mean square of the output times the square of its coefficient in the quantity.
        weights: Change of the clip per relative error; inf where a step cannot be skipped.
        power, row, end: How changes add up, see `unicp.policies.step_paths.WindowLoss`.
        replayed: Whether the sampler replays skipped steps.
    """

    places: list[Finite]
    products: list[list[Finite]]
    scales: list[NotNegative]
    weights: list[NotNegative]
    power: Annotated[float, Within(1, 2)]
    row: Positive
    end: Positive
    replayed: bool = False


@dataclass(frozen=True)
class PlannedSteps:
    """A schedule of full steps, under a guard that makes more of them full where errors are larger than predicted.

    Attributes:
        full: The full steps, rising.
        allowance: Loss that the guard may spend; 0 leaves it nothing to spend.
        most: Most steps that may be full.
        curves: What the guard compares with.
    """

    full: list[Step]
    allowance: NotNegative
    most: Step
    curves: Curves
    kind: Literal["schedule"] = "schedule"


@dataclass(frozen=True)
class OnlineRule:
    """The rule of the preset "balanced" decides each step, with this tolerance."""

    tolerance: Positive
    kind: Literal["rule"] = "rule"


@dataclass(frozen=True)
class Replay:
    """Exactly these steps are full, as in a run of a trace; no guard adds any."""

    full: list[Step]
    kind: Literal["replay"] = "replay"


Followed = Annotated[PlannedSteps | OnlineRule | Replay, Field(discriminator="kind")]


@dataclass(frozen=True)
class StepSubset:
    """The plain pipeline with fewer steps is better than any plan for all of them.

    Attributes:
        count: Number of steps.
        chosen: Which steps of the whole run, rising; [] = evenly spaced ones.
        otherwise: For a run that cannot be shortened.
    """

    count: Step
    chosen: list[Step]
    otherwise: Followed
    kind: Literal["subset"] = "subset"


@dataclass(frozen=True)
class Plan:
    """What one run does, and what is predicted of it.

    Attributes:
        target: What was asked for, "" for a replay.
        model: Class of the transformer.
        steps: Length of the run.
        sigmas: Noise levels of its steps, 0 (clean) to 1 (noise alone).
        forecast: How skipped steps are filled.
        how: One of the four kinds: a schedule, the online rule, a replay, or fewer steps.
        expected: Number of full steps, with those that the guard adds; a mean over clips.
        psnr: Predicted PSNR of the clip against its plain run, in dB; `None` = not known.
        speed_up: Predicted seconds of the plain run over those of this one; `None` = not known.
        seconds: Predicted for the whole run; `None` = not known.
        notes: Lines for the user.

    Raises:
        FileFormatError: The parts do not fit together.
    """

    target: str
    model: str
    steps: Step
    sigmas: list[NotNegative]
    forecast: Forecast
    how: Annotated[PlannedSteps | OnlineRule | Replay | StepSubset, Field(discriminator="kind")]
    expected: NotNegative = 0.0
    psnr: Psnr | None = None
    speed_up: NotNegative | None = None
    seconds: NotNegative | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise FileFormatError("a plan", problem, "make it again")

    @property
    def subset(self) -> StepSubset | None:
        """The steps that alone are run; `None` where the run keeps its length."""
        return self.how if isinstance(self.how, StepSubset) else None

    @property
    def followed(self) -> PlannedSteps | OnlineRule | Replay:
        """What a run of full length follows."""
        return self.how.otherwise if isinstance(self.how, StepSubset) else self.how

    @property
    def tolerance(self) -> float | None:
        """Tolerance of the online rule; `None` where another kind is followed."""
        return self.followed.tolerance if isinstance(self.followed, OnlineRule) else None

    @property
    def full_steps(self) -> list[int]:
        """The planned full steps, rising; none where the online rule decides."""
        return [] if isinstance(self.followed, OnlineRule) else self.followed.full

    @property
    def course(self) -> Course:
        """What a run of full length follows, as its policy needs it."""
        how = self.followed
        if isinstance(how, OnlineRule):
            return Course(self.forecast, None, how.tolerance)
        if isinstance(how, Replay):
            return _fixed(self.steps, how.full, self.forecast)
        curves, most = how.curves, max(how.most, len(how.full))
        errors = ForecastErrors(self.forecast, curves.places, curves.products, curves.scales, curves.replayed)
        rule = WindowLoss(curves.power, curves.row, curves.end)
        parts = (errors, curves.weights, rule, how.allowance, most, self.forecast, errors.left)
        return Course(self.forecast, Schedule(self.steps, tuple(how.full), *parts))

    def fits(self, levels: Sequence[NoiseLevel]) -> bool:
        """Whether a run at these noise levels, one for each step, is the one this plan was made for."""
        pairs = zip(self.sigmas, (level.sigma for level in levels))
        return len(levels) == self.steps and all(math.isclose(a, b, rel_tol=SAME_LEVEL, abs_tol=1e-6) for a, b in pairs)

    def drawing(self) -> str:
        """One character per step: "C" full, "." skipped, "?" where the online rule decides."""
        if self.tolerance is not None:
            return "?" * self.steps
        full = set(self.full_steps)
        return "".join("C" if step in full else "." for step in range(self.steps))

    def text(self) -> str:
        """The plan in a few lines for the user."""
        lines, guard = [], ""
        if isinstance(self.how, StepSubset):
            how = f"the steps {self.how.chosen} of {self.steps}" if self.how.chosen else "evenly spaced"
            lines.append(f"plan for {self.target}: the plain pipeline with {self.how.count} steps, {how}")
        elif isinstance(self.how, OnlineRule):
            lines.append(f"plan for {self.target}: the online rule with tolerance {self.how.tolerance:.3g} decides")
            lines.append(f"  about {self.expected:.1f} of {self.steps} steps full, more on hard prompts")
        else:
            lines.append(f"plan for {self.target or 'a replay'}: {len(self.how.full)} of {self.steps} steps full")
            lines.append(f"  {self.drawing()}")
            if isinstance(self.how, PlannedSteps) and self.how.allowance:
                guard = f" (about {self.expected:.1f} full steps with the guard)"
        if self.speed_up is not None:
            seconds = "" if self.seconds is None else f", {self.seconds:.3g} s a clip"
            lines.append(f"  speed: {self.speed_up:.2f}x{seconds}{guard}")
        if self.psnr is not None and math.isfinite(self.psnr.mean):
            bounds = f"90 % of clips from {self.psnr.low:.1f} to {self.psnr.high:.1f}"
            lines.append(f"  PSNR: {self.psnr.mean:.1f} dB, {bounds}")
        elif self.psnr is not None:
            lines.append("  PSNR: equal to the plain clip, nothing is skipped")
        if self.subset is None:
            lines.append(f"  skipped steps: {self.forecast}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def facts(self) -> dict[str, Any]:
        """The plan as plain values, without noise levels and curves, with the full steps and the drawing."""
        left_out: Any = {"sigmas": True, "how": {"curves": True, "otherwise": {"curves"}}}
        values = TypeAdapter(Plan).dump_python(self, exclude=left_out)
        return {**values, "full_steps": self.full_steps, "drawing": self.drawing()}

    def __str__(self) -> str:
        return self.text()


def _fixed(steps: int, full: Sequence[int], forecast: Forecast) -> Course:
    """These steps are full and no others."""
    most = len(full)
    schedule = Schedule(steps, tuple(full), lambda *_: 0.0, [0.0] * steps, SUM, math.inf, most, forecast)
    return Course(forecast, schedule)


def all_full(steps: int) -> Course:
    """A course on which no step is skipped."""
    return _fixed(steps, range(steps), Forecast("output", "step"))


def save_plan(plan: Plan, path: str | Path) -> None:
    """Writes a plan as JSON.

    Raises:
        InputError: The path cannot be written.
    """
    save_record(plan, PLAN_TYPE, PLAN_VERSION, path)


def load_plan(path: str | Path) -> Plan:
    """Reads a plan that `save_plan` wrote, of this version, of version 5 or of version 6.

    Raises:
        InputError: There is no readable file.
        FileFormatError: It is damaged, or no plan.

    Example:
        >>> from unicp.context import Forecast
        >>> from unicp.planning.plan import Replay, save_plan
        >>> plan = Plan("", "Made", 4, [0.9, 0.7, 0.5, 0.2], Forecast("noise", "log_snr"), Replay([0, 1, 2]))
        >>> save_plan(plan, "plan.json")
        >>> load_plan("plan.json").drawing()
        'CCC.'
    """
    return load_record(Plan, PLAN_TYPE, PLAN_VERSION, path, "make it again", {5: _from_version_5, 6: _from_version_6})


def _from_version_5(body: dict[str, Any]) -> dict[str, Any]:
    """Version 5 had the fields of all kinds side by side, and null where a kind has none."""
    old = dict(body)
    full, tolerance, curves = old.pop("computed", None), old.pop("tolerance", None), old.pop("curves", None)
    allowance, most = old.pop("allowance", 0.0), old.pop("most", 0)
    how: Any = {"kind": "replay", "full": full}
    if tolerance is not None:
        how = {"kind": "rule", "tolerance": tolerance} if full == [] else None
    elif curves is not None:
        how = {"kind": "schedule", "full": full, "allowance": allowance, "most": most, "curves": curves}
    fewer, chosen = old.pop("fewer", None), old.pop("fewer_computed", [])
    if fewer is not None:
        how = {"kind": "subset", "count": fewer, "chosen": chosen, "otherwise": how}
    mean, low, high = (old.pop(name, None) for name in ("psnr", "psnr_low", "psnr_high"))
    psnr = None if mean is low is high is None else {"mean": mean, "low": low, "high": high}
    forecast = {"quantity": old.pop("quantity", None), "axis": old.pop("abscissa", None)}
    return old | {"how": how, "psnr": psnr, "forecast": forecast}


def _from_version_6(body: dict[str, Any]) -> dict[str, Any]:
    """Version 6 called `replayed` of the curves `mended`."""

    def schedule(how: Any) -> Any:
        if not isinstance(how, dict) or not isinstance(how.get("curves"), dict):
            return how
        return how | {"curves": renamed(how["curves"], {"mended": "replayed"})}

    how = schedule(body.get("how"))
    if isinstance(how, dict) and "otherwise" in how:
        how = how | {"otherwise": schedule(how["otherwise"])}
    return body | {"how": how} if "how" in body else body


def plan_of_trace(trace: Trace, run: int | None = None) -> Plan:
    """Makes a plan that repeats a run of a trace: the same full steps, and the same forecast.

    Args:
        trace: Of a session under level "model".
        run: Number of the run; `None` = the last.

    Raises:
        InputError: The trace has no such run; or the run skipped at another level, skipped a part of a step, or used
            several forecasts.
    """
    entries = [entry for entry in trace.entries if entry.point == "model"]
    wanted = max((entry.run for entry in entries), default=0) if run is None else run
    of_run = [entry for entry in entries if entry.run == wanted]
    asked = f"a plan from run {wanted} of a trace"
    if not of_run or len(of_run) < sum(entry.run == wanted for entry in trace.entries):
        raise InputError(asked, "no such run of level model", "name a run that skipped the model's output")
    actions: dict[int, set[str]] = {}
    for entry in of_run:
        actions.setdefault(entry.step, set()).add(entry.action)
    unusual = {Action.SLICE.value, Action.REUSE.value} & set().union(*actions.values())
    if unusual or any(len(found) > 1 for found in actions.values()):
        raise InputError(asked, "steps that are neither full nor forecast as a whole", "replay another run")
    ways = {str(entry.predictor) for entry in of_run if entry.action == Action.FORECAST.value} or {"noise over log_snr"}
    if len(ways) > 1:
        raise InputError(asked, f"several forecasts ({', '.join(sorted(ways))})", "replay another run")
    quantity, _, axis = ways.pop().partition(" over ")
    steps = max(actions) + 1
    sigmas = {entry.step: entry.sigma for entry in of_run}
    if sorted(actions) != list(range(steps)) or any(sigma is None for sigma in sigmas.values()):
        raise InputError(asked, "steps that are missing or of unknown noise level", "replay a whole run")
    if steps < trace.run_steps.get(str(wanted), steps):
        found = f"a run that stopped after {steps} of {trace.run_steps[str(wanted)]} steps"
        raise InputError(asked, found, "replay a whole run")
    full = [step for step in range(steps) if actions[step] == {Action.FULL.value}]
    levels = [float(sigmas[step] or 0.0) for step in range(steps)]
    forecast = Forecast(quantity, axis)  # type: ignore[arg-type]
    return Plan("", trace.model, steps, levels, forecast, Replay(full), expected=float(len(full)))


def _problem(plan: Plan) -> str:
    """What does not fit together in a plan, "" for nothing."""
    if plan.steps < 1 or len(plan.sigmas) != plan.steps:
        return f"{len(plan.sigmas)} noise levels for {plan.steps} steps"
    if not _is_part(plan.full_steps, plan.steps):
        return "full steps that are not in order or not of the run"
    if plan.subset is not None:
        count, chosen = plan.subset.count, plan.subset.chosen
        if not 0 < count <= plan.steps:
            return f"a plain run of {count} of {plan.steps} steps"
        if chosen and (len(chosen) != count or not _is_part(chosen, plan.steps)):
            return f"chosen steps that are not {count} of the run in order"
    if not isinstance(plan.followed, PlannedSteps):
        return ""
    curves = plan.followed.curves
    lengths = {len(curves.places), len(curves.products), len(curves.scales), len(curves.weights)}
    if lengths != {plan.steps} or [len(row) for row in curves.products] != list(range(1, plan.steps + 1)):
        return "curves of another number of steps"
    return ""


def _is_part(chosen: list[int], steps: int) -> bool:
    return sorted(set(chosen)) == chosen and all(0 <= step < steps for step in chosen)
