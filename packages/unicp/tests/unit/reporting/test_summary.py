"""A hand-made trace and the numbers it must give."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import unicp
from unicp.records import Entry, Trace
from unicp.reporting.summary import align, summarise

ACTIONS = {"C": "full", "S": "slice", "F": "forecast", "R": "reuse"}


def entry(letter: str, step: int, branch: str = "cond", **changes) -> Entry:
    values = {
        "run": 0,
        "step": step,
        "branch": branch,
        "point": "model",
        "action": ACTIONS[letter],
        "reason": "first",
        "sigma": None,
        "tolerance": 0.05,
        "operations": {"C": 1000, "S": 500}.get(letter, 0),
        "full_operations": 1000,
        "seconds": 0.5,
    }
    return Entry(**(values | changes))


def trace(*entries: Entry, **changes: Any) -> Trace:
    values: dict[str, Any] = {"preset": "balanced"} | changes
    return Trace("WanTransformer3DModel", "cpu", "float32", {}, **values, entries=[*entries])


@pytest.fixture
def mixed() -> Trace:
    return trace(
        entry("C", 0, seconds=2.0),
        entry("C", 1, measured=[0.02, 0.04], predicted=[0.9], reason="learning", stored_bytes=2048),
        entry("F", 2, predicted=[0.01, 0.03], reason="within", stored_bytes=3 * 1024**2),
        entry("S", 3, predicted=[0.05], width=32, reason="tolerance"),
        entry("R", 0, run=1, predicted=[0.0], reason="within"),
        warnings=["something odd"],
    )


def test_numbers(mixed):
    mixed.counts["non_finite"] = 2
    summary = summarise(mixed)
    assert (summary.runs, summary.calls, summary.computed) == (2, 5, 2)
    assert {name: cost.calls for name, cost in summary.actions.items()} == {
        "full": 2,
        "slice": 1,
        "forecast": 1,
        "reuse": 1,
    }
    assert summary.actions["full"].share == pytest.approx(0.4)
    assert summary.actions["slice"].operations == 500
    assert summary.actions["full"].seconds == pytest.approx(2.5)
    assert summary.reasons == {"within": 2, "first": 1, "learning": 1, "tolerance": 1}
    assert (summary.operations, summary.full_operations) == (2500, 5000)
    assert summary.operations_saved == pytest.approx(2.0)
    assert summary.seconds == pytest.approx(4.0)
    assert (summary.worst_measured, summary.mean_measured) == (0.04, pytest.approx(0.03))
    assert (summary.worst_predicted, summary.mean_predicted) == (0.05, pytest.approx(0.0225))
    assert summary.peak_stored_bytes == 3 * 1024**2
    assert summary.non_finite == 2
    assert summary.warnings == ("something odd",)


def test_the_text_says_it_all_in_100_columns(mixed):
    mixed.counts["non_finite"] = 1
    mixed.warnings = ["a long warning " * 20]
    text = str(summarise(mixed))
    assert max(len(line) for line in text.splitlines()) <= 100
    text = " ".join(text.split())
    for part in ("2 runs, 5 calls, 2 of them full", "2.50 k of 5.00 k operations (2.00x fewer)", "4.00 s"):
        assert part in text
    for part in ("3.00 MiB stored", "worst 0.05", "worst 0.04", "within 2", "1 forecast with NaN", "balanced"):
        assert part in text
    assert text.count("a long warning") == 20


def test_nothing_skipped_is_said():
    text = summarise(trace(entry("C", 0), entry("C", 1), preset=None)).text()
    assert "1 run, 2 calls. Nothing was skipped" in text
    assert "own settings" in text
    assert "forecast" not in text and "error" not in text


def test_an_empty_trace():
    summary = summarise(trace())
    assert summary.operations_saved is None and summary.worst_measured is None
    assert "Nothing was recorded" in summary.text()


def test_nothing_executed_and_nothing_counted():
    assert summarise(trace(entry("R", 0))).operations_saved == math.inf
    uncounted = summarise(trace(entry("C", 0, operations=0, full_operations=0)))
    assert uncounted.operations_saved is None
    assert "not counted" in uncounted.text()


def test_numbers_that_are_not_finite_stay_visible_and_json_stays_strict():
    entries = [entry("C", 0, measured=[0.1, math.nan, 0.3]), entry("F", 1, predicted=[math.inf])]
    summary = summarise(trace(*entries))
    assert math.isnan(summary.worst_measured or 0)
    assert summary.mean_measured == pytest.approx(0.2)
    assert summary.worst_predicted == math.inf and summary.mean_predicted is None
    body = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert body["worst_measured"] == "nan" and body["worst_predicted"] == "inf"
    assert body["actions"]["forecast"]["calls"] == 1
    assert "none finite" in summary.text()


def test_align():
    assert align([("a", "bb"), ("ccc", "d")], right=[1]) == ["a    bb", "ccc   d"]


def test_reports_need_no_torch():
    code = "import sys, unicp.reporting.summary, unicp.files; print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(unicp.__file__).parents[1])}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == "False"
