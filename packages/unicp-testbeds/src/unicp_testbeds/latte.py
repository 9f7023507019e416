"""The second test-bed: a `LattePipeline`, whose attention is factorised into space and time, trained on the same clips.

    python -m unicp_testbeds.latte --out build/latte        # about three hours on one CPU core

It differs from the first one in what UniCP must not depend on: a schedule of variances instead of flow matching, DDIM,
twice the channels in the output (the second half is a variance, which the pipeline drops), both guidance branches in
one batch, no `cache_context`, and an autoencoder of single frames.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, LattePipeline, LatteTransformer3DModel
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from unicp.errors import run_main
from unicp_testbeds import clips, components
from unicp_testbeds.model_card import write_defaults
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
    time_steps,
)

FRAMES, LATENT_CHANNELS, TEXT_WIDTH = 16, 4, components.TEXT_WIDTH
TEXT_LENGTH = 120  # what the pipeline pads to before it cuts off the padding
DEFAULTS: dict[str, Any] = {
    "height": clips.HEIGHT,
    "width": clips.WIDTH,
    "num_frames": FRAMES,
    "guidance_scale": 4.0,
    "num_inference_steps": 30,
    "fps": 8,
}

AUTOENCODER = (Stage("latte autoencoder", 1600, 16, 1, 4e-3, 1e-5),)
DENOISER = (
    Stage("latte frames", 1500, 32, 1, 1.5e-3, 1e-3),
    Stage("latte clips", 2200, 8, FRAMES, 1.5e-3, 1e-5),
    # Shapes and motions were still coming when the stage before ended. Another batch size draws other clips.
    Stage("latte clips, again", 2600, 6, FRAMES, 1.2e-3, 1e-5),
)


def build_text_encoder(vocabulary: int) -> T5EncoderModel:
    """Latte's kind of encoder, see `components.frozen_encoder`."""
    return components.frozen_encoder(T5EncoderModel, T5Config, vocabulary)


def build_autoencoder() -> AutoencoderKL:
    """Single frames, 4x4 pixels to one latent position of 4 channels."""
    # The annotations of diffusers allow one block alone.
    blocks: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (32, 48, 64),
    }
    return AutoencoderKL(
        **blocks,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=16,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
    )


def build_transformer() -> LatteTransformer3DModel:
    """5 spatial and 5 temporal blocks of 2 heads of 64; 96 tokens a frame, 1,536 in a clip."""
    model = LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=64,
        in_channels=LATENT_CHANNELS,
        out_channels=2 * LATENT_CHANNELS,
        num_layers=5,
        cross_attention_dim=128,
        attention_bias=True,
        sample_size=24,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=TEXT_WIDTH,
        video_length=FRAMES,
    )
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and parameter.ndim == 2:
            torch.nn.init.xavier_uniform_(parameter)
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    torch.nn.init.zeros_(model.proj_out.weight)
    with torch.no_grad():
        for blocks in (model.transformer_blocks, model.temporal_transformer_blocks):
            stack: Any = blocks
            for block in stack:
                for weight in (block.attn1.to_out[0].weight, block.ff.net[2].weight):
                    weight.mul_(0.3)
                block.scale_shift_table[[2, 5]] += 1.0
        model.adaln_single.linear.weight.mul_(0.3)
    return model


def build_scheduler() -> DDIMScheduler:
    """Latte's sampler, DDIM over a linear schedule of variances, but for a velocity.

    A small model that predicts the noise hardly learns shape and motion: it would have to reproduce its input to a few
    parts in a thousand.
    """
    return DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False, prediction_type="v_prediction"
    )


