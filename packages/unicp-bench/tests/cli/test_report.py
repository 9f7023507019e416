"""`unicp report`: one file from rows, and one line for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.test_rows import row
from unicp.cli.main import app
from unicp.records import Entry, Trace, save_trace
from unicp_bench.rows import append_row


@pytest.fixture
def rows(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    append_row(tmp_path / "rows.jsonl", row("", 100.0, method="plain", operations=100, seconds=2.0))
    append_row(tmp_path / "rows.jsonl", row())
    return tmp_path / "rows.jsonl"


def run(*arguments: object):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_a_report_is_written(rows):
    trace = Trace("M", "cpu", "float32", {}, entries=[Entry(0, 0, "cond", "blocks.0", "full", "first", None, 0.1)])
    save_trace(trace, "trace.json")
    result = run(rows, "--trace", "trace.json")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("report.html: 2 rows, ")
    text = Path("report.html").read_text(encoding="utf-8")
    assert "UniCP balanced" in text and "blocks.0 · cond" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("missing.jsonl",), "no file there"),
        (("empty.jsonl",), "no rows in empty.jsonl"),
        (("damaged.jsonl",), "line 1 is damaged"),
        (("rows.jsonl", "--clips", "missing"), "no such folder"),
        (("rows.jsonl", "--worst", "0", "--clips", "."), "not a positive number"),
        (("rows.jsonl", "--family", "UniCP"), "no --clips"),
        (("rows.jsonl", "--attention", "missing.json"), "to read missing.json"),
        (("rows.jsonl", "--trace", "rows.jsonl"), "JSON in rows.jsonl"),
        (("trace.json",), "a trace; do: give a file that `unicp bench` wrote, and this one with --trace"),
        (("plan.json",), "a plan; do: give a file that `unicp bench` wrote"),
        (("rows.jsonl", "trace.json"), "a trace"),
        (("/dev/zero",), "a device"),
    ],
)
def test_bad_input_is_one_line_and_leaves_the_old_file(rows, arguments, said):
    Path("empty.jsonl").write_text("")
    Path("damaged.jsonl").write_text("{\n{}\n")
    save_trace(Trace("M", "cpu", "float32", {}), "trace.json")
    Path("plan.json").write_text('{\n  "type": "unicp.plan"}')
    Path("report.html").write_text("old")
    before = sorted(path.name for path in Path().iterdir())
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr and result.stderr.count("\n") == 1
    assert Path("report.html").read_text() == "old"
    assert sorted(path.name for path in Path().iterdir()) == before


def test_the_rows_are_never_written_over(rows):
    before = rows.read_bytes()
    result = run(rows, "--out", "rows.jsonl")
    assert result.exit_code == 2 and "the same file as ROWS" in result.stderr
    assert rows.read_bytes() == before


def test_help_has_examples():
    assert "unicp report" in run("--help").stdout
