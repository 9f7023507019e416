"""A trace in numbers, and as a printed table. Needs no torch."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from unicp.context import Action
from unicp.files import json_ready
from unicp.records import Entry, Trace

WIDTH = 100

_LABEL_WIDTH = 18


@dataclass(frozen=True)
class ActionCost:
    """What one kind of action cost.

    Attributes:
        calls: Entries with it.
        share: Of all calls.
        operations: Executed, two per multiply-add.
        full_operations: That the plain model would have executed instead.
        seconds: Wall time.
    """

    calls: int
    share: float
    operations: int
    full_operations: int
    seconds: float


@dataclass(frozen=True)
class Summary:
    """The numbers of a trace.

    Attributes:
        model, preset, device, dtype, warnings: As in the trace.
        runs: Number of runs.
        calls: Entries, one per cache point, step and branch.
        actions: Cost by the name of the action, all four.
        reasons: Calls by reason.
        operations: Executed, two per multiply-add.
        full_operations: That the plain model would have executed.
        operations_saved: Full over executed; `None` = not counted, inf = nothing was executed.
        seconds: Wall time of all calls.
        worst_measured, mean_measured: Relative error that skipping would have had, measured in full calls. `None` =
            not measured; a mean is over finite numbers.
        worst_predicted, mean_predicted: Predicted relative error of skipped and sliced calls, likewise.
        peak_stored_bytes: Most bytes held in the store.
        non_finite: Forecasts refused for a NaN or infinity.
        dropped_runs: Older runs that the trace did not keep. No other number counts them.
    """

    model: str
    preset: str | None
    device: str
    dtype: str
    runs: int
    calls: int
    actions: dict[str, ActionCost]
    reasons: dict[str, int]
    operations: int
    full_operations: int
    operations_saved: float | None
    seconds: float
    worst_measured: float | None
    mean_measured: float | None
    worst_predicted: float | None
    mean_predicted: float | None
    peak_stored_bytes: int
    non_finite: int
    warnings: tuple[str, ...]
    dropped_runs: int = 0

    @property
    def computed(self) -> int:
        """Full calls."""
        return self.actions[Action.FULL.value].calls

    def to_dict(self) -> dict[str, Any]:
        """Plain values for strict JSON, with NaN and infinities as strings."""
        return json_ready(dataclasses.asdict(self))

    def text(self) -> str:
        """A table of at most 100 columns."""
        title = f"UniCP {self.preset or 'with own settings'}: {self.model} on {self.device}, {self.dtype}"
        lines = [_shorten(title, WIDTH)]
        if not self.calls:
            return "\n".join([*lines, "Nothing was recorded: the model was not called.", *self._notes()])
        counted = f"{_count(self.runs, 'run')}, {_count(self.calls, 'call')}"
        if self.computed == self.calls:
            lines.append(f"{counted}. Nothing was skipped: every call was full.")
        else:
            lines.append(f"{counted}, {self.computed} of them full.")
        return "\n".join([*lines, "", *self._table(), "", *self._notes()])

    def __str__(self) -> str:
        return self.text()

    def _table(self) -> list[str]:
        rows = [("action", "calls", "share", "operations", "plain model", "seconds")]
        for name, cost in self.actions.items():
            if cost.calls:
                counted = (_operations(cost.operations), _operations(cost.full_operations))
                rows.append((name, str(cost.calls), f"{cost.share:.1%}", *counted, f"{cost.seconds:.2f}"))
        counted = (_operations(self.operations), _operations(self.full_operations))
        rows.append(("total", str(self.calls), "100.0%", *counted, f"{self.seconds:.2f}"))
        return align(rows, right=range(1, 6))

    def _notes(self) -> list[str]:
        notes: list[tuple[str, str]] = []
        if self.calls:
            notes.append(("cost", self._cost()))
            notes.append(("why", ", ".join(f"{why} {count}" for why, count in self.reasons.items())))
        if self.worst_predicted is not None:
            what = _errors(self.mean_predicted, self.worst_predicted)
            notes.append(("error predicted", f"{what} (of skipped and sliced calls)"))
        if self.worst_measured is not None:
            what = _errors(self.mean_measured, self.worst_measured)
            notes.append(("error measured", f"{what} (of skipping, measured in full calls)"))
        if self.non_finite:
            notes.append(("not finite", f"{_count(self.non_finite, 'forecast')} with NaN or infinity, not used"))
        if self.dropped_runs:
            notes.append(("not kept", f"{_count(self.dropped_runs, 'older run')}, beyond the setting trace_entries"))
        notes += [("warning", warning) for warning in self.warnings]
        return [line for label, text in notes for line in _note(label, text)]

    def _cost(self) -> str:
        saved = "operations not counted"
        if self.operations_saved is not None:
            saved = f"{_operations(self.operations)} of {_operations(self.full_operations)} operations"
            saved += "" if math.isinf(self.operations_saved) else f" ({self.operations_saved:.2f}x fewer)"
        return f"{saved}, {self.seconds:.2f} s in the model, at most {_bytes(self.peak_stored_bytes)} stored"


def summarise(trace: Trace) -> Summary:
    """Summarises all runs of a trace."""
    entries = trace.entries
    operations, full = sum(e.operations for e in entries), sum(e.full_operations for e in entries)
    measured = [number for entry in entries for number in entry.measured or ()]
    acted = [entry for entry in entries if entry.action != Action.FULL.value]
    predicted = [number for entry in acted for number in entry.predicted or ()]
    return Summary(
        model=trace.model,
        preset=trace.preset,
        device=trace.device,
        dtype=trace.dtype,
        runs=len({entry.run for entry in entries}),
        calls=len(entries),
        actions={action.value: _action_cost(entries, action) for action in Action},
        reasons=dict(Counter(entry.reason for entry in entries).most_common()),
        operations=operations,
        full_operations=full,
        operations_saved=(full / operations if operations else math.inf) if full else None,
        seconds=math.fsum(entry.seconds for entry in entries),
        worst_measured=_worst(measured),
        mean_measured=_mean(measured),
        worst_predicted=_worst(predicted),
        mean_predicted=_mean(predicted),
        peak_stored_bytes=max((entry.stored_bytes for entry in entries), default=0),
        non_finite=trace.counts.get("non_finite", 0),
        warnings=tuple(trace.warnings),
        dropped_runs=trace.counts.get("dropped_runs", 0),
    )


def align(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Rows of equal length as lines with columns two spaces apart; columns in `right` end flush."""
    to_right = set(right)
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index in to_right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _action_cost(entries: list[Entry], action: Action) -> ActionCost:
    acted = [entry for entry in entries if entry.action == action.value]
    return ActionCost(
        calls=len(acted),
        share=len(acted) / max(1, len(entries)),
        operations=sum(entry.operations for entry in acted),
        full_operations=sum(entry.full_operations for entry in acted),
        seconds=math.fsum(entry.seconds for entry in acted),
    )


