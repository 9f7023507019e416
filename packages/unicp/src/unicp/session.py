"""The public verbs: enable UniCP on a pipeline or a transformer, see what it did, disable it again."""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from unicp.context import Action
from unicp.errors import AttachmentError, SettingsError, UnsupportedModelError
from unicp.hooks.diffusers import (
    attach,
    attached_engine,
    detach,
    refuse_if_compiled,
    refuse_if_gathered,
    refuse_if_taken,
    refuse_other_caches,
)
from unicp.models.finder import map_model, transformers_of, unwrapped
from unicp.plan_request import Planners, PlanRequest
from unicp.planning.plan import Plan, plan_of_trace, save_plan
from unicp.planning.profile import Profile
from unicp.planning.run_planner import PlannedRun
from unicp.policies.planned import Schedule
from unicp.records import Trace, save_trace
from unicp.reporting.summary import Summary, summarise
from unicp.runtime.engine import Engine
from unicp.runtime.run_tracker import RunTracker
from unicp.runtime.trace_log import TraceLog
from unicp.sampler import observer
from unicp.sampler.observer import SamplerRun
from unicp.sampler.response import output_shares
from unicp.sampler.scheduler_state import can_repeat
from unicp.settings import Settings, preset

logger = logging.getLogger("unicp")
_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


