"""Makes docs/models.md out of the family table and what the contract suite found.

    make models                              # run the contract suites, keep what they found, and do the following
    python -m unicp_bench.models_table       # write docs/models.md

A row of the table that the suite has not tested shows as untested, and a test refuses that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unicp.errors import run_main
from unicp.files import read_json, write_text
from unicp.models.family_form import Family
from unicp.models.family_rows import AUDIO, IMAGE, REFUSED, VIDEO

RESULTS, DOCUMENT = Path("docs/results/models.json"), Path("docs/models.md")
LEVELS = ("model", "stack", "block", "unit")
# The contract's settings that slice, as they are named there.
SLICED = "paper"
Results = Mapping[str, Any]
_HEAD = """# Models

Made from the family table and from the results of the contract suite (`make models`); a test keeps it up to date.

Every model below is tested with tiny random weights, on a CPU: tolerance 0 is bit-equal, taking UniCP off leaves
nothing behind, no branch is served from another, nothing is left to the next run, errors are told per sample. That is
wiring, state and exactness. Quality was measured on the shipped models only, see [results.md](results.md).

## Your own model

A transformer that is in no table is made known by one call. Nothing of it is rewritten:

```python
import unicp

unicp.register(
    unicp.Family(
        transformer="MyDiT",  # the name of its class
        block_lists=(
            unicp.BlockListRow(
                "layers",  # where it keeps its blocks
                units=(  # the parts of a block, in the order in which they run
                    unicp.UnitRow("mixer", "self"),
                    unicp.UnitRow("reader", "cross", text_keys=True),
                    unicp.UnitRow("mlp", "feed_forward"),
                ),
                hidden_argument="tokens",  # the argument of a block that its output replaces
            ),
        ),
        sample_argument="latent",  # arguments of the transformer's forward
        timestep_argument="time",
        text_argument="words",
        timestep_scale=1000.0,  # times what the model is given, its timestep falls from about 1000 to 0
    )
)
unicp.enable(my_dit)
```

`help(unicp.Family)`, `help(unicp.BlockListRow)` and `help(unicp.UnitRow)` say what else a row can tell. Check yours
with `unicp inspect` and with `tolerance=0`, which must give the plain output bit for bit.

## Known models

Columns: what can be served as one (the model's output, the whole stack, a block, a unit), whether attention can run at
reduced width, and what can be forecast: the output alone, or the noise and the clean estimate too.
"""

_PIPELINES = """## Pipelines

Each was built tiny, of its real classes with random weights, and called: tolerance 0 gives its plain output bit for
bit, with a generous one something is served, the trace has its runs, steps and branches, a second call is that of a
fresh session, an interrupt or another number of steps leaves nothing behind. Guidance: how prompts with and without
content reach the transformer, in one batch, in calls one after the other, or not at all. Context: whether the pipeline
names these calls (`cache_context`); where it does not, UniCP tells them apart itself. All pipelines of video are here,
and the main ones of images and sound."""


def document(results: Results) -> str:
    """docs/models.md as text. results: what `--write-matrix` wrote."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [_HEAD + f"\nTested with {versions}."]
    for title, rows in (("Video", VIDEO), ("Images", IMAGE), ("Audio", AUDIO)):
        parts.append(f"### {title}\n\n{_table(rows, results['contract'])}\n\n{_notes(rows)}")
    refused = "\n".join(f"| `{row.transformer}` | {row.refusal} |" for row in REFUSED)
    parts.append(
        "## Refused\n\n`unicp.enable` says so and changes nothing.\n\n| transformer | why |\n|---|---|\n" + refused
    )
    parts.append(_PIPELINES + "\n\n" + _pipelines(results["pipelines"]))
    if results.get("by_version"):
        parts.append(_versions(results["by_version"]))
    parts.append(_combined(results["combined"]))
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Family], contract: Mapping[str, Any]) -> str:
    head = "| transformer | " + " | ".join(LEVELS) + " | sliced | forecast |\n" + "|---" * (len(LEVELS) + 3) + "|"
    return "\n".join([head, *(_row(row, contract.get(row.transformer, {})) for row in rows)])


