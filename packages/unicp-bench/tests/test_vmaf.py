"""VMAF: order, limits, and what happens without a usable ffmpeg."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from unicp.errors import InputError, UniCPError
from unicp_bench.vmaf import vmaf


def moving_waves(frames: int = 6, height: int = 48, width: int = 64) -> torch.Tensor:
    """A smooth pattern that drifts to the left."""
    x, y = torch.arange(width + frames) / 5, torch.arange(height)[:, None] / 7
    pattern = 0.5 + 0.2 * torch.sin(x + 2 * y) + 0.2 * torch.sin(3 * x - y)
    return torch.stack([pattern[:, t : t + width] for t in range(frames)])[..., None].expand(-1, -1, -1, 3)


def noisy(clip: torch.Tensor, strength: float) -> torch.Tensor:
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))
    return (clip + strength * noise).clamp(0, 1)


def script(path: Path, text: str) -> str:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def test_an_equal_clip_gets_nearly_100_and_noise_lowers_it():
    clip = moving_waves()
    values = [vmaf(noisy(clip, strength), clip) for strength in (0, 0.05, 0.1, 0.2)]
    assert values[0] == pytest.approx(100, abs=1)
    assert values == sorted(values, reverse=True)
    assert values[0] - values[-1] > 20


def test_it_is_the_number_of_the_pinned_model_and_binary():
    # Measured with imageio-ffmpeg 0.6.0; with the two clips exchanged it is 77.8.
    assert vmaf(noisy(moving_waves(), 0.1), moving_waves()) == pytest.approx(85.8, abs=0.5)


def test_frozen_motion_lowers_it():
    clip = moving_waves()
    assert vmaf(clip[:1].expand_as(clip), clip) < 60


def test_what_eight_bits_cannot_show_does_not_count():
    clip = (moving_waves() * 255).round() / 255
    assert vmaf(clip + 0.4 / 255, clip) == vmaf(clip, clip)
    assert vmaf(clip + 0.6 / 255, clip) == vmaf(clip + 1 / 255, clip) != vmaf(clip, clip)


@pytest.mark.parametrize("size", [(1, 24, 24), (3, 25, 31)])
def test_the_smallest_frames_odd_sides_and_single_frames_have_a_number(size):
    clip = moving_waves(*size)
    assert vmaf(clip, clip) == pytest.approx(100, abs=4)


@pytest.mark.parametrize("size", [(23, 64), (64, 23)])
def test_smaller_frames_are_refused(size):
    clip = moving_waves(2, *size)
    with pytest.raises(InputError, match=f"found: frames of {size[0]}x{size[1]}; do: use frames of at least 24x24"):
        vmaf(clip, clip)


def test_a_clip_that_is_not_finite_has_none():
    clip = moving_waves().clone()
    clip[0, 0, 0, 0] = math.nan
    assert math.isnan(vmaf(clip, moving_waves()))


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UniCPError, match=r'imageio-ffmpeg is not installed; do: pip install "unicp\[bench\]"$'):
        vmaf(moving_waves(), moving_waves())


def test_an_ffmpeg_without_libvmaf(monkeypatch, tmp_path):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", script(tmp_path / "plain", "echo ' ... ssim VV->V'\n"))
    with pytest.raises(UniCPError, match=r"plain has no libvmaf filter; do: pip install") as caught:
        vmaf(moving_waves(), moving_waves())
    assert "\n" not in str(caught.value)


def test_an_ffmpeg_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "absent"))
    with pytest.raises(UniCPError, match="absent has no libvmaf filter"):
        vmaf(moving_waves(), moving_waves())


def test_an_ffmpeg_that_fails_says_why(monkeypatch, tmp_path):
    text = "case \"$*\" in *-filters*) echo ' ... libvmaf VV->V';; *) echo one >&2; echo boom >&2; exit 3;; esac\n"
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", script(tmp_path / "broken", text))
    with pytest.raises(UniCPError, match=r"broken failed \(boom\)") as caught:
        vmaf(moving_waves(), moving_waves())
    assert "\n" not in str(caught.value)


def test_an_ffmpeg_that_drops_frames_is_not_believed(monkeypatch, tmp_path):
    log = '{"frames": [{}], "pooled_metrics": {"vmaf": {"mean": 90.0}}}'
    text = f"case \"$*\" in *-filters*) echo ' ... libvmaf VV->V';; *) echo '{log}' > vmaf.json;; esac\n"
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", script(tmp_path / "hasty", text))
    with pytest.raises(UniCPError, match="measured 1 of 6 frames"):
        vmaf(moving_waves(), moving_waves())
    assert vmaf(moving_waves(1), moving_waves(1)) == 90.0
