"""Finds the table row of a transformer by the name of its class."""

from __future__ import annotations

from unicp.models.family_form import BlockListRow, Family, UnitRow
from unicp.models.family_rows import ROWS

__all__ = ["FAMILIES", "BlockListRow", "Family", "UnitRow"]

FAMILIES: dict[str, Family] = {row.transformer: row for row in ROWS}
