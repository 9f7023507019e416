"""The HTML report: known answers for its numbers, its sentences, and what a file from strangers may contain."""

from __future__ import annotations

import base64
import json
import math
import re
from html.parser import HTMLParser

import pytest

from tests.test_rows import row
from unicp.errors import FileFormatError, InputError
from unicp.records import Entry, Trace
from unicp_bench.comparison import COMPUTE, at_each_speed, fastest_at, fidelity_at, sweeps, verdict
from unicp_bench.html import charts
from unicp_bench.html.attention import load_attention
from unicp_bench.html.clips import Clips, nearest, worst_clips, worst_rows
from unicp_bench.html.page import Extras, last_run, mean_work, page, write_report
from unicp_bench.parts import load_rows, split
from unicp_bench.rows import append_row, clip_file

VOID = ("meta", "input")


def plain(**changes):
    return row("", 100.0, method="plain", operations=100, seconds=2.0, **changes)


def at(method, speed, psnr, **changes):
    """A row that saves `speed` in operations and in seconds."""
    return row(
        f"{speed:g}x",
        psnr,
        method=method,
        operations=round(1200 / speed),
        full_operations=1200,
        seconds=2 / speed,
        **changes,
    )


ROWS = [
    plain(),
    *(at("UniCP", speed, psnr) for speed, psnr in ((1.5, 50.0), (3.0, 35.0))),
    *(at("peer", speed, psnr) for speed, psnr in ((1.5, 44.0), (4.0, 39.0))),
    at("fixed window", 2.0, 60.0),
    row("y", method="broken", reason="no such <block>"),
]


