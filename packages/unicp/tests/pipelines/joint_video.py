"""Pipelines of video models whose blocks attend to video and text together."""

from __future__ import annotations

from typing import Any

import diffusers

from tests.pipelines import parts
from tests.pipelines.parts import SIZE, film, picture, transformer
from tests.pipelines.rows import GUIDED, LATENT, VIDEO, Row
from tests.tiny_more import CHANNELS, POOLED_WIDTH, TEXT_WIDTH

_T2V = VIDEO | GUIDED | LATENT


def cogvideo_vae() -> Any:
    """8x8 pixels and 4 frames to one position."""
    return parts.vae(
        "AutoencoderKLCogVideoX",
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=2,
    )


def _cogvideo(scheduler: str = "CogVideoXDPMScheduler", **changes: Any) -> dict[str, Any]:
    rescaled = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return {
        "tokenizer": parts.tokenizer(),
        "text_encoder": parts.t5(),
        "vae": cogvideo_vae(),
        "scheduler": getattr(diffusers, scheduler)(**rescaled),
    } | changes


def _cogvideo_transformer(name: str = "cogvideox", **changes: Any) -> Any:
    size = SIZE // 8
    return transformer(name, **{"sample_width": size, "sample_height": size, "max_text_seq_length": 16} | changes)


def hunyuan_vae(**changes: Any) -> Any:
    """8x8 pixels and 4 frames to one position."""
    return parts.vae(
        "AutoencoderKLHunyuanVideo",
        **{
            "down_block_types": ("HunyuanVideoDownBlock3D",) * 4,
            "up_block_types": ("HunyuanVideoUpBlock3D",) * 4,
            "block_out_channels": (8,) * 4,
            "latent_channels": CHANNELS,
            "layers_per_block": 1,
            "norm_num_groups": 4,
        }
        | changes,
    )


def _hunyuan(**changes: Any) -> dict[str, Any]:
    return {
        "tokenizer": parts.tokenizer(),
        "text_encoder": parts.decoder("LlamaModel", "LlamaConfig", layers=2),
        "tokenizer_2": parts.tokenizer(),
        "text_encoder_2": parts.clip(),
        "vae": hunyuan_vae(),
        "scheduler": parts.flow(shift=7.0),
    } | changes


def _llava() -> Any:
    import transformers

    known = len(parts.tokenizer())
    text = transformers.LlamaConfig(
        vocab_size=known + 2,
        hidden_size=TEXT_WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=known,
        eos_token_id=1,
        bos_token_id=2,
    )
    vision = parts.image_encoder().config
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=known + 1, pad_token_id=known
    )
    config.pad_token_id = known
    return parts.seeded(lambda: transformers.LlavaForConditionalGeneration(config))


_WORDS = {"template": "{}", "crop_start": 0}
_PICTURE_WORDS = _WORDS | {"image_emb_len": 4, "image_emb_start": 5, "image_emb_end": 9}


