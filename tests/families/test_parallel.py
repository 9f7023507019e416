"""Context parallelism over two processes: every rank must take the same decision, or they would wait for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests import tiny_models
from tests.families.helpers import Note
from unicp.errors import UnsupportedModelError
from unicp.session import enable
from unicp.settings import preset

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_two_processes_take_the_same_decisions(note: Note, tmp_path: Path):
    command = [sys.executable, "-W", "ignore", "-m", "tests.parallel_worker"]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
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
    first, second = found
    assert first == second
    assert first["parallel_is_right"] and first["exact"] and first["close"] < 0.5
    assert "forecast" in first["actions"] and len(first["actions"]) == 18
    assert set(first["refused"]) == {"stack", "block", "unit"}
    note("context parallelism, two processes", "wan", "works with span model; other spans and slicing are refused")


@pytest.mark.parametrize("span", ["stack", "block", "unit"])
def test_spans_inside_a_parallel_model_are_refused_and_one_made_parallel_later_is_computed(span):
    model = tiny_models.build("wan")
    with enable(model, preset("balanced", span=span, tolerance=0.5)) as session, torch.no_grad():
        model._parallel_config = SimpleNamespace()  # as `enable_parallelism` leaves it
        for step in range(6):
            model(**tiny_models.inputs("wan", timestep=900.0 - step))
    assert not session.trace.entries and "made parallel after UniCP was enabled" in session.trace.warnings[0]
    with pytest.raises(UnsupportedModelError, match="parallel over processes, each of which would decide by its own"):
        enable(model, preset("balanced", span=span))
    with pytest.raises(UnsupportedModelError, match="asked: sliced attention"):
        enable(model, preset("balanced", slicing=preset("paper").slicing))
