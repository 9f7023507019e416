"""One run of one transformer: everything that belongs to it.

Made when a run opens and dropped when it ends. Nothing of a run lives anywhere else, so that a call under way keeps its
own state whatever happens to the session, and runs in other threads know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from unicp.attention.slicing import UnitSlicer
from unicp.context import StepContext
from unicp.errors import InputError
from unicp.models.finder import ModelMap
from unicp.policies.planned import Schedule
from unicp.predictors.base import PredictorInfo, Tensors
from unicp.predictors.linear import LinePredictor
from unicp.runtime.cache_point import CachePoint, Measured, Outcome
from unicp.runtime.model_call import CallInputs, OutputForm
from unicp.runtime.part_checks import make_policy, make_predictor
from unicp.runtime.recorder import MODEL, Recorder
from unicp.runtime.run_tracker import Going, RunTracker
from unicp.runtime.sample_chain import Link
from unicp.runtime.store import OutputStore
from unicp.runtime.text_keys import TextKeys
from unicp.sampler.replay import SamplerReplay
from unicp.settings import Level, Settings

COARSER: dict[Level, Level] = {"unit": "block", "block": "stack", "stack": "model"}
# (what the run is known by, step under way, full steps so far, shape of the sample) -> what the run follows, `None` =
# the policy of the settings.
Planner = Callable[[RunTracker, int, Sequence[int], Sequence[int]], "Schedule | None"]


@dataclass
class Underway:
    """The call under way.

    Attributes:
        step: Where it is.
        samples: What the model was given.
        veto: Why nothing may be skipped in it, "" = something may.
        outcome: What was decided for the whole model, or the stack; `None` before that.
        before_stack: What entered the first block.
        has_reached: Whether a hook below the model was called.
    """

    step: StepContext
    samples: Tensors
    veto: str = ""
    outcome: Outcome | None = None
    before_stack: Tensors | None = None
    has_reached: bool = False

    def refuse(self, reason: str) -> None:
        """Nothing may be skipped in this call, unless there was a reason already."""
        self.veto = self.veto or reason

    def decided(self, outcome: Outcome, before_stack: Tensors | None = None) -> Outcome:
        """The policy of the whole model, or of the stack, has decided."""
        self.outcome, self.before_stack = outcome, before_stack
        return outcome

    def reached(self) -> None:
        """A hook below the model was called."""
        self.has_reached = True


@dataclass
class RunState:
    """The state of one run.

    Args:
        map: Of the transformer.
        settings: Of the session.
        tracker: What the run is known by.
        recorder: Writes its trace.
        usual: The scheduler of runs whose own one is not seen. That of this run, if it is another, is one that this
            thread had set: taken for it until it steps, or until it does not.

    Attributes:
        level: Of the cache points; it becomes coarser where the byte budget is exceeded.
        found: (scheduler,) where another one than the run's own turned out to step it, so that its noise levels are
            wrong.
        waited: Calls of other runs since its last one.
        now: The call under way.
        forms: Of the model's output, by whether it is a dictionary.
        is_over_budget: Whether an output of this call could not be kept.
    """

    map: ModelMap
    settings: Settings
    tracker: RunTracker
    recorder: Recorder
    usual: Any = None
    found: tuple[Any] | None = None
    waited: int = 0
    now: Underway | None = None
    forms: dict[bool, OutputForm] = field(default_factory=dict)
    is_over_budget: bool = False
    _is_dropped: bool = False
    _is_planned: bool = False
    _has_stepped: bool = False

    def __post_init__(self) -> None:
        self.level: Level = self.settings.level
        self._begin()

    def _begin(self) -> None:
        """Cache points, stores and slicers with nothing in them."""
        self.store, self.text_keys, self.is_over_budget = OutputStore(self.settings), TextKeys(), False
        self.replay = SamplerReplay(self.tracker.schedule, self.recorder.count, self._moved)
        self._points: dict[str, CachePoint] = {}
        counting = self.recorder.as_full_attention
        self.slicers = {unit.name: UnitSlicer(unit, self.settings, counting) for unit in self.map.units}
        self.model = self._model_point()

    def _model_point(self) -> CachePoint:
        predictor, policy = make_predictor(self.settings, self._info(MODEL)), make_policy(self.settings)
        traits = {
            "keeps_inputs": True,
            "judges_all": True,
            "is_coherent": True,
            "may_skip": self.settings.tolerance > 0,
        }
        return CachePoint(MODEL, policy, predictor, self.store, warn=self.recorder.warn, **traits)

    def _info(self, point: str) -> PredictorInfo:
        schedule = self.tracker.schedule
        return PredictorInfo(point, None if schedule is None else schedule.prediction, self.replay.guided_share)

    def point(self, name: str) -> CachePoint:
        """The cache point of the stack, a block or a unit."""
        if name not in self._points:
            settings, adds = self.settings, name not in self.slicers
            by_stream = adds and settings.error_scale == "stream"
            predictor, policy = make_predictor(settings, self._info(name)), make_policy(settings)
            traits = {"adds": adds, "by_stream": by_stream, "may_skip": settings.tolerance > 0}
            self._points[name] = CachePoint(name, policy, predictor, self.store, warn=self.recorder.warn, **traits)
        return self._points[name]

    @property
    def branches(self) -> int:
        """How many branches the run has shown so far."""
        return self.tracker.branches

    @property
    def held_bytes(self) -> int:
        """Bytes of all tensors that the run holds."""
        held = self.store.bytes + self.text_keys.bytes + self.replay.bytes
        return held + sum(slicer.bytes for slicer in self.slicers.values())

    @property
    def is_stale(self) -> bool:
        """Whether no call goes on with this run any more."""
        return self._is_dropped or self.found is not None

    def resume(self) -> None:
        """A call goes on with this run."""
        self.waited = 0

    def wait(self) -> None:
        """A call goes on with another run of this thread."""
        self.waited += 1

    def drop(self) -> None:
        """Has no call go on with the run any more; it may be another thread that says so, in the middle of a call."""
        self._is_dropped = True

    def begin_call(self, call: CallInputs, going: Going, planner: Planner | None) -> Underway:
        """A call goes on with this run, or opens it: where it is, and what the run follows from here on."""
        step = self.tracker.take(call, going)
        # A plan is asked for at the second step: by then a run has shown its branches, and nothing was skipped yet.
        if planner is not None and step.step > 0 and not self._is_planned:
            self._is_planned = True
            schedule = planner(self.tracker, step.step, self.model.full_steps, tuple(call.samples[0].shape))
            if schedule is not None:
                forecast, damping = schedule.forecast, self.settings.damping
                line = None if forecast is None else LinePredictor(forecast, 2, damping, self._info(MODEL))
                self.model.follow(schedule.policy(), line)
        self.now = Underway(step, call.samples, "sample" if going.link is Link.EDITED else "")
        self.recorder.begin(step, call.shapes)
        return self.now

    def leave_call(self) -> None:
        """The call under way has ended, well or not."""
        self.now = None

    def measured(self, measured: Measured) -> Measured:
        """A cache point below the model has taken in a full call."""
        self.is_over_budget |= not measured.is_kept
        return measured

    def end_call(self, seconds: float) -> None:
        """A call has ended well: it is written down, and beyond the byte budget cache points become coarser."""
        self.recorder.finish(seconds, self.held_bytes)
        if not self.is_over_budget:
            return
        before, self.level = self.level, COARSER.get(self.level, "model")
        while self.map.level_refusal(self.level):
            self.level = COARSER[self.level]
        limit = self.store.limit(self.branches)
        message = f"stored outputs would exceed {limit} bytes: level {before} gives way to {self.level}"
        self.recorder.warn("budget", message)
        self._begin()

    def tell_sampler(self, outcome: Outcome) -> None:
        """The whole model, or its stack, was skipped or is computed: the sampler's next step follows from that."""
        if not self.settings.replay or self.now is None:
            return
        self.replay.called(self.now.step, outcome.action.skipped, outcome.forecast)
        if outcome.action.skipped and outcome.forecast is None and self.level == "model":
            name = self.settings.predictor
            message = f"predictor {name!r} does not say what it carries forward (forecast): steps are not replayed"
            self.recorder.warn("not_replayed", message)

    def take_step(self, scheduler: Any, own: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A step right after a call of this run: of its own scheduler, or of one that is found to be its own."""
        if not self._is_own(scheduler, args, kwargs):
            return own(*args, **kwargs)
        if self.tracker.is_set_elsewhere:
            raise two_threads(scheduler)
        # One that stepped before was no other one of this run, but a copy that looked ahead.
        self._has_stepped, self.found = True, None
        out = self.replay.step(scheduler, own, args, kwargs) if self.settings.replay else own(*args, **kwargs)
        made = out[0] if isinstance(out, tuple) else getattr(out, "prev_sample", None)
        if isinstance(made, Tensor):
            self.tracker.chain.made(made)
        return out

    def check_scheduler(self, going: Going) -> None:
        """Asked before a call: a run that has moved on without its scheduler has none that is seen."""
        is_taken_for_it = self.tracker.scheduler is not None and self.tracker.scheduler is not self.usual
        if is_taken_for_it and not self._has_stepped and self.tracker.moves_on(going):
            self.found = (self.usual,)

    def _is_own(self, scheduler: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a scheduler that steps is the one of this run; if another one is, the run has wrong noise levels."""
        if scheduler is self.tracker.scheduler:
            return True
        # A second scheduler, for audio beside video, steps samples of its own.
        sample = kwargs.get("sample", args[2] if len(args) > 2 else None)
        if not self._has_stepped and isinstance(sample, Tensor) and self.tracker.was_given(sample):
            self.found = (scheduler,)
        return False

    def _moved(self, sample: Tensor, moved: Tensor) -> None:
        self.model.move(sample, moved)


def two_threads(scheduler: Any) -> InputError:
    """The error of one scheduler that steps two runs at once: with or without UniCP their clips would be mixed up."""
    return InputError(
        "a run of this thread to go on",
        f"another thread has set the same {type(scheduler).__name__} since",
        "give each thread a copy of the pipeline (copy.copy) with a scheduler of its own (from_config)",
    )
