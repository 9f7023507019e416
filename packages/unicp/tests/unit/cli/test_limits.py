"""Videos that no file or memory holds, known by their size."""

from __future__ import annotations

import math

import pytest

from unicp.cli import limits
from unicp.cli.limits import check_clip, check_fps
from unicp.errors import InputError


@pytest.mark.parametrize("fps", [0, -1, 1e-7, 0.0099, 1001, math.inf, math.nan])
def test_what_is_no_frame_rate(fps):
    with pytest.raises(InputError, match="not a frame rate"):
        check_fps(f"--fps {fps}", fps)


@pytest.mark.parametrize("fps", [0.01, 16, 1000])
def test_frame_rates(fps):
    check_fps("", fps)


def test_more_pixels_a_side_than_a_format_has():
    check_clip(".mp4", 1, 16384, 16, None)
    check_clip(".gif", 1, 16385, 16, None)
    for ending, size in ((".mp4", (16385, 16)), (".MP4", (16, 16385)), (".gif", (16, 65536)), ("", (65536, 1))):
        with pytest.raises(InputError, match="pixels a side"):
            check_clip(ending, 1, *size, None)


def test_more_than_memory_holds(monkeypatch):
    monkeypatch.setattr(limits, "memory", lambda: 12_000)
    check_clip(".mp4", 10, 10, 10, None)
    with pytest.raises(InputError, match=r"1.32e-05 GB for its pixels alone, and 1.2e-05 GB of memory"):
        check_clip(".mp4", 11, 10, 10, None)
    monkeypatch.setattr(limits, "memory", lambda: None)
    check_clip(".mp4", 10**9, 10, 10, None)


def test_this_machine_says_how_much_memory_it_has():
    found = limits.memory()
    assert found is None or 2**28 < found < 2**50


def test_longer_than_a_gif_counts():
    check_clip(".mp4", 1000, 8, 8, 1)
    check_clip(".gif", 655, 8, 8, 1)
    with pytest.raises(InputError, match="a GIF holds 655 s"):
        check_clip(".gif", 656, 8, 8, 1)
