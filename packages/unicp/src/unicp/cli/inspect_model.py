"""`unicp inspect`: what in a model can be skipped or sliced, and why not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from unicp.cli import options
from unicp.settings import ATTENTION_ROLES

if TYPE_CHECKING:
    from unicp.models.finder import ModelMap, Unit


def inspect_model(model: options.ModelOption = None, as_json: options.JsonOption = False) -> None:
    """Show what in a model can be skipped or sliced.

    It lists levels, blocks and units, and loads no weights.

    \b
    Examples:
      unicp inspect
      unicp inspect --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --json
    """
    from unicp.cli import common
    from unicp.cli.loading import load_outline
    from unicp.models.finder import map_model
    from unicp.models.noise import read_schedule

    source = common.model_of(model)
    with common.waiting("reading the model"):
        outline = load_outline(source)
        maps = {name: map_model(module) for name, module in outline.transformers.items()}
        schedule = read_schedule(outline.scheduler)
    facts = {
        "pipeline": outline.pipeline,
        "scheduler": None if outline.scheduler is None else type(outline.scheduler).__name__,
        "schedule_known": schedule is not None,
        "prediction": None if schedule is None else schedule.prediction,
        "transformers": {name: _facts(found) for name, found in maps.items()},
    }
    if as_json:
        common.print_json(facts)
        return
    typer.echo("\n".join([*_head(facts), *(line for name, found in maps.items() for line in _lines(name, found))]))


def _facts(found: ModelMap) -> dict[str, Any]:
    units = [
        {
            "name": unit.name,
            "block": unit.block,
            "role": unit.role,
            "heads": unit.heads,
            "head_width": unit.head_width,
            "sliceable": unit.sliceable,
            "why_not": unit.why_not,
            "text_keys": unit.text_keys,
        }
        for unit in found.units
    ]
    return {
        "class": type(found.transformer).__name__,
        "family": found.family.transformer,
        "noise_refusal": found.family.noise_refusal,
        "blocks": len(found.blocks),
        "parameters": sum(parameter.numel() for parameter in found.transformer.parameters()),
        "levels": {name: {"available": not why_not, "why_not": why_not} for name, why_not in _levels(found).items()},
        "units": units,
    }


def _levels(found: ModelMap) -> dict[str, str]:
    """Why nothing can be skipped at each level; "" = something can."""
    no_units = "" if found.units_with(ATTENTION_ROLES) else "no attention unit was found"
    return {
        "model": "",
        "stack": found.stack_refusal or ("" if found.blocks else "no block was found"),
        "block": found.level_refusal("block") or ("" if found.blocks else "no block was found"),
        "unit": no_units,
    }


def _head(facts: dict[str, Any]) -> list[str]:
    scheduler = facts["scheduler"] or "no scheduler"
    if facts["schedule_known"]:
        noise = f"known, prediction {facts['prediction']}: output, noise and clean estimate can be forecast"
    else:
        noise = "unknown: only the output can be forecast, over step or timestep"
    return [f"{facts['pipeline']} with {scheduler}", f"noise schedule {noise}"]


def _lines(name: str, found: ModelMap) -> list[str]:
    from unicp.reporting.summary import align

    facts = _facts(found)
    title = f"{name}: {facts['class']}, {facts['blocks']} blocks, {facts['parameters'] / 1e6:.1f} M parameters"
    levels = [
        ("level", "skipped as one"),
        *((level, f"no: {why}" if why else "yes") for level, why in _levels(found).items()),
        *(("block", f"not {row.attribute}: {row.refusal}") for row in found.family.block_lists if row.refusal),
    ]
    rows = [("units", "role", "heads", "width", "sliced", "text keys"), *_unit_rows(found.units)]
    refusal = found.family.noise_refusal
    noise = [f"noise level unknown: {refusal}; only the output is forecast"] if refusal else []
    return ["", title, *noise, "", *align(levels), "", *align(rows, right=(2, 3))]


def _unit_rows(units: tuple[Unit, ...]) -> list[tuple[str, ...]]:
    """One row for all units that differ only in the number of their block."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for unit in units:
        blocks, number, attribute = unit.name.split(".", 2)
        shape = tuple("-" if value is None else str(value) for value in (unit.heads, unit.head_width))
        sliced = "yes" if unit.sliceable else f"no: {unit.why_not}"
        key = (blocks, attribute, unit.role, *shape, sliced, "constant" if unit.text_keys else "-")
        groups.setdefault(key, []).append(int(number))
    return [
        (f"{blocks}.{_ranges(numbers)}.{attribute}", *rest) for (blocks, attribute, *rest), numbers in groups.items()
    ]


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
