"""A whole sweep: every method of a suite on every prompt and seed, resumable, clip by clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unicp.benchmarking.clip_metrics import FAST, measure_clip
from unicp.benchmarking.harness import Case, Clip, Harness
from unicp.benchmarking.measuring import PLAIN_EVERY, measure_case
from unicp.benchmarking.methods import Method
from unicp.benchmarking.rows import PLAIN, Row, read_rows
from unicp.benchmarking.suites import prompts_of
from unicp.errors import InputError
from unicp.testbed.adherence import adherence

FAST_METRICS, ALL_METRICS = "fast", "all"
CLIP_FPS = 16.0


@dataclass(frozen=True)
class Sweep:
    """What is to be measured. prompts: texts; prompt i of them starts from noise of seed 1000 s + i, s below `seeds`.

    metrics: "all" or "fast" (those that cost milliseconds). clips: a folder to keep every clip in, or None.
    profile: of the model, for targets; None = the one that is shipped.
    """

    suite: str
    model: str
    folder: str | Path
    sampler: str
    steps: int
    prompts: tuple[str, ...]
    seeds: int
    methods: tuple[Method, ...]
    out: Path
    frames: int | None = None
    metrics: str = ALL_METRICS
    clips: Path | None = None
    profile: Path | None = None
    plain_every: int = PLAIN_EVERY


def run(sweep: Sweep, say: Callable[[str], None]) -> None:
    """Measures what has no row yet; `say` is given a line for each new row.

    Raises InputError where the file has rows of this model and sampler against another number of steps.
    """
    rows = [row for row in read_rows(sweep.out) if (row.model, row.sampler) == (sweep.model, sweep.sampler)]
    others = {row.steps for row in rows if row.method == PLAIN} - {sweep.steps}
    if others:
        found = f"rows against {', '.join(map(str, sorted(others)))} steps in {sweep.out}"
        raise InputError(f"rows against {sweep.steps} steps", found, "name another file with --out")
    calibration = prompts_of("calibration", sweep.model)
    harness = Harness(sweep.folder, sweep.sampler, sweep.steps, calibration, sweep.frames, profile=sweep.profile)
    # Fewer steps than the reference are meant.
    methods = [method for method in sweep.methods if method.steps is None or method.steps < sweep.steps]
    fidelity = Fidelity(sweep.metrics)
    keep = None if sweep.clips is None else _keeper(sweep.clips)
    for index, prompt in enumerate(sweep.prompts):
        for seed in range(sweep.seeds):
            case = Case(prompt, 1000 * seed + index)
            measure_case(
                harness, sweep.suite, sweep.model, methods, case, sweep.out, fidelity, say, keep, sweep.plain_every
            )


class Fidelity:
    """All numbers of a clip: against the plain clip, and against the prompt where it is one of the test-bed's."""

    def __init__(self, metrics: str = ALL_METRICS):
        self.metrics = FAST if metrics == FAST_METRICS else None

    def __call__(self, clip: Clip, reference: Clip, prompt: str) -> dict[str, float]:
        """Numbers by name; adherence is 1 or 0 for each attribute."""
        found = measure_clip(clip.frames, reference.frames, clip.latent, reference.latent, self.metrics)
        return found | {f"adherence_{name}": value for name, value in adherence(clip.frames, prompt).items()}


def clip_file(row: Row) -> str:
    """The name of a kept clip."""
    words = f"{row.model} {row.sampler} {row.name or PLAIN} {row.prompt} {row.seed}"
    return "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in words) + ".mp4"


def _keeper(folder: Path) -> Callable[[Row, Clip], None]:
    from unicp.reporting.video import write_video

    def keep(row: Row, clip: Clip) -> None:
        write_video(clip.frames.numpy(), folder / clip_file(row), CLIP_FPS)

    return keep
