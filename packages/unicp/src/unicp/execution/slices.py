"""Attention units that are computed at the width that is enough: sliced, told, and written down."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from unicp.execution.attention_call import AttentionCall
from unicp.execution.attention_seam import NOT_CAUGHT
from unicp.execution.recorder import Recorder
from unicp.execution.unit_span import UnitSpan
from unicp.models.finder import Unit
from unicp.records import Action, Moment


class Slices:
    """Slices units, and the attention inside compiled ones, in one run.

    moment: of the call under way, None outside of one and where attention inside compiled units is not sliced.
    unseen: names of compiled units whose attention nobody has seen yet, in whatever run.
    """

    def __init__(self, units: Mapping[str, UnitSpan], recorder: Recorder, unseen: set[str]):
        self._units, self._recorder, self._unseen = units, recorder, unseen
        self.moment: Moment | None = None

    def slice(self, moment: Moment, span: UnitSpan, call: Callable[[], Any] | AttentionCall) -> Any:
        """A unit that is computed, or the attention in it."""
        started = time.perf_counter()
        outcome = span.slice(moment, call)
        self.tell(span)
        if outcome.decision.action is Action.SLICE or outcome.saved:
            seconds = time.perf_counter() - started
            self._recorder.note(span.unit.name, outcome.decision, outcome.measured, None, seconds, outcome.saved)
        return outcome.output

    def attend(self, unit: Unit, call: AttentionCall, first: bool) -> Tensor:
        """The attention of a compiled unit. first: False for a further call of the same module."""
        span = self._units[unit.name]
        self._unseen.discard(unit.name)
        if not first:
            self._refuse(span, NOT_CAUGHT)
        if self.moment is None:
            return call.full()
        return self.slice(self.moment, span, call)

    def tell_unseen(self) -> None:
        """After a computed call: says, once, of which compiled units no attention was seen."""
        unseen = sorted(self._unseen)
        self._unseen.clear()
        for name in unseen:
            self._refuse(self._units[name], f"{NOT_CAUGHT}, inside compiled code (flex attention is none there)")

    def tell(self, span: UnitSpan) -> None:
        """Says why a unit could not be sliced, if it could not."""
        if span.refusal:
            message = f"{span.unit.name} cannot be sliced: {span.refusal}; it runs at full width"
            self._recorder.warn("not_sliced", message)

    def _refuse(self, span: UnitSpan, refusal: str) -> None:
        span.refusal = refusal
        self.tell(span)
