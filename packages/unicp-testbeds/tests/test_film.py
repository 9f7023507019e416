"""The third test-bed, on drawn clips: its training continues bit for bit, and what it saves is a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

import unicp
from unicp.cli.loading import generation_defaults
from unicp_testbeds import film, film_data, training_loop
from unicp_testbeds.film_data import FRAMES, Clips
from unicp_testbeds.training_loop import Log, Stage

AUTOENCODER = (
    Stage("frames", 2, 2, 1, 4e-3, 1e-3),
    Stage("clips", 2, 1, 17, 2e-3, 1e-5),
    Stage("decoder", 1, 1, FRAMES, 1e-3, 1e-5, decoder_only=True),
)
DENOISER = (Stage("frames", 2, 2, 1, 1e-3, 1e-3), Stage("whole", 1, 1, FRAMES, 1e-3, 1e-4))
CAPTION = "a bright green scene with fast motion"
CALL: dict[str, Any] = {"prompt": CAPTION, "max_sequence_length": 16, "guidance_scale": 4.0}


class Killed(Exception):
    pass


class KilledLog(Log):
    """Ends the run after a number of steps, before the step is saved."""

    left = 1_000

    def step(self, stage: Stage, step: int, loss: float, note: str = "") -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed
        super().step(stage, step, loss, note)


def run(folder: Path, train: Any, kill_after: int = 1_000) -> Any:
    folder.mkdir(exist_ok=True)
    log = KilledLog(folder / "log.jsonl")
    log.left = kill_after
    return train(folder, log)


def assert_resumes(folder: Path, train: Any, after: int) -> Any:
    """Trains at one go and with an interruption, asks for the same weights, and gives the trained model."""
    whole = run(folder / "whole", train)
    with pytest.raises(Killed):
        run(folder / "parts", train, after)
    torch.manual_seed(99)  # a new process has other random numbers
    again = run(folder / "parts", train)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    return whole


@pytest.fixture(autouse=True)
def _every_step_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_loop, "CHECKPOINT_SECONDS", -1.0)


@pytest.fixture
def small_autoencoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """An autoencoder of the same parts with narrower layers: what is trained here is the loop, not a picture."""
    config = {**film.build_autoencoder().config, "block_out_channels": (8, 8, 8), "norm_num_groups": 4}

    def build() -> Any:
        return AutoencoderKLCogVideoX.from_config(config)

    monkeypatch.setattr(film, "build_autoencoder", build)


@pytest.fixture
def small_transformer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the transformer's blocks."""
    whole = film.build_transformer

    def build() -> Any:
        model = whole()
        model.transformer_blocks = model.transformer_blocks[:2]
        return model

    monkeypatch.setattr(film, "build_transformer", build)


