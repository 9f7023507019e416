"""What a predictor is: it fills in what a skipped step would have computed, from earlier full steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from unicp.context import Action, Forecast, StepContext
from unicp.numerics.noise_levels import Prediction
from unicp.registry import Registry
from unicp.settings import Settings

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Point:
    """A full step that is kept.

    Attributes:
        step: Where it was.
        outputs: What came out of the cache point, (B, …) each; where a point adds to a stream, what was added.
        inputs: For each output the input of the same shape, `None` where there is none.
    """

    step: StepContext
    outputs: Tensors
    inputs: tuple[Tensor | None, ...]


@dataclass(frozen=True)
class PredictorInfo:
    """What a predictor is told when it is made, once for each cache point of each run.

    Attributes:
        point: Name of the cache point: "model", "stack", or that of a block or unit.
        prediction: What the model puts out ("flow", "epsilon", …); `None` where the noise levels are not known.
        guided_share: For a forecast, the share of a line's rise that came true at the last full step in what the
            sampler was given, all branches combined, (B,); `None` where that is not known.
    """

    point: str
    prediction: Prediction | None = None
    guided_share: Callable[[Forecast], Tensor | None] = lambda forecast: None


class Predictor:
    """Predicts the outputs of one cache point. A subclass needs `predict`, and `points` where it needs more than one.

    The same code is asked with whole tensors, to fill in a skipped step, and with evenly spread values of each sample,
    (B, n), to measure at a full step what skipping it would have cost. So it must treat all positions alike.

    Attributes:
        points: How many full steps it predicts from.
        fewest: With how many it can do at the start of a run; 0 = with no fewer.
        action: What the trace calls a step that it fills in.
    """

    points: int = 1
    fewest: int = 0
    action: Action = Action.FORECAST

    def refusal(self, steps: Sequence[StepContext], aligned: bool, step: StepContext) -> str:
        """Why `step` cannot be skipped, in a word, "" = it can.

        Args:
            steps: The full steps that are kept, oldest first; as many as `points`.
            aligned: Whether the first output has an input of its shape.
            step: Where the call is.
        """
        return ""

    def is_defined(self, steps: Sequence[StepContext], aligned: bool, step: StepContext) -> bool:
        """Whether a prediction exists at all, however bad it might be: then its error is measured at full steps."""
        return not self.refusal(steps, aligned, step)

    def predict(self, points: Sequence[Point], step: StepContext, inputs: Tensors) -> Tensors:
        """The outputs at `step`.

        Args:
            points: The last full steps of this branch, oldest first; not to be written into.
            step: Where the call is.
            inputs: What enters the cache point in this call.
        """
        raise NotImplementedError(f"{type(self).__name__} has no predict(points, step, inputs)")

    def learn(self, points: Sequence[Point], step: StepContext, inputs: Tensors, outputs: Tensors) -> None:
        """A full step was computed, and could have been predicted from `points`. All are spread values, (B, n)."""

    def start_step(self, branches: Sequence[str]) -> None:
        """A step begins. `branches`: those that the step before had."""

    def forget(self, branch: str) -> None:
        """Nothing is kept of this branch any more."""

    def describe(self, aligned: bool) -> str:
        """How it predicts, for the trace."""
        return type(self).__name__

    def forecast(self, aligned: bool) -> Forecast | None:
        """What is carried forward and over which axis, so that the sampler can replay it; `None` = it cannot."""
        return None


predictors: Registry[Callable[[Settings, PredictorInfo], Predictor]] = Registry("predictor")


def register_predictor(
    name: str, maker: Callable[[Settings, PredictorInfo], Predictor], *, replace: bool = False
) -> None:
    """Adds a predictor, so that settings can ask for it by name.

    Args:
        name: For `Settings.predictor`.
        maker: Takes the `Settings` of the session and a `PredictorInfo`, and makes the predictor of one cache point in
            one run.
        replace: Whether it may take the place of another of this name.

    Raises:
        SettingsError: The name is taken and `replace` is false.

    Example:
        >>> import unicp
        >>> class Mean(unicp.Predictor):
        ...     points = 2
        ...
        ...     def __init__(self, settings, info):
        ...         pass
        ...
        ...     def predict(self, points, step, inputs):
        ...         return tuple((a + b) / 2 for a, b in zip(points[0].outputs, points[1].outputs))
        >>> unicp.register_predictor("mean of two", Mean, replace=True)
        >>> settings = unicp.preset("balanced", predictor="mean of two")
    """
    predictors.add(name, maker, replace=replace)
