"""Blocks served as one: each block on its own, or the whole stack.

What is stored is the residual a span adds to the stream, so that what enters a served span is always fresh. A
block gives the hidden stream alone or the hidden and the text stream; both are stored.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unicp.control.controller import Controller, Question
from unicp.control.windows import Candidate, ErrorWindow, Position
from unicp.execution.store import OutputStore
from unicp.execution.unit_span import per_sample
from unicp.models.finder import Block
from unicp.numerics.error_measures import all_finite, relative_error, strided_sample
from unicp.numerics.forecasting import extrapolate
from unicp.records import Decision, Moment
from unicp.settings import Settings

PROBE = 4096
Streams = tuple[Tensor, ...]


@dataclass
class _State:
    window: ErrorWindow
    probe: Tensor | None = None
    drift: list[float] | None = None
    dtypes: tuple[torch.dtype, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What happened to one span in one call."""

    decision: Decision
    measured: list[float] | None = None
    non_finite: bool = False


class ResidualSpan:
    """Decides, serves and measures the residual of one span (a block, or the stack), per branch."""

    def __init__(self, name: str, settings: Settings, controller: Controller, store: OutputStore):
        self.name, self.settings, self.controller, self.store = name, settings, controller, store
        self._states: dict[str, _State] = {}

    @property
    def is_empty(self) -> bool:
        """True when nothing of a run is held."""
        return not self._states

    def decide(self, moment: Moment, position: Position, streams: Streams, doubt: str = "") -> tuple[Outcome, Any]:
        """The decision for this call; with it the served streams, if any."""
        state = self._states.get(moment.branch)
        if state is None:
            window = self.controller.new_window((Candidate("output", _axis(position, self.settings)),))
            state = self._states[moment.branch] = _State(window)
        question = Question(moment, position, None, doubt)
        state.drift = None
        if state.probe is not None:
            rows = relative_error(strided_sample(streams[0], PROBE), state.probe).tolist()
            state.drift = per_sample(rows, moment.samples)
        question = Question(moment, position, state.drift, doubt)
        decision, candidate = self.controller.decide(state.window, question)
        if candidate is None:
            return Outcome(decision), None
        forecasts = self._forecast(state, moment, position, streams)
        # In the dtype of what the block gives, which under autocast is not that of what it takes.
        served = tuple((a + b).to(kind) for a, b, kind in zip(streams, forecasts, state.dtypes))
        if not all(bool(all_finite(tensor)) for tensor in served):
            outcome, _ = self.decide(moment, position, streams, "non-finite")
            return Outcome(outcome.decision, None, True), None
        state.window.serve(max(decision.predicted or (0.0,)))
        return Outcome(decision), served

    def computed(
        self, moment: Moment, position: Position, before: Streams, after: Streams, branches: int
    ) -> tuple[list[float] | None, bool]:
        """Measures what would have been served, and stores the residual. False = the byte budget is exceeded."""
        state = self._states[moment.branch]
        residual = tuple(b - a for a, b in zip(before, after))
        errors: list[float] | None = None
        candidate = state.window.candidates[0]
        if len(state.window.points) >= self.settings.order + 1:
            # Errors are measured on the video stream, the one that becomes the output.
            served = self._forecast(state, moment, position, residual, probe=True)[0]
            scale = strided_sample(after[0], PROBE) if self.settings.error_scale == "stream" else None
            rows = relative_error(served, strided_sample(residual[0], PROBE), scale).tolist()
            errors = per_sample(rows, moment.samples)
        state.window.observe(position, None if errors is None else {candidate: errors}, state.drift)
        state.drift, state.probe = None, strided_sample(before[0], PROBE)
        state.dtypes = tuple(stream.dtype for stream in after)
        fits = self.store.put((self.name, moment.branch), residual, self.settings.order + 1, branches)
        if not fits:
            # What is not stored cannot be served: this branch starts anew.
            self.store.drop((self.name, moment.branch))
            del self._states[moment.branch]
        return errors, fits

    def _forecast(
        self, state: _State, moment: Moment, position: Position, like: Streams, probe: bool = False
    ) -> Streams:
        axis = state.window.candidates[0].abscissa
        places = [point[axis] for point in state.window.points]
        stored = self.store.get((self.name, moment.branch))
        forecasts = []
        for stream in range(1 if probe else len(like)):
            values = [point[stream] for point in stored]
            if probe:
                values = [strided_sample(value, PROBE) for value in values]
            forecasts.append(extrapolate(list(zip(places, values)), position[axis]))
        return tuple(forecasts)


class BlockCall:
    """Reads the streams out of a block's arguments and puts them back into its kind of output."""

    def __init__(self, block: Block):
        self.row = block.row
        self._names = [name for name in inspect.signature(type(block.module).forward).parameters][1:]

    def streams(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Streams:
        """The hidden stream, and the text stream where the block returns one."""
        named = {**dict(zip(self._names, args)), **kwargs}
        found = [named[self.row.hidden_argument]]
        if self.row.text_argument is not None:
            found.append(named[self.row.text_argument])
        return tuple(found)

    def of_output(self, output: Any, entering: Streams) -> Streams:
        """The same streams in a block's output. A last block that drops the text leaves it as it entered."""
        streams = tuple(output) if isinstance(output, (tuple, list)) else (output,)
        streams = streams[::-1] if self.row.returns == "text_and_hidden" else streams
        return tuple(before if after is None else after for after, before in zip(streams, entering))

    def to_output(self, streams: Streams) -> Any:
        """What the block would have returned."""
        if self.row.returns == "text_and_hidden":
            return streams[::-1]
        return streams if self.row.returns == "hidden_and_text" else streams[0]


def _axis(position: Position, settings: Settings) -> Any:
    return next((a for a in settings.abscissas if a in position), "step")
