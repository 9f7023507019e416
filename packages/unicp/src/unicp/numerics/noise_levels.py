"""Noise levels, and how each quantity depends on the model's output at one. Floats only, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from unicp.errors import InputError

QuantityKind = Literal["output", "noise", "clean"]
Prediction = Literal["flow", "turned_flow", "epsilon", "v_prediction", "sample"]

LOG_SNR_LIMIT = 20.0
# Turning a quantity back into an output may make its error at most 1 / SKIP_FLOOR times larger.
SKIP_FLOOR = 0.045


@dataclass(frozen=True)
class NoiseLevel:
    """How a sample is mixed: x = signal * clean + noise * eps. Flow matching has signal = 1 - noise.

    Attributes:
        signal: Often called alpha.
        noise: Often called sigma.

    Raises:
        InputError: A part is negative or not finite, or both are 0.
    """

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
    def angle(self) -> float:
        """Angle between signal and noise, from 0 (a clean sample) to 1 (noise alone)."""
        return 2.0 / math.pi * math.atan2(self.noise, self.signal)

    @property
    def log_snr(self) -> float:
        """2 ln(signal / noise), the natural logarithm of the ratio of powers, limited to +-20."""
        if self.signal == 0 or self.noise == 0:
            return LOG_SNR_LIMIT if self.noise == 0 else -LOG_SNR_LIMIT
        exact = 2.0 * (math.log(self.signal) - math.log(self.noise))
        return min(LOG_SNR_LIMIT, max(-LOG_SNR_LIMIT, exact))


def is_invertible(kind: QuantityKind, prediction: Prediction, level: NoiseLevel, floor: float) -> bool:
    """Whether the quantity `kind` can be turned back into an output with at most 1/floor times its error.

    Raises:
        InputError: A name is unknown.
    """
    of_sample, of_output = coefficients(kind, prediction, level)
    return math.isfinite(of_sample) and math.isfinite(of_output) and abs(of_output) >= floor


def coefficients(kind: str, prediction: str, level: NoiseLevel) -> tuple[float, float]:
    """(a, b) such that the quantity is a * sample + b * output; infinite where it does not exist.

    Source: as `unicp.numerics.forecasting.to_quantity`.

    Raises:
        InputError: A name is unknown.
    """
    signal, noise = level.signal, level.noise
    total = signal + noise
    table: dict[tuple[str, str], tuple[float, float]] = {
        ("noise", "flow"): (1.0 / total, signal / total),
        ("clean", "flow"): (1.0 / total, -noise / total),
        ("noise", "turned_flow"): (1.0 / total, -signal / total),
        ("clean", "turned_flow"): (1.0 / total, noise / total),
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


def estimate_parts(prediction: str, level: NoiseLevel) -> tuple[float, float]:
    """(a, b) such that a model's output is a * noise estimate + b * clean estimate.

    Source: as `unicp.numerics.forecasting.to_quantity`.

    Raises:
        InputError: The name is unknown.
    """
    parts: dict[str, tuple[float, float]] = {
        "flow": (1.0, -1.0),
        "turned_flow": (-1.0, 1.0),
        "epsilon": (1.0, 0.0),
        "v_prediction": (level.signal, -level.noise),
        "sample": (0.0, 1.0),
    }
    if prediction not in parts:
        raise InputError(f"a prediction {prediction!r}", "an unknown name", f"use {', '.join(sorted(parts))}")
    return parts[prediction]


def _over(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.inf
