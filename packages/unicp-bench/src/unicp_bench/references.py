"""Finds the plain run that each row is measured against."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from unicp_bench.rows import Row

Size = tuple[int | None, int | None, int | None]
_Of = tuple[str, str, str, Size]  # conditions, model, sampler
_UNKNOWN: Size = (None, None, None)


@dataclass(frozen=True)
class Reference:
    """A plain run. Its frames, height and width are `None` if rows do not say them."""

    steps: int
    frames: int | None = None
    height: int | None = None
    width: int | None = None

    @property
    def name(self) -> str:
        """Steps and frames in words."""
        return f"{self.steps} steps" if self.frames is None else f"{self.steps} steps, {self.frames} frames"


def references(rows: Sequence[Row]) -> list[Reference]:
    """Finds the plain run of each row, which rows do not name.

    Rows of one model and conditions with the same operations of the plain run belong together. The plain run has as
    many steps as the longest of them.
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
    """The plain run of a row that could not run: the shortest that has as many steps as the row."""
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
