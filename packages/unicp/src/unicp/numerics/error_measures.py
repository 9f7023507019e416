"""Relative errors of predicted tensors, and small samples of large tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unicp.errors import InputError


def relative_error(predicted: Tensor, true: Tensor, scale: Tensor | None = None) -> Tensor:
    """Relative error of each sample of a batch: rms(predicted - true) / rms(scale), over all axes but the first.

    Source: our reading of the paper's error, docs/method.md, 3.1.

    Args:
        predicted, true: (B, ...) of equal shape.
        scale: (B, ...), such as the residual stream; `None` = `true`.

    Returns:
        (B,), dimensionless, float32 (float64 for float64 inputs). Zero against zero is 0, anything else against zero
        inf.

    Raises:
        InputError: Shapes do not fit.
    """
    if predicted.shape != true.shape or predicted.dim() == 0:
        raise InputError(
            "relative error", f"shapes {tuple(predicted.shape)} and {tuple(true.shape)}", "pass equal shapes"
        )
    reference = true if scale is None else scale
    if reference.dim() == 0 or reference.shape[0] != true.shape[0]:
        raise InputError("relative error", f"a scale of shape {tuple(reference.shape)}", "give it the same batch size")
    dtype = torch.promote_types(torch.promote_types(predicted.dtype, true.dtype), torch.float32)
    difference = _rms(predicted.to(dtype) - true.to(dtype), dtype)
    size = _rms(reference, torch.promote_types(reference.dtype, dtype)).to(dtype)
    ratio = difference / size
    return torch.where((difference == 0) & (size == 0), torch.zeros_like(ratio), ratio)


def strided_sample(x: Tensor, count: int) -> Tensor:
    """Takes at most `count` values of each sample, evenly spread and always the same ones.

    It keeps every k-th value over all axes but the first, with k from `coprime_stride`, and never copies all of `x`.
    Source: ours (docs/method.md, 3.1).

    Args:
        x: (B, ...).
        count: At least 1.

    Returns:
        (B, n <= count), with memory of its own.

    Raises:
        InputError: `x` is a scalar, or `count` is below 1.
    """
    if x.dim() == 0:
        raise InputError("a strided sample", "a scalar", "pass a tensor with a batch axis")
    length = math.prod(x.shape[1:])
    stride = coprime_stride(length, count)
    if x.dim() == 1:
        return x[:, None].clone()
    if x.is_contiguous():
        return x.flatten(1)[:, ::stride].clone()
    # Flattening would copy a tensor with permuted memory.
    positions = torch.arange(0, length, stride, device=x.device)
    return x[(slice(None), *torch.unravel_index(positions, x.shape[1:]))]


def coprime_stride(length: int, count: int) -> int:
    """Smallest step that takes at most `count` of `length` positions and shares no factor with `length`.

    So a tensor of frames x rows x columns is never sampled at a single column or channel.

    Raises:
        InputError: `count` is below 1.
    """
    if count < 1:
        raise InputError(f"a sample of {count}", "less than one position", "ask for 1 or more")
    stride = max(1, math.ceil(length / count))
    while stride > 1 and math.gcd(stride, length) != 1:
        stride += 1
    return stride


def all_finite(x: Tensor) -> Tensor:
    """Whether all values of `x` are finite: a boolean scalar tensor on the device of `x`."""
    return torch.isfinite(x).all()


def _rms(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Root mean square of (B, ...) over all but the first axis, accumulated in `dtype`: (B,)."""
    flat = x.reshape(x.shape[0], math.prod(x.shape[1:]))
    return torch.linalg.vector_norm(flat, dim=1, dtype=dtype) / math.sqrt(max(1, flat.shape[1]))
