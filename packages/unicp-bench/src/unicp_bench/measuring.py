"""All methods on one prompt and seed: the plain run first and again between them, a row for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from unicp_bench.harness import Case, Clip, Harness
from unicp_bench.methods import CannotRunError, Method, plain
from unicp_bench.rows import Row, append_row, read_rows

Fidelity = Callable[[Clip, Clip, str], dict[str, float]]
Say = Callable[[str], None]


class Keeper(Protocol):
    """Keeps clips."""

    def lacks(self, row: Row) -> bool:
        """Whether the clip of a row that is there is not kept, and can be made."""
        ...

    def __call__(self, row: Row, clip: Clip) -> None:
        """Keeps the clip of a row; it is on the disk afterwards."""
        ...


# A machine's speed changes while a long list of methods is measured: the plain run is timed anew after so many.
PLAIN_EVERY = 8


def measure_case(
    harness: Harness,
    suite: str,
    model: str,
    methods: Iterable[Method],
    case: Case,
    out: Path,
    fidelity: Fidelity,
    say: Say,
    keep: Keeper | None = None,
    plain_every: int = PLAIN_EVERY,
    plugins: str = "",
) -> None:
    """All methods on one prompt and seed that have no row in `out` yet, or whose clip is not kept; the plain run first.

    fidelity: numbers of a clip against the plain one and the prompt. keep: given every clip before its row is written,
    so that there is no row without its clip.
    plain_every: the plain run is made again before so many methods each, for its seconds. A clip that is another one
    then is told: a method was taken off and left something behind. With 1 every row has a plain run of its own right
    before it and is marked as paired; otherwise none is, since a machine's speed changes between the two.
    plugins: noted in the rows of methods that run one, in their environment.
    """
    rows = {row.key: row for row in read_rows(out)}
    start, end = (harness.conditions, model, harness.sampler), (case.prompt, case.seed)
    methods = [plain(), *(m for m in methods if m.family != plain().family)]
    methods = list({method.name: method for method in methods}.values())  # one that is asked for twice is run once
    known = {method.name: rows.get((*start, method.family, method.setting, *end)) for method in methods}
    missing = [m for m in methods if (row := known[m.name]) is None or (keep is not None and keep.lacks(row))]
    if not missing:
        return
    harness.warm_up(case.prompt)
    reference = harness.run_method(plain(), case)
    for place, method in enumerate(missing):
        if plain_every == 1 and method.prepare is not None:
            # A calibration is not to come between the two runs of a pair. One that fails is told below.
            with suppress(Exception):
                method.prepare(harness.bench)
        if (place or method.prepare is not None) and place % plain_every == 0:
            again = harness.run_method(plain(), case)
            if not torch.equal(again.frames, reference.frames):
                before = ", ".join(
                    f"{one.family} {one.setting}".strip() for one in missing[max(0, place - plain_every) : place]
                )
                say(f"warning: the plain run is another one now; one of these left something behind: {before}")
            reference = replace(reference, seconds=again.seconds, model_seconds=again.model_seconds)
        row, clip = _measure(harness, suite, model, method, case, reference, fidelity)
        if method.is_plugged and plugins:
            row = replace(row, environment=row.environment | {"plugins": plugins})
        row = replace(row, paired=plain_every == 1 and row.measured)
        if keep is not None and clip is not None:
            keep(row, clip)
        if known[method.name] is None:
            append_row(out, row)
        say(_line(row) + ("" if known[method.name] is None else " (for its clip: the row was there)"))


def _measure(
    harness: Harness, suite: str, model: str, method: Method, case: Case, reference: Clip, fidelity: Fidelity
) -> tuple[Row, Clip | None]:
    steps = method.steps or harness.steps
    about: dict[str, Any] = {
        "suite": suite,
        "model": model,
        "sampler": harness.sampler,
        "method": method.family,
        "setting": method.setting,
        "prompt": case.prompt,
        "seed": case.seed,
        "steps": steps,
        "environment": harness.environment,
        "conditions": harness.conditions,
    }
    try:
        if method.prepare is not None:
            method.prepare(harness.bench)
        clip = reference if method.family == plain().family else harness.run_method(method, case)
    except CannotRunError as error:
        return Row(**about, reason=str(error)), None
    except Exception as error:  # a peer that crashes is a result, not the end of the sweep
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
        fidelity=fidelity(clip, reference, case.prompt),
    )
    return row, clip


def _line(row: Row) -> str:
    start = f"{row.sampler} {row.prompt} #{row.seed} {row.name}: "
    if not row.measured:
        return f"{start}cannot run: {row.reason}"
    saved, psnr = row.full_operations / max(1, row.operations), row.fidelity.get("psnr", float("nan"))
    return f"{start}{saved:.2f}x {psnr:.1f} dB {row.seconds:.1f} s"
