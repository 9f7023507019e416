"""The options that commands share, and what is checked about them before anything heavy is loaded."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from unicp.cli.limits import LEAST_FPS, MOST_FPS, SIDES, check_clip, check_fps, side_by_side_size
from unicp.cli.loading import SAMPLERS
from unicp.errors import InputError
from unicp.files import check_writable, reason
from unicp.planning.profile import load_profile
from unicp.planning.solver import check_steps, plan_of_profile
from unicp.planning.targets import parse_target
from unicp.settings import PRESETS, Settings, preset

OFF = "off"
DEFAULT_PRESET = "balanced"
# The test-bed that is used if no model is named, and the words for the error if it is not installed.
DEFAULT_MODEL = "glyphs"
NO_TESTBEDS = "no package with test-beds"
GET_TESTBEDS = 'pip install "unicp[demo]"'
ENDINGS = tuple(SIDES)
# Steps of one run. Samplers are trained on 1000 noise levels; ten times as many is a typing error.
MOST_STEPS = 10_000
PROMPT_BYTES = 10_000_000

PromptArgument = Annotated[str, typer.Argument(metavar="PROMPT", help="What the video shows.", show_default=False)]
ModelOption = Annotated[
    str | None,
    typer.Option(metavar="PATH_OR_ID", help="A folder, a name on the hub, or a test-bed [default: glyphs]."),
]
PresetOption = Annotated[
    str, typer.Option("--preset", metavar="NAME", help=f"How much to skip: {', '.join(PRESETS)} or {OFF}.")
]
ToleranceOption = Annotated[
    float | None,
    typer.Option(metavar="FLOAT", help="Tolerance instead of the preset's, a relative error; 0 = lossless."),
]
StepsOption = Annotated[int | None, typer.Option(metavar="N", help="Denoising steps [default: the model's].")]
SeedOption = Annotated[int, typer.Option(metavar="N", help="Seed of the noise.")]
CfgOption = Annotated[float | None, typer.Option("--cfg", metavar="FLOAT", help="Guidance scale.")]
HeightOption = Annotated[int | None, typer.Option(metavar="PIXELS", help="Height of the video.")]
WidthOption = Annotated[int | None, typer.Option(metavar="PIXELS", help="Width of the video.")]
FramesOption = Annotated[int | None, typer.Option(metavar="N", help="Number of frames.")]
NegativeOption = Annotated[str | None, typer.Option(metavar="TEXT", help="Negative prompt.")]
OutOption = Annotated[Path, typer.Option(metavar="FILE", help=f"The video to write: {' or '.join(ENDINGS)}.")]
FpsOption = Annotated[
    float | None, typer.Option(metavar="FLOAT", help=f"Frames per second of the file, {LEAST_FPS:g} to {MOST_FPS:g}.")
]
TraceOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Also write the trace: what was done at each step (JSON).")
]
SamplerOption = Annotated[
    str, typer.Option(metavar="NAME", help=f"Sampler: {', '.join(SAMPLERS)} (default = the model's own).")
]
TargetOption = Annotated[
    str | None, typer.Option(metavar="TARGET", help='Instead of a preset: "psnr>=35", "speedup>=2" or "seconds<=40".')
]
ProfileOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Profile for the target [default: a built-in one].")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]


def read_prompts(flag: str, file: Path) -> tuple[str, ...]:
    """Reads the prompts in a text file, one a line.

    Raises:
        InputError: The file cannot be read, or has no prompts.
    """
    try:
        with file.open("rb") as opened:
            raw = opened.read(PROMPT_BYTES + 1)
        if len(raw) > PROMPT_BYTES:
            raise InputError(f"{flag} {file}", f"more than {PROMPT_BYTES / 1e6:g} MB", "name a file of prompts")
        texts = tuple(line.strip() for line in raw.decode("utf-8").splitlines() if line.strip())
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{flag} {file}", reason(error), "name a text file") from error
    if not texts:
        raise InputError(f"{flag} {file}", "no prompts in it", "write one prompt a line")
    return texts


def check_written(flag: str, written: Path, read: Mapping[str, Path | None]) -> None:
    """Checks that a file can be written and is none that the command reads.

    Args:
        flag: Of the written file.
        written: Its path.
        read: Files that the command reads, by flag.

    Raises:
        InputError: It cannot, or is one of those.
    """
    check_writable(written)
    for other, file in read.items():
        if file is not None and _same_file(written, file):
            raise InputError(f"{flag} {written}", f"the same file as {other}", "name another one")


def make_folder(flag: str, folder: Path) -> None:
    """Makes a folder with its parents, if there is none.

    Raises:
        InputError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"to make the folder {folder}", reason(error), f"name another one with {flag}") from error


