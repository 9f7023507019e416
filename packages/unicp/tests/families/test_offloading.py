"""Model and sequential offloading: what the pipelines call, with the CPU as the device that weights are brought to.

Sequential offloading leaves no weight in the model between calls (all are on "meta"), so that is tested for real.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from torch import Tensor

from tests import tiny_models, tiny_pipeline
from tests.families.helpers import EXACT, GENEROUS, NAMES, check, denoise, served
from tests.families.test_combined import lora
from unicp.session import enable
from unicp.settings import preset

MODEL, SEQUENTIAL = "model offloading, before or after `enable`", "sequential offloading, before or after `enable`"
OFFLOAD: dict[str, Callable[[Any], Any]] = {
    MODEL: lambda model: cpu_offload_with_hook(model, torch.device("cpu")),
    SEQUENTIAL: lambda model: cpu_offload(model, torch.device("cpu"), offload_buffers=len(model._parameters) > 0),
}


@pytest.mark.parametrize("what", OFFLOAD)
@pytest.mark.parametrize("name", NAMES)
def test_an_offloaded_transformer(name, what, note):
    plain = denoise(tiny_models.build(name), name)
    model = tiny_models.build(name)
    OFFLOAD[what](model)
    assert all(weight.is_meta for weight in model.parameters()) is (what == SEQUENTIAL)
    assert torch.equal(denoise(model, name), plain)
    check(model, name)
    later = tiny_models.build(name)
    for settings in (EXACT, preset("balanced", level="block", tolerance=0.0)):
        with enable(later, settings):
            OFFLOAD[what](later)
            assert torch.equal(denoise(later, name), plain)
        assert torch.equal(denoise(later, name), plain)
        remove_hook_from_module(later, recurse=True)
        assert torch.equal(denoise(later, name), plain)
    note(what, name)


@pytest.mark.parametrize("what", OFFLOAD)
def test_a_lora_under_offloading_opens_no_run_of_its_own(what):
    model: Any = tiny_models.build("wan")
    with torch.random.fork_rng(devices=[]):
        model.add_adapter(lora(1), adapter_name="one")
    plain = denoise(model, "wan")
    OFFLOAD[what](model)
    with enable(model, GENEROUS) as session:
        output = denoise(model, "wan")
    assert served(session) and {entry.run for entry in session.trace.entries} == {0}
    assert float((output - plain).norm() / plain.norm()) < 0.5


def make(pipe: Any, **more: Any) -> Tensor:
    options = {key: value for key, value in tiny_pipeline.DEFAULTS.items() if key != "fps"} | {"output_type": "latent"}
    generator = torch.Generator().manual_seed(0)
    return torch.as_tensor(pipe(prompt="a red star", generator=generator, **options | more).frames)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline.save(tmp_path_factory.mktemp("pipeline"))


def load(folder: Path) -> Any:
    pipe = WanPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def offload_in_sequence(pipe: Any) -> None:
    """What `enable_sequential_cpu_offload` does, which itself asks for "cpu:0": there accelerate loses parameters."""
    pipe.remove_all_hooks()
    for model in (pipe.text_encoder, pipe.transformer, pipe.vae):
        OFFLOAD[SEQUENTIAL](model)


@pytest.mark.slow
@pytest.mark.parametrize("what", OFFLOAD)
def test_a_whole_pipeline_that_offloads(what, folder):
    pipe = load(folder)
    plain = make(pipe)
    with enable(pipe, EXACT):
        if what == MODEL:
            pipe.enable_model_cpu_offload(device="cpu")
        else:
            offload_in_sequence(pipe)
        for _ in range(2):
            assert torch.equal(make(pipe), plain)
    assert torch.equal(make(pipe), plain)
    with enable(pipe, EXACT):
        assert torch.equal(make(pipe), plain)
    with enable(pipe, GENEROUS) as session:
        outputs = [make(pipe) for _ in range(2)]
    # The pipeline takes its hooks off and puts them on again after each call.
    assert [sum(e.action == "forecast" for e in session.trace.entries if e.run == run) > 0 for run in (0, 1)]
    assert torch.equal(*outputs) and float((outputs[0] - plain).norm() / plain.norm()) < 0.5
    assert not torch.equal(outputs[0], plain) and torch.equal(make(pipe), plain)


@pytest.mark.slow
def test_a_pipeline_whose_autoencoder_works_in_tiles_and_slices(folder, note):
    pipe, two = load(folder), {"num_videos_per_prompt": 2, "output_type": "pt"}
    whole = make(pipe, **two)
    small = {"tile_sample_min_height": 16, "tile_sample_min_width": 16}
    pipe.vae.enable_tiling(**small, tile_sample_stride_height=12, tile_sample_stride_width=12)
    pipe.vae.enable_slicing()
    plain = make(pipe, **two)
    assert plain.shape == whole.shape and not torch.equal(plain, whole), "nothing was tiled"
    with enable(pipe, EXACT):
        assert torch.equal(make(pipe, **two), plain)
    with enable(pipe, GENEROUS) as session:
        output = make(pipe, **two)
    assert served(session) and torch.isfinite(output).all() and not torch.equal(output, plain)
    assert float((output - plain).norm() / plain.norm()) < 0.5 and torch.equal(make(pipe, **two), plain)
    note("VAE tiling and slicing", "wan")
