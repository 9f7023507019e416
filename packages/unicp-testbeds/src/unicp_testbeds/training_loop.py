"""Stages, optimisers, log and checkpoints, which the trainings of all test-beds share."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unicp.files import append_line, replacing

CHECKPOINT_SECONDS = 120.0


@dataclass(frozen=True)
class Stage:
    """One part of the schedule.

    Attributes:
        frames: Of a clip, in pixels.
        rate, final_rate: Learning rate at the beginning and at the end.
        shift: Moves the drawn noise levels towards noise, where the motion of long clips is decided.
        decoder_only: Trains only the decoder of an autoencoder, so that latents stay as they are.
    """

    name: str
    steps: int
    batch: int
    frames: int
    rate: float
    final_rate: float
    shift: float = 2.0
    decoder_only: bool = False


class Optimisers:
    """Muon for the matrices that `is_matrix` selects, AdamW for the rest.

    Muon gets convolution kernels as matrices (outputs x everything else) that share their storage.
    """

    def __init__(self, model: nn.Module, is_matrix: Callable[[str, nn.Parameter], bool]):
        self.model = model
        self.kernels = [p for name, p in model.named_parameters() if is_matrix(name, p)]
        self.views = [p if p.ndim == 2 else nn.Parameter(p.detach().flatten(1)) for p in self.kernels]
        known = {id(p) for p in self.kernels}
        others = [p for p in model.parameters() if id(p) not in known]
        self.muon = torch.optim.Muon(
            self.views, lr=1e-3, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw", ns_steps=5
        )
        self.adam = torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)
        self.parts = {"muon": self.muon, "adam": self.adam}

    def step(self, loss: Tensor, rate: float) -> None:
        """One step down the gradient of `loss`, clipped to norm 1."""
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for kernel, view in zip(self.kernels, self.views):
            if view is not kernel:
                view.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        for optimiser in (self.muon, self.adam):
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()


class Log:
    """Prints a line every 20 steps and keeps the same numbers as JSON lines."""

    def __init__(self, path: Path):
        self.path = path
        self.mean: float | None = None
        self.begin = time.monotonic()

    def step(self, stage: Stage, step: int, loss: float, note: str = "") -> None:
        """One step: `note` is printed behind the smoothed loss."""
        self.mean = loss if self.mean is None or step == 0 else 0.97 * self.mean + 0.03 * loss
        if step % 20 == 0 or step == stage.steps - 1:
            seconds = time.monotonic() - self.begin
            print(f"{stage.name} {step}/{stage.steps} loss {self.mean:.4f} {note} {seconds:.0f} s", flush=True)
            row = {"stage": stage.name, "step": step, "loss": self.mean, "seconds": round(seconds, 1)}
            append_line(self.path, json.dumps(row) + "\n")


def generator_of(stage: Stage, step: int) -> torch.Generator:
    """Random numbers that depend on the stage's kind and the step alone, so a continued run draws the same."""
    return torch.Generator().manual_seed(stage.frames * 1_000_003 + stage.batch * 7919 + step)


def pick(items: list[Any], stage: Stage, step: int) -> list[Any]:
    """A batch of items, drawn anew at each step."""
    index = torch.randint(len(items), (stage.batch,), generator=generator_of(stage, step + 10_000_000))
    return [items[i] for i in index]


def rate_of(stage: Stage, step: int) -> float:
    """Learning rate: 100 steps up, then linear from the stage's `rate` to its `final_rate`."""
    warm = min(1.0, (step + 1) / 100)
    part = step / max(1, stage.steps - 1)
    return warm * (stage.rate + (stage.final_rate - stage.rate) * part)


def stratified(count: int, generator: torch.Generator) -> Tensor:
    """Numbers in [0, 1), one in each of `count` equal parts, in a drawn order."""
    return (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count


def time_steps(count: int, generator: torch.Generator) -> Tensor:
    """Stratified steps of 1,000, twice as dense at the noisy end."""
    return (1000 * stratified(count, generator).sqrt()).long().clamp(0, 999)


def save_state(path: Path, step: int, **parts: Any) -> None:
    """Writes the states of all parts and the number of finished steps, atomically."""
    with replacing(path) as part:
        torch.save({"step": step, **{name: value.state_dict() for name, value in parts.items()}}, part)


def resume_state(path: Path, **parts: Any) -> dict[str, Any]:
    """Loads what `save_state` wrote into the parts; returns {"step": 0} if there is no file."""
    if not path.exists():
        return {"step": 0}
    state = torch.load(path, weights_only=True)
    for name, value in parts.items():
        value.load_state_dict(state[name])
    return state


def run_stages(
    stages: Sequence[Stage],
    path: Path,
    log: Log,
    parts: dict[str, Any],
    train: Callable[[Stage, int, int], tuple[float, str]],
    begin_stage: Callable[[Stage], None] = lambda stage: None,
) -> None:
    """Runs the stages from the checkpoint in `path` on, and keeps it up to date.

    Args:
        train: One step, given the stage, the step in it and the number of steps that it finishes; gives the loss and a
            note for the log.
        begin_stage: Called before each stage.
    """
    done = resume_state(path, **parts)["step"]
    saved, before = time.monotonic(), 0
    for stage in stages:
        begin_stage(stage)
        for step in range(max(0, done - before), stage.steps):
            loss, note = train(stage, step, before + step + 1)
            log.step(stage, step, loss, note)
            if time.monotonic() - saved > CHECKPOINT_SECONDS or step == stage.steps - 1:
                save_state(path, before + step + 1, **parts)
                saved = time.monotonic()
        before += stage.steps


def reconstruction_loss(restored: Tensor, target: Tensor) -> tuple[Tensor, str]:
    """Absolute plus twice the squared error of pictures in [-1, 1], and their PSNR as a note."""
    error = restored.float() - target
    psnr = 10 * math.log10(4 / error.detach().square().mean().item())
    return error.abs().mean() + 2 * error.square().mean(), f"PSNR {psnr:.1f} dB"


def follow(average: nn.Module, model: nn.Module, keep: float) -> None:
    """Moves the averaged weights towards those of the model; `keep` is the share that stays."""
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), [p.data for p in model.parameters()], 1 - keep)
