from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from unicp.numerics.operation_counts import (
    OperationCounter,
    attention_operations,
    convolution_operations,
    linear_operations,
    sliced_attention_operations,
)
from unicp.reducers.bases import fit_bases
from unicp.reducers.pca_slices import sliced_attention


def counted_by_torch(function, *args) -> int:
    # torch has no count for its fused attention kernel of the CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        function(*args)
    return counter.get_total_flops()


def counted(function, *args) -> int:
    with OperationCounter() as counter:
        function(*args)
    return counter.total


def test_formulas_by_hand():
    assert linear_operations(rows=3, inputs=4, outputs=5) == 120
    assert attention_operations(batch=2, heads=3, queries=5, keys=7, key_width=4, value_width=6) == 2 * 6 * 35 * 10
    assert convolution_operations(results=10, inputs=3, taps=27) == 1620
    # Projection of 5 queries and of 7 keys and values, lift of 5 results, each 8 x 2; attention 5 x 7 x (2 + 2).
    assert sliced_attention_operations(1, 1, 5, 7, width=2, head_width=8) == 2 * (24 * 16 + 35 * 4)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(6, 5), (2, 3, 6)),
        (nn.Linear(6, 5, bias=False), (6,)),
        (nn.Conv1d(4, 6, 3, groups=2), (2, 4, 9)),
        (nn.Conv2d(3, 5, (3, 2), stride=2), (1, 3, 8, 9)),
        (nn.Conv3d(2, 3, 3, padding="same"), (1, 2, 4, 5, 6)),
    ],
)
def test_modules_count_as_in_torch(module: nn.Module, shape: tuple[int, ...]):
    x = torch.ones(shape)
    assert counted(module, x) == counted_by_torch(module, x) > 0


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (torch.matmul, ((2, 3, 4), (4, 5))),
        (lambda a, b: a @ b, ((2, 1, 3, 4), (5, 4, 6))),
        (lambda a, b: a.matmul(b), ((3, 4), (4, 2))),
        (torch.mm, ((3, 4), (4, 2))),
        (torch.bmm, ((2, 3, 4), (2, 4, 2))),
        (lambda a, b: a.bmm(b), ((2, 3, 4), (2, 4, 2))),
        (torch.addmm, ((2,), (3, 4), (4, 2))),
        (torch.baddbmm, ((2, 3, 2), (2, 3, 4), (2, 4, 2))),
        (F.scaled_dot_product_attention, ((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8))),
        (F.scaled_dot_product_attention, ((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 4))),
    ],
)
def test_functions_count_as_in_torch(function, shapes: tuple[tuple[int, ...], ...]):
    tensors = [torch.ones(shape) for shape in shapes]
    assert counted(function, *tensors) == counted_by_torch(function, *tensors) > 0


def test_keyword_arguments_are_counted():
    q, kv = torch.ones(1, 2, 3, 4), torch.ones(1, 2, 5, 4)
    with OperationCounter() as counter:
        F.scaled_dot_product_attention(query=q, key=kv, value=kv)
        F.linear(input=torch.ones(3, 4), weight=torch.ones(5, 4))
        torch.baddbmm(torch.ones(2, 3, 2), batch1=torch.ones(2, 3, 4), batch2=torch.ones(2, 4, 2))
        torch.matmul(input=torch.ones(2, 3), other=torch.ones(3, 2))
    assert counter.attention == attention_operations(1, 2, 3, 5, 4, 4)
    assert counter.total == counter.attention + 120 + 2 * 2 * 3 * 4 * 2 + 24


def test_attention_of_diffusers_is_seen_and_unchanged():
    module = Attention(query_dim=16, heads=2, dim_head=8).eval()
    x = torch.randn(2, 5, 16)
    with torch.no_grad(), OperationCounter() as counter:
        observed = module(x)
    with torch.no_grad():
        assert torch.equal(observed, module(x))
    assert counter.attention == attention_operations(2, 2, 5, 5, 8, 8)
    assert counter.total == counter.attention + 4 * linear_operations(10, 16, 16)


def test_labels_in_a_module():
    class Block(nn.Module):
        def __init__(self, counter: OperationCounter):
            super().__init__()
            self.one, self.two, self.counter = nn.Linear(4, 4), nn.Linear(4, 8), counter

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with self.counter.label("block"):
                x = self.one(x)
                with self.counter.label("block.two"), self.counter.label("block"):
                    return self.two(x)

    counter = OperationCounter()
    with counter:
        Block(counter)(torch.ones(3, 4))
        torch.mm(torch.ones(2, 2), torch.ones(2, 2))
        with counter.label("nothing"):
            pass
    assert counter.by_label == {"block": 96 + 192, "block.two": 192, "nothing": 0}
    assert counter.total == 96 + 192 + 16
    assert counter.attention == 0


def test_a_label_ends_with_an_exception_and_counting_with_the_context():
    counter = OperationCounter()
    with counter:
        with pytest.raises(RuntimeError), counter.label("broken"):
            torch.mm(torch.ones(2, 3), torch.ones(2, 3))
        torch.mm(torch.ones(1, 1), torch.ones(1, 1))
    torch.mm(torch.ones(1, 1), torch.ones(1, 1))
    assert (counter.total, counter.by_label) == (2, {"broken": 0})


def test_the_formula_of_sliced_attention_is_what_it_does():
    q, kv = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8)
    bases = fit_bases(q, kv, kv, "centred_pca")
    with OperationCounter() as counter:
        sliced_attention(q, kv, kv, bases, 4)
    assert counter.total == sliced_attention_operations(2, 3, 5, 7, 4, 8)
