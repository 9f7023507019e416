"""The third test-bed: a `CogVideoXPipeline`, whose attention sees text and video at once, trained on clips of a film.

    python -m unicp_testbeds.film --out build/film       # hours; 4.5 on one core that did other work too

It is the test-bed of real pictures: its clips are cut from Big Buck Bunny (`film_data`), where light changes, cameras
move and shots differ. Its sampler is DDIM on a velocity, with a first step of pure noise. The run is seeded and
continues if it was stopped; film, clips, latents and checkpoints are kept in the working folder.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from unicp.errors import run_main
from unicp.files import replacing, write_text
from unicp_testbeds import components
from unicp_testbeds.film_data import ATTRIBUTES, FPS, FRAMES, HEIGHT, PROMPTS_FILE, WIDTH, Clips, make_clips, prompts
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

LATENT_CHANNELS, SPATIAL_FACTOR, TEMPORAL_FACTOR, PATCH = 8, 4, 4, 2
LATENT_SIZE = (HEIGHT // SPATIAL_FACTOR, WIDTH // SPATIAL_FACTOR)
GRID = (LATENT_SIZE[0] // PATCH, LATENT_SIZE[1] // PATCH)
HEADS, HEAD_WIDTH = 2, 64
# A caption is 8 tokens with its end. CogVideoX attends to the padding too, so the pipeline's own default of 226 must be
# seen in training if a call without `max_sequence_length` is to work.
TEXT_LENGTH = 16
TEXT_LENGTHS = (TEXT_LENGTH,) * 15 + (226,)
WORDS = ("a", "scene", "with", "motion", *(word for values in ATTRIBUTES.values() for word in values))
DEFAULTS: dict[str, Any] = {
    "height": HEIGHT,
    "width": WIDTH,
    "num_frames": FRAMES,
    "guidance_scale": 4.0,
    "num_inference_steps": 30,
    "max_sequence_length": TEXT_LENGTH,
    "fps": FPS,
}

AUTOENCODER = (
    Stage("film autoencoder frames", 1000, 4, 1, 4e-3, 1e-3),
    # The class works through a clip in parts of 8 frames and carries over the last ones: 17 frames are the shortest
    # clip that has a first part and a following one.
    Stage("film autoencoder clips", 650, 1, 17, 2e-3, 1e-5),
    Stage("film decoder whole clips", 130, 1, FRAMES, 1e-3, 1e-5, decoder_only=True),
)
DENOISER = (
    Stage("film frames", 1500, 32, 1, 1.5e-3, 1e-3),
    Stage("film short clips", 1000, 8, 9, 1.2e-3, 8e-4),
    Stage("film whole clips", 1500, 4, FRAMES, 1e-3, 1e-5),
)


def latent_frames(frames: int) -> int:
    """Latent frames of a clip: one for the first frame, and one for each four after it."""
    return (frames - 1) // TEMPORAL_FACTOR + 1


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level, over the words of `film_data.caption`."""
    return components.build_tokenizer(WORDS)


def build_text_encoder() -> T5EncoderModel:
    """CogVideoX's kind of encoder, see `components.frozen_encoder`."""
    return components.frozen_encoder(T5EncoderModel, T5Config, len(build_tokenizer()))


def build_autoencoder() -> AutoencoderKLCogVideoX:
    """4x4 pixels and 4 frames to one latent position of 8 channels."""
    # The annotations of diffusers allow one block alone.
    blocks: dict[str, Any] = {
        "down_block_types": ("CogVideoXDownBlock3D",) * 3,
        "up_block_types": ("CogVideoXUpBlock3D",) * 3,
        "block_out_channels": (32, 48, 64),
    }
    return AutoencoderKLCogVideoX(
        **blocks,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        temporal_compression_ratio=TEMPORAL_FACTOR,
        sample_height=HEIGHT,
        sample_width=WIDTH,
        scaling_factor=1.0,
    )


