"""Tiny parts that pipelines share: real classes of diffusers and transformers with random weights, no network."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import diffusers
import numpy
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from tests import tiny_models
from tests.tiny_more import CHANNELS, POOLED_WIDTH, TEXT_WIDTH
from unicp_testbeds.components import build_tokenizer

SIZE, FRAMES = 32, 9
PROMPTS = ("a red star", "a blue square moving")
NEGATIVE = "background"
_CHAT = "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} {% endfor %}"


def seeded(make: Callable[[], Any]) -> Any:
    """What `make` gives, in eval mode, with weights that are the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = make()
    return made.eval().requires_grad_(False)


def transformer(name: str, **changes: Any) -> nn.Module:
    """A tiny transformer of the contract suite (`tiny_models.NAMES`), with its configuration changed."""
    return tiny_models.build(name, **changes)


def tokenizer(**more: Any) -> Any:
    """A word-level tokenizer that any pipeline takes; it knows a chat template, which only joins words.

    A new one each time: pipelines set its padding.
    """
    made = build_tokenizer()
    made.model_input_names = ["input_ids", "attention_mask"]
    made.chat_template = _CHAT
    for name, value in more.items():
        setattr(made, name, value)
    return made


@functools.cache
def _vocabulary() -> int:
    return len(tokenizer())


@functools.cache
def t5(width: int = TEXT_WIDTH, kind: str = "T5") -> Any:
    """A text encoder of the T5 family, of this width."""
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=_vocabulary(), d_model=width, d_kv=4, d_ff=16, num_heads=2, num_layers=1, dropout_rate=0.0
    )
    return seeded(lambda: getattr(transformers, f"{kind}EncoderModel")(config))


@functools.cache
def clip(width: int = POOLED_WIDTH, projected: bool = False) -> Any:
    """CLIP's text encoder. projected: with the projection on top."""
    config = transformers.CLIPTextConfig(
        vocab_size=_vocabulary(),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=2,
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return seeded(lambda: kind(config))


@functools.cache
def decoder(kind: str, config: str, width: int = TEXT_WIDTH, layers: int = 1, **more: Any) -> Any:
    """A decoder used as a text encoder (Llama, Gemma, Qwen, GLM, …), by the names of its class and configuration."""
    made = getattr(transformers, config)(
        vocab_size=_vocabulary(),
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        **({"head_dim": 8} | more),
    )
    return seeded(lambda: getattr(transformers, kind)(made))


@functools.cache
def qwen_vl(width: int = 16, kind: str = "Qwen2_5_VL", model: str = "ForConditionalGeneration") -> Any:
    """Qwen's model of text and pictures; pipelines here give it text."""
    text = {
        "vocab_size": _vocabulary(),
        "hidden_size": width,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
    }
    vision: dict[str, Any] = {"depth": 1, "hidden_size": 16, "num_heads": 2}
    vision |= {"intermediate_size": 16, "out_hidden_size": width} if kind == "Qwen2_5_VL" else {"embed_dim": 16}
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision)
    if model == "TextModel":
        return seeded(lambda: transformers.Qwen2_5_VLTextModel(config.text_config))
    return seeded(lambda: getattr(transformers, f"{kind}{model}")(config))


@functools.cache
def image_encoder(width: int = POOLED_WIDTH) -> Any:
    """CLIP's picture encoder, for pictures of 4x4 that `image_processor` makes: 5 tokens."""
    config = transformers.CLIPVisionConfig(
        hidden_size=width,
        projection_dim=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=4,
        patch_size=2,
    )
    return seeded(lambda: transformers.CLIPVisionModelWithProjection(config))


@functools.cache
def image_processor() -> Any:
    """Belongs to `image_encoder`."""
    return transformers.CLIPImageProcessor(crop_size=4, size=4)


@functools.cache
def siglip(width: int = POOLED_WIDTH) -> Any:
    """Another picture encoder, for pictures of 4x4: 4 tokens."""
    config = transformers.SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=4,
        patch_size=2,
    )
    return seeded(lambda: transformers.SiglipVisionModel(config))


@functools.cache
def siglip_processor() -> Any:
    """Belongs to `siglip`."""
    return transformers.SiglipImageProcessor(size={"height": 4, "width": 4})


def vae(kind: str, **config: Any) -> Any:
    """An autoencoder of diffusers by the name of its class."""
    return seeded(lambda: getattr(diffusers, kind)(**config))


def wan_vae(channels: int = CHANNELS, **more: Any) -> Any:
    """Wan's: 8x8 pixels and 4 frames to one position."""
    return vae(
        "AutoencoderKLWan",
        **{
            "base_dim": 3,
            "z_dim": channels,
            "dim_mult": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "temperal_downsample": [False, True, True],
            "latents_mean": [0.0] * channels,
            "latents_std": [1.0] * channels,
        }
        | more,
    )


def image_vae(**more: Any) -> Any:
    """Stable Diffusion's kind: 8x8 pixels to one position."""
    return vae(
        "AutoencoderKL",
        **{
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": (4,) * 4,
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 1,
            "latent_channels": CHANNELS,
            "norm_num_groups": 2,
            "sample_size": SIZE,
            "shift_factor": 0.0,
        }
        | more,
    )


@functools.cache
def picture(seed: int = 0, size: int = SIZE) -> Image.Image:
    """A picture of noise."""
    pixels = numpy.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=numpy.uint8)
    return Image.fromarray(pixels)


@functools.cache
def film(frames: int = FRAMES, size: int = SIZE) -> list[Image.Image]:
    """So many pictures."""
    return [picture(frame, size) for frame in range(frames)]


def flow(kind: str = "FlowMatchEulerDiscrete", **config: Any) -> Any:
    """A flow-matching scheduler."""
    return getattr(diffusers, f"{kind}Scheduler")(**config)


def unipc(shift: float = 3.0) -> Any:
    """Wan's default scheduler."""
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def tensors(output: Any) -> list[Tensor]:
    """All that a pipeline gave, as tensors."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, (numpy.ndarray, Image.Image)):
        return [torch.from_numpy(numpy.array(output))]
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return [tensor for value in values for tensor in tensors(value)]


class Unguarded:
    """Stands in for the guardrail of Cosmos, a package of its own with large models: everything is safe."""

    def to(self, device: Any) -> None:
        """Nothing to move."""

    def check_text_safety(self, text: str) -> bool:
        """Safe."""
        return True

    def check_video_safety(self, video: Any) -> Any:
        """Safe as it is."""
        return video
