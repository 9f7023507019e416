"""Golden cases of what is seldom: every setting away from its default, and runs that are changed, cut or guarded.

All are of a tiny Wan under UniPC with two branches, so that everything can happen: mending, correctors, guidance.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

import unicp
from tests import tiny_models
from tests.golden.case import Call, Case, context, joined
from tests.pipelines.table import BY_NAME

STEPS = 12
DATA = Path(__file__).parent / "data"
PROFILE, PLAN, TRACE = DATA / "profile.json", DATA / "plan.json", DATA / "trace.json"
Edit = Callable[[int, Tensor, dict[str, dict[str, Any]]], Tensor]


def scheduler() -> Any:
    """Of flow matching, with a corrector and a memory."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


@torch.no_grad()
def loop(
    model: Any,
    steps: int = STEPS,
    begin: int = 0,
    stop: int | None = None,
    branches: tuple[str | None, ...] = (None, None),
    batch: int = 1,
    seed: int = 0,
    edit: Edit | None = None,
    guided: Callable[[int], bool] = lambda step: True,
) -> Tensor:
    """A guided run, or a part of one.

    begin, stop: the steps that are taken of it. branches: contexts of the model. edit: gives another sample at a step,
    or changes what the branches are given. guided: whether the second branch is asked at a step.
    """
    given = {str(at): tiny_models.inputs("wan", batch, seed + at) for at in range(len(branches))}
    solver, sample = scheduler(), given["0"]["hidden_states"]
    solver.set_timesteps(steps)
    solver.set_begin_index(begin)
    for step, timestep in list(enumerate(solver.timesteps))[begin:stop]:
        sample = sample if edit is None else edit(step, sample, given)
        outputs = []
        for at, name in list(enumerate(branches))[: None if guided(step) else 1]:
            moved = {"hidden_states": sample, "timestep": timestep.expand(batch)}
            with context(model, name):
                outputs.append(model(**given[str(at)] | moved)[0])
        velocity = outputs[0] if len(outputs) == 1 else outputs[1] + 3.0 * (outputs[0] - outputs[1])
        sample = solver.step(velocity, timestep, sample, return_dict=False)[0]
    return sample


def _other_prompt(step: int, sample: Tensor, given: dict[str, dict[str, Any]]) -> Tensor:
    if step == 7:
        given["0"]["encoder_hidden_states"] = tiny_models.inputs("wan", seed=9)["encoder_hidden_states"]
    return sample


def _other_sample(step: int, sample: Tensor, given: dict[str, dict[str, Any]]) -> Tensor:
    return sample.flip(-1) if step == 7 else sample


def _loose(**changes: Any) -> unicp.Settings:
    return unicp.Settings(**{"tolerance": 0.5, "weighting": "uniform", "store_factor": 64.0} | changes)


def _unit(**changes: Any) -> unicp.Settings:
    return _loose(**{"level": "unit", "predictor": "reuse"} | changes)


def _sliced(**changes: Any) -> unicp.Settings:
    slicing = unicp.Slicing(**{"widths": (8,), "tolerance": 1.0, "min_saving": -1e6} | changes)
    return _unit(tolerance=0.02, slicing=slicing)


