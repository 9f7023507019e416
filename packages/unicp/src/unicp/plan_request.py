"""A target or plan that `enable` was given, checked against the model before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unicp.errors import InputError, SettingsError
from unicp.models.finder import ModelMap, map_model, transformers_of
from unicp.models.noise import read_schedule
from unicp.planning.plan import Plan, load_plan
from unicp.planning.profile import Fingerprint, Profile, builtin_profile, load_profile
from unicp.planning.run_planner import PlannedRun, RunPlanner
from unicp.planning.solver import unknown_seconds
from unicp.planning.targets import Target, parse_target
from unicp.policies.planned import Schedule
from unicp.settings import Settings

OnWarning = Callable[[str], None]
GUESS = "a guess, as nobody calibrated this model; unicp calibrate takes as long as six clips"


@dataclass(frozen=True)
class PlanRequest:
    """A target, with a profile or without, a plan, or the tolerance of the settings.

    Attributes:
        target: To solve for; `None` with a plan or a tolerance.
        profile: To solve under; `None` = a shipped one of this very model, or else the built-in products.
        plan: To follow as it is.
        tolerance: Largest predicted loss, where there is neither.
    """

    target: Target | None = None
    profile: Profile | None = None
    plan: Plan | None = None
    tolerance: float = 0.0

    @classmethod
    def read(
        cls,
        settings: Settings,
        target: str | None,
        profile: str | Path | Profile | None,
        plan: str | Path | Plan | None,
    ) -> PlanRequest:
        """Reads the arguments of `enable`, without a model.

        Raises:
            InputError: The target, or the combination, cannot be used, or there is no such file.
            FileFormatError: A file is damaged.
            SettingsError: The settings are of a kind that no plan is for.
        """
        read_target, read_profile, read_plan = None, None, None
        if plan is not None:
            if target is not None or profile is not None:
                raise InputError("a plan with a target or profile", "both", "give one: a plan needs neither")
            read_plan = plan if isinstance(plan, Plan) else load_plan(plan)
        elif target is None:
            raise InputError("a profile", "no target", 'name one, like target="psnr>=35"')
        else:
            read_target = parse_target(target)
            read_profile = profile if profile is None or isinstance(profile, Profile) else load_profile(profile)
        _check(settings)
        return cls(read_target, read_profile, read_plan)

    @classmethod
    def of_settings(cls, settings: Settings) -> PlanRequest | None:
        """What settings alone ask for; `None` where their policy decides from step to step."""
        is_fixed = settings.full_steps is not None or settings.full_every is not None
        if settings.policy != "planned" or settings.level != "model" or is_fixed or settings.tolerance == 0:
            return None
        return cls(tolerance=settings.tolerance)

    @property
    def name(self) -> str:
        """How a summary calls the session."""
        return "under a plan" if self.target is None else f"target {self.target}"

    def planner(self, maps: Sequence[ModelMap], scheduler: Any, on_warning: OnWarning) -> RunPlanner:
        """Makes the planner for runs of this model under this scheduler.

        Args:
            maps: Of the pipeline's transformers, of which there must be one.
            scheduler: Of the pipeline.
            on_warning: Gets a line if nobody calibrated the model.

        Raises:
            InputError: Profile, plan or model do not fit.
        """
        fingerprint = _fingerprint(maps, scheduler, str(self.target or "to plan runs"))
        if self.plan is not None:
            if self.plan.model != fingerprint.model:
                found = f"one of {self.plan.model}, not {fingerprint.model}"
                raise InputError("to follow a plan", found, "plan for this model")
            return RunPlanner(self.plan, fingerprint, None, on_warning)
        if self.target is None:
            return RunPlanner(self.tolerance, fingerprint, None, on_warning)
        if self.profile is not None:
            differences = self.profile.fingerprint.differences(fingerprint)
            if differences:
                do = "make a profile of this model and sampler with unicp calibrate"
                raise InputError(f"target {self.target} with this profile", f"here {'; '.join(differences)}", do)
            return RunPlanner(self.target, fingerprint, self.profile, on_warning)
        profile = builtin_profile(fingerprint)
        if profile is None:
            if self.target.kind == "seconds":
                raise unknown_seconds(self.target)
            if self.target.kind == "psnr":
                on_warning(f"target {self.target}: {GUESS}")
        # A shipped profile was made on another device.
        return RunPlanner(self.target, fingerprint, profile, on_warning, knows_seconds=False)


class Planners:
    """Plans the runs of a session, with one planner for each kind of scheduler.

    A scheduler may be replaced after UniCP was enabled, or come with a request.

    Attributes:
        plan: Of the last run.
    """

    def __init__(self, request: PlanRequest, maps: Sequence[ModelMap], on_warning: OnWarning):
        self._request, self._maps, self._on_warning = request, maps, on_warning
        self._planners: dict[tuple[str, str], RunPlanner | None] = {}
        self.plan: Plan | None = request.plan

    @property
    def is_guess(self) -> bool:
        """Whether a target of fidelity is to be met for a model that nobody calibrated."""
        target = self._request.target
        if target is None or target.kind != "psnr":
            return False
        return any(planner is not None and planner.profile is None for planner in self._planners.values())

    def check(self, scheduler: Any) -> None:
        """Checks that runs under this scheduler can be planned.

        Raises:
            InputError: They cannot.
        """
        self.of(scheduler)

    def schedule(self, scheduler: Any, run: PlannedRun) -> Schedule | None:
        """What a run under this scheduler follows, `None` = the rule of its settings."""
        planner = self.of(scheduler)
        if planner is None:
            return None
        found = planner(run)
        self.plan = planner.plan
        return found

    def of(self, scheduler: Any) -> RunPlanner | None:
        """The planner of runs under this scheduler; `None` = settings alone ask, and it cannot be planned.

        Raises:
            InputError: Profile, plan or model do not fit it.
        """
        schedule = read_schedule(scheduler)
        key = type(scheduler).__name__, "" if schedule is None else schedule.prediction
        if key not in self._planners:
            self._planners[key] = self._made(scheduler)
        return self._planners[key]

    def _made(self, scheduler: Any) -> RunPlanner | None:
        try:
            return self._request.planner(self._maps, scheduler, self._on_warning)
        except InputError as error:
            if self._request.target is not None or self._request.plan is not None:
                raise
            # A bare transformer may get its scheduler later.
            if scheduler is not None:
                self._on_warning(f"no plan: {error.found}; the online rule decides")
            return None


def shipped_profile(pipe: Any) -> Profile | None:
    """The shipped profile that a target uses if no profile is given; `None` = there is none of this model.

    Raises:
        InputError: The scheduler does not tell noise levels, or no plan can be made for the pipeline.
    """
    maps = [map_model(module) for module in transformers_of(pipe).values()]
    return builtin_profile(_fingerprint(maps, pipe.scheduler, "a profile of this pipeline"))


def _check(settings: Settings) -> None:
    """Plans are for forecasts of the model's output."""
    if not isinstance(settings, Settings):
        raise SettingsError(
            f"settings of type {type(settings).__name__}", "not a preset's name or Settings", "leave them"
        )
    found = None
    if settings.level != "model" or settings.predictor != "line":
        found = f"level {settings.level!r} and predictor {settings.predictor!r}"
    elif settings.full_every is not None or settings.full_steps is not None:
        found = "settings with full_every or full_steps"
    elif settings.policy not in ("planned", "error_window"):
        found = f"policy {settings.policy!r}, in whose place the plan would decide"
    elif settings.slicing.widths:
        found = "settings with slicing"
    if found:
        raise SettingsError("a target or plan", found, 'use it with "balanced" or settings like it')


def _fingerprint(maps: Sequence[ModelMap], scheduler: Any, asked: str) -> Fingerprint:
    if len(maps) > 1:
        raise InputError(asked, f"{len(maps)} transformers in one pipeline", "use a preset: plans are for one")
    family = maps[0].family
    if family.profile_refusal:
        raise InputError(asked, family.profile_refusal, "use a preset")
    schedule = read_schedule(scheduler)
    if schedule is None:
        found = (
            "no scheduler" if scheduler is None else f"a {type(scheduler).__name__}, which does not tell noise levels"
        )
        raise InputError(asked, found, "pass scheduler=…" if scheduler is None else "use another scheduler or a preset")
    return Fingerprint.of(maps[0].transformer, scheduler, schedule.prediction)
