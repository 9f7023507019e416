"""Writes down what happened in each call: operations, seconds, bytes, decisions, measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from unicp.context import Action, Decision, StepContext
from unicp.models.finder import ModelMap
from unicp.numerics.operation_counts import OperationCounter
from unicp.records import Entry
from unicp.runtime.trace_log import TraceLog

MODEL, STACK = "model", "stack"


@dataclass(frozen=True)
class Costs:
    """Operations of one full call with certain shapes, in total and by block, unit and projection of the text."""

    total: int
    by_label: Mapping[str, int]


def has_compiled_parts(transformer: nn.Module) -> bool:
    """Whether the model or a part of it runs compiled; operations inside cannot be counted."""
    return any(getattr(part, "_compiled_call_impl", None) is not None for part in transformer.modules())


class CostBook:
    """What full calls of one transformer cost, by their shapes; counted once for each, in whatever run."""

    def __init__(self, model_map: ModelMap):
        self.transformer = model_map.transformer
        self.blocks = [block.name for block in model_map.blocks]
        self.counts = True
        self.known: dict[tuple[Any, ...], Costs] = {}
        self.before_signal: dict[tuple[Any, ...], int] = {}

    def stop(self) -> None:
        """Operations cannot be counted any more."""
        self.counts = False


class Recorder:
    """Collects the entries of the calls of one run, and knows what a full call of their shapes costs."""

    def __init__(self, log: TraceLog, book: CostBook):
        self.log, self._book = log, book
        self._entries: list[Entry] = []
        self._saved: list[int] = []
        self._text: list[str] = []
        self._shapes: tuple[Any, ...] = ()
        self._step: StepContext | None = None
        self._counter: OperationCounter | None = None

    def begin(self, step: StepContext, shapes: tuple[Any, ...]) -> None:
        """Opens the record of one call; `shapes` is what its costs depend on."""
        self._step, self._shapes, self._text, self._counter = step, shapes, [], None
        self._entries, self._saved = [], []
        self.log.began(step.run, step.steps)

    def execute(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs the transformer; the first time with these shapes under the operation counter."""
        book = self._book
        if not book.counts or self._shapes in book.known:
            return forward(*args, **kwargs)
        if has_compiled_parts(book.transformer):
            book.stop()
            self.log.warn("compiled", "compiled blocks: operations are not counted, only seconds")
            return forward(*args, **kwargs)
        try:
            with OperationCounter() as counter:
                self._counter = counter
                output = forward(*args, **kwargs)
        finally:
            self._counter = None
        book.known[self._shapes] = Costs(counter.total, dict(counter.by_label))
        return output

    @contextmanager
    def as_full_attention(self, operations: int) -> Iterator[None]:
        """A context in which attention is computed in some other way, and counted as if it were computed in full."""
        counter = self._counter
        if counter is None:
            yield
            return
        with counter.counted_as(operations):
            yield

    def label(self, name: str) -> Any:
        """A context in which operations are counted to `name` too."""
        return nullcontext() if self._counter is None else self._counter.label(name)

    def full_operations(self, point: str) -> int:
        """Operations of a full call of a unit, a block, the stack or the model; 0 while unknown."""
        costs = self._book.known.get(self._shapes)
        if costs is None:
            return 0
        if point == STACK:
            return sum(costs.by_label.get(block, 0) for block in self._book.blocks)
        return costs.total if point == MODEL else costs.by_label.get(point, 0)

    def note(
        self,
        point: str,
        action: Action,
        decision: Decision,
        measured: list[float] | None = None,
        predictor: str | None = None,
        width: int | None = None,
        seconds: float = 0.0,
        saved: int = 0,
    ) -> None:
        """Adds an entry to the call under way.

        Args:
            point: Name of the cache point.
            action: What was done there.
            decision: What was decided.
            measured: Errors that skipping would have had.
            predictor: How the outputs were predicted.
            width: Of a slice, in channels of a head.
            seconds: Wall time.
            saved: Operations that a slice saved; below 0 for what was done though the step was skipped.
        """
        assert self._step is not None
        step = self._step
        entry = Entry(
            run=step.run,
            step=step.step,
            branch=step.branch,
            point=point,
            action=action.value,
            reason=decision.reason,
            sigma=step.sigma,
            tolerance=decision.tolerance,
            predicted=None if decision.predicted is None else list(decision.predicted),
            measured=measured,
            width=width,
            predictor=predictor,
            seconds=seconds,
        )
        self._entries.append(entry)
        self._saved.append(saved if self._book.counts else 0)

    def note_text(self, name: str) -> None:
        """Notes that this projection of the text was taken from the store in the call under way."""
        self._text.append(name)

    def finish(self, seconds: float, held: int) -> None:
        """Closes the record: fills in operations and bytes, and appends the entries to the trace.

        The model's own entry gets what no other entry of the call covers, so that sums over a run are its totals.
        """
        inner, entries = 0, list[Entry]()
        for entry, saved in zip(self._entries, self._saved):
            if entry.point != MODEL:
                full = self.full_operations(entry.point)
                entry, inner = self._priced(entry, full, saved, held), inner + full
            entries.append(entry)
        for place, (entry, saved) in enumerate(zip(entries, self._saved)):
            if entry.point == MODEL:
                own = replace(entry, seconds=seconds)
                entries[place] = self._priced(own, self.full_operations(MODEL) - inner, saved, held)
        self._entries = entries
        self.log.add(self._entries)
        self._entries = []

    def at_signal(self) -> None:
        """A policy decides in the middle of the call: what was executed so far is executed in skipped calls too."""
        if self._counter is not None:
            self._book.before_signal[self._shapes] = self._counter.total

    @property
    def operations_before_signal(self) -> int:
        """Operations up to where a policy decides in the middle of a call; 0 while unknown."""
        return self._book.before_signal.get(self._shapes, 0)

    def count(self, key: str) -> None:
        """Counts an event."""
        self.log.count(key)

    def warn(self, key: str, message: str) -> None:
        """Counts an event, and keeps its message once."""
        self.log.warn(key, message)

    def _text_saved(self, point: str) -> int:
        """Operations of stored projections of the text within `point`, each of which is taken off once."""
        inside = [name for name in self._text if point in (MODEL, STACK) or name.startswith(f"{point}.")]
        self._text = [name for name in self._text if name not in inside]
        return sum(self.full_operations(name) for name in inside)

    def _priced(self, entry: Entry, full: int, saved: int, held: int) -> Entry:
        """An entry with its operations. full: of a full call; saved: by a slice; held: bytes held after the call."""
        executed = 0 if Action(entry.action).skipped else full
        operations = executed - saved - self._text_saved(entry.point)
        return replace(entry, stored_bytes=held, full_operations=full, operations=operations)
