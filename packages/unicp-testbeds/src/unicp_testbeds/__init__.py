"""The test-beds: small pipelines of real diffusers classes, trained here and shipped with the package."""

from __future__ import annotations

from pathlib import Path

DEFAULT = "glyphs"
# glyphs: WanPipeline on drawn clips. latte: LattePipeline on the same. film: CogVideoXPipeline on a real film.
FIRST = (DEFAULT, "latte", "film")
# Smaller ones, different in what matters to a cache (`unicp_testbeds.beds`). letters: HunyuanVideo. ripples: LTX video.
# stickers: SD3, pictures. chimes: Stable Audio, sounds.
SMALL = ("letters", "ripples", "stickers", "chimes")
NAMES = FIRST + SMALL


def folder(name: str = DEFAULT) -> Path:
    """The folder of a test-bed (one of NAMES), which `DiffusionPipeline.from_pretrained` loads."""
    return Path(__file__).parent / "weights" / name
