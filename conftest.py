"""Shared by all tests: property tests that give the same result on a busy machine as on an idle one."""

from __future__ import annotations

import importlib.metadata

import diffusers.utils.import_utils
from hypothesis import settings

# Hooks of pytest: they count only where they are names of a conftest.
from tests.matrix import pytest_addoption, pytest_runtest_logreport, pytest_sessionfinish  # noqa: F401

if importlib.metadata.version("diffusers").startswith("0.36."):
    # It cannot be imported beside a newer torchao: it tells so to a logger that it has not made yet.
    diffusers.utils.import_utils._torchao_available = False

settings.register_profile("steady", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("steady")
