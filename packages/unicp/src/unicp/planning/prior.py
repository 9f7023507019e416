"""The built-in products: recorded on the test-beds, they plan runs of models that nobody calibrated.

How estimates change along a run is much alike in all diffusion models, as it is the data that decides it: schedules by
products of other models had the fidelity of those by a model's own, within 1 dB (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path

from unicp.files import load_record, save_record
from unicp.planning.products import Products

PRIOR_TYPE, PRIOR_VERSION = "unicp.products", 1
FILE = Path(__file__).parent / "prior.json"
# Log-SNR of the levels that are kept: noise alone, and even places as far as samplers go.
GRID = (-20.0, *(0.5 * step for step in range(-20, 15)))

_other: ContextVar[Products | None] = ContextVar("unicp_prior", default=None)


def prior() -> Products:
    """The built-in products, or those that stand in for them."""
    return _other.get() or _shipped()


@lru_cache(maxsize=1)
def _shipped() -> Products:
    return load_products(FILE)


@contextmanager
def standing_in(products: Products | None) -> Iterator[None]:
    """Others stand in for the built-in products in this block; for tables that leave a model out. `None` = none do."""
    token = _other.set(products)
    try:
        yield
    finally:
        _other.reset(token)


def pooled(models: Sequence[Products]) -> Products:
    """The mean over models, each read at `GRID`."""
    return Products.of(sum(one.at(GRID) for one in models) / len(models), GRID, digits=6)  # type: ignore[arg-type]


def save_products(products: Products, path: str | Path) -> None:
    """Writes products as JSON.

    Raises:
        InputError: The file cannot be written.
    """
    save_record(products, PRIOR_TYPE, PRIOR_VERSION, path)


def load_products(path: str | Path) -> Products:
    """Reads what `save_products` wrote.

    Raises:
        InputError: There is no readable file.
        FileFormatError: It is damaged.
    """
    return load_record(Products, PRIOR_TYPE, PRIOR_VERSION, path, "make it again")
