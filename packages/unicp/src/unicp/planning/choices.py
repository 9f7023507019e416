"""For each number of computed steps the best schedule that a profile knows for the noise levels of a run."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from unicp.context import Forecast
from unicp.numerics.noise_levels import NoiseLevel
from unicp.planning.curves import (
    ForecastErrors,
    Shares,
    forecast_errors,
    of_prompt,
    probed_way,
    step_weights,
    window_factors,
)
from unicp.planning.profile import Profile, Recording
from unicp.policies.guard import Schedule
from unicp.policies.step_paths import StepPath, WindowLoss, best_paths, path_loss

FORECASTS = tuple(Forecast(q, a) for q in ("noise", "output", "clean") for a in ("log_snr", "sigma", "step"))
# Impact was measured with errors of one way to forecast: another must be predicted to change the clip so many times
# less to be taken. Chosen as 2 dB (docs/planning.md): with UniPC the output over the log-SNR was predicted to do a
# little better, and did worse.
LEAD = 1.26
# Reach of forecasts where so few steps are full that those of `MAX_REACH` hardly come to the end of the run. Chosen:
# with a reach of 1 the last six steps were left to one window (docs/planning.md).
FAR_REACH = 3.0


@dataclass(frozen=True)
class Choice:
    """The best schedule with a certain number of computed steps: how, and the change it is predicted to make."""

    path: StepPath
    errors: ForecastErrors
    weights: Sequence[float]
    rule: WindowLoss

    @property
    def change(self) -> float:
        """Predicted change of the clip."""
        return self.path.loss ** (1.0 / self.rule.power)

    def schedule(self, allowance: float, most: int) -> Schedule:
        """What a guard follows."""
        steps, errors = len(self.weights), self.errors
        parts = (errors, self.weights, self.rule, allowance, most, errors.forecast, errors.left)
        return Schedule(steps, self.path.computed, *parts)


def best_choices(
    profile: Profile,
    levels: Sequence[NoiseLevel],
    without: str | None = None,
    forecasts: Sequence[Forecast] | None = None,
) -> dict[int, Choice]:
    """For each possible number of computed steps the best forecast and schedule.

    levels: of the steps of the run, and the one after the last. without: a prompt whose recording is left out.
    forecasts: ways to serve; None = all, or that of the probes alone where served steps are taken again: most of what
    a forecast missed is mended then, and it is only over the log-SNR.

    A prompt whose clips come apart would count for all others in a sum of losses, though no schedule helps it much. So
    prompts count as one over what the schedule of half the steps costs them: near it the sum of losses then changes as
    the mean of their logarithms does, which is the mean PSNR.
    """
    recordings = [one for one in profile.recordings if one.prompt != without] or profile.recordings
    if forecasts is None:
        forecasts = [probed_way(profile.recordings[0])] if profile.mended else FORECASTS
    alike = _choices(profile, recordings, levels, forecasts, {})
    middle = alike[min(alike, key=lambda count: abs(2 * count - len(levels) + 1))]
    losses = {one.prompt: _loss_of(_of_prompt(profile, one, levels, middle)) for one in recordings}
    if not all(loss > 0 for loss in losses.values()):
        return alike
    return _choices(profile, recordings, levels, forecasts, {prompt: 1 / loss for prompt, loss in losses.items()})


def _choices(
    profile: Profile,
    recordings: Sequence[Recording],
    levels: Sequence[NoiseLevel],
    forecasts: Sequence[Forecast],
    shares: Shares,
) -> dict[int, Choice]:
    found: dict[int, list[Choice]] = {}
    rule, probed = WindowLoss(profile.power, *window_factors(profile, shares)), probed_way(profile.recordings[0])
    for forecast in forecasts:
        errors = forecast_errors(profile, recordings, forecast, levels[:-1], shares)
        if errors is None:
            continue
        weights = step_weights(profile, forecast, levels, shares)
        schedule = Schedule(len(weights), (), errors, weights, rule, 0.0, 0, forecast, errors.left)
        for count, path in _paths(schedule, rule).items():
            found.setdefault(count, []).append(Choice(path, errors, weights, rule))

    def handicapped(choice: Choice) -> float:
        return choice.change * (1.0 if choice.errors.forecast.quantity == probed.quantity else LEAD)

    return {count: min(choices, key=handicapped) for count, choices in found.items()}


def _paths(schedule: Schedule, rule: WindowLoss) -> dict[int, StepPath]:
    """Paths of short reach; of far reach where there are none, or where they do worse than far ones of fewer steps."""
    change = functools.cache(schedule.change)
    near = best_paths(schedule.steps, change, rule=rule)
    far = best_paths(schedule.steps, change, max_reach=FAR_REACH, rule=rule)
    return far | {n: path for n, path in near.items() if n - 1 not in far or path.loss <= far[n - 1].loss}


def hardness_spread(profile: Profile, levels: Sequence[NoiseLevel], choice: Choice) -> float:
    """Spread over prompts of what a schedule costs, as a standard deviation in dB; 0 for one prompt."""
    found = []
    for recording in profile.recordings:
        loss = _loss_of(_of_prompt(profile, recording, levels, choice))
        if loss > 0:
            found.append(20 * math.log10(loss) / choice.rule.power)
    if len(found) < 2:
        return 0.0
    # Not statistics.stdev, which ends in an error where a cost is infinite.
    mean = math.fsum(found) / len(found)
    return math.sqrt(math.fsum((one - mean) ** 2 for one in found) / (len(found) - 1))


def _of_prompt(profile: Profile, recording: Recording, levels: Sequence[NoiseLevel], choice: Choice) -> Choice:
    """The same schedule with the errors and the impact of one prompt."""
    forecast = choice.errors.forecast
    errors = forecast_errors(profile, [recording], forecast, levels[:-1])
    weights = step_weights(profile, forecast, levels, of_prompt(profile, recording.prompt))
    return choice if errors is None else replace(choice, errors=errors, weights=weights)


def _loss_of(choice: Choice) -> float:
    return path_loss(choice.path.computed, len(choice.weights), choice.schedule(0.0, 0).change, choice.rule)
