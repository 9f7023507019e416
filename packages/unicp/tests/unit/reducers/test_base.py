"""What a reducer of other people gets for nothing: errors, costs and bytes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.fake_models import noise
from unicp.errors import InputError
from unicp.numerics.error_measures import coprime_stride
from unicp.numerics.operation_counts import attention_operations
from unicp.reducers.attention_call import AttentionCall, plain_call
from unicp.reducers.base import ROWS, AttentionReducer, Reduced, full_operations, projected
from unicp.settings import Slicing

HEADS, QUERIES, KEYS, WIDTH = 3, 45, 37, 8


class Stretched(Reduced):
    """Misses a share of 1 / width of the attention, and all of the queries that are not probed."""

    def attend(self, width: int) -> Tensor:
        probed = torch.zeros(QUERIES, 1)
        probed[:: coprime_stride(QUERIES, ROWS)] = 1.0
        return self.call.full() * (1 + 1 / width) * probed


class Stretching(AttentionReducer):
    """As little as a reducer can say."""

    def reduce(self, call: AttentionCall, fitted: Any, widths: Any, projection: Tensor | None) -> Reduced:
        return Stretched(call, projection)

    def operations(self, call: AttentionCall, width: int) -> int:
        return full_operations(call, width=width)


def call(mask: Tensor | None = None, scale: float | None = None) -> AttentionCall:
    query, key, value = (noise(seed, 2, HEADS, n, WIDTH) for seed, n in enumerate((QUERIES, KEYS, KEYS)))
    return plain_call(query, key, value, mask, scale)


@pytest.mark.parametrize("projection", [None, noise(9, 20, HEADS * WIDTH)])
@pytest.mark.parametrize("mask", [None, noise(8, QUERIES, KEYS)])
@pytest.mark.parametrize("scale", [None, 0.1])
def test_errors_are_measured_on_rows_against_full_attention(projection, mask, scale):
    reduced = Stretching(Slicing()).reduce(call(mask, scale), None, (2, 4), projection)
    torch.testing.assert_close(reduced.errors((2, 4)), torch.tensor([[0.5, 0.5], [0.25, 0.25]]))


def test_errors_of_no_widths_are_refused():
    with pytest.raises(InputError, match="no widths"):
        Stretched(call()).errors(())


def test_a_projection_sees_all_heads_of_a_query_at_once():
    heads, weight = noise(0, 2, HEADS, 5, WIDTH), noise(1, 20, HEADS * WIDTH)
    found = projected(heads, weight)
    torch.testing.assert_close(found[1, 3], weight @ heads[1, :, 3].flatten())
    assert projected(heads, None) is heads and projected(heads.half(), weight).dtype == torch.float16


def test_operations_are_those_of_attention():
    plain = attention_operations(2, HEADS, QUERIES, KEYS, WIDTH, WIDTH)
    assert full_operations(call()) == plain
    assert full_operations(call(), width=4) == attention_operations(2, HEADS, QUERIES, KEYS, 4, 4)
    assert full_operations(call(), queries=5) == attention_operations(2, HEADS, 5, KEYS, WIDTH, WIDTH)


@pytest.mark.parametrize("refresh", [1, 4])
def test_a_share_counts_the_fit_the_probe_and_the_attention_itself(refresh: int):
    class Fitted(Stretching):
        def fit_operations(self, call: AttentionCall, projection: Tensor | None) -> int:
            return full_operations(call)

    plain, fitted = (kind(Slicing(refresh=refresh)).share(call(), 4, None) for kind in (Stretching, Fitted))
    # Half the width, and the probed rows at full width twice over: for the truth and for the width that is tried.
    assert plain == pytest.approx(full_operations(call(), width=4) / full_operations(call()) + 2 * ROWS / QUERIES)
    assert fitted - plain == pytest.approx(1 / refresh)


def test_nothing_is_fitted_and_held_where_a_reducer_says_nothing_of_it():
    made = Stretching(Slicing())
    assert made.fit(call(), None) is None and made.fits(None, call()) and made.bytes(None) == 0
    assert made.bytes(SimpleNamespace(one=torch.zeros(3), two=torch.zeros(2, dtype=torch.float64), name="x")) == 28
    # What refers to itself, or twice to one tensor, is counted once.
    ring = SimpleNamespace(one=torch.zeros(3))
    ring.itself, ring.again = ring, [ring.one]
    assert made.bytes(ring) == 12


def test_a_call_in_full_is_attention_bit_for_bit():
    made = call()
    assert torch.equal(made.full(), F.scaled_dot_product_attention(made.query, made.key, made.value))
