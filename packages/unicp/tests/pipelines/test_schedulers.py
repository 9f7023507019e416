"""Every scheduler that people give a pipeline: exact at tolerance 0, really served, noise levels as it has them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from tests.pipelines.rows import LATENT, Row
from tests.pipelines.samplers import DIFFUSION, FLOW
from tests.pipelines.table import BY_NAME
from tests.pipelines.test_pipelines import EXACT, GENEROUS, same, watched
from unicp.context import Action
from unicp.models.noise import read_schedule
from unicp.numerics.forecasting import to_quantity
from unicp.numerics.noise_levels import is_invertible
from unicp.session import enable

# They scale the model's input in ways of their own, so that only the output is forecast.
UNKNOWN = ("LMSDiscrete", "HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete")
# They show no clean estimate of their own.
SILENT = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMatchLCM", "DEISMultistep", "PNDM", "LCM", "TCD")
CASES = [
    *(pytest.param("wan_unguided", kind, config, id=f"flow-{kind}") for kind, config in FLOW.items()),
    *(
        pytest.param(row, kind, {"prediction_type": prediction}, id=f"{prediction}-{kind}")
        for row, prediction in (("allegro", "epsilon"), ("cogvideox", "v_prediction"))
        for kind in DIFFUSION
        # Its step takes more, which CogVideoX's pipelines alone give.
        if (row, kind) != ("allegro", "CogVideoXDPM")
    ),
]


@dataclass
class Seen:
    """What passed between a transformer and a scheduler: each call, and each clean estimate that the latter made."""

    calls: list[tuple[Tensor, Tensor, float]] = field(default_factory=list)
    clean: list[Tensor | None] = field(default_factory=list)


@functools.cache
def unguided(name: str) -> Row:
    row = BY_NAME[name]
    return Row(name, row.pipeline, row.parts, row.given | {"guidance_scale": 1.0} | LATENT, steps=8, calls=(1,))


@functools.cache
def built(name: str) -> Any:
    return unguided(name).build()


def set_scheduler(pipe: Any, kind: str, config: dict[str, Any]) -> Any:
    known = {key: value for key, value in dict(pipe.scheduler.config).items() if key.startswith("beta")}
    kind = getattr(diffusers, f"{kind.partition(',')[0]}Scheduler")
    pipe.scheduler = kind.from_config(known | {"clip_sample": False, "skip_prk_steps": True} | config)
    return pipe.scheduler


@contextmanager
def overheard(pipe: Any) -> Iterator[Seen]:
    seen, scheduler = Seen(), pipe.scheduler
    step: Callable[..., Any] = scheduler.step

    def hear(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        timestep = kwargs["timestep"]
        seen.calls.append((kwargs["hidden_states"], output[0], float(torch.as_tensor(timestep).flatten()[0])))

    # Pipelines ask for its signature before they give it a generator.
    @functools.wraps(step)
    def stepped(*args: Any, **kwargs: Any) -> Any:
        output = step(*args, **kwargs | {"return_dict": True})
        if isinstance(output, tuple):
            seen.clean.append(output[1])
            return output
        clean = getattr(output, "pred_original_sample", None)
        seen.clean.append(_of_solver(scheduler) if clean is None else clean)
        return tuple(output.values()) if kwargs.get("return_dict") is False else output

    handle = pipe.transformer.register_forward_hook(hear, with_kwargs=True)
    scheduler.step = stepped
    try:
        yield seen
    finally:
        handle.remove()
        del scheduler.step


def _of_solver(scheduler: Any) -> Tensor | None:
    """What a multistep solver keeps of the newest output, where that is the clean estimate."""
    history = getattr(scheduler, "model_outputs", None)
    algorithm = str(scheduler.config.get("algorithm_type"))
    keeps = scheduler.config.get("predict_x0") or "++" in algorithm or algorithm == "data_prediction"
    return history[-1] if history and keeps else None


@pytest.mark.parametrize("name, kind, config", CASES)
def test_every_scheduler(name: str, kind: str, config: dict[str, Any]):
    row, pipe = unguided(name), built(name)
    scheduler = set_scheduler(pipe, kind, config)
    with overheard(pipe) as seen:
        plain = seeded_call(row, pipe)
    assert bool(torch.isfinite(plain[0]).all())
    is_known = check_levels(scheduler, seen, kind)
    with enable(pipe, EXACT):
        assert same(seeded_call(row, pipe), plain)
    with watched(pipe) as calls, enable(pipe, GENEROUS) as session:
        output = seeded_call(row, pipe)
    entries = session.trace.entries
    served = [entry for entry in entries if Action(entry.action).skipped]
    assert served and bool(torch.isfinite(output[0]).all()), [entry.reason for entry in entries]
    # Every call is a step, also of samplers that call the model twice at one timestep.
    assert [entry.step for entry in entries] == list(range(len(calls))) and len(calls) == len(seen.calls)
    assert {entry.branch for entry in entries} == {entries[0].branch}
    runs = {entry.run for entry in entries}
    assert len(runs) == (2 if kind == "PNDM" else 1)
    assert {str(entry.predictor) for entry in served} == {"output over log_snr" if is_known else "output over step"}


def seeded_call(row: Row, pipe: Any) -> list[Tensor]:
    # Not every pipeline gives its generator to a sampler that adds noise.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return row.call(pipe)


def check_levels(scheduler: Any, seen: Seen, kind: str) -> bool:
    """Whether noise levels are known; where they are, the clean estimate made of them is the scheduler's own."""
    schedule = read_schedule(scheduler)
    assert (schedule is None) == (kind in UNKNOWN)
    if schedule is None:
        return False
    assert len(seen.calls) == len(seen.clean)
    compared = 0
    for (sample, output, timestep), clean in zip(seen.calls, seen.clean):
        level = schedule.level(timestep)
        assert level is not None
        if clean is None or not is_invertible("clean", schedule.prediction, level, 0.0):
            continue
        ours = to_quantity("clean", schedule.prediction, sample, output, level)
        torch.testing.assert_close(ours, clean.to(ours.dtype), rtol=1e-3, atol=1e-3)
        compared += 1
    assert compared or kind.partition(",")[0] in SILENT
    return True
