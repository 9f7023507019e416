"""Plans on disk and on screen, and plans that replay a trace."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.made_profiles import STEPS, flow_levels, made
from unicp.context import Axis, Forecast, Quantity
from unicp.errors import FileFormatError, InputError
from unicp.planning.fidelity import Psnr
from unicp.planning.plan import Plan, load_plan, plan_of_trace, save_plan
from unicp.planning.solver import plan_of_profile
from unicp.planning.targets import parse_target
from unicp.policies.run_loss import RunLoss
from unicp.records import Entry, Trace


def solved(target: str = "psnr>=35") -> Plan:
    return plan_of_profile(made(), parse_target(target), STEPS)


def trace(actions: str, choice: str = "noise over log_snr", point: str = "model") -> Trace:
    levels = flow_levels(len(actions))
    kinds = {"C": "full", "F": "forecast", "R": "reuse"}
    entries = [
        Entry(0, step, branch, point, kinds[one], "plan", levels[step].sigma, 0.1, predictor=choice)
        for step, one in enumerate(actions)
        for branch in ("cond", "uncond")
    ]
    return Trace("Made", "cpu", "float32", {}, entries=entries)


def test_a_plan_says_all_there_is_to_know():
    plan = solved()
    lines = plan.text().splitlines()
    assert lines[0] == f"plan for psnr>=35: {len(plan.full)} of {STEPS} steps full"
    assert lines[1].strip() == plan.drawing() and plan.drawing().count("C") == len(plan.full)
    assert [index for index, one in enumerate(plan.drawing()) if one == "C"] == plan.full
    assert any("x, " in line and "s a clip" in line for line in lines)
    assert any("90 % of clips from 3" in line for line in lines)


def test_round_trip(tmp_path):
    for plan in (solved(), solved("speedup>=1.5"), solved("psnr>=200"), plan_of_trace(trace("CCCFCF"))):
        save_plan(plan, tmp_path / "plan.json")
        assert load_plan(tmp_path / "plan.json") == plan


def test_a_loaded_plan_announces_the_same(tmp_path):
    plan = solved()
    save_plan(plan, tmp_path / "plan.json")
    before, after = plan.loss, load_plan(tmp_path / "plan.json").loss
    assert before is not None and after is not None
    windows = [(3, 5, step) for step in range(7, STEPS + 1)]
    assert [before.window(*one) for one in windows] == [after.window(*one) for one in windows]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"full": [0, 2, 1]}, "full steps that are not in order"),
        ({"full": [0, 1, 99]}, "full steps that are not in order"),
        ({"full": "CCC"}, "full is 'CCC'"),
        ({"can_add": 3}, "can_add is 3"),
        ({"steps": 3}, "noise levels for 3 steps"),
        ({"forecast": {"quantity": "sound", "axis": "step"}}, "forecast.quantity is 'sound'"),
        ({"version": 7}, "version 7"),
        ({"type": "unicp.trace"}, "type 'unicp.trace'"),
        ({"extra": 1}, "unknown extra"),
    ],
)
def test_a_damaged_plan_is_refused_in_one_line(tmp_path, changes, found):
    path = tmp_path / "plan.json"
    save_plan(solved(), path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(FileFormatError) as caught:
        load_plan(path)
    assert found in str(caught.value) and "\n" not in str(caught.value)


def test_losses_of_another_length_are_refused():
    plan = solved()
    assert plan.loss is not None
    shorter = dataclasses.replace(plan.loss, places=plan.loss.places[:-1])
    with pytest.raises(FileFormatError, match="losses of another number of steps"):
        dataclasses.replace(plan, loss=shorter)


def test_a_plan_is_for_its_own_noise_levels():
    plan, levels = solved(), flow_levels()[:-1]
    assert plan.fits(levels) and not plan.fits(levels[:-1]) and not plan.fits(flow_levels(STEPS, 5.0)[:-1])


def test_a_trace_becomes_a_plan():
    plan = plan_of_trace(trace("CCCCFCFFC"))
    assert plan.full == [0, 1, 2, 3, 5, 8] and plan.steps == 9
    assert plan.forecast == Forecast("noise", "log_snr") and plan.loss is None
    assert "plan for a run: 6 of 9" in plan.text() and not plan.can_add


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (trace("CCCRC"), "neither full nor forecast"),
        (trace("CCCFC", point="blocks.0"), "no such run of level model"),
        (trace(""), "no such run of level model"),
    ],
)
def test_a_trace_that_no_plan_can_replay(bad, found):
    with pytest.raises(InputError, match=found):
        plan_of_trace(bad)


def test_a_trace_that_changed_its_way_is_not_replayed():
    mixed = trace("CCCFCF")
    mixed.entries[-1].predictor = "output over sigma"
    with pytest.raises(InputError, match="several forecasts"):
        plan_of_trace(mixed)


# --- any plan

LEVELS = st.integers(2, 9).map(lambda steps: [level.sigma for level in flow_levels(steps)][:-1])


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans of all kinds; what they say of errors is made up."""
    sigmas = draw(LEVELS)
    steps = len(sigmas)
    numbers = [draw(st.floats(0, 1e3)) for _ in range(steps)]
    loss = RunLoss(numbers, [numbers[: n + 1] for n in range(steps)], numbers, sigmas, draw(st.booleans()))
    full = sorted(draw(st.sets(st.integers(0, steps - 1), min_size=1)))
    psnr = draw(st.none() | st.builds(Psnr, *[st.floats(0, 99) | st.just(math.inf)] * 3))
    forecast = draw(st.builds(Forecast, st.sampled_from(get_args(Quantity)), st.sampled_from(get_args(Axis))))
    known = st.none() | st.floats(1e-6, 1e6)
    parts = (draw(st.sampled_from([loss, None])), draw(st.booleans()), psnr, draw(known), draw(known), ["a note"])
    return Plan("psnr>=35", "Made", steps, sigmas, forecast, full, *parts)


@given(plan=plans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_plans_of_every_kind_come_back_as_they_were(plan: Plan, tmp_path: Path):
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan
    assert plan.text() and len(plan.drawing()) == plan.steps and plan.schedule.forecast == plan.forecast
