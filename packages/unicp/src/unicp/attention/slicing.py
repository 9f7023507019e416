"""Slices the attention of one unit: at the least width whose error, measured in the very call, is small enough.

What a slice misses is measured on a few queries before it is taken. So nothing needs to be known of earlier calls but
what the reducer fitted, and that is fitted again as soon as it no longer fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unicp.attention.interceptor import AttentionInterceptor, call_of
from unicp.context import StepContext
from unicp.errors import InputError, UniCPError, one_line
from unicp.models.finder import Unit
from unicp.policies.impact import step_tolerance
from unicp.policies.weight_shift import SLICED, Option, cheapest_within_tolerance
from unicp.reducers.attention_call import SDPA, AttentionCall
from unicp.reducers.base import AttentionReducer, full_operations, reducers
from unicp.settings import Settings

# Operations of full attention -> a context in which what is executed counts as so many.
Counting = Callable[[int], AbstractContextManager[Any]]
HOPE = 0.7  # of an error that was too large, what it may have become
PATIENCE = 4  # calls that such an error is not measured in
NOT_CAUGHT = "its attention is not one plain call that UniCP can see"
GROUPED = "its keys have other heads than its queries"
TOO_SHORT = "too few tokens: no width would save enough"
_REFUSALS = (RuntimeError, ValueError, TypeError, AssertionError)


@dataclass
class _Branch:
    """What is known of one branch: bases of one fit another hardly better than those of another prompt.

    age: calls that what was fitted was used in. refused: errors by width when no width was good enough; {} = the last
    call was sliced. waited: calls since then that were not measured.
    """

    reducer: AttentionReducer
    fitted: Any = None
    age: int = 0
    refused: Mapping[int, float] = field(default_factory=dict)
    waited: int = 0


@dataclass(frozen=True)
class Sliced:
    """What became of one attention call.

    Attributes:
        width: Channels of a head, `None` = full.
        error: Measured relative error of that width, worst sample.
        saved: Operations; below 0 where slices were measured and none was taken.
        tolerance: Largest error that a slice could have had.
        reason: Why the reducer would not reduce this call, "" = it would.
    """

    width: int | None = None
    error: float = 0.0
    saved: int = 0
    tolerance: float = 0.0
    reason: str = ""


class UnitSlicer:
    """Computes the attention of one unit in one run at the width that is enough.

    Args:
        unit: The attention.
        settings: Of the session.
        counting: Around what is done instead of full attention.

    Attributes:
        refusal: Why the last call could not be sliced, whatever the error; "" = it could.
    """

    def __init__(self, unit: Unit, settings: Settings, counting: Counting = lambda operations: nullcontext()):
        self.unit, self._settings, self._slicing, self._counting = unit, settings, settings.slicing, counting
        width = unit.head_width
        self.widths = self._slicing.widths_for(width) if unit.sliceable and width is not None else ()
        self.refusal = ""
        self._branches: dict[str, _Branch] = {}

    @property
    def bytes(self) -> int:
        """Bytes held for slicing."""
        return sum(branch.reducer.bytes(branch.fitted) for branch in self._branches.values())

    def refuse(self, reason: str) -> None:
        """The attention of this unit cannot be sliced, whatever the error."""
        self.refusal = reason

    def run(self, step: StepContext, call: Callable[[], Any]) -> tuple[Any, Sliced]:
        """Runs the unit with its attention at the width that is enough: its output, and what became of it."""
        if not self._may_slice:
            return call(), Sliced()
        found: list[Sliced] = []

        def handle(function: Callable[..., Tensor], named: dict[str, Any], backend: str = SDPA) -> Tensor:
            output, sliced = self.attend(step, call_of(backend, function, named))
            found.append(sliced)
            return output

        with AttentionInterceptor(handle) as interceptor:
            output = call()
        if interceptor.calls != 1:
            # A second call came after the first was sliced: what was done was measured, what comes is not sliced.
            self.refusal = NOT_CAUGHT
        return output, found[0] if found else Sliced()

    def attend(self, step: StepContext, call: AttentionCall) -> tuple[Tensor, Sliced]:
        """One attention call at the width that is enough, and what became of it."""
        if not self._may_slice or call.is_perturbed:
            return call.full(), Sliced()
        projection, slicing = self.unit.output_projection, self._slicing
        # Offloaded weights may lie elsewhere until their own layer is called.
        if projection is None or slicing.basis != "output_pca" or projection.device != call.query.device:
            projection = None
        if step.branch not in self._branches:
            self._branches[step.branch] = _Branch(reducers[slicing.reducer](slicing))
        branch = self._branches[step.branch]
        # Shares of the most that a slice may cost.
        most = 1 - slicing.min_saving
        shares = {width: branch.reducer.share(call, width, projection) / most for width in self.widths}
        shares = {width: share for width, share in shares.items() if share < 1}
        is_grouped = len({x.shape[1] for x in (call.query, call.key, call.value)}) > 1
        self.refusal = TOO_SHORT if not shares else GROUPED if is_grouped else ""
        if self.refusal:
            return call.full(), Sliced()
        with self._counting(full_operations(call)):
            return self._attend(step, branch, call, shares, projection)

    @property
    def _may_slice(self) -> bool:
        return bool(self.widths) and self.refusal in ("", TOO_SHORT) and self._settings.tolerance > 0

    def _attend(
        self,
        step: StepContext,
        branch: _Branch,
        call: AttentionCall,
        shares: Mapping[int, float],
        projection: Tensor | None,
    ) -> tuple[Tensor, Sliced]:
        """The same where slices can pay. shares: by the widths that may."""
        reducer, paying = branch.reducer, list(shares)
        tolerance = step_tolerance(self._slicing.tolerance, self._settings.weighting, step)
        # Errors change little from call to call: measuring them again is put off while they would have to fall by much.
        hoped = {width: HOPE * error for width, error in branch.refused.items() if width in shares}
        if hoped and branch.waited < PATIENCE and _width(hoped, shares, tolerance) is None:
            branch.waited += 1
            return call.full(), Sliced(tolerance=tolerance)
        spent, errors = 0, dict[int, float]()
        is_old = branch.fitted is None or not reducer.fits(branch.fitted, call)
        # What was fitted for an earlier call is tried first, and fitted anew if no width is good enough with it.
        for is_fresh in (True,) if is_old or branch.age >= self._slicing.refresh else (False, True):
            if is_fresh:
                try:
                    branch.fitted = reducer.fit(call, projection)
                except UniCPError as error:
                    # It cannot be reduced: values that are not finite, for one, have no axes.
                    branch.fitted = None
                    return call.full(), Sliced(saved=-spent, tolerance=tolerance, reason=one_line(str(error)))
                branch.age = 0
                spent += reducer.fit_operations(call, projection)
            reduced = reducer.reduce(call, branch.fitted, paying, projection)
            spent += reducer.probe_operations(call, paying, projection)
            errors = dict(zip(paying, reduced.errors(paying).amax(dim=1).tolist()))
            width = _width(errors, shares, tolerance)
            if width is None:
                continue
            try:
                output = reduced.attend(width)
            except _REFUSALS as error:
                if call.backend == SDPA or isinstance(error, torch.OutOfMemoryError):
                    raise
                # Kernels of their own take heads of certain widths only.
                told = str(error).strip().partition("\n")[0] or type(error).__name__
                self.refusal = (
                    f"attention backend {call.backend} or its reducer takes no heads of {width} channels ({told})"
                )
                return call.full(), Sliced(saved=-spent, tolerance=tolerance)
            if output.shape != call.query.shape[:3] + call.value.shape[3:] or output.dtype != call.query.dtype:
                found = f"{output.dtype} of shape {tuple(output.shape)} for a query of {tuple(call.query.shape)}"
                raise InputError(f"attention of the reducer {self._slicing.reducer!r}", found, "fix its attend")
            branch.age, branch.refused, branch.waited = branch.age + 1, {}, 0
            saved = full_operations(call) - reducer.operations(call, width) - spent
            return output, Sliced(width, errors[width], saved, tolerance)
        branch.refused, branch.waited = errors, 0
        return call.full(), Sliced(saved=-spent, tolerance=tolerance)


def _width(errors: Mapping[int, float], shares: Mapping[int, float], tolerance: float) -> int | None:
    """The width that DWS takes, `None` = full."""
    options = [Option(SLICED, shares[width], error, tolerance, width) for width, error in errors.items()]
    return cheapest_within_tolerance(options).width if tolerance > 0 else None
