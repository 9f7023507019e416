"""Models that two processes share: every rank must take the same decision, or they would wait for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests import tiny_models
from tests.families.helpers import Note
from unicp.errors import UnsupportedModelError
from unicp.session import enable
from unicp.settings import preset

PACKAGE = Path(__file__).resolve().parents[2]


KINDS = {
    "context": "context parallelism, two processes",
    "tensor": "tensor parallelism (`TensorParallelConfig`), two processes",
    "linears": "tensor parallelism (`parallelize_module`), two processes",
}


@pytest.mark.slow
def test_two_processes_take_the_same_decisions(note: Note, tmp_path: Path):
    kinds = [how for how in KINDS if how != "tensor" or hasattr(diffusers, "TensorParallelConfig")]
    command = [sys.executable, "-W", "ignore", "-m", "tests.parallel_worker"]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store"), *kinds],
            cwd=PACKAGE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(PACKAGE / "src"), os.environ.get("PYTHONPATH", "")])},
        )
        for rank in range(2)
    ]
    found = []
    for worker in workers:
        try:
            out, err = worker.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            for one in workers:
                one.kill()
            raise
        assert worker.returncode == 0, err[-2000:]
        found.append(json.loads(out.splitlines()[-1]))
    assert found[0] == found[1] and list(found[0]) == kinds
    for how, result in found[0].items():
        assert result["parallel_is_right"] and result["exact"] and result["close"] < 0.5, how
        assert "forecast" in result["actions"] and len(result["actions"]) == 18, how
        assert set(result["refused"]) == {"block", "unit", "sliced"}, how
        name = "wan" if how == "context" else "flux"
        note(KINDS[how], name, "works with level model; other levels and slicing are refused")


@pytest.mark.parametrize("level", ["stack", "block", "unit"])
def test_levels_inside_a_parallel_model_are_refused_and_one_made_parallel_later_is_computed(level):
    model = tiny_models.build("wan")
    with enable(model, preset("balanced", level=level, tolerance=0.5)) as session, torch.no_grad():
        model._parallel_config = SimpleNamespace()  # as `enable_parallelism` leaves it
        for step in range(6):
            model(**tiny_models.inputs("wan", timestep=900.0 - step))
    assert not session.trace.entries and "made parallel after UniCP was enabled" in session.trace.warnings[0]
    with pytest.raises(UnsupportedModelError, match="parallel over processes"):
        enable(model, preset("balanced", level=level))
    with pytest.raises(UnsupportedModelError, match="asked: sliced attention"):
        enable(model, preset("balanced", slicing=preset("paper").slicing))


@pytest.mark.parametrize("part", ["transformer", "block"])
def test_a_model_whose_parameters_are_gathered_at_every_call_is_refused(part, note: Note, tmp_path: Path):
    model = tiny_models.build("wan")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        fully_shard(model if part == "transformer" else model.blocks[0], mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(UnsupportedModelError, match="under FSDP"):
            enable(model)
    finally:
        dist.destroy_process_group()
    note("FSDP", "wan", "refused: processes gather parameters at every call but may decide differently")
