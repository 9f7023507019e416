"""Metrics of clips with known answers."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional

from unicp.errors import InputError, UniCPError
from unicp_bench import clip_metrics
from unicp_bench.clip_metrics import (
    ALL,
    FAST,
    PSNR_CAP,
    latent_error,
    measure_clip,
    motion_energy_ratio,
    psnr,
    ssim,
    temporal_psnr,
)


def clip_of(*values: float, size: int = 16) -> torch.Tensor:
    """One flat frame for each value."""
    return torch.tensor(values, dtype=torch.float32)[:, None, None, None].expand(-1, size, size, 3).clone()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def no_lpips(monkeypatch):
    monkeypatch.setitem(clip_metrics._MEASURES, "lpips", lambda clip, reference: None)


def test_psnr_by_hand_and_its_cap():
    assert psnr(clip_of(0.5, 0.5), clip_of(0.5, 0.6)) == pytest.approx(10 * math.log10(2 / 0.01), abs=1e-4)
    assert psnr(clip_of(0.5), clip_of(0.5)) == PSNR_CAP
    assert psnr(clip_of(0.5), clip_of(0.5 + 1e-6)) == PSNR_CAP


def test_ssim_of_flat_frames_is_the_luminance_term():
    expected = (2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4)
    assert ssim(clip_of(0.5), clip_of(0.25)) == pytest.approx(expected, abs=1e-6)
    assert ssim(clip_of(0.5, 0.25), clip_of(0.25, 0.25)) == pytest.approx((1 + expected) / 2, abs=1e-6)


def test_ssim_of_chequered_frames_is_the_contrast_term():
    board = torch.tensor(np.indices((32, 32)).sum(0) % 2 * 2.0 - 1)[None, :, :, None].expand(1, 32, 32, 3)
    half = (2 * 0.05 * 0.1 + 9e-4) / (0.05**2 + 0.1**2 + 9e-4)
    assert ssim(0.5 + 0.05 * board, 0.5 + 0.1 * board) == pytest.approx(half, abs=1e-4)
    assert ssim(0.5 - 0.1 * board, 0.5 + 0.1 * board) == pytest.approx((9e-4 - 0.02) / (9e-4 + 0.02), abs=1e-4)


def test_ssim_is_that_of_an_explicit_gaussian_window():
    first, second = noise(2, 24, 20, 3), noise(2, 24, 20, 3, seed=1)
    line = torch.exp(-(torch.arange(-5.0, 6).double() ** 2) / (2 * 1.5**2))
    window = (line[:, None] * line)[None, None] / line.sum() ** 2

    def mean(x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x.double().movedim(-1, 1).reshape(-1, 1, 24, 20), window)

    a, b = mean(first), mean(second)
    variances = mean(first.double() ** 2) - a**2 + mean(second.double() ** 2) - b**2
    covariance = mean(first.double() * second.double()) - a * b
    expected = (2 * a * b + 1e-4) * (2 * covariance + 9e-4) / ((a**2 + b**2 + 1e-4) * (variances + 9e-4))
    assert ssim(first, second) == pytest.approx(expected.mean().item(), abs=1e-9)


def test_frames_below_the_window_have_no_ssim():
    assert ssim(clip_of(0.5, size=11), clip_of(0.5, size=11)) == pytest.approx(1)
    with pytest.raises(InputError, match="found: frames of 10x10; do: use frames of at least 11x11"):
        ssim(clip_of(0.5, size=10), clip_of(0.5, size=10))


def test_temporal_psnr_by_hand():
    # Changes 0.1 and 0 against 0 and 0: mean squared error 0.005.
    assert temporal_psnr(clip_of(0, 0.1, 0.1), clip_of(0, 0, 0)) == pytest.approx(-10 * math.log10(0.005), abs=1e-4)


def test_temporal_psnr_does_not_see_an_error_that_stays():
    moving = torch.tensor([0.0, 0.25, 0.5])[:, None, None, None] * torch.ones(3, 4, 4, 3)
    assert temporal_psnr(moving + 0.125, moving) == PSNR_CAP
    assert psnr(moving + 0.125, moving) == pytest.approx(18.06, abs=0.01)


def test_temporal_psnr_of_independent_errors_is_three_decibels_lower():
    reference = clip_of(*[0.5] * 30)
    clip = reference + 0.1 * (noise(*reference.shape) - 0.5)
    assert psnr(clip, reference) - temporal_psnr(clip, reference) == pytest.approx(10 * math.log10(2), abs=0.1)


def test_motion_energy_by_hand():
    reference = clip_of(0, 0.1, 0.2)
    assert motion_energy_ratio(2 * reference, reference) == pytest.approx(4)
    assert motion_energy_ratio(reference / 2, reference) == pytest.approx(0.25)
    assert motion_energy_ratio(reference[:1].expand(3, -1, -1, -1), reference) == 0
    assert motion_energy_ratio(1 - reference, reference) == pytest.approx(1)


def test_without_motion_there_is_no_ratio():
    assert math.isnan(motion_energy_ratio(clip_of(0, 0.1), clip_of(0.5, 0.5)))
    assert math.isnan(motion_energy_ratio(clip_of(0.1), clip_of(0.5)))
    assert math.isnan(temporal_psnr(clip_of(0.1), clip_of(0.5)))


def test_latent_error_by_hand():
    reference = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert latent_error(reference + torch.tensor([[0.0, 1.0], [0.0, 0.0]]), reference) == pytest.approx(0.2)
    assert latent_error(reference.half(), reference.half()) == 0
    assert latent_error(torch.zeros(2), torch.zeros(2)) == 0
    assert latent_error(torch.ones(2), torch.zeros(2)) == math.inf
    assert math.isnan(latent_error(torch.tensor([1.0, math.inf]), torch.ones(2)))
    assert math.isnan(latent_error(torch.ones(2), torch.tensor([1.0, math.nan])))


@pytest.mark.parametrize("shapes", [((2,), (3,)), ((0,), (0,))])
def test_latents_that_cannot_be_compared(shapes):
    with pytest.raises(InputError, match="error of a latent; found: shapes .* do: pass equal shapes"):
        latent_error(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_equal_clips_have_the_best_of_every_number():
    clip, latent = noise(5, 64, 64, 3), noise(1, 4, 2, 8, 8)
    found = measure_clip(clip, clip.clone(), latent, latent.clone())
    assert list(found) == [name for name in ALL if name != "lpips"]
    assert found.pop("vmaf") == pytest.approx(100, abs=3)
    assert found.pop("ssim") == pytest.approx(1)
    assert found == {
        "psnr": PSNR_CAP,
        "feature_distance": 0,
        "temporal_psnr": PSNR_CAP,
        "motion_energy_ratio": 1,
        "latent_error": 0,
    }


def test_each_number_stands_under_its_own_name():
    reference, latent = noise(5, 32, 32, 3), noise(7)
    clip = (reference + 0.2 * noise(5, 32, 32, 3, seed=1)).clamp(0, 1)
    found = measure_clip(clip, reference, 2 * latent, latent, FAST)
    assert found == {
        "psnr": psnr(clip, reference),
        "ssim": ssim(clip, reference),
        "temporal_psnr": temporal_psnr(clip, reference),
        "motion_energy_ratio": motion_energy_ratio(clip, reference),
        "latent_error": pytest.approx(1),
    }
    assert "latent_error" not in measure_clip(clip, reference, metrics=FAST)
    assert list(measure_clip(clip, reference, latent, latent, ["latent_error", "psnr"])) == ["psnr", "latent_error"]


def test_lpips_is_there_where_it_is_available(monkeypatch):
    monkeypatch.setitem(clip_metrics._MEASURES, "lpips", lambda clip, reference: 0.25)
    assert measure_clip(clip_of(0.5), clip_of(0.5), metrics=["lpips"]) == {"lpips": 0.25}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("damaged", [0, 1])
def test_clips_that_are_not_finite_give_nan(bad, damaged):
    clips, latents = [noise(3, 32, 32, 3), noise(3, 32, 32, 3)], [noise(4), noise(4)]
    clips[damaged][1, 2, 3, 0] = latents[damaged][2] = bad
    found = measure_clip(*clips, *latents)
    assert list(found) == [name for name in ALL if name != "lpips"]
    assert all(math.isnan(value) for value in found.values())


def test_a_clip_of_nothing_but_nan_gives_nan():
    found = measure_clip(torch.full((2, 32, 32, 3), math.nan), noise(2, 32, 32, 3))
    assert all(math.isnan(value) for value in found.values())


def test_arrays_and_half_precision_are_clips_too():
    clip = noise(2, 16, 16, 3)
    assert psnr(clip.numpy(), clip) == PSNR_CAP
    assert psnr(clip.bfloat16(), clip) == pytest.approx(psnr(clip.bfloat16().float(), clip))


@pytest.mark.parametrize(
    ("clip", "reference", "text"),
    [
        (clip_of(0.5), clip_of(0.5, 0.5), r"shapes \(1, 16, 16, 3\) and \(2, 16, 16, 3\); do: pass equal shapes"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8), r"pass equal shapes \(frames, height, width, 3\)"),
        (torch.zeros(0, 8, 8, 3), torch.zeros(0, 8, 8, 3), "pass equal shapes"),
        (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.zeros(1, 8, 8, 3), "torch.uint8; do: pass floats"),
        (clip_of(255.0), clip_of(0.5), "values from 255 to 255; do: scale both"),
        (clip_of(0.5), clip_of(-1.0, 1.0)[:1], "values from -1 to -1; do: scale both"),
    ],
)
def test_clips_that_cannot_be_compared(clip, reference, text):
    with pytest.raises(InputError, match=text):
        measure_clip(clip, reference)


def test_unknown_metrics_and_half_a_pair_of_latents_are_refused():
    with pytest.raises(InputError, match="asked: the metrics fid; found: no such names; do: use psnr, ssim"):
        measure_clip(clip_of(0.5), clip_of(0.5), metrics=["psnr", "fid"])
    with pytest.raises(InputError, match="only one of two latents"):
        measure_clip(clip_of(0.5), clip_of(0.5), latent=torch.zeros(2))


def test_a_missing_package_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(UniCPError) as caught:
        ssim(clip_of(0.5), clip_of(0.5))
    expected = (
        'asked: SSIM of two clips; found: the package scikit-image is not installed; do: pip install "unicp[bench]"'
    )
    assert str(caught.value) == expected
