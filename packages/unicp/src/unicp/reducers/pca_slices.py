"""PCAS, PCA-based slicing: attention in a few directions of each head, fitted to the call at hand.

Queries, keys and values are projected after norms and positions, at the attention call itself, so that one mechanism
fits every model and no weight is changed. (The paper's PCA-based slicing, our reading; centring and the score-optimal
basis are KQ-SVD's, axes of what attention makes of the values are ours.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from unicp.errors import InputError
from unicp.numerics.operation_counts import linear_operations, slice_fit_operations
from unicp.reducers.attention_call import AttentionCall, plain_call
from unicp.reducers.attention_rows import mask_of_rows
from unicp.reducers.base import ROWS, AttentionReducer, Reduced, full_operations, reducers
from unicp.reducers.bases import FIT_ROWS, FIT_TOKENS, Bases, fit_bases

# How many times longer than attention bases and the probe take for an operation: their matrices are small. It tells
# apart what pays from what does not in docs/results/slice_speed.json, measured on a CPU.
SMALL = 4.0


class PcaSlices(AttentionReducer):
    """Attention along principal directions of its queries, keys and values; widths are channels of a head."""

    def fit(self, call: AttentionCall, projection: Tensor | None) -> Bases:
        """Bases of full width, of which every narrower one is a part."""
        query, key, value = call.query, call.key, call.value
        kind, mask, scale = self.slicing.basis, call.mask, call.scale
        return fit_bases(query, key, value, kind, projection=projection, attn_mask=mask, scale=scale)

    def fits(self, fitted: Bases, call: AttentionCall) -> bool:
        """Whether heads are as many and as wide as those of the bases."""
        shape = tuple(fitted.query.shape[:2])
        return all((x.shape[1], x.shape[3]) == shape for x in (call.query, call.key))

    def reduce(self, call: AttentionCall, fitted: Bases, widths: Sequence[int], projection: Tensor | None) -> Reduced:
        """The call in the directions of its bases, projected once to the widest."""
        return SlicedCall(call, fitted, max(widths), projection)

    def operations(self, call: AttentionCall, width: int) -> int:
        """Attention at this width, and the lift of its result."""
        batch, heads, queries, channels = call.query.shape
        return full_operations(call, width=width) + linear_operations(batch * heads * queries, width, channels)

    def fit_operations(self, call: AttentionCall, projection: Tensor | None) -> int:
        """Second moments and their axes, and rows of full attention where the basis is fitted on what they give."""
        return self._small_fit(call, projection) + self._rows(call)

    def probe_operations(self, call: AttentionCall, widths: Sequence[int], projection: Tensor | None) -> int:
        """Projections to the widest, and the probed queries at full width and at each of `widths`."""
        batch, heads, queries, channels = call.query.shape
        rows = batch * heads * (queries + 2 * call.key.shape[2])
        probed = min(ROWS, queries)
        lifted = batch * heads * probed
        seen = batch * probed * (1 + len(widths))
        return (
            linear_operations(rows, channels, max(widths))
            + linear_operations(seen, heads * channels, 0 if projection is None else len(projection))
            + full_operations(call, probed)
            + sum(full_operations(call, probed, w) + linear_operations(lifted, w, channels) for w in widths)
        )

    def share(self, call: AttentionCall, width: int, projection: Tensor | None) -> float:
        """In time, as far as it can be told from operations: those on small matrices take `SMALL` times as long."""
        uses = self.slicing.refresh
        small = self.probe_operations(call, [width], projection) + self._small_fit(call, projection) / uses
        return (self.operations(call, width) + SMALL * small + self._rows(call) / uses) / full_operations(call)

    def _small_fit(self, call: AttentionCall, projection: Tensor | None) -> int:
        batch, heads, _, channels = call.query.shape
        outputs = 0 if projection is None else len(projection)
        gram = heads * linear_operations(outputs, channels, channels)
        return slice_fit_operations(heads, batch * min(FIT_TOKENS, call.key.shape[2]), channels) + gram

    def _rows(self, call: AttentionCall) -> int:
        is_fitted_on_rows = self.slicing.basis == "output_pca"
        return full_operations(call, min(FIT_ROWS, call.query.shape[2])) if is_fitted_on_rows else 0


class SlicedCall(Reduced):
    """One attention call in the directions of its bases, ready to be computed at any width up to `width`.

    At width d the result equals full attention but for rounding. Means are exact: softmax ignores a constant added to
    all keys, and its rows sum to one. Projections are computed once, in the inputs' dtype; narrower widths are views of
    them. The kernel of the call computes the attention; errors are measured with torch's in any case.

    Args:
        call: Query (B, H, S, d), key and value (B, H, S2, d).
        bases: Directions of each head.
        width: The widest that will be asked for.
        projection: As for `Reduced`.

    Raises:
        InputError: Shapes do not fit the bases, or the width is not within 1 to the width of the bases.
    """

    def __init__(self, call: AttentionCall, bases: Bases, width: int, projection: Tensor | None = None):
        super().__init__(call, projection)
        query, key, value = call.query, call.key, call.value
        _check_fit(query, key, value, bases)
        self._bases = bases.narrowed(width)
        # In half precision a mean larger than what varies would take its digits. Elsewhere keys and values need not be
        # copied to take it off: softmax does not see that of the keys, and the lift makes up for that of the values.
        self._is_centred = query.dtype in (torch.bfloat16, torch.float16)
        if self._is_centred:
            key, value = (_centred(x, mean) for x, mean in ((key, bases.key_mean), (value, bases.value_mean)))
        self._query, self._key, self._value = (
            x @ basis.to(x.dtype)
            for x, basis in ((query, self._bases.query), (key, self._bases.key), (value, self._bases.value))
        )

    def attend(self, width: int) -> Tensor:
        """Attention at `width` channels of a head: (B, H, S, d) in the dtype of the query."""
        parts = self._query[..., :width], self._key[..., :width], self._value[..., :width]
        return self._lifted(self.call.kernel(*parts, self.scale), width)

    def rows(self, width: int, rows: slice) -> Tensor:
        """The same of the queries in `rows`, by torch's attention."""
        parts = (x[..., :width] for x in (self._query[:, :, rows], self._key, self._value))
        mask = mask_of_rows(self.call.mask, self.call.query.shape[2], rows)
        return self._lifted(F.scaled_dot_product_attention(*parts, attn_mask=mask, scale=self.scale), width)

    def _lifted(self, attended: Tensor, width: int) -> Tensor:
        """Back to full width, the mean of the values added: (B, H, S, r) -> (B, H, S, d)."""
        bases, mean = self._bases.narrowed(width), self._bases.value_mean
        if not self._is_centred:
            # What the basis holds of the mean was never taken off.
            mean = mean - ((mean[:, :, None] * bases.value).sum(1, keepdim=True) * bases.lift).sum(2)
        lifted = attended @ bases.lift.to(attended.dtype).mT
        return lifted.add_(mean.to(attended.dtype)[:, None]).to(self.call.query.dtype)


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
    """Attention at `width` channels of a head, see `SlicedCall`; the mask is that of torch's attention."""
    return SlicedCall(plain_call(query, key, value, attn_mask, scale), bases, width).attend(width)


def _check_fit(query: Tensor, key: Tensor, value: Tensor, bases: Bases) -> None:
    heads_and_width = tuple(bases.query.shape[:2])
    for name, x in (("queries", query), ("keys", key), ("values", value)):
        if x.dim() != 4 or (x.shape[1], x.shape[3]) != heads_and_width:
            found = f"{name} of shape {tuple(x.shape)}, bases of (heads, channels) {heads_and_width}"
            raise InputError("sliced attention", found, "fit bases on inputs of the same heads and width")


def _centred(x: Tensor, mean: Tensor) -> Tensor:
    """x - mean: (B, H, S, d) of x and (H, d)."""
    return x - mean.to(x.dtype)[:, None]


reducers.add("pca_slices", PcaSlices)
