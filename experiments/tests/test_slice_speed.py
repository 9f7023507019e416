"""The speed of slices: one row per shape and share, and a gain in operations that follows from the shape."""

from __future__ import annotations

import json
import sys

import torch

from experiments import slice_speed
from experiments.slice_speed import Shape, measure


def test_long_sequences_gain_operations_and_short_ones_lose_them():
    gains = [measure(Shape(tokens, 16), (0.5,), torch.device("cpu"), torch.float32, 1)[0] for tokens in (16, 2000)]
    assert gains[0]["operations"] < 1 < gains[1]["operations"] < 2
    assert all(row["sliced to"] == 8 and row["all"] > 0 for row in gains)


def test_the_command_writes_a_row_per_shape(tmp_path, monkeypatch, capsys):
    out = tmp_path / "speed.json"
    words = ["x", "--tokens", "32", "64", "--width", "16", "--repeats", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    slice_speed.main()
    written = json.loads(out.read_text())
    assert [(row["tokens"], row["share"]) for row in written["rows"]] == [
        (tokens, share) for tokens in (32, 64) for share in slice_speed.SHARES
    ]
    assert written["environment"]["dtype"] == "float32"
    assert all(row["lowest"] <= row["all"] <= row["highest"] for row in written["rows"])
    assert "64 tokens, 16 -> 8" in capsys.readouterr().out
