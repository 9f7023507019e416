"""Widths by head: never worse than equal ones in what is predicted, at most three, and the same attention."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from experiments.head_widths import GROUPS, choose_widths, predicted_errors, sliced_by_head
from tests.unit.reducers.test_bases import random_inputs
from unicp.errors import InputError
from unicp.reducers.bases import fit_bases
from unicp.reducers.pca_slices import sliced_attention

WIDTHS = tuple(range(8, 65, 8))


@st.composite
def spectra(draw: st.DrawFn) -> list[list[float]]:
    """What each head misses at each of WIDTHS: what is left of energies, in any order."""
    heads = draw(st.integers(1, 8))
    energy = st.floats(0.0, 1e3)
    return [list(accumulate(draw(st.lists(energy, min_size=8, max_size=8)), initial=0.0))[-2::-1] for _ in range(heads)]


def missed(errors: list[list[float]], widths: tuple[int, ...]) -> float:
    return sum(row[WIDTHS.index(width)] for row, width in zip(errors, widths))


@given(spectra(), st.floats(8, 64))
def test_the_mean_is_kept_there_are_few_groups_and_equal_widths_are_never_better(errors, mean):
    chosen = choose_widths(errors, WIDTHS, mean)
    assert sum(chosen) <= mean * len(errors) * (1 + 1e-12)
    assert len(set(chosen)) <= GROUPS and set(chosen) <= set(WIDTHS)
    equal = int(mean // 8) * 8
    assert missed(errors, chosen) <= missed(errors, (equal,) * len(errors)) * (1 + 1e-9)


def test_the_head_that_gains_more_gets_more():
    flat, steep = [8.0, 7, 6, 5, 4, 3, 2, 1], [100.0, 80, 60, 40, 20, 1, 1, 1]
    assert choose_widths([flat, steep], WIDTHS, 32) == (16, 48)
    assert choose_widths([flat, flat], WIDTHS, 8) == (8, 8)
    # Four heads that would each like a width of their own get three.
    rows = [[10.0 * (place < stop) for place in range(8)] for stop in (1, 3, 5, 7)]
    chosen = choose_widths(rows, WIDTHS, 40)
    assert len(set(chosen)) <= 3 and missed(rows, chosen) == 10.0


def test_no_width_that_fits_is_refused():
    with pytest.raises(InputError):
        choose_widths([[1.0, 0.5]], (16, 24), 8)


def test_groups_give_each_head_what_it_would_get_alone():
    query, key, value = random_inputs(0)
    bases = fit_bases(query, key, value, "kq_svd")
    mask = torch.randn(1, 3, 40, 50, generator=torch.Generator().manual_seed(1))
    grouped = sliced_by_head(query, key, value, bases, (2, 6, 2), attn_mask=mask, scale=0.2)
    for head, width in enumerate((2, 6, 2)):
        alone = sliced_attention(query, key, value, bases, width, attn_mask=mask, scale=0.2)
        torch.testing.assert_close(grouped[:, head], alone[:, head])
    with pytest.raises(InputError):
        sliced_by_head(query, key, value, bases, (2, 6))


def test_what_values_lose_is_predicted_exactly_and_full_width_loses_nothing():
    query, key, value = random_inputs(0)
    query = query * 1e-4  # scores are equal, and lose nothing
    output = F.scaled_dot_product_attention(query, key, value)
    bases = fit_bases(query, key, value, "centred_pca")
    found = predicted_errors(query, key, output, bases, (3, 8))
    sliced = sliced_attention(query, key, value, bases, 3)
    torch.testing.assert_close(found[:, 0], (sliced - output).square().sum(-1).mean(dim=(0, 2)), rtol=1e-2, atol=0)
    assert found[:, 1].max() == 0
