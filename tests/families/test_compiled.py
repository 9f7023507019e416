"""torch.compile beside UniCP: blocks before and after `enable`, and a transformer compiled as a whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests import tiny_models
from tests.families.helpers import EXACT, check, denoise
from unicp.errors import AttachmentError, UnsupportedModelError
from unicp.session import enable
from unicp.settings import preset

SLICED = preset("paper", tolerance=0.5)


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
    for span, slicing in (("block", {}), ("unit", {}), ("model", SLICED.slicing)):
        asked = preset("balanced", span=span, **({"slicing": slicing} if slicing else {}))
        with pytest.raises(
            UnsupportedModelError,
            match='compiled blocks, inside which nothing can be served; do: use span "model" without',
        ):
            enable(model, asked)
    later: Any = tiny_models.build(name)
    with enable(later, EXACT):
        later.compile_repeated_blocks(backend=graphs, fullgraph=True)
        assert torch.equal(denoise(later, name), plain)
    assert graphs.made == compiled, "blocks compiled after `enable` were compiled one by one"
    what = "`compile_repeated_blocks`, before or after `enable`"
    note(what, name, "works with span model: no graph break, no recompilation; other spans and slicing are refused")


@pytest.mark.slow
@pytest.mark.parametrize("span", ["block", "unit"])
def test_blocks_compiled_under_a_span_inside_them(span, note):
    graphs = Graphs()
    model: Any = tiny_models.build("wan")
    plain = denoise(model, "wan", steps=4)
    with enable(model, preset("balanced", span=span, tolerance=0.5, store_factor=64.0)) as session:
        model.compile_repeated_blocks(backend=graphs, fullgraph=True)
        output = denoise(model, "wan", steps=4)
    assert graphs.made == 1 and torch.equal(output, plain)
    for line in (f"no {span} was reached", "nothing inside them is served, sliced or kept"):
        assert any(line in warning for warning in session.trace.warnings)
    what = "`compile_repeated_blocks` after `enable` with span block or unit"
    note(what, "wan", "computed, with a warning: nothing is served; no graph break, no recompilation")


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
