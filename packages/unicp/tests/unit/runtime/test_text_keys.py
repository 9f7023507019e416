"""Keys and values of the text are projected once per run and branch, and nothing changes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from tests import tiny_models
from tests.fake_models import noise
from unicp.models.finder import map_model
from unicp.runtime.text_keys import TextKeys, text_projections
from unicp.session import enable
from unicp.settings import preset


class Projection(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)
        self.calls = 0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(input)


def projected(
    keys: TextKeys, projection: Projection, text: torch.Tensor, branch: str, is_unchanged: bool
) -> torch.Tensor:
    return keys.call(branch, is_unchanged, "to_k", projection, (text,), {})[0]


def test_unchanged_text_is_projected_once():
    keys, projection, text = TextKeys(), Projection(), noise(0, 1, 3, 4)
    first = projected(keys, projection, text, "cond", False)
    again = projected(keys, projection, text, "cond", True)
    assert torch.equal(first, again)
    assert projection.calls == 1


def test_text_not_known_unchanged_is_projected_again():
    keys, projection = TextKeys(), Projection()
    projected(keys, projection, noise(0, 1, 3, 4), "cond", False)
    other = noise(1, 1, 3, 4)
    assert torch.equal(projected(keys, projection, other, "cond", False), nn.Linear.forward(projection, other))
    assert projection.calls == 2


def test_branches_have_their_own_keys():
    keys, projection = TextKeys(), Projection()
    texts = {"cond": noise(0, 1, 3, 4), "uncond": noise(1, 1, 3, 4)}
    first = {branch: projected(keys, projection, text, branch, False) for branch, text in texts.items()}
    for branch, text in texts.items():
        assert torch.equal(projected(keys, projection, text, branch, True), first[branch])
    assert not torch.equal(first["cond"], first["uncond"])


def test_a_changed_shape_is_projected_again():
    keys, projection = TextKeys(), Projection()
    projected(keys, projection, noise(0, 1, 3, 4), "cond", False)
    assert projected(keys, projection, noise(0, 2, 3, 4), "cond", True).shape[0] == 2


@pytest.mark.parametrize("inference", [False, True])
def test_keys_that_somebody_wrote_into_are_projected_again(inference):
    with torch.inference_mode(inference), torch.no_grad():
        keys, projection, text = TextKeys(), Projection(), noise(0, 1, 3, 4)
        true = projected(keys, projection, text, "cond", False).clone()
        projected(keys, projection, text, "cond", True).mul_(3)
        assert torch.equal(projected(keys, projection, text, "cond", True), true)
        assert keys.bytes == 48


def test_the_projections_of_an_attention_are_found_and_missing_ones_passed_over():
    attention: Any = tiny_models.wan().blocks[0].attn2
    assert {"to_k", "to_v"} <= set(text_projections(attention))
    assert text_projections(nn.Identity()) == {}


@pytest.mark.parametrize("name", ["wan", "latte"])
def test_a_run_with_stored_text_keys_is_bit_equal_and_projects_once_per_branch(name):
    transformer = tiny_models.build(name)
    plain = tiny_models.denoise(transformer, name, steps=4)
    calls: Counter[str] = Counter()

    def counting(key: str, forward: Any) -> Any:
        def call(*args: Any) -> Any:
            calls[key] += 1
            return forward(*args)

        return call

    for unit in map_model(transformer).units:
        if unit.text_keys:
            for key, module in text_projections(unit.module).items():
                module.forward = counting(f"{unit.name}.{key}", module.forward)
    with enable(transformer, preset("balanced", tolerance=0.0, text_keys_values=True)):
        assert torch.equal(tiny_models.denoise(transformer, name, steps=4), plain)
    assert len(calls) == 4
    assert set(calls.values()) == {2}


@pytest.mark.parametrize("name", ["wan", "latte"])
def test_stored_text_keys_save_operations_and_a_run_without_them_does_not(name):
    transformer = tiny_models.build(name)
    saved = {}
    for kept in (False, True):
        with enable(transformer, preset("balanced", tolerance=0.0, text_keys_values=kept)) as session:
            tiny_models.denoise(transformer, name, steps=4)
        entries = session.trace.entries
        saved[kept] = sum(entry.full_operations - entry.operations for entry in entries)
    assert saved[False] == 0
    assert saved[True] > 0
