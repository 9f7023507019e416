"""PCAS at the attention call itself: after normalisation and rotary embedding, so that one mechanism fits every model.

The seam is a torch function mode around the attention module; it catches `scaled_dot_product_attention`, which every
native backend of diffusers ends in. A backend of its own kernels, or a compiled block, does not pass here: then
the module runs as it is, and the unit is reported as not sliceable.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from unicp.numerics.operation_counts import OperationCounter, attention_operations, sliced_attention_operations
from unicp.numerics.principal_axes import Bases, fit_bases
from unicp.numerics.sliced_attention import probe_rows, sliced_attention
from unicp.settings import Slicing

_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


@dataclass
class SliceState:
    """What one unit in one branch knows about its own attention since the last full computation.

    errors: probed relative error per width, worst sample. corrections: full - sliced output per width.
    saved: operations that each width saves, projections and lifting included.
    """

    bases: Bases | None = None
    errors: dict[int, float] = field(default_factory=dict)
    corrections: dict[int, Tensor] = field(default_factory=dict)
    saved: dict[int, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes held by bases and corrections."""
        held = list(self.corrections.values())
        if self.bases is not None:
            held += [self.bases.query, self.bases.key, self.bases.value, self.bases.key_mean, self.bases.value_mean]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)


def _is_perturbed() -> bool:
    """Whether somebody else stands in front of the attention call too, such as diffusers' perturbed-attention guidance.

    Attention then gives something else than attention, which a sliced one would not.
    """
    modes = _get_current_function_mode_stack()
    return any(not isinstance(mode, (DeviceContext, OperationCounter)) for mode in modes)


class Seam(TorchFunctionMode):
    """Hands the one attention call of a module to `handle`; counts calls."""

    def __init__(self, handle: Callable[..., Tensor]):
        super().__init__()
        self._handle = handle
        self.calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.calls += 1
        named = {**dict(zip(_ARGUMENTS, args)), **kwargs}
        plain = not named.get("is_causal") and not named.get("dropout_p") and not named.get("enable_gqa")
        if self.calls > 1 or not plain:
            self.calls += 1
            return func(*args, **kwargs)
        return self._handle(func, named)


def run_full(
    call: Callable[[], Any],
    state: SliceState,
    slicing: Slicing,
    widths: tuple[int, ...],
    uncounted: Callable[[], Any] = nullcontext,
) -> tuple[Any, bool]:
    """Runs the module at full width, and renews bases, probed errors and corrections in `state`.

    uncounted: gives a context for that which is no part of a full call.
    Returns its output and whether its attention was caught exactly once, i.e. whether it can be sliced.
    """

    def learn(named: dict[str, Any], full: Tensor) -> None:
        query, key, value = named["query"], named["key"], named["value"]
        mask, scale = named.get("attn_mask"), named.get("scale")
        bases = fit_bases(query, key, value, slicing.basis)
        table = probe_rows(query, key, value, full, bases, widths, attn_mask=mask, scale=scale)
        state.bases = bases
        state.errors = dict(zip(widths, table.amax(dim=1).tolist()))
        state.saved = {width: _saved(query, key, width) for width in widths}
        state.corrections.clear()
        if slicing.correction:
            for width in widths:
                sliced = sliced_attention(query, key, value, bases, width, attn_mask=mask, scale=scale)
                state.corrections[width] = full - sliced

    def handle(func: Callable[..., Tensor], named: dict[str, Any]) -> Tensor:
        full = func(**named)
        if _is_perturbed():
            # Known widths would be wrong: none are, so that this branch is not sliced.
            state.bases, state.errors, state.corrections, state.saved = None, {}, {}, {}
            return full
        with uncounted():
            learn(named, full)
        return full

    with Seam(handle) as seam:
        output = call()
    if seam.calls != 1:
        state.bases, state.errors, state.corrections, state.saved = None, {}, {}, {}
    return output, seam.calls == 1


def _saved(query: Tensor, key: Tensor, width: int) -> int:
    batch, heads, queries, head_width = query.shape
    keys = key.shape[2]
    full = attention_operations(batch, heads, queries, keys, head_width, head_width)
    return full - sliced_attention_operations(batch, heads, queries, keys, width, head_width)


def run_sliced(call: Callable[[], Any], state: SliceState, width: int) -> Any:
    """Runs the module with its attention at `width` channels per head, plus the stored correction if there is one."""

    def handle(func: Callable[..., Tensor], named: dict[str, Any]) -> Tensor:
        bases = state.bases
        if bases is None or bases.query.shape[0] != named["query"].shape[1] or _is_perturbed():
            return func(**named)
        mask, scale = named.get("attn_mask"), named.get("scale")
        parts = named["query"], named["key"], named["value"]
        out = sliced_attention(*parts, bases, width, attn_mask=mask, scale=scale)
        correction = state.corrections.get(width)
        return out if correction is None else out + correction

    with Seam(handle):
        return call()
