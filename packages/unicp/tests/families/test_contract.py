"""What every family must hold at every level. A new family is covered by being in `tiny_models.NAMES`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from tests import tiny_models
from unicp.context import Action
from unicp.models.finder import map_model
from unicp.models.noise import read_schedule
from unicp.records import Trace
from unicp.session import Session, enable
from unicp.settings import Settings, preset

STEPS = 7
# Random weights that answer to the step more than most, so that errors are larger.
WILD = ("z_image", "chroma", "ace_step")
# Room for every unit, so that no coarser level takes over.
KINDS: dict[str, Settings] = {
    "model": preset("balanced", store_factor=64.0),
    "stack": preset("balanced", level="stack", store_factor=64.0),
    "block": preset("balanced", level="block", store_factor=64.0),
    "unit": preset(
        "balanced",
        level="unit",
        roles=("self", "spatial", "temporal", "joint", "cross", "feed_forward"),
        store_factor=64.0,
    ),
    "paper": preset("paper"),
}


def _kinds_of(name: str) -> list[str]:
    """The levels that a model allows: no stack where its row refuses it, no slicing where no unit can be."""
    found = map_model(tiny_models.shared(name))
    sliceable = any(unit.sliceable and unit.role != "cross" for unit in found.units)
    refused = {kind: bool(found.level_refusal(kind)) for kind in ("stack", "block")} | {"paper": not sliceable}
    return [kind for kind in KINDS if not refused.get(kind)]


CASES = [(name, kind) for name in tiny_models.NAMES for kind in _kinds_of(name)]
every_case = pytest.mark.parametrize(("name", "kind"), CASES)
# Pipelines of models without cache_context have no branch names to give.
every_case_with_context = pytest.mark.parametrize(
    ("name", "kind"), [case for case in CASES if hasattr(tiny_models.shared(case[0]), "cache_context")]
)
every_name = pytest.mark.parametrize("name", tiny_models.NAMES)


# One transformer for all tests: what UniCP leaves behind on it would show.
model = tiny_models.shared


@functools.cache
def plain(name: str, **run: Any) -> Tensor:
    return tiny_models.denoise(tiny_models.build(name), name, **_run(run))


def _run(changes: dict[str, Any]) -> dict[str, Any]:
    return {"steps": STEPS} | changes


def settings(kind: str, **changes: Any) -> Settings:
    return Settings(**(KINDS[kind].__dict__ | changes))


def generous(name: str, kind: str, **changes: Any) -> Settings:
    tolerance = 2.0 if name in WILD else 0.5
    return settings(kind, **({"tolerance": tolerance, "weighting": "uniform"} | changes))


@functools.cache
def fresh(name: str, kind: str, **run: Any) -> Tensor:
    """The first run of a new session on a new model, with a generous tolerance."""
    transformer = tiny_models.build(name)
    with enable(transformer, generous(name, kind)):
        return tiny_models.denoise(transformer, name, **_run(run))


def denoise(name: str, **run: Any) -> Tensor:
    return tiny_models.denoise(model(name), name, **_run(run))


def served(trace: Trace) -> int:
    return sum(Action(entry.action).skipped for entry in trace.entries)


def tensors_held(session: Session) -> list[str]:
    """Paths of all tensors that the session holds, apart from the model's and the scheduler's own."""
    left_out = {"map", "schedule", "_scheduler", "_scheduler_of", "unit", "block", "_schedule"}
    seen: set[int] = set()

    def walk(value: Any, path: str) -> Iterator[str]:
        if id(value) in seen or isinstance(value, (nn.Module, str, type)):
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield path
        elif isinstance(value, dict):
            for key, one in value.items():
                yield from walk(one, f"{path}[{key!r}]")
        elif isinstance(value, (list, tuple, set)):
            for index, one in enumerate(value):
                yield from walk(one, f"{path}[{index}]")
        elif type(value).__module__.startswith("unicp"):
            for key, one in vars(value).items():
                if key not in left_out:
                    yield from walk(one, f"{path}.{key}")

    return list(walk(session._engines, "session"))


@pytest.mark.parametrize("name", tiny_models.ABSENT)
def test_families_that_this_diffusers_does_not_have(name):
    pytest.skip(f"diffusers {diffusers.__version__} has no {tiny_models.ABSENT[name]}")


@every_case
def test_tolerance_zero_is_bit_equal_and_so_is_the_model_afterwards(name, kind):
    with enable(model(name), settings(kind, tolerance=0.0)) as session:
        assert torch.equal(denoise(name), plain(name))
    assert served(session.trace) == 0
    assert torch.equal(denoise(name), plain(name))


@every_case
def test_a_generous_tolerance_serves_and_stays_finite_and_close(name, kind):
    with enable(model(name), generous(name, kind)) as session:
        output = denoise(name)
    assert served(session.trace) > 0
    assert torch.isfinite(output).all()
    assert float((output - plain(name)).norm() / plain(name).norm()) < 0.5
    assert not torch.equal(output, plain(name))
    assert torch.equal(denoise(name), plain(name)), "not as before after disabling"


@torch.no_grad()
def follow(name: str, seeds: tuple[int, ...], context: bool = False) -> dict[int, list[Tensor]]:
    """Branches that share nothing but the model: each one has a sample, a text and a path of its own."""
    outputs: dict[int, list[Tensor]] = {seed: [] for seed in seeds}
    for step in range(STEPS):
        for seed in seeds:
            arguments = tiny_models.inputs(name, seed=seed, timestep=1000.0 - 100 * step)
            arguments["hidden_states"] = arguments["hidden_states"] * (1 - 0.05 * step)
            if context:
                with model(name).cache_context(f"branch {seed}"):  # type: ignore[operator]
                    outputs[seed].append(tiny_models.first(tiny_models.call(model(name), name, arguments)))
            else:
                outputs[seed].append(tiny_models.first(tiny_models.call(model(name), name, arguments)))
    return outputs


@every_case
def test_no_branch_is_ever_served_from_another(name, kind):
    # Where a branch's name comes from is the same at all levels.
    context = kind in ("model", "unit") and hasattr(model(name), "cache_context")
    # Fixed windows, undamped: what is served does not depend on the other branch, so each must be as if alone.
    fixed = settings(kind, tolerance=1.0, full_every=2, damping=False)
    alone: dict[int, list[Tensor]] = {}
    for seed in (0, 1):
        with enable(model(name), fixed):
            alone |= follow(name, (seed,), context)
    with enable(model(name), fixed) as session:
        together = follow(name, (0, 1), context)
    assert served(session.trace) > 0
    for seed in (0, 1):
        for step, (one, other) in enumerate(zip(together[seed], alone[seed], strict=True)):
            assert torch.equal(one, other), f"branch {seed}, step {step}"
    assert not torch.equal(together[0][-1], together[1][-1])


@every_name
def test_exact_reuse_gives_each_branch_its_own_last_output(name):
    reuse = settings("model", tolerance=1.0, predictor="reuse", quantity="output", full_every=3, first=2)
    with enable(model(name), reuse) as session:
        outputs = follow(name, (0, 1))
    for seed in (0, 1):
        entries = [entry for entry in session.trace.entries if entry.branch == f"call{seed}"]
        actions = [entry.action for entry in entries]
        assert actions == ["full", "full", "reuse", "reuse", "full", "reuse", "reuse"]
        for step, action in enumerate(actions):
            if action == "reuse":
                assert torch.equal(outputs[seed][step], outputs[seed][step - 1])


@every_case_with_context
def test_with_and_without_cache_context_the_result_is_the_same(name, kind):
    with enable(model(name), generous(name, kind)):
        output = denoise(name, use_cache_context=True)
    assert torch.equal(output, fresh(name, kind))


@every_case
def test_nothing_is_held_after_a_reset_and_after_leaving(name, kind):
    session = enable(model(name), generous(name, kind))
    try:
        denoise(name)
        assert not session.is_empty and tensors_held(session)
        session.reset()
        assert session.is_empty and tensors_held(session) == []
        assert torch.equal(denoise(name), fresh(name, kind))
    finally:
        session.disable()
    assert session.is_empty and tensors_held(session) == []


@every_case
def test_after_an_error_inside_the_model_nothing_is_held_and_the_next_run_is_a_first_one(name, kind):
    error = KeyboardInterrupt if kind in ("model", "block") else RuntimeError
    calls = iter(range(10**6))

    def fail(*_: Any) -> None:
        if next(calls) == 5:
            raise error("in mid-run")

    with enable(model(name), generous(name, kind)) as session:
        handle = map_model(model(name)).blocks[-1].module.register_forward_pre_hook(fail)
        try:
            with pytest.raises(error):
                denoise(name)
        finally:
            handle.remove()
        assert session.is_empty and tensors_held(session) == []
        assert torch.equal(denoise(name), fresh(name, kind))
    assert torch.equal(denoise(name), plain(name))


@every_case
def test_a_run_leaves_nothing_to_the_next_one_with_another_prompt_batch_or_length(name, kind):
    runs: list[dict[str, Any]] = [{}, {"seed": 7}, {"batch": 2}, {"steps": 9}, {"branches": 1}, {}]
    with enable(model(name), generous(name, kind)) as session:
        for run in runs:
            assert torch.equal(denoise(name, **run), fresh(name, kind, **run)), run
    assert {entry.run for entry in session.trace.entries} == set(range(len(runs)))


@every_case
def test_errors_are_given_per_sample_of_a_batch(name, kind):
    with enable(model(name), generous(name, kind)) as session:
        denoise(name, batch=2)
    measured = [entry.measured for entry in session.trace.entries if entry.measured is not None]
    predicted = [entry.predicted for entry in session.trace.entries if entry.predicted is not None]
    assert measured and predicted
    assert {len(errors) for errors in measured} == {2}
    assert {len(errors) for errors in predicted} == {2}
    assert any(first != second for first, second in measured)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("name", ["wan", "hunyuan_video"])
def test_a_changed_resolution_opens_a_new_run(name, kind):
    def first_outputs(width: int, steps: int = 4) -> list[Tensor]:
        arguments = tiny_models.inputs(name)
        arguments["hidden_states"] = arguments["hidden_states"][..., :width]
        return [model(name)(**arguments | {"timestep": torch.tensor([900.0 - step])})[0] for step in range(steps)]

    with enable(model(name), generous(name, kind)):
        alone = first_outputs(4)
    with enable(model(name), generous(name, kind)):
        first_outputs(8)
        for one, other in zip(first_outputs(4), alone, strict=True):
            assert torch.equal(one, other)


class Pipe:
    """The least of a pipeline: a transformer and a scheduler."""

    def __init__(self, transformer: nn.Module, name: str):
        self.transformer = transformer
        self.scheduler = tiny_models.flow_scheduler(name)


@every_case
def test_a_pipeline_object_tells_its_scheduler(name, kind):
    pipe = Pipe(model(name), name)
    expected = plain(name, scheduler=tiny_models.flow_scheduler(name))
    tells = read_schedule(pipe.scheduler) is not None and not map_model(model(name)).family.noise_refusal
    with enable(pipe, settings(kind, tolerance=0.0)):
        assert torch.equal(denoise(name, scheduler=pipe.scheduler), expected)
    with enable(pipe, generous(name, kind, last=1)) as session:
        output = denoise(name, scheduler=pipe.scheduler)
    assert served(session.trace) > 0
    assert all((entry.sigma is not None) is tells for entry in session.trace.entries)
    if not tells:
        assert all(entry.predictor is None or "output" in entry.predictor for entry in session.trace.entries)
    assert float((output - expected).norm() / expected.norm()) < 0.5
    last = [entry for entry in session.trace.entries if entry.step == STEPS - 1 and entry.point != "model"]
    assert all(entry.reason == "last" for entry in last if kind != "model" and tells)


@every_case
def test_outputs_have_the_kind_that_was_asked_for_also_when_served(name, kind):
    outputs: dict[bool, list[Tensor]] = {}
    for as_dict in (False, True):
        outputs[as_dict] = []
        with torch.no_grad():
            expected = type(tiny_models.call(model(name), name, tiny_models.inputs(name) | {"return_dict": as_dict}))
        assert (expected is tuple) is not as_dict or expected is Tensor
        with enable(model(name), generous(name, kind, full_every=2)) as session, torch.no_grad():
            for step in range(STEPS):
                arguments = tiny_models.inputs(name, timestep=900.0 - 10 * step) | {"return_dict": as_dict}
                output = tiny_models.call(model(name), name, arguments)
                assert type(output) is expected
                outputs[as_dict].append(tiny_models.first(output))
        assert served(session.trace) > 0
    for one, other in zip(outputs[False], outputs[True], strict=True):
        assert torch.equal(one, other)


@every_case
def test_operations_in_the_trace_are_within_those_of_the_plain_model(name, kind):
    with enable(model(name), generous(name, kind)) as session:
        denoise(name)
    entries = session.trace.entries
    assert all(0 <= entry.operations <= entry.full_operations for entry in entries)
    calls = [(entry.step, entry.branch) for entry in entries if entry.point == "model"]
    totals = {
        call: sum(entry.full_operations for entry in entries if (entry.step, entry.branch) == call) for call in calls
    }
    assert len(set(totals.values())) == 1 and min(totals.values()) > 0
