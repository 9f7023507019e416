"""Runs of every shape: guidance that comes and goes, any number of steps, two experts, interrupts, other sizes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from torch import Tensor, nn

from tests import tiny_models, tiny_pipeline
from tests.families.helpers import EXACT, GENEROUS, NAMES, Note, denoise, served
from unicp.context import Action
from unicp.hooks.diffusers import attached_engine
from unicp.models.finder import transformers_of
from unicp.session import Session, enable
from unicp.settings import preset

every_name = pytest.mark.parametrize("name", NAMES)


@torch.no_grad()
def guided(model: Any, name: str, when: range, context: bool, steps: int = 12) -> Tensor:
    """A run whose second branch is called at the steps `when` only."""
    branches = {"cond": tiny_models.inputs(name), "uncond": tiny_models.inputs(name, seed=1)}
    sample = branches["cond"]["hidden_states"]
    for step in range(steps):
        moved = tiny_models.inputs(name, timestep=1000.0 * (1 - step / steps))["timestep"]
        outputs = []
        for branch in ("cond", "uncond") if step in when else ("cond",):
            arguments = branches[branch] | {"hidden_states": sample, "timestep": moved}
            if context and hasattr(model, "cache_context"):
                with model.cache_context(branch):
                    outputs.append(tiny_models.first(tiny_models.call(model, name, arguments)))
            else:
                outputs.append(tiny_models.first(tiny_models.call(model, name, arguments)))
        sample = sample - (2 * outputs[0] - outputs[-1]) / steps
    return sample


@pytest.mark.parametrize("when", [range(4, 9), range(0, 5), range(6, 12)], ids=["within", "stops", "starts"])
@every_name
def test_guidance_that_starts_or_stops_in_mid_run(name, when, note: Note):
    note("guidance that starts or stops in mid-run", name)
    model = tiny_models.shared(name)
    plain = guided(model, name, when, False)
    for context in (False, True):
        with enable(model, EXACT):
            assert torch.equal(guided(model, name, when, context), plain)
        with enable(model, GENEROUS) as session:
            output = guided(model, name, when, context)
        assert served(session) and {entry.run for entry in session.trace.entries} == {0}
        assert float((output - plain).norm() / plain.norm()) < 0.5
        calls = [(entry.step, entry.branch) for entry in session.trace.entries]
        assert len(calls) == len(set(calls)) == 12 + len(when)


@every_name
def test_after_guidance_has_stopped_its_branch_holds_nothing_up(name):
    model = tiny_models.shared(name)
    for context in (False, True):
        with enable(model, GENEROUS) as session:
            guided(model, name, range(0, 5), context)
        later = [entry for entry in session.trace.entries if entry.step > 6]
        # At the first step without it, it may be asked once more.
        assert later and not any(entry.reason == "other branch" for entry in later)
        assert any(Action(entry.action).skipped for entry in later)


def _sample(value: Any, place: int) -> Any:
    is_batched = isinstance(value, Tensor) and len(value) == 2
    return value[place : place + 1] if is_batched else value


@every_name
def test_several_prompts_at_once_are_each_as_alone(name, note: Note):
    note("several prompts, several videos per prompt", name)
    # Fixed windows: what is served does not depend on what the other sample does.
    fixed = preset("balanced", tolerance=1.0, full_every=2)
    model = tiny_models.shared(name)
    both = tiny_models.inputs(name, batch=2)
    alone = [{key: _sample(value, place) for key, value in both.items()} for place in range(2)]
    outputs = []
    for arguments in (both, *alone):
        batch = arguments["hidden_states"].shape[0]
        with enable(model, fixed) as session, torch.no_grad():
            for step in range(7):
                moved = tiny_models.inputs(name, batch, timestep=900.0 - 50 * step)["timestep"]
                given = arguments | {"hidden_states": arguments["hidden_states"] * (1 - 0.05 * step), "timestep": moved}
                output = tiny_models.first(tiny_models.call(model, name, given))
            assert served(session)
        outputs.append(output)
    torch.testing.assert_close(outputs[0], torch.cat(outputs[1:]), rtol=1e-3, atol=1e-4)


@every_name
def test_any_number_of_steps_one_after_the_other_in_one_session(name, note: Note):
    note("1 to 100 steps, another number at each call", name)
    model = tiny_models.shared(name)
    numbers = (3, 1, 30, 2, 5, 100, 4) if name == "wan" else (3, 1, 12, 2)
    # The same prompt with another seed each time: after one step a run is left at the timestep where the next begins.
    text = tiny_models.inputs(name)["encoder_hidden_states"]

    def run(steps: int) -> Tensor:
        return denoise(model, name, steps=steps, branches=1, seed=steps, text=text)

    plain = {steps: run(steps) for steps in numbers}
    with enable(model, EXACT):
        for steps in numbers:
            assert torch.equal(run(steps), plain[steps])
    with enable(model, GENEROUS) as session:
        for steps in numbers:
            output = run(steps)
            assert float((output - plain[steps]).norm() / plain[steps].norm()) < 0.5
    by_run = {run: [e for e in session.trace.entries if e.run == run] for run in range(len(numbers))}
    assert [len(entries) for entries in by_run.values()] == list(numbers)
    saved = {steps: sum(e.action == "forecast" for e in entries) for steps, entries in zip(numbers, by_run.values())}
    assert saved[1] == saved[2] == saved[3] == 0 < saved[max(numbers)]


class Pipe:
    """The least of a pipeline with two experts."""

    def __init__(self) -> None:
        self.transformer, self.transformer_2 = tiny_models.wan(), tiny_models.wan(ffn_dim=64)
        self.scheduler = tiny_models.flow_scheduler("wan")


@torch.no_grad()
def denoise_with_experts(high: nn.Module, low: nn.Module, scheduler: Any, boundary: float = 500.0) -> Tensor:
    """As Wan 2.2: one transformer above a noise level, the other below."""
    branches = [tiny_models.inputs("wan"), tiny_models.inputs("wan", seed=1)]
    sample = branches[0]["hidden_states"]
    scheduler.set_timesteps(16)
    for timestep in scheduler.timesteps:
        expert: Any = high if timestep >= boundary else low
        moved = {"hidden_states": sample, "timestep": timestep.expand(1)}
        with_prompt, without = (expert(**(given | moved))[0] for given in branches)
        sample = scheduler.step(without + 3 * (with_prompt - without), timestep, sample, return_dict=False)[0]
    return sample


def test_two_experts_in_one_pipeline(note: Note):
    note("two experts in one pipeline (Wan 2.2)", "wan")
    pipe = Pipe()
    parts = (*transformers_of(pipe).values(), pipe.scheduler)
    plain = denoise_with_experts(*parts)
    with enable(pipe, EXACT):
        assert torch.equal(denoise_with_experts(*parts), plain)
    with enable(pipe, GENEROUS) as session:
        for _ in range(2):
            output = denoise_with_experts(*parts)
    assert float((output - plain).norm() / plain.norm()) < 0.5
    # Each step is in the trace once a branch and run, whichever expert did it, and both served.
    calls = [(entry.run, entry.step, entry.branch) for entry in session.trace.entries]
    assert sorted(calls) == sorted((run, step, f"call{b}") for run in (0, 1) for step in range(16) for b in (0, 1))
    switch = sum(bool(timestep >= 500) for timestep in pipe.scheduler.timesteps)
    for own in (range(switch), range(switch, 16)):
        assert any(entry.action == "forecast" for entry in session.trace.entries if entry.step in own)
    assert all(attached_engine(expert) is None for expert in parts[:2])
    assert torch.equal(denoise_with_experts(*parts), plain)


def test_a_timestep_per_token_with_given_ones_at_zero(note: Note):
    note("a timestep per token (Wan 2.2 5B)", "wan")
    model: Any = tiny_models.shared("wan")

    def run() -> list[Tensor]:
        outputs = []
        with torch.no_grad():
            for step in range(8):
                timestep = torch.full((1, 48), 900.0 - 50 * step)
                timestep[:, :16] = 0.0
                outputs.append(model(**tiny_models.inputs("wan") | {"timestep": timestep})[0])
        return outputs

    plain = run()
    with enable(model, EXACT):
        assert all(map(torch.equal, run(), plain))
    with enable(model, GENEROUS) as session:
        run()
    assert served(session) and {entry.run for entry in session.trace.entries} == {0}


def test_interrupting_a_pipeline_ends_the_run_and_the_next_is_a_first_one(note: Note, tmp_path: Path):
    note("`pipe.interrupt`", "wan")
    pipe = WanPipeline.from_pretrained(tiny_pipeline.save(tmp_path))
    pipe.set_progress_bar_config(disable=True)

    def make(**more: Any) -> Tensor:
        options = {key: value for key, value in tiny_pipeline.DEFAULTS.items() if key != "fps"}
        generator = torch.Generator().manual_seed(0)
        return pipe(prompt="a red star", generator=generator, output_type="latent", **options | more).frames

    def stop(pipe: Any, step: int, timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step >= 3
        return kept

    plain = make()
    with enable(pipe, GENEROUS):
        alone = make()
    with enable(pipe, GENEROUS) as session:
        make(callback_on_step_end=stop)
        assert {entry.step for entry in session.trace.entries} == {0, 1, 2, 3} and session.is_empty
        assert torch.equal(make(), alone)
    assert torch.equal(make(), plain)


def test_two_threads_with_a_model_each(note: Note):
    note("two threads, a pipeline each", "wan")
    models = [tiny_models.build("wan"), tiny_models.build("wan")]
    found: dict[int, list[Tensor]] = {}

    def work(place: int) -> None:
        # Other prompts in each thread, so that what came from the other one would show.
        found[place] = [denoise(models[place], "wan", seed=10 * place + run) for run in range(3)]

    def actions(session: Session) -> list[tuple[int, int, str, str]]:
        return [(entry.run, entry.step, entry.branch, entry.action) for entry in session.trace.entries]

    expected, decided = [], []
    for place in range(2):
        with enable(models[place], GENEROUS) as session:
            work(place)
        expected.append(found.pop(place))
        decided.append(actions(session))
    with enable(models[0], GENEROUS) as first, enable(models[1], GENEROUS) as second:
        threads = [threading.Thread(target=work, args=(place,)) for place in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [actions(first), actions(second)] == decided
    for place in range(2):
        # To rounding: the last bits were seen to differ now and then in a thread.
        torch.testing.assert_close(found[place], expected[place], rtol=1e-3, atol=1e-4)
