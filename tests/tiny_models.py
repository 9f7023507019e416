"""Tiny random transformers of diffusers, inputs for them and a denoising loop: for wiring, never for quality."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoTransformer3DModel,
    LatteTransformer3DModel,
    WanTransformer3DModel,
)
from torch import Tensor, nn

from tests.tiny_configs import (
    CHANNELS,
    CONFIGS,
    FRAMES,
    HEAD_WIDTH,
    HEADS,
    LAYERS,
    POOLED_WIDTH,
    SIZE,
    TEXT_TOKENS,
    TEXT_WIDTH,
    more_inputs,
    sample_shape,
)

NAMES = ("wan", "cogvideox", "latte", "hunyuan_video", *CONFIGS)


def wan(**changes: Any) -> WanTransformer3DModel:
    """Self- and cross-attention, sample (batch, 4, 3, 8, 8), 48 tokens."""
    config = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": HEADS,
        "attention_head_dim": HEAD_WIDTH,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "text_dim": TEXT_WIDTH,
        "freq_dim": 32,
        "ffn_dim": 48,
        "num_layers": LAYERS,
        "rope_max_seq_len": 32,
    }
    return _seeded(WanTransformer3DModel, config | changes)


def cogvideox(**changes: Any) -> CogVideoXTransformer3DModel:
    """Joint attention with shared weights, sample (batch, 3, 4, 8, 8): frames before channels."""
    config = {
        "num_attention_heads": HEADS,
        "attention_head_dim": HEAD_WIDTH,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "time_embed_dim": 8,
        "text_embed_dim": TEXT_WIDTH,
        "num_layers": LAYERS,
        "sample_width": SIZE,
        "sample_height": SIZE,
        "sample_frames": 4 * (FRAMES - 1) + 1,
        "max_text_seq_length": TEXT_TOKENS,
    }
    return _seeded(CogVideoXTransformer3DModel, config | changes)


def latte(**changes: Any) -> LatteTransformer3DModel:
    """Spatial, temporal and cross-attention, sample (batch, 4, 3, 8, 8), output with 8 channels (learned variance)."""
    config = {
        "num_attention_heads": HEADS,
        "attention_head_dim": HEAD_WIDTH,
        "in_channels": CHANNELS,
        "out_channels": 2 * CHANNELS,
        "num_layers": LAYERS,
        "cross_attention_dim": HEADS * HEAD_WIDTH,
        "attention_bias": True,
        "sample_size": SIZE,
        "patch_size": 2,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "caption_channels": TEXT_WIDTH,
        "video_length": FRAMES,
    }
    return _seeded(LatteTransformer3DModel, config | changes)


def hunyuan_video(**changes: Any) -> HunyuanVideoTransformer3DModel:
    """Two double and two single joint blocks, sample (batch, 4, 3, 8, 8), the last text token masked."""
    config = {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "num_attention_heads": HEADS,
        "attention_head_dim": HEAD_WIDTH,
        "num_layers": LAYERS,
        "num_single_layers": LAYERS,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "patch_size": 2,
        "patch_size_t": 1,
        "guidance_embeds": True,
        "text_embed_dim": TEXT_WIDTH,
        "pooled_projection_dim": POOLED_WIDTH,
        "rope_axes_dim": (4, 6, 6),
    }
    return _seeded(HunyuanVideoTransformer3DModel, config | changes)


def build(name: str) -> nn.Module:
    """The tiny transformer of that name (one of NAMES); every call gives the same weights."""
    if name in CONFIGS:
        kind, config = CONFIGS[name]
        return _seeded(kind, config)
    return {"wan": wan, "cogvideox": cogvideox, "latte": latte, "hunyuan_video": hunyuan_video}[name]()


def flow_scheduler(name: str) -> Any:
    """A flow-matching scheduler that counts its timesteps as the model does."""
    return FlowMatchEulerDiscreteScheduler(invert_sigmas=name == "mochi")


def inputs(name: str, batch: int = 1, seed: int = 0, timestep: float = 500.0) -> dict[str, Any]:
    """Keyword arguments for one forward call; sample and text depend on `seed`, samples of a batch differ.

    timestep: 1000 at pure noise; the model gets it in its own count.
    """
    generator = torch.Generator().manual_seed(seed)
    arguments = {
        "hidden_states": torch.randn(batch, *sample_shape(name), generator=generator),
        "timestep": _counted(name, torch.full((batch,), float(timestep))),
        "encoder_hidden_states": torch.randn(batch, TEXT_TOKENS, TEXT_WIDTH, generator=generator),
        "return_dict": False,
    }
    return arguments | more_inputs(name, batch, generator)


def _counted(name: str, timestep: Tensor) -> Tensor:
    if name == "mochi":
        return 1000.0 - timestep
    return timestep / 1000.0 if name in ("cosmos", "flux", "qwen_image") else timestep


@torch.no_grad()
def denoise(
    transformer: nn.Module,
    name: str,
    steps: int = 8,
    guidance: float = 3.0,
    scheduler: Any = None,
    branches: int = 2,
    use_cache_context: bool = False,
    seed: int = 0,
    batch: int = 1,
) -> Tensor:
    """The final sample of a minimal guided run, shaped like the sample of `inputs`.

    Without a scheduler: Euler steps of a flow, noise level linear from 1 to 0, timestep = 1000 x noise level.
    With one: its own timesteps (as the model counts them) and `step`. branches: 1 = with the prompt only, 2 = with and
    without, one after the other. use_cache_context: call the transformer inside `cache_context("cond")` and
    `("uncond")`, as Wan's pipeline does.
    """
    conditions = {"cond": inputs(name, batch, seed), "uncond": inputs(name, batch, seed + 1)}
    sample = conditions["cond"]["hidden_states"]
    levels = torch.linspace(1.0, 0.0, steps + 1)
    if scheduler is not None:
        scheduler.set_timesteps(steps)
    timesteps = _counted(name, levels[:-1] * 1000) if scheduler is None else scheduler.timesteps
    for step, timestep in enumerate(timesteps):
        outputs = []
        for branch in tuple(conditions)[:branches]:
            given = timestep if scheduler is None or name == "mochi" else _counted(name, timestep)
            changes = {"hidden_states": sample, "timestep": given.expand(batch)}
            with transformer.cache_context(branch) if use_cache_context else nullcontext():  # pyright: ignore
                output = transformer(**(conditions[branch] | changes))[0]
            outputs.append(output[:, :CHANNELS] if name in ("latte", "pixart") else output)
        velocity = outputs[0] if branches == 1 else outputs[1] + guidance * (outputs[0] - outputs[1])
        if scheduler is None:
            sample = sample + (levels[step + 1] - levels[step]) * velocity
        else:
            sample = scheduler.step(velocity, timestep, sample, return_dict=False)[0]
    return sample


def _seeded(kind: Any, config: dict[str, Any]) -> Any:
    """A transformer in eval mode whose weights depend on nothing but its config; torch's global seed is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = kind(**config)
        for parameter in transformer.parameters():
            if not parameter.detach().any():
                nn.init.normal_(parameter, std=0.1)
    return transformer.eval().requires_grad_(False)
