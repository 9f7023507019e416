"""Configurations and inputs of more tiny transformers: each in one place, with what it takes besides the usual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor

LAYERS, HEADS, HEAD_WIDTH = 2, 2, 16
CHANNELS, FRAMES, SIZE = 4, 3, 8
TEXT_TOKENS, TEXT_WIDTH, POOLED_WIDTH = 6, 12, 8
AUDIO_TOKENS = 5
WIDTH = HEADS * HEAD_WIDTH

SHAPE = {"num_attention_heads": HEADS, "attention_head_dim": HEAD_WIDTH, "num_layers": LAYERS}
IN_OUT = {"in_channels": CHANNELS, "out_channels": CHANNELS}
WAN = {
    **SHAPE,
    **IN_OUT,
    "patch_size": (1, 2, 2),
    "text_dim": TEXT_WIDTH,
    "freq_dim": 32,
    "ffn_dim": 48,
}
_IMAGE_TOKENS = SIZE * SIZE // 4
_VIDEO_TOKENS = FRAMES * _IMAGE_TOKENS
Noise = Callable[..., Tensor]


@dataclass(frozen=True)
class Tiny:
    """One tiny model. kind: name of its class. sample: shape without the batch. more: further arguments, from
    `noise(*shape)` and the batch."""

    kind: str
    config: dict[str, Any]
    sample: tuple[int, ...]
    more: Callable[[Noise, int], dict[str, Any]] = lambda noise, batch: {}


def mask(batch: int) -> dict[str, Tensor]:
    """The last text token is masked."""
    kept = torch.ones(batch, TEXT_TOKENS)
    kept[:, -1] = 0
    return {"encoder_attention_mask": kept}


def _places(*lengths: int) -> Tensor:
    return torch.cartesian_prod(*(torch.arange(float(length)) for length in lengths))


def _wan_animate(noise: Noise, batch: int) -> dict[str, Any]:
    pose = noise(CHANNELS, FRAMES - 1, SIZE, SIZE)
    return {"pose_hidden_states": pose, "face_pixel_values": noise(3, 4 * (FRAMES - 1), 16, 16)}


def _helios(noise: Noise, batch: int) -> dict[str, Any]:
    return {
        "indices_hidden_states": torch.arange(1, 1 + FRAMES).expand(batch, -1),
        "latents_history_short": noise(CHANNELS, 1, SIZE, SIZE),
        "indices_latents_history_short": torch.zeros(batch, 1, dtype=torch.long),
    }


def _ltx2(noise: Noise, batch: int) -> dict[str, Any]:
    return mask(batch) | {
        "audio_hidden_states": noise(AUDIO_TOKENS, CHANNELS),
        "audio_encoder_hidden_states": noise(TEXT_TOKENS, TEXT_WIDTH),
        "audio_encoder_attention_mask": mask(batch)["encoder_attention_mask"],
        "num_frames": FRAMES,
        "height": SIZE // 2,
        "width": SIZE // 2,
        "audio_num_frames": AUDIO_TOKENS,
    }


def _minimax_h3(noise: Noise, batch: int) -> dict[str, Any]:
    counts = {1: TEXT_TOKENS, 0: _VIDEO_TOKENS, 2: AUDIO_TOKENS}
    tags = torch.cat([torch.full((count,), tag) for tag, count in counts.items()])
    video = _places(FRAMES, SIZE // 2, SIZE // 2)
    text, audio = torch.zeros(TEXT_TOKENS, 3), torch.zeros(AUDIO_TOKENS, 3)
    text[:, 0], audio[:, 0] = torch.arange(TEXT_TOKENS), torch.arange(AUDIO_TOKENS)
    return {
        "audio_hidden_states": noise(AUDIO_TOKENS, CHANNELS),
        "timestep_indices": torch.zeros(len(tags), dtype=torch.long),
        "token_tags": tags,
        "position_ids": torch.cat([text, video, audio]),
        "text_indices": (tags == 1).nonzero().flatten(),
        "video_indices": (tags == 0).nonzero().flatten(),
        "audio_indices": (tags == 2).nonzero().flatten(),
    }


def _flux2(noise: Noise, batch: int) -> dict[str, Any]:
    image = torch.zeros(_IMAGE_TOKENS, 4)
    image[:, 1:3] = _places(SIZE // 2, SIZE // 2)
    return {"img_ids": image, "txt_ids": torch.zeros(TEXT_TOKENS, 4), "guidance": torch.full((batch,), 4.0)}


def _chroma(noise: Noise, batch: int) -> dict[str, Any]:
    return {"img_ids": _places(1, SIZE // 2, SIZE // 2), "txt_ids": torch.zeros(TEXT_TOKENS, 3)}


def _cogview4(noise: Noise, batch: int) -> dict[str, Any]:
    size = torch.full((batch, 2), float(SIZE))
    return {"original_size": size, "target_size": size, "crop_coords": torch.zeros(batch, 2)}


def _stable_audio(noise: Noise, batch: int) -> dict[str, Any]:
    rotary = get_1d_rotary_pos_embed(HEAD_WIDTH // 2, SIZE + 1, use_real=True, repeat_interleave_real=False)
    return {"global_hidden_states": noise(1, POOLED_WIDTH), "rotary_embedding": rotary}


MORE: dict[str, Tiny] = {
    "wan_animate": Tiny(
        "WanAnimateTransformer3DModel",
        WAN
        | {
            "rope_max_seq_len": 32,
            "in_channels": 2 * CHANNELS + 4,
            "latent_channels": CHANNELS,
            "image_dim": None,
            "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16},
            "motion_encoder_size": 16,
            "motion_style_dim": 8,
            "motion_dim": 4,
            "motion_encoder_dim": 16,
            "face_encoder_hidden_dim": 16,
            "face_encoder_num_heads": 2,
            "inject_face_latents_blocks": 2,
        },
        (2 * CHANNELS + 4, FRAMES, SIZE, SIZE),
        _wan_animate,
    ),
    "helios": Tiny("HeliosTransformer3DModel", WAN | {"rope_dim": (4, 6, 6)}, (CHANNELS, FRAMES, SIZE, SIZE), _helios),
    "anyflow": Tiny("AnyFlowTransformer3DModel", WAN | {"rope_max_seq_len": 32}, (FRAMES, CHANNELS, SIZE, SIZE)),
    "motif_video": Tiny(
        "MotifVideoTransformer3DModel",
        {
            **SHAPE,
            **IN_OUT,
            "num_single_layers": LAYERS,
            "mlp_ratio": 2.0,
            "text_embed_dim": TEXT_WIDTH,
            "rope_axes_dim": (4, 6, 6),
            "enable_text_cross_attention_dual": True,
            "enable_text_cross_attention_single": True,
        },
        (CHANNELS, FRAMES, SIZE, SIZE),
        lambda noise, batch: mask(batch),
    ),
    "minimax_h3": Tiny(
        "MiniMaxH3Transformer3DModel",
        {
            **SHAPE,
            "hidden_size": WIDTH,
            "num_refiner_layers": 1,
            "ffn_dim": 48,
            "in_channels": CHANNELS,
            "audio_in_channels": CHANNELS,
            "text_dim": TEXT_WIDTH,
            "freq_dim": 16,
            "time_embed_hidden_dim": 16,
            "time_embed_dim": 8,
            "rope_freq_dim": 2,
        },
        (_VIDEO_TOKENS, 4 * CHANNELS),
        _minimax_h3,
    ),
    "ltx2": Tiny(
        "LTX2VideoTransformer3DModel",
        {
            **SHAPE,
            **IN_OUT,
            "cross_attention_dim": WIDTH,
            "audio_in_channels": CHANNELS,
            "audio_out_channels": CHANNELS,
            "audio_num_attention_heads": HEADS,
            "audio_attention_head_dim": HEAD_WIDTH,
            "audio_cross_attention_dim": WIDTH,
            "caption_channels": TEXT_WIDTH,
        },
        (_VIDEO_TOKENS, CHANNELS),
        _ltx2,
    ),
    "kandinsky6": Tiny(
        "Kandinsky6Transformer3DModel",
        {
            "in_visual_dim": CHANNELS,
            "out_visual_dim": CHANNELS,
            "in_text_dim": TEXT_WIDTH,
            "in_text_dim2": POOLED_WIDTH,
            "time_dim": 16,
            "model_dim": WIDTH,
            "ff_dim": 48,
            "num_text_blocks": 1,
            "num_visual_blocks": LAYERS,
            "axes_dims": (4, 6, 6),
            "visual_cond": False,
            "in_audio_dim": CHANNELS,
            "out_audio_dim": CHANNELS,
        },
        (FRAMES, SIZE, SIZE, CHANNELS),
        lambda noise, batch: {
            "pooled_projections": noise(POOLED_WIDTH),
            "audio_hidden_states": noise(AUDIO_TOKENS, CHANNELS),
        },
    ),
    "sd3": Tiny(
        "SD3Transformer2DModel",
        {
            **SHAPE,
            **IN_OUT,
            "sample_size": SIZE,
            "joint_attention_dim": TEXT_WIDTH,
            "caption_projection_dim": WIDTH,
            "pooled_projection_dim": POOLED_WIDTH,
            "pos_embed_max_size": SIZE,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
        (CHANNELS, SIZE, SIZE),
        lambda noise, batch: {"pooled_projections": noise(POOLED_WIDTH)},
    ),
    "flux2": Tiny(
        "Flux2Transformer2DModel",
        {
            **SHAPE,
            **IN_OUT,
            "num_single_layers": LAYERS,
            "joint_attention_dim": TEXT_WIDTH,
            "timestep_guidance_channels": 16,
            "mlp_ratio": 2.0,
            "axes_dims_rope": (4, 4, 4, 4),
        },
        (_IMAGE_TOKENS, CHANNELS),
        _flux2,
    ),
    "z_image": Tiny(
        "ZImageTransformer2DModel",
        {
            "in_channels": CHANNELS,
            "dim": WIDTH,
            "n_layers": LAYERS,
            "n_refiner_layers": 1,
            "n_heads": HEADS,
            "n_kv_heads": HEADS,
            "cap_feat_dim": TEXT_WIDTH,
            "axes_dims": [4, 6, 6],
            "axes_lens": [128, 32, 32],
        },
        (CHANNELS, 1, SIZE, SIZE),
    ),
    "sana": Tiny(
        "SanaTransformer2DModel",
        {
            **SHAPE,
            **IN_OUT,
            "num_cross_attention_heads": HEADS,
            "cross_attention_head_dim": HEAD_WIDTH,
            "cross_attention_dim": WIDTH,
            "caption_channels": TEXT_WIDTH,
            "sample_size": SIZE,
        },
        (CHANNELS, SIZE, SIZE),
        lambda noise, batch: mask(batch),
    ),
    "chroma": Tiny(
        "ChromaTransformer2DModel",
        {
            **SHAPE,
            **IN_OUT,
            "num_single_layers": LAYERS,
            "joint_attention_dim": TEXT_WIDTH,
            "axes_dims_rope": (4, 6, 6),
            "approximator_num_channels": 8,
            "approximator_hidden_dim": WIDTH,
            "approximator_layers": 1,
        },
        (_IMAGE_TOKENS, CHANNELS),
        _chroma,
    ),
    "aura_flow": Tiny(
        "AuraFlowTransformer2DModel",
        {
            "num_attention_heads": HEADS,
            "attention_head_dim": HEAD_WIDTH,
            **IN_OUT,
            "sample_size": SIZE,
            "num_mmdit_layers": LAYERS,
            "num_single_dit_layers": LAYERS,
            "joint_attention_dim": TEXT_WIDTH,
            "caption_projection_dim": WIDTH,
            "pos_embed_max_size": 2 * SIZE,
        },
        (CHANNELS, SIZE, SIZE),
    ),
    "cogview4": Tiny(
        "CogView4Transformer2DModel",
        {
            **SHAPE,
            **IN_OUT,
            "text_embed_dim": TEXT_WIDTH,
            "time_embed_dim": 8,
            "condition_dim": 4,
            "pos_embed_max_size": SIZE,
            "sample_size": SIZE,
            "rope_axes_dim": (8, 8),
        },
        (CHANNELS, SIZE, SIZE),
        _cogview4,
    ),
    "hunyuan_image": Tiny(
        "HunyuanImageTransformer2DModel",
        {
            **SHAPE,
            **IN_OUT,
            "num_single_layers": LAYERS,
            "num_refiner_layers": 1,
            "mlp_ratio": 2.0,
            "patch_size": (2, 2),
            "text_embed_dim": TEXT_WIDTH,
            "rope_axes_dim": (8, 8),
        },
        (CHANNELS, SIZE, SIZE),
        lambda noise, batch: mask(batch),
    ),
    "lumina2": Tiny(
        "Lumina2Transformer2DModel",
        {
            "sample_size": SIZE,
            "in_channels": CHANNELS,
            "hidden_size": WIDTH,
            "num_layers": LAYERS,
            "num_refiner_layers": 1,
            "num_attention_heads": HEADS,
            "num_kv_heads": 1,
            "multiple_of": 16,
            "cap_feat_dim": TEXT_WIDTH,
            "axes_dim_rope": (4, 6, 6),
            "axes_lens": (64, 32, 32),
        },
        (CHANNELS, SIZE, SIZE),
        lambda noise, batch: {"encoder_attention_mask": mask(batch)["encoder_attention_mask"].bool()},
    ),
    "stable_audio": Tiny(
        "StableAudioDiTModel",
        {
            **SHAPE,
            **IN_OUT,
            "sample_size": SIZE,
            "num_key_value_attention_heads": 1,
            "cross_attention_dim": HEAD_WIDTH,
            "time_proj_dim": 8,
            "global_states_input_dim": POOLED_WIDTH,
            "cross_attention_input_dim": TEXT_WIDTH,
        },
        (CHANNELS, SIZE),
        _stable_audio,
    ),
    "ace_step": Tiny(
        "AceStepTransformer1DModel",
        {
            "hidden_size": WIDTH,
            "intermediate_size": 48,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": 1,
            "head_dim": HEAD_WIDTH,
            "in_channels": 3 * CHANNELS,
            "audio_acoustic_hidden_dim": CHANNELS,
            "encoder_hidden_size": TEXT_WIDTH,
        },
        (SIZE, CHANNELS),
        lambda noise, batch: {"context_latents": noise(SIZE, 2 * CHANNELS)},
    ),
}
