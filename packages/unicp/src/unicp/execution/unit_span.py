"""One unit (attention or feed-forward) served on its own, the paper's granularity, and sliced where it cannot be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from unicp.control.controller import Controller, Question
from unicp.control.windows import Candidate, ErrorWindow, Position
from unicp.execution.attention_call import AttentionCall
from unicp.execution.attention_seam import TOO_SHORT, Counting, SliceOutcome, SliceState, attend, run_sliced
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
    probe: Tensor | None = None
    base_error: float = 0.0


@dataclass(frozen=True)
class UnitOutcome:
    """What happened to one unit in one call. saved: operations that a slice saved, or that measuring slices took."""

    decision: Decision
    output: Any
    measured: list[float] | None = None
    fits: bool = True
    non_finite: bool = False
    saved: int = 0


class UnitSpan:
    """Serves, slices or computes one unit, per branch.

    refusal: why its last call could not be sliced, whatever the error; "" = it could.
    """

    def __init__(
        self,
        unit: Unit,
        settings: Settings,
        controller: Controller,
        store: OutputStore,
        counting: Counting | None = None,
    ):
        self._counting = () if counting is None else (counting,)
        self.unit, self.settings, self.controller, self.store = unit, settings, controller, store
        width = unit.head_width
        self.widths = settings.slicing.widths_for(width) if unit.sliceable and width is not None else ()
        self.refusal = ""
        # By branch: bases of one branch fit the other hardly better than those of another prompt.
        self._slices: dict[str, SliceState] = {}
        self._states: dict[str, _State] = {}

    @property
    def is_empty(self) -> bool:
        """True when nothing of a run is held."""
        return not self._states and all(state.bases is None for state in self._slices.values())

    @property
    def bytes(self) -> int:
        """Bytes held for slicing; stored outputs are counted by the store."""
        return sum(state.bytes for state in self._slices.values())

    def run(
        self,
        moment: Moment,
        position: Position,
        call: Callable[[], Any],
        entering: Tensor | None,
        branches: int,
        doubt: str = "",
    ) -> UnitOutcome:
        """One call with its own decision (span "unit"). entering: the unit's input, from which drift is read.

        doubt: why it must not be served, "" = it may.
        """
        state = self._state(moment.branch, position)
        probe = None if entering is None else strided_sample(entering, PROBE)
        drift = None
        if probe is not None and state.probe is not None and probe.shape == state.probe.shape:
            drift = per_sample(relative_error(probe, state.probe).tolist(), moment.samples)
        decision, candidate = self.controller.decide(state.window, Question(moment, position, drift, doubt))
        non_finite = False
        if candidate is not None:
            served = self._forecast(state, moment, position, points := self._stored(moment))
            if all(bool(all_finite(tensor)) for tensor in served):
                state.window.serve(max(decision.predicted or (0.0,)) + state.base_error)
                # A forecast may be the stored tensor itself, into which the block must not write.
                stored = {id(tensor) for point in points for tensor in point}
                given = tuple(tensor.clone() if id(tensor) in stored else tensor for tensor in served)
                return UnitOutcome(decision, given[0] if len(given) == 1 else given)
            non_finite = True
            decision = Decision(Action.COMPUTE, decision.tolerance, "non-finite", decision.predicted)
        output, sliced = self.compute(moment, call)
        if sliced.width is not None:
            decision = replace(decision, action=Action.SLICE, width=sliced.width)
        state.base_error = sliced.error
        measured, fits = self._computed(state, moment, position, output, probe, drift, branches)
        return UnitOutcome(decision, output, measured, fits, non_finite, sliced.saved)

    def slice(self, moment: Moment, call: Callable[[], Any] | AttentionCall) -> UnitOutcome:
        """One call that is not served, or the attention in it, at the width that is enough."""
        output, sliced = self.compute(moment, call)
        tolerance = self.controller.slice_tolerance(moment)
        if sliced.width is None:
            return UnitOutcome(Decision(Action.COMPUTE, tolerance, "tolerance"), output, saved=sliced.saved)
        decision = Decision(Action.SLICE, tolerance, "within", None, sliced.width)
        return UnitOutcome(decision, output, [sliced.error], saved=sliced.saved)

    def compute(self, moment: Moment, call: Callable[[], Any] | AttentionCall) -> tuple[Any, SliceOutcome]:
        """Runs the unit, or its attention alone, at the width that the controller chooses from what it measures."""
        if not self.widths or self.refusal not in ("", TOO_SHORT) or self.settings.tolerance == 0:
            return (call.full() if isinstance(call, AttentionCall) else call()), SliceOutcome()

        def choose(errors: Mapping[int, float], costs: Mapping[int, float]) -> int | None:
            return self.controller.choose_width(moment, errors, costs)

        run = attend if isinstance(call, AttentionCall) else run_sliced
        state = self._slices.setdefault(moment.branch, SliceState())
        slicing, projection = self.settings.slicing, self.unit.output_projection
        output, outcome = run(call, state, slicing, self.widths, choose, projection, *self._counting)  # type: ignore[arg-type]
        self.refusal = outcome.refusal
        return output, outcome

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
