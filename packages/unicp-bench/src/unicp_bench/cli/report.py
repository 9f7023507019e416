"""`unicp report`: writes measured rows as one HTML file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from unicp.cli import options
from unicp.errors import InputError

_BEGINNING = 200
_KIND = re.compile(rb'\s*\{\s*"type"\s*:\s*"unicp\.([a-z]{1,20})"')
_FOR = {"trace": "--trace"}


def report(
    rows: Annotated[list[Path], typer.Argument(metavar="ROWS...", help="Files that `unicp bench` wrote.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The HTML file to write.")] = Path("report.html"),
    clips: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also show the worst clips, kept by `unicp bench --clips`.")
    ] = None,
    worst: Annotated[int, typer.Option(metavar="N", help="How many of the worst clips of each family.")] = 6,
    family: Annotated[
        list[str] | None,
        typer.Option(
            "--family", metavar="NAME", help="Show clips of this family only (repeat for more) [default: all]."
        ),
    ] = None,
    attention: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also draw how attention changes (from experiments.attention_change)."),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also map the decisions of a run (`unicp generate --trace`).")
    ] = None,
) -> None:
    """Write measured rows as one HTML file.

    It has figures, tables, maps of the work, and the worst clips. Everything is inside the file, also videos. The same
    input gives the same file.

    \b
    Examples:
      unicp report build/bench/quick-glyphs.jsonl
      unicp report unipc.jsonl euler.jsonl --out peers.html --clips clips --worst 3
      unicp report peers.jsonl --clips clips --family UniCP --family "fewer steps"
    """
    if worst < 1:
        raise InputError(f"--worst {worst}", "not a positive number", "use 1 or more")
    if clips is None and family:
        raise InputError("--family", "no --clips that it could choose from", "give --clips too")
    read = {f"ROWS {file}": file for file in rows}
    options.check_written("--out", out, {**read, "--attention": attention, "--trace": trace})
    for file in rows:
        _check_rows(file)

    from unicp.records import load_trace
    from unicp_bench.html.attention import load_attention
    from unicp_bench.html.clips import Clips
    from unicp_bench.html.page import Extras, write_report
    from unicp_bench.parts import load_rows

    found = load_rows(rows)
    extras = Extras(
        attention=None if attention is None else load_attention(attention),
        trace=None if trace is None else load_trace(trace),
        clips=None if clips is None else Clips(clips, worst, tuple(family or ())),
    )
    write_report(found, out, extras)
    typer.echo(f"{out}: {len(found)} rows, {out.stat().st_size / 1e6:.1f} MB")


def _check_rows(file: Path) -> None:
    """Refuses files of other kinds, and says what they are for."""
    if not os.path.isfile(file):
        return  # `load_rows` reports it
    try:
        with file.open("rb") as opened:
            # Every file of UniCP begins with its type.
            known = _KIND.match(opened.read(_BEGINNING))
    except OSError:
        return
    if known is not None:
        kind = known[1].decode("ascii")
        do = "give a file that `unicp bench` wrote" + (f", and this one with {_FOR[kind]}" if kind in _FOR else "")
        raise InputError(f"rows in {file}", f"a {kind}", do)