class Reader(HTMLParser):
    """Text of each table row, the tooltips of each part's figures, and whether every element was closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.lines, self.scripts, self.mistakes, self.tips = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        if tag == "svg":
            self.tips.append([])
        if tag == "title" and "svg" in self.open:
            self.tips[-1].append("")
        if tag == "tr":
            self.lines.append([])
        if tag in ("td", "th") and self.lines:
            self.lines[-1].append("")

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.mistakes.append(tag)

    def handle_data(self, data):
        if "script" in self.open:
            self.scripts.append(data)
        elif "title" in self.open and "svg" in self.open:
            self.tips[-1][-1] += data
        elif self.lines and self.lines[-1] and ("td" in self.open or "th" in self.open):
            self.lines[-1][-1] += data


def compared(part, cost=COMPUTE):
    """What the verdict is made from."""
    return {worth: at_each_speed(families) for worth, families in sweeps(part, cost).items()}


def lines(text, first):
    """Every table row that begins with this cell."""
    return [line for line in Reader(text).lines if line and line[0] == first]


def test_the_margin_is_that_over_the_best_peer_and_fixed_windows_are_none():
    text = page(ROWS, Extras())
    # UniCP falls by 10 dB a unit of speed, the peer by 2 dB.
    assert lines(text, "UniCP")[0][2:] == ["50.0", "50.0", "45.0", "45.0", "40.0", "40.0", "35.0", "35.0", "–", "–"]
    assert lines(text, "peer")[0][2:] == [
        "44.0",
        "44.0",
        "43.0",
        "43.0",
        "42.0",
        "42.0",
        "41.0",
        "41.0",
        "39.0",
        "39.0",
    ]
    margins = lines(text, "UniCP over the best peer, dB")[0]
    assert margins[2:] == ["+6.0", "+6.0", "+2.0", "+2.0", "−2.0", "−2.0", "−6.0", "−6.0", "–", "–"]
    assert set(lines(text, "the best peer")[0][2:]) == {"peer"}
    assert lines(text, "fixed window")[0][2:5] == ["60.0†", "60.0†", "60.0"]


def test_a_margin_over_a_peer_that_has_no_setting_so_slow_is_marked():
    text = page([at("UniCP", 1.5, 50.0), at("UniCP", 2.0, 45.0), at("peer", 2.0, 40.0)], Extras())
    assert lines(text, "UniCP over the best peer, dB")[0][2:6] == ["+10.0†", "+10.0†", "+5.0", "+5.0"]


def test_the_sentence_names_every_speed_where_unicp_loses():
    (part,) = split(ROWS)
    found = compared(part)
    places = (
        "2.5x (by 2.0 dB to peer), 3x (by 6.0 dB to peer) and 4x (no setting of it goes so far; peer keeps 39.0 dB)"
    )
    assert verdict(found, COMPUTE) == f"UniCP loses in the mean at {places}; in the worst clip at {places}."


@pytest.mark.parametrize(
    ("peers", "said"),
    [
        ([], "Nothing to compare with: no other method reaches 1.5x less compute."),
        (
            [at("peer", 2.0, 30.0)],
            "UniCP loses at no speed of this table. No peer goes as far in the mean at 2.5x and 3x",
        ),
        ([at("peer", 3.0, 35.02)], "It equals the best peer in the mean at 3x; in the worst clip at 3x."),
    ],
)
def test_the_sentence_without_a_loss(peers, said):
    (part,) = split([*ROWS[:3], *peers])
    found = compared(part)
    assert said in verdict(found, COMPUTE)


def test_equal_clips_are_no_point_to_interpolate_from():
    points = [(1.1, 100.0), (2.0, 40.0), (3.0, 30.0)]
    assert fidelity_at(points, 1.05) == 100.0
    assert fidelity_at(points, 1.5) == 40.0
    assert fidelity_at(points, 2.5) == 35.0
    assert fastest_at(points, 45.0) == 1.1
    assert fastest_at(points, 35.0) == 2.5


def test_speed_at_equal_fidelity():
    text = page(ROWS, Extras())
    (line,) = lines(text, "40 dB")
    assert line[1:6] == ["2.50x", "2.00x", "3.50x", "peer", "0.71x"]
    assert lines(text, "45 dB")[0][1:6] == ["2.00x", "2.00x", "–", "–", "–"]


def test_every_element_is_closed_and_nothing_is_loaded_from_elsewhere():
    text = page(ROWS, Extras())
    reader = Reader(text)
    assert (reader.mistakes, reader.open) == ([], [])
    assert re.search(r"<title>UniCP compared with other accelerators: glyphs</title>", text)
    # The names of SVG's own namespaces look like addresses; nothing is fetched from there.
    assert not re.search(r"https?://|<link|@import|src=", re.sub(r'xmlns(:\w+)?="[^"]*"', "", text))


def test_what_a_user_typed_is_text():
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'"
    rows = [
        plain(prompt=evil, environment={"device": evil}),
        at("UniCP", 2.0, 40.0, prompt=evil),
        row(evil, 30.0, method=evil, prompt=evil, model="glyphs"),
        row("z", method="other", reason=evil),
    ]
    for model in ("glyphs", evil):
        text = page([*rows, row(model=model, prompt=evil)], Extras())
        reader = Reader(text)
        assert (reader.mistakes, reader.open) == ([], [])
        assert "<script>alert" not in text and "<img" not in text
        assert len(re.findall("<script", text)) == 1
        assert any(tip.startswith(f"{evil} {evil}\n") for tips in reader.tips for tip in tips)


def test_the_same_rows_give_the_same_bytes(tmp_path):
    write_report(ROWS, tmp_path / "a.html")
    write_report(list(ROWS), tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_a_report_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "a.html").write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(InputError, match="disk full"):
        write_report(ROWS, tmp_path / "a.html")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_text_that_utf8_does_not_know_is_no_error(tmp_path):
    write_report([plain(prompt="a \ud800 b")], tmp_path / "a.html")
    assert "a ? b" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_missing_metrics_are_dashes_and_unknown_ones_are_shown():
    text = page([plain(), at("UniCP", 2.0, 40.0), row("b", fidelity={"psnr": 33.0, "novelty": 0.5})], Extras())
    heads = next(line for line in Reader(text).lines if line[0] == "setting")
    (first,), (second,) = lines(text, "UniCP 2x"), lines(text, "UniCP b")
    assert first[heads.index("VMAF")] == first[heads.index("novelty")] == "–"
    assert second[heads.index("novelty")] == "0.500" and second[heads.index("PSNR mean")] == "33.0"
    assert "LPIPS" not in heads


def table(text):
    """The lines of the full table by setting and heading."""
    heads = next(line for line in Reader(text).lines if line[0] == "setting")
    return {line[0]: dict(zip(heads, line)) for line in Reader(text).lines if len(line) == len(heads)}


def test_the_full_table_has_pairs_interval_and_memory():
    measured = {"peak_bytes": 2**21, "cache_bytes": 2**19, "model_seconds": 0.25, "paired": True}
    pairs = enumerate([(40.0, 0.5), (20.0, 1.0), (30.0, 2.0)])
    rows = [row(psnr=value, seconds=seconds, seed=seed, **measured) for seed, (value, seconds) in pairs]
    found = table(page([plain(), *rows], Extras()))
    own = found["UniCP balanced"]
    assert own["speed-up in seconds"] == "2.00x (1.00–4.00)"
    # Three clips have no interval that would hold the mean in 95 of 100 cases.
    assert (own["PSNR mean"], own["95 % interval"], own["worst clip"]) == ("30.0", "–", "20.0")
    assert (own["peak memory, MiB"], own["cache, MiB"], own["outside the model"]) == ("2.0", "0.5", "0.92")
    assert found["plain run (the reference)"]["cache, MiB"] == "–"


def test_an_interval_is_shown_of_clips_enough():
    rows = [row(psnr=float(n % 2), prompt=str(n)) for n in range(20)]
    own = table(page(rows, Extras()))["UniCP balanced"]
    low, high = map(float, own["95 % interval"].split("–"))
    assert 0.2 <= low <= 0.3 and 0.7 <= high <= 0.8
    assert own["worst 2 of 20 clips"] == "0.0"
    # Seeds of one prompt are not so many independent clips.
    seeds = [row(psnr=float(n % 2), prompt=str(n % 2), seed=n) for n in range(20)]
    assert table(page(seeds, Extras()))["UniCP balanced"]["95 % interval"] == "–"


def test_seconds_that_were_not_measured_in_pairs_are_nowhere():
    """One clip's plain run took 23.7, 50.1 or 70.6 s by row, since the machine had other work."""
    cases = [("UniCP", 60.0, 23.7), ("peer", 20.0, 70.6)]
    rows = [plain(seed=seed) for seed in range(3)]
    for method, psnr, seconds in cases:
        rows += [row("a", psnr, method=method, seed=n, seconds=12.0, plain_seconds=seconds) for n in range(3)]
    text = page(rows, Extras())
    assert "By less compute" in text and "By speed-up in seconds" not in text
    assert text.count("UniCP loses") == 1 and "UniCP loses at no speed of this table." in text
    assert not {"seconds", "speed-up in seconds", "outside the model"} & set(table(text)["UniCP a"])
    assert "against speed-up in seconds" not in text and "in seconds" not in str(Reader(text).tips)
    assert "No figure or comparison in seconds" in text
    assert len(lines(text, "40 dB")[0]) == 6


