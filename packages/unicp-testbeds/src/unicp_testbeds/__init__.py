"""The test-beds: small text-to-video pipelines of real diffusers classes, trained here and shipped with the package."""

from __future__ import annotations

from pathlib import Path

DEFAULT = "glyphs"
# glyphs: WanPipeline on drawn clips. latte: LattePipeline on the same. film: CogVideoXPipeline on a real film.
NAMES = (DEFAULT, "latte", "film")


def folder(name: str = DEFAULT) -> Path:
    """The folder of a test-bed (one of NAMES), which `DiffusionPipeline.from_pretrained` loads."""
    return Path(__file__).parent / "weights" / name
