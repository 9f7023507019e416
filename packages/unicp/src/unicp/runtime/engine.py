"""What happens when the transformer is called: locate the run, decide, act, record.

The hooks in `unicp.hooks.diffusers` call in here: `call` around the whole transformer, `block_call` and `unit_call`
around the modules inside, `projection_call` around projections of the text.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import Tensor

from unicp.attention.slicing import NOT_CAUGHT, Sliced, UnitSlicer
from unicp.context import Action, Decision
from unicp.models.adapters import adapters_in_use
from unicp.models.finder import Block, ModelMap, Unit
from unicp.reducers.attention_call import AttentionCall
from unicp.runtime.block_streams import BlockCall
from unicp.runtime.cache_point import NON_FINITE, CachePoint, Measured, Outcome
from unicp.runtime.model_call import CallReader, read_output, why_not_followed
from unicp.runtime.recorder import MODEL, STACK, CostBook, Recorder
from unicp.runtime.run_state import Planner, RunState, Underway, policy_of
from unicp.runtime.run_tracker import RunTracker
from unicp.runtime.runs import Runs
from unicp.runtime.trace_log import TraceLog
from unicp.sampler import observer
from unicp.settings import Settings

Forward = Callable[..., Any]
Arguments = tuple[Any, ...]
Keywords = dict[str, Any]
# What a policy may name as a signal: what enters the first attention of the first block.
MODULATED = "block0.modulated"


class _Skipped(BaseException):
    """Ends the forward of a transformer whose first block has shown that the rest of it is skipped.

    No error: so it is no `Exception`, which code in between might catch.
    """


class Engine:
    """One transformer under UniCP.

    Args:
        model_map: Of the transformer.
        settings: Of the session.
        log: The trace.
        usual_scheduler: Gives the scheduler of a run whose own one is not seen, or `None`.
        planner: Gives each run what it follows; `None` = all runs follow the settings.
        check: Asked when a run begins; raises where UniCP can no longer be used on the transformer.
    """

    def __init__(
        self,
        model_map: ModelMap,
        settings: Settings,
        log: TraceLog,
        usual_scheduler: Callable[[], Any],
        planner: Planner | None = None,
        check: Callable[[], None] = lambda: None,
    ):
        self.map, self.settings, self.log = model_map, settings, log
        for unit in model_map.sliced_units:
            settings.slicing.widths_for(unit.head_width or 0)  # a width that no head has is refused at once
        sliced = model_map.sliced_units if settings.slicing.widths else ()
        self.sliced = frozenset(unit.name for unit in sliced)
        self.signals = policy_of(settings).signals
        # Names of compiled units whose attention nobody has seen yet.
        self.unseen: set[str] = set()
        self._planner, self._check, self._book = planner, check, CostBook(model_map)
        self._reader = CallReader(model_map)
        self._blocks = {block.name: BlockCall(block) for block in model_map.blocks}
        is_small = settings.level == "model"
        self.runs = Runs(
            model_map.family, is_small, usual_scheduler, lambda set_by: log.number(set_by, self), self._open
        )
        # Calls under way, and what is to be done once there are none. Lists, whose changes no other thread can split.
        self._under_way: list[object] = []
        self._afterwards: list[Callable[[], None]] = []
        self.is_off = False

    def _open(self, tracker: RunTracker, usual: Any) -> RunState:
        self._check()
        return RunState(self.map, self.settings, tracker, Recorder(self.log, self._book), usual)

    def close(self, take_off: Callable[[], None]) -> None:
        """Lets further calls pass by, and has the hooks taken off as soon as no call is under way that needs them."""
        self.is_off = True
        self.runs.reset()
        self._afterwards.append(take_off)
        self._do_afterwards()

    def _do_afterwards(self) -> None:
        while self._afterwards and not self._under_way:
            try:
                self._afterwards.pop()()
            except IndexError:
                return

    def call(self, forward: Forward, args: Arguments, kwargs: Keywords, context: Any) -> Any:
        """One call of the transformer. Whatever ends it early also ends the run: nothing stored of it survives."""
        # Counted first: who switches off then waits for this call, or this call sees that it is off.
        self._under_way.append(token := object())
        try:
            return forward(*args, **kwargs) if self.is_off else self._call(forward, args, kwargs, context)
        finally:
            self._under_way.remove(token)
            self._do_afterwards()

    def _call(self, forward: Forward, args: Arguments, kwargs: Keywords, context: Any) -> Any:
        """Locates the run, has the call done there, and writes it down."""
        given = self._reader.read(args, kwargs)
        if reason := why_not_followed(self.map.transformer, given, self.settings.level):
            self.runs.drop_here()
            self.log.warn("not_followed", f"computed: {reason}")
            return forward(*args, **kwargs)
        run, going = self.runs.locate(given, context, adapters_in_use(self.map.transformer))
        started, before, failed = time.perf_counter(), self.runs.enter(run), True
        try:
            now = run.begin_call(given, going, self._planner)
            act = self._whole if run.level == "model" else self._inside
            output = act(run, now, forward, args, kwargs)
            run.now, failed = None, False
        finally:
            run.now = None
            self.runs.leave(run, before, failed)
        if read := read_output(output):
            run.tracker.chain.answered(now.step.branch, read[1][0])
        run.end_call(time.perf_counter() - started)
        observer.expect_step(run)
        return output

    def _whole(self, run: RunState, now: Underway, forward: Forward, args: Arguments, kwargs: Keywords) -> Any:
        """The whole model is the cache point: decides, and skips or computes it."""
        as_dict = bool(kwargs.get("return_dict", True))
        # What is skipped has the form of an earlier output: a caller that asks for another one gets a computed one.
        veto = now.veto or ("output kind" if run.forms and as_dict not in run.forms else "")
        output = None
        if not self.signals:
            now.outcome = run.model.decide(now.step, now.samples, veto)
        now.veto = veto
        if now.outcome is None or now.outcome.outputs is None:
            with suppress(_Skipped):
                output = run.recorder.execute(forward, args, kwargs)
        outcome = now.outcome or run.model.decide(now.step, now.samples, veto or "no signal")
        self._count_non_finite(outcome.decision.reason == NON_FINITE)
        run.tell_sampler(outcome)
        if outcome.outputs is not None:
            spent = run.recorder.operations_outside_blocks if self.signals else 0
            run.recorder.note(MODEL, outcome.action, outcome.decision, choice=outcome.choice, saved=-spent)
            return run.forms[as_dict].fill(outcome.outputs)
        measured = self._take_in(run, now, output, as_dict)
        run.recorder.note(MODEL, Action.FULL, outcome.decision, measured.errors, measured.choice)
        return output

    def _take_in(self, run: RunState, now: Underway, output: Any, as_dict: bool) -> Measured:
        """A computed output of the whole model: measured and kept."""
        self._tell_unseen(run)
        read = read_output(output)
        if read is None or any(tensor.shape[:1] != now.samples[0].shape[:1] for tensor in read[1]):
            self.log.warn("output", "the model's output is no tensors with the batch first: it is not served")
            return Measured()
        run.forms[as_dict] = read[0]
        measured = run.model.full(now.step, now.samples, read[1], run.branches)
        self._count_non_finite(_has_non_finite(measured.errors))
        if not measured.is_kept:
            limit = run.store.limit(run.branches)
            self.log.warn("budget", f"{limit} bytes are too few to store any output: everything is computed")
        return measured

    def _inside(self, run: RunState, now: Underway, forward: Forward, args: Arguments, kwargs: Keywords) -> Any:
        """Cache points lie inside: the model runs, and the hooks inside decide."""
        output = run.recorder.execute(forward, args, kwargs)
        run.recorder.note(MODEL, Action.FULL, Decision(False, "outside spans"))
        if not now.has_reached:
            message = f"no {run.level} was reached: nothing is served (compiled after UniCP was enabled?)"
            self.log.warn("not_reached", message)
        return output

    def block_call(self, block: Block, forward: Forward, args: Arguments, kwargs: Keywords) -> Any:
        """One call of one block."""
        run = self.runs.now
        if run is None or run.now is None or run.level == "model":
            return forward(*args, **kwargs)
        now, form = run.now, self._blocks[block.name]
        now.has_reached, streams = True, form.streams(args, kwargs)
        run.store.note_stream(streams[0])
        if run.level == "unit" or block.row.refusal:
            return forward(*args, **kwargs)

        def compute() -> Any:
            with run.recorder.label(block.name):
                return forward(*args, **kwargs)

        if run.level == "stack":
            return self._stack_block(run, now, block, streams, compute)
        return self._one_block(run, now, block, streams, compute)

    def _one_block(self, run: RunState, now: Underway, block: Block, streams: Any, compute: Callable[[], Any]) -> Any:
        started, point, form = time.perf_counter(), run.point(block.name), self._blocks[block.name]
        outcome, measured = point.decide(now.step, streams, now.veto), Measured()
        if outcome.outputs is not None:
            output = form.to_output(outcome.outputs)
        else:
            output = compute()
            measured = self._measure(run, point, now, streams, form.of_output(output, streams))
        self._note(run, block.name, outcome, measured, time.perf_counter() - started)
        return output

    def _stack_block(self, run: RunState, now: Underway, block: Block, streams: Any, compute: Callable[[], Any]) -> Any:
        """The first block decides for all of them, the last one takes in what they made."""
        form, point = self._blocks[block.name], run.point(STACK)
        if block.index == 0:
            now.before_stack, now.outcome = streams, point.decide(now.step, streams, now.veto)
            # What the stack adds is no quantity of the whole sample, so the sampler cannot replay it.
            run.tell_sampler(replace(now.outcome, forecast=None))
            if now.outcome.outputs is not None:
                self._note(run, STACK, now.outcome)
                return form.to_output(now.outcome.outputs)
        if now.outcome is None or now.before_stack is None:
            return compute()
        if now.outcome.outputs is not None:
            # The first block gave out the stream with the whole stack's residual: the others let it pass.
            return form.to_output(streams)
        output = compute()
        if block.index == len(self.map.blocks) - 1:
            measured = self._measure(run, point, now, now.before_stack, form.of_output(output, streams))
            self._note(run, STACK, now.outcome, measured)
        return output

    def unit_call(self, unit: Unit, forward: Forward, args: Arguments, kwargs: Keywords) -> Any:
        """One call of one unit."""
        run = self.runs.now
        if run is None or run.now is None:
            return forward(*args, **kwargs)
        now, entering = run.now, next((one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)), None)

        def compute() -> Any:
            with run.recorder.label(unit.name):
                return forward(*args, **kwargs)

        if run.level == "model" and self.signals and now.outcome is None and unit is self.first_attention:
            seen = {} if entering is None else {MODULATED: entering}
            now.outcome = run.model.decide(now.step, now.samples, now.veto, seen)
            if now.outcome.outputs is not None:
                raise _Skipped
        if run.level == "unit" and unit.role in self.settings.roles:
            return self._one_unit(run, now, unit, compute, () if entering is None else (entering,))
        # A unit that a whole block or stack covers has no entry of its own, so it is not sliced.
        if run.level in ("model", "unit") and unit.name in self.sliced:
            return self._slice(run, unit, lambda slicer: slicer.run(now.step, compute))
        return compute()

    @property
    def first_attention(self) -> Unit | None:
        """The attention that the signal "block0.modulated" is taken from."""
        first = (unit for unit in self.map.units if unit.block == 0 and unit.role not in ("cross", "feed_forward"))
        return next(first, None)

    def _one_unit(self, run: RunState, now: Underway, unit: Unit, compute: Callable[[], Any], entering: Any) -> Any:
        """A unit that is a cache point: skipped, or sliced, or computed in full."""
        started, point, slicer = time.perf_counter(), run.point(unit.name), run.slicers[unit.name]
        outcome, measured, sliced = point.decide(now.step, entering, now.veto), Measured(), Sliced()
        if outcome.outputs is not None:
            output = outcome.outputs[0] if len(outcome.outputs) == 1 else outcome.outputs
        else:
            output, sliced = slicer.run(now.step, compute)
            tensors = tuple(output) if isinstance(output, (tuple, list)) else (output,)
            measured = self._measure(run, point, now, entering, tensors, sliced.error)
            if sliced.width is not None:
                outcome = replace(outcome, action=Action.SLICE)
        self._tell(run, slicer)
        self._note(run, unit.name, outcome, measured, time.perf_counter() - started, sliced)
        return output

    def _slice(self, run: RunState, unit: Unit, attend: Callable[[UnitSlicer], tuple[Any, Sliced]]) -> Any:
        """A unit that is no cache point: its attention at the width that is enough."""
        started, slicer = time.perf_counter(), run.slicers[unit.name]
        output, sliced = attend(slicer)
        self._tell(run, slicer)
        if sliced.width is not None or sliced.saved:
            is_sliced = sliced.width is not None
            outcome = Outcome(
                Decision(False, "within" if is_sliced else "tolerance", sliced.tolerance),
                Action.SLICE if is_sliced else Action.FULL,
            )
            measured = Measured([sliced.error] if is_sliced else None)
            self._note(run, unit.name, outcome, measured, time.perf_counter() - started, sliced)
        return output

    def attend(self, unit: Unit, call: AttentionCall, first: bool) -> Tensor:
        """The attention of a compiled unit. first: False for a further call of the same module."""
        run = self.runs.now
        if run is None:
            return call.full()
        slicer = run.slicers[unit.name]
        self.unseen.discard(unit.name)
        if not first:
            slicer.refusal = NOT_CAUGHT
            self._tell(run, slicer)
        if run.now is None or run.level != "model":
            return call.full()
        step = run.now.step
        return self._slice(run, unit, lambda slicer: slicer.attend(step, call))

    def projection_call(self, name: str, forward: Forward, args: Arguments, kwargs: Keywords) -> Any:
        """One call of a projection that sees nothing but the text."""
        run = self.runs.now
        if run is None or run.now is None:
            return forward(*args, **kwargs)
        branch, is_unchanged = run.now.step.branch, run.tracker.conditions_unchanged
        with run.recorder.label(name):
            output, is_stored = run.text_keys.call(branch, is_unchanged, name, forward, args, kwargs)
        if is_stored:
            run.recorder.note_text(name)
        return output

    def _measure(
        self, run: RunState, point: CachePoint, now: Underway, before: Any, after: Any, base_error: float = 0.0
    ) -> Measured:
        measured = point.full(now.step, before, after, run.branches, base_error)
        self._count_non_finite(_has_non_finite(measured.errors))
        run.is_over_budget |= not measured.is_kept
        return measured

    def _note(
        self,
        run: RunState,
        name: str,
        outcome: Outcome,
        measured: Measured | None = None,
        seconds: float = 0.0,
        sliced: Sliced | None = None,
    ) -> None:
        self._count_non_finite(outcome.decision.reason == NON_FINITE)
        errors, sliced = None if measured is None else measured.errors, sliced or Sliced()
        run.recorder.note(name, outcome.action, outcome.decision, errors, None, sliced.width, seconds, sliced.saved)

    def _tell_unseen(self, run: RunState) -> None:
        """After a computed call: says, once, of which compiled units no attention was seen."""
        unseen = sorted(self.unseen)
        self.unseen.clear()
        for name in unseen:
            run.slicers[name].refusal = f"{NOT_CAUGHT}, inside compiled code (flex attention is none there)"
            self._tell(run, run.slicers[name])

    def _tell(self, run: RunState, slicer: UnitSlicer) -> None:
        """Says why a unit could not be sliced, if it could not."""
        if slicer.refusal:
            message = f"{slicer.unit.name} cannot be sliced: {slicer.refusal}; it runs at full width"
            self.log.warn("not_sliced", message)

    def _count_non_finite(self, happened: bool) -> None:
        if happened:
            self.log.warn("non_finite", "outputs with infinities or NaN: computed instead of served")


def _has_non_finite(errors: list[float] | None) -> bool:
    return not all(math.isfinite(error) for error in errors or ())
