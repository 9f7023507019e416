"""Whether a clip shows what its prompt asks for, for the prompts of the test-beds."""

from __future__ import annotations

import functools
from pathlib import Path

from torch import Tensor

from unicp_testbeds import clips, film_data
from unicp_testbeds.scorer import load_scorer, score_clips


def adherence(clip: Tensor, prompt: str) -> dict[str, float]:
    """Whether a clip shows each attribute of its prompt.

    A classifier reads glyphs. Light, colour and motion of a film are measured as for its captions.

    Args:
        clip: (frames, height, width, 3), floats in [0, 1].
        prompt: Of the clip.

    Returns:
        1 or 0 by attribute; {} for prompts and sizes of no test-bed.
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
    """Prompts on which a test-bed is measured: those of its `prompts.txt`, else the held-out captions of glyphs."""
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
