"""Plans on disk and on screen, and plans that replay a trace."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.made_profiles import STEPS, flow_levels, made
from unicp.context import Axis, Forecast, Quantity
from unicp.errors import FileFormatError, InputError
from unicp.files import json_ready
from unicp.planning.curves import LEAST_LEFT
from unicp.planning.fidelity import Psnr
from unicp.planning.plan import (
    Curves,
    OnlineRule,
    Plan,
    PlannedSteps,
    Replay,
    StepSubset,
    load_plan,
    plan_of_trace,
    save_plan,
)
from unicp.planning.profile import OnlineTrial
from unicp.planning.solver import Solver
from unicp.planning.targets import parse_target
from unicp.policies.planned import Course
from unicp.records import Entry, Trace


def solved(target: str = "psnr>=35") -> Plan:
    return Solver(made(), flow_levels()).plan(parse_target(target))


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
    assert lines[0] == f"plan for psnr>=35: {len(plan.full_steps)} of {STEPS} steps full"
    assert lines[1].strip() == plan.drawing() and plan.drawing().count("C") == len(plan.full_steps)
    assert [index for index, one in enumerate(plan.drawing()) if one == "C"] == plan.full_steps
    assert any("x, " in line and "s a clip" in line and "with the guard" in line for line in lines)
    assert any("90 % of clips from 35.0 to" in line for line in lines)


def test_round_trip(tmp_path):
    for plan in (solved(), solved("speedup>=1.5"), solved("psnr>=200"), plan_of_trace(trace("CCCFCF"))):
        save_plan(plan, tmp_path / "plan.json")
        assert load_plan(tmp_path / "plan.json") == plan


def test_a_loaded_plan_has_the_same_errors_to_compare_with(tmp_path):
    plan = solved()
    save_plan(plan, tmp_path / "plan.json")
    before, after = plan.course.schedule, load_plan(tmp_path / "plan.json").course.schedule
    assert before is not None and after is not None
    assert [before.change(3, 5, step) for step in range(7, STEPS + 1)] == [
        after.change(3, 5, step) for step in range(7, STEPS + 1)
    ]


def test_a_loaded_plan_still_knows_that_skipped_steps_are_replayed(tmp_path):
    plan = Solver(dataclasses.replace(made(), replayed=True, left=True), flow_levels()).plan(
        parse_target("speedup>=1.5")
    )
    save_plan(plan, tmp_path / "plan.json")
    before, after = plan.course.schedule, load_plan(tmp_path / "plan.json").course.schedule
    assert before is not None and after is not None
    assert before.change(5, 7, 10) == after.change(5, 7, 10) != before.change(5, 7, STEPS)
    # The made noise estimate is a parabola: nothing but the least stays of a step that is served inside the run.
    served = sum(before.weights[step] * before.error(5, 7, step) for step in (8, 9))
    assert after.change(5, 7, 10) == pytest.approx(LEAST_LEFT * served)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"how": {"kind": "replay", "full": [0, 2, 1]}}, "full steps that are not in order"),
        ({"how": {"kind": "replay", "full": [0, 1, 99]}}, "full steps that are not in order"),
        ({"how": {"kind": "replay", "full": [0], "tolerance": 0.1}}, "unknown tolerance in how.replay"),
        ({"how": {"kind": "dance"}}, "how is a JSON dict"),
        ({"how": {"kind": "rule", "tolerance": 0.0}}, "how.rule.tolerance is a number out of range"),
        ({"how": {"kind": "subset", "count": 3, "chosen": [0], "otherwise": {"kind": "replay", "full": [0]}}}, "3 of"),
        ({"steps": 3}, "noise levels for 3 steps"),
        ({"forecast": {"quantity": "sound", "axis": "step"}}, "forecast.quantity is 'sound'"),
        ({"how": {"kind": "replay", "full": "CCC"}}, "how.replay.full is 'CCC'"),
        ({"version": 8}, "version 8"),
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


def test_curves_of_another_length_are_refused(tmp_path):
    plan = solved()
    assert isinstance(plan.how, PlannedSteps)
    shorter = dataclasses.replace(plan.how.curves, places=plan.how.curves.places[:-1])
    with pytest.raises(FileFormatError, match="curves of another number of steps"):
        dataclasses.replace(plan, how=dataclasses.replace(plan.how, curves=shorter))


def test_a_plan_is_for_its_own_noise_levels():
    plan, levels = solved(), flow_levels()[:-1]
    assert plan.fits(levels) and not plan.fits(levels[:-1]) and not plan.fits(flow_levels(STEPS, 5.0)[:-1])


def test_a_trace_becomes_a_plan():
    plan = plan_of_trace(trace("CCCCFCFFC"))
    assert plan.full_steps == [0, 1, 2, 3, 5, 8] and plan.steps == 9
    assert plan.forecast == Forecast("noise", "log_snr") and isinstance(plan.how, Replay)
    assert "a replay" in plan.text()


def test_a_replay_has_a_guard_that_only_follows():
    from unicp.policies.guard import Guard

    guard = Guard(plan_of_trace(trace("CCCCFCFFC")).course.schedule)
    whys = []
    for step in range(9):
        whys.append(bool(guard.reason(step)))
        if whys[-1]:
            guard.computed(step, "cond", 100.0 if step > 1 else None)
    assert whys == [True, True, True, True, False, True, False, False, True] and guard.events == []


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


def by_the_rule() -> Plan:
    online = [
        OnlineTrial("a", tolerance, computed, psnr)
        for tolerance, computed, psnr in ((0.1, 9, 60.0), (0.3, 7, 50.0), (1.0, 6, 41.0), (1.0, 6, 40.0))
    ]
    return Solver(made(online=online), flow_levels()).plan(parse_target("psnr>=35"))


def test_a_plan_may_leave_the_steps_to_the_online_rule(tmp_path):
    plan = by_the_rule()
    assert plan.tolerance is not None and plan.course == Course(plan.forecast, None, plan.tolerance)
    assert plan.drawing() == "?" * STEPS
    lines = plan.text().splitlines()
    assert lines[0] == f"plan for psnr>=35: the online rule with tolerance {plan.tolerance:.3g} decides"
    assert lines[1].startswith(f"  about {plan.expected:.1f} of {STEPS} steps full")
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan


# --- every kind of plan, and those of an older version

LEVELS = st.integers(2, 9).map(lambda steps: [level.sigma for level in flow_levels(steps)][:-1])
POSITIVE = st.floats(1e-6, 1e6)


def parts(steps: int) -> st.SearchStrategy[list[int]]:
    return st.sets(st.integers(0, steps - 1), min_size=1).map(sorted)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans of all kinds; what they say of errors is made up."""
    sigmas = draw(LEVELS)
    steps = len(sigmas)
    numbers = [draw(st.floats(0, 1e3)) for _ in range(steps)]
    weights = [draw(st.floats(0, 1e3) | st.just(math.inf)) for _ in range(steps)]
    curves = Curves(
        numbers,
        [numbers[: n + 1] for n in range(steps)],
        numbers,
        weights,
        1.5,
        draw(POSITIVE),
        1.0,
        draw(st.booleans()),
    )
    how = draw(
        st.builds(PlannedSteps, parts(steps), st.floats(0, 10), st.integers(0, steps), st.just(curves))
        | st.builds(OnlineRule, POSITIVE)
        | st.builds(Replay, parts(steps))
    )
    if draw(st.booleans()):
        chosen = draw(parts(steps))
        how = StepSubset(len(chosen), draw(st.sampled_from([chosen, []])), how)
    psnr = draw(st.none() | st.builds(Psnr, *[st.floats(0, 99) | st.just(math.inf)] * 3))
    forecast = draw(st.builds(Forecast, st.sampled_from(get_args(Quantity)), st.sampled_from(get_args(Axis))))
    known = st.none() | POSITIVE
    return Plan(
        "psnr>=35", "Made", steps, sigmas, forecast, how, draw(POSITIVE), psnr, draw(known), draw(known), ["a note"]
    )


