"""The test-bed: a small text-to-video pipeline of real diffusers classes, trained here and shipped with the package."""

from __future__ import annotations

from pathlib import Path


def folder() -> Path:
    """The folder that `DiffusionPipeline.from_pretrained` loads."""
    return Path(__file__).parent / "weights"