_ONE_WAY: dict[str, Any] = {"quantity": "noise", "axis": "log_snr"}
SETTINGS: dict[str, unicp.Settings] = {
    "loose": _loose(),
    "strict": unicp.Settings(tolerance=0.02),
    "tolerance 0": unicp.Settings(tolerance=0.0),
    "stack": _loose(level="stack"),
    "block": _loose(level="block"),
    "unit": _unit(),
    "cross-attention only": _unit(roles=("cross",)),
    "feed-forward only": _unit(roles=("feed_forward",)),
    "order 0": _loose(predictor="reuse"),
    "undamped": _loose(damping=False),
    "undamped, far": _loose(damping=False, max_reach=3.0, max_window=8, tolerance=5.0, **_ONE_WAY),
    "clean over sigma": _loose(quantity="clean", axis="sigma"),
    "output over steps": _loose(quantity="output", axis="step"),
    "noise over log_snr": _loose(**_ONE_WAY),
    "impact": _loose(weighting="impact"),
    "impact, order 0": _loose(weighting="impact", predictor="reuse"),
    "own scale": _unit(error_scale="own"),
    "own scale, blocks": _loose(level="block", error_scale="own"),
    "short windows": _loose(max_window=1),
    "long windows": _loose(max_window=8, tolerance=5.0),
    "far reach": _loose(max_reach=3.0, tolerance=5.0),
    "every second": _loose(full_every=2),
    "every fourth, unit": _unit(full_every=4),
    "computed steps": _loose(full_steps=(0, 1, 4, 8)),
    "late first, early last": _loose(first=5, last=3),
    "sampler not mended": _loose(replay=False),
    "sampler not mended, one way": _loose(replay=False, **_ONE_WAY),
    "text computed anew": _unit(text_keys_values=False),
    "slices": _sliced(),
    "slices of a share": _sliced(widths=(0.5,), basis="pca"),
    "slices, centred": _sliced(basis="centred_pca"),
    "slices, scores": _sliced(basis="kq_svd"),
    "slices, kept bases": _sliced(refresh=4),
    "slices, strict": _sliced(tolerance=0.01),
    "few bytes": _unit(store_bytes=20_000),
    "few bytes, blocks": _loose(level="block", store_bytes=30_000),
    "no bytes": _loose(store_bytes=0),
    "small store": _unit(store_factor=1.0),
    "kept as bfloat16": _loose(store_dtype="bfloat16"),
    "kept as float16, unit": _unit(store_dtype="float16"),
    "kept on the CPU": _loose(store_device="cpu"),
    "short trace": _unit(trace_entries=150),
}
PRESETS = {name: unicp.preset(name) for name in ("paper", "quality", "balanced", "fast")}
# Each with the settings that make it tell most.
RUNS: dict[str, tuple[Call, dict[str, unicp.Settings]]] = {
    "from a middle step": (functools.partial(loop, begin=4), PRESETS | {"loose": _loose(), "unit": _unit()}),
    "given up, then a whole one": (
        lambda model: joined([loop(model, stop=7), loop(model)]),
        PRESETS | {"loose": _loose(), "unit": _unit(), "short trace": _unit(trace_entries=150)},
    ),
    "several lengths": (
        lambda model: joined([loop(model, steps) for steps in (12, 3, 1, 20)]),
        {"loose": _loose(), "balanced": unicp.preset("balanced"), "block": _loose(level="block")},
    ),
    "another prompt in mid-run": (
        functools.partial(loop, edit=_other_prompt),
        {"loose": _loose(), "fast": unicp.preset("fast"), "unit": _unit()},
    ),
    "another sample in mid-run": (
        functools.partial(loop, edit=_other_sample),
        {"loose": _loose(), "fast": unicp.preset("fast"), "unit": _unit()},
    ),
    "branches in contexts": (
        functools.partial(loop, branches=("cond", "uncond")),
        PRESETS | {"loose": _loose(), "block": _loose(level="block")},
    ),
    "three branches": (
        functools.partial(loop, branches=(None, None, None)),
        {"loose": _loose()},
    ),
    "one branch": (functools.partial(loop, branches=(None,)), PRESETS | {"loose": _loose(), "unit": _unit()}),
    "guidance pauses": (
        functools.partial(loop, guided=lambda step: not 4 <= step < 9),
        {"loose": _loose(), "fast": unicp.preset("fast")},
    ),
    "two prompts in a batch": (
        functools.partial(loop, batch=2, seed=3),
        PRESETS | {"loose": _loose(), "block": _loose(level="block"), "slices": _sliced()},
    ),
}
_wan = functools.partial(tiny_models.shared, "wan")


@functools.cache
def pipeline() -> Any:
    """The one that the recorded profile and plan are of."""
    return BY_NAME["wan"].build()


def called(pipe: Any, prompt: int = 0, steps: int = STEPS) -> Tensor:
    """What it makes of a prompt."""
    return joined(BY_NAME["wan"].call(pipe, prompt, steps))


def _promised(name: str, call: Call = called, **options: Any) -> Case:
    return Case("paths", "promises", name, f"pipeline, {name}", pipeline, call, options)


_OWN = ("psnr>=15", "psnr>=18", "psnr>=20", "psnr>=22", "psnr>=30", "speedup>=1.5", "speedup>=2", "speedup>=4")
_BUILT_IN = ("psnr>=25", "psnr>=30", "psnr>=35", "speedup>=1.3", "speedup>=1.5", "speedup>=1.7")
CASES = [
    *(Case("paths", "settings", name, "", _wan, loop, {"settings": one}) for name, one in SETTINGS.items()),
    *(
        Case("paths", kind, name, kind, _wan, call, {"settings": one})
        for kind, (call, settings) in RUNS.items()
        for name, one in settings.items()
    ),
    *(_promised(target, target=target, profile=PROFILE) for target in _OWN),
    *(_promised(f"{target}, no profile", target=target) for target in _BUILT_IN),
    _promised("guarded plan", plan=PLAN),
    _promised("guarded plan, another prompt", functools.partial(called, prompt=1), plan=PLAN),
    _promised("guarded plan, not mended", settings=unicp.preset("balanced", replay=False), plan=PLAN),
    _promised("plan of another length", functools.partial(called, steps=9), plan=PLAN),
    _promised("plan and slices", settings=_sliced(), plan=PLAN),
    _promised("target at another length", functools.partial(called, steps=20), target="psnr>=20", profile=PROFILE),
    _promised("longer, no profile", functools.partial(called, steps=20), target="psnr>=30"),
    Case("paths", "promises", "replayed", "pipeline", pipeline, called, {"settings": "fast"}, replay=True),
]
