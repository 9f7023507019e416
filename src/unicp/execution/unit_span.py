"""One unit (attention or feed-forward) served on its own, the paper's granularity, and sliced where it cannot be."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from unicp.control.controller import Controller, Question, SliceReport
from unicp.control.windows import Candidate, ErrorWindow, Position
from unicp.errors import InputError
from unicp.execution.attention_seam import SliceState, run_full, run_sliced
from unicp.execution.store import OutputStore
from unicp.models.finder import Unit
from unicp.numerics.error_measures import all_finite, relative_error, strided_sample
from unicp.numerics.forecasting import extrapolate
from unicp.records import Action, Decision, Moment
from unicp.settings import Settings

PROBE = 2048


@dataclass
class _State:
    window: ErrorWindow
    slicing: SliceState = field(default_factory=SliceState)
    since_full: int = 0
    probe: Tensor | None = None
    base_error: float = 0.0


@dataclass(frozen=True)
class UnitOutcome:
    """What happened to one unit in one call."""

    decision: Decision
    output: Any
    measured: list[float] | None = None
    fits: bool = True
    non_finite: bool = False


class UnitSpan:
    """Serves, slices or computes one unit, per branch."""

    def __init__(self, unit: Unit, settings: Settings, controller: Controller, store: OutputStore):
        self.unit, self.settings, self.controller, self.store = unit, settings, controller, store
        width = unit.head_width
        self.widths = settings.slicing.widths_for(width) if unit.sliceable and width is not None else ()
        self.caught = True
        self._states: dict[str, _State] = {}

    @property
    def is_empty(self) -> bool:
        """True when nothing of a run is held."""
        return not self._states

    def reset(self) -> None:
        """Forgets the run."""
        self._states.clear()

    @property
    def bytes(self) -> int:
        """Bytes held for slicing; stored outputs are counted by the store."""
        return sum(state.slicing.bytes for state in self._states.values())

    def slicing(self, branch: str) -> tuple[SliceState, int]:
        """What is known of this unit's slices, and how many computations ago the last full one was."""
        state = self._state(branch, None)
        return state.slicing, state.since_full

    def run(
        self,
        moment: Moment,
        position: Position,
        call: Callable[[], Any],
        entering: Tensor | None,
        full_operations: int,
        branches: int,
        uncounted: Callable[[], Any] = nullcontext,
    ) -> UnitOutcome:
        """One call with its own decision (span "unit"). entering: the unit's input, from which drift is read.

        uncounted: see `run_full`.
        """
        state = self._state(moment.branch, position)
        probe = None if entering is None else strided_sample(entering, PROBE)
        drift = None
        if probe is not None and state.probe is not None and probe.shape == state.probe.shape:
            drift = per_sample(relative_error(probe, state.probe).tolist(), moment.samples)
        report = slice_report([state.slicing], state.since_full, full_operations)
        decision, candidate = self.controller.decide(state.window, Question(moment, position, drift, report))
        non_finite = False
        if candidate is not None:
            served = self._forecast(state, moment, position, self._stored(moment))
            if all(bool(all_finite(tensor)) for tensor in served):
                state.window.serve(max(decision.predicted or (0.0,)) + state.base_error)
                return UnitOutcome(decision, served[0] if len(served) == 1 else served)
            non_finite = True
            decision = Decision(Action.COMPUTE, decision.tolerance, "non-finite", decision.predicted)
        width = decision.width if decision.action is Action.SLICE else None
        output = self.compute(moment.branch, call, width, uncounted)
        measured, fits = self._computed(state, moment, position, output, probe, drift, branches)
        return UnitOutcome(decision, output, measured, fits, non_finite)

    def compute(
        self, branch: str, call: Callable[[], Any], width: int | None, uncounted: Callable[[], Any] = nullcontext
    ) -> Any:
        """Runs the unit sliced to `width`, or at full width (None), which renews what slicing needs to know."""
        state = self._state(branch, None)
        if width is not None:
            state.since_full += 1
            state.base_error = state.slicing.errors.get(width, 0.0)
            return run_sliced(call, state.slicing, width)
        state.since_full, state.base_error = 0, 0.0
        if not self.widths or not self.caught:
            return call()
        try:
            output, caught = run_full(call, state.slicing, self.settings.slicing, self.widths, uncounted)
        except InputError:
            # Values that are not finite have no principal axes: compute, and say so where outputs are checked.
            state.slicing = SliceState()
            return call()
        self.caught = caught
        return output

    def _state(self, branch: str, position: Position | None) -> _State:
        state = self._states.get(branch)
        if state is None:
            axis = "step"
            if position is not None:
                axis = next((a for a in self.settings.abscissas if a in position), "step")
            state = _State(self.controller.new_window((Candidate("output", axis),)))  # type: ignore[arg-type]
            self._states[branch] = state
        return state

    def _stored(self, moment: Moment) -> list[tuple[Tensor, ...]]:
        return self.store.get((self.unit.name, moment.branch))

    def _computed(
        self,
        state: _State,
        moment: Moment,
        position: Position,
        output: Any,
        probe: Tensor | None,
        drift: list[float] | None,
        branches: int,
    ) -> tuple[list[float] | None, bool]:
        tensors = tuple(output) if isinstance(output, (tuple, list)) else (output,)
        errors: list[float] | None = None
        if len(state.window.points) >= self.settings.order + 1:
            stored = [tuple(strided_sample(t, PROBE) for t in point[:1]) for point in self._stored(moment)]
            served = self._forecast(state, moment, position, stored)[0]
            rows = relative_error(served, strided_sample(tensors[0], PROBE)).tolist()
            errors = per_sample(rows, moment.samples)
        candidate = state.window.candidates[0]
        state.window.observe(position, None if errors is None else {candidate: errors}, drift)
        state.probe = probe
        fits = self.store.put((self.unit.name, moment.branch), tensors, self.settings.order + 1, branches)
        return errors, fits

    def _forecast(
        self, state: _State, moment: Moment, position: Position, stored: list[tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        axis = state.window.candidates[0].abscissa
        places = [point[axis] for point in state.window.points]
        return tuple(
            extrapolate([(x, point[i]) for x, point in zip(places, stored)], position[axis])
            for i in range(len(stored[-1]))
        )


def slice_report(states: list[SliceState], since_full: int, full_operations: int) -> SliceReport | None:
    """What the controller may know of slicing these units together; None if they cannot be sliced.

    The error of a width is the root mean square over the units of their probed errors; the saving is the share of
    `full_operations`, those of the whole call.
    """
    widths = [set(state.errors) for state in states]
    common = set.intersection(*widths) if widths else set()
    if not common or full_operations <= 0:
        return None
    errors = {w: math.sqrt(sum(s.errors[w] ** 2 for s in states) / len(states)) for w in common}
    savings = {w: sum(s.saved[w] for s in states) / full_operations for w in common}
    return SliceReport(errors, savings, since_full)


def per_sample(errors: list[float], samples: int) -> list[float]:
    """Worst error of each sample, where a unit sees a sample as several rows (frames or positions in Latte)."""
    if len(errors) == samples or samples == 0 or len(errors) % samples:
        return errors
    rows = len(errors) // samples
    # NaN compares with nothing, so max() alone could hide one.
    return [
        math.nan if any(math.isnan(error) for error in group) else max(group)
        for group in (errors[i * rows : (i + 1) * rows] for i in range(samples))
    ]
