"""Trains a small test-bed, and writes its pipeline. Seeded; continues from its checkpoint if it was stopped."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from unicp.files import write_text
from unicp_testbeds import components
from unicp_testbeds.beds.autoencoder import LinearAutoencoder
from unicp_testbeds.beds.bed import Bed, Noisy
from unicp_testbeds.model_card import write_defaults
from unicp_testbeds.training_loop import (
    Log,
    Optimisers,
    Stage,
    follow,
    generator_of,
    pick,
    rate_of,
    run_stages,
)

PROMPTS_FILE, LOSSES_FILE = "prompts.txt", "losses.json"
FITTED_ON = 96  # clips that the autoencoder is fitted on
DROPPED = 0.1  # share of captions left out
GUIDED = "guided"  # how the stages are called in which a model learns what a guidance weight does
WEAKEST, STRONGEST = 1.0, 8.0  # guidance weights it learns


def build(bed: Bed) -> Any:
    """The untrained pipeline, with an autoencoder that is fitted to training data."""
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(3)
    values = bed.world.training
    some = [values[place % len(values)] for place in range(FITTED_ON)]
    parts = {"vae": bed.autoencoder(bed.data(some, 0, generator)), "transformer": bed.transformer()}
    return getattr(diffusers, bed.kind)(**parts, **bed.other_parts())


def train(bed: Bed, out: Path, stages: tuple[Stage, ...] | None = None) -> Any:
    """Trains the pipeline of a bed in the working folder `out`, with its averaged weights."""
    out.mkdir(parents=True, exist_ok=True)
    bed.prepare(out)
    pipe = build(bed)
    model = pipe.transformer.train()
    average = copy.deepcopy(model).requires_grad_(False)
    optimisers = Optimisers(model, lambda name, p: p.ndim == 2 and bed.is_matrix in name)
    parts = {"model": model, "average": average, **optimisers.parts}
    # Guidance is learnt from the averaged weights as they were before; a training that goes on needs them too.
    teacher = copy.deepcopy(average) if bed.is_guided_inside else average
    if bed.is_guided_inside:
        parts["teacher"] = teacher
    training, texts = bed.world.training, _Texts(bed, pipe)

    def step(stage: Stage, step: int, finished: int) -> tuple[float, str]:
        generator = generator_of(stage, step)
        values = pick(training, stage, step)
        noisy = bed.noising(_latents(pipe.vae, bed.data(values, stage.frames, generator)), generator)
        captions = [bed.world.caption(one) for one in values]
        guidance = None
        if GUIDED in stage.name:
            if step == 0:
                teacher.load_state_dict(average.state_dict())
            guidance = WEAKEST + (STRONGEST - WEAKEST) * torch.rand(stage.batch, generator=generator)
            noisy = _guided(bed, teacher, noisy, texts, captions, guidance)
        else:
            dropped = torch.rand(stage.batch, generator=generator) < DROPPED
            captions = ["" if drop else caption for caption, drop in zip(captions, dropped)]
            guidance = torch.ones(stage.batch) if bed.is_guided_inside else None
        loss = _loss(bed, model, noisy, texts(captions), guidance)
        optimisers.step(loss, rate_of(stage, step))
        follow(average, model, min(0.995, finished / (finished + 9)))
        return loss.item(), ""

    log = Log(out / "log.jsonl")
    run_stages(bed.stages if stages is None else stages, out / "denoiser.pt", log, parts, step)
    pipe.transformer = average.eval()
    return pipe


class _Texts:
    """What the pipeline makes of captions, each made once."""

    def __init__(self, bed: Bed, pipe: Any):
        self.bed, self.pipe = bed, pipe
        self._known: dict[str, dict[str, Tensor]] = {}

    def __call__(self, captions: list[str]) -> dict[str, Tensor]:
        for caption in captions:
            if caption not in self._known:
                with torch.no_grad():
                    self._known[caption] = self.bed.encode(self.pipe, [caption])
        found = [self._known[caption] for caption in captions]
        return {name: torch.cat([one[name] for one in found]) for name in found[0]}


def _latents(autoencoder: LinearAutoencoder, data: Tensor) -> Tensor:
    with torch.no_grad():
        return autoencoder.encode(data)


def _loss(bed: Bed, model: Any, noisy: Noisy, text: dict[str, Tensor], guidance: Tensor | None) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = bed.call(model, noisy, text, guidance)
    return (output.float() - noisy.target).square().mean()


def _guided(bed: Bed, teacher: Any, noisy: Noisy, texts: _Texts, captions: list[str], guidance: Tensor) -> Noisy:
    """The same, to be answered by what guidance of the teacher would say (Meng et al. 2023)."""
    none = torch.ones(len(captions))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        said = bed.call(teacher, noisy, texts(captions), none).float()
        without = bed.call(teacher, noisy, texts([""] * len(captions)), none).float()
    weight = guidance.view(-1, *[1] * (said.dim() - 1))
    return Noisy(noisy.sample, noisy.time, without + weight * (said - without))


def held_out_loss(bed: Bed, pipe: Any, batches: int = 8, batch: int = 8) -> dict[str, float]:
    """Mean squared error on captions and clips that no training saw, with their captions, and with wrong ones."""
    texts = _Texts(bed, pipe)
    generator = torch.Generator().manual_seed(11)
    right, wrong = 0.0, 0.0
    for number in range(batches):
        values = [bed.world.held_out[(number * batch + place) % len(bed.world.held_out)] for place in range(batch)]
        noisy = bed.noising(_latents(pipe.vae, bed.data(values, 0, generator)), generator)
        captions = [bed.world.caption(one) for one in values]
        one = torch.ones(batch) if bed.is_guided_inside else None
        with torch.no_grad():
            right += float(_loss(bed, pipe.transformer, noisy, texts(captions), one)) / batches
            wrong += float(_loss(bed, pipe.transformer, noisy, texts(captions[1:] + captions[:1]), one)) / batches
    return {"right captions": round(right, 4), "wrong captions": round(wrong, 4)}


_CARD = """\
# {name}