def _worst(numbers: list[float]) -> float | None:
    # NaN compares with nothing, so max() alone could hide one.
    if any(math.isnan(number) for number in numbers):
        return math.nan
    return max(numbers, default=None)


def _mean(numbers: list[float]) -> float | None:
    finite = [number for number in numbers if math.isfinite(number)]
    return math.fsum(finite) / len(finite) if finite else None


def _errors(mean: float | None, worst: float) -> str:
    return f"mean {'none finite' if mean is None else f'{mean:.3g}'}, worst {worst:.3g}"


def _note(label: str, text: str) -> list[str]:
    lines = textwrap.wrap(text, WIDTH - _LABEL_WIDTH) or [""]
    labels = [label] + [""] * (len(lines) - 1)
    return [f"{name:<{_LABEL_WIDTH}}{line}".rstrip() for name, line in zip(labels, lines, strict=True)]


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _scaled(number: float, base: float, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if number < base:
            return f"{number:.0f} {unit}".rstrip() if unit == units[0] else f"{number:.2f} {unit}"
        number /= base
    return f"{number:.2f} {units[-1]}"


def _operations(number: int) -> str:
    return _scaled(number, 1000, ("", "k", "M", "G", "T", "P"))


def _bytes(number: int) -> str:
    return _scaled(number, 1024, ("B", "KiB", "MiB", "GiB"))
