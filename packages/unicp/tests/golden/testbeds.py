"""Golden cases of the trained test-beds: one clip each, of few steps, where errors are those of a real model."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

import unicp
from tests.golden.case import Case, joined
from unicp_testbeds import folder

_GLYPH = "a red star moving left on a striped background"
CALLS: dict[str, dict[str, Any]] = {
    "glyphs": {"prompt": _GLYPH, "num_frames": 9, "height": 64, "width": 96, "max_sequence_length": 32},
    "latte": {"prompt": _GLYPH, "video_length": 16, "height": 64, "width": 96, "clean_caption": False},
    "film": {"prompt": "a dark brown scene with fast motion", "num_frames": 9, "height": 64, "width": 96},
}
STEPS = 12
KINDS: dict[str, dict[str, Any]] = {
    **{name: {"settings": name} for name in ("paper", "quality", "balanced", "fast")},
    "blocks": {"settings": unicp.Settings(level="block", tolerance=0.4, store_factor=64.0)},
    "target": {"target": "psnr>=25"},
    "target, speed": {"target": "speedup>=1.5"},
}


@functools.cache
def _built(name: str) -> Any:
    pipe: Any = DiffusionPipeline.from_pretrained(str(folder(name)), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _case(kind: str, options: dict[str, Any], name: str) -> Case:
    def call(pipe: Any) -> torch.Tensor:
        given = CALLS[name] | {"guidance_scale": 4.0, "num_inference_steps": STEPS, "output_type": "latent"}
        return joined([pipe(generator=torch.Generator().manual_seed(0), **given).frames])

    return Case("testbeds", kind, name, name, functools.partial(_built, name), call, options, slow=True)


CASES = [_case(kind, options, name) for kind, options in KINDS.items() for name in CALLS]
