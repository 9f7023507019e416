"""Lets the contract suite write down what it found: `pytest tests/families --write-matrix docs/results/models.json`."""

from __future__ import annotations

import json
import platform
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from tests import tiny_models

# One entry per transformer and kind of span: [passed, failed]. One per combination: what came of it.
_contract: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
_combined: dict[str, dict[str, str]] = defaultdict(dict)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-matrix", metavar="FILE", help="write what the contract suite found to this file")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if "test_contract" in item.nodeid and {"name", "kind"} <= set(parameters):
            name = type(tiny_models.shared(parameters["name"])).__name__
            item.user_properties.append(("contract", [name, parameters["kind"]]))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for key, value in report.user_properties:
        if key == "contract" and (report.when == "call" or report.failed) and not report.skipped:
            _contract[value[0]][value[1]][report.failed] += 1
        if key == "combined" and report.when == "call":
            what, name, outcome = value
            failed = report.failed or _combined[what].get(name) == "failed"
            _combined[what][name] = "failed" if failed else outcome


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Writes down for docs/models.md what came of a combination on a model."""

    def write(what: str, name: str, outcome: str = "works") -> None:
        record_property("combined", [what, type(tiny_models.shared(name)).__name__, outcome])

    return write


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--write-matrix", None)
    if path is None or hasattr(session.config, "workerinput"):
        return
    found: dict[str, Any] = {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__.partition("+")[0],
            "diffusers": diffusers.__version__,
        },
        "contract": {
            name: {kind: {"passed": passed, "failed": failed} for kind, (passed, failed) in sorted(kinds.items())}
            for name, kinds in sorted(_contract.items())
        },
        "combined": {what: dict(sorted(names.items())) for what, names in sorted(_combined.items())},
    }
    Path(path).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
