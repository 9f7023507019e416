"""`unicp bench` on a tiny pipeline: rows, resuming, the table, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests import tiny_pipeline
from unicp.benchmarking.rows import read_rows
from unicp.cli import bench
from unicp.cli.main import app

FAST = ("--fast-metrics", "--prompts", "1", "--seeds", "1", "--steps", "6")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_pipeline.save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*arguments: object):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_a_sweep_writes_rows_prints_a_table_and_goes_on(folder, tmp_path):
    out = tmp_path / "rows.jsonl"
    first = run("quick", "--model", folder, "--method", "fewer steps 3", "--out", out, *FAST)
    assert first.exit_code == 0, first.output
    assert "| fewer steps 3 | 1 | 2.00x |" in first.stdout
    assert {row.name for row in read_rows(out)} == {"plain", "fewer steps 3"}
    before = out.read_text()
    again = run("quick", "--model", folder, "--method", "fewer steps 3", "--out", out, *FAST)
    assert again.exit_code == 0 and out.read_text() == before
    more = run("quick", "--model", folder, "--method", "balanced", "--out", out, *FAST)
    assert more.exit_code == 0 and out.read_text().startswith(before)
    row = next(row for row in read_rows(out) if row.setting == "balanced")
    assert {"psnr", "ssim", "temporal_psnr", "motion_energy_ratio", "latent_error"} <= set(row.fidelity)


def test_clips_are_kept_where_asked(folder, tmp_path):
    run("quick", "--model", folder, "--method", "fewer steps 3", "--clips", tmp_path / "clips", *FAST)
    assert len(list((tmp_path / "clips").glob("*.mp4"))) == 2
    assert list((tmp_path / "build" / "bench").glob("*.jsonl"))


def test_prompts_of_ones_own(folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    out = tmp_path / "rows.jsonl"
    options = ("--prompts-file", tmp_path / "prompts.txt", "--out", out, "--method", "fewer steps 3", "--fast-metrics")
    result = run("quick", "--model", folder, *options, "--steps", "6")
    assert result.exit_code == 0, result.output
    assert {row.prompt for row in read_rows(out)} == {"a cat", "a dog"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("everything",), "suites"),
        (("quick", "--prompts", "0"), "positive"),
        (("quick", "--prompts", "9999"), "prompts"),
        (("quick", "--split", "all"), "splits"),
        (("quick", "--sampler", "magic"), "known ones"),
        (("quick", "--model", "nowhere"), "no such folder"),
        (("quick", "--method", "magic"), "no such method"),
        (("quick", "--method", "fewer steps \u00b2"), "no such method"),
        (("quick", "--method", "fast " + "[" * 50_000), "no such method"),
        (("quick", "--method", "fast", "--clips", __file__), "File exists"),
        (("quick", "--profile", "/dev/zero"), "a device"),
        (("quick", "--prompts-file", "none.txt"), "none.txt"),
        (("quick", "--out", "no/such/folder/rows.jsonl"), "no folder"),
    ],
)
def test_bad_input_is_one_line(arguments, said):
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr and result.stderr.count("\n") == 1


def test_a_file_where_the_rows_would_be_kept_is_one_line(tmp_path):
    (tmp_path / "build").write_text("")
    result = run("quick", "--method", "fast")
    assert result.exit_code == 2 and "name another one with --out" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_damaged_file_of_rows_is_told_before_anything_runs(folder, tmp_path):
    (tmp_path / "rows.jsonl").write_text("{broken\n{}\n")
    result = run("quick", "--model", folder, "--out", tmp_path / "rows.jsonl", *FAST)
    assert result.exit_code == 2 and "line 1" in result.stderr


def test_short_clips_of_a_suite_are_not_asked_of_a_model_of_one_length(tmp_path):
    config = tmp_path / "transformer" / "config.json"
    config.parent.mkdir()
    config.write_text('{"video_length": 16}')
    assert bench._usual_frames(9, tmp_path) is None
    config.write_text("5")
    assert bench._usual_frames(9, tmp_path) == 9
    config.write_text("{}")
    assert bench._usual_frames(9, tmp_path) == bench._usual_frames(9, tmp_path / "none") == 9


def test_rows_against_different_numbers_of_steps_do_not_share_a_file(folder, tmp_path):
    out = tmp_path / "rows.jsonl"
    assert run("quick", "--model", folder, "--method", "fewer steps 3", "--out", out, *FAST).exit_code == 0
    other = run("quick", "--model", folder, "--method", "fewer steps 3", "--out", out, *FAST[:-1], "5")
    assert other.exit_code != 0 and "rows against 6 steps" in other.stderr


def test_as_many_steps_as_the_reference_are_not_fewer(folder, tmp_path):
    out = tmp_path / "rows.jsonl"
    methods = [word for n in (5, 6, 7) for word in ("--method", f"fewer steps {n}")]
    run("quick", "--model", folder, *methods, "--out", out, *FAST)
    assert {row.name for row in read_rows(out)} == {"plain", "fewer steps 5"}
    assert read_rows(out)[0].environment["call"]["num_frames"] == 9