def test_seconds_of_pairs_are_compared_of_the_settings_that_have_them():
    rows = [plain(seed=seed) for seed in range(3)]
    for setting, method, psnr, paired in (
        ("a", "UniCP", 40.0, True),
        ("b", "UniCP", 90.0, False),
        ("c", "peer", 35.0, True),
    ):
        rows += [row(setting, psnr, method=method, seed=n, paired=paired) for n in range(3)]
    text = page(rows, Extras())
    assert "By speed-up in seconds" in text and "No figure or comparison in seconds" not in text
    assert lines(text, "UniCP")[1][4:6] == ["40.0", "40.0"]
    found = table(text)
    assert (found["UniCP a"]["seconds"], found["UniCP b"]["seconds"]) == ("1.00", "–")


def test_two_pairs_order_nothing():
    rows = [row("a", method=method, seed=seed, paired=True) for method in ("UniCP", "peer") for seed in range(2)]
    text = page(rows, Extras())
    assert "By speed-up in seconds" not in text
    assert table(text)["UniCP a"]["speed-up in seconds"] == "2.00x (2.00–2.00)"


def test_every_number_of_a_part_is_over_the_same_clips():
    easy = [row("1", 90.0, method="peer", seed=seed) for seed in range(6, 30)]
    same = [row("1", 20.0, method="peer", seed=seed) for seed in range(6)]
    own = [row("a", 30.0, seed=seed) for seed in range(6)]
    few = [row("b", 99.0, seed=seed) for seed in range(2)]
    text = page([*easy, *same, *own, *few], Extras())
    found = table(text)
    assert (found["peer 1"]["clips"], found["peer 1"]["PSNR mean"]) == ("6", "20.0")
    assert "UniCP b" not in found and "6 clips, the same for every setting." in text
    assert "24 more, which only some of them have" in text and "UniCP b (2)" in text


