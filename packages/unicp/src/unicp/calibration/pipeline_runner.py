"""Runs a pipeline for a calibration, and keeps the clip, its final latent and the seconds."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unicp.calibration.call_recorder import CallRecorder
from unicp.errors import InputError
from unicp.models.finder import ModelMap, map_model, transformers_of
from unicp.models.noise import NoiseSchedule, read_schedule
from unicp.numerics.noise_levels import NoiseLevel
from unicp.sampler.scheduler_state import can_repeat


@dataclass
class Outcome:
    """The result of one run.

    Attributes:
        frames: Of the clip, (frames, height, width, 3) in [0, 1].
        latent: The final one, batch first.
        seconds: Wall time of the whole call.
    """

    frames: Tensor
    latent: Tensor
    seconds: float


class PipelineRunner:
    """A pipeline with the arguments that it is called with.

    Args:
        pipe: The pipeline.
        arguments: Of every call, without prompt, steps and generator.
        steps: Length of a whole run.

    Raises:
        InputError: The pipeline cannot be calibrated.
    """

    def __init__(self, pipe: Any, arguments: Mapping[str, Any], steps: int):
        self.pipe, self.arguments, self.steps = pipe, dict(arguments), steps
        parameters = inspect.signature(type(pipe).__call__).parameters
        if "callback_on_step_end" not in parameters:
            raise _refusal(f"a {type(pipe).__name__} without callback_on_step_end", "use a newer pipeline")
        modules = transformers_of(pipe)
        if len(modules) > 1:
            raise _refusal(f"{len(modules)} transformers in one pipeline", "use a preset: profiles are of one")
        self.map: ModelMap = map_model(next(iter(modules.values())))
        if self.map.family.profile_refusal:
            raise _refusal(self.map.family.profile_refusal, "use a preset")
        schedule = read_schedule(pipe.scheduler)
        if schedule is None:
            found = f"a {type(pipe.scheduler).__name__}, which does not tell noise levels"
            raise _refusal(found, "use another scheduler or a preset")
        self.schedule: NoiseSchedule = schedule

    @property
    def transformer(self) -> Any:
        """The one transformer."""
        return self.map.transformer

    @property
    def replays(self) -> bool:
        """Whether the sampler replays skipped steps."""
        return can_repeat(self.pipe.scheduler)

    @property
    def sample_name(self) -> str:
        """The argument of the transformer's call that is the sample."""
        return self.map.family.sample_argument

    def levels(self) -> tuple[NoiseLevel, ...]:
        """Noise levels of the last run's steps, and the one after the last.

        Raises:
            InputError: They are not known.
        """
        levels = self.schedule.levels()
        if levels is None or len(levels) != self.steps + 1:
            raise _refusal("a run whose noise levels the scheduler does not tell", "use another scheduler")
        return levels

    def run(self, prompt: str, seed: int, steps: int | None = None) -> Outcome:
        """Calls the pipeline once. steps: `None` = those of a whole run."""
        last: dict[str, Tensor] = {}

        def keep(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            last["latent"] = values["latents"]
            return values

        arguments = {**self.arguments, "num_inference_steps": steps or self.steps, "callback_on_step_end": keep}
        generator = torch.Generator("cpu").manual_seed(seed)
        begin = time.perf_counter()
        with torch.no_grad():
            output = self.pipe(prompt=prompt, generator=generator, output_type="np", **arguments)
        seconds = time.perf_counter() - begin
        frames = torch.as_tensor(output.frames[0] if hasattr(output, "frames") else output.images).float()
        return Outcome(frames, last["latent"].detach().float().clone(), seconds)


@dataclass
class Reference:
    """The plain run of one prompt, with the recorder that plays its first steps again."""

    prompt: str
    seed: int
    outcome: Outcome
    recorder: CallRecorder


def _refusal(found: str, do: str) -> InputError:
    return InputError("to calibrate this pipeline", found, do)
