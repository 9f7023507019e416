"""Limits of video files and of memory, checked before a video is made."""

from __future__ import annotations

import os

from unicp.errors import InputError

# All players and formats know frames from a millisecond to a hundred seconds.
LEAST_FPS, MOST_FPS = 0.01, 1000.0
# Most pixels of a side, by ending: the limits of x264 and of GIF.
SIDES = {".mp4": 16384, ".gif": 65535}
# GIF counts the time of a picture in 16 bits of hundredths of a second, and equal frames are one picture.
GIF_SECONDS = 655.0
# Pixels between two videos side by side, and the largest height of their labels.
PAIR_GAP, PAIR_HEAD = 8, 64
_BYTES_A_PIXEL = 3 * 4


def check_fps(asked: str, fps: float) -> None:
    """Checks a frame rate, given by the user as `asked`.

    Raises:
        InputError: It is none.
    """
    if not LEAST_FPS <= fps <= MOST_FPS:
        raise InputError(asked, "not a frame rate", f"use a number from {LEAST_FPS:g} to {MOST_FPS:g}")


def check_clip(ending: str, frames: int, height: int, width: int, fps: float | None) -> None:
    """Checks that a file of this ending, and the memory of this machine, can hold a clip.

    Args:
        ending: Such as ".mp4".
        frames, height, width: Of the clip, which is three floats a pixel while it is made.
        fps: Frames a second; `None` = not known yet.

    Raises:
        InputError: They cannot.
    """
    asked, most = f"a video of {frames} frames of {width} x {height}", SIDES.get(ending.lower(), max(SIDES.values()))
    if max(height, width) > most:
        raise InputError(asked, f"{ending} holds at most {most} pixels a side", "make it smaller")
    size, room = frames * height * width * _BYTES_A_PIXEL, memory()
    if room is not None and size > room:
        found = f"{size / 1e9:.3g} GB for its pixels alone, and {room / 1e9:.3g} GB of memory"
        raise InputError(asked, found, "make it smaller or shorter")
    if ending.lower() == ".gif" and fps is not None and frames / fps > GIF_SECONDS:
        raise InputError(f"{asked} at {fps:g} frames a second", f"a GIF holds {GIF_SECONDS:g} s", "use .mp4")


def side_by_side_size(height: int, width: int) -> tuple[int, int]:
    """Least height and width of two videos of this size side by side."""
    return height + PAIR_HEAD, 2 * width + PAIR_GAP


def memory() -> int | None:
    """Bytes of memory of this machine; `None` if it does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
