"""The second test-bed's training on tables of two steps: it continues bit for bit, and what it saves is a pipeline."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

import unicp
from unicp_testbeds import clips, components, latte, latte_card, model_card, scoring, training_loop
from unicp_testbeds.training_loop import Log, Stage

AUTOENCODER = (Stage("frames", 2, 2, 1, 4e-3, 1e-5),)
DENOISER = (Stage("frames", 1, 2, 1, 1e-3, 1e-3), Stage("clips", 1, 1, latte.FRAMES, 1e-3, 1e-4))


@pytest.fixture(autouse=True)
def _few_scenes(monkeypatch):
    scenes = clips.training_scenes()[:4]
    monkeypatch.setattr(clips, "training_scenes", lambda: scenes)
    monkeypatch.setattr(training_loop, "CHECKPOINT_SECONDS", -1.0)


def train(folder: Path):
    folder.mkdir(exist_ok=True)
    log = Log(folder / "log.jsonl")
    autoencoder = latte.train_autoencoder(folder, log, AUTOENCODER)
    return autoencoder, latte.train_denoiser(folder, autoencoder, log, DENOISER)


@pytest.mark.slow
def test_training_continues_where_it_was_and_saves_a_pipeline_that_unicp_speeds_up(tmp_path):
    autoencoder, transformer = train(tmp_path / "whole")
    (tmp_path / "parts").mkdir()
    for name in ("autoencoder.pt", "denoiser.pt"):
        (tmp_path / "parts" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    _, again = train(tmp_path / "parts")  # nothing left to do
    for name, value in transformer.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert autoencoder.config["scaling_factor"] > 0

    latte.save_pipeline(tmp_path / "pipeline", autoencoder, transformer)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "pipeline", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.scheduler, DDIMScheduler)
    call = {
        "prompt": "a red star moving left on a striped background",
        "height": 64,
        "width": 96,
        "video_length": latte.FRAMES,
        "num_inference_steps": 7,
        "clean_caption": False,
        "output_type": "latent",
    }
    plain = pipe(**call, generator=torch.Generator().manual_seed(0)).frames
    assert tuple(plain.shape) == (1, latte.LATENT_CHANNELS, latte.FRAMES, 16, 24)
    with unicp.enable(pipe, unicp.preset("balanced", full_every=2)) as session:
        pipe(**call, generator=torch.Generator().manual_seed(0))
    assert session.summary().operations_saved > 1.1
    assert torch.equal(pipe(**call, generator=torch.Generator().manual_seed(0)).frames, plain)


def test_prompts_are_encoded_as_the_pipeline_does():
    tokenizer = components.build_tokenizer()
    encoder = latte.build_text_encoder(len(tokenizer))
    captions = ["a red star moving left on a striped background", ""]
    states = latte.encode_prompts(tokenizer, encoder, captions)
    assert tuple(states.shape) == (2, 10, latte.TEXT_WIDTH)
    assert torch.allclose(states[:1], latte.encode_prompts(tokenizer, encoder, captions[:1]), atol=1e-5)


def test_frames_are_those_of_a_clip_and_time_steps_lean_to_noise():
    generator = torch.Generator().manual_seed(0)
    frames = latte._frames(clips.training_scenes(), generator)
    assert tuple(frames.shape) == (4, 3, 64, 96)
    steps = training_loop.time_steps(1000, generator)
    assert int(steps.min()) >= 0 and int(steps.max()) <= 999
    assert 640 < float(steps.float().mean()) < 690  # the mean of 1000 * sqrt(u)


def test_the_card_states_the_scores_and_calls_the_pipeline_in_its_own_words(tmp_path):
    row = {"prompts": 64, "frames": 16, "sampler": "ddim", "steps": 30}
    row |= {"accuracy": dict.fromkeys((*clips.ATTRIBUTES, "all"), 0.5)}
    model_card.record_scores(tmp_path / "scores.json", "generated/16/ddim", row)
    text = latte_card.write_card(tmp_path).read_text()
    assert "| 64 generated | 16 | ddim, 30 | 50.0 % |" in text
    assert "    video_length=16,\n" in text and "num_frames=" not in text and "max_sequence_length" not in text
    assert "2 heads of 64" in text and "1,536 tokens" in text


def test_clips_are_scored_at_the_length_the_model_was_trained_on(tmp_path, monkeypatch):
    class DrawingPipe:
        scheduler = DDIMScheduler()

        def __call__(self, prompt, video_length, generator, height, width, guidance_scale, **rest):
            scenes = [{scene.caption: scene for scene in clips.all_scenes()}[text] for text in prompt]
            video = clips.sample_clips(scenes, video_length, torch.Generator().manual_seed(0))
            return SimpleNamespace(frames=((video.permute(0, 2, 3, 4, 1) + 1) / 2).numpy())

    model_card.write_defaults(tmp_path, latte.DEFAULTS)
    monkeypatch.setattr(scoring, "load_pipeline", lambda *_: DrawingPipe())
    scoring.main(["generate", "--model", str(tmp_path), "--prompts", "4", "--steps", "3"])
    row = model_card.read_scores(tmp_path / "scores.json")["generated/16/ddim"]
    assert row["prompts"] == 4 and row["frames"] == 16 and row["accuracy"]["all"] == 1.0
