"""How close an accelerated clip is to the plain clip of the same prompt and seed.

A clip is (frames, height, width, 3), floats in [0, 1]. A clip with values that are not finite has NaN for a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from unicp.errors import InputError
from unicp.numerics.error_measures import relative_error
from unicp.numerics.fidelity import Psnr
from unicp.numerics.fidelity import psnr as plain_psnr
from unicp_bench.clip_checks import check_side, checked_clips, missing_package
from unicp_bench.deep_features import feature_distance, lpips
from unicp_bench.vmaf import vmaf

PSNR_CAP = 100.0  # equal clips have no finite PSNR, and means need one
_WINDOW = 11  # pixels: a Gaussian of 1.5, cut at 3.5 deviations


def psnr(clip: Any, reference: Any) -> float:
    """PSNR in dB over all pixels of the clip, peak 1, at most PSNR_CAP (equal clips). NaN if a value is not finite.

    Args:
        clip, reference: (frames, height, width, 3), floats in [0, 1].

    Raises:
        InputError: Clips do not fit.
    """
    first, second, finite = checked_clips(clip, reference)
    return _capped(plain_psnr(first, second)) if finite else math.nan


def ssim(clip: Any, reference: Any) -> float:
    """Structural similarity, mean over frames and colours: 1 for equal clips, at least -1. NaN if not finite.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004): Gaussian
    weights of deviation 1.5, K1 0.01, K2 0.03, no sample covariance. Our reading for colour: each channel by itself.

    Args:
        clip, reference: (frames, height, width, 3), floats in [0, 1].

    Raises:
        InputError: Clips do not fit, or frames are below 11x11 (the window).
        UniCPError: scikit-image is missing.
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        raise missing_package("SSIM of two clips", "scikit-image") from None
    first, second, finite = checked_clips(clip, reference)
    check_side(first, _WINDOW, "SSIM of two clips", "ssim")
    if not finite:
        return math.nan
    # Its annotations name every shape of result that other options would give.
    similarity: Any = structural_similarity
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    # In double precision: variances are differences of nearly equal numbers.
    pairs = zip(first.double().numpy(), second.double().numpy(), strict=True)
    frames = [float(similarity(a, b, channel_axis=-1, **options)) for a, b in pairs]
    return math.fsum(frames) / len(frames)


def temporal_psnr(clip: Any, reference: Any) -> float:
    """PSNR in dB of the changes from frame to frame, at most PSNR_CAP. It sees flicker and lost motion.

    An error that is equal in every frame costs nothing; errors that are independent from frame to frame give 3.0 dB
    less than `psnr`, since the peak is 1 here too. NaN for a single frame, or if a value is not finite. Source: ours.

    Args:
        clip, reference: (frames, height, width, 3), floats in [0, 1].

    Raises:
        InputError: Clips do not fit.
    """
    first, second, finite = checked_clips(clip, reference)
    if not finite or len(first) < 2:
        return math.nan
    return _capped(plain_psnr(first.diff(dim=0), second.diff(dim=0)))


def motion_energy_ratio(clip: Any, reference: Any) -> float:
    """Squared change from frame to frame, summed over the clip, over that of the reference; dimensionless, >= 0.

    Below 1 is frozen or damped motion, above 1 added motion or flicker. It does not say whether the motion is the same.
    NaN if the reference does not move, or if a value is not finite. Source: ours.

    Args:
        clip, reference: (frames, height, width, 3), floats in [0, 1].

    Raises:
        InputError: Clips do not fit.
    """
    first, second, finite = checked_clips(clip, reference)
    energy = _motion_energy(second)
    return _motion_energy(first) / energy if finite and energy > 0 else math.nan


def latent_error(latent: Any, reference: Any) -> float:
    """Relative root mean square error of a latent: rms(latent - reference) / rms(reference), dimensionless.

    It is 0 for equal ones, inf if only the reference is all zero, NaN if a value is not finite. Source: ours.

    Args:
        latent, reference: Of any one shape.

    Raises:
        InputError: Shapes differ or are empty.
    """
    first, second = torch.as_tensor(latent).detach(), torch.as_tensor(reference).detach()
    if first.shape != second.shape or first.numel() == 0:
        shapes = f"shapes {tuple(first.shape)} and {tuple(second.shape)}"
        raise InputError("the error of a latent", shapes, "pass equal shapes")
    first, second = (x.cpu().double().reshape(1, -1) for x in (first, second))
    if not bool(first.isfinite().all() and second.isfinite().all()):
        return math.nan
    return relative_error(first, second).item()


_MEASURES: dict[str, Callable[[Any, Any], float | None]] = {
    "psnr": psnr,
    "ssim": ssim,
    "vmaf": vmaf,
    "feature_distance": feature_distance,
    "lpips": lpips,
    "temporal_psnr": temporal_psnr,
    "motion_energy_ratio": motion_energy_ratio,
}
ALL = (*_MEASURES, "latent_error")
FAST = tuple(name for name in ALL if name not in ("vmaf", "feature_distance", "lpips"))


def measure_clip(
    clip: Any,
    reference: Any,
    latent: Any = None,
    reference_latent: Any = None,
    metrics: Sequence[str] | None = None,
) -> dict[str, float]:
    """Every metric of a clip against its reference, by name, in the order of ALL.

    The result lacks lpips if its packages or weights are missing, and latent_error without latents. Clips that are not
    finite give NaN.

    Args:
        clip, reference: (frames, height, width, 3), floats in [0, 1].
        latent, reference_latent: The final latents, of any one shape.
        metrics: Names out of ALL, `None` = all. FAST has those that need no second program and no network.

    Raises:
        InputError: Clips do not fit, a name is unknown, one latent is missing, or frames are too small for a metric.
        UniCPError: A package of the `bench` extra is missing.
    """
    wanted = ALL if metrics is None else metrics
    if unknown := [name for name in wanted if name not in ALL]:
        raise InputError(f"the metrics {', '.join(unknown)}", "no such names", f"use {', '.join(ALL)}")
    if (latent is None) != (reference_latent is None):
        raise InputError("the error of a latent", "only one of two latents", "pass both or none")
    found: dict[str, float] = {}
    for name, measure in _MEASURES.items():
        if name in wanted and (value := measure(clip, reference)) is not None:
            found[name] = value
    if "latent_error" in wanted and latent is not None:
        found["latent_error"] = latent_error(latent, reference_latent)
    return found


def _capped(value: Psnr) -> float:
    return min(value.total, PSNR_CAP)


def _motion_energy(clip: Tensor) -> float:
    # Frame by frame: in double precision a long clip would need twice its memory once more.
    return math.fsum((b.double() - a.double()).square().sum().item() for a, b in zip(clip[:-1], clip[1:], strict=True))
