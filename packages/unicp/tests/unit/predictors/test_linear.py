"""Lines through two full steps, and reuse of one, against answers that are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from tests.fake_models import noise
from tests.fake_parts import at
from unicp.context import Action, Axis, Forecast, Quantity, StepContext
from unicp.numerics.forecasting import from_quantity
from unicp.numerics.noise_levels import NoiseLevel, Prediction
from unicp.predictors.base import Point, PredictorInfo, predictors
from unicp.predictors.linear import LinePredictor, copies_in
from unicp.settings import Settings

OUTPUT = Forecast("output", "step")
SHAPE = (2, 3, 4)


def line(forecast: Forecast = OUTPUT, points: int = 2, damping: bool = True, **info: Any) -> LinePredictor:
    return LinePredictor(forecast, points, damping, PredictorInfo("model", **info))


def level(prediction: Prediction, step: int) -> NoiseLevel:
    """Of five steps, at none of which any estimate is undefined."""
    noise_share = 0.85 - 0.15 * step
    signal = 1.0 - noise_share if "flow" in prediction else (1.0 - noise_share**2) ** 0.5
    return NoiseLevel(signal, noise_share)


def point(step: StepContext, *outputs: Tensor, inputs: Sequence[Tensor | None] = ()) -> Point:
    return Point(step, outputs, (*inputs, *[None] * (len(outputs) - len(inputs))))


# --- what is predicted


@pytest.mark.parametrize("prediction", get_args(Prediction))
@pytest.mark.parametrize("quantity", get_args(Quantity))
@pytest.mark.parametrize("axis", get_args(Axis))
def test_what_lies_on_a_line_is_predicted_exactly(prediction: Prediction, quantity: Quantity, axis: Axis):
    """Of every kind of model: the line is of the quantity, whatever the samples do."""
    a, b = noise(1, *SHAPE).double(), noise(2, *SHAPE).double()
    predictor = line(Forecast(quantity, axis), prediction=prediction)
    points, samples = [], [noise(3 + step, *SHAPE).double() for step in range(5)]
    for step, sample in enumerate(samples):
        where = at(step, noise_level=level(prediction, step))
        place = where.at(axis)
        assert where.noise_level is not None and place is not None
        true = from_quantity(quantity, prediction, sample, a + b * place, where.noise_level)
        if step >= 2:
            assert predictor.refusal([one.step for one in points[-2:]], True, where) == ""
            predicted = predictor.predict(points[-2:], where, (sample,))
            torch.testing.assert_close(predicted, (true,), rtol=1e-9, atol=1e-9)
        points.append(point(where, true, inputs=(sample,)))


@pytest.mark.parametrize("quantity", ["noise", "clean"])
def test_a_constant_estimate_is_reused_exactly_though_the_output_changes(quantity: Quantity):
    estimate, reuse = noise(1, *SHAPE).double(), line(Forecast(quantity, "sigma"), points=1, prediction="flow")
    before, now = noise(2, *SHAPE).double(), noise(3, *SHAPE).double()
    first, second = (at(step, noise_level=level("flow", step)) for step in (0, 3))
    outputs = [
        from_quantity(quantity, "flow", sample, estimate, where.noise_level)  # type: ignore[arg-type]
        for sample, where in ((before, first), (now, second))
    ]
    (found,) = reuse.predict([point(first, outputs[0], inputs=(before,))], second, (now,))
    torch.testing.assert_close(found, outputs[1])
    assert (found - outputs[0]).norm() > 1.0


def test_reuse_gives_the_output_bit_for_bit_in_memory_of_its_own():
    kept = noise(0, *SHAPE)
    (found,) = line(points=1).predict([point(at(0), kept)], at(1), (noise(1, *SHAPE),))
    assert torch.equal(found, kept) and found.data_ptr() != kept.data_ptr()
    # So does a line that cannot be drawn, through two points at one place.
    twice = [point(at(2), noise(3, *SHAPE)), point(at(2), kept)]
    (found,) = line().predict(twice, at(3), ())
    assert torch.equal(found, kept) and found.data_ptr() != kept.data_ptr()


def test_outputs_are_predicted_each_with_its_own_sample_and_without_one_as_they_are():
    video, audio, odd = noise(1, *SHAPE), noise(2, 2, 5), noise(3, 2, 7)
    reuse, where = line(Forecast("noise", "sigma"), points=1, prediction="flow"), at(3)
    there = at(8)
    assert where.noise_level is not None and there.noise_level is not None

    def outputs(step: StepContext, samples: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert step.noise_level is not None
        pairs = zip((video, audio), samples)
        return (*(from_quantity("noise", "flow", sample, eps, step.noise_level) for eps, sample in pairs), odd)

    before, now = ((noise(seed, *SHAPE), noise(seed, 2, 5)) for seed in (4, 5))
    found = reuse.predict([point(where, *outputs(where, before), inputs=before)], there, now)
    torch.testing.assert_close(found, outputs(there, now))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_predictions_have_the_dtype_of_what_the_model_gives(dtype: torch.dtype):
    # Under autocast that is not the dtype of the sample.
    points = [point(at(step), noise(step, *SHAPE).to(dtype), inputs=(noise(4, *SHAPE),)) for step in (1, 2)]
    for forecast in (OUTPUT, Forecast("noise", "log_snr"), Forecast("clean", "sigma")):
        (found,) = line(forecast, prediction="flow").predict(points, at(3), (noise(5, *SHAPE),))
        assert found.dtype == dtype


# --- what is refused


@pytest.mark.parametrize(("quantity", "refused_at"), [("clean", 0.001), ("noise", 0.999)])
def test_where_an_estimate_says_too_little_of_the_output_it_is_not_used_but_measured(quantity, refused_at):
    """An error in it would grow a thousandfold."""
    predictor = line(Forecast(quantity, "sigma"), prediction="flow")
    known = [at(step, noise_level=level("flow", step)) for step in (1, 2)]
    there = at(3, noise_level=NoiseLevel(1.0 - refused_at, refused_at))
    assert predictor.refusal(known, True, at(3)) == ""
    assert predictor.refusal(known, True, there) == "level" and predictor.is_defined(known, True, there)


def test_where_an_estimate_does_not_exist_nothing_is_predicted_nor_measured():
    # At noise alone there is no clean estimate of a model that says noise.
    predictor = line(Forecast("clean", "sigma"), prediction="epsilon")
    alone, later = (
        at(0, noise_level=NoiseLevel(0.0, 1.0)),
        [at(step, noise_level=level("epsilon", step)) for step in (1, 2)],
    )
    assert not predictor.is_defined([alone, later[0]], True, later[1])
    assert predictor.refusal([alone, later[0]], True, later[1]) == "level"
    assert predictor.is_defined(later, True, at(3, noise_level=level("epsilon", 3)))


# At the first step it would be known that there are none: see below.
@pytest.mark.parametrize("unknown", [1, 2])
def test_without_noise_levels_no_estimate_is_used(unknown: int):
    steps = [at(step, noise_level=None if step == unknown else level("flow", step)) for step in range(3)]
    estimate, output = line(Forecast("noise", "step"), prediction="flow"), line(prediction="flow")
    assert estimate.refusal(steps[:2], True, steps[2]) == "level" and output.refusal(steps[:2], True, steps[2]) == ""
    assert line(Forecast("noise", "step")).refusal(steps[:2], True, steps[2]) == "level"


def test_an_output_without_a_sample_is_carried_forward_as_it_is():
    # One that has a learned variance beside it, say.
    predictor = line(Forecast("noise", "sigma"), prediction="flow")
    assert predictor.forecast(False) == Forecast("output", "sigma") != predictor.forecast(True)
    assert (predictor.describe(False), predictor.describe(True)) == ("output over sigma", "noise over sigma")
    assert predictor.refusal([at(0), at(0)], False, at(25)) == "" != predictor.refusal([at(0), at(0)], True, at(0))
    points = [point(at(step), step * torch.ones(1, 3)) for step in (1, 2)]
    (found,) = predictor.predict(points, at(3), (torch.ones(1, 5),))
    torch.testing.assert_close(found, 3 * torch.ones(1, 3))


# --- by name


@pytest.mark.parametrize(("name", "points", "action"), [("line", 2, Action.FORECAST), ("reuse", 1, Action.REUSE)])
def test_they_are_found_by_name(name: str, points: int, action: Action):
    made = predictors[name](Settings(), PredictorInfo("model", "flow"))
    assert (made.points, made.action, made.forecast(True)) == (points, action, Forecast("noise", "log_snr"))


@pytest.mark.parametrize("axis", get_args(Axis))
def test_without_noise_levels_the_output_is_carried_forward_over_what_is_known(axis: Axis):
    made = predictors["line"](Settings(axis=axis), PredictorInfo("model", None))
    assert made.forecast(True) == Forecast("output", "step" if axis == "log_snr" else axis)


@pytest.mark.parametrize("name", ["stack", "blocks.0", "blocks.0.attn1"])
def test_inside_the_model_the_output_is_carried_forward_and_no_line_is_damped(name: str):
    made = predictors["line"](Settings(axis="step"), PredictorInfo(name, "flow"))
    assert made.forecast(True) == OUTPUT
    assert after(made, [{"cond": value * ONE} for value in SLOWING])["cond"].tolist() == [[6.0] * 4]


# --- shares of rises

ONE = torch.ones(1, 4)
TWO = torch.stack([torch.ones(4), 3 * torch.ones(4)])
# 0, 4, then 5: of a rise by 4 one came true, so a quarter of the next rise by 1 is followed.
SLOWING = [0.0, 4.0, 5.0]
STEADY = [0.0, 4.0, 8.0]


def after(made: Any, steps: Sequence[Mapping[str, Tensor]], samples: Tensor | None = None) -> dict[str, Tensor]:
    """What the step after these full ones is predicted to give, by branch."""
    points: dict[str, list[Point]] = {}
    for step, outputs in enumerate(steps):
        made.start_step(list(steps[step - 1]) if step else [])
        for branch, output in outputs.items():
            sample, known = torch.ones_like(output) if samples is None else samples, points.setdefault(branch, [])
            if len(known) >= made.points:
                made.learn(known[-made.points :], at(step, branch), (sample,), (output,))
            known.append(point(at(step, branch), output, inputs=(sample,)))
    made.start_step(list(steps[-1]))
    now = {branch: (torch.ones_like(output) if samples is None else samples,) for branch, output in steps[-1].items()}
    return {
        branch: made.predict(points[branch][-made.points :], at(len(steps), branch), now[branch])[0] for branch in now
    }


def test_a_rise_that_slows_down_is_followed_in_part():
    steps = [{"cond": value * ONE} for value in SLOWING]
    assert torch.equal(after(line(), steps)["cond"], 5.25 * ONE)
    assert torch.equal(after(line(damping=False), steps)["cond"], 6.0 * ONE)


@pytest.mark.parametrize(("last", "expected"), [(10.0, 16.0), (2.0, 2.0)])
def test_it_is_never_followed_further_nor_backwards(last: float, expected: float):
    steps = [{"cond": value * ONE} for value in (0.0, 4.0, last)]
    assert torch.equal(after(line(), steps)["cond"], expected * ONE)


def test_branches_follow_one_share():
    # "uncond" rises by 4 twice: together 4 + 16 of 16 + 16 came true.
    steps = [{"cond": a * ONE, "uncond": b * ONE} for a, b in zip(SLOWING, STEADY)]
    found = after(line(), steps)
    assert torch.equal(found["cond"], 5.625 * ONE)
    assert torch.equal(found["uncond"], 10.5 * ONE)


def test_branches_of_another_batch_size_follow_their_own():
    steps = [{"cond": a * ONE, "uncond": b * TWO} for a, b in zip(SLOWING, STEADY)]
    found = after(line(), steps)
    assert torch.equal(found["cond"], 5.25 * ONE)
    assert torch.equal(found["uncond"], 12.0 * TWO)


def test_where_the_branches_are_seen_combined_all_follow_the_share_of_that():
    steps = [{"cond": a * ONE, "uncond": b * TWO} for a, b in zip(SLOWING, STEADY)]
    asked: list[Forecast] = []

    def share(forecast: Forecast) -> Tensor:
        asked.append(forecast)
        return torch.tensor([0.5])

    found = after(line(guided_share=share), steps)
    assert torch.equal(found["cond"], 5.5 * ONE)
    assert torch.equal(found["uncond"], 10.0 * TWO)
    assert set(asked) == {OUTPUT}
    of_another_batch = line(guided_share=lambda forecast: torch.tensor([0.5, 0.5, 0.5]))
    assert torch.equal(after(of_another_batch, steps)["cond"], 5.25 * ONE)


def test_a_branch_that_left_the_run_is_not_asked():
    # "gone" turned back when it was last seen, so nothing of its line came true.
    steps: list[dict[str, Tensor]] = [{"cond": a * ONE, "gone": -a * ONE} for a in (0.0, 1.0)]
    steps += [{"cond": 2.0 * ONE, "gone": 9.0 * ONE}, {"cond": 3.0 * ONE}, {"cond": 4.0 * ONE}]
    assert torch.equal(after(line(), steps[:3])["cond"], 2.0 * ONE)
    assert torch.equal(after(line(), steps)["cond"], 5.0 * ONE)


def test_a_branch_that_is_forgotten_is_followed_in_full_again():
    steps = [{"cond": value * ONE} for value in SLOWING]
    made = line()
    after(made, steps)
    made.forget("cond")
    made.start_step(["cond"])
    points = [point(at(step), value * ONE) for step, value in ((1, 4.0), (2, 5.0))]
    assert torch.equal(made.predict(points, at(3), (ONE,))[0], 6.0 * ONE)


def test_guidance_in_one_batch_follows_one_share_and_other_prompts_their_own():
    rows = [torch.stack([a * torch.ones(4), b * torch.ones(4)]) for a, b in zip(SLOWING, STEADY)]
    steps = [{"batch": row} for row in rows]
    together = after(line(), steps, torch.ones(2, 4))["batch"]
    apart = after(line(), steps, TWO)["batch"]
    assert together[:, 0].tolist() == [5.625, 10.5]
    assert apart[:, 0].tolist() == [5.25, 12.0]


@pytest.mark.parametrize(
    ("rows", "copies"), [([1], 1), ([1, 1], 2), ([1, 2], 1), ([1, 2, 1, 2], 2), ([1, 1, 1], 3), ([1, 2, 2, 1], 1)]
)
def test_copies_of_samples_in_a_batch(rows: list[int], copies: int):
    assert copies_in(torch.tensor(rows)[:, None].float()) == copies


@pytest.mark.parametrize(("asked", "axis"), [("log_snr", "step"), ("sigma", "sigma"), ("step", "step")])
def test_where_the_first_step_is_at_no_known_level_the_output_is_forecast_throughout(asked: Axis, axis: Axis):
    """A loop may take steps that are none of its scheduler's."""
    predictor = line(Forecast("noise", asked), prediction="flow")
    *steps, now = (at(step, noise_level=None) for step in range(3))
    assert predictor.is_defined(steps, True, now) and predictor.refusal(steps, True, now) == ""
    assert predictor.forecast(True) == Forecast("output", axis)
    a, b = noise(1, *SHAPE), noise(2, *SHAPE)
    points = [point(step, output, inputs=(noise(3, *SHAPE),)) for step, output in zip(steps, (a, b))]
    # Timesteps fall by as much at each step.
    torch.testing.assert_close(predictor.predict(points, now, (noise(4, *SHAPE),)), (2 * b - a,))
    # A level that becomes known later changes nothing.
    assert predictor.is_defined([at(3), at(4)], True, at(5))
    assert predictor.forecast(True).quantity == "output"
