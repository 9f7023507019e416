"""The best schedule for each number of full steps, by a profile, at the noise levels of a run."""

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
    probed_forecast,
    step_weights,
    window_factors,
)
from unicp.planning.profile import Profile, Recording
from unicp.policies.guard import Schedule
from unicp.policies.step_paths import StepPath, WindowLoss, best_paths, path_loss

FORECASTS = tuple(Forecast(q, a) for q in ("noise", "output", "clean") for a in ("log_snr", "sigma", "step"))
# Probes measure impact with one quantity. Another one is taken only if its predicted change of the clip is this many
# times smaller. Chosen as 2 dB (docs/planning.md): with UniPC the output was predicted to do a little better, and did
# worse.
LEAD = 1.26
# Reach of forecasts where few steps are full. Chosen: with `MAX_REACH` one window had to hold the last six steps of 30.
FAR_REACH = 3.0


@dataclass(frozen=True)
class Choice:
    """The best schedule with a certain number of full steps.

    Attributes:
        path: The full steps and their loss.
        errors: Of its forecasts.
        weights: Change of the clip per relative error, by step.
        rule: How changes add up to the loss.
    """

    path: StepPath
    errors: ForecastErrors
    weights: Sequence[float]
    rule: WindowLoss

    @property
    def change(self) -> float:
        """Predicted change of the clip."""
        return self.path.loss ** (1.0 / self.rule.power)

    def schedule(self, allowance: float, most: int) -> Schedule:
        """What a guard follows; `allowance` and `most` as in `Schedule`."""
        steps, errors = len(self.weights), self.errors
        parts = (errors, self.weights, self.rule, allowance, most, errors.forecast, errors.left)
        return Schedule(steps, self.path.computed, *parts)


def best_choices(
    profile: Profile,
    levels: Sequence[NoiseLevel],
    without: str | None = None,
    forecasts: Sequence[Forecast] | None = None,
) -> dict[int, Choice]:
    """Solves the best schedule for each possible number of full steps.

    A prompt whose clips come apart would dominate a sum of losses, though no schedule helps it much. So a prompt counts
    by one over its loss under the schedule of half the steps. Near that schedule the sum then changes as the mean PSNR.

    Args:
        profile: What calibration measured.
        levels: Noise levels of the run's steps, and the one after the last.
        without: A prompt whose recording is left out.
        forecasts: Ways to fill skipped steps. `None` = that of the probes where the sampler replays, because replay
            works over the log-SNR alone; otherwise all.

    Returns:
        The schedules, by number of full steps.
    """
    recordings = [one for one in profile.recordings if one.prompt != without] or profile.recordings
    if forecasts is None:
        forecasts = [probed_forecast(profile.recordings[0])] if profile.replayed else FORECASTS
    unweighted = _choices(profile, recordings, levels, forecasts, {})
    middle = unweighted[min(unweighted, key=lambda count: abs(2 * count - len(levels) + 1))]
    losses = {one.prompt: _loss_of(_of_prompt(profile, one, levels, middle)) for one in recordings}
    if not all(loss > 0 for loss in losses.values()):
        return unweighted
    return _choices(profile, recordings, levels, forecasts, {prompt: 1 / loss for prompt, loss in losses.items()})


def _choices(
    profile: Profile,
    recordings: Sequence[Recording],
    levels: Sequence[NoiseLevel],
    forecasts: Sequence[Forecast],
    shares: Shares,
) -> dict[int, Choice]:
    found: dict[int, list[Choice]] = {}
    rule, probed = WindowLoss(profile.power, *window_factors(profile, shares)), probed_forecast(profile.recordings[0])
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
    """The best paths of short reach, or of far reach where short ones do worse with one full step more."""
    change = functools.cache(schedule.change)
    near = best_paths(schedule.steps, change, rule=rule)
    far = best_paths(schedule.steps, change, max_reach=FAR_REACH, rule=rule)
    return far | {n: path for n, path in near.items() if n - 1 not in far or path.loss <= far[n - 1].loss}


def hardness_spread(profile: Profile, levels: Sequence[NoiseLevel], choice: Choice) -> float:
    """Standard deviation over prompts of a schedule's loss, in dB; 0 for one prompt."""
    decibels = []
    for recording in profile.recordings:
        loss = _loss_of(_of_prompt(profile, recording, levels, choice))
        if loss > 0:
            decibels.append(20 * math.log10(loss) / choice.rule.power)
    if len(decibels) < 2:
        return 0.0
    # Not statistics.stdev, which raises where a loss is infinite.
    mean = math.fsum(decibels) / len(decibels)
    return math.sqrt(math.fsum((one - mean) ** 2 for one in decibels) / (len(decibels) - 1))


def _of_prompt(profile: Profile, recording: Recording, levels: Sequence[NoiseLevel], choice: Choice) -> Choice:
    """The same schedule with the errors and the impact of one prompt."""
    forecast = choice.errors.forecast
    errors = forecast_errors(profile, [recording], forecast, levels[:-1])
    weights = step_weights(profile, forecast, levels, of_prompt(profile, recording.prompt))
    return choice if errors is None else replace(choice, errors=errors, weights=weights)


def _loss_of(choice: Choice) -> float:
    return path_loss(choice.path.computed, len(choice.weights), choice.schedule(0.0, 0).change, choice.rule)
