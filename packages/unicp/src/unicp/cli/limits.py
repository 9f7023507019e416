"""What no video file can hold, and no memory: known before a video is made, so that none is made in vain."""

from __future__ import annotations

import os

from unicp.errors import InputError

# A frame a hundred seconds long is the slowest that all players and formats know, a millisecond the fastest.
LEAST_FPS, MOST_FPS = 0.01, 1000.0
# Most pixels of a side, by ending: the limits of H.264 as x264 has it, and of GIF.
SIDES = {".mp4": 16384, ".gif": 65535}
# GIF counts the time of a picture in 16 bits of hundredths of a second, and frames that are alike are one picture.
GIF_SECONDS = 655.0
# Between two videos beside each other, and the most that the labels above them take.
PAIR_GAP, PAIR_HEAD = 8, 64
_BYTES_A_PIXEL = 3 * 4


def check_fps(asked: str, fps: float) -> None:
    """Raises InputError for what is no frame rate. asked: how the user gave it."""
    if not LEAST_FPS <= fps <= MOST_FPS:
        raise InputError(asked, "not a frame rate", f"use a number from {LEAST_FPS:g} to {MOST_FPS:g}")


def check_clip(ending: str, frames: int, height: int, width: int, fps: float | None) -> None:
    """Raises InputError for a clip that a file of this ending cannot hold, or that no memory of this machine can.

    A clip is floats of three colours while it is made. fps: None = not known yet.
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
    """Least height and width of two videos of this size beside each other, as `unicp.cli.video` puts them."""
    return height + PAIR_HEAD, 2 * width + PAIR_GAP


def memory() -> int | None:
    """Bytes of memory of this machine; None where it does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
