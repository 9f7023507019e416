"""Forecasts of a model output from earlier ones, and the other quantities that a forecast may be made of.

All diffusion models here see a noisy sample x = signal * clean + noise * eps, and predict one of several quantities;
each of these is a linear function of the sample and of the model's output, so that one can be forecast for another.
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


def extrapolate(points: Sequence[tuple[float, Tensor]], at: float, share: Tensor | None = None) -> Tensor:
    """The value at `at` of the straight line through the last two of `points`, (place, tensor) in order.

    share: (B,), how much of the line's rise each sample of a batch follows, 0 = none (the last point), 1 or None = all.

    Tensors may have any one shape; places any unit (our reading: noise level, log-SNR or step number), and any
    spacing. One point gives that very tensor, and so do two equal places (the last point). Computed as
    last + w (last - previous) with w = (at - x1) / (x1 - x0), in float32 or better; the result has the dtype of the
    last point. Raises InputError for no points, a place that is not finite, or tensors of different shapes.
    Source: first order of TaylorSeer's forecast (finite differences), generalised to uneven places.
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
    # A subnormal distance between two places can overflow: no line can be drawn through such points either.
    if weight == 0.0 or not math.isfinite(weight):
        return last
    wide = _wide(last)
    rise = weight * (wide - previous.to(wide.dtype))
    if share is not None:
        rise = share.to(rise.dtype).reshape(-1, *[1] * (rise.dim() - 1)) * rise
    return (wide + rise).to(last.dtype)


def interpolate(points: Sequence[tuple[float, Tensor]], at: float) -> Tensor:
    """The value at `at` of the polynomial through all `points`, (place, tensor) of one shape.

    Lagrange's form, in float32 or better. Raises InputError for no points, and where two lie at one place or one is
    not a finite number.
    """
    places = [x for x, _ in points]
    if not places or len(set(places)) < len(places) or not all(math.isfinite(x) for x in (at, *places)):
        raise InputError(f"a value at {at!r}", f"places {places}", "use different finite numbers")
    weights = [math.prod((at - x) / (own - x) for x in places if x != own) for own in places]
    return torch.stack([weight * _wide(value) for weight, (_, value) in zip(weights, points)]).sum(dim=0)


@dataclass(frozen=True)
class Rise:
    """How a line's rise compares with what came: sums per sample of a batch, (B,), float32 or better.

    along: of (true - last) * (line - last). size: of (line - last) ** 2. last: the newest of the line's two points.
    """

    along: Tensor
    size: Tensor

    @classmethod
    def of(cls, true: Tensor, line: Tensor, last: Tensor, copies: int = 1) -> Rise:
        """From (B, n) tensors. copies: the batch holds the same samples so many times over, which count as one."""
        rise, came = _wide(line) - _wide(last), _wide(true) - _wide(last)
        sums = (came * rise).sum(dim=1), (rise * rise).sum(dim=1)
        return cls(*(x.reshape(copies, -1).sum(dim=0).repeat(copies) for x in sums))


def copies_in(probe: Tensor) -> int:
    """How many times over a batch, (B, n), holds the same samples: guidance may put its branches into one batch."""
    rows = len(probe)
    for single in range(1, rows):
        if rows % single == 0 and torch.equal(probe[single:], probe[:-single]):
            return rows // single
    return 1


def share_of_rise(rises: Sequence[Rise]) -> Tensor:
    """The share of the rise that came true, of all `rises` together: (B,), from 0 to 1.

    The least-squares factor on the line's rise. Damped trends (Gardner & McKenzie 1985) have a chosen one, this is
    measured (ours). 1 where nothing rises, and where a sum is not a number. Raises InputError for no rises.
    """
    if not rises:
        raise InputError("the share of a rise", "no rises", "give at least one")
    along = torch.stack([rise.along for rise in rises]).sum(dim=0)
    size = torch.stack([rise.size for rise in rises]).sum(dim=0)
    return torch.nan_to_num(along / size, nan=1.0, posinf=1.0, neginf=1.0).clamp(0.0, 1.0)


def to_quantity(
    kind: QuantityKind, prediction: Prediction, sample: Tensor, output: Tensor, level: NoiseLevel
) -> Tensor:
    """The quantity `kind` that a model output stands for, given the sample the model saw at noise level `level`.

    kind: "output" itself, the "noise" estimate eps or the "clean" estimate x0. prediction: what the model puts out:
    "flow" v = eps - x0, "turned_flow" x0 - eps, "epsilon" eps, "v_prediction" v = signal * eps - noise * x0 (signal^2 +
    noise^2 = 1), or "sample" x0. sample, output: one shape. Where the output is the quantity it is returned as it is;
    otherwise the result is float32 or better, because turning it back divides by a coefficient that may be small.
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


def output_at(prediction: Prediction, sample: Tensor, output: Tensor, moved: Tensor, level: NoiseLevel) -> Tensor:
    """What the model would have put out for the sample `moved` instead of `sample`, about, at the same noise level.

    The noise estimate follows the sample as if clean samples were a standard normal, which is what latents are scaled
    to: by noise / (signal^2 + noise^2) of the move. (Ours. Between an estimate that stays and a clean one that does.)
    Shapes and errors as `to_quantity`.
    """
    share = level.noise / (level.signal**2 + level.noise**2)
    noise = to_quantity("noise", prediction, sample, output, level) + share * (_wide(moved) - _wide(sample))
    return from_quantity("noise", prediction, moved, noise, level).to(output.dtype)


def _finite_coefficients(kind: str, prediction: str, level: NoiseLevel) -> tuple[float, float]:
    pair = coefficients(kind, prediction, level)
    if not all(math.isfinite(number) for number in pair):
        raise InputError(f"{kind!r} from {prediction!r}", f"not defined at {level}", "use is_invertible first")
    return pair


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
