"""What the small test-beds show: drawn worlds whose captions are exact, and their captions.

A world is a list of captions, each of which says the values of a few attributes, and a way to draw them with whatever
a caption leaves open (places, phases, speeds) at random. Some captions are held out: models are measured on them.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy
import torch
from torch import Tensor

from unicp_testbeds import film_data

HELD_OUT = 64
FILM_FORM = "a {} {} scene with {} motion"
PAINTS: dict[str, tuple[float, float, float]] = {
    "red": (0.9, 0.15, 0.1),
    "green": (0.1, 0.75, 0.25),
    "blue": (0.15, 0.3, 0.95),
    "yellow": (0.95, 0.85, 0.1),
    "white": (0.95, 0.95, 0.95),
    "black": (0.05, 0.05, 0.08),
}
WAYS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}

# One caption's values -> one drawn item, (C, T, H, W), (C, H, W) or (C, N) in [-1, 1].
Draw = Callable[[Sequence[str], torch.Generator], Tensor]


@dataclass(frozen=True)
class World:
    """Captions and how to draw them.

    Attributes:
        form: The caption, with a place for each attribute.
        attributes: Values of each.
        draw: Draws the values of one caption.
        is_sense: Which values may stand together.
        held_out_count: How many captions no training sees. 0: there are too few to hold any out, and pictures are
            what is not seen.
    """

    form: str
    attributes: dict[str, tuple[str, ...]]
    draw: Draw
    is_sense: Callable[[Sequence[str]], bool] = field(default=lambda values: True)
    held_out_count: int = HELD_OUT

    @functools.cached_property
    def _order(self) -> list[tuple[str, ...]]:
        every = [values for values in itertools.product(*self.attributes.values()) if self.is_sense(values)]
        order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0)).tolist()
        return [every[place] for place in order]

    @property
    def held_out(self) -> list[tuple[str, ...]]:
        """Values of captions that no training sees; all, if none is held out."""
        return self._order[: self.held_out_count or None]

    @property
    def training(self) -> list[tuple[str, ...]]:
        """Values of all other captions."""
        return self._order[self.held_out_count :]

    def caption(self, values: Sequence[str]) -> str:
        """The caption that says these values."""
        return self.form.format(*values)

    @property
    def words(self) -> tuple[str, ...]:
        """All words of captions, each once."""
        fixed = self.form.replace("{}", " ").split()
        return tuple(dict.fromkeys([*fixed, *(word for values in self.attributes.values() for word in values)]))


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    return y, x


def _paint(mask: Tensor, colour: str, ground: Tensor) -> Tensor:
    """Lays a colour over (…, 3, H, W) where the mask (…, H, W) is 1."""
    mask = mask.unsqueeze(-3)
    return ground * (1 - mask) + torch.tensor(PAINTS[colour]).view(3, 1, 1) * mask


def ripples(frames: int, height: int, width: int) -> World:
    """Waves of two colours that fill the frame and drift, under a swell of light."""

    def draw(values: Sequence[str], generator: torch.Generator) -> Tensor:
        size, one, other, way, pace = values
        y, x = _grid(height, width)
        time = torch.arange(frames).float()[:, None, None]
        period = {"fine": 9.0, "broad": 20.0}[size] * _uniform(0.9, 1.1, generator)
        speed = {"slowly": 0.35, "quickly": 1.0}[pace] * _uniform(0.85, 1.15, generator)
        dx, dy = WAYS[way]
        bend, turn = _uniform(0.2, 0.5, generator), _uniform(0, 2 * math.pi, generator)
        along = dx * x + dy * y - speed * time
        across = dy * x + dx * y
        wave = torch.sin(2 * math.pi * along / period + bend * torch.sin(2 * math.pi * across / 31 + turn))
        crossing = torch.sin(2 * math.pi * (across + 0.4 * speed * time) / (1.7 * period) + turn)
        share = torch.sigmoid(3 * (wave + 0.5 * crossing))
        clip = _paint(share, one, torch.tensor(PAINTS[other]).view(3, 1, 1).expand(frames, 3, height, width))
        swell = 0.85 + 0.15 * torch.sin(2 * math.pi * (x + y) / 60 + 0.12 * time + turn)
        return (clip * swell[:, None]).transpose(0, 1) * 2 - 1

    colours = tuple(PAINTS)
    attributes = {
        "size": ("fine", "broad"),
        "one": colours,
        "other": colours,
        "way": tuple(WAYS),
        "pace": ("slowly", "quickly"),
    }
    form = "{} ripples of {} and {} drifting {} {}"
    return World(form, attributes, draw, lambda values: values[1] != values[2])


@functools.cache
def _letter(name: str, size: int) -> Tensor:
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("L", (size, size))
    font = ImageFont.load_default(int(size * 0.9))
    ImageDraw.Draw(picture).text((size / 2, size / 2), name, fill=255, font=font, anchor="mm")
    return torch.from_numpy(numpy.asarray(picture).copy()).float() / 255


def letters(frames: int, height: int, width: int) -> World:
    """A letter that goes back and forth over a still ground."""

    def draw(values: Sequence[str], generator: torch.Generator) -> Tensor:
        name, colour, way, ground = values
        size = 26
        glyph = _letter(name.upper(), size)
        y, x = _grid(height, width)
        base = torch.tensor(PAINTS[ground]).view(3, 1, 1) * _uniform(0.6, 0.8, generator)
        base = base + 0.12 * ((x / width + y / height) / 2)
        dx, dy = WAYS[way]
        room_x, room_y = (width - size) / 2, (height - size) / 2
        speed, start = _uniform(1.6, 2.4, generator), _uniform(-0.6, 0.2, generator)
        found = []
        for frame in range(frames):
            # Back and forth: a triangle wave in [-1, 1].
            place = (start + speed * frame / room_x + 1) % 4
            bounce = place - 1 if place <= 2 else 3 - place
            left = (width - size) / 2 + dx * bounce * room_x + (0 if dx else _edge(start, room_x))
            top = (height - size) / 2 + dy * bounce * room_y + (0 if dy else _edge(start, room_y))
            shifted_x, shifted_y = 2 * (x - left) / (size - 1) - 1, 2 * (y - top) / (size - 1) - 1
            places = torch.stack([shifted_x, shifted_y], -1)[None]
            mask = torch.nn.functional.grid_sample(glyph[None, None], places, align_corners=True)[0, 0]
            found.append(_paint(mask, colour, base.expand(3, height, width)))
        return torch.stack(found, dim=1) * 2 - 1

    attributes = {
        "name": tuple("aehkmrstwx"),
        "colour": tuple(PAINTS),
        "way": tuple(WAYS),
        "ground": tuple(PAINTS),
    }
    return World("a letter {} in {} going {} over {}", attributes, draw, lambda values: values[1] != values[3])


def _edge(start: float, room: float) -> float:
    return math.sin(37 * start) * room * 0.8


def stickers(height: int, width: int) -> World:
    """Two shapes side by side on a patterned ground."""

    def shape(name: str, u: Tensor, v: Tensor) -> Tensor:
        radius, a, b = torch.hypot(u, v), u.abs(), v.abs()
        return {
            "disc": radius - 0.9,
            "ring": (radius - 0.7).abs() - 0.2,
            "box": torch.maximum(a, b) - 0.8,
            "gem": (a + b - 1.05) * 0.7071,
            "plus": torch.minimum(torch.maximum(a - 0.9, b - 0.28), torch.maximum(a - 0.28, b - 0.9)),
        }[name]

    def draw(values: Sequence[str], generator: torch.Generator) -> Tensor:
        colour, name, other_colour, other_name, pattern = values
        y, x = _grid(height, width)
        phase, period = _uniform(0, 8, generator), 10.0
        wave_x, wave_y = (torch.sin(2 * math.pi * (axis + phase) / period) for axis in (x, y))
        weight = {"plain": 0 * x, "striped": torch.sigmoid(6 * wave_x), "checked": torch.sigmoid(9 * wave_x * wave_y)}
        dark = torch.tensor([_uniform(0.3, 0.5, generator) for _ in range(3)]).view(3, 1, 1)
        picture = dark + 0.25 * weight[pattern]
        for place, (paint, form) in enumerate(((colour, name), (other_colour, other_name))):
            half = width * _uniform(0.17, 0.21, generator)
            middle = width * (0.27 + 0.46 * place) + _uniform(-2, 2, generator)
            level = height / 2 + _uniform(-0.15, 0.15, generator) * height
            distance = shape(form, (x - middle) / half, (y - level) / half)
            picture = _paint((0.5 - distance * half).clamp(0, 1), paint, picture)
        return picture * 2 - 1

    names, colours = ("disc", "ring", "box", "gem", "plus"), tuple(PAINTS)
    attributes = {
        "colour": colours,
        "name": names,
        "other colour": colours,
        "other name": names,
        "pattern": ("plain", "striped", "checked"),
    }
    return World("a {} {} beside a {} {} on {} ground", attributes, draw)


_SKIES = {"dawn": ((0.95, 0.6, 0.45), (0.45, 0.4, 0.7)), "noon": ((0.75, 0.88, 0.98), (0.25, 0.5, 0.9))} | {
    "dusk": ((0.9, 0.4, 0.2), (0.2, 0.12, 0.35)),
    "night": ((0.15, 0.18, 0.35), (0.02, 0.02, 0.08)),
}


def hills(height: int, width: int) -> World:
    """Rows of hills under a sky, with a sun or a moon, and speckled ground: detail at every scale."""

    def draw(values: Sequence[str], generator: torch.Generator) -> Tensor:
        form, cover, side, hour = values
        y, x = _grid(height, width)
        low, high = (torch.tensor(colour).view(3, 1, 1) for colour in _SKIES[hour])
        picture = low + (high - low) * (1 - y / height)
        middle = {"left": 0.25, "middle": 0.5, "right": 0.75}[side] * width + _uniform(-3, 3, generator)
        disc = (4.5 - torch.hypot(x - middle, y - height * _uniform(0.15, 0.3, generator))).clamp(0, 1)
        picture = _paint(disc, "white" if hour == "night" else "yellow", picture)
        paint = {"grass": (0.25, 0.55, 0.2), "sand": (0.8, 0.68, 0.4), "snow": (0.9, 0.93, 0.98), "rock": (0.4,) * 3}
        light = {"dawn": 0.75, "noon": 1.0, "dusk": 0.6, "night": 0.3}[hour]
        speck = torch.randn(height, width, generator=generator)
        rough = {"rolling": (0.1, 0.03, 0.0), "steep": (0.2, 0.08, 0.03), "flat": (0.03, 0.01, 0.0)}[form]
        for row in range(3):
            edge = height * (0.45 + 0.17 * row)
            for size, wave in zip(rough, (48.0, 19.0, 7.0)):
                turn = _uniform(0, 2 * math.pi, generator)
                edge = edge + size * height * torch.sin(2 * math.pi * x / (wave * (1 + 0.2 * row)) + turn)
            mask = (y - edge).clamp(0, 1)
            ground = torch.tensor(paint[cover]).view(3, 1, 1) * light * (0.65 + 0.17 * row) + 0.03 * speck
            picture = picture * (1 - mask) + ground * mask
        return picture.clamp(0, 1) * 2 - 1

    attributes = {
        "form": ("rolling", "steep", "flat"),
        "cover": ("grass", "sand", "snow", "rock"),
        "side": ("left", "middle", "right"),
        "hour": tuple(_SKIES),
    }
    return World("{} hills of {} with light on the {} at {}", attributes, draw)


def chimes(samples: int, rate: int) -> World:
    """Two notes one after the other, with overtones, decay and a beat: one row of sound."""
    notes = {"low": 55.0, "deep": 82.5, "middle": 123.8, "bright": 185.6, "high": 278.4}
    overtones = {"soft": (1.0, 0.15, 0.05), "hollow": (1.0, 0.0, 0.5, 0.0, 0.25), "sharp": (1.0, 0.7, 0.5, 0.4)}

    def draw(values: Sequence[str], generator: torch.Generator) -> Tensor:
        timbre, first, second, decay, beat = values
        time = torch.arange(samples).float() / rate
        sound = torch.zeros(samples)
        for place, name in enumerate((first, second)):
            start = (0.05 + 0.5 * place) * samples / rate * _uniform(0.9, 1.1, generator)
            pitch = notes[name] * _uniform(0.98, 1.02, generator)
            after = (time - start).clamp(min=0)
            rise = 1 - torch.exp(-after / 0.01)
            fall = torch.exp(-after / ({"short": 0.15, "long": 0.6}[decay] * _uniform(0.9, 1.1, generator)))
            shake = 1 + {"steady": 0.0, "trembling": 0.5}[beat] * torch.sin(2 * math.pi * 9 * after)
            for number, size in enumerate(overtones[timbre], 1):
                if number * pitch < rate / 2:
                    turn = _uniform(0, 2 * math.pi, generator)
                    sound = sound + size * rise * fall * shake * torch.sin(2 * math.pi * number * pitch * after + turn)
        return (0.4 * sound)[None].clamp(-1, 1)

    attributes = {
        "timbre": tuple(overtones),
        "first": tuple(notes),
        "second": tuple(notes),
        "decay": ("short", "long"),
        "beat": ("steady", "trembling"),
    }
    return World("a {} {} note then a {} one {} and {}", attributes, draw)


def film(frames: int, height: int, width: int, clips: film_data.Clips | None = None) -> World:
    """Clips of Big Buck Bunny whose captions say light, colour and motion.

    Args:
        frames, height, width: Of what is drawn; the height is half of the film's or all of it.
        clips: The film's; without them nothing can be drawn.
    """
    shrink = film_data.HEIGHT // height
    pools: dict[str, list[int]] = {}
    if clips is not None:
        for place in (~clips.is_test).nonzero()[0].tolist():
            pools.setdefault(clips.captions[place], []).append(place)

    def draw(values: Sequence[str], generator: torch.Generator) -> Tensor:
        assert clips is not None
        pool = pools[FILM_FORM.format(*values)]
        clip = torch.from_numpy(clips.frames[pool[int(torch.randint(len(pool), (), generator=generator))]])
        pixels = clip[:frames].permute(0, 3, 1, 2).float() / 127.5 - 1
        small = torch.nn.functional.avg_pool2d(pixels, shrink).transpose(0, 1)
        return small if _uniform(0, 1, generator) < 0.5 else small.flip(-1)

    return World(FILM_FORM, film_data.ATTRIBUTES, draw, lambda values: FILM_FORM.format(*values) in pools, 0)
