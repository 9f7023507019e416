from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.unit.benchmarking.test_rows import row
from unicp.benchmarking.report import DOCUMENTS, RESULTS, fill
from unicp.benchmarking.rows import append_row
from unicp.errors import InputError

ROOT = Path(__file__).parents[3]


def write(path: Path, rows: Iterable[tuple[str, str, float, float]]) -> None:
    """Rows of one clip each: method, setting, PSNR, and what was executed of 100 operations."""
    for method, setting, psnr, operations in rows:
        append_row(path, row(setting, psnr, method=method, operations=round(100 * operations), full_operations=10_000))


def test_a_marked_table_is_made_from_its_rows(tmp_path):
    append_row(tmp_path / "presets.jsonl", row("fast", 35.0, operations=25, plain_seconds=3.0))
    text = fill("before\n<!-- table presets:unipc -->\nold\n<!-- end -->\nafter", tmp_path)
    assert "| UniCP fast | 1 | 4.00x | 3.00x | 1.0 | 35.0 dB | 35.0 dB |" in text
    assert "old" not in text and text.startswith("before") and text.endswith("after")


def test_rivals_are_read_off_their_sweeps_at_equal_operations(tmp_path):
    rows = [("UniCP", "fast", 40.0, 25), ("fixed window", "2", 30.0, 50), ("fixed window", "8", 20.0, 12.5)]
    write(tmp_path / "presets.jsonl", [*rows, ("fewer steps", "15", 25.0, 50)])
    text = fill("<!-- table presets:unipc:equal -->\n<!-- end -->", tmp_path)
    # Windows: 2x at 30 dB and 8x at 20 dB; 4x lies a third of the way.
    assert "| UniCP fast | 4.00x | 40.0 / 40.0 dB | 26.7 / 26.7 dB | not reached |" in text


def test_rivals_are_compared_on_the_same_clips(tmp_path):
    same = [row("2", 30.0, method="fixed window", prompt=p) for p in "ab"]
    for one in [row("fast", 40.0, prompt="a"), *same, row("8", 99.0, method="fixed window", prompt="b")]:
        append_row(tmp_path / "presets.jsonl", one)
    text = fill("<!-- table presets:unipc:equal -->\n<!-- end -->", tmp_path)
    assert "| UniCP fast | 2.00x | 40.0 / 40.0 dB | 30.0 / 30.0 dB | not reached |" in text


def test_margins_are_over_the_best_peer_and_a_baseline_of_ours_is_none(tmp_path):
    rows = [("UniCP", "a", 40.0, 50), ("UniCP planned", "b", 42.0, 50), ("UniCP", "c", 30.0, 33)]
    rows += [("fixed window", "2", 60.0, 50), ("other", "1", 35.0, 50), ("slow", "1", 38.0, 66)]
    write(tmp_path / "p.jsonl", rows)
    text = fill("<!-- table p:unipc:margins -->\n<!-- end -->", tmp_path)
    assert (
        "| operations saved | UniCP | UniCP planned | best peer | which (mean; worst tenth) | UniCP over it |" in text
    )
    assert "| 1.5x | 40.0 / 40.0 dB | 42.0 / 42.0 dB | 38.0 / 38.0 dB | slow | +4.0 / +4.0 dB |" in text
    assert "| 2x | 40.0 / 40.0 dB | 42.0 / 42.0 dB | 35.0 / 35.0 dB | other | +7.0 / +7.0 dB |" in text
    assert "| 3x | 30.3 / 30.3 dB | - / - dB | - / - dB | - | - / - dB |" in text


def test_steps_that_a_plan_chose_are_shown_and_are_no_peer(tmp_path):
    for method, psnr in (("UniCP", 40.0), ("fewer steps, placed", 44.0), ("other", 35.0)):
        append_row(tmp_path / "p.jsonl", row("1", psnr, method=method, operations=50))
    text = fill("<!-- table p:unipc:margins -->\n<!-- end -->", tmp_path)
    assert "| 2x | 40.0 / 40.0 dB | 44.0 / 44.0 dB | 35.0 / 35.0 dB | other | +5.0 / +5.0 dB |" in text


def test_at_equal_fidelity_speeds_are_read_off_the_sweeps(tmp_path):
    rows = [("UniCP", "a", 40.0, 50), ("UniCP", "b", 30.0, 25), ("UniCP planned", "c", 41.0, 80)]
    rows += [("other", "1", 44.0, 80), ("other", "2", 36.0, 50), ("fixed window", "2", 45.0, 10)]
    write(tmp_path / "p.jsonl", rows)
    text = fill("<!-- table p:unipc:faster -->\n<!-- end -->", tmp_path)
    assert "| PSNR kept | UniCP | UniCP planned | best peer | which (mean; worst tenth) | UniCP over it |" in text
    # UniCP: 2x at 40 dB, 4x at 30 dB. The other: 1.25x at 44 dB, 2x at 36 dB, so 1.625x at 40 dB.
    assert "| 40 dB | 2.00x / 2.00x | 1.25x / 1.25x | 1.62x / 1.62x | other | 1.23x / 1.23x |" in text
    assert "| 35 dB | 3.00x / 3.00x | 1.25x / 1.25x | 2.00x / 2.00x | other | 1.50x / 1.50x |" in text
    assert "| 45 dB | - / - | - / - | - / - | - | - / - |" in text


