"""Errors of forecasts and their impact at any noise levels, read off a profile. Floats only.

A forecast is a sum of stored quantities, so its squared error is a quadratic form in their mean products, which a
profile holds. Levels between the recorded ones are interpolated by Lagrange's polynomial through the four nearest: the
error of a straight line comes from a second derivative, which that polynomial has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from unicp.context import Forecast
from unicp.numerics.noise_levels import SKIP_FLOOR, NoiseLevel, coefficients
from unicp.numerics.polynomials import lagrange_weights
from unicp.planning.profile import Profile, Recording
from unicp.policies.impact import between

# Recorded levels that are interpolated: a cubic is the least polynomial whose second derivative is no constant.
NEAREST = 4
# How much each prompt of a calibration counts; prompts that are not in it count 1.
Shares = Mapping[str, float]
# A profile covers levels up to this many recorded steps after the last one. Chosen: where steps are evenly wide the
# clean sample is one step on, so that longer runs are covered to their end.
BEYOND = 1.0
# At least this share of a forecast's error stays once its step is replayed. Chosen: less is rounding of products.
LEAST_LEFT = 0.01


@dataclass(frozen=True)
class ForecastErrors:
    """Relative errors of straight-line forecasts among the steps of one run.

    Attributes:
        forecast: How skipped steps are filled.
        places: Of the steps on the forecast's axis.
        products: Rows of the lower triangle of mean products of the quantity.
        scales: By step, mean square of the output times the square of its coefficient in the quantity.
        replayed: Whether the sampler replays skipped steps, so that less of their error stays (docs/method.md, 3.4).
    """

    forecast: Forecast
    places: Sequence[float]
    products: Sequence[Sequence[float]]
    scales: Sequence[float]
    replayed: bool = False

    def __call__(self, before: int, last: int, skipped: int) -> float:
        """rms(forecast - true) / rms(true output) at step `skipped`, from full steps before < last < skipped."""
        gap = self.places[last] - self.places[before]
        reach = (self.places[skipped] - self.places[last]) / gap if gap else 0.0
        reach = reach if math.isfinite(reach) else 0.0
        return self._relative({before: -reach, last: 1.0 + reach}, skipped)

    def left(self, before: int, last: int, following: int, skipped: int) -> float:
        """The error that stays at step `skipped` after full step `following`; before < last < skipped < following.

        If the sampler replays, it is the error of the parabola through the three full steps.
        """
        places = {step: self.places[step] for step in (before, last, following)}
        if not self.replayed or len(set(places.values())) < 3 or not all(map(math.isfinite, places.values())):
            return self(before, last, skipped)
        shares = dict(zip(places, lagrange_weights(list(places.values()), self.places[skipped])))
        return max(self._relative(shares, skipped), LEAST_LEFT * self(before, last, skipped))

    def _relative(self, shares: Mapping[int, float], skipped: int) -> float:
        """Error of the sum of values at other steps, each times its share, in place of the value at `skipped`."""
        if not self.scales[skipped] > 0:
            return math.inf
        parts = [(skipped, 1.0), *((step, -share) for step, share in shares.items())]
        # Each pair twice, for both its orders: twice a float is exact.
        terms = []
        for place, (i, p) in enumerate(parts):
            terms.append(p * p * self.products[i][i])
            for j, q in parts[:place]:
                terms.append(2.0 * (p * q * (self.products[i][j] if i > j else self.products[j][i])))
        square = math.fsum(terms)
        # Rounding can leave a tiny negative number where nothing is missed.
        return math.sqrt(max(square, 0.0) / self.scales[skipped])


def forecast_errors(
    profile: Profile,
    recordings: Sequence[Recording],
    forecast: Forecast,
    levels: Sequence[NoiseLevel],
    shares: Shares = MappingProxyType({}),
) -> ForecastErrors | None:
    """Errors among steps at `levels` by a profile; arguments as those of `errors_among`."""
    prediction, known = profile.fingerprint.prediction, profile.levels[:-1]
    return errors_among(recordings, forecast, prediction, known, levels, profile.left, shares)


def errors_among(
    recordings: Sequence[Recording],
    forecast: Forecast,
    prediction: str,
    known: Sequence[NoiseLevel],
    levels: Sequence[NoiseLevel],
    replayed: bool = False,
    shares: Shares = MappingProxyType({}),
) -> ForecastErrors | None:
    """Errors of forecasts among the steps of a run, root of the mean square over recordings.

    Args:
        recordings: Plain runs.
        forecast: How skipped steps are filled.
        prediction: What the model's output is.
        known: Noise level of each recorded step.
        levels: Of the steps of the run, without the one after the last.
        replayed: As in `ForecastErrors`.
        shares: How much each prompt counts.

    Returns:
        `None` where the recordings do not tell.
    """
    quantity = forecast.quantity
    found = [recording.products.get(quantity) for recording in recordings]
    products = [one for one in found if one is not None]
    if not products or len(products) < len(found):
        return None
    sigmas = [level.sigma for level in known]
    weights = [_weights(sigmas, level.sigma) for level in levels]
    counted = [shares.get(recording.prompt, 1.0) for recording in recordings]
    mean = [_mean(column, counted) for column in zip(*products)]
    power = [_mean(column, counted) for column in zip(*(one.power for one in recordings))]
    parts = [coefficients(quantity, prediction, level)[1] for level in levels]
    scales = [
        (part * part if math.isfinite(part) else 0.0) * sum(weight * power[at] for at, weight in row.items())
        for part, row in zip(parts, weights)
    ]
    return ForecastErrors(forecast, _places(forecast, levels), _read_off(mean, weights), scales, replayed)


def probed_forecast(recording: Recording) -> Forecast:
    """How probes fill their skipped steps: by the noise estimate, or by the output where nothing else is recorded."""
    return Forecast("noise" if "noise" in recording.products else "output", "log_snr")


def is_skippable(forecast: Forecast, prediction: str, level: NoiseLevel) -> bool:
    """Whether UniCP skips a step at this level: turning the quantity back into an output must not blow up its error."""
    part = coefficients(forecast.quantity, prediction, level)[1]
    return forecast.quantity == "output" or (math.isfinite(part) and abs(part) >= SKIP_FLOOR)


def covers(profile: Profile, level: NoiseLevel) -> bool:
    """Whether a profile covers a level.

    It covers none noisier than the noisiest probe, where impact rises steeply, and none cleaner than `BEYOND` recorded
    steps after the last one.
    """
    sigmas = [one.sigma for one in profile.levels[:-1]]
    above = sigmas[min(probe.step for probe in profile.probes)] + 1e-6
    below = sigmas[-1] - BEYOND * (sigmas[-2] - sigmas[-1])
    return below <= level.sigma <= above


def impact_curve(profile: Profile, shares: Shares = MappingProxyType({})) -> list[tuple[float, float]]:
    """(noise level, change of the clip per relative error that stays and per unit of noise level), levels rising.

    It is the mean over prompts. The geometric mean would be that of a usual prompt, but early errors do several times
    more to some prompts than to others. It is per unit of noise level, because an error acts as long as its step is.
    """
    sigmas, told = [level.sigma for level in profile.levels], _recorded_errors(profile, shares)
    by_step: dict[int, list[tuple[float, float]]] = {}
    for probe in profile.probes:
        width, share = sigmas[probe.step] - sigmas[probe.step + 1], shares.get(probe.prompt, 1.0)
        if share > 0:
            (error,) = _left_errors(told.get(probe.prompt), probe.step, [probe.error])
            by_step.setdefault(probe.step, []).append((probe.change / error / width, share))
    return sorted((sigmas[step], _mean(*zip(*found))) for step, found in by_step.items())


def of_prompt(profile: Profile, prompt: str) -> Shares:
    """Shares with which one prompt alone counts; all do where it was not probed."""
    probed = {probe.prompt for probe in profile.probes}
    return {other: float(other == prompt) for other in probed} if prompt in probed else {}


def window_factors(profile: Profile, shares: Shares = MappingProxyType({})) -> tuple[float, float]:
    """How many times more a window of several steps changes the clip than its steps do one by one.

    Full steps after a window correct a part of what it did; after the last window there are none. Both factors are
    geometric means over the probed windows, each against the impact measured on its own prompt.

    Args:
        profile: What calibration measured.
        shares: How much each prompt counts.

    Returns:
        The factors of windows inside the run and of the last one; 1 for a kind of which the profile has none.
    """
    sigmas, recorded = [level.sigma for level in profile.levels], _recorded_errors(profile, shares)
    last: list[tuple[float, float]] = []
    inner: list[tuple[float, float]] = []
    for window in profile.windows:
        curve, share = impact_curve(profile, of_prompt(profile, window.prompt)), shares.get(window.prompt, 1.0)
        skipped = range(window.first, window.first + len(window.errors))
        told = math.fsum(
            error * _between(curve, sigmas[step]) * (sigmas[step] - sigmas[step + 1])
            for step, error in zip(
                skipped, _left_errors(recorded.get(window.prompt), window.first, window.errors), strict=True
            )
        )
        if share > 0:
            (last if skipped.stop == profile.steps else inner).append((math.log(window.change / told), share))
    row, end = (math.exp(_mean(*zip(*found))) if found else 1.0 for found in (inner, last))
    return row, end


def counted(profile: Profile) -> Profile:
    """The profile with `left` set: whether its plans count what stays of a skipped step, or what its forecast missed.

    With a sampler that replays, it is the one by which a probed window inside the run does more nearly what its steps
    do one by one.
    """
    by = {left: replace(profile, left=left) for left in ((True, False) if profile.replayed else (False,))}
    return min(by.values(), key=lambda one: abs(math.log(window_factors(one)[0])))


def step_weights(
    profile: Profile, forecast: Forecast, levels: Sequence[NoiseLevel], shares: Shares = MappingProxyType({})
) -> list[float]:
    """Change of the clip per relative error at each step; inf where the step cannot be skipped.

    Args:
        profile: What calibration measured.
        forecast: How skipped steps are filled.
        levels: Noise levels of the steps, and the one after the last.
        shares: How much each prompt counts.
    """
    curve, weights = impact_curve(profile, shares), []
    for level, following in zip(levels, levels[1:]):
        fits = covers(profile, level) and is_skippable(forecast, profile.fingerprint.prediction, level)
        width = abs(level.sigma - following.sigma)
        weights.append(_between(curve, level.sigma) * width if fits else math.inf)
    return weights


def levels_of(profile: Profile, steps: int) -> list[NoiseLevel]:
    """Levels of a run of `steps` steps, and the one after the last, interpolated between those of the profile."""
    known = profile.levels
    if steps == profile.steps:
        return known
    found = []
    for step in range(steps + 1):
        place = step * profile.steps / steps
        low = min(int(place), profile.steps - 1)
        share, a, b = place - low, known[low], known[low + 1]
        found.append(NoiseLevel(a.signal + share * (b.signal - a.signal), a.noise + share * (b.noise - a.noise)))
    return found


def _recorded_errors(profile: Profile, shares: Shares) -> dict[str, ForecastErrors]:
    """Errors of the probes' forecast, by prompt; empty where the whole error of a forecast stays."""
    if not profile.left:
        return {}
    counted = [one for one in profile.recordings if shares.get(one.prompt, 1.0) > 0]
    found = {one.prompt: forecast_errors(profile, [one], probed_forecast(one), profile.levels[:-1]) for one in counted}
    return {prompt: errors for prompt, errors in found.items() if errors is not None}


