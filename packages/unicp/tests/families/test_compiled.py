"""torch.compile beside UniCP: blocks before and after `enable`, and a transformer compiled as a whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests import tiny_models
from tests.families.helpers import EXACT, check, denoise
from unicp.errors import AttachmentError, UnsupportedModelError
from unicp.models.finder import map_model
from unicp.session import enable
from unicp.settings import Slicing, preset

FULL_WIDTH = Slicing(widths=(16,), min_saving=-1e6, tolerance=1e6)
HALF = Slicing(widths=(8,), min_saving=-1e6, tolerance=1e6)
COMPUTED = preset("balanced", first=99)  # nothing is served


class Graphs:
    """A backend that runs graphs as they are and counts them."""

    def __init__(self) -> None:
        self.made = 0
        torch._dynamo.reset()

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.made += 1
        return graph.forward


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wan", "flux"])
def test_compiled_blocks(name, note):
    graphs = Graphs()
    model: Any = tiny_models.build(name)
    # fullgraph: a graph break would raise.
    model.compile_repeated_blocks(backend=graphs, fullgraph=True)
    plain = denoise(model, name)
    compiled = graphs.made
    check(model, name)
    assert graphs.made == compiled > 0, "UniCP made blocks compile again"
    for level in ("block", "unit"):
        with pytest.raises(UnsupportedModelError, match='compiled blocks.*use level "model"'):
            enable(model, preset("balanced", level=level))
    later: Any = tiny_models.build(name)
    with enable(later, EXACT):
        later.compile_repeated_blocks(backend=graphs, fullgraph=True)
        assert torch.equal(denoise(later, name), plain)
    assert graphs.made == compiled, "blocks compiled after `enable` were compiled one by one"
    what = "`compile_repeated_blocks`, before or after `enable`"
    note(what, name, "works with level model: no graph break, no recompilation; other levels are refused")


def widths_of(session: Any) -> set[tuple[str, int | None]]:
    return {(entry.action, entry.width) for entry in session.trace.entries if entry.point != "model"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wan", "flux", "ltx"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_slices_in_compiled_blocks(name, backend, note):
    torch._dynamo.reset()
    model: Any = tiny_models.build(name)
    model.compile_repeated_blocks(backend=backend, fullgraph=True)
    plain = denoise(model, name)
    for exact in (EXACT, preset("balanced", tolerance=0.0, slicing=HALF)):
        with enable(model, exact):
            assert torch.equal(denoise(model, name), plain)
    before = dict(model.named_modules()), set(vars(map_model(model).sliced_units[0].module))
    with enable(model, replace(COMPUTED, slicing=FULL_WIDTH)) as session:
        torch.testing.assert_close(denoise(model, name), plain, rtol=1e-3, atol=1e-4)
    assert widths_of(session) == {("slice", 16)}
    units = {entry.point for entry in session.trace.entries} - {"model"}
    assert units == {unit.name for unit in map_model(model).sliced_units}
    assert not any("cannot be sliced" in warning for warning in session.trace.warnings)
    with enable(model, replace(COMPUTED, slicing=HALF)) as session:
        sliced = denoise(model, name)
    assert widths_of(session) == {("slice", 8)} and not torch.equal(sliced, plain)
    eager: Any = tiny_models.build(name)
    with enable(eager, replace(COMPUTED, slicing=HALF)):
        # The first call of a model that is not compiled counts operations, and is not sliced.
        denoise(eager, name)
        torch.testing.assert_close(denoise(eager, name), sliced, rtol=1e-3, atol=1e-4)
    assert torch.equal(denoise(model, name), plain)
    assert (dict(model.named_modules()), set(vars(map_model(model).sliced_units[0].module))) == before
    note("slices in compiled blocks", name, "works with level model: one graph more for each kind of block, no break")


@pytest.mark.slow
def test_slices_cost_one_graph_for_each_kind_of_block_and_none_after_them():
    graphs = Graphs()
    model: Any = tiny_models.build("wan")
    model.compile_repeated_blocks(backend=graphs, fullgraph=True)
    plain = denoise(model, "wan", steps=3)
    assert len(map_model(model).sliced_units) > 1
    for _ in range(2):
        with enable(model, replace(COMPUTED, slicing=HALF)):
            denoise(model, "wan", steps=3)
        assert torch.equal(denoise(model, "wan", steps=3), plain)
    assert graphs.made == 2


@pytest.mark.slow
def test_blocks_compiled_while_slices_are_on_go_on_being_sliced():
    graphs = Graphs()
    model: Any = tiny_models.build("wan")
    with enable(model, replace(COMPUTED, slicing=HALF)) as session:
        before = denoise(model, "wan", steps=3)
        before = denoise(model, "wan", steps=3)
        session.trace.entries.clear()
        model.compile_repeated_blocks(backend=graphs, fullgraph=True)
        torch.testing.assert_close(denoise(model, "wan", steps=3), before, rtol=1e-3, atol=1e-4)
    assert widths_of(session) == {("slice", 8)} and graphs.made == 1


@pytest.mark.slow
def test_an_attention_module_that_is_compiled_alone_is_sliced_and_one_without_a_plain_call_is_told():
    torch._dynamo.reset()
    model: Any = tiny_models.build("wan")
    plain = denoise(model, "wan", steps=3)
    first, second = (unit.module for unit in map_model(model).sliced_units)
    first.compile(backend="eager", fullgraph=True)
    second.compile(backend="eager")
    second.processor = lambda attention, hidden, *rest: hidden
    with enable(model, replace(COMPUTED, slicing=FULL_WIDTH)) as session:
        denoise(model, "wan", steps=3)
    assert {entry.point for entry in session.trace.entries} == {"model", "blocks.0.attn1"}
    assert any("blocks.1.attn1 cannot be sliced" in warning for warning in session.trace.warnings)
    assert not torch.equal(denoise(model, "wan", steps=3), plain)  # the second is still without attention


@pytest.mark.slow
@pytest.mark.parametrize("level", ["block", "unit"])
def test_blocks_compiled_under_a_level_inside_them(level, note):
    graphs = Graphs()
    model: Any = tiny_models.build("wan")
    plain = denoise(model, "wan", steps=4)
    with enable(model, preset("balanced", level=level, tolerance=0.5, store_factor=64.0)) as session:
        model.compile_repeated_blocks(backend=graphs, fullgraph=True)
        output = denoise(model, "wan", steps=4)
    assert graphs.made == 1 and torch.equal(output, plain)
    for line in (f"no {level} was reached", "nothing inside them"):
        assert any(line in warning for warning in session.trace.warnings)
    what = "`compile_repeated_blocks` after `enable` with level block or unit"
    note(what, "wan", "computed, with a warning: nothing is skipped; no graph break, no recompilation")


@pytest.mark.parametrize("how", ["torch.compile", "transformer.compile"])
def test_a_transformer_compiled_as_a_whole(how, note):
    graphs = Graphs()
    model: Any = tiny_models.build("wan")
    plain = denoise(model, "wan", steps=2)
    compiled = model
    session = enable(model)
    if how == "torch.compile":
        compiled = torch.compile(model, backend=graphs)
    else:
        model.compile(backend=graphs)
    line = "found: a transformer that was compiled as a whole; do: compile its blocks instead"
    with pytest.raises(AttachmentError, match=f"asked: to use UniCP; {line}"):
        denoise(compiled, "wan", steps=2)
    # Whatever the compiler had seen of the hooks is gone with them.
    session.disable()
    with pytest.raises(AttachmentError, match=f"asked: to enable UniCP; {line}"):
        enable(compiled)
    model._compiled_call_impl = None
    assert torch.equal(denoise(model, "wan", steps=2), plain)
    note("a transformer compiled as a whole, before or after `enable`", "wan", "refused: compile its blocks instead")
