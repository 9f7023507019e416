"""The public verbs: enable UniCP on a pipeline or a transformer, see what it did, disable it again."""

from __future__ import annotations

import json
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from unicp.control.controller import Course
from unicp.errors import AttachmentError, SettingsError
from unicp.execution.attachment import (
    attach,
    attached_runner,
    detach,
    refuse_if_compiled,
    refuse_if_gathered,
    refuse_if_taken,
)
from unicp.execution.runner import Runner
from unicp.files import save_trace
from unicp.models.chosen_steps import Fewer, ShortenedRuns
from unicp.models.finder import map_model, transformers_of
from unicp.models.noise import NoiseSchedule, schedule_of
from unicp.planning.following import RunPlanner
from unicp.planning.plan import Plan, plan_of_trace, save_plan
from unicp.planning.profile import Profile
from unicp.promise import Promise, make_promise
from unicp.records import Action, Trace
from unicp.reporting.summary import Summary, summarise
from unicp.settings import Settings, preset

logger = logging.getLogger("unicp")


class Session:
    """UniCP on one pipeline or transformer. A context manager: leaving it disables UniCP, whatever happened.

    trace: what was done, appended to by every run. settings: what it runs under; under a target or a plan they hold
    for what the plan leaves open.
    """

    def __init__(
        self,
        target: Any,
        settings: Settings,
        name: str | None,
        scheduler: Any = None,
        promise: Promise | None = None,
    ):
        self.settings = settings
        modules = transformers_of(target)
        maps = {key: map_model(module) for key, module in modules.items()}
        for key, found in maps.items():
            refuse_if_compiled(modules[key])
            refuse_if_taken(found.transformer)
            refuse_if_gathered(found.transformer)
        first = next(iter(maps.values())).transformer
        self.trace = Trace(
            model=type(first).__name__,
            device=str(_first(first.parameters(), "device")),
            dtype=str(_first(first.parameters(), "dtype")).removeprefix("torch."),
            settings=settings.to_dict(),
            preset=name,
        )
        self._runners = [
            Runner(found, settings, self.trace, _scheduler_of(target, scheduler)) for found in maps.values()
        ]
        self._planner: RunPlanner | None = None
        self._shortening: ShortenedRuns | None = None
        if promise is not None:
            self._planner = promise.planner(list(maps.values()), self._runners[0].scheduler, self._tell)
            for runner in self._runners:
                runner.planner = self._course_of_run
        self._attach()

    @property
    def plan(self) -> Plan | None:
        """The plan of the last run; None before the first, and where there is no target or no plan could be had."""
        return None if self._planner is None else self._planner.plan

    @property
    def is_guess(self) -> bool:
        """True where a target is met by the profile of another model, which is no promise."""
        return self._planner is not None and self._planner.caution > 0

    def _course_of_run(
        self, schedule: NoiseSchedule | None, step: int, branches: int, shape: tuple[int, ...]
    ) -> Course:
        assert self._planner is not None
        levels = None if schedule is None else schedule.levels()
        course = self._planner(levels, branches, shape, step)
        left_out = branches * self._planner.left_out(levels)
        if left_out:
            self.trace.counts["left_out"] += left_out
        return course

    def _shorten_runs(self) -> None:
        """Lets a plan leave out steps: a pipeline's scheduler is asked to when it sets a run."""
        planner, scheduler = self._planner, self._runners[0].scheduler
        if planner is None or not callable(getattr(scheduler, "set_timesteps", None)):
            return
        schedule = schedule_of(self._runners[0].map.family, scheduler)
        if schedule is None:
            return

        def choose() -> Fewer | None:
            levels = schedule.levels()
            plan = None if levels is None else planner.shorten(levels)
            return None if plan is None or plan.fewer is None else Fewer(plan.fewer, tuple(plan.fewer_computed))

        def took(_: Fewer) -> None:
            planner.shortened(schedule.levels() or ())

        self._shortening = ShortenedRuns(scheduler, choose, took)

    def _tell(self, text: str) -> None:
        if text not in self.trace.warnings:
            self.trace.warnings.append(text)
        logger.warning("%s", text)

    def _attach(self) -> None:
        done: list[Runner] = []
        try:
            for runner in self._runners:
                attach(runner)
                done.append(runner)
                # The model itself holds its session: a table here would keep both alive for ever.
                runner.owner = self
        except BaseException:
            for runner in done:
                detach(runner.map.transformer)
            raise
        self._shorten_runs()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disable()

    def disable(self) -> None:
        """Takes UniCP off; outputs are bit-equal to those before it was enabled. The trace stays. May be repeated."""
        if self._shortening is not None:
            self._shortening.remove()
        for runner in self._runners:
            if attached_runner(runner.map.transformer) is runner:
                detach(runner.map.transformer)
            runner.reset()
        self._tell_if_nothing_was_saved()

    def reset(self) -> None:
        """Forgets the run under way: the next call of the model computes. The trace stays."""
        for runner in self._runners:
            runner.reset()

    @property
    def is_empty(self) -> bool:
        """True when no output, window or branch of a run is held."""
        return all(runner.is_empty for runner in self._runners)

    def summary(self) -> Summary:
        """What was skipped, what it saved and what it may have cost; prints as a table."""
        return summarise(self.trace)

    def save_trace(self, path: str | Path) -> None:
        """Writes the trace as versioned JSON. Raises InputError where that cannot be done."""
        save_trace(self.trace, path)

    def save_plan(self, path: str | Path) -> None:
        """Writes the plan of the last run, with a target or plan, or else one that replays the last run of the trace.

        Raises InputError where there is none, or it cannot be written.
        """
        save_plan(self.plan or plan_of_trace(self.trace), path)

    def _tell_if_nothing_was_saved(self) -> None:
        entries = self.trace.entries
        if self.settings.tolerance == 0:
            return
        if not entries and self.trace.counts["not_followed"]:
            logger.warning("UniCP skipped nothing: %s", "; ".join(self.trace.warnings))
        if not entries or self.trace.counts["left_out"]:
            return
        if all(entry.action == Action.COMPUTE.value for entry in entries):
            runs = len({entry.run for entry in entries})
            steps = max(entry.step for entry in entries) + 1
            logger.warning(
                "UniCP skipped nothing: asked: %s; found: %d run(s) of up to %d steps, every call computed; "
                "do: raise the tolerance or use more steps (%s)",
                self.trace.preset or "custom settings",
                runs,
                steps,
                "see session.summary() for the reasons",
            )


