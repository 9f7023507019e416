"""How a scheduler's timesteps map to noise levels. Duck-typed: any object built like a diffusers scheduler."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from unicp.models.family_form import Family
from unicp.numerics.forecasting import NoiseLevel, Prediction

# "rising": flow matching whose sigmas rise from 0 at pure noise to 1, and whose timesteps rise with them.
_Kind = Literal["flow", "rising", "sigmas", "scaled", "alphas"]
# They hold clean + sigma·gaussian and scale it to unit variance for the model, which sees a variance-preserving sample.
_SCALING = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")

_TURNED: dict[Prediction, Prediction] = {"flow": "turned_flow", "turned_flow": "flow"}
_TOLERANCE = 1e-4


class _Numbers:
    """Reads one tensor attribute of an object as Python floats, and again only when the tensor has changed."""

    def __init__(self, owner: Any, name: str):
        self._owner, self._name = owner, name
        self._source: Any = None
        self._version: int | None = None
        self._values: tuple[float, ...] = ()

    def read(self) -> tuple[float, ...]:
        source = getattr(self._owner, self._name, None)
        version = _version(source)
        # Compared itself, not by id(), which a new tensor can get again.
        if source is not self._source or version != self._version:
            self._source, self._version, self._values = source, version, _floats(source)
        return self._values


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The noise levels of a scheduler, read at each call: `set_timesteps` may be called between any two.

    Timesteps are those of the model, counted so that they fall along a run. A timestep that was rounded to half
    precision (HunyuanVideo) or cut to a whole number (Helios) is still recognised. Where two steps look alike,
    `scheduler.step_index` decides.

    Attributes:
        prediction: What the model's output is, as in `unicp.numerics.forecasting.to_quantity`.
        sampler_prediction: What `scheduler.step` is given; differs if a pipeline turns the output's sign in between.
    """

    prediction: Prediction
    sampler_prediction: Prediction
    _kind: _Kind = field(repr=False)
    _scheduler: Any = field(repr=False)
    _timesteps: _Numbers = field(repr=False)
    _sigmas: _Numbers = field(repr=False)
    _alphas: _Numbers = field(repr=False)

    @property
    def steps(self) -> int | None:
        """Number of timesteps that the scheduler is set to; `None` before `set_timesteps`."""
        if getattr(self._scheduler, "num_inference_steps", None) is None:
            return None
        return len(self._timesteps.read()) or None

    def levels(self) -> tuple[NoiseLevel, ...] | None:
        """Noise levels of the run's steps, and the one after the last; `None` if one is unknown."""
        timesteps = [self._counted(timestep) for timestep in self._timesteps.read()]
        found = [self.level(timestep) for timestep in timesteps]
        last = self.next_level(timesteps[-1]) if timesteps else None
        known = [level for level in (*found, last) if level is not None]
        return tuple(known) if timesteps and len(known) == len(timesteps) + 1 else None

    def step_index(self, timestep: float) -> int | None:
        """Index of a timestep in the run, from 0; `None` if it is not in it, is ambiguous, or no run is set."""
        matches = self.step_indices(timestep)
        return matches[0] if len(matches) == 1 else None

    def level(self, timestep: float) -> NoiseLevel | None:
        """Noise level of the sample that the model gets with this timestep; `None` = unknown."""
        if self._kind == "scaled" and not getattr(self._scheduler, "is_scale_input_called", False):
            return None
        if self._kind != "alphas":
            matches = self.step_indices(timestep)
            if matches:
                return self._level_at(matches[0])
        return None if self._kind in ("flow", "rising") else self._level_of_training_step(timestep)

    def next_level(self, timestep: float) -> NoiseLevel | None:
        """Noise level after the step at this timestep; `None` if the timestep has no `step_index`."""
        index = self.step_index(timestep)
        if index is None:
            return None
        if self._kind != "alphas":
            return self._level_at(index + 1)
        timesteps = self._timesteps.read()
        if index + 1 < len(timesteps):
            return self._level_of_training_step(timesteps[index + 1])
        return _last_level(self._scheduler)

    def _level_at(self, index: int) -> NoiseLevel | None:
        """Level from the scheduler's sigmas, of which there is one more than timesteps."""
        sigmas = self._sigmas.read()
        if index >= len(sigmas):
            return None
        sigma = sigmas[index]
        if self._kind == "rising":
            return NoiseLevel(signal=sigma, noise=max(1.0 - sigma, 0.0))
        if self._kind == "flow":
            return NoiseLevel(signal=max(1.0 - sigma, 0.0), noise=sigma)
        if math.isinf(sigma):
            return NoiseLevel(signal=0.0, noise=1.0)
        signal = 1.0 / math.sqrt(sigma * sigma + 1.0)
        return NoiseLevel(signal=signal, noise=sigma * signal)

    def _level_of_training_step(self, timestep: float) -> NoiseLevel | None:
        alphas = self._alphas.read()
        if not math.isfinite(timestep) or not 0 <= round(timestep) < len(alphas):
            return None
        return _level_of_alpha(alphas[round(timestep)])

    def _counted(self, timestep: float) -> float:
        """Converts between the scheduler's timesteps and those that fall."""
        if self._kind != "rising":
            return float(timestep)
        return float(_setting(self._scheduler, "num_train_timesteps") or 1000) - float(timestep)

    def step_indices(self, timestep: float) -> tuple[int, ...]:
        """Indices at which the run may have this timestep; one, if the scheduler's own index is among them."""
        if self.steps is None:
            return ()
        timesteps, timestep = self._timesteps.read(), self._counted(timestep)
        exact = tuple(index for index, value in enumerate(timesteps) if value == timestep)
        if not exact:
            close = (math.isclose(value, timestep, rel_tol=_TOLERANCE) for value in timesteps)
            exact = tuple(index for index, is_close in enumerate(close) if is_close)
        rounded = _by_rounded_value(timesteps).get(timestep, ())
        current = getattr(self._scheduler, "step_index", None)
        if current in exact or current in rounded:
            return (current,)
        return exact or rounded


