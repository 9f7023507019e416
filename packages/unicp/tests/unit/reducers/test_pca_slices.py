"""Attention at reduced width: exact at the full one, nearer the wider, and the error that is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unicp.attention.interceptor import plain_call
from unicp.errors import InputError
from unicp.numerics.error_measures import coprime_stride, relative_error
from unicp.reducers.bases import Bases, BasisKind, fit_bases
from unicp.reducers.pca_slices import SlicedCall, sliced_attention

KINDS: tuple[BasisKind, ...] = get_args(BasisKind)
QUERIES, KEYS, WIDTH = 45, 37, 16


def inputs(seed: int = 0, queries: int = QUERIES, keys: int = KEYS) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # Falling variance over channels, as in trained heads, and keys and values with a mean.
    fall = 0.8 ** torch.arange(WIDTH)
    query, key, value = (torch.randn(2, 3, n, WIDTH, generator=generator) * fall * 2 for n in (queries, keys, keys))
    return query, key + 3.0, value + 1.0


def call_at(q: Tensor, k: Tensor, v: Tensor, bases: Bases, width: int, mask: Tensor | None = None) -> SlicedCall:
    return SlicedCall(plain_call(q, k, v, mask), bases, width)


def errors(
    q: Tensor, k: Tensor, v: Tensor, bases: Bases, widths: Sequence[int], mask: Tensor | None = None, **rows: int
) -> Tensor:
    return call_at(q, k, v, bases, max(widths), mask).errors(widths, **rows)


def masks() -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(7)
    keep = torch.rand(2, 1, 1, KEYS, generator=generator) > 0.3
    return {
        "none": None,
        "padding": keep,
        "per query": torch.randn(1, 3, QUERIES, KEYS, generator=generator),
        "two axes": torch.randn(QUERIES, KEYS, generator=generator),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", masks())
def test_full_width_is_full_attention(kind: BasisKind, mask: str):
    q, k, v = inputs()
    bases = fit_bases(q, k, v, kind)
    full = F.scaled_dot_product_attention(q, k, v, attn_mask=masks()[mask])
    sliced = sliced_attention(q, k, v, bases, WIDTH, attn_mask=masks()[mask])
    assert torch.allclose(sliced, full, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_full_width_of_self_attention_with_its_own_scale_and_unseen_inputs(kind: BasisKind):
    bases = fit_bases(*inputs(1, 30, 30), kind)
    q, k, v = inputs(2, 30, 30)
    full = F.scaled_dot_product_attention(q, k, v, scale=0.1)
    assert torch.allclose(sliced_attention(q, k, v, bases, WIDTH, scale=0.1), full, atol=1e-4)


def drawn(seed: int, fall: float, queries: int, keys: int, width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Inputs whose variance falls so much from one direction to the next, in directions of each head's own."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.linalg.qr(torch.randn(3, width, width, generator=generator)).Q
    sizes = 2 * fall ** torch.arange(width)
    query, key, value = (
        torch.randn(2, 3, n, width, generator=generator) * sizes @ mixing for n in (queries, keys, keys)
    )
    return query.to(dtype), (key + 3.0).to(dtype), (value + 1.0).to(dtype)


@given(
    st.sampled_from(KINDS),
    st.integers(0, 10**6),
    st.floats(0.5, 1.0),
    st.integers(2, 40),
    st.integers(2, 40),
    st.sampled_from([8, 24]),
    st.sampled_from([None, 0.05, 1.0]),
    st.sampled_from(["none", "padding", "per query"]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.booleans(),
)
def test_at_full_width_it_is_attention_whatever_comes(
    kind, seed, fall, queries, keys, width, scale, mask, dtype, has_projection
):
    q, k, v = drawn(seed, fall, queries, keys, width, dtype)
    generator = torch.Generator().manual_seed(seed)
    masks = {
        "none": None,
        "padding": (torch.arange(keys) < keys - keys // 3).expand(2, 1, 1, keys),
        "per query": torch.randn(2, 1, queries, keys, generator=generator).to(dtype),
    }
    weight = torch.randn(20, 3 * width, generator=generator).to(dtype) if has_projection else None
    bases = fit_bases(q, k, v, kind, projection=weight, attn_mask=masks[mask], scale=scale)
    found = sliced_attention(q, k, v, bases, width, attn_mask=masks[mask], scale=scale)
    wide = [x.double() if x.is_floating_point() else x for x in (q, k, v)]
    wide_mask = masks[mask] if mask != "per query" else masks[mask].double()
    true = F.scaled_dot_product_attention(*wide, attn_mask=wide_mask, scale=scale)
    plain = F.scaled_dot_product_attention(q, k, v, attn_mask=masks[mask], scale=scale)
    assert found.dtype == dtype
    # Bases are float32. In half precision attention itself is as far from the truth.
    own = relative_error(plain.double(), true).max()
    bound = 1e-4 if dtype in (torch.float32, torch.float64) else 10 * torch.finfo(dtype).eps + 3 * own
    assert relative_error(found.double(), true).max() < bound


@given(st.sampled_from(KINDS), st.integers(0, 10**6), st.floats(0.6, 0.97), st.booleans())
def test_the_error_does_not_grow_with_the_width(kind, seed, fall, has_projection):
    q, k, v = drawn(seed, fall, 40, 50, 32, torch.float32)
    weight = torch.randn(20, 96, generator=torch.Generator().manual_seed(seed)) if has_projection else None
    bases = fit_bases(q, k, v, kind, projection=weight)
    found = SlicedCall(plain_call(q, k, v), bases, 32, weight).errors((8, 16, 24, 32), rows=40)
    # Within the rounding of float32.
    assert (found[1:] <= found[:-1] + 1e-5).all()
    assert found[-1].max() < 1e-4


@pytest.mark.parametrize("kind", ["centred_pca", "kq_svd"])
def test_a_constant_added_to_all_keys_changes_nothing(kind: BasisKind):
    q, k, v = inputs()
    constant = torch.linspace(-5, 5, WIDTH)
    plain = sliced_attention(q, k, v, fit_bases(q, k, v, kind), 8)
    moved = sliced_attention(q, k + constant, v, fit_bases(q, k + constant, v, kind), 8)
    assert torch.allclose(plain, moved, atol=1e-3)


def test_low_rank_attention_is_exact_at_its_rank():
    q, k, v = inputs()
    k = k.clone()
    v = v.clone()
    k[..., 2:] = 3.0
    v[..., 2:] = 1.0
    bases = fit_bases(q, k, v, "kq_svd")
    full = F.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(sliced_attention(q, k, v, bases, 2), full, atol=1e-4)


def test_the_scale_is_that_of_the_full_width():
    # All that matters lies in the first channel, so that width 1 loses nothing, if the scale is right.
    q, k, v = (torch.zeros(1, 1, 6, WIDTH) for _ in range(3))
    q[..., 0], k[..., 0], v[..., 0] = torch.arange(6.0), torch.arange(6.0) - 2, torch.arange(6.0) ** 2
    full = F.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(sliced_attention(q, k, v, fit_bases(q, k, v, "pca"), 1), full, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_stays_half_and_close(dtype: torch.dtype, kind: BasisKind):
    q, k, v = (x.to(dtype) for x in inputs())
    sliced = sliced_attention(q, k, v, fit_bases(q, k, v, kind), WIDTH)
    full = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    assert sliced.dtype == dtype
    assert relative_error(sliced.float(), full).max() < 10 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_a_large_mean_costs_no_more_digits_than_in_full_attention(dtype: torch.dtype):
    q, k, v = (x.to(dtype) for x in (inputs()[0], inputs()[1] + 30.0, inputs()[2] + 30.0))
    true = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    size = (true - true.mean(2, keepdim=True)).norm()
    full = (F.scaled_dot_product_attention(q, k, v).double() - true).norm() / size
    sliced = (sliced_attention(q, k, v, fit_bases(q, k, v, "kq_svd"), WIDTH).double() - true).norm() / size
    assert sliced < 1.5 * full


@pytest.mark.parametrize("kind", ["kq_svd", "output_pca"])
@pytest.mark.parametrize("width", [4, WIDTH])
def test_means_change_nothing_but_the_mean_of_the_result(kind: BasisKind, width: int):
    """With oblique axes of the values too, which differ on the way down and up."""
    q, k, v = inputs()
    weight = torch.randn(40, 3 * WIDTH, generator=torch.Generator().manual_seed(1))
    bases = fit_bases(q, k, v, kind, projection=weight if kind == "output_pca" else None)
    assert torch.equal(bases.value, bases.lift) == (kind == "kq_svd")
    plain = sliced_attention(q, k, v, bases, width)
    moved = replace(bases, key_mean=bases.key_mean - 4.0, value_mean=bases.value_mean + 5.0)
    torch.testing.assert_close(sliced_attention(q, k - 4.0, v + 5.0, moved, width), plain + 5.0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", masks())
def test_probe_of_all_rows_is_the_error_of_the_whole(kind: BasisKind, mask: str):
    q, k, v = inputs()
    attn_mask = masks()[mask]
    bases = fit_bases(q, k, v, kind)
    full = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
    seen = errors(q, k, v, bases, (4, 8, WIDTH), mask=attn_mask, rows=QUERIES)
    sliced = [sliced_attention(q, k, v, bases, width, attn_mask=attn_mask) for width in (4, 8, WIDTH)]
    assert torch.allclose(seen, torch.stack([relative_error(x, full) for x in sliced]), atol=1e-5)
    assert seen.shape == (3, 2)
    assert seen[2].max() < 1e-4 < 1e-2 < seen[0].min()


@pytest.mark.parametrize("mask", masks())
def test_probe_of_some_rows_takes_their_mask(mask: str):
    q, k, v = inputs()
    attn_mask = masks()[mask]
    bases = fit_bases(q, k, v, "kq_svd")
    full = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
    every = coprime_stride(QUERIES, 10)
    sliced = sliced_attention(q, k, v, bases, 8, attn_mask=attn_mask)
    expected = relative_error(sliced[:, :, ::every], full[:, :, ::every])
    assert torch.allclose(errors(q, k, v, bases, [8], mask=attn_mask, rows=10)[0], expected, atol=1e-5)


def test_probe_is_per_sample():
    q, k, v = inputs()
    k[1, ..., 2:], v[1, ..., 2:] = k[0, ..., 2:].mean((0, 1)), v[0, ..., 2:].mean((0, 1))
    bases = fit_bases(q, k, v, "centred_pca")
    alone = errors(q[:1], k[:1], v[:1], bases, [4])
    together = errors(q, k, v, bases, [4])
    assert together[0, 0].item() == pytest.approx(alone.item(), rel=1e-4)
    assert together[0, 1] < together[0, 0]


def test_a_call_of_a_wide_slice_gives_the_narrower_ones_too():
    q, k, v = inputs()
    bases = fit_bases(q, k, v, "kq_svd")
    call = call_at(q, k, v, bases, 12)
    for width in (4, 8, 12):
        assert torch.allclose(call.attend(width), sliced_attention(q, k, v, bases, width), atol=1e-5)


def test_widths_and_shapes_that_do_not_fit_are_refused():
    q, k, v = inputs()
    bases = fit_bases(q, k, v, "pca")
    for width in (0, WIDTH + 1):
        with pytest.raises(InputError):
            sliced_attention(q, k, v, bases, width)
        with pytest.raises(InputError):
            call_at(q, k, v, bases, 8).errors([4, width or 9])
    with pytest.raises(InputError):
        sliced_attention(q, k, v, bases.narrowed(4), 8)
    with pytest.raises(InputError):
        sliced_attention(q[..., :8], k[..., :8], v[..., :8], bases, 8)
    with pytest.raises(ValueError, match="asked"):
        sliced_attention(q[:, :2], k[:, :2], v[:, :2], bases, 8)
    with pytest.raises(InputError):
        call_at(q, k, v, bases, 8).errors([])
