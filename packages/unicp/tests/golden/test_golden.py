"""UniCP does today what it did when these cases were recorded, bit for bit on a machine of the same kind.

After a change that is meant: `make golden`. After a rename only: an entry in `words.py`.
"""

from __future__ import annotations

import copy
import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import unicp
from tests.golden import paths, table
from tests.golden.case import Case, digest, packed, play, unpacked
from tests.golden.compare import differences, is_same_machine
from tests.golden.words import COMPUTED, WORDS, today

_records = {file: table.read(file) for file in table.FILES}
every_case = pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.key, marks=[pytest.mark.slow] if case.slow else []) for case in table.CASES],
)


def recorded(key: str) -> dict[str, Any]:
    return _records[key.partition("/")[0]][key]


@every_case
# What others warn of is no matter here, wherever in their code it comes from.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_is_as_recorded(case: Case):
    found = json.loads(json.dumps(play(case)))
    lines = differences(recorded(case.key), found)
    assert not lines, "\n".join([f"{case.key} is not as recorded", *lines])


def test_all_cases_are_recorded_and_no_others():
    keys = {key for records in _records.values() for key in records}
    assert keys == set(table.BY_KEY)


def test_this_machine_computes_as_the_one_that_recorded():
    case = table.BY_KEY["families/balanced/wan"]
    if digest(case.call(case.build())) != recorded(case.key)["plain"]:
        pytest.skip("its plain outputs have other bits than the recorded ones, so cases are compared loosely here")


def test_most_cases_skip_something():
    for file, records in _records.items():
        told = [record for record in records.values() if "refused" not in record]
        skipping = [record for record in told if record["skipped"]]
        assert len(skipping) > 0.8 * len(told), file


def test_every_setting_is_away_from_its_default_in_some_case():
    used = [case.options["settings"] for case in table.CASES if "settings" in case.options]
    used = [unicp.preset(one) if isinstance(one, str) else one for one in used]
    for kind, values in ((unicp.Settings, used), (unicp.Slicing, [one.slicing for one in used])):
        # Parts that are named have one built in; others are tried in test_plugins.py.
        names = {field.name for field in dataclasses.fields(kind)} - {"policy", "predictor", "reducer"}
        for name in names:
            assert any(getattr(one, name) != getattr(kind(), name) for one in values), name


# --- saved files: those of an older version are read for ever


def test_a_saved_trace_is_read():
    trace = unicp.load_trace(paths.TRACE)
    assert len(trace.entries) == 2 * paths.STEPS and trace.model == "WanTransformer3DModel"
    assert {entry.point for entry in trace.entries} == {"model"}
    assert 0 < sum(entry.action != COMPUTED for entry in trace.entries) < len(trace.entries)


def test_a_saved_plan_is_read_and_followed():
    plan = unicp.load_plan(paths.PLAN)
    assert plan.steps == paths.STEPS and 0 < len(plan.full) < plan.steps
    with unicp.enable(paths.pipeline(), plan=paths.PLAN) as session:
        paths.called(paths.pipeline())
    assert session.plan is not None and session.plan.full == plan.full


def test_a_saved_profile_is_read_and_planned_with():
    pipe = paths.pipeline()
    with unicp.enable(pipe, target="psnr>=20", profile=paths.PROFILE) as session:
        paths.called(pipe)
    # It is of this very pipeline, and of as many steps.
    assert session.plan is not None and not session.is_guess and session.trace.warnings == []


# --- the comparison itself


@pytest.fixture
def record() -> dict[str, Any]:
    """A recorded run as it is found today: in today's words."""
    found = copy.deepcopy(recorded("families/unit, order 1/wan"))
    for part in ("columns", "floats"):
        columns = {name: unpacked(column) for name, column in found[part].items()}
        found[part] = {name: [today(name, value) for value in values] for name, values in columns.items()}
    found["counts"] = {str(today("counts", name)): count for name, count in found["counts"].items()}
    return found


def test_a_record_is_no_different_from_itself(record: dict[str, Any]):
    assert differences(recorded(record["key"]), record) == []


def test_a_word_of_the_record_is_read_as_today_s_and_not_the_other_way_round(record: dict[str, Any]):
    # Nothing to try where the files were made anew, so that no word has another name.
    for column, words in WORDS.items():
        for before, now in words.items():
            assert now in record["columns"][column] and before not in record["columns"][column]
            values = [before if value == now else value for value in record["columns"][column]]
            changed = record | {"columns": record["columns"] | {column: values}}
            (text,) = differences(recorded(record["key"]), changed)
            assert text.startswith("trace: ") and f"{column}={now}" in text and f"{column}={before}" in text


def test_another_action_is_shown_with_where_it_is(record: dict[str, Any]):
    record["columns"]["action"][-1] = "other"
    (text,) = differences(recorded(record["key"]), record)
    assert "1 of 140 entries differ; the first is entry 139" in text and "action=other" in text
    assert text.count("\n") == 2


def test_floats_may_differ_a_little(record: dict[str, Any]):
    at = next(at for at, value in enumerate(record["floats"]["measured"]) if value is not None and value[0] > 1e-3)
    value = record["floats"]["measured"][at][0]
    record["floats"]["measured"][at] = [value * 1.00005]
    assert differences(recorded(record["key"]), record) == []
    record["floats"]["measured"][at] = [value * 1.001]
    (text,) = differences(recorded(record["key"]), record)
    assert text.startswith(f"measured: 1 of 140 differ; the first is of entry {at}")


def test_other_bits_of_the_output_are_a_difference_on_the_same_machine_only(record: dict[str, Any]):
    record["output"] = digest(torch.zeros(1))
    (text,) = differences(recorded(record["key"]), record)
    assert text.startswith("output: expected")
    record["plain"] = digest(torch.ones(1))
    assert not is_same_machine(recorded(record["key"]), record)
    assert differences(recorded(record["key"]), record) == []
    record["values"] = [value + 1.0 for value in record["values"]]
    (text,) = differences(recorded(record["key"]), record)
    assert text.startswith("output: values differ by")


def test_elsewhere_a_decision_may_tip_but_not_many(record: dict[str, Any]):
    record["plain"] = digest(torch.ones(1))
    record["columns"]["why"][-1] = "other"
    record["skipped"] += 5
    assert differences(recorded(record["key"]), record) == []
    record["skipped"] += 20
    (text,) = differences(recorded(record["key"]), record)
    assert text.startswith("skipped: expected")


@pytest.mark.parametrize("values", [[], [1], [1, 1, 1, None, None, None, [0.5]], [1, 1.0, True] * 3])
def test_columns_are_packed_without_loss(values: list[Any]):
    again = unpacked(json.loads(json.dumps(packed(values))))
    assert json.dumps(again) == json.dumps(values)


def test_writing_gives_the_same_bytes_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: dict[str, Any]):
    monkeypatch.setattr(table, "DATA", tmp_path)
    once = table.write("one", [record]).read_bytes()
    assert table.write("one", [record]).read_bytes() == once
    assert json.loads(gzip.decompress(once)) == record and table.read("one") == {record["key"]: record}
