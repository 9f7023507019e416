"""Forecasts along a straight line, and plain reuse.

A straight line through two outputs goes on rising; what came may have risen less, or turned. At every full step it is
measured how much of the line's rise came true, by least squares, and until the next one lines follow that share alone
(a damped trend whose damping is measured; ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from unicp.context import Action, Axis, Forecast, StepContext
from unicp.numerics.forecasting import Rise, copies_in, extrapolate, from_quantity, share_of_rise, to_quantity
from unicp.numerics.noise_levels import SKIP_FLOOR, is_invertible
from unicp.predictors.base import Point, Predictor, PredictorInfo, Tensors, predictors
from unicp.settings import Settings


class LinePredictor(Predictor):
    """A line through the last two full steps, or the last one alone (reuse), also where there is but one so far.

    Of the whole model it carries forward the output, the noise estimate or the clean one, which it turns back into an
    output with the sample at hand; of other cache points the output.

    Args:
        forecast: What is carried forward, and over which axis.
        points: 1 = the last value goes on, 2 = a line through the last two.
        damping: Whether lines follow the measured share of their rise only.
        info: About the cache point.
    """

    def __init__(self, forecast: Forecast, points: int, damping: bool, info: PredictorInfo):
        self._forecast, self.points, self.fewest, self._info = forecast, points, 1, info
        self._of_output = replace(forecast, quantity="output")
        self.action = Action.REUSE if points == 1 else Action.FORECAST
        self._is_damped = damping and points > 1
        # By branch, one for each output: what the last full step said of the line, and the share that lines follow.
        self._rises: dict[str, list[Rise]] = {}
        self._shares: dict[str, list[Tensor]] = {}
        self._is_aligned, self._is_settled = True, False

    def forecast(self, aligned: bool) -> Forecast:
        """What is carried forward: the output itself where no sample belongs to it (a learned variance, say)."""
        return self._forecast if aligned else self._of_output

    def describe(self, aligned: bool) -> str:
        """For instance "noise over log_snr"."""
        return str(self.forecast(aligned))

    def refusal(self, steps: Sequence[StepContext], aligned: bool, step: StepContext) -> str:
        """ "level" where the quantity cannot be turned back into an output without blowing up its error."""
        return "" if self._is_invertible(steps, aligned, step, SKIP_FLOOR) else "level"

    def is_defined(self, steps: Sequence[StepContext], aligned: bool, step: StepContext) -> bool:
        """Whether it can be turned back at all: how the forecast does there tells how it will where it is used."""
        return self._is_invertible(steps, aligned, step, 0.0)

    def _settle(self, first: StepContext) -> None:
        """Where the run's first step is at no level that the scheduler knows, the output is forecast throughout."""
        if not self._is_settled and first.noise_level is None:
            self._forecast = Forecast("output", _plain_axis(self._forecast.axis))
        self._is_settled = True

    def _is_invertible(self, steps: Sequence[StepContext], aligned: bool, step: StepContext, floor: float) -> bool:
        self._settle(steps[0])
        quantity, prediction = self.forecast(aligned).quantity, self._info.prediction
        if any(one.at(self._forecast.axis) is None for one in (*steps, step)):
            return False
        if quantity == "output":
            return True
        if prediction is None or step.noise_level is None or any(one.noise_level is None for one in steps):
            return False
        known = all(
            is_invertible(quantity, prediction, one.noise_level, 0.0) for one in steps if one.noise_level is not None
        )
        return known and is_invertible(quantity, prediction, step.noise_level, floor)

    def predict(self, points: Sequence[Point], step: StepContext, inputs: Tensors) -> Tensors:
        """The outputs at `step`, each with the share of its line's rise that is known to come true."""
        return self._predict(points, step, inputs, self._shares.get(step.branch))

    def _predict(
        self, points: Sequence[Point], step: StepContext, inputs: Tensors, shares: list[Tensor] | None
    ) -> Tensors:
        found = (
            self._one(points, step, inputs, place, None if shares is None else shares[place])
            for place in range(len(points[-1].outputs))
        )
        # A prediction may be the kept tensor itself, into which a caller must not write.
        kept = {id(tensor) for point in points for tensor in point.outputs}
        return tuple(one.clone() if id(one) in kept else one for one in found)

    def _one(
        self, points: Sequence[Point], step: StepContext, inputs: Tensors, place: int, share: Tensor | None
    ) -> Tensor:
        forecast, prediction, last = self._forecast, self._info.prediction, points[-1]
        values = [point.outputs[place] for point in points]
        if (
            forecast.quantity == "output"
            or last.inputs[place] is None
            or prediction is None
            or step.noise_level is None
        ):
            return extrapolate(self._placed(points, values), self._at(step), share)
        values = [
            to_quantity(forecast.quantity, prediction, point.inputs[place], value, point.step.noise_level)  # type: ignore[arg-type]
            for point, value in zip(points, values)
        ]
        value = extrapolate(self._placed(points, values), self._at(step), share)
        output = from_quantity(forecast.quantity, prediction, inputs[place], value, step.noise_level)
        # In the dtype of what the model gives, which under autocast is not that of the sample.
        return output.to(last.outputs[place].dtype)

    def _placed(self, points: Sequence[Point], values: Sequence[Tensor]) -> list[tuple[float, Tensor]]:
        return [(self._at(point.step), value) for point, value in zip(points, values)]

    def _at(self, step: StepContext) -> float:
        place = step.at(self._forecast.axis)
        assert place is not None
        return place

    def learn(self, points: Sequence[Point], step: StepContext, inputs: Tensors, outputs: Tensors) -> None:
        """Notes how much of the line's rise came true."""
        if not self._is_damped:
            return
        copies, self._is_aligned = copies_in(inputs[0]), points[-1].inputs[0] is not None
        whole = [torch.ones(len(output), device=output.device) for output in outputs]
        line = self._predict(points, step, inputs, whole)
        last = self._predict(points, step, inputs, [torch.zeros_like(one) for one in whole])
        self._rises[step.branch] = [Rise.of(*three, copies) for three in zip(outputs, line, last)]

    def start_step(self, branches: Sequence[str]) -> None:
        """Sets what lines follow in the step that begins, the same for all branches whose batches are of one size.

        Branches are combined afterwards, their difference many times over: shares of their own would tear them apart.
        So where it is known how the first output's line did after that, all follow this share.
        """
        rises = {name: self._rises[name] for name in branches if name in self._rises}
        guided = self._info.guided_share(self.forecast(self._is_aligned)) if rises else None
        for name, own in rises.items():
            alike = [one for one in rises.values() if [r.size.shape for r in one] == [r.size.shape for r in own]]
            shares = [share_of_rise(of_output) for of_output in zip(*alike)]
            # Guidance may put its branches into one batch.
            if guided is not None and len(shares[0]) % len(guided) == 0:
                shares[0] = guided.to(shares[0]).repeat(len(shares[0]) // len(guided))
            self._shares[name] = shares

    def forget(self, branch: str) -> None:
        """Lines of this branch are followed in full again."""
        self._rises.pop(branch, None)
        self._shares.pop(branch, None)


def _plain_axis(axis: Axis) -> Axis:
    """An axis that is known without noise levels."""
    return "step" if axis == "log_snr" else axis


def _line(points: int, settings: Settings, info: PredictorInfo) -> LinePredictor:
    # Without noise levels there is no log-SNR, and no estimate but the output.
    is_known = info.prediction is not None
    axis = settings.axis if is_known else _plain_axis(settings.axis)
    quantity = settings.quantity if is_known and info.point == "model" else "output"
    damping = settings.damping and info.point == "model"
    return LinePredictor(Forecast(quantity, axis), points, damping, info)


predictors.add("line", partial(_line, 2))
predictors.add("reuse", partial(_line, 1))