def enable(
    model: Any,
    settings: str | Settings = "balanced",
    *,
    target: str | None = None,
    profile: str | Path | Profile | None = None,
    plan: str | Path | Plan | None = None,
    scheduler: Any = None,
) -> Session:
    """Enables UniCP on a diffusers pipeline, or on a bare transformer in a denoising loop of one's own.

    settings: a preset's name ("paper", "quality", "balanced", "fast") or a `Settings`. target: "psnr>=35", "speedup>=2"
    or "seconds<=40" instead; each run then follows a plan solved for it. profile: of `unicp calibrate`, or its file;
    without one a built-in profile is gone by, and it is said if that is a guess. plan: one to follow as it is, or its
    file. scheduler: that of the loop, for a bare transformer; without it noise levels are unknown and only the output
    itself is forecast. Use it with `with`, or call `disable()` of the session, or `unicp.disable(model)`.

    Raises SettingsError, UnsupportedModelError (no known unit), AttachmentError (enabled already, another cache),
    InputError and FileFormatError (a target, profile or plan that cannot be used); then nothing has been changed.
    A target that turns out infeasible when a run shows its steps raises InputError from that run.
    """
    if target is not None or profile is not None or plan is not None:
        base = preset(settings) if isinstance(settings, str) else settings
        promise = make_promise(base, target, profile, plan)
        return Session(model, base, promise.name, scheduler, promise)
    if isinstance(settings, str):
        return Session(model, preset(settings), settings, scheduler)
    if not isinstance(settings, Settings):
        raise SettingsError(
            f"settings of type {type(settings).__name__}", "not a preset's name or Settings", 'use "balanced"'
        )
    return Session(model, settings, None, scheduler)


def disable(target: Any) -> None:
    """Disables UniCP on a pipeline or transformer. Raises AttachmentError where it is not enabled."""
    runners = [attached_runner(map_model(module).transformer) for module in transformers_of(target).values()]
    sessions = {runner.owner for runner in runners if runner is not None}
    if not sessions:
        raise AttachmentError("to disable UniCP", "it is not enabled here", "pass what was given to unicp.enable")
    for session in sessions:
        session.disable()


def _scheduler_of(target: Any, scheduler: Any) -> Callable[[], Any]:
    # Read anew at every call: users swap a pipeline's scheduler.
    if scheduler is not None or isinstance(target, nn.Module):
        return lambda: scheduler
    try:
        reference = weakref.ref(target)
    except TypeError:
        # Things of the user's own, such as a SimpleNamespace, cannot all be referred to weakly.
        return lambda: getattr(target, "scheduler", None)

    def current() -> Any:
        pipe = reference()
        return getattr(pipe, "scheduler", None)

    return current


def _first(parameters: Any, attribute: str) -> Any:
    parameter = next(iter(parameters), None)
    return getattr(parameter, attribute, "unknown")


def describe(settings: Settings) -> str:
    """Settings as indented JSON."""
    return json.dumps(settings.to_dict(), indent=2)
