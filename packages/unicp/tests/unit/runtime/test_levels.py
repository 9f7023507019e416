"""Cache points of all levels in a model, through `unicp.enable`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny_models
from tests.fake_models import FakeTransformer, flow_scheduler, noise
from tests.fake_parts import Always, Listed, Never
from unicp.context import Decision, Observation, StepContext
from unicp.policies.base import policies
from unicp.predictors.base import Predictor, predictors
from unicp.session import Session, enable
from unicp.settings import Settings, Slicing

STEPS = 10
every_level = pytest.mark.parametrize("level", ["model", "stack", "block", "unit"])


def settings(**changes: Any) -> Settings:
    plain: dict[str, Any] = {"tolerance": 1.0, "weighting": "uniform", "max_window": 2, "max_reach": 9, "last": 0}
    return Settings(**(plain | {"text_keys_values": False, "store_factor": 64.0} | changes))


def entries(session: Session) -> list[Any]:
    """Those of cache points."""
    return [entry for entry in session.trace.entries if entry.reason != "outside"]


def walk(transformer: Any, steps: int = STEPS, prompts: tuple[int, ...] = (0, 1)) -> list[Tensor]:
    """The outputs of a loop written by hand, whose sample moves a little at each step."""
    outputs = []
    for step in range(steps):
        sample, timestep = noise(3, 1, 4, 2) + 0.01 * step, torch.tensor([1000 * (1.0 - step / steps)])
        outputs += [transformer(sample, timestep, noise(seed, 1, 2, 2), return_dict=False)[0] for seed in prompts]
    return outputs


# --- parts of other people


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Settings]:
    """Settings with a policy that is registered for the test alone."""

    def of(make: Any, **changes: Any) -> Settings:
        monkeypatch.setitem(policies._makers, "own", make)
        return settings(policy="own", **changes)

    return of


@every_level
def test_under_a_policy_that_never_skips_outputs_are_bit_equal(level: str, policy: Any):
    model = tiny_models.wan()
    plain = tiny_models.denoise(model, "wan", steps=4)
    with enable(model, policy(lambda settings: Never(), level=level)) as session:
        assert torch.equal(tiny_models.denoise(model, "wan", steps=4), plain)
    assert {(entry.action, entry.reason) for entry in entries(session)} == {("full", "never")}


@every_level
def test_a_policy_that_always_skips_skips_all_but_what_the_predictor_needs(level: str, policy: Any):
    # A line needs two full steps.
    transformer = FakeTransformer()
    with enable(transformer, policy(lambda settings: Always(), level=level)) as session:
        outputs = walk(transformer)
    assert all(bool(torch.isfinite(output).all()) for output in outputs)
    found = {(entry.step, entry.action) for entry in entries(session)}
    assert found == {(step, "full" if step < 2 else "forecast") for step in range(STEPS)}


@every_level
def test_a_policy_that_raises_is_heard_and_its_run_is_dropped(level: str, policy: Any):
    class Raising(Always):
        def decide(self, step: StepContext, seen: Observation) -> Decision:
            if step.step == 5:
                raise KeyError("mistaken")
            return super().decide(step, seen)

    transformer = FakeTransformer()
    with enable(transformer, policy(lambda settings: Raising(), level=level)) as session:
        with pytest.raises(KeyError, match="mistaken"):
            walk(transformer)
        assert session.is_empty
        walk(transformer, steps=4)
    (second,) = {entry.run for entry in session.trace.entries} - {0}
    again = [entry for entry in entries(session) if entry.run == second]
    assert {entry.step for entry in again if entry.action == "full"} == {0, 1}


class Broken(Predictor):
    """Predicts no numbers."""

    def predict(self, points: Any, step: StepContext, inputs: Any) -> tuple[Tensor, ...]:
        return tuple(math.nan * output for output in points[-1].outputs)


@every_level
def test_a_predictor_that_gives_no_numbers_is_told_of_once_and_all_is_computed(
    level: str, policy: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(predictors._makers, "broken", lambda settings, info: Broken())
    transformer = FakeTransformer()
    plain = walk(transformer)
    with enable(transformer, policy(lambda settings: Always(), level=level, predictor="broken")) as session:
        assert all(torch.equal(one, other) for one, other in zip(walk(transformer), plain, strict=True))
    assert {entry.action for entry in entries(session)} == {"full"}
    # Of the whole model the second branch does what the first did.
    reasons = {"learning", "non-finite"} | ({"together"} if level == "model" else set())
    assert {entry.reason for entry in entries(session)} == reasons
    assert session.trace.counts["non_finite"] > STEPS / 2
    assert len([warning for warning in session.trace.warnings if "NaN" in warning]) == 1


@every_level
def test_no_branch_gets_what_another_one_was_answered(level: str, policy: Any):
    """With the text as the sample's sign, each branch has outputs that the other never has."""
    transformer = FakeTransformer()
    full = (0, 1, 2, 4, 7)
    with enable(transformer, policy(lambda settings: Listed(full), level=level, predictor="reuse")) as session:
        for step in range(STEPS):
            for sign, text in ((1.0, noise(0, 1, 2, 2)), (-1.0, noise(1, 1, 2, 2))):
                sample = sign * (1 + 0.01 * step) * torch.ones(1, 4, 2)
                output = transformer(sample, torch.tensor([1000.0 - 10 * step]), text, return_dict=False)[0]
                assert torch.equal(output.sign(), sample.sign())
    for branch in ("call0", "call1"):
        own = [entry for entry in entries(session) if entry.branch == branch]
        assert {entry.step for entry in own if entry.action == "full"} == set(full)


