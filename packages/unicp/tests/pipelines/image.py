"""Pipelines of images."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from tests.pipelines import parts
from tests.pipelines.cross_video import gemma
from tests.pipelines.parts import SIZE, picture, transformer
from tests.pipelines.rows import GUIDED, LATENT, Row
from tests.tiny_more import CHANNELS, POOLED_WIDTH, TEXT_WIDTH

_SIZED = LATENT | {"height": SIZE, "width": SIZE}
_SHORT = {"max_sequence_length": 16}
_MASK = picture(1).convert("L")
_TRUE_CFG = {"negative_prompt": parts.NEGATIVE, "true_cfg_scale": 3.0}


def _flux(**changes: Any) -> dict[str, Any]:
    return {
        "tokenizer": parts.tokenizer(model_max_length=77),
        "text_encoder": parts.clip(),
        "tokenizer_2": parts.tokenizer(),
        "text_encoder_2": parts.t5(),
        "vae": parts.image_vae(latent_channels=1),
        "transformer": transformer("flux", guidance_embeds=True, **changes),
        "scheduler": parts.flow(shift=3.0, use_dynamic_shifting=True),
    }


def _flux2(encoder: Any, **changes: Any) -> dict[str, Any]:
    vae = parts.vae(
        "AutoencoderKLFlux2",
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        layers_per_block=1,
        latent_channels=1,
        norm_num_groups=1,
        sample_size=SIZE,
    )
    return {
        "tokenizer": parts.tokenizer(),
        "text_encoder": encoder,
        "vae": vae,
        "transformer": transformer("flux2", **changes),
        "scheduler": parts.flow(),
    }


def _sd3(**changes: Any) -> dict[str, Any]:
    return {
        "tokenizer": parts.tokenizer(model_max_length=77),
        "text_encoder": parts.clip(projected=True),
        "tokenizer_2": parts.tokenizer(model_max_length=77),
        "text_encoder_2": parts.clip(projected=True),
        "tokenizer_3": parts.tokenizer(),
        "text_encoder_3": parts.t5(16),
        "vae": parts.image_vae(),
        "transformer": transformer("sd3", joint_attention_dim=16, pooled_projection_dim=2 * POOLED_WIDTH),
        "scheduler": parts.flow(shift=3.0),
    } | changes


def _pixart(scheduler: Any = None) -> dict[str, Any]:
    return {
        "tokenizer": parts.tokenizer(),
        "text_encoder": parts.t5(),
        "vae": parts.image_vae(),
        "transformer": transformer("pixart"),
        "scheduler": scheduler or diffusers.DPMSolverMultistepScheduler(beta_schedule="linear"),
    }


def _qwen() -> dict[str, Any]:
    vae = parts.vae(
        "AutoencoderKLQwenImage",
        base_dim=8,
        z_dim=CHANNELS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
    )
    return {
        "tokenizer": parts.tokenizer(),
        "text_encoder": parts.qwen_vl(),
        "vae": vae,
        "transformer": transformer(
            "qwen_image", patch_size=2, in_channels=4 * CHANNELS, out_channels=CHANNELS, joint_attention_dim=16
        ),
        "scheduler": parts.flow(use_dynamic_shifting=True),
    }


_UNCROPPED = {"prompt_template_encode": "{}", "prompt_template_encode_start_idx": 0}


def _sana(scheduler: Any = None, **changes: Any) -> dict[str, Any]:
    vae = parts.vae(
        "AutoencoderDC",
        latent_channels=CHANNELS,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    return {
        "tokenizer": parts.tokenizer(),
        "text_encoder": gemma(),
        "vae": vae,
        "transformer": transformer("sana", **changes),
        "scheduler": scheduler or parts.flow(shift=3.0),
    }


_SANA = _SIZED | _SHORT | {"complex_human_instruction": [], "use_resolution_binning": False}


def _hunyuan_image() -> dict[str, Any]:
    vae = parts.vae(
        "AutoencoderKLHunyuanImage",
        in_channels=3,
        out_channels=3,
        latent_channels=CHANNELS,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        scaling_factor=0.5,
        spatial_compression_ratio=8,
        sample_size=SIZE,
    )
    return {
        "tokenizer": parts.tokenizer(),
        "text_encoder": parts.qwen_vl(),
        "tokenizer_2": parts.tokenizer(),
        "text_encoder_2": parts.t5(POOLED_WIDTH),
        "vae": vae,
        "transformer": transformer("hunyuan_image", text_embed_dim=16, text_embed_2_dim=POOLED_WIDTH),
        "scheduler": parts.flow(shift=7.0),
        "guider": diffusers.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=2),
        "ocr_guider": diffusers.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=3),
    }


def _plain(encoder: Any, name: str, scheduler: Any = None, **changes: Any) -> dict[str, Any]:
    return {
        "tokenizer": parts.tokenizer(),
        "text_encoder": encoder,
        "vae": parts.image_vae(**({"latent_channels": 1} if name == "chroma" else {})),
        "transformer": transformer(name, **changes),
        "scheduler": scheduler or parts.flow(shift=3.0),
    }


def _qwen3(kind: str = "Qwen3Model", **more: Any) -> Any:
    return parts.decoder(kind, "Qwen3Config", layers=2, **more)


def _cogview4(**changes: Any) -> dict[str, Any]:
    scheduler = parts.flow(
        base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
    )
    return _plain(parts.decoder("GlmModel", "GlmConfig", layers=2), "cogview4", scheduler, **changes)


def _mistral() -> Any:
    config = transformers.Mistral3Config(
        text_config={
            "model_type": "mistral",
            "vocab_size": len(parts.tokenizer()),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 16,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "num_key_value_heads": 2,
            "head_dim": 8,
        },
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "intermediate_size": 16,
            "image_size": 4,
            "patch_size": 2,
        },
    )
    return parts.seeded(lambda: transformers.Mistral3ForConditionalGeneration(config))


IMAGE: tuple[Row, ...] = (
    Row("flux", "FluxPipeline", _flux, _SIZED | _SHORT, calls=(1,), way="embedded guidance"),
    Row("flux_true_cfg", "FluxPipeline", _flux, _SIZED | _SHORT | _TRUE_CFG, way="true CFG"),
    Row(
        "flux_img2img",
        "FluxImg2ImgPipeline",
        _flux,
        _SIZED | _SHORT | {"image": picture(), "strength": 0.5},
        steps=12,
        done=6,
        calls=(1,),
        way="begins in mid-schedule",
    ),
    Row(
        "flux_inpaint",
        "FluxInpaintPipeline",
        _flux,
        _SIZED | _SHORT | {"image": picture(), "mask_image": _MASK, "strength": 0.5},
        steps=12,
        done=6,
        calls=(1,),
        way="begins in mid-schedule",
    ),
    Row(
        "flux_fill",
        "FluxFillPipeline",
        lambda: _flux(in_channels=2 * 4 + 64 * 4, out_channels=4),
        _SIZED | _SHORT | {"image": picture(), "mask_image": _MASK},
        calls=(1,),
    ),
    Row(
        "flux_control",
        "FluxControlPipeline",
        lambda: _flux(in_channels=8, out_channels=4),
        _SIZED | _SHORT | {"control_image": picture()},
        calls=(1,),
    ),
    Row(
        "flux_kontext",
        "FluxKontextPipeline",
        _flux,
        _SIZED | _SHORT | {"image": picture(), "_auto_resize": False, "max_area": SIZE * SIZE},
        calls=(1,),
    ),
    Row(
        "flux2",
        "Flux2Pipeline",
        lambda: _flux2(_mistral()),
        _SIZED | _SHORT | {"text_encoder_out_layers": (1,)},
        calls=(1,),
    ),
    Row(
        "flux2_klein",
        "Flux2KleinPipeline",
        lambda: _flux2(_qwen3("Qwen3ForCausalLM"), guidance_embeds=False),
        _SIZED | _SHORT | {"text_encoder_out_layers": (1,), "guidance_scale": 3.0},
    ),
    Row("sd3", "StableDiffusion3Pipeline", _sd3, _SIZED | GUIDED | _SHORT, calls=(2,)),
    Row(
        "sd3_skipped_layers",
        "StableDiffusion3Pipeline",
        _sd3,
        _SIZED
        | GUIDED
        | _SHORT
        | {"skip_guidance_layers": [0], "skip_layer_guidance_start": -0.1, "skip_layer_guidance_stop": 1.0},
        calls=(2, 1),
        way="with skipped layers",
    ),
    Row(
        "sd3_img2img",
        "StableDiffusion3Img2ImgPipeline",
        _sd3,
        _SIZED | GUIDED | _SHORT | {"image": picture(), "strength": 0.5},
        steps=12,
        done=6,
        calls=(2,),
        way="begins in mid-schedule",
    ),
    Row(
        "sd3_pag",
        "StableDiffusion3PAGPipeline",
        lambda: _sd3(pag_applied_layers=["blocks.1"]),
        _SIZED | GUIDED | _SHORT | {"pag_scale": 3.0},
        calls=(3,),
        way="perturbed attention",
    ),
    Row(
        "pixart_sigma_pag",
        "PixArtSigmaPAGPipeline",
        lambda: _pixart() | {"pag_applied_layers": ["blocks.1"]},
        _SIZED | GUIDED | _SHORT | {"use_resolution_binning": False, "clean_caption": False, "pag_scale": 3.0},
        calls=(3,),
    ),
    Row(
        "pixart_alpha",
        "PixArtAlphaPipeline",
        _pixart,
        _SIZED | GUIDED | _SHORT | {"use_resolution_binning": False, "clean_caption": False},
        calls=(2,),
        few=(3, 2),  # a single step is for distilled models there, with a sampler of theirs
    ),
    Row(
        "pixart_sigma",
        "PixArtSigmaPipeline",
        _pixart,
        _SIZED | GUIDED | _SHORT | {"use_resolution_binning": False, "clean_caption": False},
        calls=(2,),
    ),
    Row("qwen_image", "QwenImagePipeline", _qwen, _SIZED | _SHORT | _TRUE_CFG, settings=_UNCROPPED),
    Row(
        "qwen_image_img2img",
        "QwenImageImg2ImgPipeline",
        _qwen,
        _SIZED | _SHORT | _TRUE_CFG | {"image": picture(), "strength": 0.5},
        steps=12,
        done=6,
        settings=_UNCROPPED,
        way="begins in mid-schedule",
    ),
    Row("sana", "SanaPipeline", _sana, _SANA | GUIDED, calls=(2,)),
    Row(
        "sana_sprint",
        "SanaSprintPipeline",
        lambda: _sana(
            diffusers.SCMScheduler(), guidance_embeds=True, qk_norm="rms_norm_across_heads", timestep_scale=1000.0
        ),
        _SANA | {"guidance_scale": 4.5, "intermediate_timesteps": None},
        calls=(1,),
    ),
    Row(
        "lumina2",
        "Lumina2Pipeline",
        lambda: _plain(gemma(), "lumina2"),
        _SIZED | GUIDED | _SHORT | {"cfg_trunc_ratio": 1.0},
    ),
    Row(
        "z_image",
        "ZImagePipeline",
        lambda: _plain(_qwen3(), "z_image"),
        _SIZED | GUIDED | _SHORT,
        calls=(2,),
    ),
    Row(
        "z_image_img2img",
        "ZImageImg2ImgPipeline",
        lambda: _plain(_qwen3(), "z_image"),
        _SIZED | GUIDED | _SHORT | {"image": picture(), "strength": 0.5},
        steps=12,
        done=6,
        calls=(2,),
        way="begins in mid-schedule",
    ),
    Row(
        "aura_flow", "AuraFlowPipeline", lambda: _plain(parts.t5(kind="UMT5"), "aura_flow"), _SIZED | GUIDED, calls=(2,)
    ),
    Row(
        "cogview4",
        "CogView4Pipeline",
        _cogview4,
        _SIZED | GUIDED | _SHORT,
    ),
    Row(
        "cogview4_control",
        "CogView4ControlPipeline",
        lambda: _cogview4(in_channels=2 * CHANNELS, out_channels=CHANNELS),
        _SIZED | GUIDED | _SHORT | {"control_image": picture()},
    ),
    Row("chroma", "ChromaPipeline", lambda: _plain(parts.t5(), "chroma"), _SIZED | GUIDED | _SHORT),
    Row(
        "chroma_img2img",
        "ChromaImg2ImgPipeline",
        lambda: _plain(parts.t5(), "chroma"),
        _SIZED | GUIDED | _SHORT | {"image": picture(), "strength": 0.5},
        steps=12,
        done=6,
        way="begins in mid-schedule",
    ),
    Row(
        "hunyuan_image",
        "HunyuanImagePipeline",
        _hunyuan_image,
        _SIZED | {"negative_prompt": parts.NEGATIVE},
        settings={"prompt_template_encode_start_idx": 0, "tokenizer_max_length": 64, "tokenizer_2_max_length": 4},
    ),
    Row(
        "kandinsky5_t2i",
        "Kandinsky5T2IPipeline",
        lambda: {
            "tokenizer": parts.tokenizer(),
            "text_encoder": parts.qwen_vl(),
            "tokenizer_2": parts.tokenizer(),
            "text_encoder_2": parts.clip(),
            "vae": parts.image_vae(),
            "transformer": transformer("kandinsky5", in_text_dim=16),
            "scheduler": parts.flow(shift=5.0),
        },
        _SIZED | GUIDED | _SHORT,
        settings={"prompt_template": "{}", "prompt_template_encode_start_idx": 0, "resolutions": [(SIZE, SIZE)]},
    ),
)
