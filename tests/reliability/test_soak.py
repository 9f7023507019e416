"""Two hundred runs with everything changing between them and now and then a failure: memory flat, outputs right."""

from __future__ import annotations

import gc
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny_models
from unicp.session import Session, enable
from unicp.settings import Settings, preset

RUNS = 200
KINDS: dict[str, Settings] = {
    "model": preset("fast"),
    "block": preset("balanced", span="block", tolerance=0.5, weighting="uniform"),
    "unit": preset("paper"),
    "exact": preset("balanced", tolerance=0.0),
}


class Failure(Exception):
    pass


def held_bytes() -> int:
    """Bytes of all tensors that are alive."""
    gc.collect()
    # Plain tensors and parameters only: what a compiler leaves behind has no storage.
    tensors = [one for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter)]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


@torch.no_grad()
def denoise(model: nn.Module, name: str, dice: dict[str, Any], fail_at: int | None = None) -> Tensor:
    """A run of `dice`: seed, steps, batch, width and branches; raises Failure at a step if asked to."""
    branches = [tiny_models.inputs(name, dice["batch"], dice["seed"] + place) for place in range(dice["branches"])]
    sample = branches[0]["hidden_states"][..., : dice["width"]]
    for step in range(dice["steps"]):
        if step == fail_at:
            raise Failure
        moved = {"hidden_states": sample, "timestep": torch.full((dice["batch"],), 1000.0 * (1 - step / dice["steps"]))}
        outputs = [tiny_models.call(model, name, one | moved)[0] for one in branches]
        sample = sample - (2 * outputs[0] - outputs[-1]) / dice["steps"]
    return sample


@pytest.mark.slow
def test_two_hundred_runs():
    chance = random.Random(6)
    plain = {name: tiny_models.build(name) for name in ("wan", "hunyuan_video")}
    models = {name: tiny_models.build(name) for name in plain}
    session: Session | None = None
    name, kind = "wan", "model"
    served, memory = 0, []
    for run in range(RUNS):
        if session is None or chance.random() < 0.15:
            if session is not None:
                session.disable()
                assert session.is_empty
            name, kind = chance.choice(list(models)), chance.choice(list(KINDS))
            session = enable(models[name], KINDS[kind])
        dice = {
            "seed": chance.randrange(5),
            "steps": chance.choice([1, 2, 4, 7, 9]),
            "batch": chance.choice([1, 1, 2]),
            "width": chance.choice([4, 8]),
            "branches": chance.choice([1, 2]),
        }
        fail_at = chance.randrange(dice["steps"]) if chance.random() < 0.15 else None
        try:
            output = denoise(models[name], name, dice, fail_at)
        except Failure:
            session.reset() if chance.random() < 0.5 else None
            continue
        true = denoise(plain[name], name, dice)
        if kind == "exact" or dice["steps"] == 1:
            assert torch.equal(output, true), (run, name, kind, dice)
        assert float((output - true).norm() / true.norm()) < 0.5, (run, name, kind, dice)
        served += sum(entry.action != "compute" for entry in session.trace.entries)
        session.trace.clear()
        if run % 50 == 49:
            session.reset()
            memory.append(held_bytes())
    assert session is not None
    session.disable()
    assert served > 100
    assert max(memory[1:]) <= memory[0] + 20_000, memory
    dice = {"seed": 9, "steps": 4, "batch": 1, "width": 8, "branches": 2}
    for name, model in models.items():
        assert torch.equal(denoise(model, name, dice), denoise(plain[name], name, dice))
