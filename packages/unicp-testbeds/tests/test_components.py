"""The parts of the test-bed's pipeline, and that plain diffusers loads and runs what is saved of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, UniPCMultistepScheduler, WanPipeline

from unicp_testbeds import clips, components, training

CAPTION = "a red star moving left on a striped background"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    training.save_pipeline(folder, components.build_autoencoder(), components.build_transformer())
    return folder


def test_every_word_of_every_caption_is_known():
    tokenizer = components.build_tokenizer()
    for scene in clips.all_scenes():
        tokens = tokenizer(scene.caption).input_ids
        assert tokenizer.unk_token_id not in tokens
        assert len(tokens) == len(scene.caption.split()) + 1
        assert tokens[-1] == tokenizer.eos_token_id


def test_other_words_are_unknown_and_nothing_is_only_an_end():
    tokenizer = components.build_tokenizer()
    tokens = tokenizer("a red zebra").input_ids
    assert [token == tokenizer.unk_token_id for token in tokens] == [False, False, True, False]
    assert tokenizer("").input_ids == [tokenizer.eos_token_id]
    assert tokenizer.decode(tokenizer(CAPTION).input_ids, skip_special_tokens=True) == CAPTION


def test_the_text_encoder_is_the_same_whenever_it_is_built():
    state = torch.get_rng_state()
    first, second = components.build_text_encoder(30), components.build_text_encoder(30)
    assert torch.equal(torch.get_rng_state(), state), "building it must not disturb the training's random numbers"
    for a, b in zip(first.parameters(), second.parameters()):
        assert torch.equal(a, b)
        assert not a.requires_grad


@pytest.mark.parametrize("length", [16, 32])
def test_prompts_are_encoded_as_the_pipeline_does(length: int):
    tokenizer = components.build_tokenizer()
    encoder = components.build_text_encoder(len(tokenizer))
    parts: dict[str, Any] = {
        "tokenizer": tokenizer,
        "text_encoder": encoder,
        "vae": components.build_autoencoder(),
        "scheduler": components.build_scheduler(),
        "transformer": components.build_transformer(),
    }
    pipe = WanPipeline(**parts)
    prompts = [CAPTION, "", "a ring"]
    theirs = pipe._get_t5_prompt_embeds(prompts, max_sequence_length=length)
    ours = components.encode_prompts(tokenizer, encoder, prompts, length)
    assert ours.shape == (3, length, components.TEXT_WIDTH)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert ours[1, 1:].abs().max() == 0, "zero after the end"


@pytest.mark.parametrize(("frames", "latent_frames"), [(1, 1), (9, 5), (41, 21)])
def test_the_autoencoder_halves_time_and_quarters_space(frames: int, latent_frames: int):
    torch.manual_seed(0)
    model: Any = components.build_autoencoder().eval()
    with torch.no_grad():
        latents = model.encode(torch.rand(1, 3, frames, clips.HEIGHT, clips.WIDTH)).latent_dist.mean
        restored = model.decode(latents).sample
    assert latents.shape == (1, components.LATENT_CHANNELS, latent_frames, 16, 24)
    assert restored.shape == (1, 3, frames, clips.HEIGHT, clips.WIDTH)


def test_latents_are_normalised_per_channel():
    model = components.build_autoencoder()
    channels = components.LATENT_CHANNELS
    model.register_to_config(latents_mean=[1.0] * channels, latents_std=[2.0] * channels)
    normal = components.normalise_latents(model, torch.full((1, channels, 2, 3, 4), 5.0))
    assert torch.equal(normal, torch.full((1, channels, 2, 3, 4), 2.0))


def test_the_transformer_keeps_the_shape_and_starts_at_zero():
    torch.manual_seed(0)
    model: Any = components.build_transformer()
    assert model.config.attention_head_dim == 64
    latents = torch.randn(2, components.LATENT_CHANNELS, 5, 16, 24)
    with torch.no_grad():
        output = model(latents, torch.tensor([500.0, 10.0]), torch.randn(2, 16, components.TEXT_WIDTH)).sample
    assert output.shape == latents.shape
    assert output.abs().max() == 0


def test_a_saved_pipeline_is_loaded_by_plain_diffusers_and_runs(saved: Path):
    pipe: Any = DiffusionPipeline.from_pretrained(saved)
    assert type(pipe) is WanPipeline
    assert isinstance(pipe.scheduler, UniPCMultistepScheduler)
    assert pipe.scheduler.config.flow_shift == components.FLOW_SHIFT
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(
        CAPTION,
        height=clips.HEIGHT,
        width=clips.WIDTH,
        num_frames=clips.SHORT_FRAMES,
        num_inference_steps=2,
        guidance_scale=4.0,
        max_sequence_length=32,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).frames
    assert frames.shape == (1, clips.SHORT_FRAMES, 3, clips.HEIGHT, clips.WIDTH)
    assert torch.isfinite(frames).all()


def test_saving_halves_the_weights_and_leaves_the_models_alone(saved: Path, tmp_path: Path):
    autoencoder, transformer = components.build_autoencoder(), components.build_transformer()
    training.save_pipeline(tmp_path / "again", autoencoder, transformer)
    assert next(transformer.parameters()).dtype == next(autoencoder.parameters()).dtype == torch.float32
    weights = sum(path.stat().st_size for path in saved.rglob("*.safetensors"))
    assert weights < 15e6
    assert sum(p.numel() for p in transformer.parameters()) * 2 < weights
