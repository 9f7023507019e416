"""How close an accelerated video is to the plain one."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from unicp.errors import InputError


class Psnr(NamedTuple):
    """Peak signal-to-noise ratios in dB: one per frame, and of all frames together. inf = equal."""

    frames: list[float]
    total: float

    @property
    def worst(self) -> float:
        """Of the worst frame; NaN if any frame is."""
        return min(self.frames, key=lambda value: -math.inf if math.isnan(value) else value)


def psnr(a: Any, b: Any, peak: float = 1.0) -> Psnr:
    """PSNR in dB of two videos of equal shape (frames, ...), tensors or arrays of any number type.

    peak: the largest value a sample can have (1.0, or 255 for bytes). The total is that of the mean squared error
    over everything, not a mean of decibels. Equal videos give inf, a NaN in either gives NaN.
    Raises InputError for shapes that differ or have no frames, and for a peak that is not positive.
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
