"""Folders and hub names: what loads, and one line for what does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from tests import tiny_pipeline
from unicp.cli.loading import check_frames, check_model, generation_defaults, load_outline, load_pipeline, sampler
from unicp.errors import FileFormatError, InputError, UniCPError, UnsupportedModelError
from unicp.models.finder import map_model
from unicp.models.noise import read_schedule
from unicp_testbeds import film, latte
from unicp_testbeds.components import FLOW_SHIFT, build_scheduler

HUB_NAME = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_pipeline.save(tmp_path_factory.mktemp("models") / "tiny")


def test_a_folder_loads_in_the_dtype_asked_for(folder):
    pipe = load_pipeline(folder, device="cpu")
    assert type(pipe).__name__ == "WanPipeline"
    assert pipe.transformer.dtype == pipe.vae.dtype == torch.float32
    assert load_pipeline(str(folder), "bfloat16", "cpu").vae.dtype == torch.bfloat16


def test_an_outline_has_structure_and_no_weights(folder, tmp_path):
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    outline = load_outline(bare)
    assert outline.pipeline == "WanPipeline"
    (transformer,) = outline.transformers.values()
    assert {parameter.device.type for parameter in transformer.parameters()} == {"meta"}
    assert [unit.name for unit in map_model(transformer).units][:2] == ["blocks.0.attn1", "blocks.0.attn2"]
    schedule = read_schedule(outline.scheduler)
    assert schedule is not None and schedule.prediction == "flow"


def damage(folder: Path, what: str) -> None:
    index = folder / "model_index.json"
    if what == "no index":
        index.unlink()
    elif what == "half an index":
        index.write_text(index.read_text()[:40])
    elif what == "an index that is a list":
        index.write_text("[]")
    elif what == "no transformer":
        index.write_text(json.dumps({k: v for k, v in json.loads(index.read_text()).items() if k != "transformer"}))
    elif what == "an empty transformer":
        index.write_text(json.dumps(json.loads(index.read_text()) | {"transformer": [None, None]}))
    elif what == "no transformer folder":
        shutil.rmtree(folder / "transformer")


@pytest.mark.parametrize(
    ("what", "kind", "found"),
    [
        ("no index", InputError, "without model_index.json"),
        ("half an index", FileFormatError, "damaged"),
        ("an index that is a list", FileFormatError, "without entries"),
        ("no transformer", UnsupportedModelError, "WanPipeline without one"),
        ("an empty transformer", UnsupportedModelError, "WanPipeline without one"),
        ("no transformer folder", InputError, "no folder transformer"),
    ],
)
def test_damaged_folders_are_refused_before_loading(what, kind, found, folder, tmp_path, monkeypatch):
    copy = shutil.copytree(folder, tmp_path / "copy")
    damage(copy, what)
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", None)
    for act in (check_model, load_pipeline, load_outline):
        with pytest.raises(kind, match=found) as caught:
            act(copy)
        assert "\n" not in str(caught.value)


def test_half_written_weights_are_one_line(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = next((copy / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        load_pipeline(copy)
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_model(tmp_path):
    (tmp_path / "file").write_text("x")
    for path, found in ((tmp_path / "none", "no such folder"), (tmp_path / "file", "a file"), ("nonsense", "no such")):
        with pytest.raises(InputError, match=found):
            check_model(path)
    check_model(HUB_NAME)


def test_a_hub_that_is_out_of_reach_is_one_line(monkeypatch):
    def unreachable(*_args, **_changes):
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", unreachable)
    monkeypatch.setattr(DiffusionPipeline, "load_config", unreachable)
    for act in (load_pipeline, load_outline):
        with pytest.raises(InputError, match="connect to the hub.*network") as caught:
            act(HUB_NAME)
        assert "\n" not in str(caught.value)


def test_unknown_dtype_and_device(folder):
    with pytest.raises(InputError, match="dtype 'int3'"):
        load_pipeline(folder, dtype="int3")
    with pytest.raises(InputError, match="device 'toaster'"):
        load_pipeline(folder, device="toaster")


def test_defaults(folder, tmp_path):
    assert generation_defaults(folder) == tiny_pipeline.DEFAULTS
    assert generation_defaults(tmp_path) == {} == generation_defaults(HUB_NAME)


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"colour": 1}', '{"height": 1.5}', '{"height": true}', '{"fps": -1}', '{"fps": "8"}']
)
def test_bad_defaults(text, tmp_path):
    (tmp_path / "unicp_defaults.json").write_text(text)
    with pytest.raises(FileFormatError):
        generation_defaults(tmp_path)


def test_a_model_of_one_number_of_frames_refuses_others():
    pipe = SimpleNamespace(transformer=SimpleNamespace(config={"video_length": 16}))
    for frames in (16, None):
        check_frames(pipe, frames)
    with pytest.raises(InputError, match="9 frames.*can make 16 only"):
        check_frames(pipe, 9)
    check_frames(SimpleNamespace(transformer=SimpleNamespace(config={})), 9)


def test_samplers_keep_the_shift():
    pipe = SimpleNamespace(scheduler=build_scheduler())
    before = pipe.scheduler
    sampler(pipe, "default")
    assert pipe.scheduler is before
    sampler(pipe, "euler")
    assert isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler)
    assert pipe.scheduler.config["shift"] == FLOW_SHIFT
    sampler(pipe, "unipc")
    assert isinstance(pipe.scheduler, UniPCMultistepScheduler)
    assert pipe.scheduler.config["flow_shift"] == FLOW_SHIFT
    sampler(pipe, "dpm")
    assert isinstance(pipe.scheduler, DPMSolverMultistepScheduler)
    assert pipe.scheduler.config["flow_shift"] == FLOW_SHIFT
    sampler(pipe, "unipc")
    pipe.scheduler.set_timesteps(8)
    before.set_timesteps(8)
    assert torch.equal(torch.as_tensor(pipe.scheduler.sigmas), torch.as_tensor(before.sigmas))


@pytest.mark.parametrize("name", ["euler", "unipc", "dpm"])
@pytest.mark.parametrize("build", [latte.build_scheduler, film.build_scheduler], ids=["epsilon", "v_prediction"])
def test_samplers_of_a_model_without_flow_keep_its_noise_levels(build, name):
    pipe = SimpleNamespace(scheduler=build())
    before = read_schedule(pipe.scheduler)
    alphas = pipe.scheduler.alphas_cumprod
    sampler(pipe, name)
    after = read_schedule(pipe.scheduler)
    assert before is not None and after is not None and after.prediction == before.prediction
    # Without any signal log-SNR would be infinite: these schedulers put 2**-24 there.
    assert torch.allclose(pipe.scheduler.alphas_cumprod.double(), alphas.double(), atol=1e-6)
    pipe.scheduler.set_timesteps(10)


def test_euler_on_variances_steps_as_ddim_does():
    ddim, pipe = latte.build_scheduler(), SimpleNamespace(scheduler=latte.build_scheduler())
    sampler(pipe, "euler")
    ends = []
    for scheduler in (ddim, pipe.scheduler):
        scheduler.set_timesteps(10)
        sample = scheduler.init_noise_sigma * torch.ones(1)
        for timestep in scheduler.timesteps:
            output = torch.cos(3 * scheduler.scale_model_input(sample, timestep))
            sample = scheduler.step(output, timestep, sample).prev_sample
        ends.append(sample.item())
    # DDIM ends at the first training step's noise level, Euler at none.
    assert ends[0] == pytest.approx(ends[1], rel=0.02)


def test_samplers_need_known_noise_levels():
    pipe = SimpleNamespace(scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True))
    with pytest.raises(InputError, match="noise levels are not known"):
        sampler(pipe, "euler")
    with pytest.raises(UniCPError, match="known ones"):
        sampler(pipe, "magic")


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "a\0b", "\ud800", ""])
def test_a_name_that_no_folder_can_have_is_one_line(name):
    with pytest.raises(InputError) as caught:
        check_model(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["transformer/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("text", ["5", "true", '"Wan-AI/other"', "[]"])
def test_a_configuration_without_entries_is_refused_and_not_asked_of_the_hub(folder, tmp_path, place, text):
    copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors"))
    (copy / place).write_text(text)
    for reads in (check_model, load_outline, load_pipeline):
        with pytest.raises(FileFormatError, match=f"{place} without entries"):
            reads(copy)


def test_a_device_without_room_is_one_line(folder, monkeypatch):
    def full(*_args):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(DiffusionPipeline, "to", full)
    with pytest.raises(InputError, match="CUDA out of memory. Tried"):
        load_pipeline(folder, device="cpu")
