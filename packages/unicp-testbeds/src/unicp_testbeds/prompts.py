"""The prompts of the test-beds, in splits that have nothing in common: for tables, for tuning, and for calibration.

The first two held-out captions of glyphs were seen while the presets were tuned, so tables begin after them.
"""

from __future__ import annotations

from unicp_testbeds import DEFAULT, NAMES, folder

SPLITS = {"table": slice(2, 40), "tuning": slice(40, 60), "calibration": slice(60, 64)}
# The film has 26 captions.
_FILM_SPLITS = {"table": slice(0, 16), "tuning": slice(16, 22), "calibration": slice(22, 26)}


def prompts_of(split: str, model: str = DEFAULT) -> tuple[str, ...]:
    """One split (a name in SPLITS) of the prompts of a test-bed; a model of another name gets those of the first."""
    from unicp_testbeds import adherence  # not with the module: it needs torch

    splits = _FILM_SPLITS if model == "film" else SPLITS
    return adherence.prompts_of(folder(model if model in NAMES else DEFAULT))[splits[split]]
