"""Loads diffusers pipelines from a folder or the hub. No other module imports diffusers to load something."""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from unicp.cli.plugins import TESTBEDS, entry_points
from unicp.errors import FileFormatError, InputError, UnsupportedModelError
from unicp.files import MOST_STEPS, MisfitError, Positive, Within, read_as, read_json

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from torch import nn

DEFAULTS_FILE = "unicp_defaults.json"
SAMPLERS = ("default", "euler", "unipc", "dpm")

_INDEX = "model_index.json"
_DTYPES = ("float32", "bfloat16", "float16")
_TRANSFORMERS = ("transformer", "transformer_2")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PASS_A_PIPELINE = "pass the folder that save_pretrained made of a video pipeline"


@dataclass(frozen=True)
class Defaults:
    """Arguments for the pipeline that a model folder may give in `unicp_defaults.json`; the last two are of few."""

    height: Annotated[int, Within(1, 65_536)] = 1
    width: Annotated[int, Within(1, 65_536)] = 1
    num_frames: Annotated[int, Within(1, 100_000)] = 1
    guidance_scale: Annotated[float, Within(0, 1e6)] = 0.0
    num_inference_steps: Annotated[int, Within(1, MOST_STEPS)] = 1
    max_sequence_length: Annotated[int, Within(1, 1_000_000)] = 1
    fps: Positive = 1.0
    audio_end_in_s: Positive = 1.0
    prompt_template: dict[str, str | int] | None = None


@dataclass(frozen=True, eq=False)
class Outline:
    """A pipeline without its weights.

    Attributes:
        pipeline: Name of its class.
        transformers: On the meta device, by component.
        scheduler: As in the folder; `None` = without one.
    """

    pipeline: str
    transformers: dict[str, nn.Module]
    scheduler: Any


def check_model(model: str | Path) -> None:
    """Checks that a model is a video pipeline, without loading it. A name like "owner/name" is not looked up.

    Raises:
        InputError: There is no such folder, or it has no pipeline.
        FileFormatError: The index is damaged.
        UnsupportedModelError: The pipeline has no transformer.
    """
    folder = Path(model)
    # os.path answers "no" for names that are too long, or no names at all; Path would raise.
    if not os.path.exists(folder):
        if _HUB_NAME.fullmatch(str(model)):
            return
        do = "name an existing folder, or a pipeline of the hub like Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
        raise InputError(f"model {str(model)!r}", "no such folder", do)
    if not os.path.isdir(folder):
        raise InputError(f"model {model}", "a file, not a folder", _PASS_A_PIPELINE)
    if not os.path.isfile(folder / _INDEX):
        raise InputError(f"model {model}", f"a folder without {_INDEX}", _PASS_A_PIPELINE)
    index = read_json(folder / _INDEX)
    if not isinstance(index, dict):
        raise FileFormatError(f"a pipeline in {model}", f"{_INDEX} without entries", _PASS_A_PIPELINE)
    names = _transformer_classes(model, index)
    missing = [name for name in names if not os.path.isdir(folder / name)]
    if missing:
        raise InputError(f"model {model}", f"no folder {' or '.join(missing)} in it", "copy the whole pipeline")
    # diffusers takes a configuration that is no object for a name, and asks the hub for it.
    for place in (*(f"{name}/config.json" for name in names), "scheduler/scheduler_config.json"):
        path = folder / place
        if os.path.isfile(path) and not isinstance(read_json(path), dict):
            raise FileFormatError(f"a pipeline in {model}", f"{place} without entries", "copy the whole pipeline")


def load_pipeline(model: str | Path, dtype: str | None = None, device: Any = None) -> DiffusionPipeline:
    """Loads a pipeline.

    Args:
        model: A folder, or a name on the hub.
        dtype: "float32", "bfloat16" or "float16"; `None` = bfloat16 on CUDA, else float32.
        device: `None` = CUDA if there is one, else the CPU.

    Raises:
        InputError: Loading fails; and as `check_model`.
    """
    if dtype not in (None, *_DTYPES):
        raise InputError(f"dtype {dtype!r}", f"known ones {', '.join(_DTYPES)}", "use one of them")
    check_model(model)
    import torch
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    _import_classes(model)
    place = _device(device)
    kind = getattr(torch, dtype or ("bfloat16" if place.type == "cuda" else "float32"))
    try:
        pipe = DiffusionPipeline.from_pretrained(str(model), dtype=kind)
    except Exception as error:
        _raise_not_loaded(model, error)
    if not any(getattr(pipe, name, None) is not None for name in _TRANSFORMERS):
        raise _without_transformer(model, type(pipe).__name__)
    try:
        return pipe.to(place)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"model {model} on {place}", reason, "use another device, or float16") from error


def load_outline(model: str | Path) -> Outline:
    """Loads the structure of a pipeline without its weights: in seconds and without memory at any size.

    Raises:
        InputError: Loading fails; and as `check_model`.
    """
    check_model(model)
    import diffusers
    import torch
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    try:
        loaded: Any = DiffusionPipeline.load_config(str(model))
        index: dict[str, Any] = dict(loaded)
        transformers: dict[str, nn.Module] = {}
        for name, class_name in _transformer_classes(model, index).items():
            kind = getattr(diffusers, class_name, None)
            if kind is None:
                raise UnsupportedModelError(
                    f"the {name} of {model}", f"{class_name}, not a class of diffusers", "use a newer diffusers"
                )
            config = kind.load_config(str(model), subfolder=name)
            with torch.device("meta"):
                transformers[name] = kind.from_config(config)
        _, class_name = index.get("scheduler") or (None, None)
        kind = getattr(diffusers, class_name or "", None)
        scheduler = kind.from_pretrained(str(model), subfolder="scheduler") if kind is not None else None
    except UnsupportedModelError:
        raise
    except Exception as error:
        _raise_not_loaded(model, error)
    return Outline(str(index.get("_class_name")), transformers, scheduler)


