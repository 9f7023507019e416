"""How far attention at reduced width is from full attention, on the queries, keys and values of a real run.

    python -m experiments.slice_errors --model glyphs --out docs/results/slices.json

At a few steps of plain runs every attention that can be sliced is computed again at reduced width, with each kind of
bases: fitted at that step, `age` steps before, or at that step of another prompt's run. Kinds are those of `fit_bases`;
"+ weighted" has value axes for the output projection, "by head" shares the width out among the heads of "output_pca +
weighted". Slices of `CORRECTED` are also corrected by what the slice missed some steps before: as it was ("stored"), or
on a straight line through what it missed then and as many steps before ("forecast"). Width 0 computes nothing: the
output of then, or the straight line through two of them.

Error = relative root mean square over all positions of a sample, of the attention output and of what the output
projection makes of it ("projected"); the worst sample of a call, as when slices are chosen; mean, and worst case, over
units, branches and prompts. The first prompt is run for its bases only.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from experiments.command import harness_of, measuring_parser
from experiments.head_widths import choose_widths, predicted_errors, sliced_by_head
from experiments.step_count import StepCount
from unicp.attention.interceptor import AttentionInterceptor
from unicp.errors import run_main
from unicp.files import write_text
from unicp.models.finder import ModelMap, Unit, map_model
from unicp.numerics.error_measures import coprime_stride, relative_error
from unicp.reducers.base import projected
from unicp.reducers.bases import FIT_TOKENS, Bases, BasisKind, fit_bases
from unicp.reducers.pca_slices import sliced_attention
from unicp_bench.harness import Harness
from unicp_bench.suites import STEPS
from unicp_testbeds.prompts import prompts_of

PROBED = (2, 8, 16, 24, 29)
AGES = (0, 1, 3)
SHARES = (0.25, 0.5, 0.75)
# Columns of the tables: a kind of bases, and whether its value axes are those for the output projection.
KINDS: dict[str, tuple[BasisKind, bool]] = {
    "pca": ("pca", False),
    "centred_pca": ("centred_pca", False),
    "kq_svd": ("kq_svd", False),
    "kq_svd + weighted": ("kq_svd", True),
    "output_pca": ("output_pca", False),
    "output_pca + weighted": ("output_pca", True),
}
BY_HEAD = "by head"
NOTHING = "nothing computed"
CORRECTED = "kq_svd"
OTHER_PROMPT = "other prompt"


@dataclass(frozen=True)
class Call:
    """One attention: query, key, value and output, (B, H, S, d), and its mask and scale as keywords.

    projection: weight (D, H * d) of the output projection, None = it cannot be told.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    options: dict[str, Any]
    projection: Tensor | None = None


@dataclass
class Capture:
    """Attention calls by (unit name, branch, step), of the steps in `steps` of one run."""

    units: tuple[Unit, ...]
    now: StepCount
    steps: frozenset[int]
    calls: dict[tuple[str, int, int], Call] = field(default_factory=dict)

    def attach(self) -> list[Any]:
        """Hooks on every unit; gives their handles."""
        handles = []
        for unit in self.units:
            inside: list[AttentionInterceptor] = []
            handles.append(unit.module.register_forward_pre_hook(self._enter(unit, inside)))
            handles.append(unit.module.register_forward_hook(self._leave(inside)))
        return handles

    def _enter(self, unit: Unit, inside: list[AttentionInterceptor]) -> Callable[..., None]:
        def hook(module: Any, args: Any) -> None:
            if self.now.step in self.steps:
                inside.append(AttentionInterceptor(self._keep(unit)))
                inside[-1].__enter__()

        return hook

    def _leave(self, inside: list[AttentionInterceptor]) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            if inside:
                inside.pop().__exit__(None, None, None)

        return hook

    def _keep(self, unit: Unit) -> Callable[..., Tensor]:
        def handle(func: Callable[..., Tensor], named: dict[str, Any]) -> Tensor:
            output = func(**named)
            options = {key: named[key] for key in ("attn_mask", "scale") if named.get(key) is not None}
            query, key, value = (named[part].detach() for part in ("query", "key", "value"))
            call = Call(query, key, value, output.detach(), options, unit.output_projection)
            self.calls[unit.name, self.now.branch, self.now.step] = call
            return output

        return handle


# (of the attention output, after the output projection)
Errors = tuple[float, float]
Key = tuple[str, float, int | str, str]  # column, share of the width, age, correction


@dataclass(frozen=True)
class Fitted:
    """Bases by column, and the widths by head for each share."""

    bases: dict[str, Bases]
    by_head: dict[float, tuple[int, ...]]

    @classmethod
    def on(cls, call: Call) -> Fitted:
        """Fitted on one call."""
        bases = {
            name: fit_bases(
                call.query, call.key, call.value, kind, projection=call.projection if weighted else None, **call.options
            )
            for name, (kind, weighted) in KINDS.items()
        }
        channels = call.query.shape[-1]
        widths = range(8, channels + 1, 8)
        best = list(bases.values())[-1]
        spread = slice(None, None, coprime_stride(call.query.shape[2], FIT_TOKENS))
        query, key, output = (x[:, :, spread] for x in (call.query, call.key, call.output))
        errors = predicted_errors(query, key, output, best, widths, call.options.get("scale")).tolist()
        return cls(bases, {share: choose_widths(errors, widths, width_of(share, channels)) for share in SHARES})


def width_of(share: float, channels: int) -> int:
    """The multiple of 8 next to a share of the width, at least 8."""
    return max(8, round(share * channels / 8) * 8)


