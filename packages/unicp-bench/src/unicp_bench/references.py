"""Which plain run a row is measured against: rows of longer clips or of more steps do not belong in one table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from unicp_bench.rows import Row

Size = tuple[int | None, int | None, int | None]
_Of = tuple[str, str, str, Size]  # conditions, model, sampler
_UNKNOWN: Size = (None, None, None)


@dataclass(frozen=True)
class Reference:
    """The plain run that rows are measured against. frames, height, width: None where a row does not say."""

    steps: int
    frames: int | None = None
    height: int | None = None
    width: int | None = None

    @property
    def name(self) -> str:
        """Steps and frames in words."""
        return f"{self.steps} steps" if self.frames is None else f"{self.steps} steps, {self.frames} frames"


def references(rows: Sequence[Row]) -> list[Reference]:
    """For each row the plain run that it is measured against.

    Rows do not name it. What one plain run costs tells it from others of the same model: rows that give the same number
    belong together, and the one with most steps among them has the steps of the plain run. Rows under other conditions
    say nothing of these: one model may have the name of another.
    """
    sizes: dict[tuple[str, str, int], Size] = {}
    steps: dict[tuple[str, str, int], int] = {}
    for row in rows:
        if row.measured:
            cost = row.conditions, row.model, row.full_operations
            steps[cost] = max(steps.get(cost, 0), row.steps)
            if _size(row) != _UNKNOWN:
                sizes.setdefault(cost, _size(row))
    known: dict[_Of, set[int]] = {}
    found: list[Reference | None] = []
    for row in rows:
        if not row.measured:
            found.append(None)
            continue
        cost = row.conditions, row.model, row.full_operations
        size = _size(row) if _size(row) != _UNKNOWN else sizes.get(cost, _UNKNOWN)
        known.setdefault((row.conditions, row.model, row.sampler, size), set()).add(steps[cost])
        found.append(Reference(steps[cost], *size))
    return [against or _of_failed(row, known) for row, against in zip(rows, found)]


def _of_failed(row: Row, known: Mapping[_Of, Collection[int]]) -> Reference:
    """A row that could not run has no cost; its method may have asked for fewer steps than the plain run has."""
    more = [
        steps for steps in known.get((row.conditions, row.model, row.sampler, _size(row)), ()) if steps >= row.steps
    ]
    return Reference(min(more, default=row.steps), *_size(row))


def _size(row: Row) -> Size:
    call = row.environment.get("call")
    if not isinstance(call, dict):
        return _UNKNOWN
    values = (call.get("num_frames", call.get("video_length")), call.get("height"), call.get("width"))
    frames, height, width = (value if isinstance(value, int) else None for value in values)
    return frames, height, width
