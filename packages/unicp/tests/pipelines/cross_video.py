"""Pipelines of video models with self- and cross-attention, beside Wan's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from diffusers.models.controlnets import controlnet_cosmos
from diffusers.pipelines.ltx2 import LTX2LatentUpsamplerModel, LTX2TextConnectors, LTX2Vocoder
from diffusers.pipelines.ltx2.pipeline_ltx2_hdr_lora import LTX2HDRReferenceCondition

from tests.pipelines import parts
from tests.pipelines.joint_video import hunyuan_vae
from tests.pipelines.parts import FRAMES, SIZE, film, picture, transformer
from tests.pipelines.rows import GUIDED, LATENT, VIDEO, Row
from tests.tiny_more import CHANNELS, TEXT_WIDTH

_T2V = VIDEO | GUIDED | LATENT


def _latte() -> dict[str, Any]:
    return {
        "tokenizer": parts.tokenizer(),
        "text_encoder": parts.t5(),
        "vae": parts.image_vae(),
        "transformer": transformer("latte", sample_size=SIZE // 8),
        "scheduler": diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False),
    }


def _allegro() -> dict[str, Any]:
    vae = parts.vae(
        "AutoencoderKLAllegro",
        down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=2,
    )
    return {
        "tokenizer": parts.tokenizer(),
        "text_encoder": parts.t5(),
        "vae": vae,
        "transformer": transformer(
            "allegro", attention_head_dim=24, cross_attention_dim=48, sample_height=SIZE // 8, sample_width=SIZE // 8
        ),
        "scheduler": diffusers.EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear"),
    }


def ltx(**scheduler: Any) -> dict[str, Any]:
    """Components of LTX's pipelines; scheduler: its configuration."""
    vae = parts.vae(
        "AutoencoderKLLTXVideo",
        latent_channels=CHANNELS,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        patch_size=1,
        patch_size_t=1,
    )
    return {
        "tokenizer": parts.tokenizer(),
        "text_encoder": parts.t5(),
        "vae": vae,
        "transformer": transformer("ltx"),
        "scheduler": parts.flow(**scheduler),
    }


def _gemma3() -> Any:
    text = {
        "vocab_size": len(parts.tokenizer()),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    vision = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision | {"image_size": 4, "patch_size": 2}, mm_tokens_per_image=4
    )
    return parts.seeded(lambda: transformers.Gemma3ForConditionalGeneration(config))


def _ltx2() -> dict[str, Any]:
    connector = {"num_attention_heads": 2, "attention_head_dim": 6, "num_layers": 1, "num_learnable_registers": None}
    connectors = parts.seeded(
        lambda: LTX2TextConnectors(
            caption_channels=TEXT_WIDTH,
            text_proj_in_factor=3,
            connector_rope_base_seq_len=32,
            rope_double_precision=False,
            **{
                f"{stream}_connector_{name}": value
                for stream in ("video", "audio")
                for name, value in connector.items()
            },
        )
    )
    vae = parts.vae(
        "AutoencoderKLLTX2Video",
        latent_channels=CHANNELS,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        timestep_conditioning=False,
        patch_size=4,
        patch_size_t=1,
    )
    audio_vae = parts.vae(
        "AutoencoderKLLTX2Audio",
        base_channels=4,
        output_channels=2,
        ch_mult=(1,),
        num_res_blocks=1,
        attn_resolutions=None,
        in_channels=2,
        resolution=32,
        latent_channels=2,
        norm_type="pixel",
        causality_axis="height",
        mid_block_add_attention=False,
        sample_rate=16000,
        mel_hop_length=160,
        mel_bins=8,
    )
    vocoder = parts.seeded(
        lambda: LTX2Vocoder(
            in_channels=16,
            hidden_channels=32,
            out_channels=2,
            upsample_kernel_sizes=[4, 4],
            upsample_factors=[2, 2],
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1, 3, 5]],
            output_sampling_rate=16000,
        )
    )
    return {
        "tokenizer": parts.tokenizer(),
        "text_encoder": _gemma3(),
        "vae": vae,
        "audio_vae": audio_vae,
        "vocoder": vocoder,
        "connectors": connectors,
        "transformer": transformer("ltx2"),
        "scheduler": parts.flow(),
    }


_LTX2 = _T2V | {"num_frames": 5, "frame_rate": 25.0, "stg_scale": 0.0, "modality_scale": 1.0}
_LTX2 |= {"audio_stg_scale": 0.0, "audio_modality_scale": 1.0}
# Distilled: without guidance, and with levels of noise in place of a number of steps.
_DFR = LATENT | {"height": SIZE, "width": SIZE, "frame_rate": 25.0, "max_sequence_length": 16}
_PERTURBED = {"stg_scale": 1.0, "modality_scale": 3.0, "spatio_temporal_guidance_blocks": [1]}


def _ltx2_dfr(**changes: Any) -> dict[str, Any]:
    return _ltx2() | {"transformer": transformer("ltx2", use_keyframes_abs_pos_embedding=True)} | changes