# --- values that are not finite


def with_nan(transformer: FakeTransformer, set_to: Settings, bad_step: int | None, steps: int = 14) -> Any:
    """A loop whose model puts out NaN at one step only; the sample goes on as if nothing had been wrong."""
    levels = [1.0 - step / steps for step in range(steps)]

    def answer(sample: Tensor, timestep: Tensor, hidden: Tensor) -> Tensor:
        sigma = float(timestep) / 1000
        is_bad = bad_step is not None and abs(sigma - levels[bad_step]) < 1e-6
        return torch.full_like(sample, math.nan) if is_bad else torch.ones_like(sample) * sigma

    transformer.answer = answer
    outputs = []
    with enable(transformer, set_to, scheduler=flow_scheduler(steps)) as session:
        for step, sigma in enumerate(levels):
            sample = noise(3, 1, 4, 2) + 0.01 * step
            outputs.append(transformer(sample, torch.tensor([1000 * sigma]), noise(4, 1, 2, 2), return_dict=False)[0])
    return outputs, session


@every_level
def test_nan_at_one_step_is_never_given_again_is_counted_warned_of_once_and_gets_over(level: str):
    transformer = FakeTransformer()
    if level != "model":
        # The NaN arises inside the block, where the narrower points can see it.
        block = transformer.blocks[0]
        plain, calls = type(block).forward, iter(range(1000))

        def bad(hidden_states: Tensor, encoder_hidden_states: Tensor | None = None) -> Tensor:
            return plain(block, hidden_states * (math.nan if next(calls) == 2 else 1.0), encoder_hidden_states)

        block.forward = bad
    set_to = settings(level=level, quantity="output", error_scale="own")
    outputs, session = with_nan(transformer, set_to, 2 if level == "model" else None)
    assert session.trace.counts["non_finite"] >= 1
    assert len([warning for warning in session.trace.warnings if "NaN" in warning]) == 1
    finite = [bool(torch.isfinite(output).all()) for output in outputs]
    assert finite.count(False) == (1 if level == "model" else 0)
    assert not any(entry.action == "forecast" for entry in entries(session) if entry.step in (2, 3))
    assert any(entry.action == "forecast" for entry in entries(session) if entry.step > 5)


def test_a_window_on_finite_outputs_warns_of_nothing():
    _, session = with_nan(FakeTransformer(), settings(quantity="output"), None)
    assert session.trace.warnings == []
    assert any(entry.action == "forecast" for entry in entries(session))


@every_level
def test_one_infinity_where_no_error_is_measured_is_found_before_it_is_given(level: str):
    # Errors are measured on a sample of the values; the second of many is never among them.
    set_to = settings(level=level, roles=("feed_forward",), predictor="reuse", quantity="output")
    transformer = FakeTransformer()
    with enable(transformer, set_to) as session:
        for step in range(7):
            sample = 1 + 0.01 * step + torch.zeros(1, 60, 200)
            if step == 1:
                sample[0, 0, 1] = math.inf
            output = transformer(sample, torch.tensor([1000.0 - step]), return_dict=False)[0]
            assert bool(torch.isfinite(output).all()) is (step != 1)
    at_two = [entry for entry in entries(session) if entry.step == 2]
    assert [(entry.action, entry.reason) for entry in at_two] == [("full", "non-finite")]
    assert session.trace.counts["non_finite"] >= 1
    assert any(entry.action == "reuse" for entry in entries(session) if entry.step > 2)


