"""One call of the transformer from end to end: where are we, what is to be done, do it, write it down.

The hooks in `attachment` call in here: `call` around the whole transformer, `block_call` and `unit_call` around
the modules inside, `projection_call` around projections of the text. The runner owns all state of one transformer.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unicp.control.controller import Controller, SliceReport
from unicp.control.windows import Position
from unicp.execution.block_spans import BlockCall, ResidualSpan, Streams
from unicp.execution.model_span import ModelSpan, errors_as_lists
from unicp.execution.store import OutputStore
from unicp.execution.text_keys import TextKeys
from unicp.execution.trajectory import Trajectory
from unicp.execution.unit_span import UnitSpan, slice_report
from unicp.models.finder import Block, ModelMap, Unit
from unicp.models.noise import NoiseSchedule, read_schedule
from unicp.numerics.operation_counts import OperationCounter
from unicp.records import Action, Decision, Entry, Moment, Trace
from unicp.settings import Settings, SpanKind

COARSER: dict[SpanKind, SpanKind] = {"unit": "block", "block": "stack", "stack": "model"}
TEXT_LABEL = "text keys"


@dataclass(frozen=True)
class Costs:
    """Operations of one full call with certain shapes, in total and by block, unit and text projections."""

    total: int
    by_label: dict[str, int]


@dataclass
class _Call:
    """The call under way."""

    moment: Moment
    position: Position
    costs: Costs | None
    counter: OperationCounter | None = None
    width: int | None = None
    observe: bool = False
    entries: list[Entry] = field(default_factory=list)
    served_stack: bool = False
    before_stack: Streams | None = None
    stack_decision: Decision | None = None


class Runner:
    """All state of one transformer under UniCP. `scheduler_of` gives the scheduler in use, or None."""

    def __init__(
        self, model_map: ModelMap, settings: Settings, trace: Trace, scheduler_of: Callable[[], Any], counts: bool
    ):
        self.map, self.settings, self.trace = model_map, settings, trace
        self.span: SpanKind = settings.span
        self.controller = Controller(settings)
        self.trajectory = Trajectory()
        self.store = OutputStore(settings)
        self.text_keys = TextKeys()
        self.model_span = ModelSpan(settings, self.controller, self.store, None)
        self.block_calls = {block.name: BlockCall(block) for block in model_map.blocks}
        self.residuals = {b.name: ResidualSpan(b.name, settings, self.controller, self.store) for b in model_map.blocks}
        self.stack = ResidualSpan("stack", settings, self.controller, self.store)
        self.units = {unit.name: UnitSpan(unit, settings, self.controller, self.store) for unit in model_map.units}
        self._scheduler_of = scheduler_of
        self._scheduler: Any = None
        self._schedule: NoiseSchedule | None = None
        self._counts = counts
        self._costs: dict[tuple[Any, ...], Costs] = {}
        self._templates: dict[bool, Any] = {}
        self._names = list(inspect.signature(type(model_map.transformer).forward).parameters)[1:]
        self._now: _Call | None = None
        self._too_small = False
        self._lock = threading.RLock()

    # --- around the whole transformer ---------------------------------------------------------------------------

    def call(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Any:
        """One call of the transformer. Whatever ends it early also ends the run: nothing stored survives."""
        with self._lock:
            try:
                return self._call(forward, args, kwargs, context)
            except BaseException:
                self.reset()
                raise
            finally:
                self._now = None

    def reset(self) -> None:
        """Forgets the run: stored outputs, windows, branches. The trace stays."""
        self.trajectory.reset()
        self._forget()

    @property
    def is_empty(self) -> bool:
        """True when nothing of a run is held."""
        return len(self.store) == 0 and self.text_keys.bytes == 0 and not self.model_span.branches

    def _forget(self) -> None:
        self.store.clear()
        self.text_keys.clear()
        for span in (self.model_span, self.stack, *self.residuals.values(), *self.units.values()):
            span.reset()

    def _call(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Any:
        started = time.perf_counter()
        named = {**dict(zip(self._names, args)), **kwargs}
        family = self.map.family
        sample, text = named[family.sample_argument], named.get(family.text_argument)
        self._refresh_schedule()
        moment, fresh = self.trajectory.enter(sample, named[family.timestep_argument], text, context)
        if fresh:
            self._forget()
        self.text_keys.branch = moment.branch
        self.text_keys.may_serve = self.trajectory.text_unchanged and not fresh
        shapes = (tuple(sample.shape), None if text is None else tuple(text.shape))
        self._now = _Call(moment, self.model_span.position(moment), self._costs.get(shapes))
        if self.span == "model":
            output = self._whole(forward, args, kwargs, sample, shapes)
        else:
            output = self._inside(forward, args, kwargs, shapes)
        self._write(time.perf_counter() - started, shapes)
        if self._too_small:
            self._coarsen()
        return output

    def _refresh_schedule(self) -> None:
        scheduler = self._scheduler_of()
        if scheduler is not self._scheduler:
            self._scheduler, self._schedule = scheduler, read_schedule(scheduler)
            self.trajectory.schedule = self.model_span.schedule = self._schedule

    def _whole(
        self,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sample: Tensor,
        shapes: tuple[Any, ...],
    ) -> Any:
        now = self._current()
        served = self.model_span.decide(now.moment, sample, self._slices())
        decision = served.decision
        self._count_non_finite(decision.why == "non-finite")
        as_dict = bool(kwargs.get("return_dict", True))
        if served.output is not None and as_dict in self._templates:
            self._note("model", decision, None, str(served.candidate))
            return _put_tensor(self._templates[as_dict], served.output)
        if decision.action.served:
            decision = Decision(Action.COMPUTE, decision.tolerance, "output kind", decision.predicted)
        now.width = decision.width if decision.action is Action.SLICE else None
        now.observe = now.width is None
        output = self._execute(forward, args, kwargs, shapes)
        tensor = _get_tensor(output)
        errors = None
        if tensor is not None and tensor.shape[0] == sample.shape[0]:
            self._templates[as_dict] = _without_tensor(output)
            errors = self.model_span.computed(now.moment, sample, tensor)
            if errors is not None and not _finite(errors.values()):
                self._warn("non-finite", "outputs with infinities or NaN: computed instead of served")
        measured, choice = errors_as_lists(errors, None)
        self._note("model", decision, measured, choice)
        return output

    def _inside(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], shapes: tuple[Any, ...]
    ) -> Any:
        output = self._execute(forward, args, kwargs, shapes)
        self._note("model", Decision(Action.COMPUTE, 0.0, "outside spans"), None, None)
        return output

    def _execute(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], shapes: tuple[Any, ...]
    ) -> Any:
        now = self._current()
        if now.costs is not None or not self._counts:
            return forward(*args, **kwargs)
        with OperationCounter() as counter:
            now.counter = counter
            output = forward(*args, **kwargs)
        now.counter = None
        now.costs = self._costs[shapes] = Costs(counter.total, dict(counter.by_label))
        return output

    # --- around blocks and units -------------------------------------------------------------------------------

    def block_call(
        self, block: Block, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """One call of one block."""
        now = self._now
        if now is None or self.span in ("model", "unit"):
            with self._label(block.name):
                return forward(*args, **kwargs)
        call = self.block_calls[block.name]
        streams = call.streams(args, kwargs)
        self.store.note_stream(streams[0])
        if self.span == "block":
            return self._one_block(now, block, call, streams, forward, args, kwargs)
        return self._stack_block(now, block, call, streams, forward, args, kwargs)

    def _one_block(
        self,
        now: _Call,
        block: Block,
        call: BlockCall,
        streams: Streams,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        started = time.perf_counter()
        span = self.residuals[block.name]
        outcome, served = span.decide(now.moment, now.position, streams)
        measured = None
        if served is None:
            with self._label(block.name):
                output = forward(*args, **kwargs)
            measured, fits = span.computed(
                now.moment, now.position, streams, call.of_output(output), len(self.trajectory._branches)
            )
            self._too_small |= not fits
        else:
            output = call.to_output(served)
        self._count_non_finite(outcome.non_finite)
        self._note(block.name, outcome.decision, measured, None, time.perf_counter() - started)
        return output

    def _stack_block(
        self,
        now: _Call,
        block: Block,
        call: BlockCall,
        streams: Streams,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if block.index == 0:
            outcome, served = self.stack.decide(now.moment, now.position, streams)
            self._count_non_finite(outcome.non_finite)
            now.stack_decision, now.served_stack, now.before_stack = outcome.decision, served is not None, streams
            if served is not None:
                self._note("stack", outcome.decision, None, None)
                return call.to_output(served)
        if now.served_stack:
            # The first block gave out the stream with the whole stack's residual: the others let it pass.
            return call.to_output(streams)
        with self._label(block.name):
            output = forward(*args, **kwargs)
        if block.index == len(self.map.blocks) - 1 and now.before_stack is not None and now.stack_decision is not None:
            measured, fits = self.stack.computed(
                now.moment, now.position, now.before_stack, call.of_output(output), len(self.trajectory._branches)
            )
            self._too_small |= not fits
            self._note("stack", now.stack_decision, measured, None)
        return output

    def unit_call(
        self, unit: Unit, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """One call of one unit."""
        now, span = self._now, self.units[unit.name]

        def call() -> Any:
            return forward(*args, **kwargs)

        if now is None:
            return call()
        if now.counter is not None:
            with self._label(unit.name):
                output = call()
            if self.span == "unit" and unit.role in self.settings.roles:
                self._first_unit_output(now, span, output, args, kwargs)
            return output
        if self.span != "unit" or unit.role not in self.settings.roles:
            if self.span == "model" and (now.width is not None or now.observe):
                return span.compute(now.moment.branch, call, now.width)
            return call()
        started = time.perf_counter()
        full = self._full_operations(unit.name)
        entering = _first_tensor(args, kwargs)
        outcome = span.run(now.moment, now.position, call, entering, full, len(self.trajectory._branches))
        self._too_small |= not outcome.fits
        self._count_non_finite(outcome.non_finite)
        self._note(unit.name, outcome.decision, outcome.measured, None, time.perf_counter() - started)
        return outcome.output

    def _first_unit_output(
        self, now: _Call, span: UnitSpan, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        # The call in which operations are counted: nothing is observed for slicing, whose probes would be counted too.
        outcome = span.run(
            now.moment, now.position, lambda: output, _first_tensor(args, kwargs), 0, len(self.trajectory._branches)
        )
        self._note(span.unit.name, outcome.decision, outcome.measured, None)

    def projection_call(
        self, name: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """One call of a projection that sees nothing but the text."""
        if self._now is None:
            return forward(*args, **kwargs)
        with self._label(TEXT_LABEL):
            return self.text_keys.call(name, forward, args, kwargs)

    # --- writing down --------------------------------------------------------------------------------------------

    def _current(self) -> _Call:
        assert self._now is not None
        return self._now

    def _label(self, name: str) -> Any:
        counter = None if self._now is None else self._now.counter
        return nullcontext() if counter is None else counter.label(name)

    def _full_operations(self, unit: str) -> int:
        now = self._current()
        if now.costs is None:
            return 0
        if unit == "stack":
            return sum(now.costs.by_label.get(block.name, 0) for block in self.map.blocks)
        return now.costs.total if unit == "model" else now.costs.by_label.get(unit, 0)

    def _slices(self) -> SliceReport | None:
        now = self._current()
        if not self.settings.slicing.widths or now.costs is None:
            return None
        known = [s.slicing(now.moment.branch) for s in self.units.values() if s.widths and s.caught]
        states = [state for state, _ in known]
        return slice_report(states, max((since for _, since in known), default=0), now.costs.total)

    def _note(
        self, unit: str, decision: Decision, measured: list[float] | None, choice: str | None, seconds: float = 0.0
    ) -> None:
        moment = self._current().moment
        predicted = None if decision.predicted is None else list(decision.predicted)
        self._current().entries.append(
            Entry(
                run=moment.run,
                step=moment.step,
                branch=moment.branch,
                unit=unit,
                action=decision.action.value,
                why=decision.why,
                sigma=moment.sigma,
                tolerance=decision.tolerance,
                predicted=predicted,
                measured=measured,
                width=decision.width,
                choice=choice,
                seconds=seconds,
            )
        )

    def _write(self, seconds: float, shapes: tuple[Any, ...]) -> None:
        now = self._current()
        now.costs = self._costs.get(shapes)
        held = self.store.bytes + self.text_keys.bytes + sum(span.bytes for span in self.units.values())
        inner = 0
        for entry in now.entries:
            entry.stored_bytes = held
            if entry.unit == "model":
                continue
            entry.full_operations = self._full_operations(entry.unit)
            entry.operations = self._executed(entry, [self.units[entry.unit]] if entry.unit in self.units else [])
            inner += entry.full_operations
        for entry in now.entries:
            if entry.unit == "model":
                entry.seconds = seconds
                entry.full_operations = self._full_operations("model") - inner
                entry.operations = self._executed(entry, list(self.units.values()))
                if self.text_keys.may_serve and entry.operations:
                    entry.operations -= min(entry.operations, self._full_operations(TEXT_LABEL))
        self.trace.entries.extend(now.entries)

    def _executed(self, entry: Entry, units: list[UnitSpan]) -> int:
        if Action(entry.action).served:
            return 0
        if entry.width is None:
            return entry.full_operations
        saved = sum(unit.slicing(entry.branch)[0].saved.get(entry.width, 0) for unit in units)
        return entry.full_operations - saved

    def _coarsen(self) -> None:
        """The byte budget is exceeded: the next run of calls uses the next coarser span that the model allows."""
        self._too_small = False
        before = self.span
        self.span = COARSER.get(self.span, "model")
        if self.span == "stack" and self.map.stack_refusal:
            self.span = "model"
        limit = self.store.limit(len(self.trajectory._branches))
        self._warn("budget", f"stored outputs would exceed {limit} bytes: span {before} gives way to {self.span}")
        self._forget()

    def _count_non_finite(self, happened: bool) -> None:
        if happened:
            self._warn("non-finite", "outputs with infinities or NaN: computed instead of served")

    def _warn(self, key: str, message: str) -> None:
        self.trace.counts[key] += 1
        if message not in self.trace.warnings:
            self.trace.warnings.append(message)


def _get_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple) and len(output) == 1 and isinstance(output[0], Tensor):
        return output[0]
    sample = getattr(output, "sample", None)
    return sample if isinstance(sample, Tensor) else None


def _without_tensor(output: Any) -> Any:
    if isinstance(output, Tensor):
        return None
    return () if isinstance(output, tuple) else type(output)


def _put_tensor(template: Any, tensor: Tensor) -> Any:
    if template is None:
        return tensor
    return (tensor,) if template == () else template(sample=tensor)


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    return None


def _finite(values: Any) -> bool:
    return all(torch.isfinite(torch.tensor(list(one))).all() for one in values)
