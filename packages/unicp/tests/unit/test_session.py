"""The public verbs on real (tiny) transformers."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

import unicp
from tests import tiny_models
from tests.fake_models import FakeTransformer, noise
from unicp.context import Action
from unicp.errors import AttachmentError, SettingsError, UnsupportedModelError
from unicp.numerics.operation_counts import OperationCounter
from unicp.records import load_trace
from unicp.session import Session, disable, enable
from unicp.settings import Settings, preset

STEPS = 7
GENEROUS = preset("balanced", tolerance=0.5, weighting="uniform")


class Pipe:
    transformer: Any = None
    transformer_2: Any = None

    def __init__(self, **transformers: Any):
        self.scheduler: Any = FlowMatchEulerDiscreteScheduler()
        for name, transformer in transformers.items():
            setattr(self, name, transformer)


class Loop:
    """A denoising run that is advanced one step at a time."""

    def __init__(self, transformer: nn.Module, name: str, seed: int = 0):
        self.transformer, self.name = transformer, name
        self.texts = [tiny_models.inputs(name, seed=seed + branch) for branch in (0, 1)]
        self.sample = self.texts[0]["hidden_states"]
        self.done = 0

    @torch.no_grad()
    def step(self) -> None:
        timestep = torch.tensor([1000.0 * (1 - self.done / STEPS)])
        changes = {"hidden_states": self.sample, "timestep": timestep}
        outputs = [self.transformer(**(text | changes))[0] for text in self.texts]
        if self.name == "latte":
            outputs = [output[:, : tiny_models.CHANNELS] for output in outputs]
        self.sample = self.sample - (outputs[1] + 3 * (outputs[0] - outputs[1])) / STEPS
        self.done += 1

    def run(self) -> Tensor:
        while self.done < STEPS:
            self.step()
        return self.sample


def served(session: Session) -> int:
    return sum(Action(entry.action).skipped for entry in session.trace.entries)


@pytest.mark.parametrize("level", ["model", "block", "unit"])
@pytest.mark.parametrize("names", [("wan", "wan"), ("latte", "cogvideox")])
def test_two_sessions_side_by_side_do_not_disturb_each_other(names, level):
    settings = Settings(**GENEROUS.__dict__ | {"level": level, "store_factor": 64.0})
    alone = []
    for seed, name in enumerate(names):
        with enable(transformer := tiny_models.build(name), settings):
            alone.append(Loop(transformer, name, seed).run())
    loops = [Loop(tiny_models.build(name), name, seed) for seed, name in enumerate(names)]
    with enable(loops[0].transformer, settings) as first, enable(loops[1].transformer, settings) as second:
        for _ in range(STEPS):
            for loop in loops:
                loop.step()
    assert served(first) and served(second)
    for loop, expected in zip(loops, alone, strict=True):
        assert torch.equal(loop.sample, expected)


@pytest.mark.parametrize("stops_early", [False, True])
def test_one_model_used_by_two_threads_in_turn_gives_fresh_runs(stops_early):
    transformer = tiny_models.wan()
    with enable(transformer, GENEROUS):
        expected = Loop(transformer, "wan").run()
    found: list[Tensor] = []
    with enable(transformer, GENEROUS) as session:
        if stops_early:
            # A run given up half-way, without an exception.
            first = Loop(transformer, "wan", seed=5)
            for _ in range(4):
                first.step()
        for _ in range(2):
            thread = threading.Thread(target=lambda: found.append(Loop(transformer, "wan").run()))
            thread.start()
            thread.join()
    assert served(session)
    assert [torch.equal(one, expected) for one in found] == [True, True]


def test_threads_at_the_same_time_wait_for_each_other_and_compute_what_is_right():
    transformer = tiny_models.wan()
    expected = Loop(transformer, "wan").run()
    found: list[Tensor] = []
    with enable(transformer, preset("balanced", tolerance=0.0)):
        threads = [
            threading.Thread(target=lambda: found.append(Loop(transformer, "wan").run()), daemon=True) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert [torch.equal(one, expected) for one in found] == [True, True]


def test_enable_and_disable_without_with():
    pipe = Pipe(transformer=tiny_models.wan())
    session = unicp.enable(pipe, "fast")
    assert isinstance(session, unicp.Session)
    assert (session.trace.preset, session.settings) == ("fast", preset("fast"))
    unicp.disable(pipe)
    with pytest.raises(AttachmentError, match="not enabled"):
        unicp.disable(pipe)


def test_disabling_by_the_transformer_what_was_enabled_on_the_pipeline():
    pipe = Pipe(transformer=tiny_models.wan())
    enable(pipe)
    disable(pipe.transformer)
    with enable(pipe):
        pass


def test_disabling_what_was_never_enabled_is_an_error():
    with pytest.raises(AttachmentError, match="asked: .*; found: .*; do: "):
        disable(tiny_models.wan())


def test_leaving_by_an_exception_disables():
    transformer = tiny_models.wan()
    with pytest.raises(KeyError), enable(transformer):
        raise KeyError
    with pytest.raises(AttachmentError):
        disable(transformer)


@pytest.mark.parametrize("bad", [None, 0.1, {"tolerance": 0.1}])
def test_settings_of_another_type_are_refused(bad):
    with pytest.raises(SettingsError, match=type(bad).__name__):
        enable(tiny_models.wan(), bad)


def test_an_unknown_preset_is_refused_before_anything_is_touched():
    transformer = tiny_models.wan()
    with pytest.raises(SettingsError, match="turbo"):
        enable(transformer, "turbo")
    with enable(transformer):
        pass


@pytest.mark.parametrize("target", [nn.Linear(2, 2), Pipe(transformer=nn.Linear(2, 2)), Pipe(), object(), None])
def test_a_model_that_is_not_known_is_refused_in_one_line(target):
    with pytest.raises(UnsupportedModelError, match="asked: .*; found: .*; do: ") as caught:
        enable(target)
    assert "\n" not in str(caught.value)


def test_a_stack_that_cannot_be_served_as_one_is_refused_with_the_reason():
    with pytest.raises(UnsupportedModelError, match="alternate"):
        enable(tiny_models.latte(), preset("balanced", level="stack"))


def test_a_width_above_the_head_is_refused():
    with pytest.raises(SettingsError, match="head"):
        enable(tiny_models.wan(), preset("balanced", slicing=unicp.Slicing(widths=(64,))))


def test_it_is_said_when_nothing_was_skipped(caplog):
    transformer = tiny_models.wan()
    with caplog.at_level(logging.WARNING, "unicp"), enable(transformer, preset("balanced", first=99)):
        Loop(transformer, "wan").run()
    assert [record.message for record in caplog.records if "skipped nothing" in record.message]


@pytest.mark.parametrize("settings", [GENEROUS, preset("balanced", tolerance=0.0)])
def test_nothing_is_said_when_something_was_skipped_or_nothing_was_to_be(caplog, settings):
    transformer = tiny_models.wan()
    with caplog.at_level(logging.WARNING, "unicp"), enable(transformer, settings):
        Loop(transformer, "wan").run()
    assert not caplog.records


def test_nothing_is_said_about_a_model_that_was_never_called(caplog):
    with caplog.at_level(logging.WARNING, "unicp"), enable(tiny_models.wan()):
        pass
    assert not caplog.records


def test_the_summary_counts_what_was_done_and_prints_as_a_table(capsys):
    transformer = tiny_models.wan()
    with enable(transformer, GENEROUS) as session:
        Loop(transformer, "wan").run()
    summary = session.summary()
    assert isinstance(summary, unicp.Summary)
    assert (summary.runs, summary.calls) == (1, 2 * STEPS)
    assert summary.actions["forecast"].calls == served(session) > 0
    assert summary.operations < summary.full_operations
    print(summary)
    assert "forecast" in capsys.readouterr().out


def test_the_summary_tells_of_outputs_that_were_not_finite():
    transformer = FakeTransformer(lambda sample, timestep, hidden: sample * float("nan"))
    with enable(transformer, GENEROUS) as session:
        for step in range(6):
            transformer(noise(0, 1, 4, 2), torch.tensor([1000.0 - step]), return_dict=False)
    assert session.summary().non_finite > 0
    assert len(session.summary().warnings) == 1


def test_a_trace_survives_saving_and_loading(tmp_path):
    transformer = tiny_models.latte()
    with enable(transformer, preset("balanced", level="unit", tolerance=0.5, store_factor=64.0)) as session:
        Loop(transformer, "latte").run()
    session.save_trace(tmp_path / "trace.json")
    assert load_trace(tmp_path / "trace.json") == session.trace
    assert Settings.from_dict(load_trace(tmp_path / "trace.json").settings) == session.settings


LEVELS = ["model", "stack", "block", "unit"]


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("level", LEVELS)
def test_full_operations_of_a_run_are_those_of_the_plain_model(level, kept):
    settings = preset("balanced", tolerance=0.5, level=level, store_factor=64.0, text_keys_values=kept)
    transformer = tiny_models.wan()
    with OperationCounter() as plain, torch.no_grad():
        transformer(**tiny_models.inputs("wan"))
    with enable(transformer, settings) as session:
        Loop(transformer, "wan").run()
    entries = session.trace.entries
    assert sum(entry.full_operations for entry in entries) == 2 * STEPS * plain.total
    assert all(entry.operations <= entry.full_operations for entry in entries)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("name", ["wan", "latte"])
@pytest.mark.parametrize("level", ["model", "block", "unit"])
def test_operations_written_down_are_those_really_executed(name, level, kept):
    roles = ("self", "spatial", "temporal", "cross", "feed_forward")
    settings = preset("balanced", tolerance=0.5, level=level, roles=roles, store_factor=64.0, text_keys_values=kept)
    transformer = tiny_models.build(name)
    with enable(transformer, settings) as session, OperationCounter() as executed:
        Loop(transformer, name).run()
    assert served(session)
    assert sum(entry.operations for entry in session.trace.entries) == executed.total


def test_what_stored_text_keys_save_is_taken_off_the_unit_that_would_have_projected_them():
    settings = preset("balanced", tolerance=0.0, level="unit", store_factor=64.0, text_keys_values=True)
    transformer = tiny_models.wan()
    with enable(transformer, settings) as session:
        Loop(transformer, "wan").run()
    for entry in session.trace.entries:
        saves = entry.point.endswith("attn2") and entry.step > 0
        assert (entry.operations < entry.full_operations) is saves, entry


@pytest.mark.parametrize("name", ["wan", "cogvideox"])
@pytest.mark.parametrize("level", ["model", "unit"])
def test_a_sliced_run_writes_down_fewer_operations_at_its_width(level, name):
    slicing = unicp.Slicing(widths=(8,), tolerance=9.0, min_saving=-1e6)
    transformer = tiny_models.build(name)
    settings = preset("balanced", tolerance=1e-9, level=level, store_factor=64.0, slicing=slicing)
    with enable(transformer, settings) as session:
        Loop(transformer, name).run()
    assert session.trace.counts["not_sliced"] == 0
    sliced = [entry for entry in session.trace.entries if entry.action == "slice"]
    assert sliced
    assert all(entry.width == 8 for entry in sliced)


@pytest.mark.parametrize("level", ["model", "unit"])
def test_attention_that_is_not_caught_is_said_to_run_at_full_width(level, monkeypatch):
    def own(query, key, value, **_):
        return torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, -1) @ value

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", own)
    transformer = tiny_models.cogvideox()
    slicing = unicp.Slicing(widths=(8,), tolerance=9.0, min_saving=0.0)
    settings = preset("balanced", tolerance=1e-9, level=level, store_factor=64.0, slicing=slicing)
    with enable(transformer, settings) as session:
        Loop(transformer, "cogvideox").run()
    assert any("cannot be sliced" in warning for warning in session.trace.warnings)
    assert session.trace.counts["not_sliced"] > 0
    assert all(entry.action != "slice" for entry in session.trace.entries)


def test_both_transformers_of_a_pipeline_are_hooked_and_disabled():
    pipe = Pipe(transformer=tiny_models.wan(), transformer_2=tiny_models.wan())
    plain = Loop(pipe.transformer, "wan").run()
    with enable(pipe, GENEROUS) as session:
        first = Loop(pipe.transformer, "wan").run()
        count = len(session.trace.entries)
        second = Loop(pipe.transformer_2, "wan").run()
        assert len(session.trace.entries) == 2 * count
        assert torch.equal(first, second) and not torch.equal(first, plain)
    for transformer in (pipe.transformer, pipe.transformer_2):
        assert torch.equal(Loop(transformer, "wan").run(), plain)


def test_a_scheduler_put_in_after_enabling_is_the_one_that_counts():
    pipe = Pipe(transformer=tiny_models.wan())
    with enable(pipe, GENEROUS) as session:
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
        tiny_models.denoise(pipe.transformer, "wan", steps=4, scheduler=pipe.scheduler)
    sigmas = [entry.sigma for entry in session.trace.entries if entry.branch == "call0"]
    assert sigmas == pytest.approx(pipe.scheduler.sigmas[:-1].tolist())


def test_a_bare_transformer_may_be_given_its_scheduler():
    transformer, scheduler = tiny_models.wan(), FlowMatchEulerDiscreteScheduler()
    with enable(
        transformer,
        preset("balanced", policy="error_window", tolerance=0.5, weighting="uniform", last=1),
        scheduler=scheduler,
    ) as session:
        tiny_models.denoise(transformer, "wan", steps=STEPS, scheduler=scheduler)
    assert all(entry.sigma is not None for entry in session.trace.entries)
    last = [entry for entry in session.trace.entries if entry.step == STEPS - 1]
    assert [entry.action for entry in last] == ["full", "full"]
    assert last[0].reason == "last"


@pytest.mark.parametrize("name", ["wan", "latte"])
@pytest.mark.parametrize("level", ["unit", "block"])
@pytest.mark.parametrize("budget", [0, 5_000, 20_000, 40_000])
def test_a_tight_byte_budget_takes_coarser_levels_and_is_never_exceeded(name, level, budget):
    settings = preset("balanced", level=level, tolerance=0.5, store_bytes=budget, text_keys_values=False)
    transformer = tiny_models.build(name)
    with enable(transformer, settings) as session:
        for _ in range(2):
            output = Loop(transformer, name).run()
    assert torch.isfinite(output).all()
    assert max(entry.stored_bytes for entry in session.trace.entries) <= budget
    assert session.trace.counts["budget"] >= 1
    assert "gives way to" in session.trace.warnings[0]
    # Enough for two points of two latents in two branches, the whole model's.
    assert served(session) > 0 or budget < 40_000


def test_half_precision_stores_take_half_the_bytes():
    held = {}
    for dtype in ("same", "bfloat16"):
        transformer = tiny_models.wan()
        settings = preset("balanced", tolerance=0.5, store_dtype=dtype, text_keys_values=False)
        with enable(transformer, settings) as session:
            Loop(transformer, "wan").run()
        assert served(session)
        held[dtype] = max(entry.stored_bytes for entry in session.trace.entries)
    assert held["bfloat16"] * 2 == held["same"]


def test_a_model_that_was_compiled_as_a_whole_is_refused_and_one_with_compiled_blocks_is_not_counted():
    class Compiled(nn.Module):
        """Shaped like what torch.compile gives, which takes seconds to import."""

        def __init__(self, module: nn.Module):
            super().__init__()
            self._orig_mod = module

    transformer = tiny_models.wan()
    with pytest.raises(AttachmentError, match="compiled as a whole.*compile its blocks"):
        enable(Compiled(transformer), GENEROUS)
    for block in transformer.blocks:
        block._compiled_call_impl = block._call_impl
    with enable(transformer, GENEROUS) as session:
        Loop(transformer, "wan").run()
    assert any("compiled" in warning for warning in session.trace.warnings)
    assert served(session)
    assert {entry.full_operations for entry in session.trace.entries} == {0}


def test_a_pipeline_that_is_gone_takes_its_model_with_it():
    pipe = Pipe(transformer=tiny_models.wan())
    model = weakref.ref(pipe.transformer)
    enable(pipe)
    del pipe
    gc.collect()
    assert model() is None


def test_anything_with_a_transformer_and_a_scheduler_will_do_for_a_pipeline():
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(STEPS)
    transformer = tiny_models.wan()
    with enable(SimpleNamespace(transformer=transformer, scheduler=scheduler), GENEROUS) as session, torch.no_grad():
        for timestep in scheduler.timesteps:
            transformer(**tiny_models.inputs("wan") | {"timestep": timestep.expand(1)})
    assert all(entry.sigma is not None for entry in session.trace.entries)
