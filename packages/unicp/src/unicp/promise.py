"""What `enable` was asked to promise, checked against the model before anything of it is changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unicp.errors import InputError, SettingsError
from unicp.models.finder import ModelMap, map_model, transformers_of
from unicp.models.noise import read_schedule
from unicp.planning.builtin import builtin_profile
from unicp.planning.fingerprint import fingerprint_of
from unicp.planning.following import RunPlanner
from unicp.planning.plan import Plan, load_plan
from unicp.planning.profile import Fingerprint, Profile, load_profile
from unicp.planning.solver import check_feasible
from unicp.planning.targets import Target, parse_target
from unicp.settings import Settings


@dataclass(frozen=True)
class Promise:
    """A target, with a profile or without, or a plan."""

    target: Target | None
    profile: Profile | None
    plan: Plan | None

    @property
    def name(self) -> str:
        """What a summary calls a session under it."""
        return "under a plan" if self.target is None else f"target {self.target}"

    def planner(self, maps: Sequence[ModelMap], scheduler: Any, say: Callable[[str], None]) -> RunPlanner:
        """What plans the runs of this model. Raises InputError where profile, plan or model do not fit.

        say: told where the promise is a guess.
        """
        own = _fingerprint(maps, scheduler, str(self.target or "to follow a plan"))
        if self.plan is not None:
            if self.plan.model != own.model:
                raise InputError(
                    "to follow a plan", f"one of {self.plan.model}, not {own.model}", "plan for this model"
                )
            return RunPlanner(self.plan, 0.0, say)
        assert self.target is not None
        if self.profile is not None:
            known = self.profile.fingerprint
            # How many calls a step makes shows in a run only.
            differences = known.differences(Fingerprint(**{**vars(own), "branches": known.branches}))
            if differences:
                do = "make a profile of this model and sampler with unicp calibrate"
                raise InputError(f"target {self.target} with this profile", f"here {'; '.join(differences)}", do)
            check_feasible(self.profile, self.target)
            return RunPlanner((self.target, self.profile), 0.0, say)
        profile, caution = builtin_profile(own)
        if caution:
            say(f"target {self.target}: a guess from another model's profile; unicp calibrate makes one of this model")
        check_feasible(profile, self.target, caution, knows_seconds=False)
        # The device on which a shipped profile was made is not this one.
        return RunPlanner((self.target, profile), caution, say, knows_seconds=False)


class Planners:
    """What plans the runs of a session: one planner for each kind of scheduler that steps them.

    A scheduler may be replaced after UniCP was enabled, or come with a request. plan: of the last run.
    """

    def __init__(self, promise: Promise, maps: Sequence[ModelMap], say: Callable[[str], None]):
        self._promise, self._maps, self._say = promise, maps, say
        self._known: dict[tuple[str, str], RunPlanner] = {}
        self.plan: Plan | None = promise.plan

    @property
    def is_guess(self) -> bool:
        """True where what was used so far is the profile of another model."""
        return any(planner.caution > 0 for planner in self._known.values())

    def check(self, scheduler: Any) -> None:
        """Raises InputError where nothing can be promised under this scheduler."""
        self.of(scheduler)

    def of(self, scheduler: Any) -> RunPlanner:
        """The planner of runs under this scheduler. Raises InputError where profile, plan or model do not fit it."""
        schedule = read_schedule(scheduler)
        key = type(scheduler).__name__, "" if schedule is None else schedule.prediction
        if key not in self._known:
            self._known[key] = self._promise.planner(self._maps, scheduler, self._say)
        return self._known[key]


def shipped_profile(pipe: Any) -> tuple[Profile, float]:
    """The profile that a target is gone by without another, and the dB to take off what it promises: 0 for its own.

    Raises InputError where the scheduler of the pipeline does not tell noise levels, or no plan can be made for it.
    """
    maps = [map_model(module) for module in transformers_of(pipe).values()]
    return builtin_profile(_fingerprint(maps, pipe.scheduler, "a profile of this pipeline"))


def make_promise(
    settings: Settings, target: str | None, profile: str | Path | Profile | None, plan: str | Path | Plan | None
) -> Promise:
    """Reads what `enable` was given, before a model is looked at. Raises InputError, FileFormatError, SettingsError."""
    if plan is not None:
        if target is not None or profile is not None:
            raise InputError("a plan with a target or profile", "both", "give one: a plan needs neither")
        made, wanted, known = plan if isinstance(plan, Plan) else load_plan(plan), None, None
    else:
        if target is None:
            raise InputError("a profile", "no target", 'name one, like target="psnr>=35"')
        made, wanted = None, parse_target(target)
        known = profile if profile is None or isinstance(profile, Profile) else load_profile(profile)
    _check(settings)
    return Promise(wanted, known, made)


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
    return fingerprint_of(maps[0].transformer, scheduler, schedule.prediction, 0)
