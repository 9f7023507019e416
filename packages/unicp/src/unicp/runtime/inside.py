"""What happens inside the transformer: blocks, units, attention and projections of the text.

The hooks in `unicp.hooks.diffusers` call in here while `unicp.runtime.engine` has a call of the transformer under way.
At the levels "stack", "block" and "unit" the cache points lie here; at every level attention may be sliced here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from unicp.attention.slicing import NOT_CAUGHT, Sliced, UnitSlicer
from unicp.context import Action, Decision
from unicp.models.finder import Block, ModelMap, Unit
from unicp.reducers.attention_call import AttentionCall
from unicp.runtime.block_streams import BlockCall
from unicp.runtime.cache_point import NON_FINITE, CachePoint, Measured, Outcome
from unicp.runtime.recorder import MODEL, STACK
from unicp.runtime.run_state import RunState, Underway
from unicp.runtime.runs import Runs
from unicp.runtime.trace_log import TraceLog
from unicp.settings import Settings

Forward = Callable[..., Any]
Arguments = tuple[Any, ...]
Keywords = dict[str, Any]
# What a policy may name as a signal: what enters the first attention of the first block.
MODULATED = "block0.modulated"


class Skipped(BaseException):
    """Ends the forward of a transformer whose first block has shown that the rest of it is skipped.

    No error: so it is no `Exception`, which code in between might catch.
    """


class Inside:
    """What is done in the modules of one transformer.

    Args:
        model_map: Of the transformer.
        settings: Of the session.
        log: The trace.
        runs: Knows the run whose call is under way.
    """

    def __init__(self, model_map: ModelMap, settings: Settings, log: TraceLog, runs: Runs):
        self.map, self.settings, self.log, self._runs = model_map, settings, log, runs
        sliced = model_map.sliced_units if settings.slicing.widths else ()
        self._sliced = frozenset(unit.name for unit in sliced)
        self._blocks = {block.name: BlockCall(block) for block in model_map.blocks}
        # Names of compiled units whose attention nobody has seen yet.
        self.unseen: set[str] = set()
        # The attention that the signal "block0.modulated" is taken from.
        first = (unit for unit in model_map.units if unit.block == 0 and unit.role not in ("cross", "feed_forward"))
        self.first_attention = next(first, None)

    def model_call(self, run: RunState, now: Underway, forward: Forward, args: Arguments, kwargs: Keywords) -> Any:
        """One call of the transformer, inside which the cache points lie."""
        output = run.recorder.execute(forward, args, kwargs)
        run.recorder.note(MODEL, Action.FULL, Decision(False, "outside"))
        if not now.has_reached:
            message = f"no {run.level} was reached: nothing is skipped (compiled after UniCP was enabled?)"
            self.log.warn("not_reached", message)
        return output

    def block_call(self, block: Block, forward: Forward, args: Arguments, kwargs: Keywords) -> Any:
        """One call of one block."""
        run = self._runs.now
        if run is None or run.now is None or run.level == "model":
            return forward(*args, **kwargs)
        now, form = run.now, self._blocks[block.name]
        now.reached()
        streams = form.streams(args, kwargs)
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
            outcome = now.decided(point.decide(now.step, streams, now.veto), streams)
            # What the stack adds is no quantity of the whole sample, so the sampler cannot replay it.
            run.tell_sampler(replace(outcome, forecast=None))
            if outcome.outputs is not None:
                self._note(run, STACK, outcome)
                return form.to_output(outcome.outputs)
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
        run = self._runs.now
        if run is None or run.now is None:
            return forward(*args, **kwargs)
        now, entering = run.now, next((one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)), None)

        def compute() -> Any:
            with run.recorder.label(unit.name):
                return forward(*args, **kwargs)

        if run.level == "model" and now.outcome is None and unit is self.first_attention and run.model.policy.signals:
            seen = {} if entering is None else {MODULATED: entering}
            run.recorder.at_signal()
            outcome = now.decided(run.model.decide(now.step, now.samples, now.veto, seen))
            if outcome.outputs is not None:
                raise Skipped
        if run.level == "unit" and unit.role in self.settings.roles:
            return self._one_unit(run, now, unit, compute, () if entering is None else (entering,))
        # A unit that a whole block or stack covers has no entry of its own, so it is not sliced.
        if run.level in ("model", "unit") and unit.name in self._sliced:
            return self._slice(run, unit, lambda slicer: slicer.run(now.step, compute))
        return compute()

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
        self._tell(run, slicer, sliced)
        self._note(run, unit.name, outcome, measured, time.perf_counter() - started, sliced)
        return output

    def _slice(self, run: RunState, unit: Unit, attend: Callable[[UnitSlicer], tuple[Any, Sliced]]) -> Any:
        """A unit that is no cache point: its attention at the width that is enough."""
        started, slicer = time.perf_counter(), run.slicers[unit.name]
        output, sliced = attend(slicer)
        self._tell(run, slicer, sliced)
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
        run = self._runs.now
        if run is None:
            return call.full()
        slicer = run.slicers[unit.name]
        self.unseen.discard(unit.name)
        if not first:
            slicer.refuse(NOT_CAUGHT)
            self._tell(run, slicer)
        if run.now is None or run.level != "model":
            return call.full()
        step = run.now.step
        return self._slice(run, unit, lambda slicer: slicer.attend(step, call))

    def projection_call(self, name: str, forward: Forward, args: Arguments, kwargs: Keywords) -> Any:
        """One call of a projection that sees nothing but the text."""
        run = self._runs.now
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
        count_non_finite(self.log, measured)
        return run.measured(measured)

    def _note(
        self,
        run: RunState,
        name: str,
        outcome: Outcome,
        measured: Measured | None = None,
        seconds: float = 0.0,
        sliced: Sliced | None = None,
    ) -> None:
        count_non_finite(self.log, outcome)
        errors, sliced = None if measured is None else measured.errors, sliced or Sliced()
        run.recorder.note(name, outcome.action, outcome.decision, errors, None, sliced.width, seconds, sliced.saved)

    def _tell(self, run: RunState, slicer: UnitSlicer, sliced: Sliced | None = None) -> None:
        """Says why a unit could not be sliced, at all or in this call."""
        if sliced is not None and sliced.reason:
            self.log.warn("not_sliced", f"{slicer.unit.name} was not sliced in some call: {sliced.reason}")
        if slicer.refusal:
            message = f"{slicer.unit.name} cannot be sliced: {slicer.refusal}; it runs at full width"
            self.log.warn("not_sliced", message)

    def tell_unseen(self, run: RunState) -> None:
        """After a computed call: says, once, of which compiled units no attention was seen."""
        unseen = sorted(self.unseen)
        self.unseen.clear()
        for name in unseen:
            run.slicers[name].refuse(f"{NOT_CAUGHT}, inside compiled code (flex attention is none there)")
            self._tell(run, run.slicers[name])


def count_non_finite(log: TraceLog, found: Outcome | Measured) -> None:
    """Says that outputs, or what they were measured by, had infinities or NaN."""
    if isinstance(found, Outcome):
        is_finite = found.decision.reason != NON_FINITE
    else:
        is_finite = all(math.isfinite(error) for error in found.errors or ())
    if not is_finite:
        log.warn("non_finite", "outputs with infinities or NaN: computed instead of skipped")
