"""Products for tables of a test-bed: those of all other test-beds, so that nothing was learnt on what is measured."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from unicp.planning.prior import load_products, pooled
from unicp.planning.products import Products

# One file for each test-bed, by `python -m experiments.prior`.
FOLDER = Path(__file__).parent / "priors"


@lru_cache(maxsize=16)
def prior_without(model: str) -> Products | None:
    """The mean products of all recorded test-beds but this one; `None` for another model, which has the built-in ones.

    Args:
        model: Name of a test-bed.
    """
    files = sorted(FOLDER.glob("*.json"))
    if model not in {file.stem for file in files}:
        return None
    return pooled([load_products(file) for file in files if file.stem != model])
