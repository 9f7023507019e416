import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.test_rows import row
from unicp.errors import InputError
from unicp_bench.html.attention import load_attention
from unicp_bench.html.page import Extras, page
from unicp_bench.parts import load_rows
from unicp_bench.report import DOCUMENTS, RESULTS, fill
from unicp_bench.rows import append_row, read_rows
from unicp_bench.transfer import margins_of, summary

ROOT = Path(__file__).parents[3]


def write(path: Path, rows: Iterable[tuple[str, str, float, float]]) -> None:
    """Rows of one clip each: method, setting, PSNR, and what was executed of 100 operations."""
    for method, setting, psnr, operations in rows:
        append_row(path, row(setting, psnr, method=method, operations=round(100 * operations), full_operations=10_000))


def test_a_marked_table_is_made_from_its_rows(tmp_path):
    append_row(tmp_path / "presets.jsonl", row("fast", 35.0, operations=25, plain_seconds=3.0, paired=True))
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
    """Windows of 2 have six clips more, all of them easy ones, and windows of 8 have too few."""
    for seed in range(10):
        append_row(tmp_path / "p.jsonl", row("2", 30.0 if seed < 4 else 90.0, method="fixed window", seed=seed))
        if seed < 4:
            append_row(tmp_path / "p.jsonl", row("fast", 40.0, seed=seed))
    append_row(tmp_path / "p.jsonl", row("8", 99.0, method="fixed window", seed=0))
    text = fill("<!-- table p:unipc:equal -->\n<!-- end -->", tmp_path)
    assert "| PSNR, mean / worst clip (4 clips) | less compute | UniCP |" in text
    assert "| UniCP fast | 2.00x | 40.0 / 40.0 dB | 30.0 / 30.0 dB | not reached |" in text
    assert "over the 4 clips" in text and "6 more" in text and "fixed window 8 (1)" in text


def test_a_rival_read_at_its_slowest_setting_is_marked(tmp_path):
    write(tmp_path / "p.jsonl", [("UniCP", "quality", 50.0, 80), ("fixed window", "2", 30.0, 50)])
    text = fill("<!-- table p:unipc:equal -->\n<!-- end -->", tmp_path)
    assert "| UniCP quality | 1.25x | 50.0 / 50.0 dB | 30.0 / 30.0 dB † | not reached |" in text
    assert "† read at its slowest setting, which takes less compute: fixed window 2.00x." in text


def test_margins_are_over_the_best_peer_and_a_baseline_of_ours_is_none(tmp_path):
    rows = [("UniCP", "a", 40.0, 50), ("UniCP planned", "b", 42.0, 50), ("UniCP", "c", 30.0, 33)]
    rows += [("fixed window", "2", 60.0, 50), ("other", "1", 35.0, 50), ("slow", "1", 38.0, 66)]
    write(tmp_path / "p.jsonl", rows)
    text = fill("<!-- table p:unipc:margins -->\n<!-- end -->", tmp_path)
    assert (
        "| less compute (1 clip) | UniCP | UniCP planned | best peer | which (mean; worst clip) | UniCP minus it |"
        in text
    )
    assert "| 1.5x | 40.0 / 40.0 dB † | 42.0 / 42.0 dB † | 38.0 / 38.0 dB † | slow | +4.0 / +4.0 dB † |" in text
    assert "† read at the slowest setting of its method" in text
    assert "| 2x | 40.0 / 40.0 dB | 42.0 / 42.0 dB | 35.0 / 35.0 dB | other | +7.0 / +7.0 dB |" in text
    assert "| 3x | 30.3 / 30.3 dB | - | - | - | - |" in text


def test_steps_that_a_plan_chose_are_shown_and_are_no_peer(tmp_path):
    for method, psnr in (("UniCP", 40.0), ("fewer steps, placed", 44.0), ("other", 35.0)):
        append_row(tmp_path / "p.jsonl", row("1", psnr, method=method, operations=50))
    text = fill("<!-- table p:unipc:margins -->\n<!-- end -->", tmp_path)
    assert "| 2x | 40.0 / 40.0 dB | 44.0 / 44.0 dB | 35.0 / 35.0 dB | other | +5.0 / +5.0 dB |" in text


