"""Configurations and inputs of the tiny transformers that need nothing but numbers; `tiny_models` builds them."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import torch
from torch import Tensor

from tests.tiny_more import (
    CHANNELS,
    FRAMES,
    HEAD_WIDTH,
    HEADS,
    LAYERS,
    MORE,
    POOLED_WIDTH,
    SIZE,
    TEXT_TOKENS,
    TEXT_WIDTH,
    WAN,
)

_WIDTH = HEADS * HEAD_WIDTH
_SHAPE = {"num_attention_heads": HEADS, "attention_head_dim": HEAD_WIDTH, "num_layers": LAYERS}
_IN_OUT = {"in_channels": CHANNELS, "out_channels": CHANNELS}
_WAN = WAN | {"rope_max_seq_len": 32}
_HUNYUAN = {
    **_SHAPE,
    **_IN_OUT,
    "num_refiner_layers": 1,
    "mlp_ratio": 2.0,
    "patch_size": 2,
    "patch_size_t": 1,
    "text_embed_dim": TEXT_WIDTH,
    "rope_axes_dim": (4, 6, 6),
}

# Classes by name, since an older diffusers lacks some.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "skyreels_v2": ("SkyReelsV2Transformer3DModel", _WAN),
    "wan_vace": ("WanVACETransformer3DModel", _WAN | {"vace_layers": [0, 1], "vace_in_channels": 5}),
    "ltx": (
        "LTXVideoTransformer3DModel",
        _SHAPE | _IN_OUT | {"cross_attention_dim": _WIDTH, "caption_channels": TEXT_WIDTH},
    ),
    "mochi": (
        "MochiTransformer3DModel",
        {
            **_SHAPE,
            **_IN_OUT,
            "pooled_projection_dim": 16,
            # Its pooling has 8 heads.
            "text_embed_dim": 16,
            "time_embed_dim": 8,
            "max_sequence_length": 16,
        },
    ),
    "allegro": (
        "AllegroTransformer3DModel",
        {
            **_SHAPE,
            **_IN_OUT,
            "cross_attention_dim": _WIDTH,
            "sample_height": SIZE,
            "sample_width": SIZE,
            "sample_frames": FRAMES,
            "caption_channels": TEXT_WIDTH,
        },
    ),
    "hunyuan_video15": (
        "HunyuanVideo15Transformer3DModel",
        _HUNYUAN | {"text_embed_2_dim": POOLED_WIDTH, "image_embed_dim": POOLED_WIDTH},
    ),
    "framepack": (
        "HunyuanVideoFramepackTransformer3DModel",
        {
            **_HUNYUAN,
            "num_single_layers": LAYERS,
            "pooled_projection_dim": POOLED_WIDTH,
            "has_image_proj": True,
            "image_proj_dim": POOLED_WIDTH,
            "has_clean_x_embedder": True,
        },
    ),
    "consisid": (
        "ConsisIDTransformer3DModel",
        {
            **_SHAPE,
            **_IN_OUT,
            "time_embed_dim": 8,
            "text_embed_dim": TEXT_WIDTH,
            "sample_width": SIZE,
            "sample_height": SIZE,
            "sample_frames": 4 * (FRAMES - 1) + 1,
            "max_text_seq_length": TEXT_TOKENS,
        },
    ),
    "sana_video": (
        "SanaVideoTransformer3DModel",
        {
            **_SHAPE,
            **_IN_OUT,
            "num_cross_attention_heads": HEADS,
            "cross_attention_head_dim": HEAD_WIDTH,
            "cross_attention_dim": _WIDTH,
            "caption_channels": TEXT_WIDTH,
            "rope_max_seq_len": 32,
        },
    ),
    "kandinsky5": (
        "Kandinsky5Transformer3DModel",
        {
            "in_visual_dim": CHANNELS,
            "out_visual_dim": CHANNELS,
            "in_text_dim": TEXT_WIDTH,
            "in_text_dim2": POOLED_WIDTH,
            "time_dim": 16,
            "model_dim": _WIDTH,
            "ff_dim": 48,
            "num_text_blocks": 1,
            "num_visual_blocks": LAYERS,
            "axes_dims": (4, 6, 6),
        },
    ),
    "chrono_edit": ("ChronoEditTransformer3DModel", _WAN),
    "cosmos": (
        "CosmosTransformer3DModel",
        {
            **_SHAPE,
            **_IN_OUT,
            "text_embed_dim": TEXT_WIDTH,
            "adaln_lora_dim": 4,
            "max_size": (FRAMES, SIZE, SIZE),
            "concat_padding_mask": False,
        },
    ),
    "easy_animate": (
        "EasyAnimateTransformer3DModel",
        {
            **_SHAPE,
            **_IN_OUT,
            # The second block is one of those that send both streams through one feed-forward.
            "mmdit_layers": 1,
            "patch_size": 2,
            "sample_width": SIZE,
            "sample_height": SIZE,
            "time_embed_dim": 8,
            "text_embed_dim": TEXT_WIDTH,
        },
    ),
    "flux": (
        "FluxTransformer2DModel",
        {
            **_SHAPE,
            **_IN_OUT,
            "num_single_layers": LAYERS,
            "joint_attention_dim": TEXT_WIDTH,
            "pooled_projection_dim": POOLED_WIDTH,
            "axes_dims_rope": (4, 6, 6),
        },
    ),
    "qwen_image": (
        "QwenImageTransformer2DModel",
        _SHAPE | _IN_OUT | {"patch_size": 1, "joint_attention_dim": TEXT_WIDTH, "axes_dims_rope": (4, 6, 6)},
    ),
    "pixart": (
        "PixArtTransformer2DModel",
        {
            **_SHAPE,
            "in_channels": CHANNELS,
            "out_channels": 2 * CHANNELS,
            "cross_attention_dim": _WIDTH,
            "caption_channels": TEXT_WIDTH,
            "sample_size": SIZE,
        },
    ),
    **{name: (tiny.kind, tiny.config) for name, tiny in MORE.items()},
}


def sample_shape(name: str) -> tuple[int, ...]:
    """Shape of the sample that a model takes, without the batch."""
    if name in MORE:
        return MORE[name].sample
    if name in ("cogvideox", "consisid"):
        return FRAMES, CHANNELS, SIZE, SIZE
    if name == "ltx":
        return FRAMES * SIZE * SIZE // 4, CHANNELS
    if name in ("flux", "qwen_image"):
        return SIZE * SIZE // 4, CHANNELS
    if name == "pixart":
        return CHANNELS, SIZE, SIZE
    if name == "kandinsky5":
        return FRAMES, SIZE, SIZE, CHANNELS
    return CHANNELS, FRAMES, SIZE, SIZE


def more_inputs(name: str, batch: int, generator: torch.Generator) -> dict[str, Any]:
    """What a model takes besides sample, timestep and text; where there is a mask, the last text token is masked."""

    def noise(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    if name in MORE:
        return MORE[name].more(noise, batch)
    mask = torch.ones(batch, TEXT_TOKENS)
    mask[:, -1] = 0
    masked = {"encoder_attention_mask": mask}
    if name == "hunyuan_video":
        pooled = noise(POOLED_WIDTH)
        return masked | {"pooled_projections": pooled, "guidance": torch.full((batch,), 6000.0)}
    if name == "wan_vace":
        return {"control_hidden_states": noise(5, FRAMES, SIZE, SIZE)}
    if name == "mochi":
        return masked | {"encoder_hidden_states": noise(TEXT_TOKENS, 16)}
    if name == "ltx":
        return masked | {"num_frames": FRAMES, "height": SIZE // 2, "width": SIZE // 2}
    if name == "hunyuan_video15":
        glyphs = {"encoder_hidden_states_2": noise(2, POOLED_WIDTH), "encoder_attention_mask_2": torch.ones(batch, 2)}
        return masked | glyphs | {"image_embeds": torch.zeros(batch, 3, POOLED_WIDTH)}
    if name == "flux":
        places = torch.cartesian_prod(torch.arange(1.0), torch.arange(SIZE / 2), torch.arange(SIZE / 2))
        positions = {"img_ids": places, "txt_ids": torch.zeros(TEXT_TOKENS, 3)}
        return positions | {"pooled_projections": noise(POOLED_WIDTH)}
    if name == "qwen_image":
        shapes = {"encoder_hidden_states_mask": mask.bool(), "img_shapes": [[(1, SIZE // 2, SIZE // 2)]] * batch}
        # Before diffusers 0.39 lengths of texts were given too.
        forward = inspect.signature(diffusers.QwenImageTransformer2DModel.forward).parameters
        return shapes | ({"txt_seq_lens": [TEXT_TOKENS] * batch} if "txt_seq_lens" in forward else {})
    if name == "framepack":
        return masked | _framepack(noise) | {"guidance": torch.full((batch,), 6000.0)}
    if name == "kandinsky5":
        # Without return_dict the model gives a bare tensor, of which [0] is the first sample.
        places = [torch.arange(length) for length in (FRAMES, SIZE // 2, SIZE // 2)]
        positions = {"visual_rope_pos": places, "text_rope_pos": torch.arange(TEXT_TOKENS)}
        return positions | {"pooled_projections": noise(POOLED_WIDTH), "return_dict": True}
    return masked if name in ("allegro", "sana_video", "pixart") else {}


def _framepack(noise: Any) -> dict[str, Any]:
    return {
        "pooled_projections": noise(POOLED_WIDTH),
        "image_embeds": noise(3, POOLED_WIDTH),
        "indices_latents": torch.arange(7, 7 + FRAMES),
        "latents_clean": noise(CHANNELS, 1, SIZE, SIZE),
        "indices_latents_clean": torch.arange(0, 1),
        "latents_history_2x": noise(CHANNELS, 2, SIZE, SIZE),
        "indices_latents_history_2x": torch.arange(1, 3),
        "latents_history_4x": noise(CHANNELS, 4, SIZE, SIZE),
        "indices_latents_history_4x": torch.arange(3, 7),
    }
