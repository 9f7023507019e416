"""A whole calibration on a tiny pipeline: the profile it writes, stopping and going on, and what it refuses."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import unicp
from tests import tiny_pipeline
from unicp.calibration.calibrating import Calibration, CalibrationConfig
from unicp.calibration.pipeline_runner import PipelineRunner
from unicp.cli.loading import load_pipeline, sampler
from unicp.errors import InputError
from unicp.planning.curves import window_factors
from unicp.planning.profile import Profile, Seconds, load_profile

pytestmark = pytest.mark.slow

STEPS = 8
PROMPTS = ["a red star", "a blue ring"]
TOLERANCES = (0.02, 0.5)
ARGUMENTS = {"height": 32, "width": 32, "num_frames": 5, "guidance_scale": 3.0, "max_sequence_length": 16}


# As few runs as there are kinds of them: each takes a whole pipeline call.
CONFIG = CalibrationConfig(probes=(0.5, 1.0), trials=(0.5,), tolerances=TOLERANCES, fewer=(0.5,), chosen=(0.5,))


@pytest.fixture(scope="module")
def pipe(tmp_path_factory) -> Any:
    pipe = load_pipeline(tiny_pipeline.save(tmp_path_factory.mktemp("tiny")))
    sampler(pipe, "euler")
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Mute:
    """A scheduler that tells nothing of noise."""

    config: dict[str, Any] = {}


def calibration(pipe, out: Path, say=lambda text: None, **changes) -> Calibration:
    options = {"prompts": PROMPTS, "steps": STEPS, "arguments": ARGUMENTS, "config": CONFIG, **changes}
    return Calibration(pipe, out=out, on_progress=say, **options)


@pytest.fixture(scope="module")
def calibrated(pipe, tmp_path_factory) -> tuple[Profile, Path, list[str]]:
    out, said = tmp_path_factory.mktemp("profiles") / "profile.json", []
    own = calibration(pipe, out, said.append)
    assert own.estimate() > 0
    return own.run(), out, said


def test_a_profile_holds_what_plans_are_made_from(calibrated, pipe):
    profile, out, said = calibrated
    assert load_profile(out) == profile and list(out.parent.iterdir()) == [out]
    assert profile.steps == STEPS and profile.fingerprint.branches == 2
    assert profile.fingerprint.model == "WanTransformer3DModel"
    assert profile.fingerprint.scheduler == type(pipe.scheduler).__name__ and profile.replayed
    assert [one.prompt for one in profile.recordings] == PROMPTS
    assert all(set(one.products) >= {"output", "noise"} for one in profile.recordings)
    assert {trial.prompt for trial in profile.trials} == set(PROMPTS) and len(profile.fewer) == 4
    assert [len(one.computed) for one in profile.fewer] == [0, 4, 0, 4]
    assert [trial.guarded for trial in profile.trials] == [True, False] * len(PROMPTS)
    assert all(trial.computed >= trial.planned for trial in profile.trials)
    assert all(trial.computed == trial.planned for trial in profile.trials if not trial.guarded)
    assert all(one.allowed > 0 for one in profile.fewer if one.computed)
    assert [(one.prompt, one.tolerance) for one in profile.online] == [(p, t) for p in PROMPTS for t in TOLERANCES]
    assert all(4 <= one.computed <= STEPS for one in profile.online)
    assert {window.prompt for window in profile.windows} == set(PROMPTS)
    ends = [window.first + len(window.errors) for window in profile.windows]
    assert ends.count(STEPS) == len(PROMPTS) and min(ends) < STEPS and min(window_factors(profile)) > 0
    assert profile.seconds.computed > profile.seconds.skipped > 0 and 0 <= profile.seconds.added < 1
    assert len(profile.shape) == 5
    total = len(said)
    assert said[0].startswith(f"1 of {total}: plain run") and said[-1].startswith(f"{total} of {total}: ")


def test_a_target_runs_under_the_profile(calibrated, pipe):
    # With seconds that do not depend on the machine, and nothing that could do better than a plan.
    profile = dataclasses.replace(calibrated[0], seconds=Seconds(1.0, 0.0, 0.0), fewer=[], online=[])
    with unicp.enable(pipe, target="speedup>=1.2", profile=profile) as session:
        PipelineRunner(pipe, ARGUMENTS, STEPS).run("a green cross", 5)
    plan = session.plan
    assert plan is not None and plan.seconds is not None
    computed = sorted({entry.step for entry in session.trace.entries if entry.action == "full"})
    assert computed == plan.full_steps and len(computed) < STEPS


def test_a_target_met_by_the_online_rule_runs_as_the_preset_with_its_tolerance(calibrated, pipe):
    trials = [
        dataclasses.replace(one, computed=4, psnr=60 - 20 * math.log10(one.tolerance / 0.02))
        for one in calibrated[0].online
    ]
    profile = dataclasses.replace(calibrated[0], fewer=[], online=trials)
    runs = PipelineRunner(pipe, ARGUMENTS, STEPS)
    with unicp.enable(pipe, target="psnr>=35", profile=profile) as session:
        found = runs.run("a green cross", 5)
    assert session.plan is not None and session.plan.tolerance is not None
    with unicp.enable(pipe, unicp.preset("balanced", tolerance=session.plan.tolerance)) as online:
        expected = runs.run("a green cross", 5)
    assert torch.equal(found.latent, expected.latent)
    assert [e.action for e in session.trace.entries] == [e.action for e in online.trace.entries]


def test_a_stopped_calibration_goes_on_and_comes_to_the_same(calibrated, pipe, tmp_path):
    profile, _, _ = calibrated
    out = tmp_path / "profile.json"

    class Stopped(Exception):
        pass

    def stop_after(count: int):
        left = [count]

        def say(text: str) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Stopped

        return say

    one = PROMPTS[:1]
    with pytest.raises(Stopped):
        calibration(pipe, out, stop_after(3), prompts=one).run()
    assert not out.exists()
    again = calibration(pipe, out, prompts=one)
    known = dict(again.log.known)
    assert sum(key[0] == "probe" for key in known) == 2
    finished = again.run()
    assert finished.recordings == profile.recordings[:1] and finished.probes == profile.probes[:2]
    assert len(finished.trials) == 2 and [one for one in finished.fewer if not one.computed] == profile.fewer[:1]
    with pytest.raises(InputError, match="another prompts"):
        calibration(pipe, _begun(pipe, tmp_path / "other.json"), prompts=one)


def _begun(pipe, out: Path) -> Path:
    calibration(pipe, out)
    return out


def test_nothing_is_left_on_the_pipeline(calibrated, pipe):
    assert "forward" not in vars(pipe.transformer)
    with unicp.enable(pipe):
        pass


def test_the_cost_of_a_prompt_is_about_seventeen_plain_runs():
    config = CalibrationConfig()
    assert config.cost == pytest.approx(17.4, abs=0.05) and config.runs(11, True) == 1 + 11 + 3 + 10 + 5 + 3 + 4


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"steps": 5}, "too few to probe"),
        ({"prompts": []}, "no prompts"),
        ({"prompts": ["a", "a"]}, "one of them twice"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(pipe, tmp_path, changes, found):
    with pytest.raises(InputError, match=found):
        calibration(pipe, tmp_path / "profile.json", **changes)


def test_a_scheduler_without_noise_levels_is_refused(pipe, tmp_path):
    before = pipe.scheduler
    pipe.scheduler = Mute()
    try:
        with pytest.raises(InputError, match="does not tell noise levels"):
            calibration(pipe, tmp_path / "profile.json")
    finally:
        pipe.scheduler = before