def encode_prompts(tokenizer: Any, encoder: T5EncoderModel, prompts: list[str]) -> Tensor:
    """The text as `LattePipeline` gives it to its transformer, up to the end of the longest prompt, (B, length, 64).

    All captions have the same number of words; an empty prompt is cut to the length of the others.
    """
    batch = tokenizer(prompts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt")
    length = int(batch.attention_mask.sum(1).max())
    with torch.no_grad():
        return encoder(batch.input_ids, batch.attention_mask).last_hidden_state[:, :length]


def train_autoencoder(out: Path, log: Log, stages: tuple[Stage, ...] = AUTOENCODER) -> AutoencoderKL:
    """Trains by absolute plus squared error on frames, then sets the factor that gives latents unit variance."""
    torch.manual_seed(0)
    model: Any = build_autoencoder()
    optimisers = Optimisers(model, lambda name, p: p.ndim >= 4)
    scenes = clips.training_scenes()

    def train(stage: Stage, step: int, finished: int) -> tuple[float, str]:
        generator = generator_of(stage, step)
        frames = _frames(pick(scenes, stage, step), generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latents = model.encode(frames).latent_dist.mean
            noise = torch.randn(latents.shape, generator=generator)
            restored = model.decode(latents + 0.05 * noise).sample
        latents = latents.float()
        size = (latents.square().mean() - 1).square() + latents.mean((0, 2, 3)).square().mean()
        loss, note = reconstruction_loss(restored, frames)
        loss = loss + 0.01 * size
        optimisers.step(loss, rate_of(stage, step))
        return loss.item(), note

    run_stages(stages, out / "autoencoder.pt", log, {"model": model, **optimisers.parts}, train)
    model.eval().requires_grad_(False)
    with torch.no_grad():
        latents = model.encode(_frames(scenes[:96], torch.Generator().manual_seed(3))).latent_dist.mean
    model.register_to_config(scaling_factor=1 / float(latents.std()))
    return model


def train_denoiser(out: Path, autoencoder: Any, log: Log, stages: tuple[Stage, ...] = DENOISER) -> Any:
    """Trains velocity prediction with 10 % dropped captions; returns the averaged transformer."""
    torch.manual_seed(1)
    tokenizer = components.build_tokenizer()
    encoder = build_text_encoder(len(tokenizer))
    schedule: Any = build_scheduler()
    model = build_transformer()
    average = copy.deepcopy(model).requires_grad_(False)
    optimisers = Optimisers(model, lambda name, p: p.ndim == 2 and "transformer_blocks." in name)
    parts = {"model": model, "average": average, **optimisers.parts}
    scenes = clips.training_scenes()

    def train(stage: Stage, step: int, finished: int) -> tuple[float, str]:
        generator = generator_of(stage, step)
        picked = pick(scenes, stage, step)
        latents = _latents(autoencoder, picked, stage.frames, generator)
        dropped = torch.rand(stage.batch, generator=generator) < 0.1
        captions = ["" if drop else scene.caption for scene, drop in zip(picked, dropped)]
        text = encode_prompts(tokenizer, encoder, captions)
        time_step = time_steps(stage.batch, generator)
        noise = torch.randn(latents.shape, generator=generator)
        noisy, velocity = (
            schedule.add_noise(latents, noise, time_step),
            schedule.get_velocity(latents, noise, time_step),
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(noisy, time_step, text, return_dict=False)[0]
        # The second half of the channels is the variance, which the pipeline drops.
        loss = (output[:, :LATENT_CHANNELS].float() - velocity).square().mean()
        optimisers.step(loss, rate_of(stage, step))
        follow(average, model, min(0.998 if stage.frames == 1 else 0.995, finished / (finished + 9)))
        return loss.item(), ""

    run_stages(stages, out / "denoiser.pt", log, parts, train)
    return average.eval()


def save_pipeline(folder: Path, autoencoder: AutoencoderKL, transformer: Any) -> None:
    """Writes the folder that `DiffusionPipeline.from_pretrained` loads, weights as float16 safetensors."""
    tokenizer = components.build_tokenizer()
    encoder = build_text_encoder(len(tokenizer))
    models = {"text_encoder": encoder, "vae": autoencoder, "transformer": transformer}
    components.save_pipeline(LattePipeline, folder, models, {"tokenizer": tokenizer, "scheduler": build_scheduler()})
    write_defaults(folder, DEFAULTS)


def _frames(scenes: list[clips.Scene], generator: torch.Generator) -> Tensor:
    """One frame of a clip per scene, anywhere on its path: (B, 3, 64, 96) in [-1, 1]."""
    place = int(torch.randint(FRAMES, (), generator=generator))
    return clips.sample_clips(scenes, FRAMES, generator, [place])[:, :, 0]


def _latents(autoencoder: Any, scenes: list[clips.Scene], frames: int, generator: torch.Generator) -> Tensor:
    """Scaled latents of clips, (B, 4, frames, 16, 24)."""
    with torch.no_grad():
        if frames == 1:
            video = _frames(scenes, generator)[:, :, None]
        else:
            video = clips.sample_clips(scenes, frames, generator)
        flat = video.transpose(1, 2).flatten(0, 1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latents = autoencoder.encode(flat).latent_dist.mean.float()
        scaled = latents * autoencoder.config["scaling_factor"]
    return scaled.unflatten(0, (len(scenes), frames)).transpose(1, 2).contiguous()


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/latte"), help="working folder with checkpoints")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    log = Log(options.out / "log.jsonl")
    autoencoder = train_autoencoder(options.out, log)
    transformer = train_denoiser(options.out, autoencoder, log)
    save_pipeline(options.out / "pipeline", autoencoder, transformer)


if __name__ == "__main__":
    run_main(main)
