"""The small test-beds: worlds, noise, autoencoder, and that training calls a transformer as its pipeline does."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from unicp_testbeds import beds, film_data
from unicp_testbeds.beds import definitions, worlds
from unicp_testbeds.beds.autoencoder import LinearAutoencoder
from unicp_testbeds.beds.bed import Bed, Diffusion, Flow, Noisy, Velocity
from unicp_testbeds.beds.training import build, save, train
from unicp_testbeds.training_loop import Stage


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_film() -> film_data.Clips:
    """Ten clips of noise, of shots for training and for tests."""
    frames = np.random.default_rng(0).integers(0, 256, (10, film_data.FRAMES, film_data.HEIGHT, film_data.WIDTH, 3))
    captions = tuple(film_data.prompts()[:5]) * 2
    return film_data.Clips(frames.astype(np.uint8), np.arange(10), captions)


def made(name: str) -> Bed:
    one = definitions.bed(name)
    if name == "bunny":
        one.world = worlds.film(one.frames, one.height, one.width, small_film())  # type: ignore[attr-defined]
    return one


# --- worlds


@pytest.mark.parametrize("name", beds.NAMES)
def test_a_world_draws_what_a_seed_says_and_keeps_captions_apart(name: str):
    world = made(name).world
    some = world.training[0]
    first, second, other = (world.draw(some, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert first.min() >= -1 and first.max() <= 1 and first.std() > 0.05
    captions = [world.caption(values) for values in world.training]
    assert len(set(captions)) == len(captions) >= 4
    if world.held_out_count:
        assert len(world.held_out) == worlds.HELD_OUT and not set(world.held_out) & set(world.training)


@pytest.mark.parametrize("name", beds.NAMES)
def test_every_word_of_a_caption_is_known(name: str):
    one = made(name)
    tokenizers = [part for part in one.other_parts().items() if part[0].startswith("tokenizer")]
    assert tokenizers
    for _, tokenizer in tokenizers:
        for values in one.world.held_out:
            assert tokenizer.unk_token_id not in tokenizer(one.world.caption(values)).input_ids


def test_film_is_drawn_from_training_shots_of_the_caption_alone():
    film = small_film()
    world = worlds.film(5, 48, 80, film)
    values = world.training[0]
    places = [i for i in range(10) if film.captions[i] == world.caption(values) and not film.is_test[i]]
    small = [
        torch.nn.functional.avg_pool2d(torch.from_numpy(film.frames[i, :5]).permute(0, 3, 1, 2).float(), 2)
        for i in places
    ]
    allowed = [turned / 127.5 - 1 for clip in small for turned in (clip, clip.flip(-1))]
    for seed in range(6):
        drawn = world.draw(values, seeded(seed)).transpose(0, 1)
        assert any(torch.allclose(drawn, clip, atol=1e-5) for clip in allowed)


# --- noise


def test_flow_leads_from_noise_to_clean():
    clean = torch.randn(8, 2, 3, generator=seeded(1))
    noisy = Flow(shift=3.0)(clean, seeded())
    level = (noisy.time / 1000).view(-1, 1, 1)
    torch.testing.assert_close(noisy.sample - level * noisy.target, clean)
    assert noisy.time.min() > 0 and noisy.time.max() < 1000


def test_noise_of_a_schedule_is_what_its_scheduler_adds():
    scheduler, clean = diffusers.DDPMScheduler(), torch.randn(8, 2, 3, generator=seeded(1))
    noisy = Diffusion(scheduler)(clean, seeded())
    torch.testing.assert_close(noisy.sample, scheduler.add_noise(clean, noisy.target, noisy.time))


def test_a_velocity_is_turned_back_by_the_scheduler_of_the_pipeline():
    scheduler = made("chimes").other_parts()["scheduler"]
    clean = torch.randn(8, 2, 3, generator=seeded(1))
    noisy = Velocity()(clean, seeded())
    sigma = (4 * noisy.time).exp().view(-1, 1, 1)
    sample = noisy.sample * (1 + sigma**2).sqrt()
    torch.testing.assert_close(scheduler.precondition_outputs(sample, noisy.target, sigma), clean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scheduler.precondition_inputs(sample, sigma), noisy.sample)
    torch.testing.assert_close(scheduler.precondition_noise(sigma).flatten(), noisy.time)


# --- autoencoder


@pytest.mark.parametrize(
    ("shape", "patch"), [((2, 3, 5, 8, 8), (2, 4, 4)), ((2, 3, 8, 8), (1, 4, 4)), ((2, 1, 32), (1, 1, 8))]
)
def test_with_all_its_axes_an_autoencoder_gives_back_what_it_got(shape, patch, tmp_path):
    data = torch.rand(40, *shape[1:], generator=seeded()) * 2 - 1
    size = shape[1] * int(np.prod(patch))
    coder = LinearAutoencoder.fitted(data, patch, size)
    latents = coder.encode(data[:2])
    assert latents.shape[1] == size and latents.dim() == data.dim()
    torch.testing.assert_close(coder.decode(latents).sample, data[:2], rtol=1e-3, atol=1e-3)
    coder.save_pretrained(tmp_path)
    again = LinearAutoencoder.from_pretrained(tmp_path)
    assert torch.equal(again.encode(data[:2]), latents)


def test_latents_have_deviation_one_and_keep_the_largest_axes():
    base = torch.randn(500, 1, 8, generator=seeded()) * torch.tensor([9.0, 5.0, 1, 1, 1, 1, 0.1, 0.1])
    coder = LinearAutoencoder.fitted(base, (1, 1, 8), 2)
    latents = coder.encode(base)[:, :, 0]
    torch.testing.assert_close(torch.cov(latents.T), torch.eye(2), atol=2e-2, rtol=0)
    assert coder.back.data[:2].abs().sum() > 0.9 * coder.back.data.abs().sum()


# --- as the pipeline does


class Caught:
    """What a pipeline gave its transformer in its first step, and what it answered."""

    def __init__(self, transformer: Any):
        self.calls: list[tuple[Tensor, Tensor]] = []
        self.given: list[tuple[Any, Any]] = []
        self._hook = transformer.register_forward_hook(self._take, with_kwargs=True)

    def _take(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        sample = args[0] if args else kwargs["hidden_states"]
        time = kwargs["timestep"] if "timestep" in kwargs else args[1]
        self.calls.append((sample.clone(), time.clone()))
        self.given.append((time, output[0].clone()))


@pytest.mark.parametrize("name", beds.NAMES)
def test_training_calls_the_transformer_as_the_pipeline_does(name: str):
    one = made(name)
    pipe = build(one)
    pipe.set_progress_bar_config(disable=True)
    # Fresh heads answer 0, and captions would make no difference.
    for parameter in pipe.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.05, generator=seeded(3))
    caption = one.world.caption(one.world.held_out[0])
    caught = Caught(pipe.transformer)
    arguments = {name: value for name, value in one.defaults.items() if name != "fps"} | {"num_inference_steps": 2}
    with torch.no_grad():
        pipe(caption, generator=seeded(), **arguments)
        sample, _ = caught.calls[0]
        time, said = caught.given[0]
        text, none = one.encode(pipe, [caption]), one.encode(pipe, [""])
        if len(sample) == 2:
            text = {key: torch.cat([none[key], text[key]]) for key in text}
        if name == "ripples":
            patches = (13, 8, 8)
            sample = sample.transpose(1, 2).unflatten(2, patches)
        told = torch.tensor([one.defaults["guidance_scale"]]) if one.is_guided_inside else None
        found = one.call(pipe.transformer, Noisy(sample, time.expand(len(sample)), sample), text, told)
    found = found.flatten(2).transpose(1, 2) if name == "ripples" else found
    assert said.std() > 1e-3
    torch.testing.assert_close(found, said)


# --- training


@pytest.mark.parametrize("name", ["letters", "hills"])
def test_a_training_that_was_stopped_goes_on_and_its_folder_loads(name: str, tmp_path):
    one = made(name)
    frames = {"letters": 9}.get(name, 0)
    stages = (Stage("clips", 2, 2, frames, 1e-3, 1e-3), Stage("guided clips", 2, 2, frames, 1e-3, 1e-3))
    stages = stages if one.is_guided_inside else stages[:1]
    whole = train(one, tmp_path / "whole", stages)
    train(one, tmp_path / "parts", (dataclasses.replace(stages[0], steps=1),))
    if one.is_guided_inside:
        train(one, tmp_path / "parts", (stages[0], dataclasses.replace(stages[1], steps=1)))
    parts = train(one, tmp_path / "parts", stages)
    for a, b in zip(whole.transformer.parameters(), parts.transformer.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    save(one, whole, tmp_path / "pipeline")
    loaded = getattr(diffusers, one.kind).from_pretrained(tmp_path / "pipeline", torch_dtype=torch.float32)
    assert type(loaded.vae) is LinearAutoencoder and type(loaded.scheduler) is type(whole.scheduler)
    assert (tmp_path / "pipeline" / "prompts.txt").read_text().count("\n") == worlds.HELD_OUT
    assert f"python -m unicp_testbeds.beds {name}" in (tmp_path / "pipeline" / "README.md").read_text()
    assert set(json.loads((tmp_path / "pipeline" / "losses.json").read_text())) == {"right captions", "wrong captions"}


@pytest.mark.parametrize("name", beds.NAMES)
def test_a_test_bed_is_small(name: str):
    millions = sum(parameter.numel() for parameter in made(name).transformer().parameters()) / 1e6
    assert 1 < millions < 3
