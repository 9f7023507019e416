"""Runs methods on a pipeline and measures all of them in the same way, from outside.

Operations are what the transformer really executes (`OperationCounter` is on in every run, also in plain ones). Seconds
are of the whole pipeline call, memory is of the process, and cached bytes are of the tensors that are alive.
"""

from __future__ import annotations

import gc
import inspect
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from unicp.cli.loading import check_frames, generation_defaults, load_pipeline, sampler
from unicp.numerics.operation_counts import OperationCounter
from unicp_bench.conditions import hash_of
from unicp_bench.methods import Bench, Method

# Packages that run the model, peers and metrics.
PACKAGES = (
    *("unicp", "torch", "diffusers", "transformers", "cache-dit"),
    *("imageio-ffmpeg", "scikit-image", "efficientnet-lite-pytorch"),
)
WARM_UP_STEPS = 2


@dataclass
class Clip:
    """The result and cost of one run.

    Attributes:
        frames: (frames, height, width, 3) in [0, 1].
        latent: The final one; `None` = not seen.
        seconds: Of the whole pipeline call.
        model_seconds: Inside the transformer.
        operations: Executed, two per multiply-add.
        step_operations: The same by step.
        peak_bytes: Most memory above that before the run.
        alive_bytes: Of all tensors, shortly before the last step.
    """

    frames: Tensor
    latent: Tensor | None
    seconds: float
    model_seconds: float
    operations: int
    step_operations: list[int] = field(default_factory=list)
    peak_bytes: int = 0
    alive_bytes: int = 0


@dataclass(frozen=True)
class Case:
    """One prompt and seed."""

    prompt: str
    seed: int


class Harness:
    """A loaded pipeline under one sampler, with the arguments of its runs.

    Args:
        model: A folder, or a name on the hub.
        sampler_name: As for `unicp.cli.loading.sampler`.
        steps: Of the reference.
        calibration: Prompts for methods that calibrate, disjoint from those of tables.
        frames: Of a clip; `None` = the model's own.
        device: `None` = CUDA if there is one, else the CPU.
        profile: Of the model, for targets; `None` = the shipped one.
    """

    def __init__(
        self,
        model: str | Path,
        sampler_name: str,
        steps: int,
        calibration: tuple[str, ...] = (),
        frames: int | None = None,
        device: Any = None,
        profile: Path | None = None,
    ):
        self.sampler, self.steps = sampler_name, steps
        self.pipe: Any = load_pipeline(model, device=device)
        sampler(self.pipe, sampler_name)
        self.pipe.set_progress_bar_config(disable=True)
        self.options = self._options(generation_defaults(model), frames)
        self.bench = Bench(self.pipe, steps, self.latent, calibration, profile)
        self.environment = environment(self.pipe) | {"call": self.options}
        self.conditions = ""

    def under(self, facts: Mapping[str, Any]) -> None:
        """Adds facts that the numbers depend on, and makes the `conditions` of rows."""
        self.environment = self.environment | dict(facts)
        self.conditions = hash_of({**self.environment, "sampler": self.sampler, "steps": self.steps})

    def _options(self, defaults: dict[str, Any], frames: int | None) -> dict[str, Any]:
        known = inspect.signature(type(self.pipe).__call__).parameters
        defaults = {k: v for k, v in defaults.items() if k not in ("num_inference_steps", "fps")}
        if frames is not None:
            check_frames(self.pipe, frames)
            defaults["num_frames"] = frames
        if "num_frames" in defaults and "num_frames" not in known:
            defaults["video_length"] = defaults.pop("num_frames")
        return {k: v for k, v in defaults.items() if k in known}

    def latent(self, prompt: str, seed: int) -> Tensor:
        """The final latent of one run, not decoded."""
        return torch.as_tensor(made_by(self._call(prompt, seed, self.steps, output="latent")))

    def _call(self, prompt: str, seed: int, steps: int, callback: Any = None, output: str = "np") -> Any:
        generator = torch.Generator("cpu").manual_seed(seed)
        options = dict(self.options)
        if callback is not None and "callback_on_step_end" in inspect.signature(type(self.pipe).__call__).parameters:
            options["callback_on_step_end"] = callback
        elif callback is not None:
            # Older pipelines (Stable Audio) have a callback of other arguments.
            options["callback"] = lambda step, time, latents: callback(self.pipe, step, time, {"latents": latents})
            options["callback_steps"] = 1
        return self.pipe(prompt, num_inference_steps=steps, generator=generator, output_type=output, **options)

    def warm_up(self, prompt: str) -> None:
        """Makes a short run that is not counted, because first calls load kernels."""
        self._call(prompt, 0, WARM_UP_STEPS)

    def seconds(self, prompt: str, seed: int, steps: int) -> float:
        """Seconds of one clip with nothing watching it."""
        begin = time.perf_counter()
        self._call(prompt, seed, steps)
        return time.perf_counter() - begin

    def run(self, case: Case, steps: int) -> Clip:
        """Makes one clip with what is attached to the pipeline."""
        watch = _Watch(self.pipe.transformer, steps)
        gc.collect()
        with watch, _peak_memory(self.pipe) as peak:
            begin = time.perf_counter()
            out = self._call(case.prompt, case.seed, steps, watch.step_end)
            seconds = time.perf_counter() - begin - watch.own_seconds
        frames = frames_of(made_by(out)[0])
        return Clip(
            frames=frames,
            latent=watch.latent,
            seconds=seconds,
            model_seconds=watch.model_seconds,
            operations=watch.counter.total,
            step_operations=watch.step_operations,
            peak_bytes=peak[0],
            alive_bytes=watch.alive_bytes,
        )

    def run_method(self, method: Method, case: Case) -> Clip:
        """Makes one clip under a method.

        Raises:
            CannotRunError: The method cannot run on this model.
        """
        with method.attach(self.bench):
            return self.run(case, method.steps or self.steps)


