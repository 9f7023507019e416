"""Captioned synthetic clips: one coloured glyph moving over a patterned background.

Every caption is exact by construction ("a red star moving left on a striped background"), so what a
generated clip shows can be scored, not only compared. Eight simple glyphs are used instead of
handwritten digits: a first run on two cores reached colour and direction but not digit identity.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

HEIGHT, WIDTH = 64, 96
LONG_FRAMES, SHORT_FRAMES = 41, 9

GLYPHS = ("circle", "square", "triangle", "cross", "star", "ring", "diamond", "heart")
COLOURS = {
    "red": (1.0, 0.12, 0.10),
    "green": (0.12, 0.90, 0.20),
    "blue": (0.20, 0.35, 1.0),
    "yellow": (1.0, 0.92, 0.10),
    "white": (1.0, 1.0, 1.0),
    "purple": (0.85, 0.20, 0.95),
}
MOTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
BACKGROUNDS = ("plain", "striped", "checkered", "dotted")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "glyph": GLYPHS,
    "colour": tuple(COLOURS),
    "motion": tuple(MOTIONS),
    "background": BACKGROUNDS,
}
HELD_OUT_PROMPTS = 64


@dataclass(frozen=True)
class Scene:
    """What a caption says, as indices into `ATTRIBUTES`."""

    glyph: int
    colour: int
    motion: int
    background: int

    @property
    def caption(self) -> str:
        """The sentence that says the four attributes and nothing else."""
        return (
            f"a {ATTRIBUTES['colour'][self.colour]} {GLYPHS[self.glyph]} moving "
            f"{ATTRIBUTES['motion'][self.motion]} on a {BACKGROUNDS[self.background]} background"
        )


def all_scenes() -> list[Scene]:
    """All 768 scenes in one fixed shuffled order; the first `HELD_OUT_PROMPTS` are never trained on."""
    scenes = [Scene(*i) for i in itertools.product(*(range(len(v)) for v in ATTRIBUTES.values()))]
    order = torch.randperm(len(scenes), generator=torch.Generator().manual_seed(0)).tolist()
    return [scenes[i] for i in order]


def held_out_scenes() -> list[Scene]:
    """The 64 scenes whose combination of attributes never occurs in training."""
    return all_scenes()[:HELD_OUT_PROMPTS]


def training_scenes() -> list[Scene]:
    """The 704 scenes used for training."""
    return all_scenes()[HELD_OUT_PROMPTS:]


def sample_clips(
    scenes: list[Scene], frames: int, generator: torch.Generator, pick: Sequence[int] | None = None
) -> Tensor:
    """Draws one clip per scene with random size, speed, path, background colours and phase.

    Returns float32 of shape (len(scenes), 3, frames, 64, 96) in [-1, 1]. With `pick`, only those frames of the same
    clips are drawn, in that order, and the third dimension is len(pick).
    """
    count = len(scenes)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    direction = torch.tensor([list(MOTIONS.values())[s.motion] for s in scenes])  # (B, 2): x, y
    horizontal = direction[:, 0].abs()
    size = uniform(24.0, 29.0)
    speed = horizontal * uniform(0.8, 1.1) + (1 - horizontal) * uniform(0.6, 0.8)  # pixels per frame
    half_travel = direction.abs() * (speed * (frames - 1) / 2)[:, None]
    extent = torch.tensor([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
    room = (extent - 13.0 - half_travel).clamp(min=0.0)
    middle = extent + uniform(-1.0, 1.0, 2) * room
    time = torch.arange(frames) - (frames - 1) / 2
    time = time if pick is None else time[list(pick)]
    centre = middle[:, None] + direction[:, None] * speed[:, None, None] * time[None, :, None]  # (B, T, 2)

    y, x = torch.meshgrid(torch.arange(HEIGHT).float(), torch.arange(WIDTH).float(), indexing="ij")
    half = size[:, None, None, None] / 2
    u = (x - centre[..., 0, None, None]) / half
    v = (y - centre[..., 1, None, None]) / half
    alpha = torch.empty_like(u)
    for index, scene in enumerate(scenes):
        distance = _signed_distance(GLYPHS[scene.glyph], u[index], v[index])
        alpha[index] = (0.5 - distance * half[index]).clamp(0, 1)

    dark = uniform(0.05, 0.30, 3)
    light = dark + 0.22 + uniform(0.0, 0.12, 1)
    phase = uniform(0.0, 12.0, 2)
    pattern = torch.stack([_pattern(BACKGROUNDS[s.background], x + p[0], y + p[1]) for s, p in zip(scenes, phase)])
    ground = dark[:, :, None, None] + (light - dark)[:, :, None, None] * pattern[:, None]  # (B, 3, H, W)
    paint = torch.tensor([list(COLOURS.values())[s.colour] for s in scenes])
    mask = alpha[:, None]
    clip = ground[:, :, None] * (1 - mask) + paint[:, :, None, None, None] * mask
    return clip * 2 - 1


def _pattern(name: str, x: Tensor, y: Tensor) -> Tensor:
    """Background weight in [0, 1] with a period of 12 pixels."""
    wave_x, wave_y = torch.sin(x * (2 * math.pi / 12)), torch.sin(y * (2 * math.pi / 12))
    if name == "plain":
        return torch.zeros_like(x)
    if name == "striped":
        return torch.sigmoid(6 * wave_x)
    if name == "checkered":
        return torch.sigmoid(9 * wave_x * wave_y)
    return torch.sigmoid(7 * (wave_x + wave_y - 0.9))


def _signed_distance(name: str, u: Tensor, v: Tensor) -> Tensor:
    """Distance to the outline in units of half the glyph's size (negative inside); v points down."""
    a, b = u.abs(), v.abs()
    radius = torch.hypot(u, v)
    if name == "circle":
        return radius - 0.85
    if name == "ring":
        return (radius - 0.66).abs() - 0.2
    if name == "square":
        return torch.maximum(a, b) - 0.76
    if name == "diamond":
        return (a + b - 1.02) * 0.7071
    if name == "cross":
        return torch.minimum(torch.maximum(a - 0.92, b - 0.28), torch.maximum(a - 0.28, b - 0.92))
    if name == "triangle":
        return torch.maximum(v - 0.65, 0.87 * a - 0.5 * v - 0.45)
    if name == "star":
        sector = 2 * math.pi / 5
        angle = (torch.remainder(torch.atan2(u, -v) + sector / 2, sector) - sector / 2).abs()
        px, py = radius * torch.cos(angle), radius * torch.sin(angle)
        inner_x, inner_y = 0.40 * math.cos(sector / 2), 0.40 * math.sin(sector / 2)
        normal_x, normal_y = inner_y, 0.98 - inner_x
        length = math.hypot(normal_x, normal_y)
        return ((px - 0.98) * normal_x + py * normal_y) / length
    lobes = torch.hypot(a - 0.4, v + 0.3) - 0.45
    point = torch.maximum(0.75 * a + 0.66 * v - 0.552, -v - 0.1)
    filler = torch.maximum(a - 0.7, (v + 0.1).abs() - 0.2)
    return torch.minimum(torch.minimum(lobes, point), filler)
