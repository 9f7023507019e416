"""The trace: what was done in each call, why, and what it cost; a versioned JSON file. No tensors."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from unicp.errors import FileFormatError
from unicp.files import Number, Step, Whole, Within, load_record, renamed, save_record

TRACE_TYPE, TRACE_VERSION = "unicp.trace", 3
# Largest map of a run, cache points times steps.
MOST_CELLS = 20_000_000

ActionName = Literal["full", "slice", "forecast", "reuse"]


@dataclass
class Entry:
    """One line of a trace: one cache point, at one step, in one branch.

    Attributes:
        run: Number of the run in its session.
        step: Index of the noise level in the run, from 0.
        branch: Name of the denoising call within the step.
        point: Name of the cache point.
        action: What was done, as in `unicp.context.Action`.
        reason: Why, in one word.
        sigma: Normalised noise level in [0, 1]; `None` = not known.
        tolerance: Largest error that skipping might have had.
        predicted: Predicted relative error of skipping, one number per sample.
        measured: Relative error that skipping would have had, one number per sample; known only for full calls.
        width: Channels of a head that a slice kept.
        predictor: How a skipped call was filled.
        operations: Executed, two per multiply-add.
        full_operations: That the plain model would have executed.
        seconds: Wall time of the call.
        stored_bytes: Bytes held in the store after it.
    """

    run: Whole
    step: Step
    branch: str
    point: str
    action: ActionName
    reason: str
    sigma: Number | None
    tolerance: Number
    predicted: list[Number] | None = None
    measured: list[Number] | None = None
    width: Whole | None = None
    predictor: str | None = None
    operations: Whole = 0
    full_operations: Whole = 0
    seconds: Annotated[float, Within(0, 1e30)] = 0.0
    stored_bytes: Whole = 0


@dataclass
class Trace:
    """What every cache point did at every step, why, and what it cost.

    Attributes:
        model: Class of the transformer.
        device: Of the transformer.
        dtype: Of most of its parameters.
        settings: As `Settings.to_dict` gives them.
        preset: Name of the session; `None` for settings that are no preset.
        entries: One for each call of each cache point.
        warnings: One line each.
        counts: How often each cause of a warning came about.
        run_steps: Number of steps of a run, by the number of the run as text; without runs of unknown length.
    """

    model: str
    device: str
    dtype: str
    settings: dict[str, Any]
    preset: str | None = None
    entries: list[Entry] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    run_steps: dict[str, Step] = field(default_factory=dict)

    def clear(self) -> None:
        """Forgets all entries, warnings and counts."""
        self.entries.clear()
        self.run_steps.clear()
        self.warnings.clear()
        self.counts.clear()


def save_trace(trace: Trace, path: str | Path) -> None:
    """Writes a trace as JSON.

    Raises:
        InputError: The path cannot be written, or a setting cannot be expressed in JSON.
    """
    save_record(trace, TRACE_TYPE, TRACE_VERSION, path, check=False)


def load_trace(path: str | Path) -> Trace:
    """Reads a trace that `save_trace` wrote, of this version or an older one.

    Raises:
        InputError: There is no readable file.
        FileFormatError: It is damaged, foreign, of a later version, or has unknown, missing or mistyped fields.

    Example:
        >>> from unicp.records import save_trace
        >>> save_trace(Trace("Made", "cpu", "float32", {}), "trace.json")
        >>> load_trace("trace.json").model
        'Made'
    """
    older = {1: _from_version_1, 2: _from_version_2}
    trace = load_record(Trace, TRACE_TYPE, TRACE_VERSION, path, "record it again", older)
    steps = 1 + max((entry.step for entry in trace.entries), default=0)
    lines = len({(entry.run, entry.point, entry.branch) for entry in trace.entries})
    if steps * lines > MOST_CELLS:
        raise FileFormatError(f"a trace in {path}", f"{lines} cache points of {steps} steps", "record it again")
    return trace


def _from_version_1(body: dict[str, Any]) -> dict[str, Any]:
    """The names of version 2: an entry had "why" for "reason", "choice" for "predictor", "compute" for "full"."""
    body = _named_anew(body, {"why": "reason", "choice": "predictor"})
    for entry in body["entries"] if isinstance(body.get("entries"), list) else ():
        if isinstance(entry, dict) and entry.get("action") == "compute":
            entry["action"] = "full"
    return body


def _from_version_2(body: dict[str, Any]) -> dict[str, Any]:
    """The names of version 3: an entry had "unit" for "point"."""
    return _named_anew(body, {"unit": "point"})


def _named_anew(body: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """With entries under other names; anything else is left for the reader to find fault with."""
    entries = body.get("entries")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return body
    return body | {"entries": [renamed(entry, names) for entry in entries]}
