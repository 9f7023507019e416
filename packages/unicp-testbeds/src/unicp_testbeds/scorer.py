"""The classifier that reads glyph, colour, motion and background from a clip.

It is trained on drawn clips only, never on generated ones. They are roughened, so that texture alone does not decide.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from unicp.errors import InputError
from unicp.files import replacing
from unicp_testbeds import clips, folder
from unicp_testbeds.model_card import WEIGHTS_FILE

FRAMES_READ = 5
STEPS, BATCH = 300, 32
LENGTHS = (clips.SHORT_FRAMES, clips.LONG_FRAMES)
_SIZES = {name: len(values) for name, values in clips.ATTRIBUTES.items()}
_LOOKS = [name for name in _SIZES if name != "motion"]


class Scorer(nn.Module):
    """Two small convolutional networks: one for the look of a frame, one for the changes between frames."""

    def __init__(self):
        super().__init__()
        look, change = 64, 48
        self.look = nn.Sequential(
            _layer(3, 16, 5, 2), _layer(16, 32, 3, 2), _layer(32, 48), _layer(48, look, 3, 2), _layer(look, look)
        )
        self.look_head = nn.Linear(2 * look, sum(_SIZES[name] for name in _LOOKS))
        self.change = nn.Sequential(
            _layer(3 * FRAMES_READ, 24), _layer(24, 32, 3, 2), _layer(32, change, 3, 2), _layer(change, change)
        )
        self.change_head = nn.Linear(2 * change, _SIZES["motion"])

    def read_looks(self, frames: Tensor) -> dict[str, Tensor]:
        """Frames (N, 3, H, W) in [0, 1] to logits (N, choices) for glyph, colour and background."""
        logits = self.look_head(_pool(self.look(2 * frames - 1)))
        return dict(zip(_LOOKS, logits.split([_SIZES[name] for name in _LOOKS], dim=1)))

    def read_motion(self, frames: Tensor) -> Tensor:
        """Frames (B, 5, 3, H, W) in [0, 1] to logits (B, 4)."""
        # Without what stays: the background must not suggest a direction.
        changes = (frames - frames.mean(1, keepdim=True)).flatten(1, 2)
        return self.change_head(_pool(self.change(3 * F.avg_pool2d(changes, 2))))

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """Frames (B, 5, 3, H, W) in [0, 1] to logits (B, choices) per attribute; looks are averaged over frames."""
        looks = self.read_looks(frames.flatten(0, 1))
        logits = {name: value.unflatten(0, frames.shape[:2]).mean(1) for name, value in looks.items()}
        return {**logits, "motion": self.read_motion(frames)}


def train_scorer(out: Path, seed: int = 0, steps: int = STEPS, batch: int = BATCH) -> Scorer:
    """Trains on drawn clips of 9 and 41 frames of the training scenes and writes the weights (fp16) to `out`."""
    scenes = clips.training_scenes()
    generator = torch.Generator().manual_seed(1_000_000 + seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scorer = Scorer()
    optimiser = torch.optim.AdamW(scorer.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=5e-3, total_steps=steps, pct_start=0.2)
    begin, mean = time.monotonic(), None
    for step in range(steps):
        picked = [scenes[i] for i in torch.randint(len(scenes), (batch,), generator=generator)]
        frames = _draw(picked, LENGTHS[step % len(LENGTHS)], generator)
        loss = _loss(scorer, _roughen(frames, generator), picked, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
        if step % 20 == 0 or step == steps - 1:
            print(f"scorer {step + 1}/{steps} loss {mean:.4f} {time.monotonic() - begin:.0f} s", flush=True)
    weights = {name: value.half() for name, value in scorer.state_dict().items() if value.is_floating_point()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as part:
        part.write_bytes(save(weights))  # the library's own writing makes the file private to the user
    return load_scorer(out)


def load_scorer(path: Path | None = None) -> Scorer:
    """The classifier, ready to score. Without `path`, the one shipped with the package, read once."""
    return _shipped_scorer() if path is None else _read_scorer(path)


@functools.cache
def _shipped_scorer() -> Scorer:
    return _read_scorer(folder() / WEIGHTS_FILE)


def _read_scorer(path: Path) -> Scorer:
    if not path.is_file():
        do = "run python -m unicp_testbeds.scoring train"
        raise InputError(f"the scorer's weights in {path}", "no such file", do)
    # Reading a file must not move the random numbers of whoever reads it.
    with torch.random.fork_rng(devices=[]):
        scorer = Scorer()
    weights = {name: value.float() for name, value in load_file(path).items()}
    counters = {name: value for name, value in scorer.state_dict().items() if not value.is_floating_point()}
    scorer.load_state_dict({**counters, **weights})
    return scorer.eval().requires_grad_(False)


def read_clips(frames: Tensor, scorer: Scorer | None = None) -> dict[str, list[int]]:
    """Reads clips (B, T, H, W, 3) in [0, 1], T >= 2: per attribute one index per clip."""
    if frames.ndim != 5 or frames.shape[-1] != 3 or frames.shape[1] < 2:
        asked = "clips of shape (B, T, H, W, 3) with T >= 2"
        raise InputError(asked, f"shape {tuple(frames.shape)}", "pass frames with channels last")
    chosen = frames[:, _positions(frames.shape[1])].float().cpu().clamp(0, 1).permute(0, 1, 4, 2, 3)
    with torch.no_grad():
        logits = (scorer or load_scorer())(chosen)
    return {name: logits[name].argmax(1).tolist() for name in clips.ATTRIBUTES}


def score_clips(frames: Tensor, scenes: Sequence[clips.Scene], scorer: Scorer | None = None) -> dict[str, list[bool]]:
    """Whether clips (B, T, H, W, 3) in [0, 1] show their scenes: per attribute one bool per clip."""
    if len(frames) != len(scenes):
        raise InputError(f"scores of {len(frames)} clips", f"{len(scenes)} scenes", "pass one scene per clip")
    read = read_clips(frames, scorer)
    return {name: [r == getattr(s, name) for r, s in zip(values, scenes)] for name, values in read.items()}


def evaluate_real(scorer: Scorer | None = None, rounds: int = 5, seed: int = 0) -> dict[str, Any]:
    """Accuracy in [0, 1] on drawn clips of held-out scenes: `rounds` x 64 clips of 9 frames and as many of 41."""
    scenes = clips.held_out_scenes()
    rows: dict[str, dict[str, float]] = {}
    every: dict[str, list[bool]] = {name: [] for name in clips.ATTRIBUTES}
    for length in LENGTHS:
        right: dict[str, list[bool]] = {name: [] for name in clips.ATTRIBUTES}
        for index in range(rounds):
            generator = torch.Generator().manual_seed(2_000_000 + 1000 * seed + 100 * length + index)
            frames = _draw(scenes, length, generator).permute(0, 1, 3, 4, 2)
            for name, values in score_clips(frames, scenes, scorer).items():
                right[name] += values
                every[name] += values
        rows[str(length)] = accuracies(right)
    return {"clips": len(every["glyph"]), "seed": seed, "accuracy": accuracies(every), "by_frames": rows}


def accuracies(right: dict[str, list[bool]]) -> dict[str, float]:
    """Shares in [0, 1] per attribute from one bool per clip, and "all": clips with every attribute right."""
    share = {name: sum(values) / len(values) for name, values in right.items()}
    together = [all(values) for values in zip(*right.values())]
    return {name: round(value, 4) for name, value in {**share, "all": sum(together) / len(together)}.items()}


def _layer(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _pool(features: Tensor) -> Tensor:
    # The largest value finds the one glyph, the mean tells what the background is made of.
    return torch.cat([features.amax((2, 3)), features.mean((2, 3))], dim=1)


def _positions(frames: int) -> list[int]:
    return [round(i * (frames - 1) / (FRAMES_READ - 1)) for i in range(FRAMES_READ)]


def _draw(scenes: list[clips.Scene], length: int, generator: torch.Generator) -> Tensor:
    """The frames that are read of drawn clips of `length` frames: (B, 5, 3, H, W) in [0, 1]."""
    return (clips.sample_clips(scenes, length, generator, _positions(length)).transpose(1, 2) + 1) / 2


def _roughen(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness, blur, blotches on the grid of latents, and noise, each of a random strength per clip."""
    count, images = len(frames), frames.flatten(0, 1)

    def strength(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, 1, generator=generator)

    def noise(step: int) -> Tensor:
        shape = (len(images), 3, clips.HEIGHT // step, clips.WIDTH // step)
        return F.interpolate(torch.randn(shape, generator=generator), scale_factor=step).view_as(frames)

    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1).view_as(frames)
    coarse = F.interpolate(F.avg_pool2d(images, 4), scale_factor=4, mode="bilinear").view_as(frames)
    frames = torch.lerp(frames, blurred, strength(0, 1))
    frames = torch.lerp(frames, coarse, strength(-0.2, 0.5))  # below zero it sharpens
    frames = frames * strength(0.85, 1.1) + strength(-0.06, 0.06)
    frames = frames + strength(0, 0.05) * noise(4) + strength(0, 0.05) * noise(8) + strength(0, 0.06) * noise(1)
    return frames.clamp(0, 1)


def _loss(scorer: Scorer, frames: Tensor, scenes: list[clips.Scene], generator: torch.Generator) -> Tensor:
    # Two of the five frames of each clip: a frame alone must suffice, and the others look nearly the same.
    chosen = torch.randperm(FRAMES_READ, generator=generator)[:2]
    logits = scorer.read_looks(frames[:, chosen].flatten(0, 1))
    truth = {name: torch.tensor([getattr(scene, name) for scene in scenes]) for name in _SIZES}
    looks = [F.cross_entropy(logits[name], truth[name].repeat_interleave(2)) for name in _LOOKS]
    return sum(looks, F.cross_entropy(scorer.read_motion(frames), truth["motion"]))
