"""Full attention of a few queries, which see all keys."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attention_of_rows(
    query: Tensor, key: Tensor, value: Tensor, rows: slice, attn_mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Attention of the queries in `rows`: (B, H, S, d), (B, H, S2, d) twice -> (B, H, n, d).

    attn_mask and scale are those of torch's scaled_dot_product_attention of all queries.
    """
    mask = mask_of_rows(attn_mask, query.shape[2], rows)
    return F.scaled_dot_product_attention(query[:, :, rows], key, value, attn_mask=mask, scale=scale)


def mask_of_rows(attn_mask: Tensor | None, queries: int, rows: slice) -> Tensor | None:
    """The mask of the queries in `rows`; a mask that is the same for all queries stays as it is."""
    if attn_mask is None or attn_mask.dim() < 2 or attn_mask.shape[-2] != queries:
        return attn_mask
    return attn_mask[..., rows, :]