@pytest.fixture(scope="module")
def clips() -> Clips:
    """Five small clips of a wave that moves, the last one of a test shot."""
    x, y = np.arange(24)[None, :], np.arange(16)[:, None]
    shades = [np.stack([120 + 80 * np.sin((x + y + step * speed) / 5) for step in range(FRAMES)]) for speed in range(5)]
    frames = np.stack(shades)[..., None] * np.array([0.6, 1.0, 0.7])
    return Clips(frames.astype(np.uint8), np.arange(5), tuple(film_data.prompts()[:5]))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose transformer says something, although it is untrained."""
    folder = tmp_path_factory.mktemp("film")
    torch.manual_seed(0)
    transformer = film.build_transformer()
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.05)
    film.save_pipeline(folder, film.build_autoencoder(), transformer)
    return folder


@pytest.fixture(scope="module")
def pipe(saved: Path) -> Any:
    loaded = DiffusionPipeline.from_pretrained(saved, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.mark.usefixtures("small_autoencoder")
def test_an_autoencoder_resumes_and_its_latents_are_kept_for_training(tmp_path: Path, clips: Clips):
    seen: list[torch.Tensor] = []

    def train(folder: Path, log: Log) -> Any:
        return film.train_autoencoder(folder, clips, log, AUTOENCODER)

    autoencoder = assert_resumes(tmp_path, train, 3)
    path = tmp_path / "latents.pt"
    latents = film.encode_clips(path, autoencoder, clips)
    assert tuple(latents.shape) == (4, 2, 9, film.LATENT_CHANNELS, 4, 6), "of the training shots alone"
    assert 0.7 < float(latents.float().std()) < 1.4
    autoencoder.encode = seen.append  # would fail if it were used
    assert torch.equal(film.encode_clips(path, autoencoder, clips), latents)
    del autoencoder.encode
    autoencoder.register_to_config(scaling_factor=2 * autoencoder.config["scaling_factor"])
    assert torch.allclose(film.encode_clips(path, autoencoder, clips).float(), 2 * latents.float(), atol=0.01)


@pytest.mark.usefixtures("small_autoencoder")
def test_the_last_stage_leaves_latents_as_they_are(tmp_path: Path, clips: Clips):
    first = run(tmp_path, lambda folder, log: film.train_autoencoder(folder, clips, log, AUTOENCODER[:1]))
    stages = (AUTOENCODER[0], AUTOENCODER[2])
    then = run(tmp_path, lambda folder, log: film.train_autoencoder(folder, clips, log, stages))
    changed = {
        name.split(".")[0]
        for name, value in first.state_dict().items()
        if not torch.equal(value, then.state_dict()[name])
    }
    assert changed == {"decoder"}


@pytest.mark.usefixtures("small_transformer")
@pytest.mark.parametrize("part", ["latents", "captions"])
def test_a_denoiser_resumes_and_depends_on_what_it_is_given(tmp_path: Path, part: str):
    latents = torch.randn(3, 2, 9, film.LATENT_CHANNELS, *film.LATENT_SIZE, generator=torch.Generator().manual_seed(0))
    captions = film_data.prompts()[:3]

    def train(folder: Path, log: Log) -> Any:
        return film.train_denoiser(folder, latents.half(), captions, log, DENOISER)

    if part == "latents":
        model = assert_resumes(tmp_path, train, 2)
        assert float(model.proj_out.weight.abs().max()) > 0
        return
    first = run(tmp_path / "first", train)
    captions.reverse()
    second = run(tmp_path / "second", train)
    assert not torch.equal(first.proj_out.weight, second.proj_out.weight)


def test_a_clip_has_more_than_two_thousand_tokens():
    config: Any = film.build_transformer().config
    height, width = film_data.HEIGHT // film.SPATIAL_FACTOR, film_data.WIDTH // film.SPATIAL_FACTOR
    frames = (FRAMES - 1) // config.temporal_compression_ratio + 1
    assert (height, width, FRAMES) == (config.sample_height, config.sample_width, config.sample_frames)
    assert frames * (height // config.patch_size) * (width // config.patch_size) == 2160
    assert film.latent_frames(FRAMES) == frames and film.latent_frames(1) == 1
    assert config.attention_head_dim == 64


def test_a_saved_pipeline_is_loaded_by_plain_diffusers_and_is_small(saved: Path, pipe: Any):
    assert type(pipe) is CogVideoXPipeline
    assert isinstance(pipe.scheduler, CogVideoXDDIMScheduler)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert sum(path.stat().st_size for path in saved.rglob("*.safetensors")) < 10e6
    assert generation_defaults(saved) == film.DEFAULTS


def test_a_whole_clip_is_generated_without_naming_its_size(pipe: Any):
    frames = pipe(**CALL, num_inference_steps=1, generator=torch.Generator().manual_seed(0), output_type="pt").frames
    assert tuple(frames.shape) == (1, FRAMES, 3, film_data.HEIGHT, film_data.WIDTH)
    assert torch.isfinite(frames).all()


def test_text_and_positions_are_what_the_pipeline_makes_of_them(pipe: Any):
    tokenizer = film.build_tokenizer()
    for text in film_data.prompts():
        assert tokenizer.unk_token_id not in tokenizer(text).input_ids
        assert len(tokenizer(text).input_ids) <= film.TEXT_LENGTH
    for length in (film.TEXT_LENGTH, 226):
        ours = film.encode_prompts(tokenizer, film.build_text_encoder(), [CAPTION, ""], length)
        theirs = pipe._get_t5_prompt_embeds([CAPTION, ""], max_sequence_length=length)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-2)  # theirs went through float16
    for frames in (1, 3, 9):
        theirs = pipe._prepare_rotary_positional_embeddings(film_data.HEIGHT, film_data.WIDTH, frames, "cpu")
        for a, b in zip(film.rotary(frames), theirs):
            assert torch.equal(a, b)


def test_unicp_speeds_it_up_and_does_nothing_at_tolerance_zero(pipe: Any):
    def generate(steps: int = 8) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe(**CALL, num_frames=1, num_inference_steps=steps, generator=generator, output_type="latent").frames

    plain = generate()
    with unicp.enable(pipe, unicp.preset("balanced", tolerance=0.0)) as session:
        assert torch.equal(generate(), plain)
    assert session.summary().operations_saved == pytest.approx(1.0)
    with unicp.enable(pipe, "balanced"):
        assert torch.isfinite(generate()).all()
    with unicp.enable(pipe, unicp.preset("balanced", full_every=2)) as session:
        generate()
    assert session.summary().operations_saved > 1.1
    assert torch.equal(generate(), plain)


def test_training_draws_parts_of_clips_and_their_mirror_images(clips: Clips):
    frames = torch.from_numpy(clips.frames)
    stage = Stage("some", 1, 40, 5, 1e-3, 1e-3)
    video = film._windows(frames, stage, 0, torch.Generator().manual_seed(0))
    assert tuple(video.shape) == (40, 3, 5, 16, 24)
    assert float(video.min()) >= -1 and float(video.max()) <= 1
    every = film.pixels(frames)
    windows = [every[:, :, start : start + 5] for start in range(FRAMES - 4)]
    straight = [any(torch.equal(part, clip) for window in windows for clip in window) for part in video]
    mirrored = [any(torch.equal(part.flip(3), clip) for window in windows for clip in window) for part in video]
    assert all(a or b for a, b in zip(straight, mirrored))
    assert 10 < sum(straight) < 30

    rows = torch.arange(2 * 2 * 9).view(2, 2, 9, 1, 1, 1).expand(2, 2, 9, 1, 1, 1)
    parts = film._parts(rows, 3, torch.Generator().manual_seed(0))
    assert tuple(parts.shape) == (2, 3, 1, 1, 1)
    assert torch.equal(parts.diff(dim=1), torch.ones(2, 2, 1, 1, 1))


def test_shots_are_divided_not_clips():
    shot = np.repeat(np.arange(20), 3)
    clips = Clips(np.zeros((60, 1, 1, 1, 3), np.uint8), shot, ("",) * 60)
    assert not set(shot[clips.is_test]) & set(shot[~clips.is_test])
    assert 0 < int(clips.is_test.sum()) < 60
