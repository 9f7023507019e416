"""The small test-beds themselves: what each shows, how it is built, and how its transformer is called."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel
from torch import Tensor

from unicp_testbeds import components, film_data
from unicp_testbeds.beds import worlds
from unicp_testbeds.beds.autoencoder import LinearAutoencoder
from unicp_testbeds.beds.bed import (
    POOLED_WIDTH,
    TEXT_LENGTH,
    TEXT_WIDTH,
    Bed,
    Diffusion,
    Flow,
    Noising,
    Noisy,
    Velocity,
    clip_encoder,
    initialised,
    llama_encoder,
    t5_parts,
)
from unicp_testbeds.training_loop import Stage

HEADS, HEAD_WIDTH = 2, 64
WIDTH = HEADS * HEAD_WIDTH


class Ripples(Bed):
    """LTXPipeline: flow matching, both branches of guidance in one call, weak guidance, motion that fills the frame."""

    name, kind = "ripples", "LTXPipeline"
    frames, height, width = 25, 64, 64
    world = worlds.ripples(frames, height, width)
    stages = (Stage("frames", 900, 32, 1, 2e-3, 1e-3), Stage("clips", 2000, 6, frames, 1.5e-3, 1e-4))
    noising: Noising = Flow(shift=2.0)
    defaults = {
        "height": height,
        "width": width,
        "num_frames": frames,
        "guidance_scale": 3.0,
        "num_inference_steps": 30,
        "max_sequence_length": TEXT_LENGTH,
        "fps": 12,
    }

    def transformer(self) -> Any:
        """6 blocks with cross-attention, 2 heads of 64."""
        model = diffusers.LTXVideoTransformer3DModel(
            in_channels=24,
            out_channels=24,
            num_attention_heads=HEADS,
            attention_head_dim=HEAD_WIDTH,
            cross_attention_dim=WIDTH,
            num_layers=6,
            caption_channels=TEXT_WIDTH,
        )
        return initialised(model, model.proj_out, [block.scale_shift_table for block in model.transformer_blocks])

    def autoencoder(self, data: Tensor) -> LinearAutoencoder:
        """2 frames of 8x8 pixels to 24 numbers."""
        return LinearAutoencoder.fitted(data, (2, 8, 8), 24)

    def other_parts(self) -> dict[str, Any]:
        """The sampler moves its levels with the length of the clip."""
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05
        )
        return {"scheduler": scheduler, **t5_parts(self.world.words)}

    def encode(self, pipe: Any, captions: list[str]) -> dict[str, Tensor]:
        """States and mask of T5."""
        states, mask, _, _ = pipe.encode_prompt(
            captions, do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH
        )
        return {"states": states, "mask": mask}

    def call(self, transformer: Any, noisy: Noisy, text: dict[str, Tensor], guidance: Tensor | None) -> Tensor:
        """Positions of the latents as a row of tokens, and back."""
        sample = noisy.sample
        frames, height, width = sample.shape[2:]
        output = transformer(
            hidden_states=sample.flatten(2).transpose(1, 2),
            encoder_hidden_states=text["states"],
            timestep=noisy.time,
            encoder_attention_mask=text["mask"],
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(2 / 25, 8, 8),
            return_dict=False,
        )[0]
        return output.transpose(1, 2).unflatten(2, (frames, height, width))


class Letters(Bed):
    """HunyuanVideoPipeline: guidance inside the model, joint and single-stream blocks, one head of 128, few frames."""

    name, kind = "letters", "HunyuanVideoPipeline"
    frames, height, width = 9, 48, 48
    world = worlds.letters(frames, height, width)
    stages = (
        Stage("frames", 1000, 48, 1, 2e-3, 1e-3),
        Stage("clips", 4000, 12, frames, 1.5e-3, 2e-4),
        Stage("guided clips", 1200, 12, frames, 5e-4, 5e-5),
    )
    noising: Noising = Flow(shift=3.0)
    defaults = {
        "height": height,
        "width": width,
        "num_frames": frames,
        "guidance_scale": 5.0,
        "num_inference_steps": 30,
        "max_sequence_length": TEXT_LENGTH,
        "prompt_template": {"template": "{}", "crop_start": 0},
        "fps": 8,
    }
    is_guided_inside = True

    def transformer(self) -> Any:
        """2 joint and 3 single-stream blocks, 1 head of 128."""
        model = diffusers.HunyuanVideoTransformer3DModel(
            in_channels=12,
            out_channels=12,
            num_attention_heads=1,
            attention_head_dim=128,
            num_layers=2,
            num_single_layers=3,
            num_refiner_layers=1,
            mlp_ratio=3.0,
            patch_size=2,
            text_embed_dim=TEXT_WIDTH,
            pooled_projection_dim=POOLED_WIDTH,
            rope_axes_dim=(16, 56, 56),
        )
        return initialised(model, model.proj_out)

    def autoencoder(self, data: Tensor) -> LinearAutoencoder:
        """2 frames of 4x4 pixels to 12 numbers."""
        return LinearAutoencoder.fitted(data, (2, 4, 4), 12)

    def other_parts(self) -> dict[str, Any]:
        """A decoder of Llama's kind and CLIP read the captions."""
        tokenizer, second = (components.build_tokenizer(self.world.words) for _ in range(2))
        tokenizer.model_max_length = TEXT_LENGTH
        return {
            "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
            "tokenizer": tokenizer,
            "text_encoder": llama_encoder(len(tokenizer)),
            "tokenizer_2": second,
            "text_encoder_2": clip_encoder(len(second)),
        }

    def encode(self, pipe: Any, captions: list[str]) -> dict[str, Tensor]:
        """States and mask of the decoder, and CLIP's one state."""
        states, pooled, mask = pipe.encode_prompt(
            captions, prompt_template=self.defaults["prompt_template"], max_sequence_length=TEXT_LENGTH
        )
        return {"states": states, "pooled": pooled, "mask": mask}

    def call(self, transformer: Any, noisy: Noisy, text: dict[str, Tensor], guidance: Tensor | None) -> Tensor:
        """The weight of guidance is told times 1,000."""
        assert guidance is not None
        return transformer(
            hidden_states=noisy.sample,
            timestep=noisy.time,
            encoder_hidden_states=text["states"],
            encoder_attention_mask=text["mask"],
            pooled_projections=text["pooled"],
            guidance=1000 * guidance,
            return_dict=False,
        )[0]


