"""UniCP beside what people combine it with, on one model of each topology: it works, or one clear line says why not."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend
from torch import Tensor, nn

from tests import tiny_models
from tests.families.helpers import EXACT, GENEROUS, NAMES, check, denoise, served
from unicp.errors import AttachmentError
from unicp.models.finder import map_model
from unicp.session import enable
from unicp.settings import Slicing, preset

# Tiny models have too few tokens for slices to save anything.
FULL_WIDTH = preset("balanced", first=99, slicing=Slicing(widths=(16,), min_saving=-1e6, tolerance=1e6))
every_name = pytest.mark.parametrize("name", NAMES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_name
def test_half_precision(name, dtype, note):
    note(str(dtype).removeprefix("torch."), name)
    check(tiny_models.build(name).to(dtype), name, dtype=dtype)


@every_name
def test_layerwise_casting(name, note):
    note("layerwise casting, before or after `enable`", name)
    casting = {"storage_dtype": torch.float8_e4m3fn, "compute_dtype": torch.float32}
    model: Any = tiny_models.build(name)
    model.enable_layerwise_casting(**casting)
    check(model, name)
    later: Any = tiny_models.build(name)
    with enable(later, EXACT):
        later.enable_layerwise_casting(**casting)
        assert torch.equal(denoise(later, name), denoise(model, name))
    assert torch.equal(denoise(later, name), denoise(model, name))


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
@every_name
def test_group_offloading(name, kind, note):
    note("group offloading, before or after `enable`", name)
    offloading = {
        "onload_device": torch.device("cpu"),
        "offload_device": torch.device("cpu"),
        "offload_type": kind,
        "num_blocks_per_group": 1 if kind == "block_level" else None,
    }
    model: Any = tiny_models.build(name)
    model.enable_group_offload(**offloading)
    check(model, name)
    later: Any = tiny_models.build(name)
    with enable(later, EXACT):
        later.enable_group_offload(**offloading)
        assert torch.equal(denoise(later, name), denoise(model, name))
    assert torch.equal(denoise(later, name), denoise(model, name))


def lora(seed: int) -> Any:
    from peft import LoraConfig  # here, because it takes seconds

    torch.manual_seed(seed)
    return LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)


def lora_states(model: Any) -> Iterator[str]:
    """Takes a model through what people do with LoRA; stops after each change."""
    with torch.random.fork_rng(devices=[]):
        model.add_adapter(lora(1), adapter_name="one")
        yield "loaded"
        model.set_adapters("one", 0.5)
        yield "weaker"
        model.add_adapter(lora(2), adapter_name="two")
        model.set_adapters("two")
        yield "swapped"
        model.disable_adapters()
        yield "off"
        model.enable_adapters()
        model.fuse_lora()
        yield "fused"
        model.unfuse_lora()
        model.delete_adapters(["one", "two"])
        yield "unloaded"


@every_name
def test_lora_loaded_swapped_fused_and_unloaded_while_enabled(name, note):
    note("LoRA: load, scale, swap, fuse, unload while enabled", name)
    plain, model = tiny_models.build(name), tiny_models.build(name)
    before = denoise(plain, name)
    expected = {state: denoise(plain, name) for state in lora_states(plain)}
    assert not torch.equal(expected["loaded"], before) and torch.equal(expected["off"], before)
    with enable(model, EXACT):
        for state in lora_states(model):
            assert torch.equal(denoise(model, name), expected[state]), state
    with enable(model, GENEROUS) as session:
        for state in lora_states(model):
            output = denoise(model, name)
            assert float((output - expected[state]).norm() / expected[state].norm()) < 0.5, state
    assert served(session)


def test_what_was_stored_under_one_lora_is_not_served_under_another():
    model: Any = tiny_models.build("wan")
    with torch.random.fork_rng(devices=[]):
        model.add_adapter(lora(1), adapter_name="one")
        model.add_adapter(lora(2), adapter_name="two")
    model.set_adapters("one")
    arguments = tiny_models.inputs("wan")
    fixed = preset("balanced", tolerance=1.0, predictor="reuse", quantity="output", full_every=9, first=1)

    def call(step: int) -> Tensor:
        with torch.no_grad():
            return model(**arguments | {"timestep": torch.tensor([900.0 - step])})[0]

    with enable(model, fixed) as session:
        call(0), call(1)
        reused = call(2)
        model.set_adapters("two")
        swapped = call(3)
        # Swapped in place, as hot-swapping does.
        for module in model.modules():
            if hasattr(module, "lora_B") and "two" in module.lora_B:
                module.lora_B["two"].weight.data = module.lora_B["two"].weight.data * 3
        hot = call(4)
    assert [entry.run for entry in session.trace.entries] == [0, 0, 0, 1, 2]
    assert session.trace.entries[2].action == "reuse"
    assert torch.equal(hot, call(4)) and not torch.equal(swapped, reused) and not torch.equal(swapped, hot)


@every_name
def test_fused_projections(name, note):
    note("fused QKV, before or after `enable`", name)
    model: Any = tiny_models.build(name)
    model.fuse_qkv_projections()
    check(model, name)
    later: Any = tiny_models.build(name)
    plain = denoise(later, name)
    with enable(later, EXACT):
        later.fuse_qkv_projections()
        assert torch.equal(denoise(later, name), denoise(model, name))
        later.unfuse_qkv_projections()
        assert torch.equal(denoise(later, name), plain)
    assert torch.equal(denoise(later, name), plain)


# Those that run on a CPU.
BACKENDS = ("native", "_native_math", "_native_flash", "flex")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("backend", BACKENDS)
@every_name
def test_attention_backends(name, backend, note):
    if backend == "_native_flash" and name == "ltx":
        pytest.skip("this backend takes no mask, which LTX's text has")
    model: Any = tiny_models.build(name)
    with attention_backend(backend):
        # Sets the backend of the whole process too, which the context sets back.
        model.set_attention_backend(backend)
        check(model, name)
        plain = denoise(model, name)
        with enable(model, FULL_WIDTH) as session:
            torch.testing.assert_close(denoise(model, name), plain, rtol=1e-3, atol=1e-4)
        assert torch.equal(denoise(model, name), plain)
    asks = any(hasattr(getattr(part, "processor", None), "_attention_backend") for part in model.modules())
    assert any(entry.width is not None for entry in session.trace.entries)
    assert not any("cannot be sliced" in warning for warning in session.trace.warnings)
    outcome = "works, sliced too" if asks else "this model asks for no backend: it changes nothing"
    note(f"attention backend `{backend}`", name, outcome)


@every_name
def test_saving_while_enabled(name, note, tmp_path: Path):
    note("`save_pretrained` while enabled", name)
    model: Any = tiny_models.build(name)
    with enable(model, GENEROUS):
        denoise(model, name)
        model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))
    assert again.state_dict().keys() == model.state_dict().keys()
    # Weights read from a file lie at other places in memory, which changes how sums are rounded.
    torch.testing.assert_close(denoise(again, name), denoise(model, name), rtol=1e-3, atol=1e-4)
    assert not [path for path in tmp_path.rglob("*") if "unicp" in path.name]


@every_name
def test_copies_and_pickles_of_an_enabled_model_are_refused(name, note):
    model = tiny_models.build(name)
    plain = denoise(model, name)
    with enable(model, GENEROUS):
        for attempt in (copy.deepcopy, pickle.dumps, lambda one: torch.save(one, io.BytesIO())):
            with pytest.raises(AttachmentError, match="enabled on it.*unicp.disable"):
                attempt(model)
    note("deepcopy, pickle and `torch.save` of an enabled model", name, "refused: disable UniCP first")
    double = copy.deepcopy(model)
    with enable(model, EXACT):
        assert torch.equal(denoise(double, name), plain)
    assert torch.equal(denoise(double, name), plain)


@every_name
def test_gradients(name, note):
    note("gradient mode", name, "computed, with a warning: a skipped step has no gradient")
    model = tiny_models.build(name).requires_grad_(True)
    arguments = tiny_models.inputs(name)

    def call(step: int) -> Tensor:
        moved = tiny_models.inputs(name, timestep=900.0 - step)["timestep"]
        return tiny_models.call(model, name, arguments | {"timestep": moved})[0]

    with enable(model, preset("fast", full_every=3, first=1)) as session:
        for step in range(6):
            call(step).sum().backward()
        assert not session.trace.entries and "gradients are recorded" in session.trace.warnings[0]
        with torch.no_grad():
            for step in range(6):
                call(step)
        assert served(session)
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    for step in range(6):
        call(step).sum().backward()
    assert all(map(torch.equal, found, [p.grad for p in model.parameters() if p.grad is not None]))


class Int8Linear(nn.Module):
    """Weights of 8 bits, one scale for each row: what libraries of quantisation put in the place of a linear."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        scale = linear.weight.abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("weight", (linear.weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias, self.out_features = linear.bias, linear.out_features

    def forward(self, tokens: Tensor) -> Tensor:
        return nn.functional.linear(tokens, self.weight * self.scale, self.bias)


