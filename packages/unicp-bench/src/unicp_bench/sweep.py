"""A whole sweep: every method of a suite on every prompt and seed, resumable, clip by clip."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unicp.errors import InputError
from unicp_bench.clip_metrics import FAST, measure_clip
from unicp_bench.conditions import code, differences, file_hash, fingerprint, hash_of
from unicp_bench.harness import Case, Clip, Harness
from unicp_bench.measuring import PLAIN_EVERY, measure_case
from unicp_bench.methods import Method
from unicp_bench.rows import PLAIN, Row, read_rows
from unicp_testbeds.adherence import adherence
from unicp_testbeds.prompts import prompts_of

FAST_METRICS, ALL_METRICS = "fast", "all"
CLIP_FPS = 16.0
MOST_BYTES = 180  # of a name of a clip; file systems have 255, and an unfinished file's is longer


@dataclass(frozen=True)
class Sweep:
    """What is to be measured. prompts: texts; prompt i of them starts from noise of seed 1000 s + i, s below `seeds`.

    metrics: "all" or "fast" (those that cost milliseconds). clips: a folder to keep every clip in, or None.
    profile: of the model, for targets; None = the one that is shipped. plugins: what plug-ins hold, in a few digits.
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
    plugins: str = ""


def run(sweep: Sweep, say: Callable[[str], None]) -> str:
    """Measures what has no row yet under the conditions of this sweep, which are returned.

    `say` is given a line for each new row, and one for rows of the same name that are not this sweep's.
    """
    calibration = prompts_of("calibration", sweep.model)
    harness = Harness(sweep.folder, sweep.sampler, sweep.steps, calibration, sweep.frames, profile=sweep.profile)
    harness.under(
        {
            "weights": fingerprint(sweep.folder),
            "profile": "shipped" if sweep.profile is None else file_hash(sweep.profile),
            "metrics": sweep.metrics,
            "paired": sweep.plain_every == 1,
            "calibration": hash_of({"prompts": calibration}),
            "code": code(),
        }
    )
    _tell_of_others(sweep, harness, say)
    _refuse_other_plugins(sweep, harness)
    # Fewer steps than the reference are meant.
    methods = [method for method in sweep.methods if method.steps is None or method.steps < sweep.steps]
    fidelity = Fidelity(sweep.metrics)
    keep = None if sweep.clips is None else ClipFolder(sweep.clips)
    for index, prompt in enumerate(sweep.prompts):
        for seed in range(sweep.seeds):
            case = Case(prompt, 1000 * seed + index)
            measure_case(
                harness,
                sweep.suite,
                sweep.model,
                methods,
                case,
                sweep.out,
                fidelity,
                say,
                keep,
                sweep.plain_every,
                sweep.plugins,
            )
    return harness.conditions


def _tell_of_others(sweep: Sweep, harness: Harness, say: Callable[[str], None]) -> None:
    rows = [row for row in read_rows(sweep.out) if (row.model, row.sampler) == (sweep.model, sweep.sampler)]
    others = [row for row in rows if row.conditions != harness.conditions]
    if others:
        what = sorted({name for row in others for name in differences(row.environment, harness.environment)})
        say(f"note: {len(others)} rows in {sweep.out} are of another sweep and left alone: other {', '.join(what)}")


def _refuse_other_plugins(sweep: Sweep, harness: Harness) -> None:
    """Raises InputError where the rows of a method are those of a plug-in as it was before it was changed."""
    plugged = {(method.family, method.setting) for method in sweep.methods if method.is_plugged}
    for row in read_rows(sweep.out):
        is_mine = (row.model, row.conditions) == (sweep.model, harness.conditions)
        if is_mine and (row.method, row.setting) in plugged and row.environment.get("plugins", "") != sweep.plugins:
            found = f"rows of it in {sweep.out} that were measured with another version of the plug-in"
            raise InputError(f"to measure {row.name}", found, "delete these rows, or name another file with --out")


class Fidelity:
    """All numbers of a clip: against the plain clip, and against the prompt where it is one of the test-bed's."""

    def __init__(self, metrics: str = ALL_METRICS):
        self.metrics = FAST if metrics == FAST_METRICS else None

    def __call__(self, clip: Clip, reference: Clip, prompt: str) -> dict[str, float]:
        """Numbers by name; adherence is 1 or 0 for each attribute."""
        found = measure_clip(clip.frames, reference.frames, clip.latent, reference.latent, self.metrics)
        return found | {f"adherence_{name}": value for name, value in adherence(clip.frames, prompt).items()}


def clip_file(row: Row) -> str:
    """The name of a kept clip: words to know it by, and what tells its row from all others."""
    words = f"{row.model} {row.sampler} {row.name or PLAIN} {row.prompt} {row.seed}"
    name = "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in words)
    if not row.conditions and len(name.encode()) < MOST_BYTES:
        return name + ".mp4"  # as clips of rows without conditions were named
    short = name.encode()[:MOST_BYTES].decode(errors="ignore")
    return f"{short}-{hashlib.sha256(repr(row.key).encode()).hexdigest()[:10]}.mp4"


class ClipFolder:
    """Keeps clips as videos in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def lacks(self, row: Row) -> bool:
        """True where the method ran and its clip is not there."""
        return row.measured and not (self.folder / clip_file(row)).is_file()

    def __call__(self, row: Row, clip: Clip) -> None:
        """Writes the clip; it is there as a whole or not at all."""
        from unicp.cli.video import write_video

        write_video(clip.frames.numpy(), self.folder / clip_file(row), CLIP_FPS)