def test_suites_that_were_measured_on_other_clips_are_parts_of_their_own(tmp_path):
    plains = [row("", 100.0, method="plain", suite="rivals", seed=seed) for seed in range(6)]
    rivals = [row("2", method="fixed window", suite="rivals", seed=seed) for seed in range(6)]
    parts = [row("2", method="fixed window", suite="ablation", seed=seed) for seed in range(3)]
    claims = [row("paper", suite="paper", seed=seed) for seed in range(3)]
    for one in [*plains, *rivals, *parts, *claims]:
        append_row(tmp_path / "a.jsonl", one)
    found = split(load_rows([tmp_path / "a.jsonl"]))
    assert [(part.suites, part.clips) for part in found] == [(("rivals",), 6), (("ablation", "paper"), 3)]
    assert [len(part.plain.rows) for part in found if part.plain] == [6, 3]


def test_clips_of_other_lengths_are_a_part_of_their_own(tmp_path):
    def of(frames, psnr):
        call = {"call": {"num_frames": frames}}
        return row("a", psnr, full_operations=100 * frames, operations=50 * frames, environment=call)

    for frames, psnr in ((9, 30.0), (41, 50.0)):
        append_row(tmp_path / f"{frames}.jsonl", of(frames, psnr))
    rows = load_rows([tmp_path / "9.jsonl", tmp_path / "41.jsonl"])
    parts = split(rows)
    assert [part.name for part in parts] == [
        "glyphs, sampler unipc, 30 steps, 9 frames, presets",
        "glyphs, sampler unipc, 30 steps, 41 frames, presets",
    ]
    assert [part.groups[0].mean("psnr") for part in parts] == [30.0, 50.0]


def test_runs_of_other_numbers_of_steps_are_a_part_of_their_own_and_fewer_steps_are_not():
    rows = []
    for steps in (4, 8):
        cost = 100 * steps
        rows.append(row("", 100.0, method="plain", steps=steps, full_operations=cost))
        rows.append(row("3", 20.0, method="fewer steps", steps=3, operations=300, full_operations=cost))
    rows.append(row("2", method="fewer steps, dpm", steps=2, reason="no such sampler", operations=0, full_operations=0))
    parts = split(rows)
    assert [part.name for part in parts] == [f"glyphs, sampler unipc, {steps} steps, presets" for steps in (4, 8)]
    assert [len(part.failures) for part in parts] == [1, 0]


def test_a_lead_is_said_of_these_clips_and_of_the_test_beds_that_unicp_was_tuned_on():
    text = page(ROWS, Extras())
    assert "On this clip: UniCP loses" in text
    assert "constants were chosen on the test-beds glyphs, latte and film" in text
    assert "constants were chosen" not in page([row(model="mine")], Extras())


def test_what_a_figure_cuts_off_is_said():
    rows = [plain(), row("a", 65.0), row("b", 100.0, operations=100), row("c", 58.0), row("d", 50.0, operations=10)]
    text = page(rows, Extras())
    assert "The axes do not hold 2 settings above 60 dB and 1 setting beyond 6.5x" in text
    assert "Figures end at 60 dB" in text


