"""PCAS at the attention call itself: after normalisation and rotary embedding, so that one mechanism fits every model.

The call comes from the seam (`attention_call`): in eager mode around the module, in compiled ones by an operator. A
module whose attention does not pass the seam runs as it is, and the unit is reported as not sliceable.

What a slice misses is measured in the very call that it would serve, on a few queries, before it is taken. So nothing
needs to be known of earlier calls but the bases, and those are fitted anew as soon as they no longer serve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unicp.errors import InputError
from unicp.execution.attention_call import SDPA, AttentionCall, Seam, call_of
from unicp.numerics.operation_counts import attention_operations, linear_operations, slice_fit_operations
from unicp.numerics.principal_axes import FIT_ROWS, FIT_TOKENS, Bases, fit_bases
from unicp.numerics.sliced_attention import ROWS, SlicedCall
from unicp.settings import Basis, Slicing

# (errors of the worst sample, costs as shares of the most that a slice may cost), both by width -> the width to take,
# None = full.
Choose = Callable[[Mapping[int, float], Mapping[int, float]], int | None]
# Operations of full attention -> a context in which what is executed counts as so many.
Counting = Callable[[int], AbstractContextManager[Any]]


def _uncounted(_: int) -> AbstractContextManager[Any]:
    return nullcontext()


@dataclass
class SliceState:
    """What one unit knows of its attention.

    age: calls that the bases have served. refused: errors by width when no width was good enough; {} = the last call
    was sliced. waited: calls since then that were not measured.
    """

    bases: Bases | None = None
    age: int = 0
    refused: Mapping[int, float] = field(default_factory=dict)
    waited: int = 0

    @property
    def bytes(self) -> int:
        """Bytes held by the bases."""
        if self.bases is None:
            return 0
        return sum(tensor.numel() * tensor.element_size() for tensor in vars(self.bases).values())


@dataclass(frozen=True)
class SliceOutcome:
    """What became of one call.

    width: None = full. error: measured, of the width that was taken, worst sample. saved: operations; less than nothing
    where slices were measured and none was taken. refusal: why no slice could be taken, whatever its error; "" = one
    could have been.
    """

    width: int | None = None
    error: float = 0.0
    saved: int = 0
    refusal: str = ""


HOPE = 0.7  # of an error that was too large, what it may have become
PATIENCE = 4  # calls that such an error is not measured in
# How many times longer than attention bases and the probe take for an operation: their matrices are small. It tells
# apart what pays from what does not in docs/results/slice_speed.json, measured on a CPU.
SMALL = 4.0
NOT_CAUGHT = "its attention is not one plain call that the seam can see"
_REFUSALS = (RuntimeError, ValueError, TypeError, AssertionError)
GROUPED = "its keys have other heads than its queries"
TOO_SHORT = "too few tokens: no width would save enough"


def run_sliced(
    call: Callable[[], Any],
    state: SliceState,
    slicing: Slicing,
    widths: Sequence[int],
    choose: Choose,
    projection: Tensor | None = None,
    counting: Counting = _uncounted,
) -> tuple[Any, SliceOutcome]:
    """Runs a module, its attention at the width that `choose` takes; its output, and what became of it.

    projection: weight of the linear layer that follows attention, which the basis "output_pca" fits and measures by.
    counting: around what is done instead of full attention.
    """
    found: list[SliceOutcome] = []

    def handle(function: Callable[..., Tensor], named: dict[str, Any], backend: str = SDPA) -> Tensor:
        attention = call_of(backend, function, named)
        output, outcome = attend(attention, state, slicing, widths, choose, projection, counting)
        found.append(outcome)
        return output

    with Seam(handle) as seam:
        output = call()
    if seam.calls != 1:
        # A second call came after the first was sliced: what was done was measured, what comes is not sliced any more.
        outcome = found[0] if found else SliceOutcome()
        return output, SliceOutcome(outcome.width, outcome.error, outcome.saved, NOT_CAUGHT)
    return output, found[0]


def attend(
    call: AttentionCall,
    state: SliceState,
    slicing: Slicing,
    widths: Sequence[int],
    choose: Choose,
    projection: Tensor | None = None,
    counting: Counting = _uncounted,
) -> tuple[Tensor, SliceOutcome]:
    """One attention call at the width that `choose` takes, and what became of it. The rest: as for `run_sliced`."""
    if call.is_perturbed:
        return call.full(), SliceOutcome()
    query, key, value = call.query, call.key, call.value
    # Offloaded weights may lie elsewhere until their own layer is called.
    if projection is None or slicing.basis != "output_pca" or projection.device != query.device:
        projection = None
    costs = Costs(query, key, slicing.basis, 0 if projection is None else len(projection))
    shares = {width: costs.share(width, slicing.refresh) / (1 - slicing.min_saving) for width in widths}
    shares = {width: share for width, share in shares.items() if share < 1}
    if not shares or len({x.shape[1] for x in (query, key, value)}) > 1:
        return call.full(), SliceOutcome(refusal=GROUPED if shares else TOO_SHORT)
    with counting(costs.full):
        return _attend(call, state, slicing, shares, choose, projection, costs)


def _attend(
    call: AttentionCall,
    state: SliceState,
    slicing: Slicing,
    shares: Mapping[int, float],
    choose: Choose,
    projection: Tensor | None,
    costs: Costs,
) -> tuple[Tensor, SliceOutcome]:
    """The same where slices can pay. shares: of full attention, by the widths that may."""
    query, key, value = call.query, call.key, call.value
    paying = list(shares)
    # Errors change little from call to call: measuring them again is put off while they would have to fall by much.
    hoped = {width: HOPE * error for width, error in state.refused.items() if width in shares}
    if hoped and state.waited < PATIENCE and choose(hoped, shares) is None:
        state.waited += 1
        return call.full(), SliceOutcome()
    spent, is_fresh, errors = 0, False, dict[int, float]()
    while not is_fresh:
        if spent or state.bases is None or not _fits(state.bases, query, key) or state.age >= slicing.refresh:
            try:
                state.bases = fit_bases(
                    query, key, value, slicing.basis, projection=projection, attn_mask=call.mask, scale=call.scale
                )
                state.age, is_fresh = 0, True
            except InputError:
                # Values that are not finite have no principal axes: computed, and told where outputs are checked.
                state.bases = None
                return call.full(), SliceOutcome(saved=-spent)
            spent += costs.fit
        widest = max(paying)
        sliced = SlicedCall(query, key, value, state.bases, widest, call.mask, call.scale, call.kernel)
        spent += costs.probe(paying)
        errors = dict(zip(paying, sliced.errors(paying, projection=projection).amax(dim=1).tolist()))
        width = choose(errors, shares)
        if width is not None:
            try:
                output = sliced.attend(width)
            except _REFUSALS as error:
                if call.backend == SDPA or isinstance(error, torch.OutOfMemoryError):
                    raise
                # Kernels of their own take heads of certain widths only.
                told = str(error).strip().partition("\n")[0] or type(error).__name__
                refusal = f"attention backend {call.backend} takes no heads of {width} channels ({told})"
                return call.full(), SliceOutcome(saved=-spent, refusal=refusal)
            state.age, state.refused, state.waited = state.age + 1, {}, 0
            saved = costs.full - costs.attend(width) - spent
            return output, SliceOutcome(width, errors[width], saved)
    state.refused, state.waited = errors, 0
    return call.full(), SliceOutcome(saved=-spent)


def _fits(bases: Bases, query: Tensor, key: Tensor) -> bool:
    shape = tuple(bases.query.shape[:2])
    return all((x.shape[1], x.shape[3]) == shape for x in (query, key))


class Costs:
    """Operations of one attention call and of what slicing it takes, at 2 per multiply-add.

    outputs: of the projection that errors are measured after, 0 = none.
    """

    def __init__(self, query: Tensor, key: Tensor, basis: Basis = "kq_svd", outputs: int = 0):
        self._batch, self._heads, self._queries, self._channels = query.shape
        self._keys, self._outputs = key.shape[2], outputs
        self.full = self._attention(self._queries, self._channels)
        tokens = self._batch * min(FIT_TOKENS, self._keys)
        self._rows = self._attention(min(FIT_ROWS, self._queries), self._channels) if basis == "output_pca" else 0
        gram = self._heads * linear_operations(outputs, self._channels, self._channels)
        self.fit = slice_fit_operations(self._heads, tokens, self._channels) + gram + self._rows

    def attend(self, width: int) -> int:
        """Attention at this width, and the lift of its result."""
        rows = self._batch * self._heads * self._queries
        return self._attention(self._queries, width) + linear_operations(rows, width, self._channels)

    def probe(self, widths: Sequence[int]) -> int:
        """Projections to the widest, and the probed queries at full width and at each of `widths`."""
        rows = self._batch * self._heads * (self._queries + 2 * self._keys)
        probed = min(ROWS, self._queries)
        lifted = self._batch * self._heads * probed
        seen = self._batch * probed * (1 + len(widths))
        return (
            linear_operations(rows, self._channels, max(widths))
            + linear_operations(seen, self._heads * self._channels, self._outputs)
            + self._attention(probed, self._channels)
            + sum(self._attention(probed, w) + linear_operations(lifted, w, self._channels) for w in widths)
        )

    def share(self, width: int, uses: int) -> float:
        """All that a slice at this width takes where its bases serve `uses` calls, as a share of full attention.

        In time, as far as it can be told from operations: small matrices take `SMALL` times as long. Rows of full
        attention that bases are fitted on are no small matrices.
        """
        small = self.probe([width]) + (self.fit - self._rows) / uses
        return (self.attend(width) + SMALL * small + self._rows / uses) / self.full

    def _attention(self, queries: int, width: int) -> int:
        return attention_operations(self._batch, self._heads, queries, self._keys, width, width)
