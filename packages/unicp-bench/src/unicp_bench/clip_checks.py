"""Checks of every clip metric: that two clips can be compared, and that its packages are installed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unicp.errors import InputError, UniCPError

# Half-precision decoders end a little outside; bytes (0..255) and unscaled decoder outputs (-1..1) end far outside.
_SLACK = 1e-3


def checked_clips(clip: Any, reference: Any) -> tuple[Tensor, Tensor, bool]:
    """Two clips as float32 tensors on the CPU, and whether all their values are finite.

    Args:
        clip, reference: (frames, height, width, 3) of one shape, floats in [0, 1]; tensors or arrays.

    Raises:
        InputError: Shapes or number types cannot be used, or finite values are outside of [0, 1].
    """
    first, second = torch.as_tensor(clip).detach(), torch.as_tensor(reference).detach()
    shapes = f"shapes {tuple(first.shape)} and {tuple(second.shape)}"
    if first.shape != second.shape or first.dim() != 4 or first.shape[-1] != 3 or first.numel() == 0:
        raise InputError("a comparison of two clips", shapes, "pass equal shapes (frames, height, width, 3)")
    whole = True
    for one in (first, second):
        if not one.is_floating_point():
            raise InputError("a comparison of two clips", f"values of {one.dtype}", "pass floats in [0, 1]")
        finite = torch.isfinite(one)
        whole = whole and bool(finite.all())
        low, high = one[finite].aminmax() if finite.any() else (torch.zeros(()), torch.zeros(()))
        if low < -_SLACK or high > 1 + _SLACK:
            found = f"values from {low:.3g} to {high:.3g}"
            raise InputError("a comparison of two clips", found, "scale both to [0, 1]")
    return first.float().cpu(), second.float().cpu(), whole


def check_side(clip: Tensor, smallest: int, asked: str, metric: str) -> None:
    """Checks that frames (frames, height, width, 3) have no side below `smallest` pixels.

    Raises:
        InputError: They have.
    """
    height, width = clip.shape[1:3]
    if min(height, width) < smallest:
        do = f"use frames of at least {smallest}x{smallest}, or leave {metric} out of the metrics"
        raise InputError(asked, f"frames of {height}x{width}", do)


def missing_package(asked: str, package: str) -> UniCPError:
    """The error for a package of the `bench` extra that cannot be imported."""
    return UniCPError(asked, f"the package {package} is not installed", 'pip install "unicp[bench]"')
