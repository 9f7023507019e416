"""Measured rows on disk: one JSON line per method, setting, prompt and seed; a killed run continues where it was."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from unicp.errors import FileFormatError, InputError

PLAIN, PLANNED = "plain", "UniCP planned"  # families that more than one place knows by name
_NUMBERS = ("operations", "full_operations", "seconds", "plain_seconds")


@dataclass(frozen=True)
class Row:
    """One run of a method against the plain run of the same model, sampler, prompt and seed.

    suite, model, sampler, prompt, seed: what was asked; sampler is that of the plain run. method: the family
    ("diffusers FirstBlockCache"), setting: what its sweep varies ("threshold 0.08"). steps: of this run.
    reason: why the method cannot run here; then all numbers are 0.
    operations: executed inside the transformer, two per multiply-add; full_operations: by the plain run.
    seconds: the whole pipeline call; model_seconds: inside the transformer. peak_bytes: most memory of the
    process above that before the call; cache_bytes: tensors alive shortly before the last step beyond those of the
    plain run. work: operations of each step as a share of a plain step.
    fidelity: numbers against the plain clip by name (`clip_metrics`), and adherence to the prompt.
    environment: versions, device, commit: what is needed to run this row again.
    """

    suite: str
    model: str
    sampler: str
    method: str
    setting: str
    prompt: str
    seed: int
    steps: int
    reason: str = ""
    operations: int = 0
    full_operations: int = 0
    seconds: float = 0.0
    plain_seconds: float = 0.0
    model_seconds: float = 0.0
    plain_model_seconds: float = 0.0
    peak_bytes: int = 0
    plain_peak_bytes: int = 0
    cache_bytes: int = 0
    work: list[float] = field(default_factory=list)
    fidelity: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str, str, str, int]:
        """What makes a row the same measurement."""
        return self.model, self.sampler, self.method, self.setting, self.prompt, self.seed

    @property
    def name(self) -> str:
        """Method and setting in one string."""
        return f"{self.method} {self.setting}".strip()

    @property
    def measured(self) -> bool:
        """False for a row that only says why the method cannot run."""
        return not self.reason


def read_rows(path: Path) -> list[Row]:
    """All whole rows of a file; a last line that was cut off by a kill is not one. [] if there is no file.

    Raises FileFormatError for a damaged line before the last one.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"rows in {path}", f"not readable ({error})", "name a file of rows") from None
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(_parse(line))
        except (TypeError, ValueError, RecursionError) as error:
            # Every whole row ends with a line break, so only what stands behind the last one can be half a row.
            if number == len(lines):
                continue
            found = f"line {number} is damaged ({error})"
            raise FileFormatError(f"rows in {path}", found, "delete that line") from None
    return rows


def _parse(line: str) -> Row:
    values = json.loads(line, parse_constant=_refuse)
    if not isinstance(values, dict):
        raise ValueError("not an object")
    values["fidelity"] = {k: math.nan if v is None else float(v) for k, v in values.get("fidelity", {}).items()}
    row = Row(**values)
    for name in _NUMBERS:
        number = getattr(row, name)
        if isinstance(number, bool) or not isinstance(number, (int, float)) or number < 0:
            raise ValueError(f"{name} is {number!r}")
    if row.measured and (row.full_operations == 0 or row.seconds == 0 or row.plain_seconds == 0):
        raise ValueError("a measured row without operations or seconds")
    return row


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def append_row(path: Path, row: Row) -> None:
    """Adds one row in one write, after removing what a kill left of a half-written one. Raises InputError."""
    values = asdict(row)
    values["fidelity"] = {k: None if math.isnan(v) else round(v, 5) for k, v in row.fidelity.items()}
    defaults = {f.name: f.default for f in fields(Row)}
    values = {k: v for k, v in values.items() if v != defaults.get(k) and v not in ({}, [])}
    line = (json.dumps(values, allow_nan=False) + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            end = file.tell()
            if end:
                whole = _whole_bytes(path)
                if whole < end:
                    file.truncate(whole)
            file.write(line)
            file.flush()
    except OSError as error:
        raise InputError(f"to write {path}", str(error), "choose another file") from None


def _whole_bytes(path: Path) -> int:
    """Bytes up to and with the last line break."""
    return path.read_bytes().rfind(b"\n") + 1