def read_schedule(scheduler: Any) -> NoiseSchedule | None:
    """Reads how a scheduler maps timesteps to noise.

    It knows flow matching (sigmas from 1 to 0: FlowMatchEuler, FlowMatchHeun, and UniPC, DPM-Solver++, … with flow
    sigmas; from 0 to 1: Mochi), variance-preserving schedulers (DDPM, DDIM, CogVideoX's DDIM and DPM, PNDM, UniPC,
    DPM-Solver++, …), and Euler and Euler ancestral where the loop calls `scale_model_input`.

    Returns:
        `None` for other schedulers, such as those that scale the model's input (Heun, EDM, LMS, …).
    """
    prediction = _setting(scheduler, "prediction_type")
    kind = _kind(scheduler, prediction)
    if kind == "flow" and prediction in (None, "flow_prediction"):
        prediction = "flow"
    if kind == "rising":
        prediction = "turned_flow" if prediction in (None, "flow_prediction") else None
    if kind is None or prediction not in get_args(Prediction):
        return None
    timesteps, sigmas, alphas = (_Numbers(scheduler, name) for name in ("timesteps", "sigmas", "alphas_cumprod"))
    known = cast(Prediction, prediction)
    return NoiseSchedule(known, known, kind, scheduler, timesteps, sigmas, alphas)


def schedule_of(family: Family, scheduler: Any) -> NoiseSchedule | None:
    """The schedule of a model of this family under this scheduler; `None` if noise levels are unknown."""
    schedule = None if family.noise_refusal else read_schedule(scheduler)
    if schedule is None or not family.output_turned:
        return schedule
    turned = _TURNED.get(schedule.prediction)
    return None if turned is None else replace(schedule, prediction=turned)


def _kind(scheduler: Any, prediction: Any) -> _Kind | None:
    has_sigmas = getattr(scheduler, "sigmas", None) is not None
    flow_matching = any("FlowMatch" in ancestor.__name__ for ancestor in type(scheduler).__mro__)
    if flow_matching or _setting(scheduler, "use_flow_sigmas"):
        known: _Kind = "rising" if _setting(scheduler, "invert_sigmas") else "flow"
        return known if has_sigmas else None
    if prediction == "flow_prediction" or getattr(scheduler, "alphas_cumprod", None) is None:
        return None
    if not has_sigmas:
        return "alphas"
    if any(ancestor.__name__ in _SCALING for ancestor in type(scheduler).__mro__):
        return "scaled"
    # Of the schedulers with both, those that solve in log-SNR keep the sample variance-preserving; the others hold
    # clean + sigma·gaussian and scale it for the model.
    return "sigmas" if hasattr(scheduler, "lambda_t") else None


def _setting(scheduler: Any, name: str) -> Any:
    config = getattr(scheduler, "config", None)
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def _last_level(scheduler: Any) -> NoiseLevel | None:
    """The level after the last step of a scheduler without sigmas."""
    for name in ("final_alpha_cumprod", "one"):
        alpha = getattr(scheduler, name, None)
        if alpha is not None:
            return _level_of_alpha(float(alpha))
    return None


def _level_of_alpha(alpha: float) -> NoiseLevel:
    return NoiseLevel(signal=math.sqrt(max(alpha, 0.0)), noise=math.sqrt(max(1.0 - alpha, 0.0)))


@lru_cache(maxsize=8)
def _by_rounded_value(timesteps: tuple[float, ...]) -> dict[float, tuple[int, ...]]:
    """Indices of timesteps by their value rounded to float16 or bfloat16, or cut to a whole number."""
    roundings = [torch.tensor(timesteps).to(dtype).tolist() for dtype in (torch.float16, torch.bfloat16)]
    whole = [float(math.trunc(value)) for value in timesteps if math.isfinite(value)]
    if len(set(whole)) == len(timesteps):
        # If steps look alike once cut, as those between 0 and 1, nobody cuts them.
        roundings.append(whole)
    indices: dict[float, tuple[int, ...]] = {}
    for rounding in roundings:
        for index, value in enumerate(rounding):
            if index not in indices.get(value, ()):
                indices[value] = (*indices.get(value, ()), index)
    return indices


def _version(source: Any) -> int | None:
    # Tensors made in inference mode have no counter; schedulers replace them rather than write into them.
    return source._version if isinstance(source, Tensor) and not source.is_inference() else None


def _floats(source: Any) -> tuple[float, ...]:
    if source is None:
        return ()
    return tuple(float(value) for value in (source.tolist() if hasattr(source, "tolist") else source))
