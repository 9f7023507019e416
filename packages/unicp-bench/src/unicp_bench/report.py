"""Writes the measured tables into the documents, or checks that they are what was measured.

    python -m unicp_bench.report            # rewrite the documents
    python -m unicp_bench.report --check    # exit code 1 if a table differs from its rows

A table is between `<!-- table NAME -->` and `<!-- end -->`. NAME is a file of docs/results without its suffix, after a
colon the sampler, and after another one the kind:

    equal            the rivals at the compute of each setting of UniCP
    margins          UniCP and the best peer at each speed-up; "margins-seconds" by seconds, if rows are paired,
                     "margins-METRIC" by another metric than PSNR
    faster           the same at each fidelity
    met, need        how often targets were met, and what they spent beside the least possible
    transfer         the margins of all models and samplers in a file (no sampler in the name)
    best             long sweeps of peers, without the settings that others of the same peer beat
    constants        what each constant of the online rule does (of a JSON file)

Of a JSON file it is the list "rows", or after two colons another list ("slices::projected").

Every table is over the clips that all its rows have, and says if that leaves some out.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from unicp.errors import FileFormatError, InputError, run_main
from unicp.files import MisfitError, read_as, read_json, reason, write_text
from unicp_bench.rows import read_rows
from unicp_bench.statistics import Group, group_rows, share
from unicp_bench.tables import (
    best_settings,
    equal_compute,
    faster,
    margins,
    markdown,
    measured,
    targets_met,
    targets_need,
)
from unicp_bench.transfer import transfer_table

DOCUMENTS = ("README.md", "docs/results.md", "docs/planning.md")
RESULTS = Path("docs/results")
_BLOCK = re.compile(r"<!-- table (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def fill(text: str, results: Path) -> str:
    """Makes every marked table of a document again.

    Args:
        text: Of the document.
        results: Folder of the rows.

    Raises:
        InputError: A table has no measured rows, or rows that do not belong together.
    """
    return _BLOCK.sub(lambda match: f"<!-- table {match[1]} -->\n{_table(match[1], results)}\n<!-- end -->", text)


def _table(name: str, results: Path) -> str:
    stem, sampler, kind = (*name.split(":"), "", "")[:3]
    rows = [row for row in read_rows(results / f"{stem}.jsonl") if row.sampler == sampler or kind == "transfer"]
    if rows and kind == "transfer":
        head, lines, note = transfer_table(rows)
        return markdown(head, lines, note)
    if rows:
        if len({(row.model, row.conditions) for row in rows}) > 1:
            found = f"rows of several models or measured under different conditions in {results / stem}.jsonl"
            raise InputError(f"table {name}", found, "keep those of one measurement in the file")
        if kind.startswith("margins"):
            return margins(rows, kind.removeprefix("margins").removeprefix("-"))
        if kind == "faster":
            return faster(rows)
        shared = share(_one_length(name, _ordered(group_rows(rows))))
        kinds = {"equal": equal_compute, "met": targets_met, "need": targets_need, "best": best_settings}
        table = kinds.get(kind, measured)([*shared.groups])
        return f"{table}\n\n{shared.note}" if shared.note else table
    path = results / f"{stem}.json"
    if not path.is_file():
        raise InputError(f"table {name}", f"no rows in {results}", "run the benchmark that makes them")
    record = read_json(path)
    try:
        if kind == "constants":
            return _constants(record["rows"])
        return _plain_table(read_as(list[dict[str, str | int | float]], record[kind or "rows"]))
    except (MisfitError, KeyError, TypeError) as error:
        found = f"no such table in {path} ({reason(error)})"
        raise FileFormatError(f"table {name}", found, "run the benchmark that makes it") from error


def _one_length(name: str, groups: list[Group]) -> list[Group]:
    against = {group.reference.name for group in groups if not group.reason}
    if len(against) > 1:
        found = f"rows against {', '.join(sorted(against))}"
        raise InputError(f"table {name}", found, "keep rows of other lengths in a file of their own")
    return groups


def _ordered(groups: list[Group]) -> list[Group]:
    """UniCP first, then windows, then everything else; each method by compute."""

    def place(group: Group) -> tuple[int, str, float]:
        kind = 0 if group.method == "UniCP" else 1 if group.method == "fixed window" else 2
        return kind, group.method, 0.0 if group.reason else group.operations

    return sorted(groups, key=place)


def _plain_table(rows: list[dict[str, Any]]) -> str:
    cells = ([f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows)
    return markdown(list(rows[0]) if rows else [], cells)


def _constants(rows: list[dict[str, Any]]) -> str:
    """Mean and worst dB at each speed-up, where a row has one; targets of fidelity are left out."""
    ups = sorted({name for row in rows for name in row["result"] if name.endswith("x")})
    cells = []
    for row in rows:
        found = [row["result"].get(name) for name in ups]
        if any(found):
            name, value = row["constant"].rpartition(".")[2], f"{row['value']:g}"
            told = [f"{one['mean']:.1f} / {one['worst']:.1f}" if one else "-" for one in found]
            cells.append([name, f"**{value}**" if row["chosen"] else value, *told])
    return markdown(["constant", "value", *ups], cells)


def main() -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = []
    for name in DOCUMENTS:
        path = Path(name)
        before = path.read_text(encoding="utf-8")
        after = fill(before, RESULTS)
        if before != after:
            stale.append(name)
            if not options.check:
                write_text(path, after)
    if stale and options.check:
        print(f"tables differ from the measured rows in {', '.join(stale)}: run python -m unicp_bench.report")
        return 1
    return 0


if __name__ == "__main__":
    run_main(main)
