"""A sweep: every method of a suite on every prompt and seed, clip by clip and resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from unicp.errors import InputError
from unicp_bench.clip_metrics import FAST, measure_clip
from unicp_bench.conditions import code, differences, file_hash, fingerprint, hash_of
from unicp_bench.harness import Case, Clip, Harness
from unicp_bench.left_out import prior_without
from unicp_bench.methods import PLAIN_EVERY, CannotRunError, Method, plain
from unicp_bench.rows import PLAIN, Row, append_row, clip_file, read_rows
from unicp_testbeds.adherence import adherence
from unicp_testbeds.prompts import prompts_of

FAST_METRICS, ALL_METRICS = "fast", "all"
CLIP_FPS = 16.0


@dataclass(frozen=True)
class Sweep:
    """What to measure.

    Attributes:
        suite, model: Names in the rows.
        folder: Of the model, or its name on the hub.
        sampler, steps, frames: Of the reference.
        prompts: Texts; prompt i starts from noise of seed 1000 s + i, with s below `seeds`.
        seeds: Clips per prompt.
        methods: To measure.
        out: The file of rows.
        metrics: "all", or "fast" for those that cost milliseconds.
        clips: A folder to keep every clip in, or `None`.
        profile: Of the model, for targets; `None` = the shipped one.
        plain_every: The plain run is timed again before so many methods.
        plugins: A hash of the plug-ins.
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
    """Measures what has no row yet under the conditions of this sweep, and returns these.

    `say` gets a line for each new row, and one about rows of the same name from other sweeps.
    """
    calibration = prompts_of("calibration", sweep.model)
    harness = Harness(sweep.folder, sweep.sampler, sweep.steps, calibration, sweep.frames, profile=sweep.profile)
    harness.bench.prior = prior_without(sweep.model)
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
    measuring = Measuring(
        harness,
        sweep.suite,
        sweep.model,
        sweep.out,
        Fidelity(sweep.metrics),
        say,
        None if sweep.clips is None else ClipFolder(sweep.clips),
        sweep.plain_every,
        sweep.plugins,
    )
    # A method with as many steps as the reference would be the reference.
    methods = [method for method in sweep.methods if method.steps is None or method.steps < sweep.steps]
    for index, prompt in enumerate(sweep.prompts):
        for seed in range(sweep.seeds):
            measuring.case(methods, Case(prompt, 1000 * seed + index))
    return harness.conditions


def _tell_of_others(sweep: Sweep, harness: Harness, say: Callable[[str], None]) -> None:
    rows = [row for row in read_rows(sweep.out) if (row.model, row.sampler) == (sweep.model, sweep.sampler)]
    others = [row for row in rows if row.conditions != harness.conditions]
    if others:
        what = sorted({name for row in others for name in differences(row.environment, harness.environment)})
        say(f"note: {len(others)} rows in {sweep.out} are of another sweep and are not used: other {', '.join(what)}")


def _refuse_other_plugins(sweep: Sweep, harness: Harness) -> None:
    """Refuses rows that were measured with another version of a plug-in."""
    plugged = {(method.family, method.setting) for method in sweep.methods if method.is_plugged}
    for row in read_rows(sweep.out):
        is_mine = (row.model, row.conditions) == (sweep.model, harness.conditions)
        if is_mine and (row.method, row.setting) in plugged and row.environment.get("plugins", "") != sweep.plugins:
            found = f"rows of it in {sweep.out} that were measured with another version of the plug-in"
            raise InputError(f"to measure {row.name}", found, "delete these rows, or name another file with --out")


class Fidelity:
    """All numbers of a clip: against the plain clip, and against the prompt if it is one of the test-bed's."""

    def __init__(self, metrics: str = ALL_METRICS):
        self.metrics = FAST if metrics == FAST_METRICS else None

    def __call__(self, clip: Clip, reference: Clip, prompt: str) -> dict[str, float]:
        """Numbers by name; adherence is 1 or 0 for each attribute."""
        found = measure_clip(clip.frames, reference.frames, clip.latent, reference.latent, self.metrics)
        return found | {f"adherence_{name}": value for name, value in adherence(clip.frames, prompt).items()}


