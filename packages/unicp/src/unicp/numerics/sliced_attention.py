"""Attention in a few directions of each head, and how far it is from full attention in that very call.

DESIGN 3.2: queries, keys and values are projected after norms and positions, at the attention call itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from unicp.errors import InputError
from unicp.numerics.attention_rows import attention_of_rows, mask_of_rows
from unicp.numerics.error_measures import coprime_stride, relative_error
from unicp.numerics.principal_axes import Bases

# (queries, keys, values, scale of the scores) -> attention, with the mask of the call.
Kernel = Callable[[Tensor, Tensor, Tensor, float], Tensor]
ROWS = 32  # queries that the error of a slice is measured on


class SlicedCall:
    """One attention call in the directions of its bases, ready to be computed at any width up to `width`.

    query: (B, H, S, d), key and value: (B, H, S2, d). The softmax keeps the scale of the full width, 1/sqrt(d), unless
    `scale` is given; attn_mask is that of torch's scaled_dot_product_attention. At width d the result equals full
    attention but for rounding. Means are exact: softmax ignores a constant added to all keys, and its rows sum to
    one. Projections are computed once, in the inputs' dtype; narrower widths are views of them. `kernel` computes the
    attention, None = torch's; errors are measured with torch's in any case.

    Raises InputError where shapes do not fit the bases, or the width is not within 1 to the width of the bases.
    Source: the paper's PCA-based slicing, our reading; centring and the score-optimal basis are ours and KQ-SVD's.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bases: Bases,
        width: int,
        attn_mask: Tensor | None = None,
        scale: float | None = None,
        kernel: Kernel | None = None,
    ):
        _check_fit(query, key, value, bases)
        self._full = query, key, value
        self._bases = bases.narrowed(width)
        self._mask = attn_mask
        self._scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
        self._kernel = kernel
        # In half precision a mean larger than what varies would take its digits. Elsewhere keys and values need not be
        # copied to take it off: softmax does not see that of the keys, and the lift makes up for that of the values.
        self._centred = query.dtype in (torch.bfloat16, torch.float16)
        if self._centred:
            key, value = (_centred(x, mean) for x, mean in ((key, bases.key_mean), (value, bases.value_mean)))
        self._query, self._key, self._value = (
            x @ basis.to(x.dtype)
            for x, basis in ((query, self._bases.query), (key, self._bases.key), (value, self._bases.value))
        )

    def attend(self, width: int) -> Tensor:
        """Attention at `width` channels of a head: (B, H, S, d) in the dtype of the query."""
        if self._kernel is None:
            return self._attend(self._query, width, self._mask)
        parts = self._query[..., :width], self._key[..., :width], self._value[..., :width]
        return self._lifted(self._kernel(*parts, self._scale), width)

    def errors(self, widths: Sequence[int], rows: int = ROWS, projection: Tensor | None = None) -> Tensor:
        """Relative error at each of `widths`, seen on at most `rows` queries: (len(widths), B).

        The error is rms(sliced - full) / rms(full), both over the probed rows, all heads and all channels of a
        sample; with a projection (the weight (D, H * d) of the linear layer that follows) of what it makes of them.
        The rows are evenly spread and always the same ones; they see all keys. Raises InputError for no widths.
        """
        if not widths:
            raise InputError("a probe of sliced attention", "no widths", "name one or more")
        query, key, value = self._full
        spread = slice(None, None, coprime_stride(query.shape[2], rows))
        mask = mask_of_rows(self._mask, query.shape[2], spread)
        true = projected(attention_of_rows(query, key, value, spread, self._mask, self._scale), projection)
        probed = self._query[:, :, spread]
        sliced = (projected(self._attend(probed, width, mask), projection) for width in widths)
        return torch.stack([relative_error(one, true) for one in sliced])

    def _attend(self, query: Tensor, width: int, mask: Tensor | None) -> Tensor:
        parts = (x[..., :width] for x in (query, self._key, self._value))
        return self._lifted(F.scaled_dot_product_attention(*parts, attn_mask=mask, scale=self._scale), width)

    def _lifted(self, attended: Tensor, width: int) -> Tensor:
        """Back to full width, the mean of the values added: (B, H, S, r) -> (B, H, S, d)."""
        bases, mean = self._bases.narrowed(width), self._bases.value_mean
        if not self._centred:
            # What the basis holds of the mean was never taken off.
            mean = mean - ((mean[:, :, None] * bases.value).sum(1, keepdim=True) * bases.lift).sum(2)
        lifted = attended @ bases.lift.to(attended.dtype).mT
        return lifted.add_(mean.to(attended.dtype)[:, None]).to(self._full[0].dtype)


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
    """Attention at `width` channels of a head, see `SlicedCall`."""
    return SlicedCall(query, key, value, bases, width, attn_mask, scale).attend(width)


def projected(attended: Tensor, projection: Tensor | None) -> Tensor:
    """What a linear layer of weight (D, H * d) makes of the heads, without its bias: (B, H, S, d) -> (B, S, D).

    Without a projection the heads stay as they are.
    """
    if projection is None:
        return attended
    return F.linear(attended.transpose(1, 2).flatten(2), projection.to(attended.dtype))


def _check_fit(query: Tensor, key: Tensor, value: Tensor, bases: Bases) -> None:
    heads_and_width = tuple(bases.query.shape[:2])
    for name, x in (("queries", query), ("keys", key), ("values", value)):
        if x.dim() != 4 or (x.shape[1], x.shape[3]) != heads_and_width:
            found = f"{name} of shape {tuple(x.shape)}, bases of (heads, channels) {heads_and_width}"
            raise InputError("sliced attention", found, "fit bases on inputs of the same heads and width")


def _centred(x: Tensor, mean: Tensor) -> Tensor:
    """x - mean: (B, H, S, d) of x and (H, d)."""
    return x - mean.to(x.dtype)[:, None]
