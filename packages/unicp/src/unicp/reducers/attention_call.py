"""One attention call, as a reducer is given it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

SDPA = ""  # the backend of a module that calls scaled_dot_product_attention itself


@dataclass(frozen=True)
class AttentionCall:
    """One attention call, whoever computes it.

    query: (B, H, S, d), key and value: (B, H, S2, d). mask: as scaled_dot_product_attention takes it. scale: None = one
    over the root of d. kernel: (query, key, value, scale) -> (B, H, S, value channels), with this call's mask.
    backend: name in diffusers' dispatcher; "" = scaled_dot_product_attention. is_perturbed: somebody else stands in
    front of the call too, so that it gives something else than attention.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float | None
    kernel: Callable[[Tensor, Tensor, Tensor, float | None], Tensor]
    backend: str = SDPA
    is_perturbed: bool = False

    def full(self) -> Tensor:
        """What the module asked for, bit for bit."""
        return self.kernel(self.query, self.key, self.value, self.scale)


def plain_call(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> AttentionCall:
    """The call of torch's attention with these inputs, (B, H, S, d)."""

    def compute(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)

    return AttentionCall(query, key, value, mask, scale, compute)
