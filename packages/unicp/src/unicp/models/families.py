"""Finds the table row of a transformer by the name of its class, and registers rows for other models."""

from __future__ import annotations

from unicp.errors import SettingsError
from unicp.models.family_form import BlockListRow, Family, UnitRow
from unicp.models.family_rows import ROWS

__all__ = ["FAMILIES", "BlockListRow", "Family", "UnitRow", "family_named", "register"]

FAMILIES: dict[str, Family] = {row.transformer: row for row in ROWS}
_registered: dict[str, Family] = {}


def family_named(name: str) -> Family | None:
    """The row of a class of transformer, registered or of the table; `None` if there is none."""
    return _registered.get(name, FAMILIES.get(name))


def register(family: Family) -> None:
    """Makes a transformer known that is in no table, for this process. Registering a class again replaces its row.

    Args:
        family: The row.

    Raises:
        SettingsError: The row cannot work, or the table has the class: its row is tested, and another one would change
            every pipeline.

    Example:
        >>> import unicp
        >>> attention = unicp.UnitRow("attn", "self")
        >>> blocks = unicp.BlockListRow("layers", units=(attention,))
        >>> unicp.register(unicp.Family("MyTransformer", block_lists=(blocks,)))
    """
    if not isinstance(family, Family):
        raise SettingsError("to register a model", f"a {type(family).__name__}", "give a unicp.Family")
    asked = f"to register {family.transformer or 'a model without a name'}"
    if not family.transformer.isidentifier():
        raise SettingsError(asked, f"{family.transformer!r}", "name the transformer's class")
    if family.transformer in FAMILIES:
        raise SettingsError(asked, "a class that UniCP knows", "use it as it is, or give your class another name")
    if not family.block_lists and not family.refusal:
        raise SettingsError(asked, "no block_lists", "name at least one list of blocks")
    for row in family.block_lists:
        _check(asked, row)
    _registered[family.transformer] = family


def _check(asked: str, row: BlockListRow) -> None:
    if not row.units:
        raise SettingsError(asked, f"no units in {row.attribute}", "name the attention and feed-forward of a block")
    if ("text" in row.returns) != (row.text_argument is not None):
        found = f"{row.attribute} returns {row.returns!r} with text_argument {row.text_argument!r}"
        raise SettingsError(asked, found, "give text_argument exactly where blocks return the text")
    if row.returns == "other" and not row.refusal:
        raise SettingsError(asked, f"{row.attribute} returns 'other' without a refusal", "say why in refusal")
