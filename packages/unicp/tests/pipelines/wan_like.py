"""Pipelines of Wan and of the models made of its blocks."""

from __future__ import annotations

from typing import Any

import diffusers

from tests.pipelines import parts
from tests.pipelines.parts import FRAMES, SIZE, film, picture, transformer
from tests.pipelines.rows import GUIDED, LATENT, VIDEO, Row
from tests.tiny_more import CHANNELS, POOLED_WIDTH

_TEXT_TO_VIDEO = VIDEO | GUIDED | LATENT
_CONDITIONED = 2 * CHANNELS + 4  # the sample, an encoded picture and a mask


def _wan(**changes: Any) -> dict[str, Any]:
    return {
        "tokenizer": parts.tokenizer(),
        "text_encoder": parts.t5(kind="UMT5"),
        "vae": parts.wan_vae(),
        "scheduler": parts.unipc(),
    } | changes


def _with_picture(**changes: Any) -> dict[str, Any]:
    return _wan(image_encoder=parts.image_encoder(), image_processor=parts.image_processor()) | changes


def _two_experts(channels: int = CHANNELS) -> dict[str, Any]:
    sizes = {"in_channels": channels}
    return {
        "transformer": transformer("wan", **sizes),
        "transformer_2": transformer("wan", **sizes, ffn_dim=64),
        "boundary_ratio": 0.75,
    }


def _small_wan22() -> dict[str, Any]:
    # The 5B model: one timestep per token.
    vae = parts.wan_vae(
        in_channels=12,
        out_channels=12,
        is_residual=True,
        patch_size=2,
        scale_factor_spatial=16,
        scale_factor_temporal=4,
    )
    return _wan(transformer=transformer("wan"), vae=vae, expand_timesteps=True)


_POSE = {"image": picture(), "pose_video": film(), "face_video": film(FRAMES, 16), "height": SIZE, "width": SIZE}
_FORCED = VIDEO | GUIDED | LATENT | {"base_num_frames": FRAMES}

WAN_LIKE: tuple[Row, ...] = (
    Row("wan", "WanPipeline", lambda: _wan(transformer=transformer("wan")), _TEXT_TO_VIDEO),
    Row(
        "wan_unguided",
        "WanPipeline",
        lambda: _wan(transformer=transformer("wan")),
        VIDEO | LATENT | {"guidance_scale": 1.0},
        calls=(1,),
        way="without guidance",
    ),
    Row(
        "wan_two_experts",
        "WanPipeline",
        lambda: _wan(**_two_experts()),
        _TEXT_TO_VIDEO,
        steps=12,
        way="two experts (2.2)",
    ),
    Row(
        "wan_timestep_per_token",
        "WanPipeline",
        _small_wan22,
        _TEXT_TO_VIDEO | {"height": 64, "width": 64},
        way="a timestep per token (2.2 5B)",
    ),
    Row(
        "wan_image",
        "WanImageToVideoPipeline",
        lambda: _with_picture(transformer=transformer("wan", in_channels=_CONDITIONED, image_dim=POOLED_WIDTH)),
        _TEXT_TO_VIDEO | {"image": picture()},
        way="with an image encoder (2.1)",
    ),
    Row(
        "wan_image_two_experts",
        "WanImageToVideoPipeline",
        lambda: _wan(**_two_experts(_CONDITIONED)),
        _TEXT_TO_VIDEO | {"image": picture()},
        steps=12,
        way="two experts (2.2)",
    ),
    Row(
        "wan_image_timestep_per_token",
        "WanImageToVideoPipeline",
        _small_wan22,
        _TEXT_TO_VIDEO | {"image": picture(0, 64), "height": 64, "width": 64},
        way="a timestep per token (2.2 5B)",
    ),
    Row(
        "wan_video",
        "WanVideoToVideoPipeline",
        lambda: _wan(transformer=transformer("wan")),
        GUIDED | LATENT | {"video": film(), "height": SIZE, "width": SIZE, "max_sequence_length": 16, "strength": 0.5},
        steps=12,
        done=6,
        way="begins in mid-schedule",
    ),
    Row(
        "wan_vace",
        "WanVACEPipeline",
        lambda: _wan(transformer=transformer("wan_vace", vace_in_channels=2 * CHANNELS + 64)),
        _TEXT_TO_VIDEO | {"video": film()},
    ),
    Row(
        "wan_animate",
        "WanAnimatePipeline",
        lambda: _with_picture(transformer=transformer("wan_animate", image_dim=POOLED_WIDTH)),
        _POSE | GUIDED | {"output_type": "pt", "max_sequence_length": 16, "segment_frame_length": FRAMES},
    ),
    Row(
        "lucy_edit",
        "LucyEditPipeline",
        lambda: _wan(transformer=transformer("wan", in_channels=2 * CHANNELS)),
        _TEXT_TO_VIDEO | {"video": film()},
    ),
    Row(
        "chrono_edit",
        "ChronoEditPipeline",
        lambda: _with_picture(transformer=transformer("chrono_edit", in_channels=_CONDITIONED, image_dim=POOLED_WIDTH)),
        _TEXT_TO_VIDEO | {"image": picture(), "num_frames": 5},
    ),
    Row("skyreels_v2", "SkyReelsV2Pipeline", lambda: _wan(transformer=transformer("skyreels_v2")), _TEXT_TO_VIDEO),
    Row(
        "skyreels_v2_image",
        "SkyReelsV2ImageToVideoPipeline",
        lambda: _with_picture(transformer=transformer("skyreels_v2", in_channels=_CONDITIONED, image_dim=POOLED_WIDTH)),
        _TEXT_TO_VIDEO | {"image": picture()},
    ),
    Row(
        "skyreels_v2_forcing",
        "SkyReelsV2DiffusionForcingPipeline",
        lambda: _wan(transformer=transformer("skyreels_v2")),
        _FORCED,
    ),
    Row(
        "skyreels_v2_forcing_image",
        "SkyReelsV2DiffusionForcingImageToVideoPipeline",
        lambda: _wan(transformer=transformer("skyreels_v2")),
        _FORCED | {"image": picture()},
    ),
    Row(
        "skyreels_v2_forcing_video",
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
        lambda: _wan(transformer=transformer("skyreels_v2")),
        _FORCED | {"video": film(5), "overlap_history": 5, "num_frames": 13},
        runs=2,
        way="two chunks",
    ),
    Row(
        "helios",
        "HeliosPipeline",
        lambda: _wan(
            transformer=transformer(
                "helios", has_multi_term_memory_patch=True, guidance_cross_attn=True, zero_history_timestep=True
            ),
            scheduler=diffusers.HeliosScheduler(stage_range=[0, 1], stages=1, use_dynamic_shifting=True),
        ),
        _TEXT_TO_VIDEO,
        way="one chunk",
    ),
    Row(
        "helios_pyramid",
        "HeliosPyramidPipeline",
        lambda: _wan(
            transformer=transformer(
                "helios", has_multi_term_memory_patch=True, guidance_cross_attn=True, zero_history_timestep=True
            ),
            scheduler=diffusers.HeliosScheduler(stage_range=[0, 0.5, 1], stages=2, gamma=0.3),
        ),
        _TEXT_TO_VIDEO | {"height": 64, "width": 64},
        runs=2,
        stages=2,
        way="two stages",
    ),
    Row(
        "anyflow",
        "AnyFlowPipeline",
        lambda: _wan(transformer=transformer("anyflow"), scheduler=diffusers.FlowMapEulerDiscreteScheduler(shift=5.0)),
        _TEXT_TO_VIDEO,
        calls=(2,),
    ),
)
