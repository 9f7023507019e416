"""Tiny random transformers of diffusers, inputs for them and a denoising loop: for wiring, never for quality."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import Any

import diffusers
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

# Models whose class this diffusers does not have: name and class.
ABSENT = {name: kind for name, (kind, _) in CONFIGS.items() if not hasattr(diffusers, kind)}
NAMES = ("wan", "cogvideox", "latte", "hunyuan_video", *(name for name in CONFIGS if name not in ABSENT))


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


def build(name: str, **changes: Any) -> nn.Module:
    """The tiny transformer of that name (one of NAMES); every call gives the same weights. changes: of its config."""
    if name in CONFIGS:
        kind, config = CONFIGS[name]
        return _seeded(getattr(diffusers, kind), config | changes)
    return {"wan": wan, "cogvideox": cogvideox, "latte": latte, "hunyuan_video": hunyuan_video}[name](**changes)


@functools.cache
def shared(name: str) -> nn.Module:
    """One tiny transformer of each name for all tests that leave it as it was."""
    return build(name)


def flow_scheduler(name: str) -> Any:
    """A flow-matching scheduler that counts its timesteps as the model does."""
    return FlowMatchEulerDiscreteScheduler(invert_sigmas=name == "mochi")


def inputs(name: str, batch: int = 1, seed: int = 0, timestep: float = 500.0) -> dict[str, Any]:
    """Keyword arguments for one forward call; sample and text depend on `seed`, samples of a batch differ.

    timestep: 1000 at pure noise; the model gets it in its own count. Names are the usual ones: see `call`.
    """
    generator = torch.Generator().manual_seed(seed)
    arguments = {
        "hidden_states": torch.randn(batch, *sample_shape(name), generator=generator),
        "timestep": _counted(name, torch.full((batch,), float(timestep))),
        "encoder_hidden_states": torch.randn(batch, TEXT_TOKENS, TEXT_WIDTH, generator=generator),
        "return_dict": False,
    }
    return arguments | more_inputs(name, batch, generator)


def own(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `inputs` as the model takes them, under its own names and in its own shapes."""
    if name == "z_image":
        sample, text, timestep = (arguments.pop(key) for key in ("hidden_states", "encoder_hidden_states", "timestep"))
        return arguments | {"x": list(sample.unbind()), "cap_feats": list(text.unbind()), "t": timestep}
    if name == "anyflow":
        timestep = arguments["timestep"][:, None].expand(-1, FRAMES)
        return arguments | {"timestep": timestep, "r_timestep": timestep}
    if name == "ace_step":
        return arguments | {"timestep_r": arguments["timestep"]}
    return arguments


def call(transformer: nn.Module, name: str, arguments: dict[str, Any]) -> Any:
    """One forward call with arguments as `inputs` gives them; the output is as the model gives it."""
    return transformer(**own(name, dict(arguments)))


def first(output: Any) -> Tensor:
    """The first tensor of an output, batch first."""
    tensor = output if isinstance(output, Tensor) else output[0]
    return tensor if isinstance(tensor, Tensor) else torch.stack(list(tensor))


_FROM_ONE = ("cosmos", "flux", "qwen_image", "flux2", "chroma", "aura_flow", "stable_audio", "ace_step")
# Their timestep rises, and their output has the opposite sign.
_RISING = ("z_image", "lumina2", "minimax_h3")


def _counted(name: str, timestep: Tensor) -> Tensor:
    if name == "mochi":
        return 1000.0 - timestep
    if name in _RISING:
        return 1.0 - timestep / 1000.0
    return timestep / 1000.0 if name in _FROM_ONE else timestep


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
    dtype: torch.dtype = torch.float32,
    text: Tensor | None = None,
) -> Tensor:
    """The final sample of a minimal guided run, shaped like the sample of `inputs`.

    Without a scheduler: Euler steps of a flow, noise level linear from 1 to 0, timestep = 1000 x noise level.
    With one: its own timesteps (as the model counts them) and `step`. branches: 1 = with the prompt only, 2 = with and
    without, one after the other. use_cache_context: call the transformer inside `cache_context("cond")` and
    `("uncond")`, as Wan's pipeline does. text: of the branch with the prompt, in place of that of the seed.
    """
    conditions = {"cond": inputs(name, batch, seed), "uncond": inputs(name, batch, seed + 1)}
    if text is not None:
        conditions["cond"]["encoder_hidden_states"] = text
    for branch, given in conditions.items():
        floats = {key: value for key, value in given.items() if isinstance(value, Tensor) and value.is_floating_point()}
        conditions[branch] = given | {key: value.to(dtype) for key, value in floats.items()}
    sample = conditions["cond"]["hidden_states"]
    audio = conditions["cond"].get("audio_hidden_states")
    levels = torch.linspace(1.0, 0.0, steps + 1)
    if scheduler is not None:
        scheduler.set_timesteps(steps)
    timesteps = _counted(name, levels[:-1] * 1000) if scheduler is None else scheduler.timesteps
    for step, timestep in enumerate(timesteps):
        outputs, audio_outputs = [], []
        for branch in tuple(conditions)[:branches]:
            given = timestep if scheduler is None or name == "mochi" else _counted(name, timestep)
            changes = {"hidden_states": sample, "timestep": given.expand(batch)}
            if audio is not None:
                changes["audio_hidden_states"] = audio
            with transformer.cache_context(branch) if use_cache_context else nullcontext():  # pyright: ignore
                output = call(transformer, name, conditions[branch] | changes)
            if audio is not None:
                audio_outputs.append(output[1])
            output = first(output) if name not in _RISING else -first(output)
            outputs.append(output[:, :CHANNELS] if name in ("latte", "pixart") else output)
        if audio is not None:
            # The video follows from the audio at the next step, so that what is served of it shows in the end.
            audio = audio + (levels[step + 1] - levels[step]) * audio_outputs[0]
        velocity = outputs[0] if branches == 1 else outputs[1] + guidance * (outputs[0] - outputs[1])
        if velocity.shape[1] < sample.shape[1]:
            # Condition channels behind those of the sample stay as they are.
            velocity = torch.cat([velocity, torch.zeros_like(sample[:, velocity.shape[1] :])], dim=1)
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
        for name, parameter in transformer.named_parameters():
            # diffusers 0.36 leaves pad tokens as they lie in memory.
            if not parameter.detach().any() or name.endswith("pad_token"):
                nn.init.normal_(parameter, std=0.1)
    return transformer.eval().requires_grad_(False)