def test_what_cannot_run_says_why_once():
    text = page([*ROWS, row("z", method="broken", reason="no such <block>")], Extras())
    assert lines(text, "broken y; broken z") == [["broken y; broken z", "every clip", "no such <block>"]]


def test_a_method_that_fails_on_one_clip_keeps_the_others():
    rows = [plain(), row("s", method="peer", reason="crash", seed=1), row("s", 30.0, method="peer")]
    (part,) = split(rows)
    assert [len(group.rows) for group in part.groups] == [1]
    assert lines(page(rows, Extras()), "peer s")[-1] == ["peer s", "1 of 2 clips", "crash"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row()], "the plain run has no row here"),
        ([plain()], "All settings"),
        ([row(psnr=math.nan)], "has a PSNR, so there is nothing to draw"),
        ([row(fidelity={})], "has a PSNR, so there is nothing to draw"),
        ([row(reason="no block")], "no block"),
        ([plain(), row(operations=0, full_operations=10**9)], "over 1000x"),
        ([plain(), row(psnr=100.0, operations=100)], "1 setting above 60 dB"),
    ],
)
def test_little_data_still_makes_a_page(rows, said):
    text = page(rows, Extras())
    reader = Reader(text)
    assert said in text and (reader.mistakes, reader.open) == ([], [])
    assert "nan" not in re.sub(r"<(style|script).*?</\1>", "", text, flags=re.DOTALL).lower()


def test_no_rows_are_refused():
    with pytest.raises(InputError, match="no rows"):
        page([], Extras())


def test_the_axes_are_not_ruled_by_what_is_identical_or_absurd():
    (group,) = split([row()])[0].groups
    dots = [charts.Dot(group, x, y) for x, y in ((1.0, 100.0), (2.0, 48.0), (3.1, 31.0), (90.0, 2.0))]
    assert charts.limits(dots) == ((1.0, 3.5), (10.0, 50.0))
    assert charts.limits(dots[:1])[1][1] == charts.TOP
    assert charts.beyond(dots) == "1 setting above 50 dB, 1 setting below 10 dB and 1 setting beyond 3.5x"


def test_unicp_comes_first_and_every_family_looks_different():
    rows = [row(method=f"peer {n}") for n in range(20)] + [row(), row(method="fixed window")]
    (part,) = split(rows)
    assert list(part.families)[:3] == ["UniCP", "fixed window", "peer 0"]
    looks = charts.looks([part]).values()
    assert len({(look.colour, look.marker) for look in looks}) == len({look.name for look in looks}) == 22


def test_each_family_is_shown_and_hidden_by_its_own_box():
    text = page(ROWS, Extras())
    (part,) = split(ROWS)
    for family, look in charts.looks([part]).items():
        assert re.search(rf'<input type="checkbox" value="{look.name}" checked>.*{family}</label>', text)
        assert f"value={look.name}]:not(:checked)) .chart .{look.name} {{ display: none; }}" in text
        assert re.search(rf'class="family {look.name}( ours)? dot', text)


def test_tooltips_belong_to_their_model_and_sampler():
    tips = Reader(page([row(), row("late", sampler="euler")], Extras())).tips
    # Two figures each: of the mean and of the worst clip.
    assert [[tip.splitlines()[0] for tip in figure] for figure in tips] == [["UniCP balanced"]] * 2 + [
        ["UniCP late"]
    ] * 2
    assert tips[0][0].splitlines()[1:] == ["2.00x less compute", "PSNR 40.0 dB mean, 40.0 dB worst clip", "1 clip"]


