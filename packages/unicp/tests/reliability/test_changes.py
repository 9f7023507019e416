"""What people change while UniCP is enabled: conditions, guidance, parts of the pipeline, other caches, outputs."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FirstBlockCacheConfig
from torch import Tensor

import unicp
from tests import tiny_models
from tests.reliability.loops import KINDS, Loop, View, flow, resident_bytes, unipc
from unicp.context import Action
from unicp.errors import AttachmentError, UnsupportedModelError
from unicp.runtime.cache_point import CachePoint
from unicp.session import enable
from unicp.settings import Slicing, preset

EXACT = {
    "model": preset("balanced", tolerance=0.0),
    "unit": preset("paper", tolerance=0.0, slicing=Slicing(), text_keys_values=True),
}
# Argument, and which family has it: pictures, poses, faces, control videos, pooled texts, guidance weights.
CONDITIONS = [
    ("hunyuan_video", "pooled_projections"),
    ("hunyuan_video", "guidance"),
    ("wan_vace", "control_hidden_states"),
    ("wan_animate", "pose_hidden_states"),
    ("flux", "pooled_projections"),
    ("kandinsky5", "pooled_projections"),
    ("framepack", "image_embeds"),
    ("sd3", "pooled_projections"),
]


def relative(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).norm() / other.float().norm())


@torch.no_grad()
def scheduled(model: Any, name: str, changed: str | None, at: int = 6, steps: int = 10) -> list[Tensor]:
    """Outputs of a run in which one condition becomes another at a step."""
    given, other = tiny_models.inputs(name), tiny_models.inputs(name, seed=5)
    sample, outputs = given["hidden_states"], []
    for step in range(steps):
        now = dict(given)
        if changed is not None and step >= at:
            before = given[changed]
            now[changed] = other[changed] if not torch.equal(other[changed], before) else before * 0.5
        timestep = tiny_models.inputs(name, timestep=1000.0 * (1 - step / steps))["timestep"]
        moved = {"hidden_states": sample * (1 - 0.03 * step), "timestep": timestep}
        outputs.append(tiny_models.first(tiny_models.call(model, name, now | moved)))
    return outputs


def picture_model() -> Any:
    return tiny_models.build("wan", image_dim=16, added_kv_proj_dim=32)


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize(("name", "changed"), CONDITIONS)
def test_a_condition_that_changes_in_mid_run_is_seen_and_the_first_call_under_it_is_computed(name, changed, kind):
    if name not in tiny_models.NAMES or changed not in tiny_models.inputs(name):
        pytest.skip(f"this diffusers has no {name} with {changed}")
    model = tiny_models.shared(name)
    plain = scheduled(model, name, changed)
    with enable(model, EXACT[kind]):
        assert all(map(torch.equal, scheduled(model, name, changed), plain))
    with enable(model, preset("fast", full_every=2)) as session:
        output = scheduled(model, name, changed)
    assert torch.equal(output[6], plain[6])
    assert {entry.run for entry in session.trace.entries} == {0, 1}


def test_two_pictures_in_turn_have_keys_of_their_own():
    """As a preview does: tolerance 0 must be the plain bits though the text is the same."""
    model = picture_model()
    pictures = [torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4)]

    @torch.no_grad()
    def previews() -> list[Tensor]:
        outputs = []
        for step in range(6):
            given = tiny_models.inputs("wan", timestep=1000.0 - 100 * step)
            outputs += [model(**given, encoder_hidden_states_image=picture)[0] for picture in pictures]
            given = tiny_models.inputs("wan", timestep=1000.0 - 100 * step)
            outputs.append(model(**given, encoder_hidden_states_image=pictures[step % 2])[0])
        return outputs

    plain = previews()
    for settings in EXACT.values():
        with enable(model, settings):
            assert all(map(torch.equal, previews(), plain))


@torch.no_grad()
def paused(model: Any, on: Any, scheduler: Any, steps: int = 16) -> Tensor:
    """A run whose guidance is on at some steps only."""
    conditions = [tiny_models.inputs("wan", seed=seed) for seed in (0, 1)]
    sample = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(steps)
    for step, timestep in enumerate(scheduler.timesteps):
        outputs = []
        for name, given in list(zip(("cond", "uncond"), conditions))[: 2 if on(step) else 1]:
            with model.cache_context(name):
                outputs.append(model(**given | {"hidden_states": sample, "timestep": timestep.reshape(1)})[0])
        output = outputs[-1] + 3 * (outputs[0] - outputs[-1])
        sample = scheduler.step(output, timestep, sample, return_dict=False)[0]
    return sample


PAUSES = {
    "off 6 to 9": lambda step: not 6 <= step <= 9,
    "every third": lambda step: step < 5 or step % 3 == 0,
    "every second": lambda step: step < 5 or step % 2 == 0,
}


@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("make", [flow, unipc])
def test_what_a_branch_said_before_a_pause_is_not_moved_to_a_later_sample(pause, make, monkeypatch):
    """A stored sample is the one that its output was computed from, or the one that was put in its place."""
    moved: list[tuple[int, int]] = []
    own = CachePoint.move

    def watched(self: Any, sample: Tensor, there: Tensor) -> None:
        branches = {name: branch for name, branch in self._branches.items() if branch.steps}
        before = {name: self._store.get(("model", name))[-1][1].clone() for name in branches}
        own(self, sample, there)
        for name, branch in branches.items():
            if not torch.equal(self._store.get(("model", name))[-1][1], before[name]):
                moved.append((branch.steps[-1].step, self._at[1]))

    monkeypatch.setattr(CachePoint, "move", watched)
    model: Any = tiny_models.wan()
    with enable(model, preset("fast")) as session:
        output = paused(model, PAUSES[pause], make())
    assert torch.isfinite(output).all() and any(Action(entry.action).skipped for entry in session.trace.entries)
    assert moved or pause != "off 6 to 9"
    assert all(newest == step for newest, step in moved)


@pytest.mark.parametrize("kind", ["exact", "balanced"])
def test_guidance_that_pauses_is_exact_at_tolerance_zero_and_close_otherwise(kind):
    model: Any = tiny_models.wan()
    for on in PAUSES.values():
        plain = paused(model, on, unipc())
        with enable(model, EXACT["model"] if kind == "exact" else preset("balanced")):
            output = paused(model, on, unipc())
        assert torch.equal(output, plain) if kind == "exact" else relative(output, plain) < 0.3


IN_PLACE = {kind: KINDS[kind] for kind in ("fast", "reuse", "stack", "block", "unit", "unit, sliced")} | {
    "stack, order 0": preset("balanced", level="stack", predictor="reuse", tolerance=1e3, first=2),
    "block, order 0": preset("balanced", level="block", predictor="reuse", tolerance=1e3, first=2, store_factor=64.0),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("kind", IN_PLACE)
def test_a_caller_may_write_into_what_it_is_given(kind, inference):
    def walked(in_place: bool) -> Tensor:
        model = tiny_models.wan()
        conditions = [tiny_models.inputs("wan", seed=seed) for seed in (0, 1)]
        with enable(model, IN_PLACE[kind]) as session, torch.inference_mode(inference), torch.no_grad():
            sample = conditions[0]["hidden_states"].clone()
            for step in range(10):
                timestep = torch.full((1,), 1000.0 * (1 - step / 10))
                first, second = (
                    model(**given | {"hidden_states": sample, "timestep": timestep})[0] for given in conditions
                )
                if in_place:
                    first.sub_(second).mul_(3.0).add_(second)
                    sample.sub_(first / 10)
                else:
                    sample = sample - (second + 3.0 * (first - second)) / 10
        assert any(Action(entry.action).skipped for entry in session.trace.entries)
        return sample

    assert torch.equal(walked(True), walked(False))


@pytest.mark.parametrize("kind", ["fast", "reuse", "stack", "block", "unit"])
@pytest.mark.parametrize("name", ["wan", "cogvideox", "hunyuan_video"])
def test_under_autocast_what_is_skipped_has_the_dtype_of_what_is_computed(name, kind):
    model, dtypes = tiny_models.build(name), []
    model.register_forward_hook(lambda module, args, output: dtypes.append(tiny_models.first(output).dtype))
    with enable(model, KINDS[kind]) as session, torch.autocast("cpu", torch.bfloat16):
        tiny_models.denoise(model, name, steps=10)
    assert any(Action(entry.action).skipped for entry in session.trace.entries)
    assert set(dtypes) == {torch.bfloat16} and len(dtypes) == 20


def test_another_cache_that_is_enabled_later_is_refused_when_a_run_begins():
    model: Any = tiny_models.wan()
    plain = Loop(model, flow(), 0).run()
    with enable(model, KINDS["balanced"]) as session:
        Loop(model, flow(), 0).run()
        model.enable_cache(FirstBlockCacheConfig(threshold=0.2))
        with pytest.raises(AttachmentError, match=r"FirstBlockCacheConfig.*transformer\.disable_cache\(\)"):
            Loop(model, flow(), 0, context=True).step()
        model.disable_cache()
        before = len(session.trace.entries)
        Loop(model, flow(), 0).run()
        assert len(session.trace.entries) > before
    assert torch.equal(Loop(model, flow(), 0).run(), plain)


@pytest.mark.parametrize("first", ["unicp", "other"])
def test_two_caches_are_taken_off_in_either_order(first):
    model: Any = tiny_models.wan()
    plain = Loop(model, flow(), 0).run()
    session = enable(model, KINDS["balanced"])
    model.enable_cache(FirstBlockCacheConfig(threshold=0.2))
    for off in (session.disable, model.disable_cache) if first == "unicp" else (model.disable_cache, session.disable):
        off()
    assert torch.equal(Loop(model, flow(), 0).run(), plain)


def test_a_replaced_transformer_is_told_and_disabling_works_on_what_was_enabled(caplog):
    pipe = View(tiny_models.wan(), flow())
    old = pipe.transformer
    session = unicp.enable(pipe, "fast")
    pipe.transformer = tiny_models.wan()
    with caplog.at_level(logging.WARNING, logger="unicp"):
        for _ in range(2):
            pipe(0)
    (told,) = [record.getMessage() for record in caplog.records]
    assert "transformer was replaced" in told and "unicp.disable(pipe)" in told
    assert session.trace.warnings == [told] and not session.trace.entries
    unicp.disable(pipe)
    assert not old._diffusers_hook.hooks  # type: ignore[union-attr]
    with pytest.raises(AttachmentError, match="not enabled here"):
        unicp.disable(pipe)
    with unicp.enable(pipe, "fast") as again:
        pipe(0)
    assert any(Action(entry.action).skipped for entry in again.trace.entries)


def test_disabling_works_by_any_pipeline_around_the_transformer():
    pipe = View(tiny_models.wan(), flow())
    unicp.enable(pipe, "fast")
    unicp.disable(pipe.for_request())
    with pytest.raises(AttachmentError, match="not enabled here"):
        unicp.disable(pipe.transformer)


def test_a_scheduler_class_that_is_loaded_after_enabling_is_seen():
    pipe = View(tiny_models.wan(), flow())

    with enable(pipe, KINDS["balanced"]) as session:

        class Late(type(flow())):  # type: ignore[misc]
            def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
                super().set_timesteps(*args, **kwargs)

            def step(self, *args: Any, **kwargs: Any) -> Any:
                return super().step(*args, **kwargs)

        pipe.scheduler = Late(shift=5.0)
        pipe(0)
        pipe.scheduler = DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
        )
        pipe(0)
    assert all(entry.sigma is not None for entry in session.trace.entries)
    assert {entry.run for entry in session.trace.entries} == {0, 1}


class Experts:
    """A pipeline that hands over from one expert to the other in mid-run."""

    def __init__(self, first: Any, second: Any):
        self.transformer, self.transformer_2, self.scheduler = first, second, unipc()

    @torch.no_grad()
    def __call__(self, stop: int = 99, steps: int = 10) -> Tensor:
        given = tiny_models.inputs("wan")
        sample = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        self.scheduler.set_timesteps(steps)
        for step, timestep in enumerate(self.scheduler.timesteps[:stop]):
            expert = self.transformer if step < 5 else self.transformer_2
            output = expert(**given | {"hidden_states": sample, "timestep": timestep.reshape(1)})[0]
            sample = self.scheduler.step(output, timestep, sample, return_dict=False)[0]
        return sample


def test_a_run_that_was_given_up_before_the_second_expert_is_a_run_of_its_own(tmp_path):
    pipe = Experts(tiny_models.wan(), tiny_models.wan())
    with enable(pipe, preset("fast", first=2)) as session:
        expected = pipe()
        pipe(stop=3)
        assert torch.equal(pipe(), expected)
    steps = [[entry.step for entry in session.trace.entries if entry.run == run] for run in range(3)]
    assert steps == [list(range(10)), list(range(3)), list(range(10))]
    with enable(pipe, preset("fast", first=2)) as session:
        pipe(stop=4)
        with pytest.raises(unicp.UniCPError, match="stopped after|missing"):
            session.save_plan(tmp_path / "plan.json")
    assert not (tmp_path / "plan.json").exists()


def test_the_same_module_as_both_experts_and_a_peft_model_are_refused_with_what_to_do():
    from peft import LoraConfig, get_peft_model

    model = tiny_models.wan()
    with pytest.raises(AttachmentError, match="one module as both transformers"):
        enable(Experts(model, model))
    wrapped = get_peft_model(tiny_models.wan(), LoraConfig(target_modules=["to_q"]))
    with pytest.raises(UnsupportedModelError, match=r"get_base_model\(\)"):
        enable(wrapped)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_trace_names_the_dtype_that_most_parameters_have(dtype):
    model = tiny_models.wan().to(dtype)
    next(model.parameters()).data = next(model.parameters()).data.float()
    with enable(model) as session:
        assert session.trace.dtype == str(dtype).removeprefix("torch.")


def test_a_trace_keeps_the_newest_runs_and_counts_those_it_dropped():
    pipe = View(tiny_models.wan(), flow())
    with enable(pipe, preset("fast", trace_entries=50)) as session:
        for _ in range(7):
            pipe(0)
    kept = [entry.run for entry in session.trace.entries]
    assert sorted(set(kept)) == [5, 6] and len(kept) == 36
    assert session.trace.counts["dropped_runs"] == 5
    assert session.summary().dropped_runs == 5 and "5 older runs" in session.summary().text()
    with enable(pipe, preset("fast", trace_entries=5)) as session:
        pipe(0)
    assert len(session.trace.entries) == 18


def test_ten_thousand_runs_stay_within_fifty_megabytes():
    from unicp.records import Entry, Trace
    from unicp.runtime.trace_log import TraceLog
    from unicp.settings import Settings

    log = TraceLog(Trace("WanTransformer3DModel", "cpu", "float32", {}), Settings().trace_entries)
    before = resident_bytes()
    for run in range(10_000):
        log.add(
            [
                Entry(run, step, branch, "model", "forecast", "within", 0.5 + step, 0.1 + step, [step / 7], [step / 9])
                for step in range(30)
                for branch in ("cond", "uncond")
            ]
        )
    assert resident_bytes() < before + 50_000_000
    assert log.trace.counts["dropped_runs"] + len({entry.run for entry in log.trace.entries}) == 10_000
