"""`unicp calibrate`, `unicp plan`, and `--target` of `generate` and `compare`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import unicp.calibration.calibrating as calibrating
from tests import tiny_pipeline
from tests.commands import refused, run
from tests.made_profiles import made
from unicp.cli.calibrate import calibration_prompts
from unicp.planning.plan import load_plan
from unicp.planning.profile import Seconds, load_profile, save_profile

PROMPT = "a red star moving left on a striped background"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def profile(tmp_path) -> Path:
    save_profile(made(), tmp_path / "profile.json")
    return tmp_path / "profile.json"


def test_a_plan_is_printed_and_drawn(profile):
    result = run("plan", profile, "--target", "psnr>=35")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("plan for psnr>=35: ") and set(lines[1].strip()) == {"C", "."}
    assert "PSNR: " in result.stdout and "speed: " in result.stdout


def test_a_plan_is_written_and_printed_for_machines(profile, tmp_path):
    result = run("plan", profile, "--target", "speedup>=1.5", "--steps", 24, "--out", tmp_path / "plan.json", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    plan = load_plan(tmp_path / "plan.json")
    assert facts["full"] == plan.full and facts["drawing"] == plan.drawing() and plan.steps == 24
    assert facts["speed_up"] >= 1.5 and "loss" not in facts and "sigmas" not in facts


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("--target", "quality>=3"), "not a target"),
        (("--target", "speedup>=99"), "at most"),
        (("--target", "psnr>=30", "--steps", 0), "--steps 0"),
        (("--target", "psnr>=30", "--steps", 1001), "up to 1000 steps"),
        (("--target", "psnr>=30", "--steps", 10**11), "up to 1000 steps"),
        (("--target", "speedup>=1.6", "--steps", 3), "at most"),
        (("--target", "psnr>=30", "--out", "no/such/folder.json"), "no folder"),
    ],
)
def test_what_cannot_be_planned_is_one_line(profile, arguments, found):
    assert found in refused("plan", profile, *arguments)


def test_a_file_that_is_no_profile_is_one_line(tmp_path):
    (tmp_path / "bad.json").write_text('{"type": "unicp.trace"}')
    assert "type 'unicp.trace'" in refused("plan", "bad.json", "--target", "psnr>=30")
    assert "missing.json" in refused("plan", "missing.json", "--target", "psnr>=30")


@pytest.mark.parametrize("command", ["generate", "compare"])
def test_options_that_do_not_go_together_are_refused_before_loading(command, profile):
    assert "no --target" in refused(command, PROMPT, "--profile", profile)
    assert "--preset or --tolerance" in refused(command, PROMPT, "--target", "psnr>=35", "--preset", "fast")
    assert "--preset or --tolerance" in refused(command, PROMPT, "--target", "psnr>=35", "--tolerance", 0.1)
    assert "not a target" in refused(command, PROMPT, "--target", "psnr=35")
    assert "missing.json" in refused(command, PROMPT, "--target", "psnr>=35", "--profile", "missing.json")


def test_calibrate_refuses_in_one_line(tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    assert "no prompts in it" in refused("calibrate", "--prompts", "empty.txt")
    assert "--steps 0" in refused("calibrate", "--steps", 0)
    assert "up to 1000 steps" in refused("calibrate", "--steps", 1001)
    # Beside the profile there is a file of notes, whose name is longer.
    assert "a name of 262 bytes" in refused("calibrate", "--out", "x" * 246 + ".json")
    assert "no such folder" in refused("calibrate", "nowhere", "--prompts", _prompts(tmp_path))


def test_a_shipped_model_is_calibrated_on_its_own_prompts():
    assert all("scene with" in text for text in calibration_prompts(None, "film"))
    assert calibration_prompts(None, None) == calibration_prompts(None, "./mine")
    assert len(calibration_prompts(None, None)) == calibrating.THOROUGH.prompts


def _prompts(folder: Path) -> Path:
    (folder / "prompts.txt").write_text(f"{PROMPT}\n")
    return folder / "prompts.txt"


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory) -> tuple[Path, Path]:
    """A tiny pipeline and its profile, made by the command."""
    folder = tmp_path_factory.mktemp("calibrated")
    model = tiny_pipeline.save(folder / "tiny")
    out = folder / "profile.json"
    options = ("--prompts", _prompts(folder), "--out", out, "--sampler", "euler")
    result = run("calibrate", model, *options, "--steps", 8)
    assert result.exit_code == 0, result.output
    assert "1 prompts, 3 runs of 8 steps: as long as 1.8 plain clips" in result.stderr
    assert "1 of 3: plain run" in result.stderr and "next: unicp plan" in result.stdout
    # From here on with seconds that do not depend on the machine.
    seconds = Seconds(full=1.0, plain=1.0, skipped=0.0, rest=0.0)
    save_profile(dataclasses.replace(load_profile(out), seconds=seconds), out)
    return model, out


@pytest.mark.slow
def test_generate_meets_a_target_by_a_profile(calibrated, tmp_path):
    model, profile = calibrated
    options = ("--model", model, "--sampler", "euler", "--steps", 8, "--target", "speedup>=1.1", "--profile", profile)
    result = run("generate", PROMPT, *options, "--json", "--trace", "trace.json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["target"] == "speedup>=1.1" and facts["plan"]["steps"] == 8
    assert facts["summary"]["actions"]["forecast"]["calls"] == 2 * (8 - len(facts["plan"]["full"])) > 0


@pytest.mark.slow
def test_a_profile_of_another_sampler_is_one_line(calibrated):
    model, profile = calibrated
    line = refused("generate", PROMPT, "--model", model, "--target", "psnr>=30", "--profile", profile)
    assert "scheduler UniPCMultistepScheduler, not FlowMatchEulerDiscreteScheduler" in line
