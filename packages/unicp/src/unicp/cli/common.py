"""What commands share after the options: loading, generating with a progress bar, printing."""

from __future__ import annotations

import inspect
import json
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from unicp.cli.limits import check_fps
from unicp.cli.options import DEFAULT_MODEL, GET_TESTBEDS, NO_TESTBEDS, Request
from unicp.cli.plugins import shipped_pipeline
from unicp.cli.terminal import check_interrupt, raw
from unicp.errors import InputError, UniCPError, clean
from unicp.files import json_ready

if TYPE_CHECKING:
    import numpy as np
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from numpy.typing import NDArray
    from rich.console import Console

    from unicp.planning.plan import Plan
    from unicp.records import Trace
    from unicp.reporting.summary import Summary

DEFAULT_FPS = 16.0

_FRAME_NAMES = ("num_frames", "video_length")
# Functions in which pipelines and schedulers check their arguments, before the first step.
_CHECKS = frozenset(("check_inputs", "retrieve_timesteps", "set_timesteps", "prepare_latents"))


@dataclass(frozen=True, eq=False)
class Prepared:
    """A loaded pipeline and how to call it.

    Attributes:
        pipe: The pipeline.
        arguments: Of its call.
        fps: Frames a second of the file.
        seed: Of the noise.
    """

    pipe: DiffusionPipeline
    arguments: dict[str, Any]
    fps: float
    seed: int

    @property
    def steps(self) -> int | None:
        """Denoising steps of a run; `None` if only the pipeline knows."""
        if "num_inference_steps" in self.arguments:
            return self.arguments["num_inference_steps"]
        parameter = inspect.signature(type(self.pipe).__call__).parameters.get("num_inference_steps")
        default = None if parameter is None else parameter.default
        return default if isinstance(default, int) else None


@dataclass(frozen=True, eq=False)
class Made:
    """The video of a run, with summary, plan and trace if there are any."""

    video: Generated
    summary: Summary | None = None
    plan: Plan | None = None
    trace: Trace | None = None


@dataclass(frozen=True, eq=False)
class Generated:
    """A video, (frames, height, width, 3) of floats in [0, 1], and the seconds of the whole pipeline call."""

    frames: NDArray[np.float32]
    seconds: float


def model_of(model: str | None) -> str | Path:
    """The model to use, checked without loading it.

    Args:
        model: A folder, a name on the hub, or an installed test-bed; `None` = the test-bed glyphs.

    Returns:
        A folder, or a name on the hub.

    Raises:
        UniCPError: There is no such model, or it is no video pipeline.
    """
    from unicp.cli.loading import check_model

    name = DEFAULT_MODEL if model is None else model
    testbed = shipped_pipeline(name)
    is_testbed = (testbed is not None or name == DEFAULT_MODEL) and not Path(name).exists()
    if is_testbed and testbed is None:
        raise InputError(f"the model {name}", NO_TESTBEDS, f"{GET_TESTBEDS}, or name another model")
    found: str | Path = testbed.folder if is_testbed and testbed is not None else name
    check_model(found)
    return found


def prepare(request: Request) -> Prepared:
    """Loads the model. Its arguments are the user's, else those of the model folder, else the pipeline's own."""
    from unicp.cli.loading import generation_defaults, load_pipeline, sampler

    model = model_of(request.model)
    defaults = generation_defaults(model)
    fps = float(request.fps or defaults.pop("fps", None) or DEFAULT_FPS)
    defaults.pop("fps", None)
    check_fps(f"{fps:g} frames a second, as {model} has it", fps)
    with waiting("loading the model"), _quiet_loading():
        pipe = load_pipeline(model)
    sampler(pipe, request.sampler)
    pipe.set_progress_bar_config(disable=True)
    arguments = _arguments(pipe, request, defaults)
    _check_size(pipe, request, arguments, fps)
    return Prepared(pipe, arguments, fps, request.seed)


def generate(prepared: Prepared, title: str, steps: int | None = None) -> Generated:
    """Runs the pipeline once, with a progress bar on stderr. steps: `None` = the prepared number."""
    import numpy as np
    import torch

    arguments = dict(prepared.arguments)
    if steps is not None:
        arguments["num_inference_steps"] = steps
    generator = torch.Generator("cpu").manual_seed(prepared.seed)
    with _steps_bar(clean(title), steps or prepared.steps) as bar:
        if "callback_on_step_end" in _parameters(prepared.pipe):
            arguments["callback_on_step_end"] = bar.step
        begin = time.perf_counter()
        with _refusing(prepared):
            output = prepared.pipe(generator=generator, output_type="np", **arguments)  # type: ignore[operator]
        seconds = time.perf_counter() - begin
    # A picture counts as a video of one frame.
    frames = output.frames[0] if hasattr(output, "frames") else output.images[:1]
    return Generated(np.asarray(frames, dtype=np.float32), seconds)


