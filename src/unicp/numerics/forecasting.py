"""Forecasts of a model output from earlier ones, and the other quantities that a forecast may be made of.

All diffusion models here see a noisy sample x = signal * clean + noise * eps, and predict one of several quantities;
each of these is a linear function of the sample and of the model's output, so that one can be forecast for another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unicp.errors import InputError

QuantityKind = Literal["output", "noise", "clean"]
Prediction = Literal["flow", "epsilon", "v_prediction", "sample"]

LOG_SNR_LIMIT = 20.0


@dataclass(frozen=True)
class NoiseLevel:
    """How a sample is mixed: x = signal * clean + noise * eps. Raises InputError unless both are finite, at least 0
    and not both 0. (alpha and sigma in papers; flow matching has signal = 1 - noise.)"""

    signal: float
    noise: float

    def __post_init__(self) -> None:
        numbers = (self.signal, self.noise)
        if not all(math.isfinite(number) and number >= 0 for number in numbers) or sum(numbers) == 0:
            found = f"signal={self.signal!r}, noise={self.noise!r}"
            raise InputError("a noise level", found, "use finite parts of at least 0, not both 0")

    @property
    def sigma(self) -> float:
        """Normalised noise level, noise / (signal + noise): 0 is a clean sample, 1 is noise alone."""
        return self.noise / (self.signal + self.noise)

    @property
    def log_snr(self) -> float:
        """2 ln(signal / noise), the natural logarithm of the ratio of powers, kept within +-20."""
        if self.signal == 0 or self.noise == 0:
            return LOG_SNR_LIMIT if self.noise == 0 else -LOG_SNR_LIMIT
        exact = 2.0 * (math.log(self.signal) - math.log(self.noise))
        return min(LOG_SNR_LIMIT, max(-LOG_SNR_LIMIT, exact))


def extrapolate(points: Sequence[tuple[float, Tensor]], at: float) -> Tensor:
    """The value at abscissa `at` of the straight line through the last two of `points`, (abscissa, tensor) in order.

    Tensors may have any one shape; the abscissa any unit (our reading: noise level, log-SNR or step number), and any
    spacing. One point gives that very tensor, and so do two equal abscissas (the last point). Computed as
    last + w (last - previous) with w = (at - x1) / (x1 - x0), in float32 or better; the result has the dtype of the
    last point. Raises InputError for no points, an abscissa that is not finite, or tensors of different shapes.
    Source: first order of TaylorSeer's forecast (finite differences), generalised to uneven abscissas.
    """
    used = list(points)[-2:]
    if not used:
        raise InputError("a forecast", "no points", "give at least one")
    if not all(math.isfinite(x) for x in (at, *(x for x, _ in used))):
        raise InputError(f"a forecast at {at!r}", f"abscissas {[x for x, _ in used]}", "use finite numbers")
    x1, last = used[-1]
    x0, previous = used[0]
    if previous.shape != last.shape:
        found = f"shapes {tuple(previous.shape)} and {tuple(last.shape)}"
        raise InputError("a forecast", found, "forecast from outputs of one shape")
    weight = (at - x1) / (x1 - x0) if x1 != x0 else 0.0
    # A subnormal distance between two abscissas can overflow: no line can be drawn through such points either.
    if weight == 0.0 or not math.isfinite(weight):
        return last
    wide = _wide(last)
    return (wide + weight * (wide - previous.to(wide.dtype))).to(last.dtype)


def to_quantity(
    kind: QuantityKind, prediction: Prediction, sample: Tensor, output: Tensor, level: NoiseLevel
) -> Tensor:
    """The quantity `kind` that a model output stands for, given the sample the model saw at noise level `level`.

    kind: "output" itself, the "noise" estimate eps or the "clean" estimate x0. prediction: what the model puts out:
    "flow" v = eps - x0, "epsilon" eps, "v_prediction" v = signal * eps - noise * x0 (signal^2 + noise^2 = 1), or
    "sample" x0. sample, output: one shape. Where the output is the quantity it is returned as it is; otherwise the
    result is float32 or better, because turning it back divides by a coefficient that may be small.
    Raises InputError for unknown names, and where the quantity does not exist (for instance x0 of an "epsilon"
    output at signal 0). Source: definitions of flow matching and of Salimans & Ho 2022 (v-prediction).
    """
    of_sample, of_output = _finite_coefficients(kind, prediction, level)
    if (of_sample, of_output) == (0.0, 1.0):
        return output
    return of_sample * _wide(sample) + of_output * _wide(output)


def from_quantity(
    kind: QuantityKind, prediction: Prediction, sample: Tensor, quantity: Tensor, level: NoiseLevel
) -> Tensor:
    """Inverse of `to_quantity`: the model output that stands for `quantity` at this sample and noise level.

    Arguments, dtypes and errors as there (the caller casts to the model's dtype); also raises InputError where the
    output has no part in the quantity ("clean" of "flow" at noise 0). Near there the result is ill-conditioned:
    ask `is_invertible` first.
    """
    of_sample, of_output = _finite_coefficients(kind, prediction, level)
    if (of_sample, of_output) == (0.0, 1.0):
        return quantity
    if of_output == 0.0:
        raise InputError(f"an output from {kind!r}", f"no part of it in {kind!r} at {level}", "use is_invertible first")
    return (_wide(quantity) - of_sample * _wide(sample)) / of_output


def is_invertible(kind: QuantityKind, prediction: Prediction, level: NoiseLevel, floor: float) -> bool:
    """Whether a model output can be had back from the quantity `kind` at `level` without blowing up its error.

    True where the quantity exists and the coefficient of the output in it is at least `floor` in magnitude; an error
    in the quantity then grows at most 1/floor times. Raises InputError for unknown names.
    """
    of_sample, of_output = _coefficients(kind, prediction, level)
    return math.isfinite(of_sample) and math.isfinite(of_output) and abs(of_output) >= floor


def _coefficients(kind: str, prediction: str, level: NoiseLevel) -> tuple[float, float]:
    """(a, b) such that the quantity is a * sample + b * output; infinite where it does not exist."""
    signal, noise = level.signal, level.noise
    total = signal + noise
    table: dict[tuple[str, str], tuple[float, float]] = {
        ("noise", "flow"): (1.0 / total, signal / total),
        ("clean", "flow"): (1.0 / total, -noise / total),
        ("noise", "epsilon"): (0.0, 1.0),
        ("clean", "epsilon"): (_over(1.0, signal), _over(-noise, signal)),
        ("noise", "v_prediction"): (noise, signal),
        ("clean", "v_prediction"): (signal, -noise),
        ("noise", "sample"): (_over(1.0, noise), _over(-signal, noise)),
        ("clean", "sample"): (0.0, 1.0),
    }
    predictions = sorted({known for _, known in table})
    if prediction not in predictions or kind not in ("output", "noise", "clean"):
        names = f"output, noise, clean and {', '.join(predictions)}"
        raise InputError(f"quantity {kind!r} of prediction {prediction!r}", "an unknown name", f"use {names}")
    return (0.0, 1.0) if kind == "output" else table[kind, prediction]


def _finite_coefficients(kind: str, prediction: str, level: NoiseLevel) -> tuple[float, float]:
    pair = _coefficients(kind, prediction, level)
    if not all(math.isfinite(number) for number in pair):
        raise InputError(f"{kind!r} from {prediction!r}", f"not defined at {level}", "use is_invertible first")
    return pair


def _over(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.inf


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