def _left_errors(told: ForecastErrors | None, first: int, errors: Sequence[float]) -> Sequence[float]:
    """What stays of probed steps, skipped in a row from `first` on, after the full step that follows them.

    At the end of a run, and where nothing is recorded, the `errors` of their forecasts stay.
    """
    following = first + len(errors)
    if told is None or following >= len(told.places):
        return errors
    left = [told.left(first - 2, first - 1, following, step) for step in range(first, following)]
    return left if sum(left) > 0 else errors


def _mean(values: Sequence[float], counted: Sequence[float]) -> float:
    return math.fsum(value * share for value, share in zip(values, counted)) / math.fsum(counted)


def _between(curve: Sequence[tuple[float, float]], at: float) -> float:
    """Straight between the points of a curve in logarithms, flat outside."""
    return math.exp(between([(x, math.log(y)) for x, y in curve], at))


def _weights(known: Sequence[float], sigma: float) -> dict[int, float]:
    """How a value at a noise level is put together from those at recorded ones: step -> weight, sum 1."""
    nearest = sorted(range(len(known)), key=lambda step: abs(known[step] - sigma))[:NEAREST]
    if math.isclose(known[nearest[0]], sigma, rel_tol=1e-6, abs_tol=1e-9):
        return {nearest[0]: 1.0}
    return dict(zip(nearest, lagrange_weights([known[step] for step in nearest], sigma)))


def _read_off(triangle: Sequence[float], weights: Sequence[dict[int, float]]) -> list[list[float]]:
    """The lower triangle of products among new levels, from that among recorded ones."""

    size = math.isqrt(2 * len(triangle))
    square = [[triangle[max(i, j) * (max(i, j) + 1) // 2 + min(i, j)] for j in range(size)] for i in range(size)]
    rows = [list(row.items()) for row in weights]
    return [
        [sum([v * w * square[i][j] for i, v in row for j, w in column]) for column in rows[: n + 1]]
        for n, row in enumerate(rows)
    ]


def _places(forecast: Forecast, levels: Sequence[NoiseLevel]) -> list[float]:
    if forecast.axis == "step":
        return [float(step) for step in range(len(levels))]
    return [level.sigma if forecast.axis == "sigma" else level.log_snr for level in levels]
