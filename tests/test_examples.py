"""The examples in the docstrings of the public names run, and every public function has one."""

from __future__ import annotations

import doctest
import inspect
from typing import Any

import pytest

import unicp

FUNCTIONS = [name for name in unicp.__all__ if inspect.isfunction(getattr(unicp, name))]
DESCRIBED = [name for name in unicp.__all__ if ">>>" in (inspect.getdoc(getattr(unicp, name)) or "")]


def examples(thing: Any, name: str) -> list[doctest.DocTest]:
    """The examples of one public thing."""
    parser, text = doctest.DocTestParser(), inspect.getdoc(thing) or ""
    known = {one: getattr(unicp, one) for one in unicp.__all__}
    return [parser.get_doctest(text, known, name, None, 0)] if ">>>" in text else []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_has_an_example(name: str):
    assert name in DESCRIBED, f"unicp.{name}: add an Example: with >>> lines to its docstring"


@pytest.mark.parametrize("name", DESCRIBED)
@pytest.mark.filterwarnings("ignore")
def test_an_example_runs(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in examples(getattr(unicp, name), name):
        said: list[str] = []
        runner.run(test, out=said.append)
        assert runner.failures == 0, "".join(said)
