import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unicp.benchmarking.rows import Row, aggregate, append_row, markdown, read_rows, worst_tenth
from unicp.errors import FileFormatError


def row(method="balanced", psnr=40.0, operations=50, seconds=1.0, prompt="a", seed=0, sampler="unipc"):
    return Row(method, sampler, prompt, seed, 30, psnr, operations, 100, seconds, 2.0, 7)


def test_rows_come_back_as_written(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    rows = [row(), row("fast", 35.5)]
    for one in rows:
        append_row(path, one)
    assert read_rows(path) == rows


def test_no_file_has_no_rows(tmp_path):
    assert read_rows(tmp_path / "none.jsonl") == []


def test_a_last_line_cut_off_by_a_kill_is_no_row_and_the_next_row_is_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, row())
    path.write_text(path.read_text() + json.dumps({"method": "fast"})[:-5])
    assert read_rows(path) == [row()]


def test_a_damaged_line_in_the_middle_is_one_clear_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, row())
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(FileFormatError, match="line 1"):
        read_rows(path)


def test_the_worst_tenth_of_twenty_is_the_mean_of_the_two_lowest():
    assert worst_tenth([float(n) for n in range(20)]) == 0.5


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_the_worst_tenth_is_never_above_the_mean(values):
    assert worst_tenth(values) <= sum(values) / len(values) + 1e-9


def test_aggregation_divides_sums():
    table = aggregate([row(operations=25, seconds=0.5), row(operations=75, seconds=1.5, psnr=20.0, seed=1)])
    assert len(table) == 1
    assert table[0]["operations"] == 2.0
    assert table[0]["seconds"] == 2.0
    assert table[0]["psnr_mean"] == 30.0
    assert table[0]["psnr_worst_tenth"] == 20.0


def test_methods_and_samplers_are_kept_apart():
    table = aggregate([row(), row("fast"), row(sampler="euler")])
    assert [(r["method"], r["sampler"]) for r in table] == [
        ("balanced", "unipc"),
        ("fast", "unipc"),
        ("balanced", "euler"),
    ]


def test_markdown_has_a_line_per_method():
    assert "| balanced | 1 | 2.00x | 2.00x | 1.0 | 40.0 dB | 40.0 dB |" in markdown(aggregate([row()]))