def _hunyuan15(task: str = "t2v", **changes: Any) -> dict[str, Any]:
    vae = parts.vae(
        "AutoencoderKLHunyuanVideo15",
        latent_channels=CHANNELS,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    sizes = {"in_channels": 2 * CHANNELS + 1, "text_embed_dim": 16, "target_size": SIZE, "task_type": task}
    return {
        # The system's message comes first, and would leave no room for the prompt.
        "tokenizer": parts.tokenizer(truncation_side="left"),
        "text_encoder": parts.qwen_vl(model="TextModel"),
        "tokenizer_2": parts.tokenizer(),
        "text_encoder_2": parts.t5(POOLED_WIDTH),
        "transformer": transformer("hunyuan_video15", **sizes),
        "vae": vae,
        "scheduler": parts.flow(shift=7.0),
        "guider": diffusers.ClassifierFreeGuidance(guidance_scale=3.0),
    } | changes


_HUNYUAN15 = {
    "prompt_template_encode_start_idx": 0,
    "tokenizer_max_length": 16,
    "tokenizer_2_max_length": 4,
    "vision_num_semantic_tokens": 4,
}


def easy_animate(**changes: Any) -> dict[str, Any]:
    """Its components; changes: of the transformer's configuration."""
    vae = parts.vae(
        "AutoencoderKLMagvit",
        down_block_types=("SpatialDownBlock3D", *("SpatialTemporalDownBlock3D",) * 3),
        up_block_types=("SpatialUpBlock3D", *("SpatialTemporalUpBlock3D",) * 3),
        block_out_channels=(8,) * 4,
        latent_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=2,
        spatial_group_norm=False,
    )
    return {
        "tokenizer": parts.tokenizer(),
        "text_encoder": parts.qwen_vl(kind="Qwen2VL"),
        "transformer": transformer("easy_animate", text_embed_dim=16, **changes),
        "vae": vae,
        "scheduler": parts.flow(),
    }


_ANIMATED = {key: value for key, value in _T2V.items() if key != "max_sequence_length"}


def _motif(**changes: Any) -> dict[str, Any]:
    import transformers

    text = transformers.T5Gemma2TextConfig(
        hidden_size=TEXT_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=len(parts.tokenizer()),
        head_dim=8,
        num_key_value_heads=2,
        dropout_rate=0.0,
    )
    config = transformers.T5Gemma2EncoderConfig(text_config=text, vision_config=parts.siglip().config)
    return {
        "tokenizer": parts.tokenizer(),
        "text_encoder": parts.seeded(lambda: transformers.T5Gemma2Encoder(config)),
        "transformer": transformer("motif_video", in_channels=2 * CHANNELS + 1, **changes),
        "vae": parts.wan_vae(),
        "scheduler": parts.flow(shift=7.0),
        "guider": diffusers.AdaptiveProjectedGuidance(guidance_scale=3.0),
        "feature_extractor": parts.siglip_processor(),
    }


_MOTIF = VIDEO | LATENT | {"negative_prompt": parts.NEGATIVE}

JOINT_VIDEO: tuple[Row, ...] = (
    Row("cogvideox", "CogVideoXPipeline", lambda: _cogvideo(transformer=_cogvideo_transformer()), _T2V, calls=(2,)),
    Row(
        "cogvideox_image",
        "CogVideoXImageToVideoPipeline",
        lambda: _cogvideo(
            transformer=_cogvideo_transformer(in_channels=2 * CHANNELS, use_rotary_positional_embeddings=True)
        ),
        _T2V | {"image": picture()},
        calls=(2,),
    ),
    Row(
        "cogvideox_video",
        "CogVideoXVideoToVideoPipeline",
        lambda: _cogvideo(transformer=_cogvideo_transformer(), scheduler="CogVideoXDDIMScheduler"),
        GUIDED | LATENT | {"video": film(), "height": SIZE, "width": SIZE, "max_sequence_length": 16, "strength": 0.5},
        steps=12,
        done=6,
        calls=(2,),
        way="begins in mid-schedule",
    ),
    Row(
        "cogvideox_control",
        "CogVideoXFunControlPipeline",
        lambda: _cogvideo(
            transformer=_cogvideo_transformer(in_channels=2 * CHANNELS), scheduler="CogVideoXDDIMScheduler"
        ),
        GUIDED | LATENT | {"control_video": film(), "height": SIZE, "width": SIZE, "max_sequence_length": 16},
        calls=(2,),
    ),
    Row(
        "hunyuan_video",
        "HunyuanVideoPipeline",
        lambda: _hunyuan(transformer=transformer("hunyuan_video")),
        VIDEO | LATENT | {"prompt_template": _WORDS},
        calls=(1,),
        way="embedded guidance",
    ),
    Row(
        "hunyuan_video_true_cfg",
        "HunyuanVideoPipeline",
        lambda: _hunyuan(transformer=transformer("hunyuan_video")),
        VIDEO | LATENT | {"prompt_template": _WORDS, "negative_prompt": parts.NEGATIVE, "true_cfg_scale": 3.0},
        way="true CFG",
    ),
    Row(
        "hunyuan_video_image",
        "HunyuanVideoImageToVideoPipeline",
        lambda: _hunyuan(
            text_encoder=_llava(),
            image_processor=parts.image_processor(),
            transformer=transformer(
                "hunyuan_video",
                in_channels=2 * CHANNELS + 1,
                guidance_embeds=False,
                image_condition_type="latent_concat",
            ),
        ),
        VIDEO | LATENT | {"image": picture(), "prompt_template": _PICTURE_WORDS, "num_frames": 13},
        calls=(1,),
        way="latent concat",
    ),
    Row(
        "hunyuan_video_image_token_replace",
        "HunyuanVideoImageToVideoPipeline",
        lambda: _hunyuan(
            text_encoder=_llava(),
            image_processor=parts.image_processor(),
            transformer=transformer("hunyuan_video", image_condition_type="token_replace"),
        ),
        VIDEO | LATENT | {"image": picture(), "prompt_template": _PICTURE_WORDS},
        calls=(1,),
        way="token replace",
    ),
    Row(
        "hunyuan_skyreels",
        "HunyuanSkyreelsImageToVideoPipeline",
        lambda: _hunyuan(transformer=transformer("hunyuan_video", in_channels=2 * CHANNELS, guidance_embeds=False)),
        _T2V | {"image": picture(), "prompt_template": _WORDS, "true_cfg_scale": 3.0, "guidance_scale": 1.0},
    ),
    Row(
        "framepack",
        "HunyuanVideoFramepackPipeline",
        lambda: _hunyuan(
            transformer=transformer("framepack"),
            image_encoder=parts.siglip(),
            feature_extractor=parts.siglip_processor(),
        ),
        VIDEO | LATENT | {"image": picture(), "prompt_template": _WORDS, "latent_window_size": 3, "num_frames": 18},
        calls=(1,),
        runs=2,
        way="two sections",
    ),
    Row(
        "hunyuan_video15",
        "HunyuanVideo15Pipeline",
        _hunyuan15,
        LATENT | {"height": SIZE, "width": SIZE, "num_frames": 5, "negative_prompt": parts.NEGATIVE},
        settings=_HUNYUAN15,
    ),
    Row(
        "hunyuan_video15_image",
        "HunyuanVideo15ImageToVideoPipeline",
        lambda: _hunyuan15("i2v", image_encoder=parts.siglip(), feature_extractor=parts.siglip_processor()),
        LATENT | {"image": picture(), "num_frames": 5, "negative_prompt": parts.NEGATIVE},
        settings=_HUNYUAN15,
    ),
    Row(
        "mochi",
        "MochiPipeline",
        lambda: {
            "tokenizer": parts.tokenizer(),
            "text_encoder": parts.t5(16),
            "vae": parts.vae(
                "AutoencoderKLMochi",
                latent_channels=CHANNELS,
                encoder_block_out_channels=(32,) * 4,
                decoder_block_out_channels=(32,) * 4,
                layers_per_block=(1,) * 5,
                latents_mean=[0.0] * CHANNELS,
                latents_std=[1.0] * CHANNELS,
            ),
            "transformer": transformer("mochi"),
            "scheduler": parts.flow(invert_sigmas=True),
        },
        _T2V | {"num_frames": 7},
        calls=(2,),
        few=(3, 2),  # its schedule cannot be made for a single step
    ),
    Row("easy_animate", "EasyAnimatePipeline", easy_animate, _ANIMATED | {"num_frames": 5}, calls=(2,)),
    Row(
        "easy_animate_inpaint",
        "EasyAnimateInpaintPipeline",
        lambda: easy_animate(in_channels=2 * CHANNELS + 1),
        _ANIMATED | {"num_frames": 5},
        calls=(2,),
    ),
    Row("motif_video", "MotifVideoPipeline", _motif, _MOTIF),
    Row(
        "motif_video_image",
        "MotifVideoImage2VideoPipeline",
        lambda: _motif(image_embed_dim=POOLED_WIDTH),
        _MOTIF | {"image": picture()},
    ),
)
