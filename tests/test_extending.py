"""The programs in docs/extending.md, run as a third party's: from files of their own, outside the packages."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import unicp
from tests import tiny_models
from tests.golden.paths import loop

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"
PROGRAMS = {
    match[1]: match[2] for match in re.finditer(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
}


pytestmark = pytest.mark.usefixtures("registries_as_before")


def load(name: str, folder: Path) -> Any:
    """Imports a program of the page from a file of its own."""
    path = folder / name
    path.write_text(PROGRAMS[name], encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.pop(path.stem, None)
    spec.loader.exec_module(module)
    return module


def full_steps(session: unicp.Session, branch: str = "call0") -> list[int]:
    """The steps that the model was computed in."""
    entries = [entry for entry in session.trace.entries if entry.point == "model" and entry.branch == branch]
    return [entry.step for entry in entries if entry.action == "full"]


def lines(name: str) -> int:
    """Lines of a program that are not empty."""
    return sum(bool(line.strip()) for line in PROGRAMS[name].splitlines())


def test_the_page_has_the_programs_and_they_are_short():
    assert set(PROGRAMS) == {"tea_rule.py", "pooled_keys.py", "mean_of_two.py"}
    assert lines("tea_rule.py") < 40 and lines("pooled_keys.py") < 80


def tea(tolerance: float, **changes: Any) -> unicp.Settings:
    """Settings with the rule of the page."""
    return unicp.preset("balanced", policy="tea", tolerance=tolerance, first=2, last=1, **changes)


def modulated(model: Any, run: Any) -> list[list[torch.Tensor]]:
    """What enters the first attention in a plain run, by step and branch."""
    seen: list[torch.Tensor] = []

    def hook(module: Any, args: Any, kwargs: Any) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"]).clone())

    handle = model.blocks[0].attn1.register_forward_pre_hook(hook, with_kwargs=True)
    run(model)
    handle.remove()
    return [seen[at : at + 2] for at in range(0, len(seen), 2)]


def test_the_tea_rule_skips_by_what_enters_the_first_attention(tmp_path: Path):
    load("tea_rule.py", tmp_path)
    model = tiny_models.wan()
    plain = loop(model)
    by_step = modulated(model, loop)
    with unicp.enable(model, tea(1e9)) as session:
        loop(model)
    assert full_steps(session) == [0, 1, 11]
    # The totals in the trace are the changes that a plain run has, until something is skipped for the first time.
    change = [float((b[0] - a[0]).norm() / a[0].norm()) for a, b in zip(by_step, by_step[1:])]
    first = next(entry for entry in session.trace.entries if entry.branch == "call0" and entry.step == 2)
    assert first.predicted == pytest.approx([change[1]], rel=0.05)
    with unicp.enable(model, tea(change[1] * 1.5)) as session:
        some = loop(model)
    assert 2 not in full_steps(session) and len(full_steps(session)) > 4
    assert not torch.equal(some, plain)
    with unicp.enable(model, tea(0.0)) as session:
        none = loop(model)
    assert full_steps(session) == list(range(12)) and torch.equal(none, plain)
    assert torch.equal(loop(model), plain)


def test_all_branches_of_a_step_do_the_same_under_a_rule_of_ones_own(tmp_path: Path):
    load("tea_rule.py", tmp_path)
    model = tiny_models.wan()
    with unicp.enable(model, tea(0.3)) as session:
        loop(model)
    first, second = full_steps(session), full_steps(session, "call1")
    assert set(first) <= set(second) and 3 < len(first) < 12


def test_what_runs_before_the_signal_counts_as_done(tmp_path: Path):
    load("tea_rule.py", tmp_path)
    model = tiny_models.wan()
    with unicp.enable(model, tea(1e9)) as session:
        loop(model)
    skipped = [entry for entry in session.trace.entries if entry.action != "full"]
    assert skipped and all(0 < entry.operations < 0.5 * entry.full_operations for entry in skipped)


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"level": "block"}, unicp.UniCPError, "model"),
        ({"policy": "nobody's"}, unicp.UniCPError, "error_window"),
        ({"predictor": "nobody's"}, unicp.UniCPError, "line"),
        ({"slicing": unicp.Slicing(widths=(8,), reducer="nobody's")}, unicp.UniCPError, "pca_slices"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_enabled(tmp_path: Path, settings: Any, error: type, says: str):
    load("tea_rule.py", tmp_path)
    model = tiny_models.wan()
    with pytest.raises(error, match=says):
        unicp.enable(model, unicp.preset("balanced", **{"policy": "tea", **settings}))
    assert torch.equal(loop(model), loop(tiny_models.wan()))


def test_the_signal_is_refused_inside_compiled_blocks(tmp_path: Path):
    load("tea_rule.py", tmp_path)
    model = tiny_models.wan()
    model.blocks[0].compile()
    with pytest.raises(unicp.UniCPError, match="compiled"):
        unicp.enable(model, tea(1.0))


def test_a_name_is_taken_once():
    unicp.register_policy("mine", unicp.CachePolicy)  # type: ignore[arg-type]
    with pytest.raises(unicp.UniCPError, match="replace=True"):
        unicp.register_policy("mine", unicp.CachePolicy)  # type: ignore[arg-type]
    with pytest.raises(unicp.UniCPError, match="cannot be called"):
        unicp.register_predictor("mine", 3)  # type: ignore[arg-type]
    with pytest.raises(unicp.UniCPError, match="no name"):
        unicp.register_reducer("", unicp.AttentionReducer)


def pooled(width: float, tolerance: float = 10.0) -> unicp.Settings:
    """Nothing is skipped, and attention is pooled."""
    slicing = unicp.Slicing(widths=(width,), tolerance=tolerance, reducer="pooled keys", min_saving=-10.0)
    return unicp.preset("balanced", tolerance=1e-9, slicing=slicing)


def test_pooled_keys_attend_to_means_of_neighbours(tmp_path: Path):
    module = load("pooled_keys.py", tmp_path)
    from unicp.reducers.attention_call import plain_call

    query, key, value = (torch.randn(2, 3, tokens, 16, generator=torch.manual_seed(0)) for tokens in (5, 8, 8))
    call = plain_call(query, key, value)
    reduced = module.PooledKeys(unicp.Slicing()).reduce(call, None, (8,), None)
    by_hand = torch.nn.functional.scaled_dot_product_attention(
        query, (key[:, :, ::2] + key[:, :, 1::2]) / 2, (value[:, :, ::2] + value[:, :, 1::2]) / 2
    )
    torch.testing.assert_close(reduced.attend(8), by_hand)
    torch.testing.assert_close(reduced.attend(16), call.full())
    assert reduced.errors([16]).max() < 1e-6 < reduced.errors([8]).min()
    # Where neighbours are alike nothing is missed.
    twins = plain_call(query, key.repeat_interleave(2, dim=2), value.repeat_interleave(2, dim=2))
    assert module.PooledKeys(unicp.Slicing()).reduce(twins, None, (8,), None).errors([8]).max() < 1e-6


def test_pooled_keys_run_by_name_and_their_error_is_bounded(tmp_path: Path):
    load("pooled_keys.py", tmp_path)
    model = tiny_models.wan()
    plain = loop(model, steps=3)
    with unicp.enable(model, pooled(0.5)) as session:
        output = loop(model, steps=3)
    sliced = [entry for entry in session.trace.entries if entry.action == "slice"]
    assert sliced and {entry.width for entry in sliced} == {8} and not torch.equal(output, plain)
    assert all(entry.measured and entry.measured[0] <= entry.tolerance for entry in sliced)
    with unicp.enable(model, pooled(0.5, tolerance=0.0)) as session:
        output = loop(model, steps=3)
    assert torch.equal(output, plain)
    assert not [entry for entry in session.trace.entries if entry.action == "slice"]


def test_a_predictor_fills_in_by_name(tmp_path: Path):
    load("mean_of_two.py", tmp_path)
    model = tiny_models.wan()
    outputs: list[torch.Tensor] = []
    settings = unicp.preset("balanced", predictor="mean of two", full_steps=(0, 1, 2, 3, 5), tolerance=1.0)
    with unicp.enable(model, settings) as session:
        original = model._diffusers_hook.hooks["unicp_model"].engine.call
        engine = model._diffusers_hook.hooks["unicp_model"].engine

        def call(*args: Any) -> Any:
            output = original(*args)
            outputs.append(output[0].clone())
            return output

        engine.call = call
        loop(model, steps=6, branches=(None,))
    assert full_steps(session) == [0, 1, 2, 3, 5]
    torch.testing.assert_close(outputs[4], (outputs[2] + outputs[3]) / 2)