def generation_defaults(model: str | Path) -> dict[str, Any]:
    """The numbers in `unicp_defaults.json` of a model folder; {} if there is none. Needs no torch.

    Raises:
        FileFormatError: Names are unknown, or values have the wrong type.
    """
    path = Path(model) / DEFAULTS_FILE
    if not os.path.isfile(path):
        return {}
    values = read_json(path)
    try:
        read_as(Defaults, values)
    except MisfitError as error:
        do = f"use numbers for {', '.join(field.name for field in fields(Defaults))}"
        raise FileFormatError(f"defaults in {path}", str(error), do) from error
    return values


def check_frames(pipe: Any, frames: int | None) -> None:
    """Checks the number of frames for models that can make only one, as Latte; `None` = not given.

    Raises:
        InputError: The model cannot make as many.
    """
    config = getattr(getattr(pipe, "transformer", None), "config", {})
    known = config.get("video_length")
    if known is not None and frames is not None and frames != known:
        raise InputError(f"{frames} frames", f"a model that can make {known} only", f"ask for {known} frames")


def sampler(pipe: Any, name: str) -> None:
    """Swaps the scheduler of a pipeline, and keeps the noise levels that the model was trained on.

    Args:
        pipe: The pipeline.
        name: "euler", "unipc", "dpm" (DPM-Solver++), or "default" = change nothing.

    Raises:
        InputError: The name is unknown, or the pipeline's own scheduler does not tell its noise levels.
    """
    if name not in SAMPLERS:
        raise InputError(f"sampler {name!r}", f"known ones {', '.join(SAMPLERS)}", "use one of them")
    if name == "default":
        return
    from unicp.models.noise import read_schedule

    schedule = read_schedule(pipe.scheduler)
    is_flow = schedule is not None and schedule.prediction == "flow"
    if not is_flow and getattr(pipe.scheduler, "alphas_cumprod", None) is None:
        found = f"a {type(pipe.scheduler).__name__}, whose noise levels are not known"
        raise InputError(f"sampler {name!r}", found, "use the sampler default")
    pipe.scheduler = _flow_sampler(pipe.scheduler, name) if is_flow else _variance_sampler(pipe.scheduler, name)


def _flow_sampler(before: Any, name: str) -> Any:
    config = dict(before.config)
    shift = config.get("flow_shift", config.get("shift")) or 1.0
    train_steps = config.get("num_train_timesteps", 1000)
    if name == "euler":
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=train_steps, shift=shift)
    return _sampler_class(name)(
        num_train_timesteps=train_steps, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )


def _variance_sampler(before: Any, name: str) -> Any:
    # As betas: not every class has all the options of CogVideoX's schedulers.
    alphas = before.alphas_cumprod.double()
    earlier = alphas.roll(1)
    earlier[0] = 1.0
    config = {key: value for key, value in before.config.items() if not key.startswith("_")}
    config.pop("snr_shift_scale", None)
    config["trained_betas"] = (1 - alphas / earlier).float().numpy()
    config["rescale_betas_zero_snr"] = bool(alphas[-1] == 0)
    return _sampler_class(name).from_config(config)


def _sampler_class(name: str) -> Any:
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    classes = {"euler": EulerDiscreteScheduler, "unipc": UniPCMultistepScheduler, "dpm": DPMSolverMultistepScheduler}
    return classes[name]


def _transformer_classes(model: str | Path, index: dict[str, Any]) -> dict[str, str]:
    """Class names by component, from the entries (library, class) of a pipeline's index."""
    found: dict[str, str] = {}
    for name in _TRANSFORMERS:
        entry = index.get(name)
        if isinstance(entry, (list, tuple)) and len(entry) == 2 and isinstance(entry[1], str):
            found[name] = entry[1]
    if not found:
        raise _without_transformer(model, str(index.get("_class_name", "a pipeline")))
    return found


def _import_classes(model: str | Path) -> None:
    """Imports the modules of parts that a test-bed brings itself: diffusers finds classes of its own only."""
    if not os.path.isfile(Path(model) / _INDEX):
        return
    packages = {point.value.partition(".")[0] for point in entry_points(TESTBEDS).values()}
    for entry in read_json(Path(model) / _INDEX).values():
        library = entry[0] if isinstance(entry, list) and entry else None
        if isinstance(library, str) and library.partition(".")[0] in packages:
            importlib.import_module(library)


def _without_transformer(model: str | Path, found: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"a video pipeline with a transformer in {model}", f"{found} without one", "use a diffusion transformer"
    )


def _device(device: Any) -> Any:
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device {device!r}", "no such device", "use cpu or cuda") from error


def _raise_not_loaded(model: str | Path, error: Exception) -> NoReturn:
    """Raises a failed load as one line, which says whether the folder or the hub failed."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if os.path.isdir(model):
        found, do = f"a folder that cannot be loaded ({reason})", "check that all its files are there and whole"
    else:
        found = f"no folder of that name, and the hub did not give it ({reason})"
        do = "check the name and the network, or download it and name the folder"
    raise InputError(f"model {model}", found, do) from error