def _given(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _ltx2_refined() -> dict[str, Any]:
    upsampler = parts.seeded(
        lambda: LTX2LatentUpsamplerModel(
            in_channels=CHANNELS,
            mid_channels=32,
            num_blocks_per_stage=1,
            spatial_upsample=False,
            temporal_upsample=True,
        )
    )
    return _ltx2_dfr(scheduler=diffusers.LTXEulerAncestralRFScheduler(eta=0.5), temporal_latent_upsampler=upsampler)


def gemma() -> Any:
    """The text encoder of Sana and Lumina 2."""
    return parts.decoder("Gemma2Model", "Gemma2Config")


def _sana_video(scheduler: Any) -> dict[str, Any]:
    return {
        "tokenizer": parts.tokenizer(),
        "text_encoder": gemma(),
        "vae": parts.wan_vae(),
        "transformer": transformer("sana_video"),
        "scheduler": scheduler,
    }


_SANA = {key: value for key, value in _T2V.items() if key != "num_frames"}
_SANA |= {"frames": FRAMES, "use_resolution_binning": False, "complex_human_instruction": []}


_UNCROPPED = {"prompt_template": "{}", "prompt_template_encode_start_idx": 0}


def _kandinsky5(visual_cond: bool = False, **changes: Any) -> dict[str, Any]:
    return {
        "tokenizer": parts.tokenizer(),
        "text_encoder": parts.qwen_vl(),
        "tokenizer_2": parts.tokenizer(),
        "text_encoder_2": parts.clip(),
        "vae": hunyuan_vae(),
        "transformer": transformer("kandinsky5", in_text_dim=16, visual_cond=visual_cond),
        "scheduler": parts.flow(shift=5.0),
    } | changes


def _cosmos(channels: int, scheduler: Any, **changes: Any) -> dict[str, Any]:
    return {
        "tokenizer": parts.tokenizer(),
        "text_encoder": parts.t5(),
        "vae": parts.wan_vae(),
        "transformer": transformer("cosmos", in_channels=channels),
        "scheduler": scheduler,
        "safety_checker": parts.Unguarded(),
    } | changes


def _cosmos1(channels: int) -> dict[str, Any]:
    vae = parts.vae(
        "AutoencoderKLCosmos",
        latent_channels=CHANNELS,
        encoder_block_out_channels=(8,) * 4,
        decode_block_out_channels=(8,) * 4,
        attention_resolutions=(8,),
        resolution=64,
        num_layers=2,
        patch_size=4,
        scaling_factor=1.0,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )
    noise = {"sigma_min": 0.002, "sigma_max": 80, "sigma_data": 0.5, "final_sigmas_type": "sigma_min"}
    return _cosmos(channels, diffusers.EDMEulerScheduler(**noise), vae=vae)


def _cosmos25() -> dict[str, Any]:
    return {
        **_cosmos(
            CHANNELS + 1,
            diffusers.UniPCMultistepScheduler(
                use_karras_sigmas=True, use_flow_sigmas=True, prediction_type="flow_prediction"
            ),
        ),
        "tokenizer": parts.tokenizer(truncation_side="left"),
        "text_encoder": parts.qwen_vl(),
        "transformer": transformer("cosmos", in_channels=CHANNELS + 1, text_embed_dim=48),
    }


def _resized(mask: torch.Tensor, size: list[int], interpolation: str) -> torch.Tensor:
    return torch.nn.functional.interpolate(mask, size, mode=interpolation)


def _cosmos25_transfer() -> dict[str, Any]:
    if not hasattr(controlnet_cosmos, "transforms"):
        # torchvision's, of which it needs only this, for a mask.
        controlnet_cosmos.transforms = SimpleNamespace(  # type: ignore[attr-defined]
            functional=SimpleNamespace(resize=_resized), InterpolationMode=SimpleNamespace(NEAREST="nearest")
        )
    made = _cosmos25()
    made["transformer"] = transformer(
        "cosmos", in_channels=CHANNELS + 1, text_embed_dim=48, controlnet_block_every_n=2, max_size=(FRAMES, 4, 4)
    )
    shape = made["transformer"].config
    return made | {
        "controlnet": parts.seeded(
            lambda: diffusers.CosmosControlNetModel(
                n_controlnet_blocks=len(range(0, shape.num_layers, 2)),
                in_channels=CHANNELS + 2,
                latent_channels=CHANNELS + 2,
                model_channels=shape.num_attention_heads * shape.attention_head_dim,
                **{
                    name: shape[name]
                    for name in (
                        "num_attention_heads",
                        "attention_head_dim",
                        "mlp_ratio",
                        "text_embed_dim",
                        "adaln_lora_dim",
                        "patch_size",
                        "max_size",
                        "rope_scale",
                        "extra_pos_embed_type",
                    )
                },
            )
        )
    }


CROSS_VIDEO: tuple[Row, ...] = (
    Row(
        "latte",
        "LattePipeline",
        _latte,
        GUIDED | LATENT | {"height": SIZE, "width": SIZE, "video_length": 3},
        calls=(2,),
    ),
    Row("allegro", "AllegroPipeline", _allegro, _T2V | {"num_frames": 8, "clean_caption": False}, calls=(2,)),
    Row("ltx", "LTXPipeline", ltx, _T2V, calls=(2,)),
    Row("ltx_image", "LTXImageToVideoPipeline", ltx, _T2V | {"image": picture()}, calls=(2,)),
    Row("ltx_condition", "LTXConditionPipeline", ltx, _T2V | {"image": picture()}, calls=(2,)),
    Row(
        "ltx_long",
        "LTXI2VLongMultiPromptPipeline",
        ltx,
        _T2V
        | {
            "cond_image": picture(),
            "temporal_tile_size": 16,
            "temporal_overlap": 8,
            "num_frames": 17,
            "cond_strength": 1.0,
            "temporal_overlap_cond_strength": 1.0,
            "guidance_scale": 3.0,
        },
        calls=(2,),
        runs=2,
        done=5,
        way="two windows",
    ),
    Row("ltx2", "LTX2Pipeline", _ltx2, _LTX2, calls=(2,)),
    Row(
        "ltx2_perturbed",
        "LTX2Pipeline",
        _ltx2,
        _LTX2 | _PERTURBED,
        calls=(2, 1, 1),
        way="with spatio-temporal and modality guidance",
    ),
    Row("ltx2_image", "LTX2ImageToVideoPipeline", _ltx2, _LTX2 | {"image": picture(), "image_crf": 0}, calls=(2,)),
    Row("ltx2_condition", "LTX2ConditionPipeline", _ltx2, _LTX2, calls=(2,)),
    Row(
        "ltx2_hdr",
        "LTX2HDRPipeline",
        _ltx2,
        {key: value for key, value in _LTX2.items() if "audio" not in key}
        | {"reference_conditions": LTX2HDRReferenceCondition(frames=[picture()], strength=1.0)},
        calls=(2,),
    ),
    Row("ltx2_dfr", "LTX2DFRPipeline", _ltx2_dfr, _DFR | {"num_frames": 7}, calls=(1,), levels=True),
    Row(
        "ltx2_dfr_refine",
        "LTX2DFRTemporalRefinePipeline",
        _ltx2_refined,
        _DFR
        | {
            "num_frames": 7,
            "latents": _given(1, CHANNELS, 7, SIZE // 8, SIZE // 8),
            "keyframes_latents": _given(1, CHANNELS, 2, SIZE // 8, SIZE // 8),
            "keyframe_positions": [3, 6],
            "audio_latents": _given(1, 2, 7, 2),
        },
        calls=(1,),
        levels=True,
        runs=2,
        way="two tiles",
    ),
    Row("ltx2_in_context", "LTX2InContextPipeline", _ltx2, _LTX2, calls=(2,)),
    Row(
        "sana_video",
        "SanaVideoPipeline",
        lambda: _sana_video(
            diffusers.DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
            )
        ),
        _SANA,
        calls=(2,),
    ),
    Row(
        "sana_video_image",
        "SanaImageToVideoPipeline",
        lambda: _sana_video(parts.flow()),
        _SANA | {"image": picture()},
        calls=(2,),
    ),
    Row("kandinsky5", "Kandinsky5T2VPipeline", _kandinsky5, _T2V, settings=_UNCROPPED),
    Row(
        "kandinsky5_image",
        "Kandinsky5I2VPipeline",
        lambda: _kandinsky5(visual_cond=True),
        _T2V | {"image": picture(), "num_frames": 17},
        settings=_UNCROPPED,
    ),
    Row(
        "kandinsky6",
        "Kandinsky6TI2VAPipeline",
        lambda: _kandinsky5(
            tokenizer=parts.tokenizer(padding_side="left"), transformer=transformer("kandinsky6", in_text_dim=16)
        ),
        _T2V | {"sample_audio": False},
        way="without sound",
    ),
    Row("cosmos1", "CosmosTextToWorldPipeline", lambda: _cosmos1(CHANNELS), _T2V),
    Row("cosmos1_video", "CosmosVideoToWorldPipeline", lambda: _cosmos1(CHANNELS + 1), _T2V | {"image": picture()}),
    Row(
        "cosmos2_image",
        "Cosmos2TextToImagePipeline",
        lambda: _cosmos(CHANNELS, parts.flow(use_karras_sigmas=True)),
        {k: v for k, v in _T2V.items() if k != "num_frames"},
    ),
    Row(
        "cosmos2",
        "Cosmos2VideoToWorldPipeline",
        lambda: _cosmos(CHANNELS + 1, parts.flow(use_karras_sigmas=True)),
        _T2V | {"image": picture()},
    ),
    Row("cosmos25", "Cosmos2_5_PredictBasePipeline", _cosmos25, _T2V | {"num_frames": 9}),
    Row(
        "cosmos25_transfer",
        "Cosmos2_5_TransferPipeline",
        _cosmos25_transfer,
        _T2V | {"controls": film(17), "num_frames": 17, "num_frames_per_chunk": 9},
        runs=2,
        way="two chunks",
    ),
)
