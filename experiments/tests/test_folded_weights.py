"""Values' axes in the weights: the same module at full width, and operations that follow from the shape."""

from __future__ import annotations

import json
import sys

import torch

from experiments import folded_weights
from experiments.folded_weights import Module, measure, operations


def test_at_full_width_folding_changes_nothing_but_rounding():
    generator = torch.Generator().manual_seed(0)
    module = Module(2, *(torch.randn(32, 32, generator=generator) / 32**0.5 for _ in range(4)))
    hidden = torch.randn(1, 60, 32, generator=generator) + 1.0
    plain = module.full(hidden)
    folded, weights = module.folded(hidden, 16)
    torch.testing.assert_close(folded, plain, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(module.folded(hidden, 16, weights)[0], plain, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(module.folded(hidden, 8)[0], plain, rtol=1e-3, atol=1e-4)


def test_without_trial_rows_and_refits_folding_halves_two_of_four_linear_layers():
    full, sliced, folded = operations(64, 4, 16, 8, calls=10**9)
    linear, change, averages = 2 * 64 * 64 * 64, 2 * 4 * 64 * 16 * 8, 2 * 4 * 32 * 64 * 64
    assert round(sliced - folded) == linear + 2 * change - averages
    assert operations(512, 12, 128, 64, calls=4)[2] < operations(512, 12, 128, 64, calls=4)[1]
    assert full == 4 * linear + 4 * 64 * 64 * 64


def test_a_row_and_the_command(tmp_path, monkeypatch):
    with torch.no_grad():
        row = measure(64, 2, 16, 0.5, 1)
    assert row["sliced to"] == 8 and row["folded"] > 0
    out = tmp_path / "folded.json"
    words = ["x", "--tokens", "32", "--heads", "2", "16", "--repeats", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    folded_weights.main()
    assert len(json.loads(out.read_text())["rows"]) == len(folded_weights.SHARES)