@contextmanager
def _refusing(prepared: Prepared) -> Iterator[None]:
    """Turns a pipeline's errors about its arguments and about memory into one line."""
    import torch

    try:
        yield
    except UniCPError:
        raise
    except (ValueError, MemoryError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        asked = "a video with these options"
        # The CPU's allocator has no error of its own.
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in reason:
            raise InputError(asked, f"not enough memory ({reason})", "make it smaller or shorter") from error
        if not isinstance(error, ValueError) or not _from_argument_check(error):
            raise
        raise InputError(asked, f"the pipeline refuses them ({reason})", "change them") from error


def generate_enabled(prepared: Prepared, request: Request, title: str) -> Made:
    """Runs the pipeline with UniCP as the request asks for."""
    if request.enabling is None:
        return Made(generate(prepared, "generating"))
    import unicp

    with unicp.enable(prepared.pipe, **request.enabling) as session:
        video = generate(prepared, title)
        return Made(video, session.summary(), session.plan, session.trace)


def plan_facts(request: Request, plan: Plan | None) -> dict[str, Any]:
    """The target and its plan for --json; empty without a target."""
    if request.target is None:
        return {}
    profile = None if request.profile is None else str(request.profile)
    return {"target": request.target, "profile": profile, "plan": None if plan is None else plan.facts()}


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Shows a spinner on stderr, if that is a terminal."""
    from rich.text import Text

    console = _console()
    # Not a string: rich would take a name like "a[/b].mp4" for markup.
    with console.status(Text(f"{clean(what)} …")) if console.is_terminal else nullcontext():
        yield
    check_interrupt()


def _console() -> Console:
    from rich.console import Console

    return Console(file=raw(sys.stderr))


def print_json(value: Any) -> None:
    """One line of strict JSON on stdout."""
    typer.echo(json.dumps(json_ready(value), allow_nan=False))


def say(text: str) -> None:
    """A line on stderr."""
    typer.echo(text, err=True)


def write(frames: Any, request: Request, prepared: Prepared, made: Made) -> None:
    """Writes the video, then the trace; prints a note if the codec is not H.264."""
    from unicp.cli.video import write_or_keep
    from unicp.records import save_trace

    assert request.out is not None
    with waiting(f"writing {request.out}"):
        codec = write_or_keep(frames, request.out, prepared.fps)
    if request.trace is not None and made.trace is not None:
        try:
            save_trace(made.trace, request.trace)
        except InputError as error:
            raise InputError(error.asked, error.found, f"the video is in {request.out}; {error.do}") from error
    if codec == "mpeg4":
        say("unicp: note: this PyAV has no H.264 encoder, so the video is MPEG-4 part 2 and not all players show it")


class _StepsBar:
    """A progress bar that a pipeline moves; after the last step it says "decoding"."""

    def __init__(self, progress: Any, title: str, steps: int | None):
        self._progress, self._title, self._steps = progress, title, steps
        self._task = progress.add_task(title, total=steps)

    def step(self, pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        """The callback of diffusers after each step; returns `values` unchanged."""
        decoding = self._steps is not None and index + 1 >= self._steps
        title = f"{self._title}, decoding" if decoding else self._title
        self._progress.update(self._task, completed=index + 1, description=title)
        return values


@contextmanager
def _steps_bar(title: str, steps: int | None) -> Iterator[_StepsBar]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = _console()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Without a terminal rich would write an empty line, but errors are one line.
    hidden = not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden) as progress:
        yield _StepsBar(progress, title, steps)


def _arguments(pipe: Any, request: Request, defaults: dict[str, Any]) -> dict[str, Any]:
    from unicp.cli.loading import check_frames

    known = _parameters(pipe)
    frames_name = next((name for name in _FRAME_NAMES if name in known), _FRAME_NAMES[0])
    renamed = {_FRAME_NAMES[0]: frames_name}
    arguments = {renamed.get(name, name): value for name, value in defaults.items() if renamed.get(name, name) in known}
    for name, (flag, value) in request.given.items():
        name = renamed.get(name, name)
        if name not in known:
            raise InputError(f"{flag} {value}", f"a {type(pipe).__name__}, which takes no {name}", f"leave {flag} out")
        arguments[name] = value
    check_frames(pipe, arguments.get(frames_name))
    arguments = {"prompt": request.prompt, **arguments}
    _check_kind(pipe, arguments)
    return arguments


def _check_kind(pipe: Any, arguments: dict[str, Any]) -> None:
    """Refuses pipelines that make no pictures, or need more than a prompt."""
    name, parameters = type(pipe).__name__, dict(inspect.signature(type(pipe).__call__).parameters)
    parameters.pop("self", None)
    needed = [
        one.name
        for one in parameters.values()
        if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD and one.name not in arguments
    ]
    if needed or "prompt" not in parameters:
        found = f"a {name}, which needs {', '.join(needed)}" if needed else f"a {name}, which takes no prompt"
        raise InputError("a video of a prompt", found, "use a text-to-video pipeline, or call it from Python")
    if "height" not in parameters and "width" not in parameters:
        raise InputError("a video of a prompt", f"a {name}, which makes no pictures", "call it from Python")


def _check_size(pipe: Any, request: Request, arguments: dict[str, Any], fps: float) -> None:
    """Checks the size, with the defaults of the model folder and the pipeline."""
    parameters = inspect.signature(type(pipe).__call__).parameters

    def size(*names: str) -> int:
        told = (arguments.get(name, getattr(parameters.get(name), "default", None)) for name in names)
        return next((value for value in told if isinstance(value, int)), 1)

    request.check_size(size(*_FRAME_NAMES), size("height"), size("width"), fps)


def _from_argument_check(error: Exception) -> bool:
    """Whether a pipeline's check of its arguments raised this; any other ValueError is a fault of a program."""
    return any(frame.name in _CHECKS for frame in traceback.extract_tb(error.__traceback__))


def _parameters(pipe: Any) -> frozenset[str]:
    return frozenset(inspect.signature(type(pipe).__call__).parameters)


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Silences the progress bars of diffusers and transformers."""
    from diffusers.utils import logging as diffusers_logging

    logs: list[Any] = [diffusers_logging]
    try:
        from transformers.utils import logging as transformers_logging

        logs.append(transformers_logging)
    except ModuleNotFoundError:
        pass  # a pipeline without a text encoder of transformers
    were_on = [(log, log.is_progress_bar_enabled()) for log in logs]
    for log, _ in were_on:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, was_on in were_on:
            if was_on:
                log.enable_progress_bar()
