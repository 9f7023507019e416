"""The command line, run on a tiny random pipeline in a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import pytest

import unicp
from tests import tiny_pipeline
from tests.commands import refused, run
from unicp.cli import common
from unicp.cli.inspect_model import _ranges
from unicp.files import load_trace

PROMPT = "a red star moving left on a striped background"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_pipeline.save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def video_shape(path: Path) -> tuple[int, int, int]:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return len(frames), *frames[0].shape[:2]


def test_generate_without_acceleration(folder, tmp_path):
    result = run("generate", PROMPT, "--model", folder, "--preset", "off")
    assert result.exit_code == 0, result.output
    assert "unicp.mp4: 5 frames of 32 x 32" in result.stdout
    assert video_shape(tmp_path / "unicp.mp4") == (5, 32, 32)


def test_generate_with_a_trace_and_json(folder, tmp_path):
    flags = ["--steps", 5, "--height", 16, "--frames", 1, "--cfg", 1, "--seed", 3, "--sampler", "euler", "--fps", 4]
    flags += ["--negative", "a blue ring", "--tolerance", 0, "--trace", "t.json", "--out", "a.gif", "--json"]
    result = run("generate", PROMPT, "--model", folder, *flags)
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    facts = json.loads(line)
    assert (facts["frames"], facts["height"], facts["width"], facts["fps"]) == (1, 16, 32, 4)
    assert (facts["steps"], facts["seed"], facts["sampler"]) == (5, 3, "FlowMatchEulerDiscreteScheduler")
    assert facts["summary"]["runs"] == 1 and facts["summary"]["operations_saved"] == pytest.approx(1, abs=0.3)
    assert {entry.step for entry in load_trace("t.json").entries} == set(range(5))
    assert Path("a.gif").exists()


def test_generate_prints_the_summary(folder):
    result = run("generate", PROMPT, "--model", folder, "--preset", "fast")
    assert result.exit_code == 0, result.output
    assert "UniCP fast: WanTransformer3DModel" in result.stdout and "seconds" in result.stdout


def test_compare(folder, tmp_path):
    result = run("compare", PROMPT, "--model", folder, "--preset", "fast", "--trace", "t.json", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["speed_up"] == pytest.approx(facts["plain_seconds"] / facts["seconds"])
    assert facts["psnr"] == "inf" or facts["worst_frame_psnr"] <= facts["psnr"]
    assert facts["summary"]["runs"] == 1
    count, height, width = video_shape(tmp_path / "comparison.mp4")
    assert (count, width) == (5, 2 * 256 + 8) and height > 256
    assert len({entry.run for entry in load_trace("t.json").entries}) == 1


def test_compare_with_tolerance_0_is_equal(folder):
    result = run("compare", PROMPT, "--model", folder, "--tolerance", 0, "--steps", 3, "--out", "c.gif")
    assert result.exit_code == 0, result.output
    assert "equal, worst frame equal" in result.stdout and "Nothing was skipped" in result.stdout
    assert Path("c.gif").exists()


def test_inspect(folder):
    result = run("inspect", "--model", folder)
    assert result.exit_code == 0, result.output
    assert "WanPipeline with UniPCMultistepScheduler" in result.stdout and "prediction flow" in result.stdout
    assert "blocks.0-1.attn1" in result.stdout and "no: no attention" in result.stdout
    result = run("inspect", "--model", folder, "--json")
    facts = json.loads(result.stdout)["transformers"]["transformer"]
    assert [span for span in facts["spans"] if facts["spans"][span]["available"]] == ["model", "stack", "block", "unit"]
    assert facts["units"][0] == {
        "name": "blocks.0.attn1",
        "block": 0,
        "role": "self",
        "heads": 2,
        "head_width": 16,
        "sliceable": True,
        "why_not": "",
        "text_keys": False,
    }


def test_ranges():
    assert _ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--preset", "warp"], "the presets paper"),
        (["--steps", 0], "--steps 0"),
        (["--steps", "many"], "--steps"),
        (["--frames", -1], "--frames -1"),
        (["--height", 0], "--height 0"),
        (["--seed", -1], "--seed -1"),
        (["--tolerance", -0.1], "tolerance=-0.1"),
        (["--tolerance", "nan"], "tolerance=nan"),
        (["--cfg", "nan"], "--cfg nan"),
        (["--cfg", "inf"], "--cfg inf"),
        (["--fps", 0], "--fps 0"),
        (["--sampler", "magic"], "--sampler 'magic'"),
        (["--out", "a.avi"], ".mp4 and .gif"),
        (["--out", "none/a.mp4"], "no folder"),
        (["--trace", "none/t.json"], "no folder"),
        (["--trace", "unicp.mp4", "--out", "unicp.mp4"], "the same file"),
        (["--preset", "off", "--tolerance", 0.1], "--tolerance with --preset off"),
        (["--preset", "off", "--trace", "t.json"], "--trace with --preset off"),
        (["--colour", "red"], "--colour"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "compare"])
def test_bad_input_is_one_line_and_seen_before_the_model(command, flags, said, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "prepare", None)
    assert said in refused(command, PROMPT, *flags)
    assert not list(tmp_path.iterdir())


def test_bad_prompts_and_commands():
    assert "empty prompt" in refused("generate", "  ", "--preset", "off")
    assert "PROMPT" in refused("generate")
    assert "nothing to compare with" in refused("compare", PROMPT, "--preset", "off")
    assert "dance" in refused("dance")


def test_bad_models(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "image").mkdir()
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "image" / "model_index.json").write_text(json.dumps(index))
    said = {"none": "no such folder", "empty": "model_index.json", "file": "a file", "image": "without one"}
    for name, part in said.items():
        assert part in refused("generate", PROMPT, "--model", tmp_path / name)
        assert part in refused("inspect", "--model", tmp_path / name)


def test_what_the_pipeline_refuses_is_one_line(folder):
    assert "divisible by 16" in refused("generate", PROMPT, "--model", folder, "--preset", "off", "--height", 20)
    assert not Path("unicp.mp4").exists()


def test_an_interrupt_leaves_no_file(folder, tmp_path, monkeypatch):
    def interrupt(*_args, **_changes):
        raise KeyboardInterrupt

    monkeypatch.setattr(common, "generate", interrupt)
    result = run("generate", PROMPT, "--model", folder, "--preset", "off")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "unicp: interrupted"
    assert not list(tmp_path.iterdir())


def test_help_and_version():
    for arguments in ([], ["--help"], ["generate", "--help"], ["compare", "--help"], ["inspect", "--help"]):
        result = run(*arguments)
        assert result.exit_code == 0 and "Examples:" in result.stdout
    assert "130  interrupted" in run("--help").stdout
    assert run("--version").stdout.startswith("unicp ")


def test_help_loads_nothing_heavy():
    code = "import sys, unicp.cli.main; print([m for m in ('torch', 'diffusers', 'av', 'numpy') if m in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(Path(unicp.__file__).parents[1])}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == "[]"
