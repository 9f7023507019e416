"""The command line, run on a tiny random pipeline in a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

import unicp
from tests import tiny_pipeline
from tests.commands import refused, run
from tests.made_profiles import made
from unicp.cli import common, video
from unicp.cli.common import Prepared
from unicp.cli.inspect_model import _ranges
from unicp.errors import InputError
from unicp.planning.profile import save_profile
from unicp.records import load_trace

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
    assert list(facts["levels"]) == ["model", "stack", "block", "unit"]
    assert all(level["available"] for level in facts["levels"].values())
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
        (["--fps", 1e-7], "--fps 1e-07"),
        (["--steps", "1e11"], "--steps"),
        (["--steps", 100_000_000_000], "--steps 100000000000"),
        (["--height", 1_000_000], "pixels a side"),
        (["--frames", 10**12], "GB of memory"),
        (["--frames", 900_000, "--fps", 0.01, "--out", "a.gif", "--height", 1, "--width", 1], "a GIF holds"),
        (["--out", "x" * 252 + ".mp4"], "a name of 256 bytes"),
        (["--out", "\u6f22" * 90 + ".mp4"], "a name of 274 bytes"),
        (["--trace", "x" * 256], "a name of 256 bytes"),
        (["--out", "a\0b.mp4"], "null"),
        (["--out", "x/" * 3000 + "a.mp4"], "no folder"),
        (["--model", "x" * 300], "no such folder"),
        (["--profile", "/dev/zero", "--target", "psnr>=30"], "a device"),
        (["--target", "psnr>=30", "--steps", 1001], "up to 1000 steps"),
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
    if "--model" not in flags:
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


def test_a_name_of_as_many_bytes_as_there_may_be_is_written(folder):
    name = "\u6f22" * 83 + "ab.mp4"
    assert len(name.encode()) == 255
    result = run("generate", PROMPT, "--model", folder, "--preset", "off", "--steps", 2, "--out", name)
    assert result.exit_code == 0 and Path(name).exists()


def test_what_the_model_folder_adds_is_checked_before_it_runs(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "generate", None)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).symlink_to(file)
    defaults = json.loads((folder / "unicp_defaults.json").read_text())
    (copy / "unicp_defaults.json").unlink()
    for name, value, said in (("fps", 1e-7, "1e-07 frames a second"), ("height", 30_000, "pixels a side")):
        (copy / "unicp_defaults.json").write_text(json.dumps({**defaults, name: value}))
        assert said in refused("generate", PROMPT, "--model", copy)
    # Each fits a file, both beside each other do not.
    assert "16392 x" in refused("compare", PROMPT, "--model", folder, "--width", 8192)


def test_a_video_is_kept_and_written_before_its_trace(folder, tmp_path, monkeypatch):
    def vanish(*arguments, **more):
        (tmp_path / "traces").rmdir()
        return made(*arguments, **more)

    made = common.generate
    monkeypatch.setattr(common, "generate", vanish)
    (tmp_path / "traces").mkdir()
    line = refused("generate", PROMPT, "--model", folder, "--steps", 2, "--trace", "traces/t.json")
    assert "no folder" in line and "the video is in unicp.mp4" in line
    assert video_shape(tmp_path / "unicp.mp4") == (5, 32, 32)

    monkeypatch.setattr(video.tempfile, "tempdir", str(tmp_path))
    (tmp_path / "traces").mkdir()
    line = refused("generate", PROMPT, "--model", folder, "--steps", 2, "--out", "traces/a.mp4")
    kept = Path(line.rpartition("take the video from ")[2])
    assert kept.parent == tmp_path and video_shape(kept) == (5, 32, 32)


def test_files_that_a_command_reads_are_never_written_over(tmp_path):
    save_profile(made(), tmp_path / "p.json")
    (tmp_path / "link.json").symlink_to("p.json")
    (tmp_path / "prompts.txt").write_text(PROMPT)
    before = (tmp_path / "p.json").read_bytes()
    target = ("--target", "psnr>=35")
    for trace in ("p.json", "./p.json", "link.json"):
        line = refused("generate", PROMPT, *target, "--profile", "p.json", "--trace", trace)
        assert "the same file as --profile" in line
    assert "the same file as PROFILE" in refused("plan", "p.json", *target, "--out", "link.json")
    assert "the same file as --prompts" in refused("calibrate", "--prompts", "prompts.txt", "--out", "prompts.txt")
    assert (tmp_path / "p.json").read_bytes() == before


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda self, image, prompt, height=8, width=8: None, "which needs image"),
        (lambda self, prompt=None, seconds=1: None, "which makes no pictures"),
        (lambda self, image=None, height=8, width=8: None, "which takes no prompt"),
    ],
)
def test_a_pipeline_that_makes_no_video_of_a_prompt_is_refused_before_it_runs(call, found):
    pipe = type("OddPipeline", (), {"__call__": call})()
    with pytest.raises(InputError, match=f"an? OddPipeline, {found}"):
        common._check_kind(pipe, {"prompt": "a cat"})


def test_pictures_are_videos_of_one_frame_and_too_little_memory_is_one_line(monkeypatch):
    prompt = {"prompt": "a cat"}

    class Pipe:
        def __call__(self, prompt, generator, output_type, error=None):
            if error is not None:
                raise error
            return SimpleNamespace(images=np.zeros((2, 8, 8, 3)))

    assert common.generate(Prepared(Pipe(), prompt, 8.0, 0), "").frames.shape == (1, 8, 8, 3)  # type: ignore[arg-type]
    text = "[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: can't allocate memory: you tried to"
    for error in (MemoryError(), RuntimeError(text), torch.OutOfMemoryError("CUDA out of memory")):
        with pytest.raises(InputError, match="not enough memory"):
            common.generate(Prepared(Pipe(), {**prompt, "error": error}, 8.0, 0), "")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="a fault"):
        common.generate(Prepared(Pipe(), {**prompt, "error": RuntimeError("a fault")}, 8.0, 0), "")  # type: ignore[arg-type]


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