A small pipeline on which UniCP is measured without being tuned on it. {about}

- pipeline: `{kind}`; `DiffusionPipeline.from_pretrained` loads it where the package unicp-testbeds is installed,
  which has the class of its autoencoder
- transformer: {millions:.1f} M parameters, trained from nothing by `python -m unicp_testbeds.beds {name}`: {stages}
- captions: "{caption}", and {others}; `{prompts}` has those to measure on
- mean squared error of the answer on what no training saw: {right} with the right captions, {wrong} with wrong ones
"""


def save(bed: Bed, pipe: Any, folder: Path) -> None:
    """Writes the folder that `DiffusionPipeline.from_pretrained` loads: half precision, prompts, defaults, a card."""
    models = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    others = {name: part for name, part in pipe.components.items() if name not in models}
    components.save_pipeline(type(pipe), folder, models, others)
    write_defaults(folder, bed.defaults)
    losses = held_out_loss(bed, pipe)
    write_text(folder / PROMPTS_FILE, "\n".join(map(bed.world.caption, bed.world.held_out)) + "\n")
    write_text(folder / LOSSES_FILE, json.dumps(losses, indent=2) + "\n")
    write_text(folder / "README.md", card(bed, pipe, losses))


def card(bed: Bed, pipe: Any, losses: dict[str, float]) -> str:
    """The model card of a trained test-bed. losses: as `held_out_loss` gives them."""
    every = len(bed.world.training) + (len(bed.world.held_out) if bed.world.held_out_count else 0)
    return _CARD.format(
        name=bed.name,
        kind=bed.kind,
        about=" ".join((type(bed).__doc__ or "").split()),
        millions=sum(parameter.numel() for parameter in pipe.transformer.parameters()) / 1e6,
        stages=", ".join(f"{stage.steps} steps of {stage.batch} {stage.name}" for stage in bed.stages),
        caption=bed.world.caption(bed.world.held_out[0]),
        others=f"{every - 1} others",
        prompts=PROMPTS_FILE,
        right=losses["right captions"],
        wrong=losses["wrong captions"],
    )
