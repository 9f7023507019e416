"""A whole calibration on a tiny pipeline: the profile it writes, stopping and going on, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import unicp
from tests import tiny_pipeline
from unicp.calibration.calibrating import QUICK, THOROUGH, Calibration, CalibrationConfig
from unicp.calibration.clip_maker import of_pipeline
from unicp.cli.loading import load_pipeline, sampler
from unicp.errors import InputError, SettingsError
from unicp.planning.profile import Profile, Seconds, load_profile

pytestmark = pytest.mark.slow

STEPS = 8
PROMPTS = ["a red star", "a blue ring", "a green cross"]
ARGUMENTS = {"height": 32, "width": 32, "num_frames": 5, "guidance_scale": 3.0, "max_sequence_length": 16}
# As few runs as there are kinds of them: each takes a whole pipeline call.
CONFIG = CalibrationConfig(prompts=2, trials=(0.75,))


@pytest.fixture(scope="module")
def pipe(tmp_path_factory) -> Any:
    pipe = load_pipeline(tiny_pipeline.save(tmp_path_factory.mktemp("tiny")))
    sampler(pipe, "euler")
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Mute:
    """A scheduler that tells nothing of noise."""

    config: dict[str, Any] = {}


def calibration(pipe, out: Path, say=lambda text: None, steps: int = STEPS, **changes) -> Calibration:
    options = {"prompts": PROMPTS, "config": CONFIG, **changes}
    return Calibration(of_pipeline(pipe, steps, ARGUMENTS), out=out, on_progress=say, **options)


@pytest.fixture(scope="module")
def calibrated(pipe, tmp_path_factory) -> tuple[Profile, Path, list[str]]:
    out, said = tmp_path_factory.mktemp("profiles") / "profile.json", []
    return calibration(pipe, out, said.append).run(), out, said


def test_a_profile_holds_what_plans_are_made_from(calibrated, pipe):
    profile, out, said = calibrated
    assert load_profile(out) == profile and list(out.parent.iterdir()) == [out]
    assert profile.steps == STEPS and profile.fingerprint.branches == 2
    assert profile.fingerprint.model == "WanTransformer3DModel"
    assert profile.fingerprint.scheduler == type(pipe.scheduler).__name__
    assert [(trial.prompt, trial.full) for trial in profile.trials] == [(prompt, 6) for prompt in PROMPTS[:2]]
    assert all(trial.loss > 0 and 0 < trial.psnr < math.inf for trial in profile.trials)
    sigmas = pipe.scheduler.sigmas
    assert profile.shares == pytest.approx(sigmas.diff().tolist(), rel=1e-3)
    assert len(profile.products.places) == STEPS and len(profile.shape) == 5
    assert profile.seconds.plain > profile.seconds.skipped > 0
    assert [line.split(":")[0] for line in said] == ["1 of 4", "2 of 4", "3 of 4", "4 of 4"]


def test_what_was_recorded_is_what_the_sampler_was_given(calibrated, pipe):
    """The mean square of the outputs, from their estimates, is that of the guided outputs of plain runs."""
    profile = calibrated[0]
    squares: list[list[float]] = []
    own = pipe.scheduler.step

    def watched(output, *args, **kwargs):
        squares[-1].append(output.double().square().mean().item())
        return own(output, *args, **kwargs)

    maker = of_pipeline(pipe, STEPS, ARGUMENTS)
    pipe.scheduler.step = watched
    try:
        for seed, prompt in enumerate(PROMPTS[:2]):
            squares.append([])
            maker.clip(prompt, seed)
    finally:
        del pipe.scheduler.step
    levels = profile.levels[:-1]
    matrix = profile.products.outputs("flow", levels)
    expected = [(a + b) / 2 for a, b in zip(*squares)]
    assert [matrix[step, step] for step in range(STEPS)] == pytest.approx(expected, rel=1e-4)


def test_a_target_runs_under_the_profile(calibrated, pipe):
    # With seconds that do not depend on the machine.
    profile = dataclasses.replace(calibrated[0], seconds=Seconds(full=1.0, plain=1.0, skipped=0.0, rest=0.0))
    with unicp.enable(pipe, target="speedup>=1.2", profile=profile) as session:
        of_pipeline(pipe, STEPS, ARGUMENTS).clip("a green cross", 5)
    plan = session.plan
    assert plan is not None and plan.seconds is not None and not plan.can_add
    full = sorted({entry.step for entry in session.trace.entries if entry.action == "full"})
    assert full == plan.full and len(full) < STEPS


def test_a_stopped_calibration_goes_on_and_comes_to_the_same(calibrated, pipe, tmp_path):
    profile, _, _ = calibrated
    out = tmp_path / "profile.json"

    class Stopped(Exception):
        pass

    left = [3]

    def say(text: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Stopped

    with pytest.raises(Stopped):
        calibration(pipe, out, say).run()
    assert not out.exists()
    again = calibration(pipe, out)
    assert sorted(key[0] for key in again.log.known) == ["plain", "plain", "trial"]
    finished = again.run()
    assert finished.products == profile.products and finished.shares == profile.shares
    assert [trial.psnr for trial in finished.trials] == [trial.psnr for trial in profile.trials]
    with pytest.raises(InputError, match="another prompts"):
        calibration(pipe, out)
        calibration(pipe, out, prompts=PROMPTS[::-1])


def test_nothing_is_left_on_the_pipeline(calibrated, pipe):
    assert "step" not in vars(pipe.scheduler) and not pipe.transformer._forward_hooks
    with unicp.enable(pipe):
        pass


def test_a_quick_profile_costs_at_most_six_clips_and_a_thorough_one_twenty():
    assert 5 < QUICK.clips <= 6 and 18 < THOROUGH.clips <= 20
    assert CalibrationConfig(prompts=2, trials=(0.5, 0.25)).clips == pytest.approx(2 * 1.75)


# --- by the call


def loop(pipe) -> Any:
    """A loop of one's own around the pipeline, which hands back an array."""

    def generate(prompt: str, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        out = pipe(prompt, num_inference_steps=STEPS, generator=generator, output_type="np", **ARGUMENTS)
        return out.frames[0]

    return generate


def test_any_loop_is_calibrated_as_a_pipeline_is(pipe, tmp_path):
    options: dict[str, Any] = {"prompts": PROMPTS, "out": tmp_path / "loop.json"}
    own = unicp.calibrate(loop(pipe), transformer=pipe.transformer, scheduler=pipe.scheduler, **options)
    assert load_profile(tmp_path / "loop.json") == own and own.prompts == 3
    whole = unicp.calibrate(pipe, PROMPTS, steps=STEPS, out=tmp_path / "pipe.json", **ARGUMENTS)
    assert whole.products == own.products and whole.trials == own.trials
    with unicp.enable(pipe.transformer, target="psnr>=10", profile=own, scheduler=pipe.scheduler) as session:
        loop(pipe)("a green cross", 5)
    assert session.plan is not None and session.plan.seconds is not None


@pytest.mark.parametrize(
    ("call", "error", "found"),
    [
        (lambda pipe: unicp.calibrate(pipe, PROMPTS), SettingsError, "no number of steps"),
        (lambda pipe: unicp.calibrate(loop(pipe), PROMPTS), SettingsError, "no transformer"),
        (
            lambda pipe: unicp.calibrate(loop(pipe), PROMPTS, transformer=pipe.transformer),
            SettingsError,
            "no scheduler",
        ),
        (
            lambda pipe: unicp.calibrate(
                loop(pipe), PROMPTS, steps=8, transformer=pipe.transformer, scheduler=pipe.scheduler
            ),
            SettingsError,
            "steps as well",
        ),
        (lambda pipe: unicp.calibrate(3, PROMPTS, steps=8), SettingsError, "a int"),
        (
            lambda pipe: unicp.calibrate(
                loop(pipe), PROMPTS, transformer=pipe.transformer, scheduler=copy.copy(pipe.scheduler)
            ),
            InputError,
            "0 steps of the scheduler",
        ),
        (
            lambda pipe: unicp.calibrate(
                lambda prompt, seed: "no clip", PROMPTS, transformer=pipe.transformer, scheduler=pipe.scheduler
            ),
            InputError,
            "return a tensor or an array",
        ),
    ],
)
def test_what_is_no_loop_is_refused_in_one_line(pipe, tmp_path, monkeypatch, call, error, found):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=found) as caught:
        call(pipe)
    assert "\n" not in str(caught.value) and not (tmp_path / "profile.json").exists()


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"steps": 5}, "too few to skip any"),
        ({"prompts": []}, "no prompts"),
        ({"prompts": ["a", "a"]}, "one of them twice"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(pipe, tmp_path, changes, found):
    with pytest.raises(InputError, match=found):
        calibration(pipe, tmp_path / "profile.json", **changes).run()


def test_a_scheduler_without_noise_levels_is_refused(pipe, tmp_path):
    before = pipe.scheduler
    pipe.scheduler = Mute()
    try:
        with pytest.raises(InputError, match="does not tell noise levels"):
            calibration(pipe, tmp_path / "profile.json")
    finally:
        pipe.scheduler = before
