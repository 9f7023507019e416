"""What a calibration runs: a pipeline with its arguments, or a loop of the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unicp.errors import InputError, SettingsError
from unicp.models.finder import ModelMap, map_model, transformers_of
from unicp.models.noise import NoiseSchedule, schedule_of

# Takes a prompt and a seed and gives a clip, a tensor or an array in [0, 1].
Generate = Callable[[str, int], Any]


@dataclass(frozen=True)
class ClipMaker:
    """Makes clips, and knows the model and the scheduler that do it.

    Attributes:
        generate: Makes a clip.
        target: What UniCP is enabled on: the pipeline or the transformer.
        map: Of the transformer.
        scheduler: Of the loop.
        schedule: Its noise levels.
        about: What tells one calibration from another.
    """

    generate: Generate
    target: Any
    map: ModelMap
    scheduler: Any
    schedule: NoiseSchedule
    about: Mapping[str, str]

    @property
    def transformer(self) -> Any:
        """The one transformer."""
        return self.map.transformer

    def clip(self, prompt: str, seed: int) -> Tensor:
        """Makes a clip, values in [0, 1].

        Raises:
            InputError: What came back is no clip.
        """
        with torch.no_grad():
            made = self.generate(prompt, seed)
        try:
            clip = torch.as_tensor(made).float()
        except (TypeError, ValueError, RuntimeError) as error:
            found = f"a {type(made).__name__} from generate({prompt!r:.40}, {seed})"
            raise InputError("to calibrate", found, "return a tensor or an array with values in [0, 1]") from error
        if not clip.numel() or not bool(torch.isfinite(clip).all()):
            raise InputError("to calibrate", "a clip without values, or not of finite ones", "look at the plain clip")
        return clip


def of_pipeline(pipe: Any, steps: int, arguments: Mapping[str, Any]) -> ClipMaker:
    """Clips of a pipeline, called with these arguments besides prompt, steps and generator.

    Raises:
        InputError: The pipeline cannot be calibrated.
    """
    parameters = inspect.signature(type(pipe).__call__).parameters
    missing = [name for name in ("prompt", "num_inference_steps", "generator") if name not in parameters]
    if missing:
        found = f"a {type(pipe).__name__} that takes no {', '.join(missing)}"
        raise _refusal(found, "give a function that makes a clip, with transformer=… and scheduler=…")
    given = dict(arguments)
    if "output_type" in parameters:
        given["output_type"] = "np"

    def generate(prompt: str, seed: int) -> Any:
        generator = torch.Generator("cpu").manual_seed(seed)
        output = pipe(prompt=prompt, num_inference_steps=steps, generator=generator, **given)
        names = ("frames", "images", "audios")
        made = next((getattr(output, name) for name in names if hasattr(output, name)), output)
        # Sounds are in [-1, 1], of which half has the errors of [0, 1].
        return made[0] / 2 if hasattr(output, "audios") else made[0]

    about = {name: str(value) for name, value in sorted(arguments.items())} | {"steps": str(steps)}
    return _made(generate, pipe, pipe, pipe.scheduler, about)


def of_function(generate: Generate, transformer: Any, scheduler: Any) -> ClipMaker:
    """Clips of a loop of the user's own.

    Args:
        generate: Makes a clip of a prompt and a seed.
        transformer: That it calls.
        scheduler: The very object that it steps.

    Raises:
        InputError: They cannot be calibrated.
        SettingsError: One is missing.
    """
    if transformer is None or scheduler is None:
        found = "no transformer" if transformer is None else "no scheduler"
        raise SettingsError("to calibrate a function", found, "give transformer=… and scheduler=…, which it uses")
    about = {"function": getattr(generate, "__qualname__", type(generate).__name__)}
    return _made(generate, transformer, transformer, scheduler, about)


def _made(generate: Generate, target: Any, model: Any, scheduler: Any, about: Mapping[str, str]) -> ClipMaker:
    modules = transformers_of(model)
    if len(modules) > 1:
        raise _refusal(f"{len(modules)} transformers in one pipeline", "use a preset: profiles are of one")
    found = map_model(next(iter(modules.values())))
    if found.family.profile_refusal:
        raise _refusal(found.family.profile_refusal, "use a preset")
    schedule = schedule_of(found.family, scheduler)
    if schedule is None:
        named = f"a {type(scheduler).__name__}, which does not tell noise levels"
        raise _refusal(named, "use another scheduler or a preset")
    return ClipMaker(generate, target, found, scheduler, schedule, about)


def _refusal(found: str, do: str) -> InputError:
    return InputError("to calibrate this pipeline", found, do)