# --- what adds up inside a model


def reused(level: str, blocks: int, steps: int) -> tuple[FakeTransformer, list[Tensor], list[Tensor], Session]:
    transformer = FakeTransformer(blocks=blocks)
    samples = [noise(0, 1, 5, 3) + 0.05 * noise(step, 1, 5, 3) for step in range(steps)]
    set_to = settings(level=level, predictor="reuse", tolerance=1e6, max_window=4, error_scale="own")
    with enable(transformer, set_to) as session:
        outputs = [
            transformer(sample, torch.tensor([1000.0 - 10 * step]), return_dict=False)[0]
            for step, sample in enumerate(samples)
        ]
    return transformer, samples, outputs, session


def test_the_whole_stack_skipped_is_the_input_plus_what_it_added():
    # Three blocks that double: they add 7 times their input.
    transformer, samples, outputs, session = reused("stack", 3, 4)
    assert torch.equal(outputs[1], 8 * samples[1])
    for step in (2, 3):
        torch.testing.assert_close(outputs[step], samples[step] + 7 * samples[1])
    assert [block.calls for block in transformer.blocks] == [2, 2, 2]
    found = [entry for entry in session.trace.entries if entry.point == "stack"]
    assert [entry.action for entry in found] == ["full", "full", "reuse", "reuse"]


def test_blocks_skipped_one_by_one_each_add_what_they_added():
    transformer, samples, outputs, _ = reused("block", 2, 3)
    # First block adds x1, second one 2 * x1.
    torch.testing.assert_close(outputs[2], samples[2] + 3 * samples[1])
    assert [block.calls for block in transformer.blocks] == [2, 2]


# --- budgets


@pytest.mark.parametrize("budget", [0, 100, 400, 10**6])
def test_what_is_kept_of_the_whole_model_keeps_to_the_budget(budget: int):
    # A branch keeps two outputs and two samples of 32 bytes: one fits into 400, two do not into 100.
    set_to = settings(store_bytes=budget, tolerance=0.5)
    transformer = FakeTransformer(lambda sample, timestep, hidden: sample * float(timestep) / 1000)
    with enable(transformer, set_to, scheduler=flow_scheduler(STEPS)) as session:
        assert all(bool(torch.isfinite(output).all()) for output in walk(transformer))
        (run,) = session._engines[0].runs._here.own.runs  # type: ignore[union-attr]
        assert run.store.peak_bytes <= budget
    skipped = sum(entry.action == "forecast" for entry in session.trace.entries)
    assert (skipped > 0) == (budget >= 400)
    assert (session.trace.counts["budget"] > 0) == (budget < 400)


def test_the_default_budget_makes_room_for_one_stack_but_not_for_many_units():
    transformer = FakeTransformer(blocks=6)
    set_to = settings(level="unit", roles=("feed_forward",), predictor="reuse", tolerance=1e6, store_factor=2.5)
    with enable(transformer, set_to) as session:
        for step in range(8):
            transformer(noise(0, 1, 5, 3) * 0.9**step, torch.tensor([1000.0 - 10 * step]), return_dict=False)
            (run,) = session._engines[0].runs._here.own.runs  # type: ignore[union-attr]
            assert run.store.bytes <= 2.5 * 5 * 3 * 4
        assert run.level == "stack"


@every_level
def test_where_slices_may_be_taken_a_policy_that_skips_nothing_leaves_them_alone_at_tolerance_zero(
    level: str, policy: Any
):
    slicing = Slicing(widths=(8,), tolerance=1e6, min_saving=-1e6)
    model = tiny_models.wan()
    plain = tiny_models.denoise(model, "wan", steps=3)
    set_to = policy(lambda settings: Never(), level=level, tolerance=0.0, slicing=slicing)
    with enable(model, set_to):
        assert torch.equal(tiny_models.denoise(model, "wan", steps=3), plain)
