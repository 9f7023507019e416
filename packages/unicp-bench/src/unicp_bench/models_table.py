"""Makes docs/models.md from the family table and the results of the contract suite.

    make models                              # run the contract suites, save their results, and do the following
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
from unicp_bench.tables import markdown

RESULTS, DOCUMENT = Path("docs/results/models.json"), Path("docs/models.md")
LEVELS = ("model", "stack", "block", "unit")
# The contract's settings that slice, as they are named there.
SLICED = "paper"
Results = Mapping[str, Any]
_HEAD = """# Models

Made from the family table and from the results of the contract suite (`make models`); a test keeps it up to date.

Every model below is tested with tiny random weights on a CPU. With tolerance 0 its output is bit-equal to the plain
one. Disabling UniCP leaves nothing behind. No branch gets the output of another, and no run that of the run before.
Errors are measured per sample. These tests cover wiring, state and exactness; quality was measured on the shipped
models only ([results.md](results.md)).

## Your own model

One call makes a transformer known that is in no table. None of its code is rewritten:

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

`help(unicp.Family)`, `help(unicp.BlockListRow)` and `help(unicp.UnitRow)` describe the other fields. Check your row
with `unicp inspect`, and with `tolerance=0`, which must give the plain output bit for bit.

## Known models

The tables show what UniCP can do with each model: the levels at which it can skip (the model's output, the whole
stack, a block, a unit), whether attention can run at reduced width, and what can be forecast ("output" alone, or "all":
the noise and the clean estimate too).
"""

_PIPELINES = """## Pipelines

The table shows the pipelines that were built tiny, of their real classes with random weights, and called. All
pipelines of video are here, and the main ones of images and sound. For each of them:

- Tolerance 0 gives the plain output bit for bit, and a large tolerance skips steps.
- The trace has its runs, steps and branches.
- A second call gives what a fresh session gives. An interrupt or another number of steps leaves nothing behind.

The column "guidance" says how prompts with and without content reach the transformer: in one batch, in calls one after
the other, or not at all. "Context" says whether the pipeline names these calls (`cache_context`); where it does not,
UniCP tells them apart itself."""


def document(results: Results) -> str:
    """Makes the text of docs/models.md.

    Args:
        results: What the test option `--write-matrix` wrote.
    """
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [_HEAD + f"\nTested with {versions}."]
    for title, rows in (("Video", VIDEO), ("Images", IMAGE), ("Audio", AUDIO)):
        parts.append(f"### {title}\n\n{_table(rows, results['contract'])}\n\n{_notes(rows)}")
    refused = markdown(("transformer", "why"), ((f"`{row.transformer}`", row.refusal) for row in REFUSED))
    parts.append(f"## Refused\n\n`unicp.enable` says so and changes nothing.\n\n{refused}")
    parts.append(_PIPELINES + "\n\n" + _pipelines(results["pipelines"]))
    if results.get("by_version"):
        parts.append(_versions(results["by_version"]))
    parts.append(_combined(results["combined"]))
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Family], contract: Mapping[str, Any]) -> str:
    head = ("transformer", *LEVELS, "sliced", "forecast")
    return markdown(head, (_row(row, contract.get(row.transformer, {})) for row in rows))


def _row(row: Family, kinds: Mapping[str, Any]) -> list[str]:
    refused = {"stack": bool(row.stack_refusal), "block": all(blocks.refusal for blocks in row.block_lists)}
    cells = [_cell(kinds.get(level), refused.get(level, False)) for level in LEVELS]
    cells.append(_cell(kinds.get(SLICED), not _sliceable(row)))
    return [f"`{row.transformer}`", *cells, "output" if row.noise_refusal else "all"]


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
            told.append(f"`{blocks.attribute}` not skipped as blocks: {blocks.refusal}.")
        told += [f"`{unit.attribute}` not sliced: {unit.slice_refusal}." for unit in blocks.units if unit.slice_refusal]
    if row.noise_refusal:
        told.append(f"Only the output is forecast: {row.noise_refusal}.")
    return [*told, row.notes] if row.notes else told


def _pipelines(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per pipeline and way of using it, in the order of the transformers above."""
    order = {family.transformer: place for place, family in enumerate((*VIDEO, *IMAGE, *AUDIO))}
    lines = []
    # A pipeline that failed at once has no transformer in its row.
    told = [{"transformer": "", **row} for row in rows.values()]
    for row in sorted(told, key=lambda row: (order.get(row["transformer"], -1), row["pipeline"], row["way"])):
        context = {True: "yes", False: "no"}.get(row.get("context", ""), "")
        names = f"`{row['pipeline']}`", row["way"], f"`{row['transformer']}`"
        lines.append([*names, row["guidance"], context, row["result"]])
    return markdown(("pipeline", "used", "transformer", "guidance", "context", "result"), lines)


def _versions(versions: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per version of diffusers: how many of the models above work with it, and which it does not have."""
    lines = []
    for version, found in versions.items():
        failed, absent = (", ".join(f"`{name}`" for name in found[key]) or "none" for key in ("failed", "absent"))
        lines.append([version, str(len(found["passed"])), failed, absent])
    table = markdown(("diffusers", "models that pass", "that fail", "that it does not have"), lines)
    about = "The table shows with which models tolerance 0 is bit-equal at every level (`make versions`)."
    return f"## Versions of diffusers\n\n{about}\n\n{table}"


def _combined(combined: Mapping[str, Mapping[str, str]]) -> str:
    """One row per thing that people combine UniCP with: on which models it was tested, and what came of it."""
    lines = []
    for what, outcomes in combined.items():
        for outcome in dict.fromkeys(outcomes.values()):
            names = ", ".join(f"`{name}`" for name, found in outcomes.items() if found == outcome)
            lines.append([what, outcome, names])
    about = "The table shows what was tested together with UniCP, and on which models."
    return f"## Combined with\n\n{about}\n\n{markdown(('with', 'what happens', 'tested on'), lines)}"


def main() -> int:
    """The command line; see the module's docstring."""
    write_text(DOCUMENT, document(read_json(RESULTS)))
    return 0


if __name__ == "__main__":
    run_main(main)