@given(plan=plans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_plans_of_every_kind_come_back_as_they_were(plan: Plan, tmp_path: Path):
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan
    assert plan.text() and len(plan.drawing()) == plan.steps and plan.course.forecast == plan.forecast


def old_curves(how: PlannedSteps) -> dict[str, Any]:
    """The curves as versions 5 and 6 had them."""
    return {"mended" if name == "replayed" else name: value for name, value in vars(how.curves).items()}


def as_version_5(plan: Plan) -> dict[str, Any]:
    """The values of a file of version 5, as the release before wrote it."""
    body, how = json_ready(plan), plan.followed
    del body["how"], body["forecast"]
    psnr = plan.psnr or Psnr(None, None, None)  # type: ignore[arg-type]
    guarded = isinstance(how, PlannedSteps)
    old = {
        "computed": plan.full_steps,
        "quantity": plan.forecast.quantity,
        "abscissa": plan.forecast.axis,
        "allowance": how.allowance if guarded else 0.0,
        "most": how.most if guarded else 0,
        "curves": old_curves(how) if guarded else None,
        "tolerance": plan.tolerance,
        "fewer": None if plan.subset is None else plan.subset.count,
        "fewer_computed": [] if plan.subset is None else plan.subset.chosen,
        **{"psnr": psnr.mean, "psnr_low": psnr.low, "psnr_high": psnr.high},
    }
    return {"type": "unicp.plan", "version": 5, "unicp": "0.1.0", **body, **json_ready(old)}


@given(plan=plans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_plans_of_version_6_are_read(plan: Plan, tmp_path: Path):
    body = json_ready(plan)
    for how in (body["how"], body["how"].get("otherwise")):
        if how and "curves" in how:
            how["curves"]["mended"] = how["curves"].pop("replayed")
    old = {"type": "unicp.plan", "version": 6, "unicp": "0.1.0", **body}
    (tmp_path / "plan.json").write_text(json.dumps(old))
    assert load_plan(tmp_path / "plan.json") == plan


@given(plan=plans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_plans_of_version_5_are_read(plan: Plan, tmp_path: Path):
    (tmp_path / "plan.json").write_text(json.dumps(as_version_5(plan)))
    assert load_plan(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"computed": None}, "full is None"),
        ({"tolerance": 0.1, "curves": None}, "how is None"),
        ({"psnr_low": None}, "psnr.low is None"),
        ({"extra": 1}, "unknown extra"),
        ({"abscissa": "time"}, "forecast.axis is 'time'"),
    ],
)
def test_a_damaged_plan_of_version_5_is_refused_too(changes: dict[str, Any], found: str, tmp_path: Path):
    (tmp_path / "plan.json").write_text(json.dumps(as_version_5(solved()) | changes))
    with pytest.raises(FileFormatError, match=found):
        load_plan(tmp_path / "plan.json")
