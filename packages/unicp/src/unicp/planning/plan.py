"""A plan for one run: which steps are full, what is predicted of it, and what is watched; a JSON file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from unicp.context import Action, Forecast
from unicp.errors import FileFormatError, InputError
from unicp.files import NotNegative, Step, load_record, save_record
from unicp.numerics.noise_levels import NoiseLevel
from unicp.planning.fidelity import Psnr
from unicp.policies.planned import Schedule
from unicp.policies.run_loss import RunLoss
from unicp.records import Trace

PLAN_TYPE, PLAN_VERSION = "unicp.plan", 8
# Largest relative difference of noise levels at which a plan fits a run. Chosen: schedulers keep levels in float32,
# which is good to 1e-7, and neighbouring steps of 1,000 differ by 1e-3.
SAME_LEVEL = 1e-4
# What planned runs carry forward: it exists at every noise level, and the sampler replays it without a conversion.
OUTPUT = Forecast("output", "log_snr")


@dataclass(frozen=True)
class Plan:
    """What one run does, and what is predicted of it.

    Attributes:
        target: What was asked for, "" for a tolerance or a repeated run.
        model: Class of the transformer.
        steps: Length of the run.
        sigmas: Noise levels of its steps, 0 (clean) to 1 (noise alone).
        forecast: How skipped steps are filled.
        full: The full steps, rising.
        loss: By which they were chosen; `None` = exactly these steps are full, as in the run of a trace.
        can_add: Whether full steps may be added where the run turns out harder than any before.
        psnr: Predicted PSNR of the clip against its plain run, in dB; `None` = not known.
        speed_up: Predicted seconds of the plain run over those of this one, or steps over full steps where seconds are
            not known; `None` = not predicted.
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
    full: list[Step]
    loss: RunLoss | None = None
    can_add: bool = False
    psnr: Psnr | None = None
    speed_up: NotNegative | None = None
    seconds: NotNegative | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise FileFormatError("a plan", problem, "make it again")

    @property
    def schedule(self) -> Schedule:
        """What a run follows, as its policy needs it."""
        return Schedule(self.steps, tuple(self.full), self.loss, self.can_add, self.forecast)

    def fits(self, levels: Sequence[NoiseLevel]) -> bool:
        """Whether a run at these noise levels, one for each step, is the one this plan was made for."""
        pairs = zip(self.sigmas, (level.sigma for level in levels))
        return len(levels) == self.steps and all(math.isclose(a, b, rel_tol=SAME_LEVEL, abs_tol=1e-6) for a, b in pairs)

    def drawing(self) -> str:
        """One character per step: "C" full, "." skipped."""
        full = set(self.full)
        return "".join("C" if step in full else "." for step in range(self.steps))

    def text(self) -> str:
        """The plan in a few lines for the user."""
        lines = [
            f"plan for {self.target or 'a run'}: {len(self.full)} of {self.steps} steps full",
            f"  {self.drawing()}",
        ]
        if self.speed_up is not None:
            seconds = "" if self.seconds is None else f", {self.seconds:.3g} s a clip"
            lines.append(f"  speed: {self.speed_up:.2f}x{seconds}")
        if self.psnr is not None and math.isfinite(self.psnr.mean):
            bounds = f"90 % of clips from {self.psnr.low:.1f} to {self.psnr.high:.1f}"
            lines.append(f"  PSNR: {self.psnr.mean:.1f} dB, {bounds}")
        elif self.psnr is not None:
            lines.append("  PSNR: equal to the plain clip, nothing is skipped")
        lines.append(f"  skipped steps: {self.forecast}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def facts(self) -> dict[str, Any]:
        """The plan as plain values, without noise levels and what was announced, with the drawing."""
        values = TypeAdapter(Plan).dump_python(self, exclude={"sigmas": True, "loss": True})
        return {**values, "drawing": self.drawing()}

    def __str__(self) -> str:
        return self.text()


def save_plan(plan: Plan, path: str | Path) -> None:
    """Writes a plan as JSON.

    Raises:
        InputError: The path cannot be written.
    """
    save_record(plan, PLAN_TYPE, PLAN_VERSION, path)


def load_plan(path: str | Path) -> Plan:
    """Reads a plan that `save_plan` wrote, of this version.

    Raises:
        InputError: There is no readable file.
        FileFormatError: It is damaged, of another version, or no plan.

    Example:
        >>> from unicp.planning.plan import OUTPUT, save_plan
        >>> plan = Plan("", "Made", 4, [0.9, 0.7, 0.5, 0.2], OUTPUT, [0, 1, 2])
        >>> save_plan(plan, "plan.json")
        >>> load_plan("plan.json").drawing()
        'CCC.'
    """
    return load_record(Plan, PLAN_TYPE, PLAN_VERSION, path, "make it again")


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
    ways = {str(entry.predictor) for entry in of_run if entry.action == Action.FORECAST.value} or {str(OUTPUT)}
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
    return Plan("", trace.model, steps, levels, forecast, full)


def _problem(plan: Plan) -> str:
    """What does not fit together in a plan, "" for nothing."""
    if plan.steps < 1 or len(plan.sigmas) != plan.steps:
        return f"{len(plan.sigmas)} noise levels for {plan.steps} steps"
    if sorted(set(plan.full)) != plan.full or not all(0 <= step < plan.steps for step in plan.full):
        return "full steps that are not in order or not of the run"
    loss = plan.loss
    if loss is None:
        return ""
    lengths = {len(loss.places), len(loss.table), len(loss.shares), len(loss.sigmas)}
    if lengths != {plan.steps} or [len(row) for row in loss.table] != list(range(1, plan.steps + 1)):
        return "losses of another number of steps"
    return ""
