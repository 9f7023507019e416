"""Scores and card of the third test-bed, with a pipeline that draws what it is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from unicp.errors import InputError
from unicp_testbeds import film_card, film_data, film_scoring
from unicp_testbeds.film import DEFAULTS
from unicp_testbeds.film_data import Clips, attributes_of, describe, prompts, save_clips

COLOURS = {"green": (0.8, 1.0, 0.8), "blue": (0.8, 0.8, 1.0), "brown": (1.0, 0.8, 0.7), "grey": (0.9, 0.9, 0.9)}


def drawn(text: str, height: int = 16) -> torch.Tensor:
    """A clip that is measured as the sentence says, (33, height, 16, 3) in [0, 1]."""
    asked = attributes_of(text)
    shade = torch.tensor(COLOURS[film_data.COLOURS[asked["colour"]]])
    shade = shade / shade.mean() * (0.2, 0.37, 0.6)[asked["light"]]
    beat = torch.tensor([-1.0, 1.0]).repeat(17)[:33, None, None, None] * (0.0, 0.02, 0.05)[asked["motion"]]
    return (shade + beat).expand(33, height, 16, 3)


class DrawingPipe:
    """Stands for a pipeline: draws what it is asked for, but nothing fast; its autoencoder is exact."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.vae = SimpleNamespace(
            encode=lambda video: SimpleNamespace(latent_dist=SimpleNamespace(mean=video)),
            decode=lambda latents: SimpleNamespace(sample=latents),
        )

    def __call__(self, prompt: str, generator: torch.Generator, **rest: Any) -> Any:
        self.calls.append({"prompt": prompt, "seed": generator.initial_seed(), **rest})
        return SimpleNamespace(frames=drawn(prompt.replace("fast", "slow"))[None].numpy())


@pytest.fixture
def clips() -> Clips:
    texts = prompts()[:10]
    frames = torch.stack([drawn(text) for text in texts])
    return Clips((frames * 255).round().byte().numpy(), np.arange(10), tuple(texts))


@pytest.mark.parametrize("text", prompts()[:12])
def test_the_drawn_clips_are_measured_as_said(text: str):
    assert describe(drawn(text)) == attributes_of(text)


def test_reconstruction_is_measured_on_the_test_shots(clips: Clips):
    pipe = DrawingPipe()
    row = film_scoring.score_reconstruction(pipe.vae, clips)
    assert row["clips"] == 2
    assert row["psnr"]["mean"] > 60
    assert row["accuracy"] == {"light": 1.0, "colour": 1.0, "motion": 1.0, "all": 1.0}
    pipe.vae.decode = lambda latents: SimpleNamespace(sample=latents + 0.2)  # 0.1 of the range from 0 to 1
    assert film_scoring.score_reconstruction(pipe.vae, clips)["psnr"]["worst_tenth"] == pytest.approx(20, abs=0.1)


def test_all_is_scored_and_the_card_is_written(
    tmp_path: Path, clips: Clips, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pipe = DrawingPipe()
    monkeypatch.setattr(film_scoring, "load_pipeline", lambda folder: pipe)
    save_clips(clips, tmp_path / "clips.npz")
    folder = tmp_path / "pipeline"
    film_scoring.main([str(folder), "--prompts", "16", "--steps", "5", "--seed", "100"])
    known = film_scoring.chosen_prompts(clips, 8)
    assert set(known) == {text for text, is_test in zip(clips.captions, clips.is_test) if not is_test}
    assert [call["prompt"] for call in pipe.calls] == known + known
    assert [call["seed"] for call in pipe.calls] == list(range(100, 116))
    assert {call["num_inference_steps"] for call in pipe.calls} == {5}
    assert {call["num_frames"] for call in pipe.calls} == {DEFAULTS["num_frames"]}
    scores = json.loads((folder / "scores.json").read_text())
    slow = sum("fast" not in text for text in known) / 8
    assert 0 < slow < 1
    assert scores["generated/5"]["accuracy"] == {"light": 1.0, "colour": 1.0, "motion": slow, "all": slow}
    assert scores["data"]["training_clips"] == scores["data"]["training_shots"] == 8
    assert scores["reconstruction"]["torch"] == torch.__version__
    printed = capsys.readouterr().out
    assert printed.count("motion measured as slow") == 16 * (1 - slow)
    text = (folder / "README.md").read_text()
    assert f"| 16 generated | 5 | 100.0 % | 100.0 % | {100 * slow:.1f} % | {100 * slow:.1f} % |" in text
    assert "saw 8 clips of 8 shots, in 8 of the 36 combinations; 2 clips\nof 2 shots were kept for tests." in text


def test_the_card_names_the_film_its_makers_and_its_licence(tmp_path: Path):
    film_card.main([str(tmp_path)])
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("---\nlicense: cc-by-3.0\n")
    assert "Not scored yet." in text
    for words in (
        "(c) 2008 Blender\nFoundation, www.bigbuckbunny.org, licence CC BY 3.0",
        "The captions are ours",
        "2,160",
    ):
        assert words in text
    for words in ("CogVideoXDDIMScheduler", "python -m unicp_testbeds.film", "Shots, not clips", "num_frames=33"):
        assert words in text
    assert "{" not in text


def test_without_clips_the_user_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(film_scoring, "load_pipeline", lambda folder: DrawingPipe())
    with pytest.raises(SystemExit, match=r"no such file; do: run python -m unicp_testbeds\.film_data"):
        film_scoring.main([str(tmp_path / "pipeline")])
    with pytest.raises(InputError):
        film_data.load_clips(tmp_path / "clips.npz")