class Session:
    """UniCP on one pipeline or transformer. A context manager: leaving it disables UniCP, whatever happened.

    Attributes:
        trace: What was done, appended to by every run; it keeps the newest `Settings.trace_entries` entries, in whole
            runs.
        settings: What it runs under; under a target or a plan they hold for what the plan leaves open.
    """

    def __init__(
        self,
        target: Any,
        settings: Settings,
        name: str | None,
        scheduler: Any = None,
        request: PlanRequest | None = None,
    ):
        self.settings = settings
        modules = transformers_of(target)
        maps = {key: map_model(module) for key, module in modules.items()}
        for key, found in maps.items():
            refuse_if_compiled(modules[key])
            refuse_if_taken(found.transformer)
            refuse_if_gathered(found.transformer)
        if len({id(found.transformer) for found in maps.values()}) < len(maps):
            do = "give each a module of its own, or leave transformer_2 out"
            raise AttachmentError("to enable UniCP", f"one module as both transformers ({' and '.join(maps)})", do)
        first = next(iter(maps.values())).transformer
        self.trace = Trace(
            model=type(first).__name__,
            device=str(getattr(next(first.parameters(), None), "device", "unknown")),
            dtype=_dtype_of(first),
            settings=settings.to_dict(),
            preset=name,
        )
        self._log = TraceLog(self.trace, settings.trace_entries)
        self._target, self._scheduler = _reference(target), scheduler
        self._is_pipeline = not isinstance(target, nn.Module)
        self._planners: Planners | None = None
        # Two experts share the steps of a run, and neither knows where the other begins: their windows open and close.
        request = request or (PlanRequest.of_settings(settings) if len(maps) == 1 else None)
        if request is not None:
            self._planners = Planners(request, list(maps.values()), self._tell)
            self._planners.check(self._usual_scheduler())
        self._engines = [self._engine(found) for found in maps.values()]
        self._attach()

    def _engine(self, found: Any) -> Engine:
        planner = None if self._planners is None else self._plan_run
        check = partial(refuse_other_caches, found.transformer)
        return Engine(found, self.settings, self._log, self._usual_scheduler, planner, check)

    @property
    def plan(self) -> Plan | None:
        """The plan of the last run; None before the first, and where there is no target or no plan could be had."""
        return None if self._planners is None else self._planners.plan

    @property
    def is_guess(self) -> bool:
        """True where a target is met by the profile of another model, which is no promise."""
        return self._planners is not None and self._planners.is_guess

    def is_on(self, target: Any) -> bool:
        """Whether this session was enabled on this pipeline or transformer, whatever it holds by now."""
        if self._target() is target:
            return True
        # A pipeline without a transformer any more is none of ours, and no error.
        try:
            modules = [unwrapped(module) for module in transformers_of(target).values()]
        except UnsupportedModelError:
            return False
        return any(engine.map.transformer is module for engine in self._engines for module in modules)

    def _usual_scheduler(self) -> Any:
        """The scheduler that was given, or else the pipeline's: that of runs whose own one is not seen."""
        if self._scheduler is not None or not self._is_pipeline:
            return self._scheduler
        return getattr(self._target(), "scheduler", None)

    def _plan_run(self, tracker: RunTracker, step: int, known: Sequence[int], shape: Sequence[int]) -> Schedule | None:
        assert self._planners is not None
        levels = None if tracker.schedule is None else tracker.schedule.levels()
        shares = None if levels is None else output_shares(tracker.scheduler, step)
        is_replayed = self.settings.replay and can_repeat(tracker.scheduler)
        facts = PlannedRun(levels, shares, tracker.branches, shape, known or [step], is_replayed)
        return self._planners.schedule(tracker.scheduler, facts)

    def was_set(self, run: SamplerRun, scheduler: Any, again: Any, args: tuple[Any, ...], kwargs: Any) -> None:
        """A scheduler was set to a run: told of a transformer that UniCP is not on."""
        self._tell_of_other_transformers(scheduler)

    def _tell_of_other_transformers(self, scheduler: Any) -> None:
        """Says, once, that the pipeline has got a transformer since that UniCP is not on."""
        pipe = self._target() if self._is_pipeline else None
        if pipe is None or getattr(pipe, "scheduler", None) is not scheduler:
            return
        if message := self._other_transformers(pipe):
            self._tell(message)

    def _other_transformers(self, pipe: Any) -> str:
        try:
            modules = transformers_of(pipe)
        except UnsupportedModelError:
            return ""
        own = [engine.map.transformer for engine in self._engines]
        for name, module in modules.items():
            if not any(unwrapped(module) is one for one in own):
                found = f"its {name} was replaced since, and UniCP is not on the new one"
                return f"asked: UniCP on this pipeline; found: {found}; do: unicp.disable(pipe), then enable it again"
        return ""

    def _tell(self, text: str) -> None:
        if text not in self.trace.warnings:
            logger.warning("%s", text)
        self._log.tell(text)

    def _attach(self) -> None:
        done: list[Engine] = []
        try:
            for engine in self._engines:
                attach(engine)
                done.append(engine)
            observer.watch(self, [self._usual_scheduler()])
            observer.listen(self)
        except BaseException:
            observer.leave(self)
            for engine in done:
                detach(engine.map.transformer)
            raise
        # The model holds its hooks, they their engine, and that this session: a table here would keep all alive.
        _sessions.add(self)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disable()

    def disable(self) -> None:
        """Takes UniCP off; outputs are bit-equal to those before it was enabled. The trace stays. May be repeated.

        Where another thread is in a call of the model, its hooks are taken off as that ends.
        """
        _sessions.discard(self)
        observer.leave(self)
        for engine in self._engines:
            engine.close(partial(_take_off, engine))
        self._tell_if_nothing_was_saved()

    def reset(self) -> None:
        """Drops the runs under way, in all threads: the next call of the model computes. The trace stays."""
        for engine in self._engines:
            engine.runs.reset()

    @property
    def is_empty(self) -> bool:
        """True when no output, window or branch of a run is held."""
        return all(engine.runs.is_empty for engine in self._engines)

    def summary(self) -> Summary:
        """What was skipped, what it saved and what it may have cost; prints as a table."""
        return summarise(self.trace)

    def save_trace(self, path: str | Path) -> None:
        """Writes the trace as versioned JSON.

        Raises:
            InputError: The file cannot be written.
        """
        save_trace(self.trace, path)

    def save_plan(self, path: str | Path) -> None:
        """Writes the plan of the last run; without a target or plan, one that repeats what the last run did.

        Raises:
            InputError: There is none, or the file cannot be written.
        """
        save_plan(self.plan or plan_of_trace(self.trace), path)

    def _tell_if_nothing_was_saved(self) -> None:
        entries, pipe = self.trace.entries, self._target() if self._is_pipeline else None
        if self.settings.tolerance == 0:
            return
        if pipe is not None and (message := self._other_transformers(pipe)):
            self._tell(message)
        if not entries and self.trace.counts["not_followed"]:
            logger.warning("UniCP skipped nothing: %s", "; ".join(self.trace.warnings))
        if not entries:
            return
        if all(entry.action == Action.FULL.value for entry in entries):
            runs = len({entry.run for entry in entries})
            steps = max(entry.step for entry in entries) + 1
            do = "raise the tolerance or use more steps"
            if self.settings.policy not in ("planned", "error_window"):
                do = f"see what {self.settings.policy!r} decides"
            if self._planners is not None:
                do = "ask for less fidelity or more speed, or use more steps"
            logger.warning(
                "UniCP skipped nothing: asked: %s; found: %d run(s) of up to %d steps, every call computed; do: %s "
                "(see session.summary() for the reasons)",
                self.trace.preset or "custom settings",
                runs,
                steps,
                do,
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
    """Enables UniCP on a diffusers pipeline, or on a bare transformer in a denoising loop of your own.

    Several threads may use the model at once, each with a copy of the pipeline and a scheduler of its own.

    Args:
        model: The pipeline or transformer.
        settings: Name of a preset ("paper", "quality", "balanced", "fast"), or a `Settings`.
        target: What to reach instead: "psnr>=35" (dB against the plain run), "speedup>=2" or "seconds<=40" (a clip).
            Each run then follows a plan solved for it.
        profile: A `Profile` or the path of one, made by `unicp calibrate`. If omitted, UniCP uses a built-in profile
            and warns when that profile belongs to another model.
        plan: A `Plan` to follow as it is, or its path.
        scheduler: That of the loop, for a bare transformer. It is needed for a target or plan, and where the loop does
            not call `set_timesteps` and `step` of a scheduler; otherwise UniCP sees which one steps a run.

    Returns:
        The session. Use it with `with`, or call its `disable()`, or `unicp.disable(model)`.

    Raises:
        SettingsError: The settings cannot be used, with this model or at all.
        UnsupportedModelError: No transformer that UniCP knows.
        AttachmentError: UniCP or another cache is enabled on it already, or it was compiled as a whole.
        InputError: A target, profile or plan that does not fit. Nothing has been changed then. A target that turns out
            infeasible when a run shows its steps raises from that run.
        FileFormatError: A file that is no sound profile or plan.

    Example:
        >>> import unicp
        >>> from diffusers import WanTransformer3DModel
        >>> model = WanTransformer3DModel(
        ...     num_attention_heads=1, attention_head_dim=12, num_layers=1, ffn_dim=8, text_dim=8, freq_dim=16
        ... )
        >>> with unicp.enable(model, "balanced") as session:
        ...     pass  # your denoising loop, or pipe(prompt) where a pipeline was given
        >>> session.trace.model
        'WanTransformer3DModel'
    """
    if target is not None or profile is not None or plan is not None:
        base = preset(settings) if isinstance(settings, str) else settings
        request = PlanRequest.read(base, target, profile, plan)
        return Session(model, base, request.name, scheduler, request)
    if isinstance(settings, str):
        return Session(model, preset(settings), settings, scheduler)
    if not isinstance(settings, Settings):
        raise SettingsError(
            f"settings of type {type(settings).__name__}", "not a preset's name or Settings", 'use "balanced"'
        )
    return Session(model, settings, None, scheduler)


def disable(target: Any) -> None:
    """Disables UniCP; outputs are bit-equal to those before it was enabled.

    Args:
        target: What was given to `enable`, also where parts of the pipeline were replaced since, or any pipeline around
            the same transformer.

    Raises:
        AttachmentError: UniCP is not enabled there.

    Example:
        >>> import unicp
        >>> from diffusers import WanTransformer3DModel
        >>> model = WanTransformer3DModel(
        ...     num_attention_heads=1, attention_head_dim=12, num_layers=1, ffn_dim=8, text_dim=8, freq_dim=16
        ... )
        >>> session = unicp.enable(model, "fast")
        >>> unicp.disable(model)
    """
    sessions = [session for session in list(_sessions) if session.is_on(target)]
    if not sessions:
        transformers_of(target)  # what is no model at all has an error of its own
        raise AttachmentError("to disable UniCP", "it is not enabled here", "pass what was given to unicp.enable")
    for session in sessions:
        session.disable()


def _take_off(engine: Engine) -> None:
    if attached_engine(engine.map.transformer) is engine:
        detach(engine.map.transformer)


def _reference(target: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(target)
    except TypeError:
        # Things of the user's own, such as a SimpleNamespace, cannot all be referred to weakly.
        return lambda: target


def _dtype_of(transformer: nn.Module) -> str:
    """The floating dtype that most parameters have: models keep single ones, such as norms, in another."""
    counts: Counter[str] = Counter()
    for parameter in transformer.parameters():
        if parameter.is_floating_point():
            counts[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    return counts.most_common(1)[0][0] if counts else "unknown"