class ClipFolder:
    """Keeps clips as videos in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def lacks(self, row: Row) -> bool:
        """Whether the method ran and its clip is not there."""
        return row.measured and not (self.folder / clip_file(row)).is_file()

    def keep(self, row: Row, clip: Clip) -> None:
        """Writes the clip, whole or not at all."""
        from unicp.cli.video import write_video

        write_video(clip.frames.numpy(), self.folder / clip_file(row), CLIP_FPS)


@dataclass(frozen=True)
class Measuring:
    """Measures methods on one pipeline, and adds a row of each to `out`.

    Attributes:
        harness: The pipeline.
        suite, model: Names in the rows.
        out: The file of rows.
        fidelity: Gives the numbers of a clip against the plain one and the prompt.
        say: Gets a line for each row.
        clips: Keeps every clip before its row is written; `None` = keep none.
        plain_every: The plain run is timed again before so many methods. With 1, rows are paired.
        plugins: A hash of the plug-ins, for the rows of methods that run one.
    """

    harness: Harness
    suite: str
    model: str
    out: Path
    fidelity: Callable[[Clip, Clip, str], dict[str, float]]
    say: Callable[[str], None]
    clips: ClipFolder | None = None
    plain_every: int = PLAIN_EVERY
    plugins: str = ""

    def case(self, methods: Iterable[Method], case: Case) -> None:
        """Runs all methods that have no row for this prompt and seed, or no kept clip; the plain run first.

        It warns if a later plain run gives another clip: then a method left something behind.
        """
        known = {row.key: row for row in read_rows(self.out)}
        start, end = (self.harness.conditions, self.model, self.harness.sampler), (case.prompt, case.seed)
        # By name, so that a method that is asked for twice runs once.
        every = {one.name: one for one in (plain(), *(one for one in methods if one.family != PLAIN))}
        rows = {name: known.get((*start, one.family, one.setting, *end)) for name, one in every.items()}
        missing = [every[name] for name, row in rows.items() if row is None or (self.clips and self.clips.lacks(row))]
        if not missing:
            return
        self.harness.warm_up(case.prompt)
        reference = self.harness.run_method(plain(), case)
        for index, method in enumerate(missing):
            if self.plain_every == 1 and method.prepare is not None:
                # A calibration must not come between the two runs of a pair. If it fails, `_measure` reports it.
                with suppress(Exception):
                    method.prepare(self.harness.bench)
            if (index or method.prepare is not None) and index % self.plain_every == 0:
                before = missing[max(0, index - self.plain_every) : index]
                reference = self._timed_again(reference, case, before)
            row, clip = self._measure(method, case, reference)
            if method.is_plugged and self.plugins:
                row = replace(row, environment=row.environment | {"plugins": self.plugins})
            row = replace(row, paired=self.plain_every == 1 and row.measured)
            if self.clips is not None and clip is not None:
                self.clips.keep(row, clip)
            if rows[method.name] is None:
                append_row(self.out, row)
            self.say(_line(row) + ("" if rows[method.name] is None else " (for its clip: the row was there)"))

    def _timed_again(self, reference: Clip, case: Case, before: Iterable[Method]) -> Clip:
        again = self.harness.run_method(plain(), case)
        if not torch.equal(again.frames, reference.frames):
            names = ", ".join(method.name for method in before)
            self.say(f"warning: the plain run gives another clip now; one of these left something behind: {names}")
        return replace(reference, seconds=again.seconds, model_seconds=again.model_seconds)

    def _measure(self, method: Method, case: Case, reference: Clip) -> tuple[Row, Clip | None]:
        about: dict[str, Any] = {
            "suite": self.suite,
            "model": self.model,
            "sampler": self.harness.sampler,
            "method": method.family,
            "setting": method.setting,
            "prompt": case.prompt,
            "seed": case.seed,
            "steps": method.steps or self.harness.steps,
            "environment": self.harness.environment,
            "conditions": self.harness.conditions,
        }
        try:
            if method.prepare is not None:
                method.prepare(self.harness.bench)
            clip = reference if method.family == PLAIN else self.harness.run_method(method, case)
        except CannotRunError as error:
            return Row(**about, reason=str(error)), None
        except Exception as error:  # a crash of a peer is a result, not the end of the sweep
            if method.family.startswith(("UniCP", "fixed window")):
                raise
            return Row(**about, reason=f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"), None
        full_step = reference.operations / max(1, len(reference.step_operations))
        row = Row(
            **about,
            operations=clip.operations,
            full_operations=reference.operations,
            seconds=clip.seconds,
            plain_seconds=reference.seconds,
            model_seconds=clip.model_seconds,
            plain_model_seconds=reference.model_seconds,
            peak_bytes=clip.peak_bytes,
            plain_peak_bytes=reference.peak_bytes,
            cache_bytes=max(0, clip.alive_bytes - reference.alive_bytes),
            work=[round(n / full_step, 3) for n in clip.step_operations],
            fidelity=self.fidelity(clip, reference, case.prompt),
        )
        return row, clip


def _line(row: Row) -> str:
    start = f"{row.sampler} {row.prompt} #{row.seed} {row.name}: "
    if not row.measured:
        return f"{start}cannot run: {row.reason}"
    saved, psnr = row.full_operations / max(1, row.operations), row.fidelity.get("psnr", float("nan"))
    return f"{start}{saved:.2f}x {psnr:.1f} dB {row.seconds:.1f} s"
