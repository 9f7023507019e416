"""Lets the contract suites write down what they found, for docs/models.md: `pytest … --write-matrix FILE`.

A suite that is not run leaves its part of the file as it was.
"""

from __future__ import annotations

import json
import platform
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

# One entry per transformer and level: [passed, failed]. One per combination: what came of it. One per row of the
# table of pipelines: what it is and what came of it.
_contract: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
_combined: dict[str, dict[str, str]] = defaultdict(dict)
_pipelines: dict[str, dict[str, Any]] = defaultdict(dict)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options."""
    parser.addoption("--write-matrix", metavar="FILE", help="write what the contract suites found to this file")
    parser.addoption(
        "--write-version", metavar="FILE", help="add to this file what it found with the diffusers installed now"
    )


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Takes in what a test has noted."""
    for key, value in report.user_properties:
        if key == "contract" and (report.when == "call" or report.failed) and not report.skipped:
            _contract[value[0]][value[1]][report.failed] += 1
        if key == "combined" and report.when == "call":
            what, name, outcome = value
            failed = report.failed or _combined[what].get(name) == "failed"
            _combined[what][name] = "failed" if failed else outcome
        if key == "pipeline" and report.when == "call":
            name, found = value
            failed = report.failed or _pipelines[name].get("result") == "fails"
            _pipelines[name].update({**found, "result": "fails"} if failed else found)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the file, if it is asked for."""
    path, version = (session.config.getoption(f"--write-{what}", None) for what in ("matrix", "version"))
    if hasattr(session.config, "workerinput"):
        return
    if version is not None:
        _write_version(Path(version))
    if path is None:
        return
    import diffusers
    import torch

    versions = {"python": platform.python_version(), "torch": torch.__version__.partition("+")[0]}
    contract = {
        name: {kind: {"passed": passed, "failed": failed} for kind, (passed, failed) in sorted(kinds.items())}
        for name, kinds in sorted(_contract.items())
    }
    combined = {what: dict(sorted(names.items())) for what, names in sorted(_combined.items())}
    parts = {"contract": contract, "combined": combined, "pipelines": dict(sorted(_pipelines.items()))}
    file = Path(path)
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    found |= {"versions": versions | {"diffusers": diffusers.__version__}}
    found |= {name: part for name, part in parts.items() if part or name not in found}
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _write_version(path: Path) -> None:
    """One entry for the diffusers that is installed; those of other versions stay."""
    import diffusers

    from tests import tiny_models

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