def test_rows_of_several_files_the_later_of_the_same_measurement(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    append_row(first, row(psnr=30.0))
    append_row(first, row("other"))
    append_row(second, row(psnr=41.0))
    assert [one.fidelity["psnr"] for one in load_rows([first, second])] == [41.0, 40.0]


def test_work_is_a_mean_over_clips():
    rows = [row(work=[1.0, 0.0, 1.0]), row(work=[1.0, 1.0, 0.0], seed=1), row(work=[1.0], seed=2)]
    (part,) = split(rows)
    assert mean_work(part.groups[0]) == [1.0, 0.5, 0.5]
    text = page(rows, Extras())
    assert any(tip.split()[-3:] == ["1.00", "0.50", "0.50"] for tips in Reader(text).tips for tip in tips)
    assert 'd="M0 1V0h1V1V0.5h1V1V0.5h1V1"' in text


def test_the_trace_map_shows_the_last_run_and_gaps():
    trace = Trace("M", "cpu", "float32", {})
    for run, step, action in ((0, 0, "slice"), (1, 0, "full"), (1, 2, "reuse")):
        trace.entries.append(Entry(run, step, "cond", "blocks.0", action, "window", None, 0.1))
    assert last_run(trace)[1] == {"blocks.0 · cond": ["full", "", "reuse"]}
    text = page(ROWS, Extras(trace=trace))
    cells = re.findall(r'<td class="a-(\w*)" title="step (\d): ([\w ]+)"></td>', text)
    assert cells == [("full", "0", "full"), ("", "1", "not called"), ("reuse", "2", "reuse")]
    trace.clear()
    assert "no entries" in page(ROWS, Extras(trace=trace))


def test_the_attention_figure_has_a_mean(tmp_path):
    file = tmp_path / "change.json"
    file.write_text(json.dumps({"units": ["a", "b"], "change": [[0, 0.25, 0.5], [0, 0.75, 0.5]], "clips": 4}))
    text = page(ROWS, Extras(attention=load_attention(file)))
    assert lines(text, "mean")[-1] == ["mean", "0.500", "0.500"]
    assert Reader(text).tips[-1] == ["a", "b"]


@pytest.mark.parametrize(
    "body", ["[]", '{"units": ["a"], "change": []}', '{"units": ["a"], "change": [[0, "x"]]}', "{"]
)
def test_a_strange_attention_file_is_refused(tmp_path, body):
    (tmp_path / "change.json").write_text(body)
    with pytest.raises(FileFormatError, match="change.json"):
        load_attention(tmp_path / "change.json")


# --- clips


def test_the_setting_nearest_to_twice_the_operations_and_its_worst_clips():
    rows = [at("UniCP", speed, 30.0) for speed in (1.2, 1.9, 4.0)]
    (part,) = split(rows)
    assert nearest(part.groups).setting == "1.9x"
    (part,) = split([row(psnr=psnr, seed=seed) for seed, psnr in enumerate((math.nan, 40.0, 20.0, math.nan, 30.0))])
    assert [one.seed for one in worst_rows(part.groups[0], 3)] == [2, 4, 1]


def test_clips_are_inside_the_page_each_once(tmp_path):
    rows = [plain(), row(), row("b", method="peer")]
    for one in rows:
        (tmp_path / clip_file(one)).write_bytes(b"a video")
    text = page(rows, Extras(clips=Clips(tmp_path)))
    videos = json.loads(Reader(text).scripts[0])
    assert {*videos.values()} == {base64.b64encode(b"a video").decode()} and len(videos) == 3
    shown = re.findall(r'<video data-video="([^"]*)"', text)
    assert shown == [clip_file(rows[0]), clip_file(rows[1]), clip_file(rows[0]), clip_file(rows[2])]
    assert "PSNR 40.0 dB" in text
    chosen = page(rows, Extras(clips=Clips(tmp_path, families=("peer",))))
    assert chosen.count("<video") == 2
    (tmp_path / clip_file(rows[1])).unlink()
    assert "Not in the folder: 1 clip." in page(rows, Extras(clips=Clips(tmp_path)))


def test_a_folder_without_these_clips_is_refused(tmp_path):
    with pytest.raises(InputError, match="none of the clips of these rows"):
        worst_clips(split([plain(), row()]), Clips(tmp_path))
    with pytest.raises(InputError, match="no such folder"):
        page(ROWS, Extras(clips=Clips(tmp_path / "missing")))
    with pytest.raises(InputError, match="the families UniCP, fixed window, peer"):
        page(ROWS, Extras(clips=Clips(tmp_path, families=("nobody",))))
