"""The profiles that ship with the package."""

from __future__ import annotations

import math

import pytest

from unicp.planning.profile import CAUTION, FOLDER, Fingerprint, builtin_profile, load_profile
from unicp.planning.solver import Solver, best_choices
from unicp.planning.targets import parse_target

FILES = sorted(FOLDER.glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_profile_can_be_planned_from(path):
    profile = load_profile(path)
    solver = Solver(profile, profile.levels)
    counts, speeds = [], []
    for psnr in (25, 30, 35, 40, 50):
        plan = solver.plan(parse_target(f"psnr>={psnr}"))
        assert plan.psnr is not None and plan.psnr.low >= psnr - 1e-9
        counts.append(plan.expected)
        speeds.append(plan.speed_up or 0.0)
    # Steps that are left out cost less than those that are served: by speed, not by the number of computed steps.
    assert speeds == sorted(speeds, reverse=True) and speeds[0] > speeds[-1] > 1
    assert 3 < counts[0] < counts[-1] < profile.steps
    plan = solver.plan(parse_target("speedup>=2"))
    assert plan.speed_up is not None and plan.speed_up >= 2 and plan.psnr is not None and math.isfinite(plan.psnr.mean)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_more_computed_steps_never_do_worse(path):
    profile = load_profile(path)
    choices = best_choices(profile, profile.levels)
    losses = [choices[count].path.loss for count in sorted(choices)]
    assert losses == sorted(losses, reverse=True)


def test_a_shipped_model_gets_its_own_profile():
    for path in FILES:
        own = load_profile(path).fingerprint
        profile, caution = builtin_profile(Fingerprint(**{**vars(own), "branches": 0}))
        assert profile.fingerprint == own and caution == 0


def test_any_other_gets_that_of_the_likeliest_with_caution():
    own = Fingerprint("Other", "0", "bfloat16", "flow", "FlowMatchEulerDiscreteScheduler", 0)
    profile, caution = builtin_profile(own)
    assert profile.fingerprint.scheduler == own.scheduler and caution == CAUTION
    unknown, caution = builtin_profile(Fingerprint("Other", "0", "bfloat16", "epsilon", "DDIMScheduler", 0))
    assert unknown.steps > 0 and caution == CAUTION
