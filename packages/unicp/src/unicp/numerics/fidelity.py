"""PSNR of an accelerated video against the plain one."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from unicp.errors import InputError


class Psnr(NamedTuple):
    """Peak signal-to-noise ratios in dB; inf = equal.

    Attributes:
        frames: One per frame.
        total: Of all frames together.
    """

    frames: list[float]
    total: float

    @property
    def worst(self) -> float:
        """The worst frame; NaN if any frame is."""
        return min(self.frames, key=lambda value: -math.inf if math.isnan(value) else value)


def psnr(a: Any, b: Any, peak: float = 1.0) -> Psnr:
    """PSNR of two videos in dB. The total is that of the mean squared error, not a mean of decibels.

    Args:
        a, b: Tensors or arrays of equal shape (frames, ...), of any number type.
        peak: Largest possible value: 1.0, or 255 for bytes.

    Raises:
        InputError: Shapes differ or have no frames, or `peak` is not positive.
    """
    first, second = torch.as_tensor(a), torch.as_tensor(b)
    if first.shape != second.shape or first.dim() == 0 or first.numel() == 0:
        shapes = f"shapes {tuple(first.shape)} and {tuple(second.shape)}"
        raise InputError("PSNR of two videos", shapes, "pass equal shapes with at least one frame")
    if not 0 < peak < math.inf:
        raise InputError(f"PSNR with peak {peak}", "not a positive finite number", "use 1.0, or 255 for bytes")
    # Frame by frame: a long video in float64 would need eight times the memory of its bytes.
    errors = [
        (x.to(torch.float64) - y.to(torch.float64)).square().mean().item() for x, y in zip(first, second, strict=True)
    ]
    return Psnr([_decibels(error, peak) for error in errors], _decibels(math.fsum(errors) / len(errors), peak))


def _decibels(error: float, peak: float) -> float:
    if error == 0:
        return math.inf
    return 10 * math.log10(peak * peak / error) if not math.isinf(error) else -math.inf
