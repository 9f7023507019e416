"""Parts of a careless third party: each mistake gets one line that names the part, or is computed and told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import unicp
from tests import tiny_models
from tests.golden.paths import loop

pytestmark = pytest.mark.usefixtures("registries_as_before")


class Listed(unicp.CachePolicy):
    """Answers what it was made with."""

    answer: Any = unicp.Decision(True, "always")

    def __init__(self, settings: unicp.Settings):
        self.settings = settings

    def decide(self, step: unicp.StepContext, seen: unicp.Observation) -> Any:
        return type(self).answer


class Last(unicp.Predictor):
    """The last output again."""

    def __init__(self, settings: Any, info: Any):
        self.info = info

    def predict(self, points: Any, step: Any, inputs: Any) -> Any:
        return tuple(one.clone() for one in points[-1].outputs)


def use(**settings: Any) -> tuple[unicp.Session, torch.Tensor]:
    """A run of a tiny model with these settings."""
    model = tiny_models.wan()
    with unicp.enable(
        model, unicp.preset("balanced", **{"tolerance": 1.0, "first": 1, "last": 0} | settings)
    ) as session:
        output = loop(model, steps=6)
    return session, output


def policy(**members: Any) -> str:
    """Registers a policy with these members."""
    unicp.register_policy("mine", type("Mine", (Listed,), members), replace=True)
    return "mine"


def predictor(**members: Any) -> str:
    """Registers a predictor with these members."""
    unicp.register_predictor("mine", type("Mine", (Last,), members), replace=True)
    return "mine"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (None, "NoneType"),
        (True, "bool"),
        (unicp.Decision(True, "odd", predicted=(0.1, 0.2)), "2 predicted errors for 1"),
        (unicp.Decision(True, "odd", tolerance="much"), "tolerance as a number"),  # type: ignore[arg-type]
        (unicp.Decision(True, "odd", predicted=0.1), "predicted as numbers"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_decision_is_told(answer: Any, says: str):
    with pytest.raises(unicp.UniCPError, match=says) as told:
        use(policy=policy(answer=answer))
    assert "Mine" in str(told.value) and "\n" not in str(told.value)


def test_numbers_of_other_kinds_are_kept_as_plain_ones(tmp_path: Any):
    answer = unicp.Decision(torch.tensor(True), 3, torch.tensor(0.5), torch.tensor([0.25]))  # type: ignore[arg-type]
    session, _ = use(policy=policy(answer=answer))
    session.save_trace(tmp_path / "trace.json")
    entries = unicp.load_trace(tmp_path / "trace.json").entries
    assert {entry.reason for entry in entries if entry.action == "forecast"} == {"3"}
    assert {entry.tolerance for entry in entries} == {0.5}


@pytest.mark.parametrize(
    "predict",
    [
        lambda self, points, step, inputs: None,
        lambda self, points, step, inputs: points[-1].outputs * 2,
        lambda self, points, step, inputs: (points[-1].outputs[0][:, :1],),
        lambda self, points, step, inputs: (points[-1].outputs[0].tolist(),),
    ],
)
def test_what_is_no_prediction_is_told(predict: Any):
    with pytest.raises(unicp.UniCPError, match="a prediction of Mine"):
        use(policy=policy(), predictor=predictor(predict=predict))


def test_a_prediction_of_another_dtype_is_cast():
    def predict(self: Any, points: Any, step: Any, inputs: Any) -> Any:
        return tuple(one.double() for one in points[-1].outputs)

    double, single = predictor(predict=predict), predictor
    _, found = use(policy=policy(), predictor=double)
    _, expected = use(policy=policy(), predictor=single())
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_a_predictor_that_does_not_say_what_it_carries_forward_is_not_replayed_and_that_is_told():
    session, _ = use(policy=policy(), predictor=predictor())
    assert session.trace.counts["replayed"] == 0
    assert any("'mine'" in line and "not replayed" in line for line in session.trace.warnings)
    session, _ = use(policy=policy())
    assert not any("not replayed" in line for line in session.trace.warnings)


@pytest.mark.parametrize("points", [0, -1, "2", True])
def test_a_predictor_needs_a_number_of_points(points: Any):
    with pytest.raises(unicp.UniCPError, match="predictor 'mine'.*points"):
        use(predictor=predictor(points=points))


def test_what_cannot_be_made_is_told_when_unicp_is_enabled():
    unicp.register_policy("mine", lambda settings: settings.nothing, replace=True)
    with pytest.raises(unicp.UniCPError, match="policy 'mine'.*AttributeError"):
        use(policy="mine")
    unicp.register_policy("mine", lambda settings: object(), replace=True)  # type: ignore[arg-type,return-value]
    with pytest.raises(unicp.UniCPError, match="derive it from unicp.CachePolicy"):
        use(policy="mine")
    unicp.register_reducer("mine", lambda slicing: object(), replace=True)  # type: ignore[arg-type,return-value]
    with pytest.raises(unicp.UniCPError, match="derive it from unicp.AttentionReducer"):
        use(slicing=unicp.Slicing(widths=(8,), reducer="mine"))


def test_signals_are_names_in_a_tuple_and_asked_for_by_name():
    with pytest.raises(unicp.UniCPError, match="a text"):
        use(policy=policy(signals="block0.modulated"))
    with pytest.raises(unicp.UniCPError, match="unknown signals block0.modulation"):
        use(policy=policy(signals=("block0.modulation",)))

    def decide(self: Any, step: Any, seen: Any) -> Any:
        seen.since_full("block0.modulated")
        return unicp.Decision(False, "never")

    with pytest.raises(unicp.UniCPError, match="name it in the policy's signals"):
        use(policy=policy(decide=decide))


def test_tolerance_zero_skips_nothing_whatever_a_policy_says():
    session, output = use(policy=policy(), tolerance=0.0)
    assert {entry.action for entry in session.trace.entries} == {"full"}
    assert torch.equal(output, loop(tiny_models.wan(), steps=6))


def test_a_policy_that_skips_some_branches_only_is_told():
    def decide(self: Any, step: Any, seen: Any) -> Any:
        return unicp.Decision(step.branch == "call0", "first alone")

    session, _ = use(policy=policy(decide=decide))
    assert any("Mine skipped some branches" in line for line in session.trace.warnings)
    session, _ = use(policy=policy())
    assert not any("some branches" in line for line in session.trace.warnings)


def test_a_policy_and_a_fixed_schedule_are_one_too_many():
    for changes in ({"full_every": 2}, {"full_steps": (0, 1)}):
        with pytest.raises(unicp.UniCPError, match="policy 'mine'.*decide in its place"):
            unicp.preset("balanced", policy="mine", **changes)  # type: ignore[arg-type]


class Whole(unicp.AttentionReducer):
    """Attention as it is, for the cost of nothing."""

    def reduce(self, call: Any, fitted: Any, widths: Any, projection: Any) -> Any:
        class Call(unicp.Reduced):
            def attend(self, width: int) -> torch.Tensor:
                return self.call.full()

        return Call(call)

    def operations(self, call: Any, width: int) -> int:
        return 0


def sliced(**members: Any) -> tuple[unicp.Session, torch.Tensor]:
    """A run in which a reducer with these members is used."""
    unicp.register_reducer("mine", type("Mine", (Whole,), members), replace=True)
    slicing = unicp.Slicing(widths=(8,), tolerance=1.0, reducer="mine", min_saving=-100.0)
    return use(tolerance=1e-9, slicing=slicing)


def test_a_reducer_may_keep_what_it_likes():
    fitted = {"a": [torch.zeros(3)], "b": (torch.zeros(5),)}
    session, _ = sliced(fit=lambda self, call, projection: fitted)
    assert {entry.action for entry in session.trace.entries} >= {"slice"}
    assert Whole(unicp.Slicing()).bytes(fitted) == 32


def test_a_reducer_that_will_not_reduce_is_told():
    def fit(self: Any, call: Any, projection: Any) -> Any:
        raise unicp.UniCPError("mine", "a call I do not like", "keep it")

    session, output = sliced(fit=fit)
    assert any("a call I do not like" in line for line in session.trace.warnings)
    assert torch.equal(output, loop(tiny_models.wan(), steps=6))


def test_attention_of_another_shape_is_told():
    class Call(unicp.Reduced):
        def attend(self, width: int) -> torch.Tensor:
            return self.call.full()[:, :, :1]

        def rows(self, width: int, rows: slice) -> torch.Tensor:
            return self.call.full()[:, :, rows]

    with pytest.raises(unicp.UniCPError, match="reducer 'mine'.*shape"):
        sliced(reduce=lambda self, call, fitted, widths, projection: Call(call))
