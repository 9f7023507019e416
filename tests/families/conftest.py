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
    parser.addoption(
        "--write-version", metavar="FILE", help="add to this file what it found with the diffusers installed now"
    )


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
    path, version = (session.config.getoption(f"--write-{what}", None) for what in ("matrix", "version"))
    if hasattr(session.config, "workerinput"):
        return
    if version is not None:
        _write_version(Path(version))
    if path is None:
        return
    known = json.loads(Path(path).read_text(encoding="utf-8")) if Path(path).exists() else {}
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
        "by_version": known.get("by_version", {}),
    }
    Path(path).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _write_version(path: Path) -> None:
    """One entry for the diffusers that is installed; those of other versions stay."""
    found = json.loads(path.read_text(encoding="utf-8"))
    counts = {name: [sum(column) for column in zip(*kinds.values())] for name, kinds in _contract.items()}
    found.setdefault("by_version", {})[diffusers.__version__] = {
        "passed": sorted(name for name, (_, failed) in counts.items() if not failed),
        "failed": sorted(name for name, (_, failed) in counts.items() if failed),
        "absent": sorted(tiny_models.ABSENT.values()),
        "checks": sum(sum(pair) for pair in counts.values()),
    }
    ordered = sorted(found["by_version"].items(), key=lambda entry: tuple(map(int, entry[0].split(".")[:3])))
    found["by_version"] = dict(ordered)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
