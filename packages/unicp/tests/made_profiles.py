"""A profile of a model that never was, in which every error is known in closed form."""

from __future__ import annotations

from unicp.numerics.noise_levels import NoiseLevel
from unicp.planning.profile import FewerSteps, Fingerprint, OnlineTrial, Probe, Profile, Recording, Seconds, Trial

STEPS = 16
CURVATURE = 0.02


def flow_levels(steps: int = STEPS, shift: float = 3.0) -> list[NoiseLevel]:
    """Levels of a flow-matching run of Wan's kind, and the one after the last."""
    even = [1 - (step + 0.02) / (steps + 0.02) for step in range(steps)]
    sigmas = [shift * x / (1 + (shift - 1) * x) for x in even] + [0.0]
    return [NoiseLevel(1 - sigma, sigma) for sigma in sigmas]


def noise_at(level: NoiseLevel, curvature: float = CURVATURE) -> tuple[float, float, float]:
    """The noise estimate of the model, of three positions: a parabola over the log-SNR."""
    return 1.0, 0.1 * level.log_snr, curvature * level.log_snr**2


def recording(prompt: str, levels: list[NoiseLevel], curvature: float = CURVATURE) -> Recording:
    rows = [noise_at(level, curvature) for level in levels]
    products = [sum(a * b for a, b in zip(rows[i], rows[j])) / 3 for i in range(len(rows)) for j in range(i + 1)]
    return Recording(prompt, [1.0] * len(levels), {"noise": products})


def made(
    steps: int = STEPS,
    branches: int = 2,
    trials: list[Trial] | None = None,
    fewer: list[FewerSteps] | None = None,
    seconds: Seconds | None = None,
    online: list[OnlineTrial] | None = None,
    **fingerprint: object,
) -> Profile:
    """A profile of two prompts, the second with twice the curvature; impact 0.5 per unit of noise level.

    Its trials came out 2 dB and -2 dB around what was predicted.
    """
    levels = flow_levels(steps)
    own = {"model": "Made", "config": "0", "dtype": "float32", "prediction": "flow", "scheduler": "MadeScheduler"}
    sigmas = [level.sigma for level in levels]
    probes = [
        Probe(prompt, step, 0.1, 0.05, psnr=_psnr(0.1 * 0.5 * (sigmas[step] - sigmas[step + 1])))
        for prompt in ("a", "b")
        for step in (4, min(8, steps - 2), steps - 1)
    ]
    if trials is None:
        trials = [
            Trial(prompt, 8, 8, steps - 8, change, change, _psnr(change) + off)
            for prompt, off in (("a", 2.0), ("b", -2.0))
            for change in (0.1, 0.03, 0.01, 0.003)
        ]
    return Profile(
        Fingerprint(**{**own, "branches": branches, **fingerprint}),  # type: ignore[arg-type]
        "cpu",
        [1, 4, 2, 4, 4],
        [level.signal for level in levels],
        [level.noise for level in levels],
        2.0,
        seconds or Seconds(1.0, 0.05, 0.5),
        [recording("a", levels[:-1]), recording("b", levels[:-1], 2 * CURVATURE)],
        probes,
        [],
        trials,
        online or [],
        fewer or [],
    )


def _psnr(change: float) -> float:
    import math

    return -20 * math.log10(change)
