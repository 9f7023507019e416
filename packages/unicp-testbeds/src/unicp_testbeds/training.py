"""Trains the test-bed from nothing: the autoencoder, then single frames, short clips and long clips.

    python -m unicp_testbeds.training --out build/testbed        # about three and a half hours on two CPU cores

The run is seeded, writes a checkpoint every two minutes and continues from it when started again.
Single frames come first because they are twenty times cheaper and already teach glyph, colour and
background; motion is learnt on short clips; the long stage only adapts to 2,016 tokens.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanPipeline
from torch import Tensor

from unicp.errors import run_main
from unicp_testbeds import clips, components
from unicp_testbeds.training_loop import (
    Log,
    Optimisers,
    Stage,
    follow,
    generator_of,
    pick,
    rate_of,
    reconstruction_loss,
    run_stages,
)

PROMPT_LENGTHS = (16,) * 30 + (32,) * 14 + (64,) * 5 + (512,)  # 512 is the pipeline's own default


AUTOENCODER = (
    Stage("autoencoder frames", 1000, 8, 1, 5e-3, 1e-3),
    Stage("autoencoder clips", 360, 4, 9, 2e-3, 1e-5),
    # The decoder remembers further back than nine frames: without this stage it falls from 31 to 21 dB behind them.
    Stage("decoder long clips", 200, 2, 25, 1.5e-3, 1e-5, decoder_only=True),
)
DENOISER = (
    Stage("frames", 1600, 32, 1, 1.5e-3, 0.001192381685),
    Stage("short", 1800, 8, 9, 1.2e-3, 5e-4),
    Stage("long", 450, 4, 41, 5e-4, 1e-5),
    Stage("long again", 650, 5, 41, 6e-4, 1e-5),
    Stage("long, more noise", 900, 6, 41, 8e-4, 1e-5, shift=4.0),
    Stage("long, most noise", 800, 7, 41, 8e-4, 1e-5, shift=5.0),
)


def train_autoencoder(out: Path, log: Log, stages: tuple[Stage, ...] = AUTOENCODER) -> AutoencoderKLWan:
    """Trains by absolute plus squared error on frames, then clips; then measures the latents' mean and deviation."""
    torch.manual_seed(0)
    model: Any = components.build_autoencoder()
    optimisers = Optimisers(model, lambda name, p: p.ndim >= 4)
    scenes = clips.training_scenes()

    def begin(stage: Stage) -> None:
        model.encoder.requires_grad_(not stage.decoder_only)
        model.quant_conv.requires_grad_(not stage.decoder_only)

    def train(stage: Stage, step: int, finished: int) -> tuple[float, str]:
        generator = generator_of(stage, step)
        video = clips.sample_clips(pick(scenes, stage, step), stage.frames, generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latents = model.encode(video).latent_dist.mean
            noise = torch.randn(latents.shape, generator=generator)
            restored = _decode_unclamped(model, latents + 0.05 * noise)
        # Only the mean is ever used, so the variance head stays untrained. The last term keeps the mean's size
        # near one, where the added noise makes the decoder smooth.
        size = (latents.float().square().mean() - 1).square()
        loss, note = reconstruction_loss(restored, video)
        loss = loss + 0.01 * size
        optimisers.step(loss, rate_of(stage, step))
        return loss.item(), note

    run_stages(stages, out / "autoencoder.pt", log, {"model": model, **optimisers.parts}, train, begin)
    model.eval().requires_grad_(False)
    with torch.no_grad():
        video = clips.sample_clips(scenes[:96], 9, torch.Generator().manual_seed(3))
        latents = torch.cat([model.encode(part).latent_dist.mean for part in video.split(8)])
    model.register_to_config(
        latents_mean=latents.mean((0, 2, 3, 4)).tolist(), latents_std=latents.std((0, 2, 3, 4)).tolist()
    )
    return model


def train_denoiser(out: Path, autoencoder: Any, log: Log, stages: tuple[Stage, ...] = DENOISER) -> Any:
    """Trains flow matching (velocity = noise - clean) with 10 % dropped captions; returns the averaged transformer."""
    torch.manual_seed(1)
    tokenizer = components.build_tokenizer()
    encoder = components.build_text_encoder(len(tokenizer))
    model = components.build_transformer()
    model.set_attention_backend("_native_math")  # the CPU flash kernel's backward is slow at short lengths
    average = copy.deepcopy(model).requires_grad_(False)
    optimisers = Optimisers(model, lambda name, p: p.ndim == 2 and name.startswith("blocks."))
    parts = {"model": model, "average": average, **optimisers.parts}
    scenes = clips.training_scenes()

    def begin(stage: Stage) -> None:
        if stage.frames == clips.LONG_FRAMES:
            model.set_attention_backend("native")

    def train(stage: Stage, step: int, finished: int) -> tuple[float, str]:
        generator = generator_of(stage, step)
        picked = pick(scenes, stage, step)
        with torch.no_grad():
            video = clips.sample_clips(picked, stage.frames, generator)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                latents = autoencoder.encode(video).latent_dist.mean.float()
            latents = components.normalise_latents(autoencoder, latents)
        dropped = torch.rand(stage.batch, generator=generator) < 0.1
        captions = ["" if drop else scene.caption for scene, drop in zip(picked, dropped)]
        length = PROMPT_LENGTHS[int(torch.randint(len(PROMPT_LENGTHS), (), generator=generator))]
        text = components.encode_prompts(tokenizer, encoder, captions, length)
        sigma = _noise_levels(stage.batch, generator, stage.shift)
        noise = torch.randn(latents.shape, generator=generator)
        level = sigma.view(-1, 1, 1, 1, 1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            velocity = model((1 - level) * latents + level * noise, sigma * 1000, text, return_dict=False)[0]
        loss = (velocity.float() - (noise - latents)).square().mean()
        optimisers.step(loss, rate_of(stage, step))
        follow(average, model, min(0.998 if stage.frames < clips.LONG_FRAMES else 0.99, finished / (finished + 9)))
        return loss.item(), ""

    run_stages(stages, out / "denoiser.pt", log, parts, train, begin)
    return average.eval()


def save_pipeline(folder: Path, autoencoder: AutoencoderKLWan, transformer: Any) -> None:
    """Writes the folder that `DiffusionPipeline.from_pretrained` loads, weights as float16 safetensors."""
    tokenizer = components.build_tokenizer()
    encoder = components.build_text_encoder(len(tokenizer))
    models = {"text_encoder": encoder, "vae": autoencoder, "transformer": transformer}
    others = {"tokenizer": tokenizer, "scheduler": components.build_scheduler()}
    components.save_pipeline(WanPipeline, folder, models, others)


def _decode_unclamped(model: Any, latents: Tensor) -> Tensor:
    # `decode` clamps to [-1, 1], which has no gradient outside: train on the value before it.
    clamp, torch.clamp = torch.clamp, lambda x, *args, **kwargs: x  # type: ignore[assignment]
    try:
        return model.decode(latents).sample
    finally:
        torch.clamp = clamp  # type: ignore[assignment]


def _noise_levels(count: int, generator: torch.Generator, shift: float) -> Tensor:
    """Stratified logit-normal noise levels in (0, 1), shifted towards noise."""
    uniform = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    normal = torch.erfinv((2 * uniform - 1).clamp(-0.999, 0.999)) * math.sqrt(2)
    level = torch.sigmoid(1.1 * normal)
    return shift * level / (1 + (shift - 1) * level)


def main(arguments: Iterator[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/testbed"), help="working folder with checkpoints")
    parser.add_argument("--save", type=Path, help="where to write the finished pipeline (default: OUT/pipeline)")
    options = parser.parse_args(None if arguments is None else list(arguments))
    options.out.mkdir(parents=True, exist_ok=True)
    log = Log(options.out / "log.jsonl")
    autoencoder = train_autoencoder(options.out, log)
    transformer = train_denoiser(options.out, autoencoder, log)
    save_pipeline(options.save or options.out / "pipeline", autoencoder, transformer)


if __name__ == "__main__":
    run_main(main)
