"""Makes the parts that settings name, and checks what they give where it comes in: they may be a third party's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from unicp.context import Decision, StepContext
from unicp.errors import InputError, SettingsError, UniCPError, one_line
from unicp.policies.base import CachePolicy, policies
from unicp.predictors.base import Predictor, PredictorInfo, Tensors, predictors
from unicp.reducers.base import AttentionReducer, reducers
from unicp.settings import Settings, Slicing

T = TypeVar("T")


def make_policy(settings: Settings) -> CachePolicy:
    """The policy that settings name. Raises SettingsError where it cannot be made."""
    name = settings.policy
    if settings.full_steps is not None or settings.full_every is not None:
        name = "fixed_window" if settings.full_steps is None else "fixed_steps"
    made = _made("policy", name, CachePolicy, lambda: policies[name](settings))
    if isinstance(made.signals, str):
        raise SettingsError(f"policy {name!r}", f"signals = {made.signals!r}, a text", f"write ({made.signals!r},)")
    return made


def make_predictor(settings: Settings, info: PredictorInfo) -> Predictor:
    """The predictor that settings name, for one cache point. Raises SettingsError where it cannot be made."""
    name = settings.predictor
    made = _made("predictor", name, Predictor, lambda: predictors[name](settings, info))
    if not isinstance(made.points, int) or isinstance(made.points, bool) or made.points < 1:
        found = f"points = {made.points!r}"
        raise SettingsError(f"predictor {name!r}", found, "give the number of full steps it needs, 1 or more")
    return made


def make_reducer(slicing: Slicing) -> AttentionReducer:
    """The reducer that settings name. Raises SettingsError where it cannot be made."""
    return _made("reducer", slicing.reducer, AttentionReducer, lambda: reducers[slicing.reducer](slicing))


def _made(kind: str, name: str, base: type[T], make: Callable[[], Any]) -> T:
    try:
        made = make()
    except UniCPError:
        raise
    except Exception as error:
        found = f"{type(error).__name__}: {one_line(str(error))}"
        raise SettingsError(f"to make the {kind} {name!r}", found, "fix how it is made") from error
    if not isinstance(made, base):
        do = f"derive it from unicp.{base.__name__}"
        raise SettingsError(f"to make the {kind} {name!r}", f"a {type(made).__name__}", do)
    return made


def checked_decision(decision: Any, policy: CachePolicy, step: StepContext) -> Decision:
    """What a policy decided, in plain numbers and text.

    Raises:
        InputError: It is no decision, or one that no trace could hold.
    """
    asked = f"a decision of {type(policy).__name__} at step {step.step}"
    if not isinstance(decision, Decision):
        raise InputError(asked, f"a {type(decision).__name__}", 'return unicp.Decision(skip, "reason")')
    try:
        predicted = None if decision.predicted is None else tuple(float(one) for one in decision.predicted)
        tolerance = float(decision.tolerance)
    except (TypeError, ValueError) as error:
        raise InputError(asked, one_line(str(error)), "give tolerance as a number, predicted as numbers") from error
    if predicted is not None and len(predicted) != step.samples:
        found = f"{len(predicted)} predicted errors for {step.samples} samples"
        raise InputError(asked, found, "give one for each sample, or None")
    return Decision(bool(decision.skip), str(decision.reason), tolerance, predicted)


def checked_outputs(
    outputs: Any, predictor: Predictor, shapes: Sequence[torch.Size], dtypes: Sequence[torch.dtype]
) -> Tensors:
    """What a predictor predicted, in the dtypes of what it stands for.

    Raises:
        InputError: Other tensors than the full steps had.
    """
    asked = f"a prediction of {type(predictor).__name__}"
    do = "return one tensor for each output of the last point, of its shape"
    if not isinstance(outputs, (tuple, list)) or not all(isinstance(one, Tensor) for one in outputs):
        raise InputError(asked, f"a {type(outputs).__name__}", do)
    if [one.shape for one in outputs] != list(shapes):
        found = f"shapes {[tuple(one.shape) for one in outputs]} for {[tuple(shape) for shape in shapes]}"
        raise InputError(asked, found, do)
    return tuple(one.to(dtype) for one, dtype in zip(outputs, dtypes))
