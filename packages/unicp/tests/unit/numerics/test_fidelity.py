"""PSNR with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from unicp.errors import InputError
from unicp.numerics.fidelity import psnr


def test_equal_videos_are_infinitely_close():
    video = torch.rand(3, 4, 4, 3)
    result = psnr(video, video.clone())
    assert result.frames == [math.inf] * 3
    assert result.total == result.worst == math.inf


def test_known_answer_per_frame_and_in_total():
    a, b = np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4, 3))
    b[0] += 0.1
    b[1] += 0.01
    frames, total = psnr(a, b)
    assert frames == pytest.approx([20.0, 40.0])
    assert total == pytest.approx(-10 * math.log10((0.01 + 0.0001) / 2))
    assert psnr(a, b).worst == pytest.approx(20.0)


def test_bytes_do_not_wrap_around_and_peak_scales():
    a, b = np.full((1, 2, 2), 255, np.uint8), np.zeros((1, 2, 2), np.uint8)
    assert psnr(a, b, peak=255).total == pytest.approx(0.0)
    assert psnr(b, a, peak=255).total == pytest.approx(0.0)


def test_half_precision_is_measured_in_full():
    a, b = torch.zeros(1, 8, dtype=torch.float16), torch.full((1, 8), 1e-4, dtype=torch.float16)
    assert psnr(a, b).total == pytest.approx(80.0, abs=0.01)


def test_nan_stays_visible():
    a = torch.zeros(2, 4)
    b = a.clone()
    b[1, 0] = math.nan
    result = psnr(a, b)
    assert result.frames[0] == math.inf
    assert math.isnan(result.frames[1]) and math.isnan(result.total) and math.isnan(result.worst)
    b[1, 0] = math.inf
    assert psnr(a, b).total == -math.inf


@pytest.mark.parametrize("shapes", [((2, 3), (3, 2)), ((), ()), ((0, 4), (0, 4)), ((2, 0), (2, 0))])
def test_shapes_that_cannot_be_compared(shapes):
    with pytest.raises(InputError, match="equal shapes"):
        psnr(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


@pytest.mark.parametrize("peak", [0, -1, math.nan, math.inf])
def test_bad_peak(peak):
    with pytest.raises(InputError, match="peak"):
        psnr(torch.zeros(1, 2), torch.ones(1, 2), peak)
