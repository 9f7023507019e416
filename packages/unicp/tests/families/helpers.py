"""Settings and checks that the tests of combinations share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests import tiny_models
from unicp.context import Action
from unicp.session import Session, enable
from unicp.settings import preset

EXACT = preset("balanced", tolerance=0.0)
GENEROUS = preset("balanced", tolerance=0.5, weighting="uniform", store_factor=64.0)
# One model of each topology: self- and cross-attention, one joint stream, packed tokens, two joint streams.
NAMES = ("wan", "cogvideox", "ltx", "flux")
Note = Callable[..., None]


def denoise(model: nn.Module, name: str, **run: Any) -> Tensor:
    return tiny_models.denoise(model, name, **({"steps": 7} | run))


def served(session: Session) -> int:
    return sum(Action(entry.action).skipped for entry in session.trace.entries)


def check(model: nn.Module, name: str, **run: Any) -> None:
    """Exact at tolerance 0, served with a generous one, and afterwards as before."""
    plain = denoise(model, name, **run)
    with enable(model, EXACT):
        assert torch.equal(denoise(model, name, **run), plain)
    with enable(model, GENEROUS) as session:
        output = denoise(model, name, **run)
    assert served(session) and output.dtype == plain.dtype and torch.isfinite(output).all()
    assert float((output - plain).norm() / plain.norm()) < 0.5 and not torch.equal(output, plain)
    assert torch.equal(denoise(model, name, **run), plain)
