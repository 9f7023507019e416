"""How far a predicted tensor is from the true one, and cheap samples of large tensors to measure drift on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unicp.errors import InputError


def relative_error(predicted: Tensor, true: Tensor, scale: Tensor | None = None) -> Tensor:
    """Relative error of each sample of a batch: rms(predicted - true) / rms(scale, or true where no scale is given).

    predicted, true: (B, ...) of equal shape; scale: (B, ...), its other axes free (for instance the residual stream).
    The root mean square is over all axes but the first. Returns (B,), dimensionless, float32 (float64 for float64
    inputs), also for half-precision inputs. Zero against zero is 0, anything else against zero is inf; NaN stays NaN.
    Raises InputError where shapes do not fit. Source: our reading of the paper's error, docs/method.md, 3.1.
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
    """At most `count` values of each sample, evenly spread and always the same ones: (B, ...) -> (B, n <= count).

    All axes but the first are taken as one, and every k-th value is kept, with k from `coprime_stride`, so that no
    single channel, column or frame is favoured. The result has its own memory: keeping it does not keep `x`, and
    `x` is never copied as a whole. Raises InputError for a scalar `x` or a count below 1.
    Source: ours (docs/method.md, 3.1).
    """
    if x.dim() == 0:
        raise InputError("a strided sample", "a scalar", "pass a tensor with a batch axis")
    length = math.prod(x.shape[1:])
    stride = coprime_stride(length, count)
    if x.dim() == 1:
        return x[:, None].clone()
    if x.is_contiguous():
        return x.flatten(1)[:, ::stride].clone()
    # Flattening would copy the whole tensor when its memory is permuted.
    positions = torch.arange(0, length, stride, device=x.device)
    return x[(slice(None), *torch.unravel_index(positions, x.shape[1:]))]


def coprime_stride(length: int, count: int) -> int:
    """Smallest step that takes at most `count` of `length` positions and shares no factor with `length`.

    Positions that are laid out as frames x rows x columns are then never sampled at one column or channel only.
    Returns 1 where all positions are few enough. It can take fewer than `count`. Raises InputError for count < 1.
    """
    if count < 1:
        raise InputError(f"a sample of {count}", "less than one position", "ask for 1 or more")
    stride = max(1, math.ceil(length / count))
    while stride > 1 and math.gcd(stride, length) != 1:
        stride += 1
    return stride


def all_finite(x: Tensor) -> Tensor:
    """Whether no value of `x`, of any shape, is NaN or infinite: a boolean scalar tensor on the device of `x`."""
    return torch.isfinite(x).all()


def _rms(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Root mean square of (B, ...) over all but the first axis, accumulated in `dtype`: (B,)."""
    flat = x.reshape(x.shape[0], math.prod(x.shape[1:]))
    return torch.linalg.vector_norm(flat, dim=1, dtype=dtype) / math.sqrt(max(1, flat.shape[1]))
