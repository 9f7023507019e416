"""Attention in a few directions of each head, and how much it would differ from full attention.

DESIGN 3.2: queries, keys and values are projected after norms and positions, at the attention call itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from unicp.errors import InputError
from unicp.numerics.error_measures import coprime_stride, relative_error
from unicp.numerics.principal_axes import Bases


def sliced_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bases: Bases,
    width: int,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention of queries (B, H, S, d) over keys and values (B, H, S2, d) at `width` channels of a head.

    The softmax keeps the scale of the full width, 1/sqrt(d), unless `scale` is given; attn_mask is that of
    torch's scaled_dot_product_attention. Returns (B, H, S, d) in the dtype of the query. At width d it equals full
    attention but for rounding. Means are exact: softmax ignores a constant added to all keys, and its rows sum
    to one. Projections are computed in the inputs' dtype.

    Raises InputError where shapes do not fit the bases, or width is not within 1 to the width of the bases.
    Source: the paper's PCA-based slicing, our reading; centring and the score-optimal basis are ours and KQ-SVD's.
    """
    _check_fit(query, key, value, bases)
    bases = bases.narrowed(width)
    attended = F.scaled_dot_product_attention(
        _project(query, None, bases.query),
        _project(key, bases.key_mean, bases.key),
        _project(value, bases.value_mean, bases.value),
        attn_mask=attn_mask,
        scale=_full_scale(query, scale),
    )
    return _lift(attended, bases).to(query.dtype)


def probe_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    full_output: Tensor,
    bases: Bases,
    widths: Sequence[int],
    *,
    rows: int = 32,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Relative error of `sliced_attention` at each of `widths`, seen on at most `rows` queries: (len(widths), B).

    full_output: (B, H, S, d), what full attention gave; the other arguments as in `sliced_attention`. The error is
    rms(sliced - full) / rms(full), both over the probed rows, all heads and all channels of a sample. The rows are
    evenly spread and always the same ones; they see all keys. Keys and values are projected once, at the widest.

    Raises InputError as `sliced_attention` does, for no widths, and where full_output is not shaped like the query.
    """
    _check_fit(query, key, value, bases)
    if full_output.shape != query.shape:
        found = f"an output of shape {tuple(full_output.shape)} for queries {tuple(query.shape)}"
        raise InputError("a probe of sliced attention", found, "pass (batch, heads, tokens, channels) for both")
    if not widths:
        raise InputError("a probe of sliced attention", "no widths", "name one or more")
    every = coprime_stride(query.shape[2], rows)
    mask = _mask_rows(attn_mask, query.shape[2], every)
    widest = bases.narrowed(max(widths))
    queries = _project(query[:, :, ::every], None, widest.query)
    keys = _project(key, widest.key_mean, widest.key)
    values = _project(value, widest.value_mean, widest.value)
    true, factor = full_output[:, :, ::every], _full_scale(query, scale)
    errors = []
    for width in widths:
        narrow = bases.narrowed(width)
        q, k, v = queries[..., :width], keys[..., :width], values[..., :width]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=factor)
        errors.append(relative_error(_lift(attended, narrow), true))
    return torch.stack(errors)


def _check_fit(query: Tensor, key: Tensor, value: Tensor, bases: Bases) -> None:
    heads_and_width = tuple(bases.query.shape[:2])
    for name, x in (("queries", query), ("keys", key), ("values", value)):
        if x.dim() != 4 or (x.shape[1], x.shape[3]) != heads_and_width:
            found = f"{name} of shape {tuple(x.shape)}, bases of (heads, channels) {heads_and_width}"
            raise InputError("sliced attention", found, "fit bases on inputs of the same heads and width")


def _project(x: Tensor, mean: Tensor | None, basis: Tensor) -> Tensor:
    """(x - mean) basis: (B, H, S, d) -> (B, H, S, r), in the dtype of x."""
    # Centring first: subtracting the projected mean afterwards would cancel large numbers in half precision.
    centred = x if mean is None else x - mean.to(x.dtype)[:, None]
    return centred @ basis.to(x.dtype)


def _lift(attended: Tensor, bases: Bases) -> Tensor:
    """Back to full width: (B, H, S, r) -> (B, H, S, d)."""
    lifted = attended @ bases.value.to(attended.dtype).mT
    return lifted + bases.value_mean.to(attended.dtype)[:, None]


def _full_scale(query: Tensor, scale: float | None) -> float:
    return 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale


def _mask_rows(attn_mask: Tensor | None, queries: int, every: int) -> Tensor | None:
    """The mask of every `every`-th query; a mask that is the same for all queries stays as it is."""
    if attn_mask is None or attn_mask.dim() < 2 or attn_mask.shape[-2] != queries:
        return attn_mask
    return attn_mask[..., ::every, :]
