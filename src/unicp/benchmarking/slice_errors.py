"""How far attention at reduced width is from full attention, on the queries, keys and values of a real run.

    python -m unicp.benchmarking.slice_errors --model glyphs --out docs/results/slices-glyphs.json

At a few steps of plain runs every attention that can be sliced is computed again at reduced width: with each kind of
bases, fitted at that step or `age` steps before, and corrected by what the slice missed there: not at all, as it was
("stored"), or on a straight line through what it missed then and as many steps before ("forecast"). Width 0 computes
nothing: the output of then, or the straight line through two of them. Error = relative root mean square of the
attention output (before the output projection), over all positions of a sample; mean, and worst case, over units,
branches and prompts.
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

from unicp.benchmarking.command import harness_of, measuring_parser
from unicp.benchmarking.harness import Harness
from unicp.benchmarking.step_count import StepCount
from unicp.benchmarking.suites import STEPS, prompts_of
from unicp.execution.attention_seam import Seam
from unicp.files import replacing
from unicp.models.finder import Unit, map_model
from unicp.numerics.error_measures import relative_error
from unicp.numerics.principal_axes import Bases, BasisKind, fit_bases
from unicp.numerics.sliced_attention import sliced_attention

PROBED = (2, 8, 16, 24, 29)
AGES = (0, 1, 3)
SHARES = (0.25, 0.5, 0.75)
KINDS: tuple[BasisKind, ...] = ("pca", "centred_pca", "kq_svd")
NOTHING = "nothing computed"
CORRECTED: BasisKind = "kq_svd"  # whose corrected errors the table over all steps shows


@dataclass(frozen=True)
class Call:
    """One attention: query, key, value and output, (B, H, S, d), and its mask and scale as keywords."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    options: dict[str, Any]


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
            seam: list[Seam] = []
            handles.append(unit.module.register_forward_pre_hook(self._enter(unit, seam)))
            handles.append(unit.module.register_forward_hook(self._leave(seam)))
        return handles

    def _enter(self, unit: Unit, seam: list[Seam]) -> Callable[..., None]:
        def hook(module: Any, args: Any) -> None:
            if self.now.step in self.steps:
                seam.append(Seam(self._keep(unit.name)))
                seam[-1].__enter__()

        return hook

    def _leave(self, seam: list[Seam]) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            if seam:
                seam.pop().__exit__(None, None, None)

        return hook

    def _keep(self, name: str) -> Callable[..., Tensor]:
        def handle(func: Callable[..., Tensor], named: dict[str, Any]) -> Tensor:
            output = func(**named)
            options = {key: named[key] for key in ("attn_mask", "scale") if named.get(key) is not None}
            query, key, value = (named[part].detach() for part in ("query", "key", "value"))
            call = Call(query, key, value, output.detach(), options)
            self.calls[name, self.now.branch, self.now.step] = call
            return output

        return handle


Key = tuple[int, str, str, float, int, str]  # step, role, basis, share of the width, age, correction


def errors_of(calls: dict[int, Call], step: int) -> dict[tuple[str, float, int, str], float]:
    """Errors of one unit in one branch at `step`, worst sample; calls: by step. Key: basis, share, age, correction."""
    now, found = calls[step], {}
    for age in AGES:
        then, before = calls.get(step - age), calls.get(step - 2 * age)
        if then is None:
            continue
        if age:
            found |= _corrected(NOTHING, 0.0, age, now, then, before, _nothing)
        for kind in KINDS:
            bases = fit_bases(then.query, then.key, then.value, kind)
            for share in SHARES:
                width = max(8, round(share * then.query.shape[-1] / 8) * 8)

                def sliced(call: Call, bases: Bases = bases, width: int = width) -> Tensor:
                    return sliced_attention(call.query, call.key, call.value, bases, width, **call.options)

                found[kind, share, age, "none"] = _worst(sliced(now), now.output)
                if age:
                    found |= _corrected(kind, share, age, now, then, before, sliced)
    return found


def _corrected(
    basis: str, share: float, age: int, now: Call, then: Call, before: Call | None, sliced: Callable[[Any], Tensor]
) -> dict[tuple[str, float, int, str], float]:
    missed = then.output - sliced(then)
    found = {(basis, share, age, "stored"): _worst(sliced(now) + missed, now.output)}
    if before is not None:
        ahead = 2 * missed - (before.output - sliced(before))
        found[basis, share, age, "forecast"] = _worst(sliced(now) + ahead, now.output)
    return found


def _nothing(call: Call) -> Tensor:
    return torch.zeros_like(call.output)


def _worst(served: Tensor, true: Tensor) -> float:
    return float(relative_error(served, true).max())


def measure(harness: Harness, prompts: tuple[str, ...], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row per probed step, role of attention, basis, width, age and kind of correction."""
    found = map_model(harness.pipe.transformer)
    units = found.sliced_units
    needed = frozenset(step - times * age for step in PROBED for age in AGES for times in (1, 2) if step >= times * age)
    every: dict[Key, list[float]] = defaultdict(list)
    for seed, prompt in enumerate(prompts):
        capture = Capture(units, StepCount(found), needed)
        handles = capture.attach()
        try:
            harness.latent(prompt, seed)
        finally:
            capture.now.remove()
            for handle in handles:
                handle.remove()
        for unit in units:
            branches = {branch for name, branch, _ in capture.calls if name == unit.name}
            for branch in branches:
                calls = {step: capture.calls[unit.name, branch, step] for step in needed}
                for step in PROBED:
                    for (basis, share, age, correction), error in errors_of(calls, step).items():
                        every[step, unit.role, basis, share, age, correction].append(error)
        say(f"{prompt} #{seed}")
    names = ("step", "role", "basis", "width", "age", "correction")
    return [
        {**dict(zip(names, key)), "error": statistics.fmean(values), "worst": max(values), "units": len(values)}
        for key, values in every.items()
    ]


def over_steps(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean errors over the probed steps that have every kind of correction: one row per role, age and width."""
    whole = {(row["step"], row["age"]) for row in rows if row["correction"] == "forecast"}
    found: dict[tuple[Any, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if not row["age"] or (row["step"], row["age"]) in whole:
            column = row["basis"] if row["correction"] == "none" else row["correction"]
            if row["correction"] == "none" or row["basis"] in (NOTHING, CORRECTED):
                found[row["role"], row["age"], row["width"]][column].append(row["error"])
    columns = (*KINDS, "stored", "forecast")
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
    prompts = prompts_of("calibration", options.model)[: options.prompts]
    with torch.no_grad():
        rows = measure(harness, prompts, print)
    record = {"model": options.model, "sampler": options.sampler, "steps": STEPS, "prompts": prompts}
    record |= {"rows": over_steps(rows), "by_step": rows}
    with replacing(options.out) as part:
        part.write_text(json.dumps({**record, "environment": harness.environment}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
