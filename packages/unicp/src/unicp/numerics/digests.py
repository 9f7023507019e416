"""Digests of tensors, which recognise a tensor without a copy of it."""

from __future__ import annotations

import torch
from torch import Tensor

_COLUMNS = 1024
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
Digest = tuple[object, ...]


def digest(tensor: Tensor) -> Digest:
    """Shape, dtype and three sums over the bits of a tensor; equal for equal tensors on any device.

    The bits are whole numbers in rows of 1,024. Rows, columns and the rest are summed with a weight for each place.
    """
    plain = tensor.detach()
    if tensor.is_nested or plain.layout is not torch.strided:
        return (object(),)  # equal to no other digest
    about = (tuple(tensor.shape), str(tensor.dtype))
    if tensor.is_meta or not tensor.numel():
        return about
    plain = plain.resolve_conj().resolve_neg()
    if plain.is_complex():
        plain = torch.view_as_real(plain)
    bits = plain.contiguous().reshape(-1).view(_BITS[plain.element_size()])
    whole = len(bits) // _COLUMNS * _COLUMNS
    rows, rest = bits[:whole].view(-1, _COLUMNS), bits[whole:].long()
    sums = (rows.sum(dim=1, dtype=torch.int64), rows.sum(dim=0, dtype=torch.int64), rest)
    return (*about, *torch.stack([_weighted(one) for one in sums]).tolist())


def version_of(tensor: Tensor) -> int | None:
    """How often a tensor was written to; `None` for tensors made in inference mode, where that is not counted."""
    return None if tensor.is_inference() else tensor._version


def _weighted(values: Tensor) -> Tensor:
    # Odd weights, so that no bit is lost when the sum wraps around.
    places = torch.arange(len(values), device=values.device)
    return (values * (places * 2_654_435_761 + 1).bitwise_or(1)).sum()
