"""`unicp bench` on a tiny pipeline: rows, resuming, the table, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests import tiny_pipeline
from unicp.cli.main import app
from unicp_bench import sweep
from unicp_bench.cli import bench
from unicp_bench.rows import read_rows

FAST = ("--fast-metrics", "--prompts", "1", "--seeds", "1", "--steps", "6")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_pipeline.save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch, registries_as_before):
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


RULE = """
from unicp.context import Decision
from unicp.policies import CachePolicy, policies


class EverySecond(CachePolicy):
    def __init__(self, settings):
        self.tolerance = settings.tolerance

    def decide(self, step, seen):
        return Decision(step.step % 2 == 1, "odd" if step.step % 2 else "even", self.tolerance)


policies.add("NAME", EverySecond)
"""


def test_a_rule_of_ones_own_is_measured_beside_everything_else(folder, tmp_path):
    file, out = tmp_path / "rule.py", tmp_path / "rows.jsonl"
    file.write_text(RULE.replace("NAME", "every second"))
    methods = ("policy:every second", 'policy:every second {"predictor": "reuse"}', "predictor:reuse", "balanced")
    options = [word for method in methods for word in ("--method", method)]
    result = run("quick", "--model", folder, "--plugin", file, *options, "--out", out, *FAST)
    assert result.exit_code == 0, result.output
    assert all(f"| {name.removeprefix('UniCP ')} | 1 |" in result.stdout for name in methods[:3])
    rows = {row.name: row for row in read_rows(out)}
    assert set(rows) == {"plain", "UniCP balanced", *methods[:3]}
    # Two full steps first, for the line needs two; then every second one.
    assert rows["policy:every second"].work[3] < 0.1 < 0.9 < rows["policy:every second"].work[4]
    assert rows[methods[1]].work[1] < 0.1
    assert "plugins" in rows[methods[0]].environment and "plugins" not in rows["UniCP balanced"].environment
    assert len({row.conditions for row in rows.values()}) == 1
    file.write_text(file.read_text() + "# changed\n")
    changed = run("quick", "--model", folder, "--plugin", file, *options, "--out", out, *FAST)
    assert changed.exit_code == 2 and "another version" in changed.stderr


def test_a_reducer_by_name_slices(folder, tmp_path):
    out = tmp_path / "rows.jsonl"
    method = 'reducer:pca_slices {"first": 99, "slicing": {"tolerance": 1000, "min_saving": -1e6}}'
    result = run("quick", "--model", folder, "--method", method, "--out", out, *FAST)
    assert result.exit_code == 0, result.output
    (row,) = (row for row in read_rows(out) if row.method == "reducer:pca_slices")
    assert row.measured and row.fidelity["psnr"] < 100


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be imported"),
        ("import nothing_of_this_name", "nothing_of_this_name"),
        ("1 / 0", "ZeroDivisionError"),
        ("", "policy names"),
        (RULE.replace("NAME", "other"), "policy names"),
        (RULE.replace('"NAME", EverySecond', '"error_window", EverySecond, replace=True'), "another name"),
    ],
    ids=["absent", "import", "error", "empty", "other name", "replaces"],
)
def test_a_plugin_that_cannot_be_used_is_one_line(folder, tmp_path, text, said):
    file = tmp_path / "rule.py"
    if text is not None:
        file.write_text(text)
    result = run("quick", "--model", folder, "--plugin", file, "--method", "policy:mine", *FAST)
    assert result.exit_code == 2 and said in result.stderr
    assert result.stderr.count("\n") == 1 and "asked: " in result.stderr


def test_a_plugin_that_is_a_module_may_be_given_twice(folder):
    given = ("--plugin", "unicp.policies", "--plugin", "unicp.predictors")
    result = run("quick", "--model", folder, *given, "--method", "policy:nobodys", *FAST)
    assert result.exit_code == 2 and "error_window" in result.stderr


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


def rows_of(out: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for row in read_rows(out):
        found.setdefault(row.conditions, []).append(row.steps)
    return found


def test_rows_against_different_numbers_of_steps_are_kept_apart(folder, tmp_path):
    out = tmp_path / "rows.jsonl"
    assert run("quick", "--model", folder, "--method", "fewer steps 3", "--out", out, *FAST).exit_code == 0
    other = run("quick", "--model", folder, "--method", "fewer steps 3", "--out", out, *FAST[:-1], "5")
    assert list(rows_of(out).values()) == [[6, 3], [5, 3]]
    assert (
        "2 rows" in other.output and "another sweep" in other.output and "| fewer steps 3 | 1 | 1.67x |" in other.output
    )


def test_another_model_of_the_same_name_another_call_and_rows_of_before_are_not_taken_for_this_sweep(folder, tmp_path):
    """The old table was printed for another model of the same name, and for other frames."""
    out, method = tmp_path / "rows.jsonl", ("--method", "fewer steps 3")
    run("quick", "--model", folder, *method, "--out", out, *FAST)
    assert [len(steps) for steps in rows_of(out).values()] == [2]
    twin = tmp_path / "elsewhere" / folder.name
    shutil.copytree(folder, twin)
    run("quick", "--model", twin, *method, "--out", out, *FAST)
    assert [len(steps) for steps in rows_of(out).values()] == [2]  # the same model in another place
    weights = next(twin.glob("transformer/*.safetensors"))
    raw = bytearray(weights.read_bytes())
    raw[-3] ^= 1
    weights.write_bytes(raw)
    run("quick", "--model", twin, *method, "--out", out, *FAST)
    assert [len(steps) for steps in rows_of(out).values()] == [2, 2]
    run("quick", "--model", folder, *method, "--out", out, "--frames", "5", *FAST)
    assert [len(steps) for steps in rows_of(out).values()] == [2, 2, 2]
    old = [json.loads(line) for line in out.read_text().splitlines()[:2]]
    out.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "conditions"}) + "\n" for row in old))
    last = run("quick", "--model", folder, *method, "--out", out, *FAST)
    assert [len(steps) for steps in rows_of(out).values()] == [2, 2] and "" in rows_of(out)
    assert "| fewer steps 3 | 1 |" in last.output


def test_rows_without_pairs_are_not_taken_for_those_of_a_suite_that_makes_pairs(folder, tmp_path):
    options = ("--model", folder, "--method", "fewer steps 3", "--out", tmp_path / "rows.jsonl", *FAST, "--frames", "9")
    assert "seconds a clip" not in run("quick", *options).output
    assert "seconds a clip" in run("seconds", *options).output
    found = [(row.suite, row.paired) for row in read_rows(tmp_path / "rows.jsonl")]
    assert found == [("quick", False)] * 2 + [("seconds", True)] * 2


def test_clips_are_made_of_rows_that_are_there(folder, tmp_path):
    """Asked for later, they were not made, and nothing was said."""
    options = ("quick", "--model", folder, "--method", "fewer steps 3", "--out", tmp_path / "rows.jsonl", *FAST)
    run(*options)
    before = (tmp_path / "rows.jsonl").read_text()
    again = run(*options, "--clips", tmp_path / "clips")
    assert len(list((tmp_path / "clips").glob("*.mp4"))) == 2 and "for its clip" in again.output
    assert (tmp_path / "rows.jsonl").read_text() == before
    assert "for its clip" not in run(*options, "--clips", tmp_path / "clips").output


def test_a_kill_between_clip_and_row_loses_neither(folder, tmp_path, monkeypatch):
    out, clips = tmp_path / "rows.jsonl", tmp_path / "clips"

    def killed(path, row):
        raise KeyboardInterrupt

    options = ("quick", "--model", folder, "--method", "fewer steps 3", "--out", out, "--clips", clips, *FAST)
    monkeypatch.setattr(sweep, "append_row", killed)
    run(*options)
    assert len(list(clips.glob("*.mp4"))) == 1 and not read_rows(out)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    run(*options)
    assert len(list(clips.glob("*.mp4"))) == 2 and len(read_rows(out)) == 2


def test_a_clip_of_a_long_prompt_is_kept(folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("ein sehr schöner Hund " * 30 + "\n")
    options = (
        "--prompts-file",
        tmp_path / "prompts.txt",
        "--method",
        "fewer steps 3",
        "--fast-metrics",
        "--steps",
        "4",
    )
    result = run("quick", "--model", folder, *options, "--seeds", "2", "--out", "rows.jsonl", "--clips", "clips")
    assert result.exit_code == 0, result.output
    assert len({path.name for path in Path("clips").glob("*.mp4")}) == 4


@pytest.mark.parametrize("place", ["clips", "build"])
def test_a_file_where_a_folder_is_wanted_is_one_line(folder, place):
    Path(place).write_text("")
    result = run("quick", "--model", folder, "--clips", "clips", "--method", "fewer steps 3", *FAST)
    assert result.exit_code == 2 and result.stderr.splitlines()[-1].startswith(
        "unicp: error: asked: to make the folder"
    )


def test_as_many_steps_as_the_reference_are_not_fewer(folder, tmp_path):
    out = tmp_path / "rows.jsonl"
    methods = [word for n in (5, 6, 7) for word in ("--method", f"fewer steps {n}")]
    run("quick", "--model", folder, *methods, "--out", out, *FAST)
    assert {row.name for row in read_rows(out)} == {"plain", "fewer steps 5"}
    assert read_rows(out)[0].environment["call"]["num_frames"] == 9
