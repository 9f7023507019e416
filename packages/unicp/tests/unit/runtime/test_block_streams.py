"""Blocks and the stack, served by their residual."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.fake_models import FakeTransformer, noise
from torch import Tensor
from unicp.control.controller import Controller
from unicp.control.windows import Position
from unicp.execution.block_spans import BlockCall, ResidualSpan

from tests import tiny_models
from unicp.models.finder import map_model
from unicp.records import Action, Moment
from unicp.runtime.store import OutputStore
from unicp.session import enable
from unicp.settings import Settings


def settings(**changes: Any) -> Settings:
    plain: dict[str, Any] = {"tolerance": 1e6, "order": 0, "weighting": "uniform", "last": 0, "level": "block"}
    return Settings(**(plain | {"max_reach": 9, "text_keys_values": False, "store_factor": 64.0} | changes))


def moment(step: int, branch: str = "cond") -> Moment:
    return Moment(0, step, branch, 1000.0 - 100 * step, 1, 1.0 - 0.1 * step, 10)


def span(**changes: Any) -> ResidualSpan:
    set_to = settings(**changes)
    return ResidualSpan("blocks.0", set_to, Controller(set_to), OutputStore(set_to))


def call(residual: ResidualSpan, step: int, before: tuple[Tensor, ...], after: tuple[Tensor, ...], **more: Any) -> Any:
    at = moment(step, **more)
    where: Position = {"step": float(step), "sigma": 1.0 - 0.1 * step}
    outcome, served = residual.decide(at, where, before)
    if served is not None:
        return outcome, served
    return outcome, residual.computed(at, where, before, after, 1)


def test_the_residual_of_a_block_that_doubles_is_its_input():
    residual, stream = span(), noise(0, 1, 5, 3)
    call(residual, 0, (noise(2, 1, 5, 3),), (2 * noise(2, 1, 5, 3),))
    call(residual, 1, (stream,), (2 * stream,))
    fresh = noise(1, 1, 5, 3)
    outcome, served = call(residual, 2, (fresh,), (2 * fresh,))
    assert outcome.decision.action is Action.REUSE
    assert torch.equal(served[0], fresh + stream)


def test_a_residual_linear_in_the_noise_level_is_forecast_exactly():
    residual = span(predictor="line", abscissas=("sigma",))
    a, b = noise(0, 1, 5, 3), noise(1, 1, 5, 3)
    served_steps = []
    for step in range(8):
        before = noise(2, 1, 5, 3) + 0.01 * step
        after = before + a + b * (1.0 - 0.1 * step)
        outcome, result = call(residual, step, (before,), (after,))
        if outcome.decision.action is Action.FORECAST:
            served_steps.append(step)
            torch.testing.assert_close(result[0], after, rtol=0, atol=1e-5)
    assert served_steps == [3, 4, 5, 6]


def test_both_streams_of_a_joint_block_are_served():
    residual = span()
    video, text = noise(0, 1, 5, 3), noise(1, 1, 2, 3)
    for step in range(2):
        call(residual, step, (video, text), (video + 1, text + 2))
    _, served = call(residual, 2, (video, text), (video, text))
    torch.testing.assert_close(served, (video + 1, text + 2))


@pytest.mark.parametrize(("scale", "expected"), [("stream", 0.1 / 11.1), ("own", 0.1 / 1.1)])
def test_the_error_is_relative_to_the_stream_or_to_the_residual(scale, expected):
    residual, stream = span(error_scale=scale), 10 * torch.ones(1, 5, 3)
    call(residual, 0, (stream,), (stream + 1.0,))
    _, (measured, fits) = call(residual, 1, (stream,), (stream + 1.1,))
    assert measured == pytest.approx([expected], rel=1e-4)
    assert fits


def test_branches_have_their_own_residuals():
    residual, stream = span(), noise(0, 1, 5, 3)
    for step in range(2):
        call(residual, step, (stream,), (stream + 1,), branch="cond")
        call(residual, step, (stream,), (stream - 1,), branch="uncond")
    assert torch.equal(call(residual, 2, (stream,), (stream,), branch="cond")[1][0], stream + 1)
    assert torch.equal(call(residual, 2, (stream,), (stream,), branch="uncond")[1][0], stream - 1)


def test_what_does_not_fit_the_budget_is_told_and_cannot_be_served():
    residual, stream = span(store_bytes=0), noise(0, 1, 5, 3)
    for step in range(6):
        outcome, (measured, fits) = call(residual, step, (stream,), (2 * stream,))
        assert (outcome.decision.action, measured, fits) == (Action.FULL, None, False)


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_streams_are_read_from_positional_and_keyword_arguments_alike(name):
    for block in map_model(tiny_models.build(name)).blocks:
        form = BlockCall(block)
        video, text = noise(0, 1, 4, 3), noise(1, 1, 2, 3)
        if block.row.returns == "hidden":
            assert form.streams((video,), {})[0] is video
            assert form.streams((), {block.row.hidden_argument: video})[0] is video
            assert form.to_output((video,)) is video
        elif block.row.returns == "other":
            assert block.row.refusal
        else:
            assert block.row.text_argument is not None
            found = form.streams((), {block.row.hidden_argument: video, block.row.text_argument: text})
            assert found[0] is video and found[1] is text
            output = form.to_output(found)
            assert isinstance(output, tuple) and form.of_output(output, (text, video)) == (video, text)
            # A last block may drop the text: then it is as it entered.
            dropped = tuple(None if one is text else one for one in output)
            assert form.of_output(dropped, (video, text)) == (video, text)


def run(span_kind: str, blocks: int, steps: int) -> tuple[FakeTransformer, list[Tensor], list[Tensor], Any]:
    transformer = FakeTransformer(blocks=blocks)
    samples = [noise(0, 1, 5, 3) + 0.05 * noise(step, 1, 5, 3) for step in range(steps)]
    with enable(transformer, settings(level=span_kind, error_scale="own")) as session:
        outputs = [
            transformer(sample, torch.tensor([1000.0 - 10 * step]), return_dict=False)[0]
            for step, sample in enumerate(samples)
        ]
    return transformer, samples, outputs, session


def test_the_whole_stack_served_is_the_input_plus_its_stored_residual():
    # Three blocks that double: the residual of the stack is 7 times its input.
    transformer, samples, outputs, session = run("stack", 3, 4)
    assert torch.equal(outputs[1], 8 * samples[1])
    for step in (2, 3):
        torch.testing.assert_close(outputs[step], samples[step] + 7 * samples[1])
    assert [block.calls for block in transformer.blocks] == [2, 2, 2]
    entries = [entry for entry in session.trace.entries if entry.unit == "stack"]
    assert [entry.action for entry in entries] == ["full", "full", "reuse", "reuse"]


def test_blocks_served_one_by_one_each_add_their_own_residual():
    transformer, samples, outputs, _ = run("block", 2, 3)
    # First block adds x1, second one 2 * x1.
    torch.testing.assert_close(outputs[2], samples[2] + 3 * samples[1])
    assert [block.calls for block in transformer.blocks] == [2, 2]


def test_the_default_budget_makes_room_for_one_stack_but_not_for_many_units():
    transformer = FakeTransformer(blocks=6)
    with enable(transformer, settings(level="unit", roles=("feed_forward",), store_factor=2.5)) as session:
        for step in range(8):
            transformer(noise(0, 1, 5, 3) * 0.9**step, torch.tensor([1000.0 - 10 * step]), return_dict=False)
            (run,) = session._runners[0]._here.runs
            assert run.store.bytes <= 2.5 * 5 * 3 * 4
        assert run.level == "stack"
