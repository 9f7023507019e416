"""Measured rows on disk: one JSON line per method, prompt and seed; a killed run continues where it was."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unicp.errors import FileFormatError

PSNR_CAP = 100.0  # equal outputs have no finite PSNR


@dataclass(frozen=True)
class Row:
    """One accelerated (or shortened) run against the plain run of the same prompt, seed and sampler.

    psnr: decibels over all pixels of the clip, peak 1. operations: executed by the model, two per multiply-add.
    seconds: the whole pipeline call. model_seconds: inside the transformer.
    """

    method: str
    sampler: str
    prompt: str
    seed: int
    steps: int
    psnr: float
    operations: int
    full_operations: int
    seconds: float
    plain_seconds: float
    peak_bytes: int = 0

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What makes a row the same measurement."""
        return self.method, self.sampler, self.prompt, self.seed


def read_rows(path: Path) -> list[Row]:
    """All whole rows of a file; a last line that was cut off by a kill is not one. [] if there is no file."""
    if not path.exists():
        return []
    rows: list[Row] = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(Row(**json.loads(line)))
        except (TypeError, ValueError) as error:
            if number == len(lines):
                continue
            raise FileFormatError(
                f"rows in {path}", f"line {number} is damaged ({error})", "delete that line"
            ) from None
    return rows


def append_row(path: Path, row: Row) -> None:
    """Adds one row, flushed to disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    start = "" if not text or text.endswith("\n") else "\n"
    with path.open("a", encoding="utf-8") as file:
        file.write(start + json.dumps(asdict(row)) + "\n")
        file.flush()


def worst_tenth(values: Sequence[float]) -> float:
    """Mean of the lowest tenth of the values (at least one)."""
    count = max(1, math.ceil(len(values) / 10))
    return statistics.fmean(sorted(values)[:count])


def aggregate(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """One dict per method and sampler, in order of appearance: operations and seconds saved (ratios of sums), PSNR."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.sampler), []).append(row)
    table: list[dict[str, Any]] = []
    for (method, sampler), members in groups.items():
        decibels = [row.psnr for row in members]
        table.append(
            {
                "method": method,
                "sampler": sampler,
                "clips": len(members),
                "operations": sum(r.full_operations for r in members) / max(1, sum(r.operations for r in members)),
                "seconds": sum(r.plain_seconds for r in members) / sum(r.seconds for r in members),
                "seconds_each": statistics.fmean(r.seconds for r in members),
                "psnr_mean": statistics.fmean(decibels),
                "psnr_worst_tenth": worst_tenth(decibels),
                "psnr_min": min(decibels),
                "peak_bytes": max(r.peak_bytes for r in members),
            }
        )
    return table


def markdown(table: Iterable[dict[str, Any]]) -> str:
    """The aggregate as a Markdown table."""
    head = "| method | clips | operations saved | seconds saved | seconds a clip | PSNR mean | worst tenth |\n"
    lines = [head + "|---|---|---|---|---|---|---|"]
    for row in table:
        lines.append(
            f"| {row['method']} | {row['clips']} | {row['operations']:.2f}x | {row['seconds']:.2f}x | "
            f"{row['seconds_each']:.1f} | {row['psnr_mean']:.1f} dB | {row['psnr_worst_tenth']:.1f} dB |"
        )
    return "\n".join(lines)