def test_margins_in_seconds_are_those_of_pairs_or_are_refused(tmp_path):
    for seed in range(3):
        for method, psnr, seconds in (("UniCP", 40.0, 0.5), ("other", 35.0, 1.0)):
            one = row("1", psnr, method=method, seed=seed, seconds=seconds)
            append_row(tmp_path / "p.jsonl", replace(one, paired=True))
            append_row(tmp_path / "not.jsonl", one)
    text = fill("<!-- table p:unipc:margins-seconds -->\n<!-- end -->", tmp_path)
    assert "| speed-up in seconds (3 clips) |" in text
    assert "| 2x | 40.0 / 40.0 dB † | 35.0 / 35.0 dB | other | +5.0 / +5.0 dB |" in text
    assert "| 4x | 40.0 / 40.0 dB | - | - | - |" in text
    with pytest.raises(InputError, match="unicp bench seconds"):
        fill("<!-- table not:unipc:margins-seconds -->\n<!-- end -->", tmp_path)


def test_rows_of_clips_of_two_lengths_are_not_one_table(tmp_path):
    for cost, frames in ((100, 9), (400, 41)):
        append_row(tmp_path / "p.jsonl", row(full_operations=cost, environment={"call": {"num_frames": frames}}))
    with pytest.raises(InputError, match="9 frames, presets, glyphs, sampler unipc, 30 steps, 41 frames"):
        fill("<!-- table p:unipc:margins -->\n<!-- end -->", tmp_path)
    with pytest.raises(InputError, match="rows against 30 steps, 41 frames, 30 steps, 9 frames"):
        fill("<!-- table p:unipc -->\n<!-- end -->", tmp_path)


def test_at_equal_fidelity_speeds_are_read_off_the_sweeps(tmp_path):
    rows = [("UniCP", "a", 40.0, 50), ("UniCP", "b", 30.0, 25), ("UniCP planned", "c", 41.0, 80)]
    rows += [("other", "1", 44.0, 80), ("other", "2", 36.0, 50), ("fixed window", "2", 45.0, 10)]
    write(tmp_path / "p.jsonl", rows)
    text = fill("<!-- table p:unipc:faster -->\n<!-- end -->", tmp_path)
    head = (
        "| PSNR kept (1 clip) | UniCP | UniCP planned | best peer | which (mean; worst clip) | less compute than it |"
    )
    assert head in text
    # UniCP: 2x at 40 dB, 4x at 30 dB. The other: 1.25x at 44 dB, 2x at 36 dB, so 1.625x at 40 dB.
    assert "| 40 dB | 2.00x / 2.00x | 1.25x / 1.25x | 1.62x / 1.62x | other | 1.23x / 1.23x |" in text
    assert "| 35 dB | 3.00x / 3.00x | 1.25x / 1.25x | 2.00x / 2.00x | other | 1.50x / 1.50x |" in text
    assert "| 45 dB | - | - | - | - | - |" in text


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
    assert "| vmaf, less compute (2 clips) | UniCP | best peer |" in text
    assert "| 2x | 85.0 / 80.0 | 85.0 / 84.0 | other | +0.0 / -4.0 |" in text


def test_targets_are_counted_as_met_or_not(tmp_path):
    for psnr, prompt in ((34.9, "a"), (35.0, "b"), (50.0, "c")):
        for setting in ("psnr>=35", "speedup>=2", "seconds<=2", "balanced"):
            method = "UniCP" if setting == "balanced" else "UniCP planned"
            one = row(setting, psnr, method=method, prompt=prompt, operations=50, plain_seconds=1.5)
            append_row(tmp_path / "targets.jsonl", one)
            append_row(tmp_path / "pairs.jsonl", replace(one, paired=True))
    text = fill("<!-- table targets:unipc:met -->\n<!-- end -->", tmp_path)
    assert "| psnr>=35 | 3 | 2 | 2.00x | 40.0 dB | 34.9 dB |" in text and "balanced" not in text
    # Nobody knows the seconds of runs that have no plain run beside them.
    assert "| speedup>=2 | 3 | 3 in compute |" in text and "| seconds<=2 | 3 | - |" in text
    text = fill("<!-- table pairs:unipc:met -->\n<!-- end -->", tmp_path)
    assert "| speedup>=2 | 3 | 0 in seconds |" in text and "| seconds<=2 | 3 | 3 in seconds |" in text


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
        assert fill(text, ROOT / RESULTS) == text, f"{name}: run python -m unicp_bench.report"


