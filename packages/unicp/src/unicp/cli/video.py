"""Writes videos as H.264 or GIF, whole or not at all; and puts two videos side by side with labels."""

from __future__ import annotations

import math
import os
import struct
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from unicp.cli.limits import PAIR_GAP, PAIR_HEAD, SIDES, check_clip, check_fps
from unicp.errors import InputError, UniCPError
from unicp.files import reason, replacing

Frames = NDArray[np.uint8]

SHORT_SIDE = 256
_GAP, _MARGIN = PAIR_GAP, 6
_BACKGROUND, _INK = (255, 255, 255), (0, 0, 0)
_BT709 = 1


def write_video(frames: Any, path: str | Path, fps: float) -> str:
    """Writes frames as .mp4 or .gif, by the ending of `path`; the file appears only when it is complete.

    Args:
        frames: (T, H, W, 3), bytes or floats in [0, 1]. H.264 has even sizes only, so odd ones get their last row or
            column twice.
        path: Of the file.
        fps: Frames a second.

    Returns:
        The codec: "h264", "gif", or "mpeg4" if PyAV has no H.264 encoder.

    Raises:
        InputError: Shape or ending cannot be used, the format cannot hold the video, or the path cannot be written.
    """
    pictures = _as_bytes(frames)
    check_fps(f"fps {fps}", fps)
    writers: dict[str, Callable[[Frames, Path, float], str]] = {".mp4": _write_mp4, ".gif": _write_gif}
    writer = writers.get(Path(path).suffix.lower())
    if writer is None:
        raise InputError(f"a video in {path}", f"endings {', '.join(writers)}", "use one of them")
    count, height, width, _ = pictures.shape
    check_clip(Path(path).suffix, count, height, width, fps)
    try:
        # `replacing` recognises an encoder's error that comes from a full disk.
        with replacing(path) as part:
            return writer(pictures, part, fps)
    except UniCPError:
        raise
    except (FFmpegError, ValueError, OverflowError, struct.error) as error:
        raise InputError(
            f"a video in {path}", f"the encoder refuses it ({reason(error)})", "use another ending"
        ) from error


def write_or_keep(frames: Any, path: str | Path, fps: float) -> str:
    """As `write_video`, but keeps the frames elsewhere if `path` cannot be written, since they took long to make.

    It tries the same kind of file in the temporary folder, then an array (.npz: frames, fps) beside `path` and there.

    Raises:
        InputError: The path cannot be written; it says where the frames are.
    """
    try:
        return write_video(frames, path, fps)
    except (UniCPError, OSError, MemoryError) as error:
        kept = _kept(_as_bytes(frames), Path(path), fps)
        found = error.found if isinstance(error, UniCPError) else str(error) or type(error).__name__
        do = f"take the video from {kept}" if kept else "free some space and make it again: no other place took it"
        raise InputError(f"to write {path}", found, do) from error


def _kept(frames: Frames, path: Path, fps: float) -> Path | None:
    """Keeps the frames elsewhere; returns where, or None if no place takes them."""
    for folder, ending in ((None, path.suffix), (path.parent, ".npz"), (None, ".npz"), (Path(), ".npz")):
        try:
            number, name = tempfile.mkstemp(ending, "unicp-", folder)
        except (OSError, ValueError):
            continue
        os.close(number)
        try:
            if ending == ".npz":
                with replacing(name) as part, part.open("wb") as file:
                    np.savez_compressed(file, frames=frames, fps=fps)
            else:
                write_video(frames, name, fps)
        except (UniCPError, OSError, MemoryError):
            os.unlink(name)
            continue
        return Path(name).resolve()
    return None


def side_by_side(left: Any, right: Any, labels: tuple[str, str]) -> Frames:
    """Puts two videos of equal shape side by side, with a label above each.

    Args:
        left, right: (T, H, W, 3) as for `write_video`. They are enlarged by a whole factor until the short side has 256
            pixels, if a file can hold that.
        labels: Of the two.

    Raises:
        InputError: Shapes differ or are no videos.
    """
    first, second = _as_bytes(left), _as_bytes(right)
    if first.shape != second.shape:
        raise InputError("two videos side by side", f"shapes {first.shape} and {second.shape}", "give equal shapes")
    fitting = min(
        (SIDES[".mp4"] - PAIR_HEAD) // (2 * max(first.shape[1:3])), math.ceil(SHORT_SIDE / min(first.shape[1:3]))
    )
    factor = max(1, fitting)
    height, width = first.shape[1] * factor, first.shape[2] * factor
    band = _label_band(labels, width)
    canvas = np.full((len(first), band.shape[0] + height, 2 * width + _GAP, 3), 255, np.uint8)
    canvas[:, : band.shape[0]] = band
    for index, (one, other) in enumerate(zip(first, second, strict=True)):
        canvas[index, band.shape[0] :, :width] = _enlarge(one, factor)
        canvas[index, band.shape[0] :, width + _GAP :] = _enlarge(other, factor)
    return canvas


def _as_bytes(frames: Any) -> Frames:
    array = np.asarray(frames)
    if array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise InputError("a video", f"an array of shape {array.shape}", "pass frames as (T, H, W, 3)")
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError("a video", f"an array of {array.dtype}", "pass bytes, or floats in [0, 1]")
    result = np.empty(array.shape, np.uint8)
    for index, frame in enumerate(array):
        result[index] = np.rint(np.clip(np.nan_to_num(frame.astype(np.float32)), 0.0, 1.0) * 255.0)
    return result


def _write_mp4(frames: Frames, part: Path, fps: float) -> str:
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    padding = ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0))
    frames = np.pad(frames, padding, mode="edge")
    with av.open(str(part), "w", format="mp4") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "14"}
        else:
            stream.bit_rate = max(1_000_000, frames[0].size * round(fps))
        # Without the tag, players guess the matrix from the size and colours shift.
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace="ITU709")))
        container.mux(stream.encode())
    return "h264" if codec == "libx264" else codec


def _write_gif(frames: Frames, part: Path, fps: float) -> str:
    pictures = [Image.fromarray(frame) for frame in frames]
    # GIF counts in hundredths of a second, and viewers slow down what is shorter than two.
    milliseconds = max(20, round(100 / fps) * 10)
    pictures[0].save(
        part, format="GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, optimize=False
    )
    return "gif"


def _enlarge(frame: Frames, factor: int) -> Frames:
    if factor == 1:
        return frame
    size = (frame.shape[1] * factor, frame.shape[0] * factor)
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))


def _label_band(labels: tuple[str, str], width: int) -> Frames:
    """The strip above two videos of this width, with both labels as large as they fit."""
    size = max(14, min(48, width // 16))
    while size > 6 and max(_font(size).getlength(label) for label in labels) > width - 2 * _MARGIN:
        size -= 1
    font = _font(size)
    band = Image.new("RGB", (2 * width + _GAP, size + 2 * _MARGIN + 2), _BACKGROUND)
    draw = ImageDraw.Draw(band)
    for index, label in enumerate(labels):
        draw.text((index * (width + _GAP) + _MARGIN, _MARGIN), label, fill=_INK, font=font)
    return np.asarray(band)


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