@every_name
def test_quantised_linears(name, note):
    note("int8 weight-only linears in the blocks", name)
    model = tiny_models.build(name)
    plain = denoise(model, name)
    blocks = [block.module for block in map_model(model).blocks]
    for part in [part for block in blocks for part in block.modules()]:
        for attribute, linear in list(part.named_children()):
            if isinstance(linear, nn.Linear):
                setattr(part, attribute, Int8Linear(linear))
    assert not torch.equal(denoise(model, name), plain)
    check(model, name)


@pytest.mark.parametrize(
    "kind", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig", "Float8WeightOnlyConfig"]
)
@pytest.mark.parametrize("name", ["wan", "flux"])
def test_torchao(name, kind, note):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model = tiny_models.build(name)
    plain = denoise(model, name)
    blocks = [block.module for block in map_model(model).blocks]
    for block in blocks:
        quantization.quantize_(block, getattr(quantization, kind)())
    assert not torch.equal(denoise(model, name), plain)
    check(model, name)
    later = tiny_models.build(name)
    with enable(later, EXACT):
        for block in map_model(later).blocks:
            quantization.quantize_(block.module, getattr(quantization, kind)())
        assert torch.equal(denoise(later, name), denoise(model, name))
    note(f"torchao `{kind.removesuffix('Config')}`, before or after `enable`", name)