def test_the_lead_that_the_readme_tells_is_that_of_the_rows():
    told = summary(margins_of(read_rows(ROOT / RESULTS / "transfer.jsonl")))
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    ahead = f"UniCP keeps {told['mean']:.1f} dB more in the mean, and {told['worst']:.1f} dB more in the worst clips"
    behind = (
        f"At worst it keeps {-told['lowest mean']:.1f} dB less in the mean, and {-told['lowest worst']:.1f} dB less in"
    )
    assert ahead in text and behind in text


@pytest.mark.parametrize("name", ["README.md", "docs/results.md", "docs/planning.md", "docs/peers.md"])
def test_documents_say_compute_where_they_mean_it_and_name_what_was_compared(name):
    text = " ".join((ROOT / name).read_text(encoding="utf-8").lower().split())
    for words in ("operations saved", "seconds saved", "every accelerator", "users of diffusers can install"):
        assert words not in text, words
    assert "worst tenth |" not in text


def without_drawings(text: str) -> str:
    """A page with nothing of its figures but the tooltips: another matplotlib may draw the same rows a little apart."""
    figure = re.compile(r'<svg [^>]*class="chart">.*?</svg>', re.DOTALL)
    return figure.sub(lambda found: "".join(re.findall(r"<title>.*?</title>", found[0], re.DOTALL)), text)


def test_the_page_in_the_documents_is_what_the_rows_give():
    files = [
        file for kind in ("peers_*", "ablation*", "paper*") for file in sorted((ROOT / RESULTS).glob(f"{kind}.jsonl"))
    ]
    made = page(load_rows(files), Extras(attention=load_attention(ROOT / RESULTS / "attention_change.json")))
    kept = (ROOT / RESULTS / "report.html").read_text(encoding="utf-8")
    is_same = without_drawings(kept) == without_drawings(made)  # no diff of a megabyte
    assert is_same, "run make report"


def test_what_a_target_spent_is_beside_the_least_that_met_it_on_the_same_clip(tmp_path):
    rows = [("UniCP planned", "psnr>=35", 50.0, 60, "a"), ("UniCP planned", "psnr>=35", 30.0, 60, "b")]
    rows += [("UniCP", "x", 36.0, 40, "a"), ("UniCP", "x", 20.0, 40, "b"), ("UniCP", "y", 34.0, 20, "a")]
    rows += [("UniCP", "y", 20.0, 20, "b"), ("UniCP", "w", 50.0, 50, "a"), ("UniCP", "w", 35.0, 50, "b")]
    rows += [("other", "1", 90.0, 10, "a"), ("other", "1", 90.0, 10, "b")]
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


def test_constants_are_shown_at_each_speed_with_the_chosen_value_in_bold(tmp_path):
    def constant(value: float, chosen: bool, **result: tuple[float, float]) -> dict[str, Any]:
        told = {name: {"mean": mean, "worst": worst} for name, (mean, worst) in result.items()}
        return {"constant": "unicp.policies.made.LIMIT", "value": value, "chosen": chosen, "result": told}

    fast, slow = {"2.00x": (30.04, 21.0)}, {"1.67x": (40.0, 33.0)}
    rows = [
        constant(0.5, True, **fast, **slow),
        constant(1.0, False, **fast),
        constant(9.0, True, **{"psnr>=30": (1.0, 1.0)}),
    ]
    (tmp_path / "made.json").write_text(json.dumps({"rows": rows}))
    lines = fill("<!-- table made::constants -->\n<!-- end -->", tmp_path).splitlines()
    assert lines[1] == "| constant | value | 1.67x | 2.00x |"
    assert lines[3:5] == ["| LIMIT | **0.5** | 40.0 / 33.0 | 30.0 / 21.0 |", "| LIMIT | 1 | - | 30.0 / 21.0 |"]
    assert len(lines) == 6