def test_margins_of_another_metric_are_its_own(tmp_path):
    for method, vmaf, prompt in (
        ("UniCP", 90.0, "a"),
        ("UniCP", 80.0, "b"),
        ("other", 86.0, "a"),
        ("other", 84.0, "b"),
    ):
        fidelity = {"psnr": 30.0, "vmaf": vmaf}
        append_row(tmp_path / "p.jsonl", row("1", method=method, operations=50, prompt=prompt, fidelity=fidelity))
    text = fill("<!-- table p:unipc:margins-vmaf -->\n<!-- end -->", tmp_path)
    assert "| vmaf, operations saved | UniCP | best peer |" in text
    assert "| 2x | 85.0 / 80.0 | 85.0 / 84.0 | other | +0.0 / -4.0 |" in text


def test_targets_are_counted_as_met_or_not(tmp_path):
    rows = [("psnr>=35", psnr, prompt) for psnr, prompt in ((34.9, "a"), (35.0, "b"), (50.0, "c"))]
    for setting, psnr, prompt in [*rows, ("speedup>=2", 20.0, "a"), ("balanced", 60.0, "a")]:
        method = "UniCP" if setting == "balanced" else "UniCP planned"
        one = row(setting, psnr, method=method, prompt=prompt, operations=50, plain_seconds=1.5)
        append_row(tmp_path / "targets.jsonl", one)
    text = fill("<!-- table targets:unipc:met -->\n<!-- end -->", tmp_path)
    assert "| psnr>=35 | 3 | 2 | 2.00x | 40.0 dB | 34.9 dB |" in text
    assert "| speedup>=2 | 1 | 0 | 2.00x | 20.0 dB | 20.0 dB |" in text and "balanced" not in text


def test_a_long_sweep_of_peers_keeps_the_settings_that_no_other_of_the_method_beats(tmp_path):
    rows = [("UniCP", "a", 40.0, 100), ("UniCP", "b", 30.0, 50), ("UniCP", "c", 20.0, 60)]
    rows += [("other", "1", 35.0, 50), ("other", "2", 34.0, 50), ("other", "3", 35.0, 50), ("other", "4", 36.0, 60)]
    rows += [("idle", "1", 100.0, 100), ("idle", "2", 100.0, 100), ("other", "0", 100.0, 100)]
    write(tmp_path / "t.jsonl", rows)
    append_row(tmp_path / "t.jsonl", row("x", method="stuck", reason="no such block", fidelity={}))
    text = fill("<!-- table t:unipc:best -->\n<!-- end -->", tmp_path)
    named = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")]
    assert named == ["method", "UniCP a", "UniCP c", "UniCP b", "other 4", "other 1"]
    assert "Settings that saved nothing: idle (2), other (1)." in text and "stuck cannot run: no such block." in text


def test_a_file_of_plain_rows_may_hold_several_tables(tmp_path):
    (tmp_path / "s.json").write_text('{"rows": [{"a": 0.12346}], "other": [{"b": "-"}]}', encoding="utf-8")
    text = fill("<!-- table s: -->\n<!-- end -->\n<!-- table s::other -->\n<!-- end -->", tmp_path)
    assert "| a |\n|---|\n| 0.1235 |" in text and "| b |\n|---|\n| - |" in text


def test_a_table_without_rows_is_an_error(tmp_path):
    with pytest.raises(InputError):
        fill("<!-- table presets:unipc -->\n<!-- end -->", tmp_path)


def test_the_tables_in_the_documents_are_those_that_were_measured():
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "<!-- table" in text, name
        assert fill(text, ROOT / RESULTS) == text, f"{name}: run python -m unicp.benchmarking.report"


def test_what_a_target_spent_is_beside_the_least_that_met_it_on_the_same_clip(tmp_path):
    rows = [("UniCP planned", "psnr>=35", 50.0, 60, "a"), ("UniCP planned", "psnr>=35", 30.0, 60, "b")]
    rows += [("UniCP", "x", 36.0, 40, "a"), ("UniCP", "y", 34.0, 20, "a"), ("UniCP", "z", 20.0, 20, "b")]
    rows += [("UniCP", "w", 50.0, 50, "a"), ("UniCP", "w", 35.0, 50, "b"), ("other", "1", 90.0, 10, "a")]
    for method, setting, psnr, operations, prompt in rows:
        append_row(tmp_path / "t.jsonl", row(setting, psnr, method=method, prompt=prompt, operations=operations))
    text = fill("<!-- table t:unipc:need -->\n<!-- end -->", tmp_path)
    # 0.6 of the operations each. "w" meets it on both with 0.5; 0.4 would have done for the first clip.
    assert "| psnr>=35 | 2 | 1 | 1.67x | 2.00x | +20% | 2.22x | +33% |" in text


def test_a_target_that_nothing_met_would_have_needed_a_plain_run(tmp_path):
    for prompt, psnr in (("a", 36.0), ("b", 30.0)):
        append_row(tmp_path / "t.jsonl", row("psnr>=35", psnr, method="UniCP planned", prompt=prompt, operations=60))
    text = fill("<!-- table t:unipc:need -->\n<!-- end -->", tmp_path)
    assert "| psnr>=35 | 2 | 1 | 1.67x | 1.00x | -40% | 1.25x | -25% |" in text
