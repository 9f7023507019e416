"""docs/models.md is what the family table and the last run of the contract suite say, and covers every family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import tiny_models
from tests.pipelines.table import ROWS, UNBUILT
from unicp.models.families import FAMILIES
from unicp_bench import models_table

ROOT = Path(__file__).resolve().parents[3]
RESULTS = json.loads((ROOT / models_table.RESULTS).read_text(encoding="utf-8"))


def test_the_document_is_up_to_date():
    text = (ROOT / models_table.DOCUMENT).read_text(encoding="utf-8")
    assert text == models_table.document(RESULTS), "run make models"


def test_every_family_and_kind_was_tested_and_nothing_failed():
    text = models_table.document(RESULTS)
    assert "untested" not in text and "fails" not in text and "failed" not in text
    assert set(RESULTS["contract"]) == {type(tiny_models.shared(name)).__name__ for name in tiny_models.NAMES}
    for name, row in FAMILIES.items():
        assert f"`{name}` |" in text
        assert not row.refusal or row.refusal in text
    # Each with nearly the same number of checks: a family that lacks some was not tested to the end.
    passed = [kinds["model"]["passed"] for kinds in RESULTS["contract"].values()]
    assert max(passed) - min(passed) <= 2


def test_every_pipeline_was_tested_or_says_why_not():
    rows, text = RESULTS["pipelines"], models_table.document(RESULTS)
    assert set(rows) == {row.name for row in ROWS} | {row.pipeline for row in UNBUILT}
    for name, row in rows.items():
        assert f"| `{row['pipeline']}` | {row['way']} | `{row['transformer']}` |" in text
        assert row["result"] == "works" or row["result"].startswith("not tested: "), name
        assert FAMILIES[row["transformer"]].refusal == ""


@pytest.mark.parametrize("kind", ["model", "unit"])
def test_what_was_not_tested_and_what_failed_shows(kind):
    missing = json.loads(json.dumps(RESULTS))
    del missing["contract"]["WanTransformer3DModel"][kind]
    assert "untested" in models_table.document(missing)
    missing["contract"]["WanTransformer3DModel"][kind] = {"passed": 3, "failed": 1}
    assert "fails" in models_table.document(missing)