def build_transformer() -> CogVideoXTransformer3DModel:
    """8 blocks of 2 heads of 64; 240 tokens a latent frame, 2,160 in a clip of 33 frames."""
    model = CogVideoXTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_WIDTH,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        time_embed_dim=64,
        text_embed_dim=components.TEXT_WIDTH,
        num_layers=8,
        sample_height=LATENT_SIZE[0],
        sample_width=LATENT_SIZE[1],
        sample_frames=FRAMES,
        patch_size=PATCH,
        temporal_compression_ratio=TEMPORAL_FACTOR,
        max_text_seq_length=TEXT_LENGTH,
        # The other kind of position is tied to one length of the text.
        use_rotary_positional_embeddings=True,
    )
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and parameter.ndim == 2:
            torch.nn.init.xavier_uniform_(parameter)
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    torch.nn.init.xavier_uniform_(model.patch_embed.proj.weight.data.flatten(1))
    torch.nn.init.zeros_(model.proj_out.weight)
    with torch.no_grad():
        blocks: Any = model.transformer_blocks
        for block in blocks:
            for weight in (block.attn1.to_out[0].weight, block.ff.net[2].weight):
                weight.mul_(0.3)
            for norm in (block.norm1, block.norm2):
                norm.linear.weight.mul_(0.3)
                # Shift, scale and gate of the video, then of the text: both gates begin open.
                norm.linear.bias.view(6, -1)[[2, 5]] += 1.0
    return model


def build_scheduler() -> CogVideoXDDIMScheduler:
    """CogVideoX's sampler, for a velocity and without signal at the first step."""
    return CogVideoXDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.0120,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
        timestep_spacing="trailing",
    )


def encode_prompts(tokenizer: Any, encoder: T5EncoderModel, prompts: list[str], length: int) -> Tensor:
    """The text as `CogVideoXPipeline` gives it to its transformer, (B, length, 64), with states of the padding."""
    batch = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return encoder(batch.input_ids).last_hidden_state


def rotary(frames: int) -> tuple[Tensor, Tensor]:
    """Rotary positions of a clip of so many latent frames at full size, as `CogVideoXPipeline` makes them."""
    return get_3d_rotary_pos_embed(HEAD_WIDTH, ((0, 0), GRID), GRID, frames)  # type: ignore[return-value]


