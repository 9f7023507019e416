"""Whether a clip shows what its prompt asks for, for the prompts of the test-beds."""

from __future__ import annotations

import functools
from pathlib import Path

from torch import Tensor

from unicp_testbeds import clips, film_data
from unicp_testbeds.scorer import load_scorer, score_clips


def adherence(clip: Tensor, prompt: str) -> dict[str, float]:
    """1 or 0 for each attribute of the prompt; {} for prompts and sizes of no test-bed.

    clip: (frames, height, width, 3), floats in [0, 1]. Glyphs are read by the classifier, a film's light, colour and
    motion are measured as they were for its captions.
    """
    size = tuple(clip.shape[1:3])
    if size == (clips.HEIGHT, clips.WIDTH) and prompt in _scenes():
        right = score_clips(clip[None], [_scenes()[prompt]], load_scorer())
        return {name: float(values[0]) for name, values in right.items()}
    if size == (film_data.HEIGHT, film_data.WIDTH) and prompt in _film_prompts():
        found, asked = film_data.describe(clip), film_data.attributes_of(prompt)
        return {name: float(found[name] == asked[name]) for name in asked}
    return {}


def prompts_of(folder: Path) -> tuple[str, ...]:
    """The prompts that a test-bed is measured on: those of its `prompts.txt`, else the held-out captions of glyphs."""
    path = folder / film_data.PROMPTS_FILE
    if path.is_file():
        return tuple(path.read_text(encoding="utf-8").splitlines())
    return tuple(scene.caption for scene in clips.held_out_scenes())


@functools.cache
def _scenes() -> dict[str, clips.Scene]:
    return {scene.caption: scene for scene in clips.all_scenes()}


@functools.cache
def _film_prompts() -> frozenset[str]:
    return frozenset(film_data.prompts())
