"""Forecasts of model outputs from earlier ones, and the quantities that can be forecast.

A diffusion model sees a noisy sample x = signal * clean + noise * eps and predicts one of several quantities. Each is a
linear function of the sample and of the model's output, so one can be turned into another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unicp.errors import InputError
from unicp.numerics.noise_levels import LOG_SNR_LIMIT as LOG_SNR_LIMIT
from unicp.numerics.noise_levels import NoiseLevel as NoiseLevel
from unicp.numerics.noise_levels import Prediction as Prediction
from unicp.numerics.noise_levels import QuantityKind as QuantityKind
from unicp.numerics.noise_levels import coefficients
from unicp.numerics.noise_levels import is_invertible as is_invertible
from unicp.numerics.polynomials import lagrange_weights


def extrapolate(points: Sequence[tuple[float, Tensor]], at: float, share: Tensor | None = None) -> Tensor:
    """The straight line through the last two points: last + w (last - previous), w = (at - x1) / (x1 - x0).

    Source: first order of TaylorSeer's forecast (finite differences), generalised to uneven places.

    Args:
        points: (place, tensor) in order; tensors of one shape, places in any one unit and spacing.
        at: Place of the forecast.
        share: (B,), how much of the line's rise each sample follows: 0 = none, 1 or `None` = all.

    Returns:
        In the dtype of the last point, computed in float32 or better. The last tensor itself if there is one point, or
        if both places are equal.

    Raises:
        InputError: There are no points, a place is not finite, or shapes differ.
    """
    used = list(points)[-2:]
    if not used:
        raise InputError("a forecast", "no points", "give at least one")
    if not all(math.isfinite(x) for x in (at, *(x for x, _ in used))):
        raise InputError(f"a forecast at {at!r}", f"places {[x for x, _ in used]}", "use finite numbers")
    x1, last = used[-1]
    x0, previous = used[0]
    if previous.shape != last.shape:
        found = f"shapes {tuple(previous.shape)} and {tuple(last.shape)}"
        raise InputError("a forecast", found, "forecast from outputs of one shape")
    weight = (at - x1) / (x1 - x0) if x1 != x0 else 0.0
    # A subnormal distance between two places can overflow.
    if weight == 0.0 or not math.isfinite(weight):
        return last
    wide = _wide(last)
    rise = weight * (wide - previous.to(wide.dtype))
    if share is not None:
        rise = share.to(rise.dtype).reshape(-1, *[1] * (rise.dim() - 1)) * rise
    return (wide + rise).to(last.dtype)


def interpolate(points: Sequence[tuple[float, Tensor]], at: float) -> Tensor:
    """The value at `at` of the polynomial through all points, by Lagrange's form.

    Args:
        points: (place, tensor); tensors of one shape, all places different.
        at: Place of the value.

    Returns:
        In float32 or better.

    Raises:
        InputError: There are no points, two are at one place, or a place is not finite.
    """
    places = [x for x, _ in points]
    if not places or len(set(places)) < len(places) or not all(math.isfinite(x) for x in (at, *places)):
        raise InputError(f"a value at {at!r}", f"places {places}", "use different finite numbers")
    weights = lagrange_weights(places, at)
    return torch.stack([weight * _wide(value) for weight, (_, value) in zip(weights, points)]).sum(dim=0)


@dataclass(frozen=True)
class Rise:
    """How a line's rise compares with the true one: sums per sample, (B,), float32 or better.

    Attributes:
        along: Of (true - last) * (line - last), with `last` the newer of the line's two points.
        size: Of (line - last) ** 2.
    """

    along: Tensor
    size: Tensor

    @classmethod
    def of(cls, true: Tensor, line: Tensor, last: Tensor, copies: int = 1) -> Rise:
        """From (B, n) tensors. copies: how many times the batch holds the same samples, which then count as one."""
        rise, true_rise = _wide(line) - _wide(last), _wide(true) - _wide(last)
        sums = (true_rise * rise).sum(dim=1), (rise * rise).sum(dim=1)
        return cls(*(x.reshape(copies, -1).sum(dim=0).repeat(copies) for x in sums))


def copies_in(probe: Tensor) -> int:
    """How many times a batch, (B, n), holds the same samples: guidance may put its branches into one batch."""
    rows = len(probe)
    for single in range(1, rows):
        if rows % single == 0 and torch.equal(probe[single:], probe[:-single]):
            return rows // single
    return 1


def share_of_rise(rises: Sequence[Rise]) -> Tensor:
    """The damping factor: the share of the rise that came true, of all `rises` together, by least squares.

    Source: damped trends (Gardner & McKenzie 1985) have a chosen factor; this one is measured (ours).

    Returns:
        (B,), from 0 to 1; 1 where nothing rises or a sum is not a number.

    Raises:
        InputError: There are no rises.
    """
    if not rises:
        raise InputError("the share of a rise", "no rises", "give at least one")
    along = torch.stack([rise.along for rise in rises]).sum(dim=0)
    size = torch.stack([rise.size for rise in rises]).sum(dim=0)
    return torch.nan_to_num(along / size, nan=1.0, posinf=1.0, neginf=1.0).clamp(0.0, 1.0)


def to_quantity(
    kind: QuantityKind, prediction: Prediction, sample: Tensor, output: Tensor, level: NoiseLevel
) -> Tensor:
    """Turns a model output into the quantity `kind`.

    Source: definitions of flow matching and of Salimans & Ho 2022 (v-prediction).

    Args:
        kind: "output", the "noise" estimate eps, or the "clean" estimate x0.
        prediction: What the model's output is: "flow" eps - x0, "turned_flow" x0 - eps, "epsilon" eps, "v_prediction"
            signal * eps - noise * x0 (signal^2 + noise^2 = 1), or "sample" x0.
        sample: That the model saw.
        output: Of the model, in the shape of the sample.
        level: Noise level of the sample.

    Returns:
        The output itself if it is the quantity; otherwise float32 or better.

    Raises:
        InputError: A name is unknown, or the quantity does not exist (such as x0 of an "epsilon" output at signal 0).
    """
    of_sample, of_output = _finite_coefficients(kind, prediction, level)
    if (of_sample, of_output) == (0.0, 1.0):
        return output
    return of_sample * _wide(sample) + of_output * _wide(output)


def from_quantity(
    kind: QuantityKind, prediction: Prediction, sample: Tensor, quantity: Tensor, level: NoiseLevel
) -> Tensor:
    """Inverse of `to_quantity`: turns `quantity` into the model's output, in float32 or better.

    The result is ill-conditioned where the output has little part in the quantity; ask `is_invertible` first.

    Raises:
        InputError: As `to_quantity`, or the output has no part in the quantity ("clean" of "flow" at noise 0).
    """
    of_sample, of_output = _finite_coefficients(kind, prediction, level)
    if (of_sample, of_output) == (0.0, 1.0):
        return quantity
    if of_output == 0.0:
        raise InputError(f"an output from {kind!r}", f"no part of it in {kind!r} at {level}", "use is_invertible first")
    return (_wide(quantity) - of_sample * _wide(sample)) / of_output


def _finite_coefficients(kind: str, prediction: str, level: NoiseLevel) -> tuple[float, float]:
    pair = coefficients(kind, prediction, level)
    if not all(math.isfinite(number) for number in pair):
        raise InputError(f"{kind!r} from {prediction!r}", f"not defined at {level}", "use is_invertible first")
    return pair


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
