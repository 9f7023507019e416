"""Shared by all tests: property tests that give the same result on a busy machine as on an idle one."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator

import diffusers.utils.import_utils
import pytest
from hypothesis import settings

# Hooks of pytest: they count only where they are names of a conftest.
from tests.matrix import pytest_addoption, pytest_runtest_logreport, pytest_sessionfinish  # noqa: F401

if importlib.metadata.version("diffusers").startswith("0.36."):
    # It cannot be imported beside a newer torchao: it tells so to a logger that it has not made yet.
    diffusers.utils.import_utils._torchao_available = False

settings.register_profile("steady", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("steady")


@pytest.fixture
def registries_as_before() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    from unicp.policies import policies
    from unicp.predictors import predictors
    from unicp.reducers import reducers

    kept = [(one, dict(one._makers)) for one in (policies, predictors, reducers)]
    yield
    for one, makers in kept:
        one._makers = makers
