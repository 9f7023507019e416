"""VMAF of two clips, by the libvmaf of the ffmpeg binary that the package imageio-ffmpeg carries."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unicp.errors import UniCPError
from unicp.files import reason
from unicp_bench.clip_checks import check_side, checked_clips, missing_package

MODEL = "vmaf_v0.6.1"
SMALLEST_SIDE = 24  # libvmaf fails at 16, and what it gives in between says little
_ASKED = "VMAF of two clips"


def vmaf(clip: Any, reference: Any) -> float:
    """VMAF, mean over frames: about 0 (bad) to 100 (as the reference). Relative only, see below.

    The model was fitted to full-HD video seen from a fixed distance, so compare it only between clips of one size. An
    equal clip gets nearly 100, less the stiller it is. Frames are rounded to 8 bits and converted to limited-range
    BT.709; only luma counts. NaN if a value is not finite.
    Source: Li et al., "Toward a practical perceptual video quality metric" (2016); model vmaf_v0.6.1 of libvmaf.

    Args:
        clip, reference: (frames, height, width, 3), floats in [0, 1]. The order matters.

    Raises:
        InputError: Clips do not fit, or frames are below 24x24.
        UniCPError: imageio-ffmpeg, or libvmaf in its binary, is missing. The environment variable IMAGEIO_FFMPEG_EXE
            names another binary.
    """
    first, second, finite = checked_clips(clip, reference)
    check_side(first, SMALLEST_SIDE, _ASKED, "vmaf")
    height, width = first.shape[1:3]
    if not finite:
        return math.nan
    binary = _ffmpeg()
    try:
        with tempfile.TemporaryDirectory() as folder:
            # Files, not pipes: ffmpeg reads its two inputs in turns of its own choosing, which can block two pipes.
            for name, frames in (("clip", first), ("reference", second)):
                _write_raw(frames, Path(folder, name))
            _run(binary, height, width, folder)
            found = json.loads(Path(folder, "vmaf.json").read_text(encoding="utf-8"))
    except OSError as error:
        do = "make room in the folder for temporary files, or leave vmaf out of the metrics"
        raise UniCPError(_ASKED, reason(error), do) from error
    if len(found["frames"]) != len(first):
        raise UniCPError(_ASKED, f"{binary} measured {len(found['frames'])} of {len(first)} frames", "use another one")
    return float(found["pooled_metrics"]["vmaf"]["mean"])


def _write_raw(frames: Tensor, path: Path) -> None:
    with path.open("wb") as file:
        for frame in frames:
            file.write(frame.clamp(0, 1).mul(255).round().to(torch.uint8).contiguous().numpy().tobytes())


def _run(binary: str, height: int, width: int, folder: str) -> None:
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", "24"]
    # 4:4:4, because halved chroma would refuse odd sizes and is not measured anyway.
    convert = "scale=in_range=full:out_range=limited:out_color_matrix=bt709,format=yuv444p"
    # The log is named relative to the working directory: a full path would have to be escaped for the filter.
    measure = f"libvmaf=model=version={MODEL}:log_fmt=json:log_path=vmaf.json:n_threads={torch.get_num_threads()}"
    graph = f"[0:v]{convert}[a];[1:v]{convert}[b];[a][b]{measure}"
    start = [binary, "-nostdin", "-hide_banner", "-loglevel", "error"]
    command = [*start, *raw, "-i", "clip", *raw, "-i", "reference", "-lavfi", graph, "-f", "null", "-"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UniCPError(
            _ASKED, f"{binary} failed ({lines[-1]})", "leave vmaf out of the metrics, or try another ffmpeg"
        )


def _ffmpeg() -> str:
    try:
        import imageio_ffmpeg
    except ImportError:
        raise missing_package(_ASKED, "imageio-ffmpeg") from None
    try:
        binary = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        raise UniCPError(_ASKED, "imageio-ffmpeg has no ffmpeg binary for this machine", "install ffmpeg") from None
    if not _has_libvmaf(binary):
        do = 'pip install "unicp[bench]" and unset IMAGEIO_FFMPEG_EXE, or leave vmaf out of the metrics'
        raise UniCPError(_ASKED, f"{binary} has no libvmaf filter", do)
    return binary


@functools.cache
def _has_libvmaf(binary: str) -> bool:
    try:
        done = subprocess.run([binary, "-hide_banner", "-filters"], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return " libvmaf " in done.stdout
