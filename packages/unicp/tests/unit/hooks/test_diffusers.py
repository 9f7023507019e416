"""Hooks on and off, and nothing left behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook as AccelerateHook
from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

from tests import tiny_models
from unicp.errors import AttachmentError, UnsupportedModelError
from unicp.hooks.diffusers import HOOKS
from unicp.session import disable, enable
from unicp.settings import Slicing, preset

LEVELS = {
    "model": preset("balanced"),
    "sliced": preset("balanced", slicing=Slicing(widths=(8,))),
    "stack": preset("balanced", level="stack"),
    "block": preset("balanced", level="block"),
    "unit": preset("paper"),
}


def output(transformer: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return transformer(**tiny_models.inputs("wan"))[0]


def hooks(transformer: nn.Module) -> list[str]:
    return [
        name
        for module in transformer.modules()
        for name in getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
        if name in HOOKS
    ]


def own_forwards(transformer: nn.Module) -> list[str]:
    return [name for name, module in transformer.named_modules() if "forward" in vars(module)]


@pytest.fixture
def wan() -> nn.Module:
    return tiny_models.wan()


@pytest.mark.parametrize("kind", LEVELS)
def test_hooks_go_on_and_come_off_without_a_trace(wan, kind):
    plain = output(wan)
    session = enable(wan, LEVELS[kind])
    assert hooks(wan) and own_forwards(wan)
    session.disable()
    assert hooks(wan) == [] and own_forwards(wan) == []
    assert torch.equal(output(wan), plain)


def test_the_whole_model_needs_no_hook_inside_the_blocks(wan):
    with enable(wan, preset("balanced", text_keys_values=False)):
        assert hooks(wan) == ["unicp_model"]


def test_text_projections_are_hooked_only_where_asked_for(wan):
    with enable(wan, preset("balanced", text_keys_values=True)):
        # Two blocks, keys and values each.
        assert hooks(wan).count("unicp_text_keys") == 4


def test_disabling_may_be_repeated(wan):
    session = enable(wan)
    session.disable()
    session.disable()
    assert hooks(wan) == []


def test_an_old_session_does_not_take_off_a_new_one(wan):
    old = enable(wan)
    old.disable()
    with enable(wan):
        old.disable()
        assert hooks(wan)


@pytest.mark.parametrize("kind", LEVELS)
def test_attaching_twice_is_refused_and_the_first_stays(wan, kind):
    with enable(wan) as session:
        with pytest.raises(AttachmentError, match="already"):
            enable(wan, LEVELS[kind])
        assert hooks(wan)
        output(wan)
        assert session.trace.entries
    assert hooks(wan) == []


@pytest.mark.parametrize(
    "config",
    [
        FirstBlockCacheConfig(threshold=0.1),
        PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500),
    ],
    ids=lambda config: type(config).__name__,
)
def test_beside_another_cache_it_is_refused_by_name(wan, config):
    wan.enable_cache(config)
    with pytest.raises(AttachmentError, match=type(config).__name__) as caught:
        enable(wan)
    assert "disable_cache" in str(caught.value) and "\n" not in str(caught.value)
    assert hooks(wan) == []
    wan.disable_cache()
    with enable(wan):
        assert hooks(wan)


@pytest.mark.parametrize("at", [1, 2, 5, 8])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_half_way_takes_everything_off_again(wan, monkeypatch, at, error):
    plain, register, calls = output(wan), HookRegistry.register_hook, iter(range(1, 100))

    def failing(self: HookRegistry, hook: Any, name: str) -> None:
        if next(calls) == at:
            raise error("half-way")
        register(self, hook, name)

    monkeypatch.setattr(HookRegistry, "register_hook", failing)
    with pytest.raises(error, match="half-way"):
        enable(wan, preset("balanced", level="unit"))
    monkeypatch.undo()
    assert hooks(wan) == [] and own_forwards(wan) == []
    assert torch.equal(output(wan), plain)
    with pytest.raises(AttachmentError):
        disable(wan)
    with enable(wan):
        assert hooks(wan)


def test_a_failure_on_the_second_transformer_takes_the_first_off_too(wan, monkeypatch):
    class Pipe:
        transformer, transformer_2 = wan, tiny_models.wan()
        scheduler = None

    register = HookRegistry.register_hook

    def failing(self: HookRegistry, hook: Any, name: str) -> None:
        if self._module_ref is Pipe.transformer_2:
            raise RuntimeError("second")
        register(self, hook, name)

    monkeypatch.setattr(HookRegistry, "register_hook", failing)
    with pytest.raises(RuntimeError, match="second"):
        enable(Pipe())
    assert hooks(wan) == [] and hooks(Pipe.transformer_2) == []
    with pytest.raises(AttachmentError):
        disable(wan)


def test_refused_settings_leave_the_model_untouched(wan):
    for bad in (preset("balanced", level="unit", roles=("temporal",)), preset("balanced", slicing=Slicing((64,)))):
        with pytest.raises((UnsupportedModelError, ValueError)):
            enable(wan, bad)
        assert hooks(wan) == [] and own_forwards(wan) == []


class Shift(AccelerateHook):
    """Adds one to the sample, so that its presence shows."""

    def __init__(self) -> None:
        self.calls = 0

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        kwargs["hidden_states"] = kwargs["hidden_states"] + 1
        return args, kwargs


@pytest.mark.parametrize("kind", LEVELS)
def test_a_hook_of_accelerate_that_was_there_before_works_on_and_stays(wan, kind):
    hook = Shift()
    add_hook_to_module(wan, hook)
    shifted = output(wan)
    with enable(wan, replace(LEVELS[kind], tolerance=0.0)) as session:
        assert torch.equal(output(wan), shifted)
        assert session.trace.entries
    assert torch.equal(output(wan), shifted)
    assert hook.calls == 3
    remove_hook_from_module(wan)
    assert not torch.equal(output(wan), shifted)


@pytest.mark.parametrize("kind", LEVELS)
def test_offloading_that_is_put_on_anew_after_each_call_leaves_it_enabled(wan, kind):
    # What enable_model_cpu_offload does at the end of every call of a pipeline.
    add_hook_to_module(wan, Shift())
    shifted = output(wan)
    session = enable(wan, replace(LEVELS[kind], tolerance=0.0))
    seen = []
    for _ in range(3):
        assert torch.equal(output(wan), shifted)
        seen.append(len(session.trace.entries))
        remove_hook_from_module(wan)
        add_hook_to_module(wan, Shift())
    assert 0 < seen[0] < seen[1] < seen[2]
    session.disable()
    assert hooks(wan) == []
    assert torch.equal(output(wan), shifted)
    remove_hook_from_module(wan)
    # Accelerate puts the forward it found back as an attribute of the instance.
    assert own_forwards(wan) in ([], [""])
    assert not torch.equal(output(wan), shifted)


@pytest.mark.parametrize("kind", LEVELS)
def test_offloading_put_on_after_enabling_stays_after_disabling(wan, kind):
    plain = output(wan)
    session = enable(wan, replace(LEVELS[kind], tolerance=0.0))
    add_hook_to_module(wan, hook := Shift())
    shifted = output(wan)
    assert session.trace.entries and hook.calls == 1
    session.disable()
    assert torch.equal(output(wan), shifted) and hook.calls == 2
    remove_hook_from_module(wan)
    assert torch.equal(output(wan), plain)


class Doubling(ModelHook):
    def post_forward(self, module: nn.Module, output: Any) -> Any:
        return (output[0] * 2,)


@pytest.mark.parametrize("before", [True, False])
def test_another_hook_of_diffusers_works_on_and_stays(wan, before):
    plain = output(wan)
    registry = HookRegistry.check_if_exists_or_initialize(wan)
    if before:
        registry.register_hook(Doubling(), "doubling")
    session = enable(wan, preset("balanced", tolerance=0.0))
    if not before:
        registry.register_hook(Doubling(), "doubling")
    assert torch.equal(output(wan), 2 * plain)
    session.disable()
    assert torch.equal(output(wan), 2 * plain)
    assert list(registry.hooks) == ["doubling"]


def test_cache_contexts_reach_the_session_and_blocks_need_no_state(wan):
    with enable(wan, preset("balanced", level="block")) as session:
        for branch in ("cond", "uncond"):
            with wan.cache_context(branch):
                output(wan)
    assert [entry.branch for entry in session.trace.entries if entry.point == "model"] == ["cond", "uncond"]


def test_the_reset_of_a_pipeline_forgets_the_run(wan):
    with enable(wan) as session:
        output(wan)
        assert not session.is_empty
        HookRegistry.check_if_exists_or_initialize(wan).reset_stateful_hooks()
        assert session.is_empty


def test_blocks_none_of_which_can_be_skipped_are_refused_and_passed_over_when_the_budget_is_spent():
    transformer = tiny_models.build("kandinsky6")
    with pytest.raises(UnsupportedModelError) as caught:
        enable(transformer, preset("balanced", level="block"))
    asked, found, do = str(caught.value).split(";")
    assert '"block"' in asked and "missing" in found and '"model"' in do
    tight = preset("balanced", level="unit", roles=("self",), tolerance=0.5, store_bytes=3000)
    with enable(transformer, tight) as session:
        tiny_models.denoise(transformer, "kandinsky6", steps=6)
    assert any("unit gives way to model" in warning for warning in session.trace.warnings)
