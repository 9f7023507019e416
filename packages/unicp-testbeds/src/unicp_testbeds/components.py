"""The parts of the test-bed pipeline: real diffusers and transformers classes at a small size.

Nothing here is special to UniCP: the saved folder loads with plain `DiffusionPipeline.from_pretrained`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from unicp.files import replacing_folder
from unicp_testbeds.clips import ATTRIBUTES

LATENT_CHANNELS = 8
SPATIAL_FACTOR, TEMPORAL_FACTOR = 4, 2
TEXT_WIDTH = 64
FLOW_SHIFT = 3.0
WORDS = ("a", "moving", "on", "background", *(word for values in ATTRIBUTES.values() for word in values))


def build_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the words that captions use; every other word is `<unk>`."""
    vocabulary = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def build_text_encoder(vocabulary: int) -> UMT5EncoderModel:
    """Wan's kind of encoder, see `frozen_encoder`."""
    return frozen_encoder(UMT5EncoderModel, UMT5Config, vocabulary)


def frozen_encoder(kind: Any, config_kind: Any, vocabulary: int) -> Any:
    """A one-layer encoder of the T5 family with orthogonal word vectors; the transformer learns to read it."""
    config = config_kind(
        vocab_size=vocabulary,
        d_model=TEXT_WIDTH,
        d_kv=16,
        num_heads=4,
        d_ff=128,
        num_layers=1,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        encoder = kind(config)
        make_words_orthogonal(encoder, vocabulary)
    return encoder.eval().requires_grad_(False)


def make_words_orthogonal(encoder: Any, vocabulary: int) -> None:
    """Draws orthogonal word vectors of rms 1 for an encoder of width `TEXT_WIDTH`."""
    square = torch.linalg.qr(torch.randn(TEXT_WIDTH, TEXT_WIDTH))[0]
    with torch.no_grad():
        encoder.get_input_embeddings().weight.copy_(square[:vocabulary] * TEXT_WIDTH**0.5)


def build_autoencoder() -> AutoencoderKLWan:
    """4x4 pixels and 2 frames to one latent position of 8 channels."""
    return AutoencoderKLWan(
        base_dim=16,
        decoder_base_dim=32,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=TEMPORAL_FACTOR,
        scale_factor_spatial=SPATIAL_FACTOR,
    )


def build_transformer() -> WanTransformer3DModel:
    """8 blocks, 2 heads of 64, 2.3 M parameters; initialised as Wan is (Xavier, zero head)."""
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=64,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=128,
        ffn_dim=512,
        num_layers=8,
        rope_max_seq_len=64,
    )
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and parameter.ndim == 2:
            torch.nn.init.xavier_uniform_(parameter)
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    torch.nn.init.xavier_uniform_(model.patch_embedding.weight.data.flatten(1))
    torch.nn.init.zeros_(model.proj_out.weight)
    with torch.no_grad():
        blocks: Any = model.blocks
        for block in blocks:
            for weight in (block.attn1.to_out[0].weight, block.attn2.to_out[0].weight, block.ffn.net[2].weight):
                weight.mul_(0.3)
            block.scale_shift_table[:, [2, 5]] += 1.0
        model.condition_embedder.time_proj.weight.mul_(0.3)
    return model


def build_scheduler() -> UniPCMultistepScheduler:
    """Wan's default sampler."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=FLOW_SHIFT
    )


def encode_prompts(
    tokenizer: PreTrainedTokenizerFast, encoder: UMT5EncoderModel, prompts: list[str], length: int
) -> Tensor:
    """What `WanPipeline` feeds its transformer: states of shape (len(prompts), length, 64), zero after the end."""
    batch = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = encoder(batch.input_ids, batch.attention_mask).last_hidden_state
    return states * batch.attention_mask[..., None]


def save_pipeline(kind: Any, folder: Path, models: dict[str, Any], others: dict[str, Any]) -> None:
    """Writes the folder that `DiffusionPipeline.from_pretrained` loads as `kind`, copies of `models` in float16."""
    halves = {name: copy.deepcopy(model).to(torch.float16) for name, model in models.items()}
    with replacing_folder(folder) as part:
        kind(**halves, **others).save_pretrained(part)


def normalise_latents(autoencoder: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Raw latents (B, C, T, H, W) to zero mean and unit variance per channel, as `WanPipeline` expects them."""
    config: Any = autoencoder.config
    mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(config.latents_std).view(1, -1, 1, 1, 1)
    return (latents - mean) / std
