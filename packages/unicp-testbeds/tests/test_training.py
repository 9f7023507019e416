"""The training code on tables of two steps a stage: it can be stopped anywhere, and continues bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch import nn

from unicp_testbeds import clips, components, training, training_loop
from unicp_testbeds.training_loop import Log, Stage

AUTOENCODER = (Stage("pictures", 2, 2, 1, 5e-3, 1e-3), Stage("clips", 2, 1, 3, 2e-3, 1e-5))
DENOISER = (Stage("frames", 2, 2, 1, 1e-3, 1e-3), Stage("short", 2, 1, 3, 1e-3, 1e-4))


class Killed(Exception):
    pass


class KilledLog(Log):
    """Ends the run after a number of steps, before the step is saved."""

    left = 1_000

    def step(self, stage: Stage, step: int, loss: float, note: str = "") -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed
        super().step(stage, step, loss, note)


@contextmanager
def logging(folder: Path, kill_after: int = 1_000) -> Iterator[Log]:
    folder.mkdir(exist_ok=True)
    log = KilledLog(folder / "log.jsonl")
    log.left = kill_after
    yield log


@pytest.fixture(autouse=True)
def _every_step_is_saved(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(training_loop, "CHECKPOINT_SECONDS", -1.0)
    # The latents' mean and deviation are measured on up to 96 of these.
    scenes = clips.training_scenes()[:6]
    monkeypatch.setattr(clips, "training_scenes", lambda: scenes)
    _make_small(monkeypatch)
    # Choosing a backend for one model sets it for the whole process.
    backend = _AttentionBackendRegistry.get_active_backend()[0]
    yield
    _AttentionBackendRegistry.set_active_backend(backend)


def _make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same parts with narrow layers and two blocks: what is tested is the loop, not what it learns."""
    narrow = {**components.build_autoencoder().config, "base_dim": 4, "decoder_base_dim": 8}
    whole = components.build_transformer

    def build_transformer() -> Any:
        model = whole()
        model.blocks = model.blocks[:2]
        return model

    monkeypatch.setattr(components, "build_autoencoder", lambda: AutoencoderKLWan.from_config(narrow))
    monkeypatch.setattr(components, "build_transformer", build_transformer)


@pytest.fixture
def autoencoder() -> AutoencoderKLWan:
    torch.manual_seed(0)
    return components.build_autoencoder().eval().requires_grad_(False)


def assert_equal(first: nn.Module, second: nn.Module) -> None:
    states = first.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []


def uninterrupted(folder: Path, train: Callable[[Path, Log], Any]) -> Any:
    with logging(folder) as log:
        return train(folder, log)


def killed_then_resumed(folder: Path, train: Callable[[Path, Log], Any], after: int) -> Any:
    with logging(folder, after) as log, pytest.raises(Killed):
        train(folder, log)
    # A new process has other random numbers.
    torch.manual_seed(99)
    return uninterrupted(folder, train)


@pytest.mark.parametrize("after", [1, 3])
def test_an_autoencoder_killed_and_resumed_is_the_uninterrupted_one(tmp_path: Path, after: int):
    def train(folder: Path, log: Log) -> Any:
        return training.train_autoencoder(folder, log, AUTOENCODER)

    whole = uninterrupted(tmp_path / "whole", train)
    resumed = killed_then_resumed(tmp_path / "parts", train, after)
    assert_equal(whole, resumed)
    assert whole.config.latents_mean == resumed.config.latents_mean
    assert whole.config.latents_std == resumed.config.latents_std
    assert min(whole.config.latents_std) > 0


@pytest.mark.parametrize("after", [1, 3])
def test_a_denoiser_killed_and_resumed_is_the_uninterrupted_one(
    tmp_path: Path, autoencoder: AutoencoderKLWan, after: int
):
    def train(folder: Path, log: Log) -> Any:
        return training.train_denoiser(folder, autoencoder, log, DENOISER)

    whole = uninterrupted(tmp_path / "whole", train)
    resumed = killed_then_resumed(tmp_path / "parts", train, after)
    assert_equal(whole, resumed)
    assert resumed.proj_out.weight.abs().max() > 0, "the last layer starts at zero"
    saved = [torch.load(tmp_path / name / "denoiser.pt", weights_only=True) for name in ("whole", "parts")]
    assert saved[0]["step"] == saved[1]["step"] == 4
    assert all(torch.equal(value, saved[1]["model"][name]) for name, value in saved[0]["model"].items())


def test_a_finished_run_trains_no_further(tmp_path: Path, autoencoder: AutoencoderKLWan):
    with logging(tmp_path) as log:
        first = training.train_denoiser(tmp_path, autoencoder, log, DENOISER[:1])
    with logging(tmp_path, kill_after=0) as log:
        again = training.train_denoiser(tmp_path, autoencoder, log, DENOISER[:1])
    assert_equal(first, again)
    assert not list(tmp_path.glob("*.part"))


def test_the_log_and_the_scenes_of_a_run(
    tmp_path: Path,
    autoencoder: AutoencoderKLWan,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    drawn: list[clips.Scene] = []
    sample = clips.sample_clips

    def watch(scenes: list[clips.Scene], frames: int, generator: torch.Generator) -> torch.Tensor:
        drawn.extend(scenes)
        return sample(scenes, frames, generator)

    monkeypatch.setattr(clips, "sample_clips", watch)
    with logging(tmp_path) as log:
        training.train_denoiser(tmp_path, autoencoder, log, DENOISER)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [("frames", 0), ("frames", 1), ("short", 0), ("short", 1)]
    assert all(0 < row["loss"] < 10 and row["seconds"] >= 0 for row in rows)
    assert "frames 1/2 loss" in capsys.readouterr().out
    assert len(drawn) == 2 * 2 + 2 * 1
    assert set(drawn) <= set(clips.training_scenes())