def errors_of(calls: dict[int, Call], step: int, other: Fitted | None = None) -> dict[Key, Errors]:
    """Errors of one unit in one branch at `step`; calls: by step; other: bases of another prompt's run, if known."""
    now, found = calls[step], dict[Key, Errors]()
    for age in AGES:
        then, before = calls.get(step - age), calls.get(step - 2 * age)
        if then is None:
            continue
        fitted = Fitted.on(then)
        found |= _sliced(now, fitted, age)
        if age:
            found |= _corrected(NOTHING, 0.0, age, now, then, before, _nothing)
            for share in SHARES:
                found |= _corrected(CORRECTED, share, age, now, then, before, _slice_of(fitted, CORRECTED, share))
    return found if other is None else found | _sliced(now, other, OTHER_PROMPT)


def _sliced(now: Call, fitted: Fitted, age: int | str) -> dict[Key, Errors]:
    return {
        (name, share, age, "none"): _worst(_slice_of(fitted, name, share)(now), now)
        for share in SHARES
        for name in (*KINDS, BY_HEAD)
    }


def _slice_of(fitted: Fitted, name: str, share: float) -> Callable[[Call], Tensor]:
    def sliced(call: Call) -> Tensor:
        inputs = (call.query, call.key, call.value)
        if name == BY_HEAD:
            return sliced_by_head(*inputs, list(fitted.bases.values())[-1], fitted.by_head[share], **call.options)
        width = width_of(share, call.query.shape[-1])
        return sliced_attention(*inputs, fitted.bases[name], width, **call.options)

    return sliced


def _corrected(
    basis: str, share: float, age: int, now: Call, then: Call, before: Call | None, sliced: Callable[[Any], Tensor]
) -> dict[Key, Errors]:
    missed, again = then.output - sliced(then), sliced(now)
    found: dict[Key, Errors] = {(basis, share, age, "stored"): _worst(again + missed, now)}
    if before is not None:
        ahead = 2 * missed - (before.output - sliced(before))
        found[basis, share, age, "forecast"] = _worst(again + ahead, now)
    return found


def _nothing(call: Call) -> Tensor:
    return torch.zeros_like(call.output)


def _worst(output: Tensor, call: Call) -> Errors:
    seen = (projected(x, call.projection) for x in (output, call.output))
    return float(relative_error(output, call.output).max()), float(relative_error(*seen).max())


def measure(harness: Harness, prompts: tuple[str, ...], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row per probed step, role of attention, column, width, age and kind of correction; the first prompt has none.

    Bases of another prompt are those of the run before.
    """
    found = map_model(harness.pipe.transformer)
    units = found.sliced_units
    needed = frozenset(step - times * age for step in PROBED for age in AGES for times in (1, 2) if step >= times * age)
    every: dict[tuple[int, str, Key], list[Errors]] = defaultdict(list)
    others: dict[tuple[str, int, int], Fitted] = {}
    for seed, prompt in enumerate(prompts):
        capture = _captured(harness, found, needed, prompt, seed)
        for unit in units:
            branches = {branch for name, branch, _ in capture.calls if name == unit.name}
            for branch in branches:
                calls = {step: capture.calls[unit.name, branch, step] for step in needed}
                for step in PROBED:
                    other = others.get((unit.name, branch, step))
                    if other is not None:
                        for key, errors in errors_of(calls, step, other).items():
                            every[step, unit.role, key].append(errors)
                    others[unit.name, branch, step] = Fitted.on(calls[step])
        say(f"{prompt} #{seed}")
    return [_row(step, role, key, values) for (step, role, key), values in every.items()]


def _captured(harness: Harness, found: ModelMap, steps: frozenset[int], prompt: str, seed: int) -> Capture:
    capture = Capture(found.sliced_units, StepCount(found), steps)
    handles = capture.attach()
    try:
        harness.latent(prompt, seed)
    finally:
        capture.now.remove()
        for handle in handles:
            handle.remove()
    return capture


def _row(step: int, role: str, key: Key, values: list[Errors]) -> dict[str, Any]:
    errors, after = zip(*values)
    return {
        "step": step,
        "role": role,
        **dict(zip(("basis", "width", "age", "correction"), key)),
        "error": statistics.fmean(errors),
        "worst": max(errors),
        "projected": statistics.fmean(after),
        "projected worst": max(after),
        "units": len(values),
    }


def over_steps(rows: list[dict[str, Any]], measure: str = "error") -> list[dict[str, Any]]:
    """Mean errors over the probed steps that have every kind of correction: one row per role, age and width.

    measure: "error", or "projected" for those after the output projection.
    """
    whole = {(row["step"], row["age"]) for row in rows if row["correction"] == "forecast"}
    found: dict[tuple[Any, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["age"] in (0, OTHER_PROMPT) or (row["step"], row["age"]) in whole:
            column = row["basis"] if row["correction"] == "none" else row["correction"]
            found[row["role"], str(row["age"]), row["width"]][column].append(row[measure])
    columns = (*KINDS, BY_HEAD, "stored", "forecast")
    return [
        {
            **dict(zip(("attention", "age", "width"), key)),
            **{column: statistics.fmean(values[column]) if column in values else "-" for column in columns},
        }
        for key, values in sorted(found.items())
    ]


def main() -> None:
    """The command line; see the module's docstring."""
    parser = measuring_parser(__doc__, 2, "slices.json")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    harness = harness_of(options)
    prompts = prompts_of("calibration", options.model)[: options.prompts + 1]
    with torch.no_grad():
        rows = measure(harness, prompts, print)
    record = {"model": options.model, "sampler": options.sampler, "steps": STEPS, "prompts": prompts[1:]}
    record |= {"bases of another prompt": prompts[:-1], "rows": over_steps(rows)}
    record |= {"projected": over_steps(rows, "projected"), "by_step": rows}
    write_text(options.out, json.dumps({**record, "environment": harness.environment}, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
