"""One run of one transformer: everything that belongs to it, and what is done at each of its calls.

Made when a run opens and dropped when it ends; nothing of a run lives anywhere else, so that a call under way keeps its
own state whatever happens to the session, and runs in other threads know nothing of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unicp.control.controller import Controller
from unicp.control.windows import Candidate, Position
from unicp.execution.block_spans import ResidualSpan, Streams
from unicp.execution.model_call import CallInputs, OutputForm, Tensors, read_output
from unicp.execution.model_span import ModelSpan, errors_as_lists
from unicp.execution.recorder import MODEL, STACK, Recorder
from unicp.execution.run_shared import Arguments, Forward, Keywords, Shared, two_threads
from unicp.execution.run_tracker import Going, RunTracker
from unicp.execution.sample_chain import Link
from unicp.execution.sampler_replay import SamplerReplay
from unicp.execution.slices import Slices
from unicp.execution.store import OutputStore
from unicp.execution.text_keys import TextKeys
from unicp.execution.unit_span import UnitSpan
from unicp.models import scheduler_watch
from unicp.models.finder import Block, Unit
from unicp.records import Action, Decision, Moment
from unicp.settings import SpanKind

COARSER: dict[SpanKind, SpanKind] = {"unit": "block", "block": "stack", "stack": "model"}


@dataclass
class _Call:
    """The call under way. doubt: why nothing may be served in it, "" = something may."""

    moment: Moment
    position: Position
    doubt: str = ""
    before_stack: Streams | None = None
    stack_decision: Decision | None = None


class RunState:
    """The state of one run. tracker: what it is known by. waited: calls of other runs since its last one.

    found: (scheduler,) where another one than the run's own turned out to step it, so that its noise levels are wrong.
    usual: the scheduler of runs whose own one is not seen. That of this run, if it is another, is one that this thread
    had set: taken for it until it steps, or until it does not.
    """

    def __init__(self, shared: Shared, tracker: RunTracker, usual: Any = None):
        self._usual = usual
        self.shared, self.settings, self.map, self.tracker = shared, shared.settings, shared.map, tracker
        self.span: SpanKind = self.settings.span
        self.found: tuple[Any] | None = None
        self._is_dropped = False
        self.waited = 0
        self.recorder = Recorder(shared.log, shared.book)
        self._forms: dict[bool, OutputForm] = {}
        self._now: _Call | None = None
        self._is_planned = self._has_stepped = False
        self._begin()

    def _begin(self) -> None:
        """Stores, windows and bases with nothing in them."""
        settings, self.controller = self.settings, Controller(self.settings)
        self.store, self.text_keys = OutputStore(settings), TextKeys()
        self.replay = SamplerReplay(self.shared.log.count, self._moved)
        self.model_span = ModelSpan(settings, self.controller, self.store, self.tracker.schedule, self.replay.share)
        spans = [STACK, *self.shared.block_calls]
        self._spans = {name: ResidualSpan(name, settings, self.controller, self.store) for name in spans}
        counting = self.recorder.as_full_attention
        self.units = {
            unit.name: UnitSpan(unit, settings, self.controller, self.store, counting) for unit in self.map.units
        }
        self.slices = Slices(self.units, self.recorder, self.shared.unseen)
        self._over_budget = self._reached = False

    @property
    def is_stale(self) -> bool:
        """Whether no call goes on with this run any more."""
        return self._is_dropped or self.found is not None

    def drop(self) -> None:
        """Has no call go on with the run any more; it may be another thread that says so, in the middle of a call."""
        self._is_dropped = True

    @property
    def holds_nothing(self) -> bool:
        """True when no output or branch of the run is held."""
        return self.tracker.branches == 0 and len(self.store) + self.text_keys.bytes + self.replay.bytes == 0

    def call(self, forward: Forward, args: Arguments, kwargs: Keywords, given: CallInputs, going: Going) -> Any:
        """One call of the transformer that goes on with this run."""
        started = time.perf_counter()
        self.waited = 0
        moment = self.tracker.take(given, going)
        self._follow_plan(moment, given.samples[0])
        doubt = "sample" if going.link is Link.EDITED else ""
        now = self._now = _Call(moment, self.model_span.position(moment), doubt)
        self.recorder.begin(moment, given.shapes)
        try:
            output = self._done(now, forward, args, kwargs, given.samples)
        finally:
            self._now = self.slices.moment = None
        read = read_output(output)
        if read is not None:
            self.tracker.chain.answered(moment.branch, read[1][0])
        held = self.store.bytes + self.text_keys.bytes + self.replay.bytes
        held += sum(unit.bytes for unit in self.units.values())
        self.recorder.finish(time.perf_counter() - started, held)
        if self._over_budget:
            self._coarsen()
        scheduler_watch.expect_step(self)
        return output

    def _done(self, now: _Call, forward: Forward, args: Arguments, kwargs: Keywords, samples: Tensors) -> Any:
        if self.span == "model":
            self.slices.moment = now.moment
            return self._whole(now, forward, args, kwargs, samples)
        self._reached = False
        output = self.recorder.execute(forward, args, kwargs)
        self.recorder.note(MODEL, Decision(Action.COMPUTE, 0.0, "outside spans"))
        if not self._reached:
            message = f"no {self.span} was reached: nothing is served (compiled after UniCP was enabled?)"
            self.recorder.warn("not_reached", message)
        return output

    def take_step(self, scheduler: Any, own: Forward, args: Arguments, kwargs: Keywords) -> Any:
        """A step right after a call of this run: of its own scheduler, or of one that is found to be its own."""
        if not self._is_own(scheduler, args, kwargs):
            return own(*args, **kwargs)
        if self.tracker.is_set_elsewhere:
            raise two_threads(scheduler)
        # One that stepped before was no other one of this run, but a copy that looked ahead.
        self._has_stepped, self.found = True, None
        out = self.replay.step(scheduler, own, args, kwargs) if self.settings.mend_sampler else own(*args, **kwargs)
        made = out[0] if isinstance(out, tuple) else getattr(out, "prev_sample", None)
        if isinstance(made, Tensor):
            self.tracker.chain.made(made)
        return out

    def _is_own(self, scheduler: Any, args: Arguments, kwargs: Keywords) -> bool:
        """Whether a scheduler that steps is the one of this run; if another one is, the run has wrong noise levels."""
        if scheduler is self.tracker.scheduler:
            return True
        # A second scheduler, for audio beside video, steps samples of its own.
        sample = kwargs.get("sample", args[2] if len(args) > 2 else None)
        if not self._has_stepped and isinstance(sample, Tensor) and self.tracker.was_given(sample):
            self.found = (scheduler,)
        return False

    def check_scheduler(self, going: Going) -> None:
        """Asked before a call: a run that has moved on without its scheduler has none that is seen."""
        is_taken_for_it = self.tracker.scheduler is not None and self.tracker.scheduler is not self._usual
        if is_taken_for_it and not self._has_stepped and self.tracker.moves_on(going):
            self.found = (self._usual,)

    def _follow_plan(self, moment: Moment, sample: Tensor) -> None:
        """A plan is asked for at the second step: by then a run has shown its branches, and nothing was served yet."""
        if self.shared.planner is not None and moment.step > 0 and not self._is_planned:
            self._is_planned = True
            self.model_span.follow(self.shared.planner(self.tracker, moment.step, tuple(sample.shape)))
        guard = self.controller.guard
        if guard is not None:
            guard.why(moment.step)
            while guard.events:
                self.recorder.warn("guard", f"run {moment.run}, {guard.events.pop(0)}")

    def _moved(self, sample: Tensor, moved: Tensor) -> None:
        self.model_span.move(sample, moved)

    def _tell_sampler(self, now: _Call, is_served: bool, way: Candidate | None = None) -> None:
        """A call of the whole model or stack was served or is being computed: what the scheduler remembers follows."""
        if not self.settings.mend_sampler:
            return
        place = self.tracker.schedule, now.position, now.moment.timestep
        if is_served:
            self.replay.served(*place, way, now.moment.branch)
        else:
            self.replay.computed(*place, now.moment.branch)

    def _whole(self, now: _Call, forward: Forward, args: Arguments, kwargs: Keywords, samples: Tensors) -> Any:
        """A call under span "model": served or computed as one."""
        served = self.model_span.decide(now.moment, samples, now.doubt)
        decision = served.decision
        self._count_non_finite(decision.why == "non-finite")
        as_dict = bool(kwargs.get("return_dict", True))
        if served.outputs is None and not now.doubt:
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
        streams = self.shared.block_calls[block.name].streams(args, kwargs)
        self.store.note_stream(streams[0])
        if self.span == "unit" or block.row.refusal:
            return forward(*args, **kwargs)
        run = self._one_block if self.span == "block" else self._stack_block
        return run(now, block, streams, lambda: forward(*args, **kwargs))

    def _one_block(self, now: _Call, block: Block, streams: Streams, call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        span, form = self._spans[block.name], self.shared.block_calls[block.name]
        outcome, served = span.decide(now.moment, now.position, streams, now.doubt)
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
        form, stack = self.shared.block_calls[block.name], self._spans[STACK]
        if block.index == 0:
            outcome, served = stack.decide(now.moment, now.position, streams, now.doubt)
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
            measured, fits = stack.computed(now.moment, now.position, now.before_stack, after, self._branches)
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
        if self.span in ("model", "unit") and unit.name in self.shared.sliced:
            return self.slices.slice(now.moment, span, call)
        return call()

    def _one_unit(self, now: _Call, span: UnitSpan, call: Callable[[], Any], entering: Tensor | None) -> Any:
        started = time.perf_counter()
        outcome = span.run(now.moment, now.position, call, entering, self._branches, now.doubt)
        self.slices.tell(span)
        self._over_budget |= not outcome.fits
        self._count_non_finite(outcome.non_finite or _has_non_finite(outcome.measured))
        seconds = time.perf_counter() - started
        self.recorder.note(span.unit.name, outcome.decision, outcome.measured, None, seconds, outcome.saved)
        return outcome.output

    def projection_call(self, name: str, forward: Forward, args: Arguments, kwargs: Keywords) -> Any:
        """One call of a projection that sees nothing but the text."""
        now = self._now
        if now is None:
            return forward(*args, **kwargs)
        may_serve = self.tracker.conditions_unchanged
        with self.recorder.label(name):
            output, is_stored = self.text_keys.call(now.moment.branch, may_serve, name, forward, args, kwargs)
        if is_stored:
            self.recorder.note_text(name)
        return output

    @property
    def _branches(self) -> int:
        return self.tracker.branches

    def _coarsen(self) -> None:
        """The byte budget is exceeded: from the next call on, the next coarser span that the model allows."""
        self._over_budget = False
        before, self.span = self.span, COARSER.get(self.span, MODEL)
        while self.map.span_refusal(self.span):
            self.span = COARSER[self.span]
        limit = self.store.limit(self._branches)
        message = f"stored outputs would exceed {limit} bytes: span {before} gives way to {self.span}"
        self.recorder.warn("budget", message)
        self._begin()

    def _count_non_finite(self, happened: bool) -> None:
        if happened:
            self.recorder.warn("non_finite", "outputs with infinities or NaN: computed instead of served")


def _has_non_finite(errors: list[float] | None) -> bool:
    return not all(math.isfinite(error) for error in errors or ())


def _first_tensor(args: Arguments, kwargs: Keywords) -> Tensor | None:
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
