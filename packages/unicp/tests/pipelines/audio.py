"""Pipelines of sound."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers.pipelines.ace_step import AceStepConditionEncoder
from diffusers.pipelines.stable_audio import StableAudioProjectionModel

from tests.pipelines import parts
from tests.pipelines.parts import transformer
from tests.pipelines.rows import LATENT, Row
from tests.tiny_more import CHANNELS, TEXT_WIDTH


def _vae() -> Any:
    return parts.vae(
        "AutoencoderOobleck",
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=CHANNELS,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )


def _stable_audio() -> dict[str, Any]:
    width = 8
    projection = parts.seeded(
        lambda: StableAudioProjectionModel(
            text_encoder_dim=TEXT_WIDTH, conditioning_dim=width, min_value=0, max_value=32
        )
    )
    return {
        "tokenizer": parts.tokenizer(model_max_length=16),
        "text_encoder": parts.t5(),
        "vae": _vae(),
        "projection_model": projection,
        "transformer": transformer("stable_audio", cross_attention_input_dim=width, global_states_input_dim=2 * width),
        "scheduler": diffusers.EDMDPMSolverMultistepScheduler(
            sigma_min=0.3, sigma_max=500, sigma_data=1.0, sigma_schedule="exponential", prediction_type="v_prediction"
        ),
    }


def _ace_step() -> dict[str, Any]:
    encoder = parts.seeded(
        lambda: AceStepConditionEncoder(
            hidden_size=TEXT_WIDTH,
            intermediate_size=16,
            text_hidden_dim=TEXT_WIDTH,
            timbre_hidden_dim=CHANNELS,
            num_lyric_encoder_hidden_layers=1,
            num_timbre_encoder_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            sliding_window=16,
        )
    )
    return {
        "tokenizer": parts.tokenizer(),
        "text_encoder": parts.decoder("Qwen3Model", "Qwen3Config", layers=2),
        "vae": _vae(),
        "condition_encoder": encoder,
        "transformer": transformer("ace_step"),
        "scheduler": parts.flow(num_train_timesteps=1),
    }


AUDIO: tuple[Row, ...] = (
    Row(
        "stable_audio",
        "StableAudioPipeline",
        _stable_audio,
        LATENT | {"guidance_scale": 3.0, "negative_prompt": parts.NEGATIVE, "audio_end_in_s": 3.0},
        calls=(2,),
    ),
    Row(
        "ace_step",
        "AceStepPipeline",
        _ace_step,
        LATENT | {"audio_duration": 0.4, "lyrics": "a red star", "max_text_length": 32, "guidance_scale": 3.0},
        calls=(2,),
    ),
)
