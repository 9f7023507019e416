"""How what was recorded is read today. A rename is one entry here; files made anew need none, so empty it then."""

from __future__ import annotations

# What is compared exactly of an entry of a trace, and what within a small relative difference.
STRUCTURE = ("run", "step", "branch", "unit", "action", "why", "width", "choice", "operations", "full_operations")
FLOATS = ("sigma", "tolerance", "predicted", "measured")

# Recorded name of a field of an entry -> its name today, where it is another.
FIELDS: dict[str, str] = {"why": "reason", "choice": "predictor", "unit": "point"}

# By column (also "refused" and "counts"): recorded word -> today's word, where it is another. Like
# {"action": {"forecast": "extrapolate"}, "why": {"window": "within"}}.
WORDS: dict[str, dict[str, str]] = {"action": {"compute": "full"}, "why": {"outside spans": "outside"}}

# Actions, in today's words, that compute nothing of their own.
SKIPPED = frozenset({"forecast", "reuse"})
COMPUTED = "full"


def today(column: str, value: object) -> object:
    """A recorded value in today's words."""
    return WORDS.get(column, {}).get(value, value) if isinstance(value, str) else value
