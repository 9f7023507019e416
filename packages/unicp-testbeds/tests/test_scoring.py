"""The classifier that scores generated clips, its commands, and the model card made from what they write."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from unicp.errors import FileFormatError, InputError
from unicp_testbeds import clips, folder, model_card, scorer, scoring
from unicp_testbeds.components import build_scheduler
from unicp_testbeds.scorer import Scorer

LENGTHS = [clips.SHORT_FRAMES, clips.LONG_FRAMES]


def drawn(scenes: list[clips.Scene], frames: int, seed: int) -> Tensor:
    """(B, T, 64, 96, 3) in [0, 1], as a pipeline gives it."""
    video = clips.sample_clips(scenes, frames, torch.Generator().manual_seed(seed))
    return (video.permute(0, 2, 3, 4, 1) + 1) / 2


class DrawingPipe:
    """Stands for a pipeline: draws the clip that each prompt asks for, except that it knows no hearts."""

    scheduler = build_scheduler()

    def __init__(self):
        self.scenes = {scene.caption: scene for scene in clips.all_scenes()}
        self.calls: list[dict[str, Any]] = []

    def __call__(self, prompt: list[str], num_frames: int, generator: list[torch.Generator], **rest: Any) -> Any:
        self.calls.append({"prompt": prompt, "seeds": [g.initial_seed() for g in generator], **rest})
        scenes = [self.scenes[text] for text in prompt]
        shown = [clips.Scene(s.glyph % 7, s.colour, s.motion, s.background) for s in scenes]
        return SimpleNamespace(frames=drawn(shown, num_frames, generator[0].initial_seed()).numpy())


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> DrawingPipe:
    made = DrawingPipe()
    monkeypatch.setattr(scoring, "load_pipeline", lambda *_: made)
    return made


@pytest.mark.parametrize("frames", LENGTHS)
def test_the_shipped_classifier_reads_drawn_clips(frames: int):
    scenes = clips.held_out_scenes()[:32]
    right = scoring.score_clips(drawn(scenes, frames, seed=77), scenes)
    assert list(right) == list(clips.ATTRIBUTES)
    for name, values in right.items():
        assert len(values) == 32
        assert sum(values) / 32 >= 0.95, name


def test_the_shipped_classifier_sees_when_a_clip_shows_something_else():
    scene = clips.Scene(glyph=1, colour=2, motion=0, background=3)
    video = drawn([scene], clips.SHORT_FRAMES, seed=3)
    other = clips.Scene(glyph=4, colour=1, motion=2, background=0)
    assert scoring.score_clips(video, [scene]) == {name: [True] for name in clips.ATTRIBUTES}
    assert scoring.score_clips(video, [other]) == {name: [False] for name in clips.ATTRIBUTES}
    backwards = scoring.score_clips(video.flip(1), [scene])
    assert backwards == {"glyph": [True], "colour": [True], "motion": [False], "background": [True]}


def test_the_shipped_classifier_is_small_and_its_bar_is_recorded():
    assert (folder() / model_card.WEIGHTS_FILE).stat().st_size < 1.5e6
    row = model_card.read_scores(folder() / model_card.SCORES_FILE)["real"]
    assert row["clips"] >= 600
    for length in LENGTHS:
        accuracy = row["by_frames"][str(length)]
        assert all(accuracy[name] >= 0.98 for name in clips.ATTRIBUTES), accuracy


def test_training_is_the_same_every_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first = scoring.train_scorer(tmp_path / "a/scorer.safetensors", seed=3, steps=2, batch=4)
    state = torch.get_rng_state()
    again = scoring.train_scorer(tmp_path / "b/scorer.safetensors", seed=3, steps=2, batch=4)
    other = scoring.train_scorer(tmp_path / "c/scorer.safetensors", seed=4, steps=2, batch=4)
    assert torch.equal(torch.get_rng_state(), state)
    files = [(tmp_path / name / "scorer.safetensors").read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]
    assert not first.training
    video = drawn(clips.held_out_scenes()[:4], 9, 0)
    assert scoring.read_clips(video, first) == scoring.read_clips(video, again)
    assert not torch.equal(first.look_head.weight, other.look_head.weight)
    assert "scorer 2/2 loss" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["scorer.safetensors"]


def test_any_length_is_read_and_the_order_of_clips_is_kept():
    untrained = Scorer().eval()
    for frames in (2, 5, 17):
        read = scoring.read_clips(torch.rand(3, frames, 64, 96, 3), untrained)
        assert {name: len(values) for name, values in read.items()} == dict.fromkeys(clips.ATTRIBUTES, 3)
    scenes = clips.held_out_scenes()[:6]
    video = drawn(scenes, 9, seed=8)
    read = scoring.read_clips(video)
    assert scoring.read_clips(video.flip(0)) == {name: values[::-1] for name, values in read.items()}


@pytest.mark.parametrize("shape", [(9, 64, 96, 3), (1, 3, 9, 64, 96), (1, 1, 64, 96, 3)])
def test_what_is_no_clip_is_refused(shape: tuple[int, ...]):
    with pytest.raises(InputError, match=r"asked: clips of shape \(B, T, H, W, 3\)"):
        scoring.read_clips(torch.zeros(shape), Scorer().eval())


def test_one_scene_per_clip_is_needed():
    with pytest.raises(InputError, match="found: 1 scenes"):
        scoring.score_clips(torch.zeros(2, 9, 64, 96, 3), clips.held_out_scenes()[:1], Scorer().eval())


def test_missing_weights_and_missing_pipelines_are_named(tmp_path: Path):
    with pytest.raises(InputError, match="found: no such file; do: run python -m unicp_testbeds.scoring train"):
        scoring.load_scorer(tmp_path / "none.safetensors")
    with pytest.raises(SystemExit, match="found: no model_index.json"):
        scoring.main(["generate", "--model", str(tmp_path)])


def test_accuracies_count_each_attribute_and_all_together():
    right = {"glyph": [True, False], "colour": [True, True], "motion": [True, True], "background": [True, False]}
    expected = {"glyph": 0.5, "colour": 1.0, "motion": 1.0, "background": 0.5, "all": 0.5}
    assert scorer.accuracies(right) == expected


def test_generate_scores_held_out_prompts_and_records_them(
    tmp_path: Path, pipe: DrawingPipe, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "scores.json"
    model_card.record_scores(out, "real", {"clips": 1})
    arguments = ["--frames", "9", "--prompts", "12", "--batch", "5", "--steps", "3", "--seed", "100", "--out", str(out)]
    scoring.main(["generate", *arguments])
    held_out = clips.held_out_scenes()[:12]
    assert [text for call in pipe.calls for text in call["prompt"]] == [scene.caption for scene in held_out]
    assert [seed for call in pipe.calls for seed in call["seeds"]] == list(range(100, 112))
    assert [len(call["prompt"]) for call in pipe.calls] == [5, 5, 2]
    assert {call["num_inference_steps"] for call in pipe.calls} == {3}
    scores = json.loads(out.read_text())
    assert scores["real"] == {"clips": 1}
    row = scores["generated/9/unipc"]
    hearts = sum(scene.glyph == 7 for scene in held_out)
    assert 0 < hearts < 6
    assert row["accuracy"]["glyph"] == pytest.approx(1 - hearts / 12, abs=0.01)
    assert row["accuracy"]["colour"] == row["accuracy"]["motion"] == 1
    stated = {name: row[name] for name in ("prompts", "steps", "seed", "frames", "sampler", "batch", "device")}
    assert stated == dict(prompts=12, steps=3, seed=100, frames=9, sampler="unipc", batch=5, device="cpu")
    assert row["torch"] == torch.__version__
    printed = capsys.readouterr().out
    assert printed.count("as asked") == 12 - hearts
    assert printed.count("glyph read as circle") == hearts
    assert list(tmp_path.iterdir()) == [out]


def test_the_sheet_has_a_row_per_prompt(tmp_path: Path, pipe: DrawingPipe):
    out = tmp_path / "docs/sheet.png"
    scoring.main(["sheet", "--frames", "9", "--prompts", "3", "--steps", "2", "--out", str(out)])
    assert len(pipe.calls) == 3
    with Image.open(out) as image:
        assert image.width > 6 * 2 * clips.WIDTH + 200
        assert image.height >= 3 * 2 * clips.HEIGHT
    assert list(out.parent.iterdir()) == [out]


def test_counts_below_one_are_refused(capsys: pytest.CaptureFixture[str]):
    for option in ("--steps", "--frames", "--batch", "--prompts"):
        with pytest.raises(SystemExit):
            scoring.main(["generate", option, "0"])
        assert option in capsys.readouterr().err


def test_the_model_card_states_what_was_measured(tmp_path: Path):
    shares = {"glyph": 0.875, "colour": 1.0, "motion": 0.9844, "background": 0.9688, "all": 0.8281}
    real = {"clips": 640, "accuracy": shares}
    generated = {"prompts": 64, "frames": 41, "sampler": "unipc", "steps": 30, "accuracy": shares}
    model_card.record_scores(tmp_path / "scores.json", "generated/41/unipc", generated)
    model_card.record_scores(tmp_path / "scores.json", "real", real)
    text = model_card.write_card(tmp_path, time="two hours on one CPU core").read_text()
    assert "| 640 drawn | 9 and 41 | - | 87.5 % | 100.0 % | 98.4 % | 96.9 % | 82.8 % |" in text
    assert "| 64 generated | 41 | unipc, 30 | 87.5 % |" in text
    assert "Two hours on one CPU core" in text
    assert text.startswith("---\nlicense: apache-2.0\n")
    for words in ("synthetic", "handwritten", "2016 tokens", "python -m unicp_testbeds.training", "Limits", "heart"):
        assert words in text
    assert "{" not in text.replace("{caption}", "")


def test_the_card_of_an_unscored_model_says_so(tmp_path: Path):
    model_card.main(["--folder", str(tmp_path)])
    assert "Not scored yet." in (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / "unicp_defaults.json").read_text()) == {
        "height": 64,
        "width": 96,
        "num_frames": 41,
        "guidance_scale": 4.0,
        "num_inference_steps": 30,
        "max_sequence_length": 32,
        "fps": 12,
    }


@pytest.mark.parametrize("text", ["{", "[]"])
def test_damaged_scores_are_refused_and_left_as_they_are(tmp_path: Path, text: str):
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(FileFormatError, match="remove it and score again"):
        model_card.record_scores(path, "real", {})
    assert path.read_text() == text
