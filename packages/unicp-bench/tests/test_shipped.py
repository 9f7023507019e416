"""The trained test-beds in the package: each loads, runs by its own defaults, and UniCP serves it and lets it go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import unicp
from unicp_bench.harness import Harness
from unicp_bench.suites import models
from unicp_testbeds import SMALL
from unicp_testbeds.beds.training import LOSSES_FILE
from unicp_testbeds.model_card import SCORES_FILE, read_scores
from unicp_testbeds.prompts import prompts_of

STEPS, MOST_BYTES = 6, 50_000_000


@pytest.fixture(scope="module", params=sorted(models()))
def harness(request) -> Any:
    name = request.param
    return name, Harness(models()[name], "default", STEPS)


def latent(harness: Any) -> Tensor:
    name, own = harness
    return own.latent(prompts_of("table", name)[0], 0)


def test_tolerance_zero_is_bit_equal_and_detaching_leaves_nothing(harness):
    plain = latent(harness)
    with unicp.enable(harness[1].pipe, unicp.preset("balanced", tolerance=0.0)):
        assert torch.equal(latent(harness), plain)
    with unicp.enable(harness[1].pipe, unicp.preset("balanced", tolerance=100.0)) as session:
        served = latent(harness)
    assert any(entry.action == "forecast" for entry in session.trace.entries)
    assert torch.isfinite(served).all() and not torch.equal(served, plain)
    assert torch.equal(latent(harness), plain)


def test_prompts_for_tables_tuning_and_calibration_are_disjoint(harness):
    splits = [set(prompts_of(split, harness[0])) for split in ("table", "tuning", "calibration")]
    assert all(splits) and not (splits[0] & splits[1] or splits[0] & splits[2] or splits[1] & splits[2])


def test_the_card_states_the_scores(harness):
    folder = models()[harness[0]]
    card = (folder / "README.md").read_text(encoding="utf-8")
    # The small test-beds have the losses of their training, and no scores.
    beside = LOSSES_FILE if harness[0] in SMALL else SCORES_FILE
    assert (folder / beside).is_file() and (harness[0] in SMALL or read_scores(folder / SCORES_FILE))
    for part in ("transformer", "mean squared error") if harness[0] in SMALL else ("transformer", "scheduler", beside):
        assert part in card


def test_the_weights_are_small_enough_to_travel_with_the_package():
    files = [file for folder in models().values() for file in Path(folder).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < MOST_BYTES
