"""Errors of slices on captured attention: full width is exact, corrections at the age of 0 have nothing to correct."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from experiments import slice_errors
from experiments.slice_errors import (
    BY_HEAD,
    KINDS,
    NOTHING,
    OTHER_PROMPT,
    Call,
    Fitted,
    errors_of,
    measure,
    over_steps,
)
from tests import tiny_pipeline
from unicp_bench.harness import Harness


def call(seed: int, drift: float = 0.0) -> Call:
    generator = torch.Generator().manual_seed(0)
    base = [torch.randn(1, 2, 40, 32, generator=generator) for _ in range(3)]
    other = [torch.randn(1, 2, 40, 32, generator=torch.Generator().manual_seed(seed)) for _ in range(3)]
    query, key, value = (a + drift * b for a, b in zip(base, other))
    return Call(query, key, value, F.scaled_dot_product_attention(query, key, value), {})


def test_an_attention_that_does_not_change_is_corrected_wholly():
    found = errors_of({step: call(1) for step in (5, 7, 8)}, 8)
    assert found[NOTHING, 0.0, 1, "stored"] == pytest.approx((0.0, 0.0), abs=1e-5)
    assert found["kq_svd", 0.25, 1, "stored"] == pytest.approx((0.0, 0.0), abs=1e-5)
    assert found["kq_svd", 0.25, 0, "none"] > found["kq_svd", 0.75, 0, "none"] > (1e-3, 0.0)
    # The step before the one before is missing, so nothing can be forecast.
    assert not any(correction == "forecast" for *_, correction in found)


def test_a_slice_with_correction_is_nearer_than_either_alone():
    calls = {8: call(1, 0.2), 7: call(1, 0.1), 6: call(1, 0.0)}
    found = errors_of(calls, 8)
    stored = found["kq_svd", 0.5, 1, "stored"]
    assert stored < found["kq_svd", 0.5, 1, "none"] and stored < found[NOTHING, 0.0, 1, "stored"]
    assert found["kq_svd", 0.5, 1, "forecast"] < stored


def test_bases_of_another_call_and_a_projection_are_told_apart():
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(2)) * 0.8 ** torch.arange(64)
    now, other = (replace(call(1, drift), projection=weight) for drift in (0.0, 2.0))
    found = errors_of({8: now}, 8, Fitted.on(other))
    for name in (*KINDS, BY_HEAD):
        assert found[name, 0.5, OTHER_PROMPT, "none"][1] > found[name, 0.5, 0, "none"][1]
    for kind in ("kq_svd", "output_pca"):
        plain, weighted = found[kind, 0.5, 0, "none"], found[f"{kind} + weighted", 0.5, 0, "none"]
        assert weighted[1] < plain[1]
    assert found["output_pca", 0.5, 0, "none"][0] < found["kq_svd", 0.5, 0, "none"][0]


def test_a_run_gives_rows_of_every_kind(tmp_path, monkeypatch):
    monkeypatch.setattr(slice_errors, "PROBED", (2, 4))
    monkeypatch.setattr(slice_errors, "AGES", (0, 1))
    harness = Harness(tiny_pipeline.save(tmp_path / "tiny"), "default", 5, frames=5)
    prompts = ("a blue star moving left on a striped background", "a red star moving left on a striped background")
    with torch.no_grad():
        rows = measure(harness, prompts, lambda text: None)
        # Nothing is known of another prompt before the first.
        assert measure(harness, prompts[:1], lambda text: None) == []
    assert {row["role"] for row in rows} == {"self"} and {row["step"] for row in rows} == {2, 4}
    assert all(row["error"] <= row["worst"] for row in rows)
    assert all(row["projected"] <= row["projected worst"] and row["projected"] != row["error"] for row in rows)
    table = over_steps(rows)
    assert {row["age"] for row in table} == {"0", "1", OTHER_PROMPT}
    assert table != over_steps(rows, "projected")
    assert {row["width"] for row in table} == {0.0, 0.25, 0.5, 0.75}
    assert all(row["forecast"] == "-" for row in table if row["age"] == "0")