def train_autoencoder(
    out: Path, clips: Clips, log: Log, stages: tuple[Stage, ...] = AUTOENCODER
) -> AutoencoderKLCogVideoX:
    """Absolute plus squared error on frames and clips; then the factor that gives latents unit variance."""
    torch.manual_seed(0)
    model: Any = build_autoencoder()
    optimisers = Optimisers(model, lambda name, p: p.ndim >= 4)
    frames = torch.from_numpy(clips.frames[~clips.is_test])

    def begin(stage: Stage) -> None:
        model.encoder.requires_grad_(not stage.decoder_only)

    def train(stage: Stage, step: int, finished: int) -> tuple[float, str]:
        generator = generator_of(stage, step)
        video = _windows(frames, stage, step, generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latents = model.encode(video).latent_dist.mean
            noise = torch.randn(latents.shape, generator=generator)
            restored = model.decode(latents + 0.05 * noise).sample
        # The pipeline scales all channels by one factor and shifts none, so each is held near mean 0 and size 1.
        latents = latents.float()
        size = (latents.square().mean((0, 2, 3, 4)) - 1).square().mean() + latents.mean((0, 2, 3, 4)).square().mean()
        loss, note = reconstruction_loss(restored, video)
        loss = loss + 0.01 * size
        optimisers.step(loss, rate_of(stage, step))
        return loss.item(), note

    run_stages(stages, out / "autoencoder.pt", log, {"model": model, **optimisers.parts}, train, begin)
    model.eval().requires_grad_(False)
    some = frames[:: max(1, len(frames) // 24)]
    deviation = torch.cat([_encode(model, clip[None]) for clip in some]).std()
    model.register_to_config(scaling_factor=1 / float(deviation))
    return model


def encode_clips(path: Path, autoencoder: Any, clips: Clips) -> Tensor:
    """Scaled latents of the training clips and their mirror images, (N, 2, 9, 8, 24, 40) in float16.

    They are kept in `path`, and made again for another autoencoder.
    """
    factor = autoencoder.config["scaling_factor"]
    if path.exists():
        stored = torch.load(path, weights_only=True)
        if stored["scaling_factor"] == factor:
            return stored["latents"]
    rows = []
    for clip in torch.from_numpy(clips.frames[~clips.is_test]):
        pair = [_encode(autoencoder, side[None]) for side in (clip, clip.flip(2))]
        rows.append((factor * torch.cat(pair)).transpose(1, 2).half())
        if len(rows) % 20 == 0:
            print(f"latents of {len(rows)} clips", flush=True)
    latents = torch.stack(rows)
    with replacing(path) as part:
        torch.save({"scaling_factor": factor, "latents": latents}, part)
    return latents


def train_denoiser(
    out: Path, latents: Tensor, captions: list[str], log: Log, stages: tuple[Stage, ...] = DENOISER
) -> Any:
    """Trains velocity prediction with 10 % dropped captions; returns the averaged transformer.

    `latents` are of `encode_clips`, with one caption for each row.
    """
    torch.manual_seed(1)
    tokenizer, encoder = build_tokenizer(), build_text_encoder()
    schedule: Any = build_scheduler()
    model = build_transformer()
    average = copy.deepcopy(model).requires_grad_(False)
    optimisers = Optimisers(model, lambda name, p: p.ndim == 2 and name.startswith("transformer_blocks."))
    parts = {"model": model, "average": average, **optimisers.parts}
    rows = list(range(len(latents)))

    def train(stage: Stage, step: int, finished: int) -> tuple[float, str]:
        generator = generator_of(stage, step)
        picked = pick(rows, stage, step)
        clean = _parts(latents[picked], latent_frames(stage.frames), generator)
        dropped = torch.rand(stage.batch, generator=generator) < 0.1
        prompts = ["" if drop else captions[row] for row, drop in zip(picked, dropped)]
        length = TEXT_LENGTHS[int(torch.randint(len(TEXT_LENGTHS), (), generator=generator))]
        text = encode_prompts(tokenizer, encoder, prompts, length)
        time_step = time_steps(stage.batch, generator)
        noise = torch.randn(clean.shape, generator=generator)
        noisy, velocity = schedule.add_noise(clean, noise, time_step), schedule.get_velocity(clean, noise, time_step)
        positions = rotary(clean.shape[1])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(noisy, text, time_step, image_rotary_emb=positions, return_dict=False)[0]
        loss = (output.float() - velocity).square().mean()
        optimisers.step(loss, rate_of(stage, step))
        follow(average, model, min(0.998 if stage.frames == 1 else 0.995, finished / (finished + 9)))
        return loss.item(), ""

    run_stages(stages, out / "denoiser.pt", log, parts, train)
    return average.eval()


def save_pipeline(
    folder: Path, autoencoder: AutoencoderKLCogVideoX, transformer: Any, known: Collection[str] | None = None
) -> None:
    """Writes the folder that `DiffusionPipeline.from_pretrained` loads, with its defaults and its prompts.

    `known` has the captions that occur in training; `None` = all.
    """
    models = {"text_encoder": build_text_encoder(), "vae": autoencoder, "transformer": transformer}
    others = {"tokenizer": build_tokenizer(), "scheduler": build_scheduler()}
    components.save_pipeline(CogVideoXPipeline, folder, models, others)
    write_defaults(folder, DEFAULTS)
    write_text(folder / PROMPTS_FILE, "\n".join(prompts(known)) + "\n")


def pixels(frames: Tensor) -> Tensor:
    """Bytes (B, T, H, W, 3) as the autoencoder takes them, (B, 3, T, H, W) in [-1, 1]."""
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def _windows(frames: Tensor, stage: Stage, step: int, generator: torch.Generator) -> Tensor:
    """Parts of clips that begin anywhere, half of them mirrored: (B, 3, stage.frames, 96, 160) in [-1, 1]."""
    found = []
    for row in pick(list(range(len(frames))), stage, step):
        start = int(torch.randint(FRAMES - stage.frames + 1, (), generator=generator))
        part = frames[row, start : start + stage.frames]
        found.append(part.flip(2) if torch.rand((), generator=generator) < 0.5 else part)
    return pixels(torch.stack(found))


def _parts(latents: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` latent frames of each clip, beginning anywhere, half of them mirrored: (B, count, 8, 24, 40)."""
    found = []
    for clip in latents:
        start = int(torch.randint(clip.shape[1] - count + 1, (), generator=generator))
        side = int(torch.rand((), generator=generator) < 0.5)
        found.append(clip[side, start : start + count])
    return torch.stack(found).float()


def _encode(autoencoder: Any, frames: Tensor) -> Tensor:
    """Latents (B, 8, T', 24, 40) of clips in bytes, not yet scaled."""
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        return autoencoder.encode(pixels(frames)).latent_dist.mean.float()


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/film"), help="working folder with checkpoints")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    clips = make_clips(options.out / "clips.npz")
    log = Log(options.out / "log.jsonl")
    autoencoder = train_autoencoder(options.out, clips, log)
    latents = encode_clips(options.out / "latents.pt", autoencoder, clips)
    captions = [text for text, is_test in zip(clips.captions, clips.is_test) if not is_test]
    transformer = train_denoiser(options.out, latents, captions, log)
    save_pipeline(options.out / "pipeline", autoencoder, transformer, set(captions))


if __name__ == "__main__":
    run_main(main)