def _row(row: Family, kinds: Mapping[str, Any]) -> str:
    refused = {"stack": bool(row.stack_refusal), "block": all(blocks.refusal for blocks in row.block_lists)}
    cells = [_cell(kinds.get(level), refused.get(level, False)) for level in LEVELS]
    cells.append(_cell(kinds.get(SLICED), not _sliceable(row)))
    cells.append("output" if row.noise_refusal else "all")
    return f"| `{row.transformer}` | {' | '.join(cells)} |"


def _cell(result: Mapping[str, int] | None, is_refused: bool) -> str:
    if is_refused:
        return "no"
    if result is None or not result["passed"]:
        return "untested"
    return "fails" if result["failed"] else "yes"


def _sliceable(row: Family) -> bool:
    units = (unit for blocks in row.block_lists for unit in blocks.units)
    return any(unit.role not in ("cross", "feed_forward") and not unit.slice_refusal for unit in units)


def _notes(rows: Sequence[Family]) -> str:
    told = ((row.transformer, " ".join(_sentences(row))) for row in rows)
    return "\n".join(f"- `{name}`: {sentences}" for name, sentences in told if sentences)


def _sentences(row: Family) -> list[str]:
    told = [f"No stack: {row.stack_refusal}."] if row.stack_refusal else []
    for blocks in row.block_lists:
        if blocks.refusal and blocks.refusal != row.stack_refusal:
            told.append(f"`{blocks.attribute}` not served as blocks: {blocks.refusal}.")
        told += [f"`{unit.attribute}` not sliced: {unit.slice_refusal}." for unit in blocks.units if unit.slice_refusal]
    if row.noise_refusal:
        told.append(f"Only the output is forecast: {row.noise_refusal}.")
    return [*told, row.notes] if row.notes else told


def _pipelines(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per pipeline and way of using it, in the order of the transformers above."""
    order = {family.transformer: place for place, family in enumerate((*VIDEO, *IMAGE, *AUDIO))}
    lines = ["| pipeline | used | transformer | guidance | context | result |", "|---|---|---|---|---|---|"]
    # One that failed at once could not tell its transformer.
    told = [{"transformer": "", **row} for row in rows.values()]
    for row in sorted(told, key=lambda row: (order.get(row["transformer"], -1), row["pipeline"], row["way"])):
        context = {True: "yes", False: "no"}.get(row.get("context", ""), "")
        cells = [row["way"], f"`{row['transformer']}`", row["guidance"], context, row["result"]]
        lines.append(f"| `{row['pipeline']}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _versions(versions: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per version of diffusers: how many of the models above work with it, and which it does not have."""
    lines = [
        "## Versions of diffusers",
        "",
        "Tolerance 0 is bit-equal in each model and level (`make versions`).",
        "",
    ]
    lines += ["| diffusers | models that pass | that fail | that it does not have |", "|---|---|---|---|"]
    for version, found in versions.items():
        failed, absent = (", ".join(f"`{name}`" for name in found[key]) or "none" for key in ("failed", "absent"))
        lines.append(f"| {version} | {len(found['passed'])} | {failed} | {absent} |")
    return "\n".join(lines)


def _combined(combined: Mapping[str, Mapping[str, str]]) -> str:
    """One row per thing that people combine UniCP with: on which models it was tested, and what came of it."""
    lines = ["## Combined with", "", "| with | what happens | tested on |", "|---|---|---|"]
    for what, outcomes in combined.items():
        for outcome in dict.fromkeys(outcomes.values()):
            names = ", ".join(f"`{name}`" for name, found in outcomes.items() if found == outcome)
            lines.append(f"| {what} | {outcome} | {names} |")
    return "\n".join(lines)


def main() -> int:
    """The command line; see the module's docstring."""
    write_text(DOCUMENT, document(read_json(RESULTS)))
    return 0


if __name__ == "__main__":
    run_main(main)