def _same_file(one: Path, other: Path) -> bool:
    try:
        if os.path.exists(one) and os.path.exists(other):
            return os.path.samefile(one, other)
        return os.path.realpath(one) == os.path.realpath(other)
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class Request:
    """The options of a command; `None` = not given.

    Attributes:
        prompt: What the video shows.
        is_pair: Whether `out` shows two videos side by side.

    Raises:
        InputError: An option cannot be used, as far as that is cheap to check.
    """

    prompt: str
    model: str | None
    preset: str
    tolerance: float | None
    steps: int | None
    seed: int
    cfg: float | None
    height: int | None
    width: int | None
    frames: int | None
    negative: str | None
    out: Path | None
    fps: float | None
    trace: Path | None
    sampler: str
    target: str | None = None
    profile: Path | None = None
    is_pair: bool = False

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise InputError("a video", "an empty prompt", "say what it shows")
        for name in ("steps", "height", "width", "frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} {value}", "not a positive number", "use 1 or more")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed {self.seed}", "not a seed", "use a whole number from 0 to 2^63 - 1")
        if self.cfg is not None and not 0 <= self.cfg < math.inf:
            raise InputError(f"--cfg {self.cfg}", "not a finite number of at least 0", "use for example 5")
        if self.steps is not None and self.steps > MOST_STEPS:
            raise InputError(f"--steps {self.steps}", "more than any run needs", f"use at most {MOST_STEPS}")
        if self.fps is not None:
            check_fps(f"--fps {self.fps}", self.fps)
        self.check_size(self.frames or 1, self.height or 1, self.width or 1, self.fps)
        if self.sampler not in SAMPLERS:
            raise InputError(f"--sampler {self.sampler!r}", f"known ones {', '.join(SAMPLERS)}", "use one of them")
        self._check_preset()
        self._check_target()
        self._check_files()

    @property
    def name(self) -> str:
        """Name of the accelerated run: the target, else the preset."""
        return self.target or self.preset

    @property
    def enabling(self) -> dict[str, Any] | None:
        """Arguments of `unicp.enable`; `None` = UniCP is off."""
        if self.target is not None:
            return {"target": self.target, "profile": self.profile}
        return None if self.settings is None else {"settings": self.settings}

    @property
    def settings(self) -> str | Settings | None:
        """The name of a preset, or settings made from one; `None` = UniCP is off."""
        if self.preset == OFF:
            return None
        # The name if nothing is changed, for the trace.
        return self.preset if self.tolerance is None else preset(self.preset, tolerance=self.tolerance)

    @property
    def given(self) -> dict[str, tuple[str, Any]]:
        """(flag, value) of the pipeline's arguments that the user gave, by the name of the argument."""
        values = {
            "num_inference_steps": ("--steps", self.steps),
            "guidance_scale": ("--cfg", self.cfg),
            "height": ("--height", self.height),
            "width": ("--width", self.width),
            "num_frames": ("--frames", self.frames),
            "negative_prompt": ("--negative", self.negative),
        }
        return {name: (flag, value) for name, (flag, value) in values.items() if value is not None}

    def check_size(self, frames: int, height: int, width: int, fps: float | None) -> None:
        """Checks that a file and the memory can hold a video of this size.

        Raises:
            InputError: They cannot.
        """
        ending = "" if self.out is None else self.out.suffix
        if self.is_pair:
            # Two videos of this size are at least as large as the one that shows both.
            height, width = side_by_side_size(height, width)
        check_clip(ending, frames, height, width, fps)

    def _check_preset(self) -> None:
        if self.preset == OFF:
            unused = [f"--{name}" for name in ("tolerance", "trace") if getattr(self, name) is not None]
            if unused:
                raise InputError(
                    f"{' and '.join(unused)} with --preset {OFF}", "nothing to apply it to", "name a preset"
                )
            return
        if self.preset not in PRESETS:
            found = f"the presets {', '.join(PRESETS)} and {OFF}"
            raise InputError(f"--preset {self.preset!r}", found, "name one of them")
        _ = self.settings  # a bad tolerance fails here, before the model is loaded

    def _check_target(self) -> None:
        if self.target is None:
            if self.profile is not None:
                raise InputError(f"--profile {self.profile}", "no --target", 'name one, like --target "psnr>=35"')
            return
        if self.preset != DEFAULT_PRESET or self.tolerance is not None:
            raise InputError(f"--target {self.target}", "--preset or --tolerance as well", "give one of them")
        target = parse_target(self.target)
        if self.steps is not None:
            check_steps(self.steps)
        if self.profile is not None:
            profile = load_profile(self.profile)
            plan_of_profile(profile, target, self.steps or profile.steps)

    def _check_files(self) -> None:
        if self.out is None:
            return
        if self.out.suffix.lower() not in ENDINGS:
            raise InputError(f"--out {self.out}", f"known endings {' and '.join(ENDINGS)}", "use one of them")
        check_written("--out", self.out, {"--profile": self.profile})
        if self.trace is not None:
            check_written("--trace", self.trace, {"--out": self.out, "--profile": self.profile})