class Stickers(Bed):
    """StableDiffusion3Pipeline: a picture, joint blocks alone, strong guidance in one call."""

    name, kind = "stickers", "StableDiffusion3Pipeline"
    height, width = 64, 64
    world = worlds.stickers(height, width)
    stages = (Stage("pictures", 4500, 24, 0, 2e-3, 1e-4),)
    noising: Noising = Flow(shift=1.5)
    defaults = {
        "height": height,
        "width": width,
        "guidance_scale": 7.0,
        "num_inference_steps": 28,
        "max_sequence_length": TEXT_LENGTH,
    }

    def transformer(self) -> Any:
        """4 joint blocks, 2 heads of 64."""
        model = diffusers.SD3Transformer2DModel(
            sample_size=16,
            patch_size=1,
            in_channels=12,
            out_channels=12,
            num_layers=4,
            attention_head_dim=HEAD_WIDTH,
            num_attention_heads=HEADS,
            joint_attention_dim=TEXT_WIDTH,
            caption_projection_dim=WIDTH,
            pooled_projection_dim=2 * POOLED_WIDTH,
            pos_embed_max_size=16,
            qk_norm="rms_norm",
        )
        return initialised(model, model.proj_out)

    def autoencoder(self, data: Tensor) -> LinearAutoencoder:
        """4x4 pixels to 12 numbers."""
        return LinearAutoencoder.fitted(data, (1, 4, 4), 12)

    def other_parts(self) -> dict[str, Any]:
        """Two of CLIP's kind and a T5 read the captions."""
        parts: dict[str, Any] = {"scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)}
        for end in ("", "_2"):
            tokenizer = components.build_tokenizer(self.world.words)
            tokenizer.model_max_length = TEXT_LENGTH
            parts |= {f"tokenizer{end}": tokenizer, f"text_encoder{end}": clip_encoder(len(tokenizer), projected=True)}
        return parts | {f"{name}_3": part for name, part in t5_parts(self.world.words).items()}

    def encode(self, pipe: Any, captions: list[str]) -> dict[str, Tensor]:
        """States of all three, and CLIP's one state."""
        states, _, pooled, _ = pipe.encode_prompt(
            captions, None, None, do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH
        )
        return {"states": states, "pooled": pooled}

    def call(self, transformer: Any, noisy: Noisy, text: dict[str, Tensor], guidance: Tensor | None) -> Tensor:
        """As the pipeline does."""
        return transformer(
            hidden_states=noisy.sample,
            timestep=noisy.time,
            encoder_hidden_states=text["states"],
            pooled_projections=text["pooled"],
            return_dict=False,
        )[0]


class Hills(Bed):
    """PixArtAlphaPipeline: a picture, prediction of noise, DPM-Solver++."""

    name, kind = "hills", "PixArtAlphaPipeline"
    height, width = 64, 64
    world = worlds.hills(height, width)
    stages = (Stage("pictures", 4500, 24, 0, 2e-3, 1e-4),)
    defaults = {
        "height": height,
        "width": width,
        "guidance_scale": 4.5,
        "num_inference_steps": 30,
        "max_sequence_length": TEXT_LENGTH,
        "clean_caption": False,
        "use_resolution_binning": False,
    }

    @functools.cached_property
    def noising(self) -> Noising:
        """The scheduler's own variances."""
        return Diffusion(self._scheduler())

    def transformer(self) -> Any:
        """7 blocks with cross-attention, 2 heads of 64."""
        model = diffusers.PixArtTransformer2DModel(
            num_attention_heads=HEADS,
            attention_head_dim=HEAD_WIDTH,
            in_channels=12,
            out_channels=12,
            num_layers=6,
            cross_attention_dim=WIDTH,
            sample_size=16,
            patch_size=1,
            caption_channels=TEXT_WIDTH,
            use_additional_conditions=False,
        )
        return initialised(model, model.proj_out, [block.scale_shift_table for block in model.transformer_blocks])

    def autoencoder(self, data: Tensor) -> LinearAutoencoder:
        """4x4 pixels to 12 numbers."""
        return LinearAutoencoder.fitted(data, (1, 4, 4), 12)

    def _scheduler(self) -> Any:
        return diffusers.DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02)

    def other_parts(self) -> dict[str, Any]:
        """DPM-Solver++ of order 2."""
        return {"scheduler": self._scheduler(), **t5_parts(self.world.words)}

    def encode(self, pipe: Any, captions: list[str]) -> dict[str, Tensor]:
        """States and mask of T5."""
        states, mask, _, _ = pipe.encode_prompt(
            captions, do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH, clean_caption=False
        )
        return {"states": states, "mask": mask}

    def call(self, transformer: Any, noisy: Noisy, text: dict[str, Tensor], guidance: Tensor | None) -> Tensor:
        """As the pipeline does."""
        return transformer(
            noisy.sample,
            encoder_hidden_states=text["states"],
            encoder_attention_mask=text["mask"],
            timestep=noisy.time,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]


