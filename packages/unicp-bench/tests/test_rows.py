import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unicp.errors import FileFormatError, InputError
from unicp_bench.rows import Row, append_row, read_rows


def row(setting="balanced", psnr=40.0, **changes) -> Row:
    values = {
        "suite": "presets",
        "model": "glyphs",
        "sampler": "unipc",
        "method": "UniCP",
        "setting": setting,
        "prompt": "a",
        "seed": 0,
        "steps": 30,
        "operations": 50,
        "full_operations": 100,
        "seconds": 1.0,
        "plain_seconds": 2.0,
        "fidelity": {"psnr": psnr},
    }
    return Row(**{**values, **changes})


def test_rows_come_back_as_written(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    rows = [row(), row("fast", 35.5, work=[1.0, 0.0], environment={"torch": "2"}), row("x", reason="no such block")]
    for one in rows:
        append_row(path, one)
    assert read_rows(path) == rows


def test_what_is_not_a_number_survives_as_such_and_the_file_stays_json(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, row(psnr=math.nan))
    assert math.isnan(read_rows(path)[0].fidelity["psnr"])
    assert "NaN" not in path.read_text()


def test_no_file_has_no_rows(tmp_path):
    assert read_rows(tmp_path / "none.jsonl") == []


@given(st.integers(1, 400))
def test_a_file_cut_anywhere_loses_at_most_its_last_row_and_goes_on_whole(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    append_row(path, row())
    first = path.stat().st_size
    append_row(path, row("fast"))
    whole = path.read_bytes()
    path.write_bytes(whole[: max(first, len(whole) - cut)])
    found = read_rows(path)  # a row that lacks nothing but its line break is whole
    assert found == [row(), row("fast")][: 2 if cut == 1 else 1]
    append_row(path, row("quality"))
    assert read_rows(path) == [*found, row("quality")]


def test_a_damaged_line_in_the_middle_is_one_clear_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, row())
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(FileFormatError, match="line 1"):
        read_rows(path)


@pytest.mark.parametrize("changes", [{"operations": -1}, {"seconds": "1"}, {"seconds": 0}, {"new_field": 1}])
def test_rows_that_cannot_be_are_refused(tmp_path, changes):
    path = tmp_path / "rows.jsonl"
    append_row(path, row())
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(values) + "\n")
    with pytest.raises(FileFormatError):
        read_rows(path)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        append_row(tmp_path / "file" / "rows.jsonl", row())


def test_the_key_tells_settings_samplers_and_models_apart():
    keys = {row().key, row("fast").key, row(sampler="euler").key, row(model="film").key, row(seed=1).key}
    assert len(keys) == 5
