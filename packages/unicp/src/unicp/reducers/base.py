"""What an attention reducer is: attention of one call at less cost, and what that misses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unicp.errors import InputError
from unicp.numerics.error_measures import coprime_stride, relative_error
from unicp.numerics.operation_counts import attention_operations
from unicp.reducers.attention_call import AttentionCall
from unicp.reducers.attention_rows import attention_of_rows
from unicp.registry import Registry
from unicp.settings import Slicing

ROWS = 32  # queries that the error of a reduced attention is measured on


class Reduced:
    """One attention call, ready to be computed at any of the widths it was made for.

    Args:
        call: The call; query (B, H, S, d), key and value (B, H, S2, d).
        projection: Weight (D, H * d) of the linear layer that follows, after which errors are measured; `None` = they
            are measured on the heads.
    """

    def __init__(self, call: AttentionCall, projection: Tensor | None = None):
        self.call, self.projection = call, projection
        # At a lesser width the softmax keeps the scale of the full one.
        self.scale = 1.0 / math.sqrt(call.query.shape[-1]) if call.scale is None else call.scale

    def attend(self, width: int) -> Tensor:
        """Attention at this width: (B, H, S, d) in the dtype of the query."""
        raise NotImplementedError(f"{type(self).__name__} has no attend(width)")

    def rows(self, width: int, rows: slice) -> Tensor:
        """The same of the queries in `rows` alone, which see all keys: (B, H, n, d)."""
        return self.attend(width)[:, :, rows]

    def errors(self, widths: Sequence[int], rows: int = ROWS) -> Tensor:
        """Relative error at each of `widths`, seen on at most `rows` queries: (len(widths), B).

        The error is rms(reduced - full) / rms(full), both over the probed rows, all heads and all channels of a sample;
        with a projection of what it makes of them. The rows are evenly spread and always the same ones.

        Raises:
            InputError: No widths.
        """
        if not widths:
            raise InputError("a probe of reduced attention", "no widths", "name one or more")
        call = self.call
        spread = slice(None, None, coprime_stride(call.query.shape[2], rows))
        full = attention_of_rows(call.query, call.key, call.value, spread, call.mask, self.scale)
        true = projected(full, self.projection)
        reduced = (projected(self.rows(width, spread), self.projection) for width in widths)
        return torch.stack([relative_error(one, true) for one in reduced])


class AttentionReducer:
    """Computes attention at reduced width (PCAS is one). One object for each attention unit and branch of a run.

    A subclass needs `reduce`, and `operations`, from which follows where it can pay.

    Args:
        slicing: The settings of slicing.
    """

    def __init__(self, slicing: Slicing):
        self.slicing = slicing

    def fit(self, call: AttentionCall, projection: Tensor | None) -> Any:
        """What may be kept for further calls of this attention, such as bases; `None` = nothing.

        Raises:
            UniCPError: The call cannot be reduced; it is computed in full then.
        """
        return None

    def fits(self, fitted: Any, call: AttentionCall) -> bool:
        """Whether what was fitted for an earlier call has the shape that this one needs."""
        return True

    def reduce(self, call: AttentionCall, fitted: Any, widths: Sequence[int], projection: Tensor | None) -> Reduced:
        """The call, ready to be computed at each of `widths`."""
        raise NotImplementedError(f"{type(self).__name__} has no reduce(call, fitted, widths, projection)")

    def operations(self, call: AttentionCall, width: int) -> int:
        """Operations of attention at this width, at 2 per multiply-add."""
        raise NotImplementedError(f"{type(self).__name__} has no operations(call, width)")

    def fit_operations(self, call: AttentionCall, projection: Tensor | None) -> int:
        """Operations of `fit`."""
        return 0

    def probe_operations(self, call: AttentionCall, widths: Sequence[int], projection: Tensor | None) -> int:
        """Operations of measuring the errors at `widths`: by default those of rows at full width."""
        return (1 + len(widths)) * full_operations(call, min(ROWS, call.query.shape[2]))

    def share(self, call: AttentionCall, width: int, projection: Tensor | None) -> float:
        """Cost of this width with all that belongs to it, as a share of full attention."""
        fit = self.fit_operations(call, projection) / self.slicing.refresh
        own = self.operations(call, width) + self.probe_operations(call, [width], projection)
        return (own + fit) / full_operations(call)

    def bytes(self, fitted: Any) -> int:
        """Bytes held by what was fitted: a tensor, a collection of them, or an object that has some; each once."""
        found, seen, total = [fitted], set[int](), 0
        while found:
            one = found.pop()
            if id(one) in seen:
                continue
            seen.add(id(one))
            if isinstance(one, Tensor):
                total += one.numel() * one.element_size()
                continue
            found += one.values() if isinstance(one, Mapping) else one if isinstance(one, (list, tuple)) else ()
            found += getattr(one, "__dict__", {}).values()
        return total


def full_operations(call: AttentionCall, queries: int | None = None, width: int | None = None) -> int:
    """Operations of attention in a call, at 2 per multiply-add.

    Args:
        call: The call.
        queries: How many queries attend, `None` = all.
        width: Channels of a head, `None` = all.
    """
    batch, heads, all_queries, channels = call.query.shape
    width = channels if width is None else width
    queries = all_queries if queries is None else queries
    return attention_operations(batch, heads, queries, call.key.shape[2], width, width)


def projected(attended: Tensor, projection: Tensor | None) -> Tensor:
    """What a linear layer of weight (D, H * d) makes of the heads, without its bias: (B, H, S, d) -> (B, S, D).

    Without a projection the heads stay as they are.
    """
    if projection is None:
        return attended
    return torch.nn.functional.linear(attended.transpose(1, 2).flatten(2), projection.to(attended.dtype))


reducers: Registry[Callable[[Slicing], AttentionReducer]] = Registry("reducer")


def register_reducer(name: str, maker: Callable[[Slicing], AttentionReducer], *, replace: bool = False) -> None:
    """Adds an attention reducer, so that settings can ask for it by name.

    Args:
        name: For `Slicing.reducer`.
        maker: Takes the `Slicing` of the session and makes the reducer of one attention in one branch of a run; a
            subclass of `AttentionReducer` will do.
        replace: Whether it may take the place of another of this name.

    Raises:
        SettingsError: The name is taken and `replace` is false.

    Example:
        >>> import unicp
        >>> from unicp.reducers.pca_slices import PcaSlices
        >>> unicp.register_reducer("slices again", PcaSlices, replace=True)
        >>> settings = unicp.preset("balanced", slicing=unicp.Slicing(widths=(0.5,), reducer="slices again"))
    """
    reducers.add(name, maker, replace=replace)
