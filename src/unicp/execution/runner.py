"""One call of the transformer from end to end: where are we, what is to be done, do it, write it down.

The hooks in `attachment` call in here: `call` around the whole transformer, `block_call` and `unit_call` around
the modules inside, `projection_call` around projections of the text. The runner owns all state of one transformer.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unicp.control.controller import Controller, Course
from unicp.control.windows import Candidate, Position
from unicp.execution.block_spans import BlockCall, ResidualSpan, Streams
from unicp.execution.model_call import CallReader, OutputForm, Tensors, read_output, why_not_followed
from unicp.execution.model_span import ModelSpan, errors_as_lists
from unicp.execution.recorder import MODEL, STACK, Recorder
from unicp.execution.sampler_replay import SamplerReplay
from unicp.execution.slices import Slices
from unicp.execution.store import OutputStore
from unicp.execution.text_keys import TextKeys
from unicp.execution.trajectory import Trajectory
from unicp.execution.unit_span import UnitSpan
from unicp.models.adapters import adapters_in_use
from unicp.models.finder import Block, ModelMap, Unit
from unicp.models.noise import NoiseSchedule, schedule_of
from unicp.records import Action, Decision, Moment, Trace
from unicp.settings import Settings, SpanKind

COARSER: dict[SpanKind, SpanKind] = {"unit": "block", "block": "stack", "stack": "model"}
Forward = Callable[..., Any]
# (noise schedule, step under way, branches, shape of the sample) of a run -> the plan it follows, None = online rule.
Planner = Callable[[NoiseSchedule | None, int, int, tuple[int, ...]], Course]
Arguments = tuple[Any, ...]
Keywords = dict[str, Any]


@dataclass
class _Call:
    """The call under way."""

    moment: Moment
    position: Position
    before_stack: Streams | None = None
    stack_decision: Decision | None = None


class Runner:
    """All state of one transformer under UniCP. `scheduler_of` gives the scheduler in use, or None."""

    def __init__(self, model_map: ModelMap, settings: Settings, trace: Trace, scheduler_of: Callable[[], Any]):
        self.map, self.settings = model_map, settings
        self.span: SpanKind = settings.span
        family = model_map.family
        self.trajectory = Trajectory(timestep_scale=family.timestep_scale, timestep_shift=family.timestep_shift)
        self.store = OutputStore(settings)
        self.text_keys = TextKeys()
        controller = Controller(settings)
        self.model_span = ModelSpan(settings, controller, self.store, None)
        self.stack = ResidualSpan(STACK, settings, controller, self.store)
        self.blocks = {b.name: ResidualSpan(b.name, settings, controller, self.store) for b in model_map.blocks}
        self.units = {unit.name: UnitSpan(unit, settings, controller, self.store) for unit in model_map.units}
        self._sliced = {unit.name for unit in model_map.sliced_units} if settings.slicing.widths else set[str]()
        self._spans = (self.model_span, self.stack, *self.blocks.values(), *self.units.values())
        self.recorder = Recorder(trace, model_map)
        self.slices = Slices(self.units, self.recorder)
        self._block_calls = {block.name: BlockCall(block) for block in model_map.blocks}
        self.owner: Any = None  # the session, set once its hooks are on
        self.planner: Planner | None = None
        self._planned_run = -1
        self._scheduler_of = scheduler_of
        self._scheduler: Any = None
        self._forms: dict[bool, OutputForm] = {}
        self._reader = CallReader(model_map)
        self._now: _Call | None = None
        self._over_budget = self._reached = False
        self._lock = threading.RLock()
        self._replay = SamplerReplay(trace.counts)
        self.model_span.combined, self._replay.on_move = self._replay.share, self.model_span.move

    def reset(self) -> None:
        """Forgets the run: stored outputs, windows, branches. The trace stays."""
        self.trajectory.reset()
        self._forget()

    @property
    def scheduler(self) -> Any:
        """The scheduler in use now, or None."""
        return self._scheduler_of()

    @property
    def is_empty(self) -> bool:
        """True when nothing of a run is held."""
        held = len(self.store) + self.text_keys.bytes + self._replay.bytes
        return held == 0 and all(span.is_empty for span in self._spans)

    def call(self, forward: Forward, args: Arguments, kwargs: Keywords, context: Any) -> Any:
        """One call of the transformer. Whatever ends it early also ends the run: nothing stored survives."""
        with self._lock:
            try:
                return self._call(forward, args, kwargs, context)
            except BaseException:
                self.reset()
                raise
            finally:
                self._now = self.slices.moment = None

    def _call(self, forward: Forward, args: Arguments, kwargs: Keywords, context: Any) -> Any:
        started = time.perf_counter()
        given = self._reader.read(args, kwargs)
        if reason := why_not_followed(self.map.transformer, given, self.span):
            self.reset()
            self.recorder.warn("not_followed", f"computed: {reason}")
            return forward(*args, **kwargs)
        self._refresh_schedule()
        samples = given.samples
        weights = adapters_in_use(self.map.transformer)
        others, kind = samples[1:], given.kind
        moment, fresh = self.trajectory.enter(samples[0], given.timestep, given.text, context, others, weights, kind)
        if fresh:
            self._forget()
        self.text_keys.branch = moment.branch
        self.text_keys.may_serve = self.trajectory.text_unchanged and not fresh
        self._follow_plan(moment, samples[0])
        self._now = _Call(moment, self.model_span.position(moment))
        self.recorder.begin(moment, given.shapes)
        if self.span == "model":
            self.slices.moment = moment
            output = self._whole(self._now, forward, args, kwargs, samples)
        else:
            self._reached = False
            output = self.recorder.execute(forward, args, kwargs)
            self.recorder.note(MODEL, Decision(Action.COMPUTE, 0.0, "outside spans"))
            if not self._reached:
                message = f"no {self.span} was reached: nothing is served (compiled after UniCP was enabled?)"
                self.recorder.warn("not_reached", message)
        held = self.store.bytes + self.text_keys.bytes + self._replay.bytes
        held += sum(span.bytes for span in self.units.values())
        self.recorder.finish(time.perf_counter() - started, held)
        if self._over_budget:
            self._coarsen()
        return output

    def _follow_plan(self, moment: Moment, sample: Tensor) -> None:
        """A plan is asked for at the second step: by then a run has shown its branches, and nothing was served yet."""
        if self.planner is not None and moment.step > 0 and moment.run != self._planned_run:
            self._planned_run = moment.run
            shape = tuple(sample.shape)
            self.model_span.follow(self.planner(self.model_span.schedule, moment.step, self._branches, shape))
        guard = self.model_span.controller.guard
        if guard is not None:
            guard.why(moment.step)
            while guard.events:
                self.recorder.warn("guard", f"run {moment.run}, {guard.events.pop(0)}")

    def _forget(self) -> None:
        self._replay.reset()
        self.store.clear()
        self.text_keys.clear()
        for span in self._spans:
            span.reset()

    def _refresh_schedule(self) -> None:
        scheduler = self._scheduler_of()
        if scheduler is not self._scheduler:
            self._replay.reset()
            self._scheduler = self.trajectory.scheduler = scheduler
            self.trajectory.schedule = self.model_span.schedule = schedule_of(self.map.family, scheduler)

    def _tell_sampler(self, now: _Call, is_served: bool, way: Candidate | None = None) -> None:
        """A call of the whole model or stack was served or is being computed: what the scheduler remembers follows."""
        if not self.settings.mend_sampler:
            return
        place = self.model_span.schedule, now.position, now.moment.timestep
        if is_served:
            self._replay.served(self._scheduler, *place, way)
        else:
            self._replay.computed(self._scheduler, *place)

    def _whole(self, now: _Call, forward: Forward, args: Arguments, kwargs: Keywords, samples: Tensors) -> Any:
        """A call under span "model": served or computed as one."""
        served = self.model_span.decide(now.moment, samples)
        decision = served.decision
        self._count_non_finite(decision.why == "non-finite")
        as_dict = bool(kwargs.get("return_dict", True))
        if served.outputs is None:
            served = self.model_span.by_guidance(now.moment, samples) or served
        if served.outputs is not None:
            # A step may be served only after others of the run were computed, so its form is known; a caller that
            # changes return_dict in mid-run gets a computed output.
            if as_dict in self._forms:
                self._tell_sampler(now, True, served.candidate)
                self.recorder.note(MODEL, served.decision, None, str(served.candidate))
                return self._forms[as_dict].fill(served.outputs)
            decision = Decision(Action.COMPUTE, decision.tolerance, "output kind", decision.predicted)
        self._tell_sampler(now, False)
        output = self.recorder.execute(forward, args, kwargs)
        self.slices.tell_unseen()
        read = read_output(output)
        errors = None
        if read is None or any(tensor.shape[:1] != samples[0].shape[:1] for tensor in read[1]):
            self.recorder.warn("output", "the model's output is no tensors with the batch first: it is not served")
        else:
            self._forms[as_dict] = read[0]
            errors = self.model_span.computed(now.moment, samples, read[1])
            values = (value for row in (errors or {}).values() for value in row)
            self._count_non_finite(not all(math.isfinite(value) for value in values))
            if self.model_span.over_budget:
                limit = self.store.limit(self._branches)
                self.recorder.warn("budget", f"{limit} bytes are too few to store any output: everything is computed")
        self.recorder.note(MODEL, decision, *errors_as_lists(errors, None))
        return output

    def block_call(self, block: Block, forward: Forward, args: Arguments, kwargs: Keywords) -> Any:
        """One call of one block."""
        now, self._reached = self._now, True
        if now is None or self.span == "model":
            return forward(*args, **kwargs)
        streams = self._block_calls[block.name].streams(args, kwargs)
        self.store.note_stream(streams[0])
        if self.span == "unit" or block.row.refusal:
            return forward(*args, **kwargs)
        run = self._one_block if self.span == "block" else self._stack_block
        return run(now, block, streams, lambda: forward(*args, **kwargs))

    def _one_block(self, now: _Call, block: Block, streams: Streams, call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        span, form = self.blocks[block.name], self._block_calls[block.name]
        outcome, served = span.decide(now.moment, now.position, streams)
        self._count_non_finite(outcome.non_finite)
        if served is not None:
            output, measured = form.to_output(served), None
        else:
            with self.recorder.label(block.name):
                output = call()
            after = form.of_output(output, streams)
            measured, fits = span.computed(now.moment, now.position, streams, after, self._branches)
            self._count_non_finite(_has_non_finite(measured))
            self._over_budget |= not fits
        self.recorder.note(block.name, outcome.decision, measured, None, time.perf_counter() - started)
        return output

    def _stack_block(self, now: _Call, block: Block, streams: Streams, call: Callable[[], Any]) -> Any:
        form = self._block_calls[block.name]
        if block.index == 0:
            outcome, served = self.stack.decide(now.moment, now.position, streams)
            self._count_non_finite(outcome.non_finite)
            now.stack_decision, now.before_stack = outcome.decision, streams
            self._tell_sampler(now, outcome.decision.action.served)
            if served is not None:
                self.recorder.note(STACK, outcome.decision)
                return form.to_output(served)
        decision = now.stack_decision
        if decision is None or now.before_stack is None:
            return call()
        if decision.action.served:
            # The first block gave out the stream with the whole stack's residual: the others let it pass.
            return form.to_output(streams)
        with self.recorder.label(block.name):
            output = call()
        if block.index == len(self.map.blocks) - 1:
            after = form.of_output(output, streams)
            measured, fits = self.stack.computed(now.moment, now.position, now.before_stack, after, self._branches)
            self._count_non_finite(_has_non_finite(measured))
            self._over_budget |= not fits
            self.recorder.note(STACK, decision, measured)
        return output

    def unit_call(self, unit: Unit, forward: Forward, args: Arguments, kwargs: Keywords) -> Any:
        """One call of one unit."""
        now, span = self._now, self.units[unit.name]

        def call() -> Any:
            with self.recorder.label(unit.name):
                return forward(*args, **kwargs)

        if now is None:
            return forward(*args, **kwargs)
        if self.span == "unit" and unit.role in self.settings.roles:
            return self._one_unit(now, span, call, _first_tensor(args, kwargs))
        # A unit that a whole block or stack covers has no entry of its own, so it is not sliced.
        if self.span in ("model", "unit") and unit.name in self._sliced and not self.recorder.is_counting:
            return self.slices.slice(now.moment, span, call)
        return call()

    def _one_unit(self, now: _Call, span: UnitSpan, call: Callable[[], Any], entering: Tensor | None) -> Any:
        started = time.perf_counter()
        # The call in which operations are counted must be a full one.
        may_slice = not self.recorder.is_counting
        outcome = span.run(now.moment, now.position, call, entering, self._branches, may_slice)
        self.slices.tell(span)
        self._over_budget |= not outcome.fits
        self._count_non_finite(outcome.non_finite or _has_non_finite(outcome.measured))
        seconds = time.perf_counter() - started
        self.recorder.note(span.unit.name, outcome.decision, outcome.measured, None, seconds, outcome.saved)
        return outcome.output

    def projection_call(self, name: str, forward: Forward, args: Arguments, kwargs: Keywords) -> Any:
        """One call of a projection that sees nothing but the text."""
        if self._now is None:
            return forward(*args, **kwargs)
        served = self.text_keys.served
        with self.recorder.label(name):
            output = self.text_keys.call(name, forward, args, kwargs)
        if self.text_keys.served > served:
            self.recorder.note_text(name)
        return output

    @property
    def _branches(self) -> int:
        return self.trajectory.branches

    def _coarsen(self) -> None:
        """The byte budget is exceeded: from the next call on, the next coarser span that the model allows."""
        self._over_budget = False
        before, self.span = self.span, COARSER.get(self.span, MODEL)
        while self.map.span_refusal(self.span):
            self.span = COARSER[self.span]
        limit = self.store.limit(self._branches)
        message = f"stored outputs would exceed {limit} bytes: span {before} gives way to {self.span}"
        self.recorder.warn("budget", message)
        self._forget()

    def _count_non_finite(self, happened: bool) -> None:
        if happened:
            self.recorder.warn("non_finite", "outputs with infinities or NaN: computed instead of served")


def _has_non_finite(errors: list[float] | None) -> bool:
    return not all(math.isfinite(error) for error in errors or ())


def _first_tensor(args: Arguments, kwargs: Keywords) -> Tensor | None:
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
