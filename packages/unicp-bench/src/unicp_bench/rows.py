"""Measured rows on disk: one JSON line per method, setting, prompt and seed; a killed run continues where it was."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from unicp.errors import FileFormatError, InputError
from unicp.files import MisfitError, Step, Within, append_line, json_line, parse_json, read_as, read_bytes

PLAIN, PLANNED = "plain", "UniCP planned"  # families that several modules know by name
MOST_BYTES = 180  # of the name of a clip; file systems allow 255, and an unfinished file's is longer
RowKey = tuple[str, str, str, str, str, str, int]
_Count = Annotated[int, Within(0, 2**63 - 1)]
_Seconds = Annotated[float, Within(0, 1e9)]
_Metric = Annotated[float, Within(-1e9, 1e9, endless=True, missing=True)]


@dataclass(frozen=True)
class Row:
    """One run of a method against the plain run of the same model, sampler, prompt and seed.

    Attributes:
        suite, model, sampler, prompt, seed: What was asked; `sampler` is that of the plain run.
        method: The family, such as "diffusers FirstBlockCache".
        setting: What its sweep varies, such as "threshold 0.08".
        steps: Of this run.
        reason: Why the method cannot run here; all numbers are then 0.
        operations: Executed inside the transformer, two per multiply-add.
        full_operations: Those of the plain run.
        seconds, plain_seconds: Of the whole pipeline call.
        model_seconds, plain_model_seconds: Inside the transformer.
        peak_bytes, plain_peak_bytes: Most memory of the process above that before the call.
        cache_bytes: Tensors alive shortly before the last step, beyond those of the plain run.
        work: Operations of each step as a share of a plain step.
        fidelity: Numbers against the plain clip by name (`clip_metrics`), and adherence to the prompt.
        environment: What is needed to run this row again: versions, device, commit, fingerprint of the model.
        conditions: A hash of that (`unicp_bench.conditions`). Old rows have ""; they are shown, but never taken for a
            measurement that is asked for now.
        paired: Whether the plain run was timed right before this one, so that their seconds may be compared.

    Raises:
        FileFormatError: A measured row has no operations or seconds.
    """

    suite: str
    model: str
    sampler: str
    method: str
    setting: str
    prompt: str
    seed: int
    steps: Step
    reason: str = ""
    operations: _Count = 0
    full_operations: _Count = 0
    seconds: _Seconds = 0.0
    plain_seconds: _Seconds = 0.0
    model_seconds: _Seconds = 0.0
    plain_model_seconds: _Seconds = 0.0
    peak_bytes: _Count = 0
    plain_peak_bytes: _Count = 0
    cache_bytes: _Count = 0
    work: list[Annotated[float, Within(0, 1e6)]] = field(default_factory=list)
    fidelity: dict[str, _Metric] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    conditions: str = ""
    paired: bool = False

    def __post_init__(self) -> None:
        if self.measured and not (self.full_operations > 0 and self.seconds > 0 and self.plain_seconds > 0):
            raise FileFormatError("a row", "a measured row without operations or seconds", "measure again")

    @property
    def key(self) -> RowKey:
        """Equal for rows of the same measurement."""
        return self.conditions, self.model, self.sampler, self.method, self.setting, self.prompt, self.seed

    @property
    def name(self) -> str:
        """Method and setting in one string."""
        return f"{self.method} {self.setting}".strip()

    @property
    def measured(self) -> bool:
        """Whether the method could run."""
        return not self.reason


def clip_file(row: Row) -> str:
    """The file name of a kept clip: readable words, and a hash of the row's key."""
    words = f"{row.model} {row.sampler} {row.name or PLAIN} {row.prompt} {row.seed}"
    name = "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in words)
    if not row.conditions and len(name.encode()) < MOST_BYTES:
        return name + ".mp4"  # the name of old clips
    short = name.encode()[:MOST_BYTES].decode(errors="ignore")
    return f"{short}-{hashlib.sha256(repr(row.key).encode()).hexdigest()[:10]}.mp4"


def read_rows(path: Path) -> list[Row]:
    """Reads all rows of a file, without a last line that was cut off by a kill; [] if there is no file.

    Raises:
        InputError: It cannot be read.
        FileFormatError: A line before the last one is damaged.
    """
    if not os.path.exists(path):
        return []
    rows: list[Row] = []
    lines = read_bytes(path).split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(_parse(line))
        except (MisfitError, FileFormatError) as error:
            # Every whole row ends with a line break, so only the last line can be cut off.
            if number == len(lines):
                continue
            found = f"line {number} is damaged ({getattr(error, 'found', str(error))})"
            raise FileFormatError(f"rows in {path}", found, "delete that line") from None
    return rows


def append_row(path: Path, row: Row) -> None:
    """Adds one row, and waits until it is on the disk. Removes first what a kill left of a half-written one.

    Raises:
        InputError: It cannot be written; the file is then as it was.
    """
    defaults = {f.name: f.default for f in fields(Row)}
    values = {k: v for k, v in vars(row).items() if v != defaults.get(k) and v not in ({}, [])}
    if row.fidelity:
        values["fidelity"] = {k: None if math.isnan(v) else round(v, 5) for k, v in row.fidelity.items()}
    try:
        line = json_line(values)
        _parse(line.encode())
        path.parent.mkdir(parents=True, exist_ok=True)
    except (MisfitError, TypeError, ValueError) as error:
        raise InputError(f"to write a row to {path}", str(error), "see what made such a row") from None
    except OSError as error:
        raise InputError(f"to write {path}", str(error), "choose another file") from None
    append_line(path, line)


def _parse(line: bytes) -> Row:
    """Raises MisfitError, FileFormatError."""
    values = parse_json(line, "a row", "delete that line")
    numbers = values.get("fidelity") if isinstance(values, dict) else None
    if isinstance(numbers, dict):
        values["fidelity"] = {name: "nan" if number is None else number for name, number in numbers.items()}
    return read_as(Row, values)