class Chimes(Bed):
    """StableAudioPipeline: sound, prediction of a velocity, levels by the logarithm of the deviation of noise."""

    name, kind = "chimes", "StableAudioPipeline"
    rate, hop, length = 4000, 16, 400  # samples a second, samples to a position, positions
    world = worlds.chimes(hop * length, rate)
    stages = (Stage("sounds", 3200, 16, 0, 2e-3, 1e-4),)
    noising: Noising = Velocity()
    defaults = {
        "audio_end_in_s": hop * length / rate,
        "guidance_scale": 3.0,
        "num_inference_steps": 30,
    }

    def transformer(self) -> Any:
        """6 blocks with cross-attention, 2 heads of 64 that share one of keys and values."""
        model = diffusers.StableAudioDiTModel(
            sample_size=self.length,
            in_channels=8,
            out_channels=8,
            num_layers=6,
            attention_head_dim=HEAD_WIDTH,
            num_attention_heads=HEADS,
            num_key_value_attention_heads=1,
            cross_attention_dim=WIDTH,
            time_proj_dim=64,
            global_states_input_dim=2 * TEXT_WIDTH,
            cross_attention_input_dim=TEXT_WIDTH,
        )
        return initialised(model, model.proj_out)

    def autoencoder(self, data: Tensor) -> LinearAutoencoder:
        """16 samples to 8 numbers."""
        return LinearAutoencoder.fitted(data, (1, 1, self.hop), 8, sampling_rate=self.rate)

    def other_parts(self) -> dict[str, Any]:
        """DPM-Solver++ over the levels of Karras et al. (2022)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            projection = StableAudioProjectionModel(TEXT_WIDTH, TEXT_WIDTH, 0, 4).requires_grad_(False)
        scheduler = diffusers.EDMDPMSolverMultistepScheduler(
            sigma_min=0.02, sigma_max=80.0, sigma_data=1.0, prediction_type="v_prediction", sigma_schedule="exponential"
        )
        return {"scheduler": scheduler, "projection_model": projection, **t5_parts(self.world.words)}

    def encode(self, pipe: Any, captions: list[str]) -> dict[str, Tensor]:
        """States of T5 and of the duration; nothing at all for an empty caption, as in the pipeline."""
        states = pipe.encode_prompt(captions, torch.device("cpu"), False)
        start, end = pipe.encode_duration(0.0, self.defaults["audio_end_in_s"], "cpu", False, len(captions))
        states = torch.cat([states, start, end], 1)
        told = torch.tensor([float(bool(caption)) for caption in captions]).view(-1, 1, 1)
        return {"states": states * told, "duration": torch.cat([start, end], 2)}

    def call(self, transformer: Any, noisy: Noisy, text: dict[str, Tensor], guidance: Tensor | None) -> Tensor:
        """As the pipeline does."""
        rotary = get_1d_rotary_pos_embed(
            HEAD_WIDTH // 2, noisy.sample.shape[2] + 1, use_real=True, repeat_interleave_real=False
        )
        return transformer(
            noisy.sample,
            noisy.time,
            encoder_hidden_states=text["states"],
            global_hidden_states=text["duration"],
            rotary_embedding=rotary,
            return_dict=False,
        )[0]


class Bunny(Bed):
    """WanPipeline on real film: both branches of guidance in calls of their own, UniPC, 33 frames."""

    name, kind = "bunny", "WanPipeline"
    frames, height, width = film_data.FRAMES, 48, 80
    stages = (Stage("frames", 1200, 32, 1, 2e-3, 1e-3), Stage("clips", 1700, 8, frames, 1.5e-3, 1e-4))
    noising: Noising = Flow(shift=2.5)
    defaults = {
        "height": height,
        "width": width,
        "num_frames": frames,
        "guidance_scale": 4.0,
        "num_inference_steps": 30,
        "max_sequence_length": TEXT_LENGTH,
        "fps": film_data.FPS,
    }

    def __init__(self) -> None:
        self.world = worlds.film(self.frames, self.height, self.width)

    def prepare(self, out: Path) -> None:
        """Fetches the film, and cuts it."""
        self.world = worlds.film(self.frames, self.height, self.width, film_data.make_clips(out / "clips.npz"))

    def transformer(self) -> Any:
        """6 blocks with cross-attention, 2 heads of 64."""
        model = diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=HEADS,
            attention_head_dim=HEAD_WIDTH,
            in_channels=16,
            out_channels=16,
            text_dim=TEXT_WIDTH,
            freq_dim=64,
            ffn_dim=512,
            num_layers=6,
            rope_max_seq_len=64,
        )
        return initialised(model, model.proj_out, [block.scale_shift_table for block in model.blocks])

    def autoencoder(self, data: Tensor) -> LinearAutoencoder:
        """4 frames of 4x4 pixels to 16 numbers."""
        return LinearAutoencoder.fitted(data, (4, 4, 4), 16)

    def other_parts(self) -> dict[str, Any]:
        """UniPC with levels moved far towards noise."""
        scheduler = diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=5.0
        )
        tokenizer = components.build_tokenizer(self.world.words)
        encoder = components.frozen_encoder(transformers.UMT5EncoderModel, transformers.UMT5Config, len(tokenizer))
        return {"scheduler": scheduler, "tokenizer": tokenizer, "text_encoder": encoder}

    def encode(self, pipe: Any, captions: list[str]) -> dict[str, Tensor]:
        """States of UMT5, zero after the end."""
        states, _ = pipe.encode_prompt(captions, do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH)
        return {"states": states}

    def call(self, transformer: Any, noisy: Noisy, text: dict[str, Tensor], guidance: Tensor | None) -> Tensor:
        """As the pipeline does."""
        return transformer(
            hidden_states=noisy.sample, timestep=noisy.time, encoder_hidden_states=text["states"], return_dict=False
        )[0]


_BEDS: dict[str, Callable[[], Bed]] = {kind.name: kind for kind in (Ripples, Letters, Bunny, Stickers, Hills, Chimes)}


def bed(name: str) -> Bed:
    """The test-bed of a name of `unicp_testbeds.beds.NAMES`."""
    return _BEDS[name]()
