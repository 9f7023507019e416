"""A tiny Wan pipeline with random weights in a folder: real diffusers classes, for wiring and never for quality."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.wan.pipeline_wan import WanPipeline

from tests import tiny_models
from unicp_testbeds import components

STEPS, FRAMES, SIZE = 6, 5, 32
DEFAULTS = {
    "height": SIZE,
    "width": SIZE,
    "num_frames": FRAMES,
    "guidance_scale": 3.0,
    "num_inference_steps": STEPS,
    "max_sequence_length": 16,
    "fps": 8,
}


def save(folder: Path) -> Path:
    """Writes the pipeline, with `unicp_defaults.json`, and returns its folder."""
    tokenizer = components.build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        autoencoder = components.build_autoencoder().eval()
    channels = components.LATENT_CHANNELS
    # Wan's annotations name its usual parts, its checkpoints others.
    parts: dict[str, Any] = {
        "tokenizer": tokenizer,
        "text_encoder": components.build_text_encoder(len(tokenizer)),
        "vae": autoencoder,
        "transformer": tiny_models.wan(in_channels=channels, out_channels=channels, text_dim=components.TEXT_WIDTH),
        "scheduler": components.build_scheduler(),
    }
    WanPipeline(**parts).save_pretrained(folder)
    (folder / "unicp_defaults.json").write_text(json.dumps(DEFAULTS))
    return folder
