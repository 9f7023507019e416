"""One cache point: what it shows its policy, fills in, measures, keeps and forgets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.fake_models import flow_scheduler, noise
from tests.fake_parts import Always, Listed, Never, at
from unicp.context import Action, Decision, Forecast, Observation, StepContext
from unicp.models.noise import read_schedule
from unicp.numerics.error_measures import relative_error
from unicp.policies.base import CachePolicy
from unicp.predictors.base import Point, Predictor, PredictorInfo, predictors
from unicp.predictors.linear import LinePredictor
from unicp.runtime.cache_point import NON_FINITE, CachePoint, Measured, per_sample
from unicp.runtime.part_checks import make_policy
from unicp.runtime.store import OutputStore
from unicp.settings import Settings

SHAPE = (2, 3, 4)
ONE = torch.ones(1, 4)


class Fixed(Predictor):
    """Gives what it is told to, and keeps what it was asked with."""

    def __init__(self, *outputs: Tensor, points: int = 1):
        self.outputs, self.points = outputs, points
        self.asked: list[tuple[list[Point], StepContext, tuple[Tensor, ...]]] = []
        self.steps: list[list[str]] = []
        self.learnt: list[tuple[int, str]] = []

    def predict(self, points: Sequence[Point], step: StepContext, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.asked.append((list(points), step, inputs))
        # When errors are measured it is asked with fewer values.
        return tuple(
            out.flatten(1)[:, : one[0].numel()].reshape(one.shape) for out, one in zip(self.outputs, points[-1].outputs)
        )

    def learn(self, points: Any, step: StepContext, inputs: Any, outputs: Any) -> None:
        self.learnt.append((step.step, step.branch))

    def start_step(self, branches: Sequence[str]) -> None:
        self.steps.append(list(branches))


def reuse() -> LinePredictor:
    return LinePredictor(Forecast("output", "step"), 1, False, PredictorInfo("model"))


def line() -> LinePredictor:
    return LinePredictor(Forecast("output", "step"), 2, False, PredictorInfo("model"))


def made(policy: CachePolicy, predictor: Predictor | None = None, name: str = "model", **traits: Any) -> CachePoint:
    store = OutputStore(Settings(**{"store_bytes": traits.pop("store_bytes", None)}))
    return CachePoint(name, policy, predictor or reuse(), store, **traits)


def call(point: CachePoint, step: StepContext, inputs: Any, compute: Callable[[], Any]) -> Any:
    """Skips or computes one call, as the engine does."""
    outputs = point.decide(step, inputs).outputs
    if outputs is None:
        outputs = compute()
        point.full(step, inputs, outputs)
    return outputs


# --- what a policy can and cannot do


def test_nothing_is_skipped_before_the_predictor_has_its_full_steps():
    for predictor, full in ((reuse(), 1), (line(), 2)):
        point, calls = made(Always(), predictor), []
        for step in range(5):
            call(point, at(step), (ONE,), lambda step=step, calls=calls: calls.append(step) or (step * ONE,))
        assert calls == list(range(full))
    outcome = made(Always()).decide(at(0), (ONE,))
    assert (outcome.decision, outcome.action) == (Decision(False, "learning"), Action.FULL)


def test_a_skipped_call_is_told_with_how_it_was_filled():
    point = made(Always(), line())
    for step in range(2):
        call(point, at(step), (ONE,), lambda: (ONE,))
    outcome = point.decide(at(2), (ONE,))
    assert (outcome.action, outcome.predictor, outcome.forecast) == (
        Action.FORECAST,
        "output over step",
        Forecast("output", "step"),
    )
    assert outcome.decision == Decision(True, "always")


@pytest.mark.parametrize(
    "traits", [{}, {"adds": True}, {"keeps_inputs": True, "judges_all": True, "is_coherent": True}]
)
def test_under_a_policy_that_never_skips_the_very_outputs_are_given(traits: dict[str, Any]):
    point = made(Never(), line(), **traits)
    for step in range(6):
        for branch in ("cond", "uncond"):
            true = (noise(step, *SHAPE), noise(step + 9, 2, 5))
            found = call(point, at(step, branch), (noise(7, *SHAPE), noise(8, 2, 5)), lambda true=true: true)
            assert all(one is other for one, other in zip(found, true, strict=True))


def test_a_veto_computes_whatever_the_policy_says():
    point = made(Always())
    call(point, at(0), (ONE,), lambda: (ONE,))
    assert point.decide(at(1), (ONE,), "sample").decision == Decision(False, "sample")
    assert point.decide(at(2), (ONE,)).outputs is not None


def test_a_policy_that_raises_is_heard_and_leaves_what_is_kept_as_it_was():
    class Raising(Always):
        def decide(self, step: StepContext, seen: Observation) -> Decision:
            if step.step == 2 and step.branch == "cond":
                raise KeyError("mistaken")
            return super().decide(step, seen)

    point, values = made(Raising()), {"cond": ONE, "uncond": -ONE}
    for branch, value in values.items():
        call(point, at(0, branch), (ONE,), lambda value=value: (value,))
    with pytest.raises(KeyError, match="mistaken"):
        call(point, at(2), (ONE,), lambda: (9 * ONE,))
    for branch, value in values.items():
        (found,) = call(point, at(3, branch), (ONE,), lambda: (9 * ONE,))
        assert torch.equal(found, value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("adds", [False, True])
def test_a_prediction_that_is_not_finite_is_never_given(bad: float, adds: bool):
    good, other = noise(0, *SHAPE), noise(1, *SHAPE)
    # One value of the second of two outputs is enough.
    broken = other.clone()
    broken[1, 2, 3] = bad
    point = made(Always(), Fixed(good, broken), adds=adds)
    for step in range(4):
        outcome = point.decide(at(step), (good, other))
        assert (outcome.outputs, outcome.action) == (None, Action.FULL)
        assert outcome.decision.reason == (NON_FINITE if step else "learning")
        measured = point.full(at(step), (good, other), (good, other))
        assert measured.is_kept


def test_a_policy_is_told_of_each_full_call_once_and_of_no_skipped_one():
    policy = Listed(full=(0, 1, 4))
    point = made(policy)
    for step in range(6):
        for branch in ("cond", "uncond"):
            call(point, at(step, branch), (ONE,), lambda: (ONE,))
    assert policy.seen == [(step, branch) for step in range(6) for branch in ("cond", "uncond")]
    assert list(policy.errors) == [(step, branch) for step in (0, 1, 4) for branch in ("cond", "uncond")]


def test_a_policy_is_told_of_the_run_when_it_begins():
    told: list[Any] = []

    class Started(Never):
        def start_run(self, run: Any) -> None:
            told.append(run)

    warnings: list[tuple[str, str]] = []
    made(Started(), line(), name="stack", warn=lambda *one: warnings.append(one))
    (run,) = told
    run.warn("key", "text")
    assert (run.point, run.points, warnings) == ("stack", 2, [("key", "text")])


def test_a_policy_that_takes_over_knows_the_full_steps_so_far():
    point, policy = made(Always(), line()), Listed()
    for step in range(3):
        call(point, at(step), (ONE,), lambda step=step: (step * ONE,))
    point.follow(policy)
    assert policy.errors == {(0, "cond"): None, (1, "cond"): None}
    assert torch.equal(call(point, at(3), (ONE,), lambda: ())[0], 3 * ONE)
    # The other predictor needs fewer full steps than are kept.
    point.follow(Always(), reuse())
    assert torch.equal(call(point, at(4), (ONE,), lambda: ())[0], ONE)

    # Such a one that needs more waits for them, and the policy is told so.
    class Waiting(Always):
        def start_run(self, run: Any) -> None:
            assert run.points == 2

    point = made(Always())
    call(point, at(0), (ONE,), lambda: (ONE,))
    point.follow(Waiting(), line())
    assert point.decide(at(1), (ONE,)).decision.reason == "learning"


# --- branches


def number_of(step: int, branch: str) -> float:
    return 100.0 * step + ord(branch)


@given(
    st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=3), max_size=12),
    st.booleans(),
    st.booleans(),
)
def test_no_branch_ever_gets_another_s_output(calls, adds, is_coherent):
    class Told(CachePolicy):
        skip = False

        def decide(self, step: StepContext, seen: Observation) -> Decision:
            return Decision(self.skip, "told")

    policy = Told()
    point, last = made(policy, adds=adds, is_coherent=is_coherent), dict[str, float]()
    for step, at_step in enumerate(calls):
        actions = []
        for branch, policy.skip in dict(at_step).items():
            sample = torch.full((1, 2), 0.5 * step)
            outcome = point.decide(at(step, branch), (sample,))
            if outcome.outputs is None:
                last[branch] = number_of(step, branch)
                point.full(at(step, branch), (sample,), (last[branch] + (sample if adds else torch.zeros(1, 2)),))
            else:
                assert policy.skip
                assert torch.equal(outcome.outputs[0], last[branch] + (sample if adds else torch.zeros(1, 2)))
            actions.append(outcome.action)
        # Where branches are combined afterwards, none is skipped after one that was computed.
        if is_coherent:
            assert actions == sorted(actions, key=lambda action: not action.skipped)


def test_the_first_branch_of_a_step_is_shown_those_that_the_step_before_had():
    shown: list[list[str]] = []

    class Looking(Never):
        def decide(self, step: StepContext, seen: Observation) -> Decision:
            shown.append(list(seen.others))
            return super().decide(step, seen)

    predictor = Fixed(ONE)
    point = made(Looking(), predictor, is_coherent=True)
    for step, branches in enumerate(["ab", "ba", "a", "ab"]):
        for branch in branches:
            call(point, at(step, branch), (ONE,), lambda: (ONE,))
    assert shown == [[], [], ["a"], [], ["b"], [], []]
    assert [sorted(names) for names in predictor.steps] == [[], ["a", "b"], ["a", "b"], ["a"]]
    shown.clear()
    apart = made(Looking())
    for step in range(2):
        for branch in "ab":
            call(apart, at(step, branch), (ONE,), lambda: (ONE,))
    assert shown == [[]] * 4


def test_a_branch_that_is_computed_makes_those_after_it_compute_too():
    point = made(Listed(), is_coherent=True)
    for branch in "ab":
        call(point, at(0, branch), (ONE,), lambda: (ONE,))
    outcomes = [point.decide(at(1, branch), (ONE,), veto) for branch, veto in (("a", "sample"), ("b", ""))]
    assert [outcome.decision.reason for outcome in outcomes] == ["sample", "together"]
    assert point.decide(at(2, "a"), (ONE,)).outputs is not None
    # One whose output would not be finite, too.
    point = made(Always(), Fixed(math.nan * ONE), is_coherent=True)
    for step in range(2):
        reasons = [point.decide(at(step, branch), (ONE,)).decision.reason for branch in "ab"]
        for branch in "ab":
            point.full(at(step, branch), (ONE,), (ONE,))
    assert reasons == [NON_FINITE, "together"]


# --- what is seen and measured


class Changes(Never):
    """Notes how far signals have moved since the last full step and since the last call."""

    signals = ("extra",)

    def __init__(self, *full: int):
        self.full, self.found = full, list[tuple[Any, ...]]()

    def decide(self, step: StepContext, seen: Observation) -> Decision:
        self.found.append(
            tuple(change(name) for change in (seen.since_full, seen.since_last) for name in ("input", "extra"))
        )
        return Decision(step.step not in self.full, "changes")


def test_changes_are_relative_to_the_last_full_step_and_to_the_last_call():
    policy = Changes(0, 3)
    point = made(policy)
    for step, (value, extra) in enumerate([(1.0, 1.0), (2.0, 1.0), (3.0, 5.0), (3.0, 5.0), (6.0, 4.0)]):
        outcome = point.decide(at(step), (value * ONE,), signals={"extra": extra * ONE})
        if outcome.outputs is None:
            point.full(at(step), (value * ONE,), (ONE,))
    expected = [
        (None, None, None, None),
        ([1.0], [0.0], [1.0], [0.0]),
        ([2.0], [4.0], [0.5], [4.0]),
        ([2.0], [4.0], [0.0], [0.0]),
        ([1.0], [0.2], [1.0], [0.2]),
    ]
    for found, wanted in zip(policy.found, expected, strict=True):
        assert [one if one is None else pytest.approx(one) for one in wanted] == list(found)


def test_changes_of_what_is_not_there_or_has_another_shape_are_not_known():
    policy = Changes(0, 1, 2)
    point = made(policy)
    for step, inputs in enumerate([(ONE,), (torch.ones(1, 5),), ()]):
        point.decide(at(step), inputs)
        point.full(at(step), inputs, (ONE,))
    assert policy.found == [(None,) * 4] * 3


def test_changes_are_one_for_each_sample_where_a_point_sees_a_sample_as_several_rows():
    policy, base = Changes(0), torch.ones(6, 5)
    point = made(policy)
    point.decide(at(0, samples=2), (base,))
    point.full(at(0, samples=2), (base,), (base,))
    # Rows 0 to 2 are the first sample.
    point.decide(at(1, samples=2), (base + torch.tensor([0.0, 0, 0, 0.1, 0.3, 0.2])[:, None],))
    assert policy.found[-1][0] == pytest.approx([0.0, 0.3])


@pytest.mark.parametrize(
    ("errors", "samples", "expected"),
    [([1.0, 2.0], 2, [1.0, 2.0]), ([1.0, 3.0, 2.0, 0.0], 2, [3.0, 2.0]), ([1.0, 2.0, 3.0], 2, [1.0, 2.0, 3.0])],
)
def test_the_worst_row_of_a_sample_counts(errors: list[float], samples: int, expected: list[float]):
    assert per_sample(errors, samples) == expected
    assert per_sample(errors, 0) == errors


@given(st.lists(st.floats(0, 9), min_size=6, max_size=6), st.integers(0, 5), st.sampled_from([1, 2, 3]))
def test_a_row_that_is_not_a_number_is_never_hidden(errors, place, samples):
    errors[place] = math.nan
    found = per_sample(errors, samples)
    assert len(found) == samples and [math.isnan(one) for one in found].count(True) == 1


def test_at_full_steps_the_error_of_skipping_is_measured():
    policy = Listed(full=range(9))
    point = made(policy)
    values = [1.0, 2.0, 2.0, 4.0]
    for step, value in enumerate(values):
        call(point, at(step), (ONE,), lambda value=value: (value * ONE,))
    assert list(policy.errors.values()) == [None, [0.5], [0.0], [0.5]]


def test_the_worst_of_all_outputs_counts_where_all_are_judged():
    for judges_all, expected in ((False, 0.0), (True, 0.5)):
        point = made(Never(), judges_all=judges_all)
        for step, value in enumerate((1.0, 2.0)):
            point.decide(at(step), (ONE, ONE))
            measured = point.full(at(step), (ONE, ONE), (ONE, value * ONE))
        assert measured.errors == [expected]


@pytest.mark.parametrize("bad", [0, 1])
def test_an_error_that_is_not_a_number_is_not_hidden_by_the_other_output(bad: int):
    point, outputs = made(Never(), judges_all=True), [ONE, ONE]
    call(point, at(0), (ONE,), lambda: tuple(outputs))
    outputs[bad] = math.nan * ONE
    point.decide(at(1), (ONE,))
    errors = point.full(at(1), (ONE,), tuple(outputs)).errors
    assert errors is not None and math.isnan(errors[0])


@pytest.mark.parametrize(("by_stream", "expected"), [(True, 0.1 / 11.1), (False, 0.1 / 1.1)])
def test_the_error_is_relative_to_the_stream_or_to_what_was_added(by_stream: bool, expected: float):
    point, stream = made(Never(), adds=True, by_stream=by_stream), 10 * torch.ones(1, 5, 3)
    for step, added in enumerate((1.0, 1.1)):
        point.decide(at(step), (stream,))
        measured = point.full(at(step), (stream,), (stream + added,))
    assert measured.errors == pytest.approx([expected], rel=1e-4)


def test_an_error_is_measured_where_a_prediction_exists_though_it_may_not_be_used():
    class Doubting(Fixed):
        exists = True

        def refusal(self, steps: Any, aligned: bool, step: StepContext) -> str:
            return "doubt"

        def is_defined(self, steps: Any, aligned: bool, step: StepContext) -> bool:
            return self.exists

    predictor = Doubting(2 * ONE)
    point = made(Always(), predictor)
    for exists, errors in ((True, [1.0]), (False, None)):
        predictor.exists = exists
        for step in range(2):
            assert point.decide(at(step), (ONE,)).decision.reason == ("doubt" if step or not exists else "learning")
            measured = point.full(at(step), (ONE,), (ONE,))
        assert measured.errors == errors
    assert predictor.learnt == [(1, "cond")]


def test_a_predictor_is_given_the_last_full_steps_with_the_inputs_that_belong_to_outputs():
    predictor = Fixed(ONE, ONE, torch.ones(1, 2), points=2)
    point = made(Listed(full=(0, 1, 2)), predictor, keeps_inputs=True)
    for step in range(4):
        inputs = (step * ONE, torch.full((1, 3), float(step)), -step * ONE)
        call(point, at(step), inputs, lambda step=step: ((10 + step) * ONE, (20 + step) * ONE, torch.ones(1, 2)))
    points, step, inputs = predictor.asked[-1]
    assert [one.step.step for one in points] == [1, 2] and step.step == 3 and inputs[0].unique().tolist() == [3.0]
    for number, one in enumerate(points, start=1):
        assert [output.unique().tolist() for output in one.outputs] == [[10.0 + number], [20.0 + number], [1.0]]
        # The second input has another shape than the second output, and there is no third output of the third's.
        assert one.inputs[0] is not None and one.inputs[0].unique().tolist() == [number]
        assert one.inputs[1:] == (None, None)


# --- what is kept and forgotten


def test_a_caller_may_write_into_what_it_was_given():
    point = made(Always())
    given_out = noise(0, *SHAPE)
    true = given_out.clone()
    call(point, at(0), (given_out,), lambda: (given_out,))
    given_out.zero_()
    for step in (1, 2):
        (found,) = call(point, at(step), (noise(1, *SHAPE),), lambda: ())
        assert torch.equal(found, true)
        found.zero_()


def test_what_does_not_fit_the_budget_is_told_and_not_skipped():
    policy = Listed()
    point = made(policy, store_bytes=0)
    for step in range(4):
        assert point.decide(at(step), (ONE,)).decision.reason == "learning"
        assert point.full(at(step), (ONE,), (ONE,)) == Measured(None, None, False)
    assert not policy.errors


def test_a_branch_that_no_longer_fits_is_forgotten_and_the_others_stay():
    # Two branches of 16 bytes fit, a third does not.
    point = made(Always(), store_bytes=40)
    for branch in "abc":
        call(point, at(0, branch), (ONE,), lambda branch=branch: (ord(branch) * ONE,))
    outcomes = {branch: point.decide(at(1, branch), (ONE,)) for branch in "abc"}
    assert [branch for branch, outcome in outcomes.items() if outcome.outputs is not None] == ["a", "b"]


def test_outputs_of_another_form_start_the_branch_anew():
    point = made(Always(), keeps_inputs=True)
    call(point, at(0), (ONE,), lambda: (ONE,))
    point.decide(at(1), (ONE,), "veto")
    # A learned variance comes along: the input does not belong to it.
    measured = point.full(at(1), (ONE,), (torch.ones(1, 8),))
    assert measured.errors is None and measured.is_kept
    assert torch.equal(point.decide(at(2), (ONE,)).outputs[0], torch.ones(1, 8))  # type: ignore[index]


def test_an_emptied_point_knows_nothing():
    point = made(Always())
    call(point, at(0), (ONE,), lambda: (ONE,))
    assert point.decide(at(1), (ONE,)).outputs is not None
    point.forget("cond")
    assert point.decide(at(1), (ONE,)).decision.reason == "learning"


def test_a_point_with_two_outputs_gives_back_two():
    point, pair = made(Always()), (noise(0, 1, 5, 3), noise(1, 1, 2, 3))
    call(point, at(0), (pair[0],), lambda: pair)
    assert all(torch.equal(*two) for two in zip(call(point, at(1), (pair[0],), lambda: ()), pair, strict=True))


# --- points that add to a stream


def test_what_a_block_adds_is_added_to_what_enters_now():
    point, before, now = made(Always(), adds=True), noise(0, 1, 5, 3), noise(1, 1, 5, 3)
    call(point, at(0), (before,), lambda: (2 * before,))
    outcome = point.decide(at(1), (now,))
    assert outcome.action is Action.REUSE and outcome.outputs is not None
    assert torch.equal(outcome.outputs[0], now + before)


def test_what_is_added_along_a_line_is_predicted_exactly():
    point, (a, b) = made(Always(), line(), adds=True), (noise(0, 1, 5, 3), noise(1, 1, 5, 3))
    for step in range(5):
        before = noise(2, 1, 5, 3) + 0.01 * step
        (found,) = call(point, at(step), (before,), lambda step=step, before=before: (before + a + b * step,))
        torch.testing.assert_close(found, before + a + b * step, rtol=0, atol=1e-5)
    assert point.decide(at(5), (before,)).outputs is not None


def test_both_streams_of_a_joint_block_are_filled():
    point = made(Always(), adds=True)
    video, text = noise(0, 1, 5, 3), noise(1, 1, 2, 3)
    call(point, at(0), (video, text), lambda: (video + 1, text + 2))
    torch.testing.assert_close(call(point, at(1), (video, text), lambda: ()), (video + 1, text + 2))


def test_a_filled_stream_has_the_dtype_that_the_block_gives():
    # Under autocast that is not the dtype of what it takes.
    point, stream = made(Always(), adds=True), noise(0, 1, 5, 3)
    call(point, at(0), (stream,), lambda: ((2 * stream).to(torch.bfloat16),))
    (found,) = call(point, at(1), (stream,), lambda: ())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), 2 * stream, rtol=0.02, atol=0.02)


# --- with the built-in policies and predictors, on models whose answers are known

STEPS = 10


def settings(**changes: Any) -> Settings:
    plain: dict[str, Any] = {"tolerance": 1.0, "weighting": "uniform", "max_window": 2, "max_reach": 9, "last": 0}
    return Settings(**(plain | changes))


class Loop:
    """Calls the cache point of a whole model as the engine does; `model(sample, sigma)` is the truth."""

    def __init__(self, set_to: Settings, model: Any, scheduler: Any = None):
        self.scheduler: Any = flow_scheduler(STEPS) if scheduler is None else scheduler
        self.schedule = read_schedule(self.scheduler)
        self.store = OutputStore(set_to)
        info = PredictorInfo("model", None if self.schedule is None else self.schedule.prediction)
        predictor = predictors[set_to.predictor](set_to, info)
        traits = {"keeps_inputs": True, "judges_all": True, "is_coherent": True}
        self.point = CachePoint("model", make_policy(set_to), predictor, self.store, **traits)
        self.model = model
        self.skipped: list[tuple[int, Tensor, Tensor]] = []
        self.measured: list[float] = []

    def where(self, step: int, branch: str = "cond") -> StepContext:
        timestep = float(self.scheduler.timesteps[step])
        level = None if self.schedule is None else self.schedule.level(timestep)
        return at(step, branch, len(self.scheduler.timesteps), SHAPE[0], timestep=timestep, noise_level=level)

    def call(self, step: int, sample: Tensor, branch: str = "cond") -> Tensor:
        where = self.where(step, branch)
        true = self.model(sample, where.sigma)
        outcome = self.point.decide(where, (sample,))
        if outcome.outputs is not None:
            self.skipped.append((step, outcome.outputs[0], true))
            return outcome.outputs[0]
        self.measured += self.point.full(where, (sample,), (true,)).errors or []
        return true


def samples(start: Tensor) -> list[Tensor]:
    """A path that bends, so that nothing is exact by accident."""
    drift, bend = noise(11, *SHAPE), noise(12, *SHAPE)
    return [start + 0.03 * step * drift + 0.02 * math.sin(step) * bend for step in range(STEPS)]


def test_an_output_linear_in_the_noise_level_is_forecast_exactly():
    a, b = noise(1, *SHAPE), noise(2, *SHAPE)
    loop = Loop(settings(quantity="output", axis="sigma"), lambda x, sigma: a + b * sigma)
    for step, sample in enumerate(samples(noise(3, *SHAPE))):
        loop.call(step, sample)
    assert [step for step, *_ in loop.skipped] == [3, 4, 6, 7, 9]
    for _, output, true in loop.skipped:
        torch.testing.assert_close(output, true, rtol=0, atol=1e-5)
    assert loop.measured and max(loop.measured) < 1e-5


@pytest.mark.parametrize("predictor", ["reuse", "line"])
def test_a_constant_noise_estimate_is_carried_forward_exactly(predictor: str):
    eps = noise(1, *SHAPE)

    def velocity(sample: Tensor, sigma: float) -> Tensor:
        # noise = sample + (1 - sigma) * velocity; at noise level 1 the sample is the noise.
        return (eps - sample) / (1 - sigma) if sigma < 1 else torch.zeros_like(sample)

    loop = Loop(settings(predictor=predictor, quantity="noise", axis="sigma"), velocity)
    for step, sample in enumerate(samples(eps)):
        loop.call(step, sample)
    assert len(loop.skipped) >= 5
    for _, output, true in loop.skipped:
        torch.testing.assert_close(output, true, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("predictor", ["reuse", "line"])
def test_a_constant_clean_estimate_is_carried_forward_exactly(predictor: str):
    clean = noise(1, *SHAPE)
    loop = Loop(settings(predictor=predictor, quantity="clean"), lambda x, sigma: (x - clean) / sigma)
    for step, sample in enumerate(samples(noise(3, *SHAPE))):
        loop.call(step, sample)
    assert len(loop.skipped) >= 5
    for _, output, true in loop.skipped:
        torch.testing.assert_close(output, true, rtol=1e-4, atol=1e-4)


def test_reuse_gives_back_the_kept_output_bit_for_bit():
    loop = Loop(settings(predictor="reuse", quantity="output", tolerance=1e9), lambda x, sigma: x * sigma)
    last = None
    for step, sample in enumerate(samples(noise(3, *SHAPE))):
        before = len(loop.skipped)
        output = loop.call(step, sample)
        if len(loop.skipped) > before:
            assert last is not None and torch.equal(output, last)
        else:
            last = output
    assert loop.skipped


def test_branches_of_a_step_are_skipped_or_computed_together_and_from_their_own_outputs():
    loop = Loop(settings(predictor="reuse", quantity="output", tolerance=1e9), lambda x, sigma: x)
    constants = {"cond": torch.ones(SHAPE), "uncond": -torch.ones(SHAPE)}
    for step in range(STEPS):
        before = len(loop.skipped)
        for branch, value in constants.items():
            assert torch.equal(loop.call(step, value * (1 + 0.01 * step), branch).sign(), value)
        assert len(loop.skipped) - before in (0, 2)
    assert loop.skipped


def test_a_branch_whose_output_jumps_makes_both_compute():
    set_to = settings(predictor="reuse", quantity="output", tolerance=0.05, max_window=1)
    loop = Loop(set_to, lambda x, sigma: x)
    wild = [noise(seed, *SHAPE) for seed in range(STEPS)]
    for step in range(STEPS):
        loop.call(step, torch.ones(SHAPE), "cond")
        loop.call(step, wild[step], "uncond")
    assert not loop.skipped


def test_an_estimate_is_not_used_where_it_cannot_be_turned_back_into_an_output():
    # The clean estimate says nothing about the output at noise level 0.001: an error in it grows 1000-fold.
    scheduler = flow_scheduler(STEPS)
    scheduler.set_timesteps(sigmas=[1.0, 0.8, 0.6, 0.4, 0.2, 0.001])
    clean, wobble = noise(1, *SHAPE), noise(2, *SHAPE)
    model = lambda x, sigma: (x - clean - 0.01 * sigma * wobble) / max(sigma, 0.1)  # noqa: E731
    loop = Loop(settings(predictor="reuse", quantity="clean", tolerance=10.0), model, scheduler)
    for step in range(6):
        loop.call(step, noise(3, *SHAPE) * (1 + 0.01 * step))
    # The window of two would be open again at the last step.
    assert [step for step, *_ in loop.skipped] == [2, 3]


def test_a_quantity_that_does_not_exist_at_a_kept_step_waits_until_that_is_gone():
    # Zero terminal SNR: at the first step there is no clean estimate of a model that says noise.
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="epsilon")
    scheduler.set_timesteps(STEPS)
    loop = Loop(settings(quantity="clean", tolerance=1e9, first=1), lambda x, sigma: x, scheduler)
    for step in range(STEPS):
        loop.call(step, samples(noise(3, *SHAPE))[step])
    # A line over steps 1 and 2 is measured at step 3.
    assert loop.skipped and loop.skipped[0][0] == 4


def test_a_sample_that_is_not_finite_is_computed():
    loop = Loop(settings(quantity="output"), lambda x, sigma: x)
    path = samples(noise(3, *SHAPE))
    path[3] = torch.full(SHAPE, math.nan)
    for step in range(4):
        loop.call(step, path[step])
    assert not loop.skipped


@pytest.mark.parametrize("kind", ["measured", "predicted"])
def test_errors_are_one_for_each_sample_where_a_unit_sees_it_as_several_rows(kind: str):
    point = made(make_policy(settings(level="unit", predictor="reuse", tolerance=1e6)))
    base = noise(0, 6, 5, 3)
    measured: list[float] | None = None
    for step in range(3):
        # Rows 0 to 2 are the first sample and do not change.
        change = torch.cat([torch.zeros(3, 5, 3), 0.1 * step * torch.ones(3, 5, 3)])
        outcome = point.decide(at(step, samples=2), (base + change,))
        if outcome.outputs is None:
            measured = point.full(at(step, samples=2), (base + change,), (base + change,)).errors
    errors = measured if kind == "measured" else outcome.decision.predicted
    assert errors is not None and len(errors) == 2
    assert errors[0] == 0.0 < errors[1]


# --- when the sampler has moved the sample


def test_where_the_sampler_has_moved_the_sample_the_output_stays_and_the_sample_is_the_new_one():
    path = samples(noise(3, *SHAPE))
    loop = Loop(settings(), lambda sample, sigma: sample * sigma)
    for step in range(3):
        for branch in ("cond", "uncond"):
            loop.call(step, path[step], branch)
    before = {branch: [one.clone() for one in loop.store.get(("model", branch))[-1]] for branch in ("cond", "uncond")}
    other = path[2] + noise(9, *SHAPE)
    loop.point.move(path[2], other)
    for branch, (output, sample) in before.items():
        now_output, now_sample = loop.store.get(("model", branch))[-1]
        assert torch.equal(now_output, output) and torch.equal(sample, path[2])
        torch.testing.assert_close(now_sample, other)


def test_only_branches_of_the_step_under_way_are_moved():
    loop = Loop(settings(), lambda sample, sigma: sample * sigma)
    for step in range(2):
        for branch in ("cond", "gone") if step == 0 else ("cond",):
            loop.call(step, noise(step, *SHAPE), branch)
    before = {branch: loop.store.get(("model", branch))[-1][1].clone() for branch in ("cond", "gone")}
    loop.point.move(noise(1, *SHAPE), noise(6, *SHAPE))
    after = {branch: loop.store.get(("model", branch))[-1][1] for branch in before}
    assert torch.equal(after["gone"], before["gone"])
    assert relative_error(after["cond"], before["cond"]).min() > 0.1


def test_a_step_that_was_skipped_moves_nothing():
    # What is kept is of another step, and of another sample.
    point = made(Listed(), keeps_inputs=True)
    for step in range(2):
        call(point, at(step + 1), (noise(step, *SHAPE),), lambda: (noise(5, *SHAPE),))
    before = [tensor.clone() for tensor in point._store.get(("model", "cond"))[-1]]
    point.move(noise(1, *SHAPE), noise(6, *SHAPE))
    assert all(torch.equal(one, two) for one, two in zip(before, point._store.get(("model", "cond"))[-1]))


@pytest.mark.parametrize("shape", [(2, 3, 5), (3, 3, 4)])
def test_a_sample_of_another_shape_moves_nothing(shape: tuple[int, ...]):
    loop = Loop(settings(), lambda sample, sigma: sample * sigma)
    for step in range(2):
        loop.call(step, noise(step, *SHAPE))
    before = [tensor.clone() for tensor in loop.store.get(("model", "cond"))[-1]]
    loop.point.move(noise(5, *shape), noise(6, *shape))
    assert all(torch.equal(one, two) for one, two in zip(before, loop.store.get(("model", "cond"))[-1]))
