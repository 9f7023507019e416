"""The prompts of the test-beds, in disjoint splits: for tables, for tuning, and for calibration.

Presets were tuned on the first two held-out captions of glyphs, so tables begin after them.
"""

from __future__ import annotations

from unicp_testbeds import DEFAULT, NAMES, folder

SPLITS = {"table": slice(2, 40), "tuning": slice(40, 56), "calibration": slice(56, 64)}
# The film has 26 captions.
_FILM_SPLITS = {"table": slice(0, 12), "tuning": slice(12, 18), "calibration": slice(18, 26)}


def prompts_of(split: str, model: str = DEFAULT) -> tuple[str, ...]:
    """One split (a name in SPLITS) of a test-bed's prompts; another model gets those of the first test-bed."""
    from unicp_testbeds import adherence  # not with the module: it needs torch

    splits = _FILM_SPLITS if model == "film" else SPLITS
    return adherence.prompts_of(folder(model if model in NAMES else DEFAULT))[splits[split]]
