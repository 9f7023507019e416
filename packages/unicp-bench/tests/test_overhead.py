"""The overhead suite: one row per size, plain and forced runs alternate."""

from __future__ import annotations

import json

import pytest

from tests import tiny_pipeline
from unicp.cli.main import app
from unicp_bench import overhead
from unicp_bench.overhead import Size


def test_each_size_gives_a_row(tmp_path, monkeypatch):
    folder = tiny_pipeline.save(tmp_path / "tiny")
    monkeypatch.setattr(overhead, "models", lambda: {"glyphs": folder})
    lines: list[str] = []
    sizes = (Size(frames=5, blocks=2, steps=2), Size("unit", frames=5, blocks=1, steps=3))
    overhead.measure(tmp_path / "overhead.json", lines.append, sizes, repeats=2)
    rows = json.loads((tmp_path / "overhead.json").read_text())["rows"]
    assert [(row["level"], row["blocks"], row["steps"]) for row in rows] == [("model", 2, 2), ("unit", 1, 3)]
    for row in rows:
        assert row["lowest %"] <= row["overhead %"] <= row["highest %"]
        assert row["plain seconds"] > 0
    assert len(lines) == 2 and "1 blocks, 3 steps" in lines[1]


def test_options_that_would_be_ignored_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        app(["bench", "overhead", "--steps", "10", "--out", str(tmp_path / "o.json")])
    assert stop.value.code != 0
    assert "give --out alone" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