def made_by(output: Any) -> Any:
    """What a pipeline gave back: clips, pictures or sounds, one for each prompt."""
    return next(getattr(output, name) for name in ("frames", "images", "audios") if hasattr(output, name))


def frames_of(made: Any) -> Tensor:
    """One clip as (frames, height, width, 3) in [0, 1].

    A picture has one frame. A sound, (channels, samples) in [-1, 1], is folded into one: only its PSNR says something.
    """
    values = torch.as_tensor(made).float()
    if values.dim() != 2:
        return values if values.dim() == 4 else values[None]
    count = values.numel()
    rows = next(rows for rows in range(math.isqrt(count), 0, -1) if count % rows == 0)
    return ((values.reshape(1, rows, -1, 1) + 1) / 2).expand(-1, -1, -1, 3)


class _Watch:
    """Counts and times the calls of a transformer, and measures live tensors before the last step."""

    def __init__(self, transformer: torch.nn.Module, steps: int):
        self.transformer, self.steps = transformer, steps
        self.counter = OperationCounter()
        self.model_seconds = self.own_seconds = 0.0
        self.step_operations: list[int] = []
        self.alive_bytes = 0
        self.latent: Tensor | None = None
        self._begin = 0.0
        self._handles: list[Any] = []

    def __enter__(self) -> _Watch:
        self._handles = [
            self.transformer.register_forward_pre_hook(self._before),
            self.transformer.register_forward_hook(self._after, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, *_: Any) -> None:
        self._begin = time.perf_counter()
        self.counter.__enter__()

    def _after(self, *_: Any) -> None:
        self.counter.__exit__(None, None, None)
        self.model_seconds += time.perf_counter() - self._begin

    def step_end(self, pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        """The callback of diffusers; a plan may take fewer steps than were asked for."""
        begin = time.perf_counter()
        self.step_operations.append(self.counter.total - sum(self.step_operations))
        steps = min(self.steps, len(getattr(pipe.scheduler, "timesteps", ())) or self.steps)
        if index + 1 == max(1, steps - 1):
            self.alive_bytes = _alive_bytes()
        if index + 1 >= steps:
            self.latent = values["latents"].detach().float().cpu().clone()
        self.own_seconds += time.perf_counter() - begin
        return values


def _alive_bytes() -> int:
    """Bytes of all tensors that are alive, each storage once."""
    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        # Tensors of a compiler and of the meta device (address 0) have a size and no memory.
        if issubclass(type(thing), Tensor) and not isinstance(thing, FakeTensor):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(size for address, size in storages.items() if address)


@contextmanager
def _peak_memory(pipe: Any) -> Iterator[list[int]]:
    """Gives a list that afterwards holds the peak above what was in use before; 0 = unknown."""
    found = [0]
    device = next(pipe.transformer.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found[0] = torch.cuda.max_memory_allocated(device) - before
        return
    before = _reset_peak()
    yield found
    found[0] = 0 if before is None else max(0, _status("VmHWM") - before)


def _reset_peak() -> int | None:
    """Resets the peak of the process, by a file of Linux; returns bytes in use, None if that is not possible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except (OSError, ValueError):
        return None


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(name)


def environment(pipe: Any) -> dict[str, Any]:
    """Versions, device, dtype, threads and commit: what is needed to run a row again."""
    parameter = next(pipe.transformer.parameters())
    return environment_of(parameter.device, parameter.dtype)


def environment_of(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """As `environment`, without a pipeline."""
    found: dict[str, Any] = {"device": _device_name(device), "dtype": str(dtype)[6:]}
    found["threads"] = torch.get_num_threads()
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    commit = _commit()
    return {**found, "commit": commit} if commit else found


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def _commit() -> str:
    """Short hash of the working tree's commit, with "+" where files differ; "" outside a repository."""
    folder = Path(__file__).parent
    try:
        run = {"cwd": folder, "capture_output": True, "text": True, "check": True, "timeout": 20}
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], **run).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "-uno", "--", "."], **run).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + ("+" if changed else "")
