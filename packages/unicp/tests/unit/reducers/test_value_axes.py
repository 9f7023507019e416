"""The axes that values keep, with and without the projection after attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.unit.reducers.test_bases import random_inputs
from unicp.errors import InputError
from unicp.numerics.error_measures import relative_error
from unicp.reducers.attention_call import plain_call
from unicp.reducers.base import projected
from unicp.reducers.bases import fit_bases
from unicp.reducers.pca_slices import SlicedCall, sliced_attention
from unicp.reducers.value_axes import principal_axes, projection_gram, value_axes

HEADS, WIDTH, OUTPUTS = 3, 8, 20


def moments(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated vectors (H, n, d), and their second moment."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(HEADS, 50, WIDTH, generator=generator, dtype=torch.float64)
    vectors = vectors @ torch.randn(HEADS, WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    return vectors, vectors.mT @ vectors / 50


def weight(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    # Columns of very different size, as trained projections have.
    return torch.randn(OUTPUTS, HEADS * WIDTH, generator=generator) * 0.7 ** torch.arange(WIDTH).repeat(HEADS)


def missed(vectors: Tensor, axes: tuple[Tensor, Tensor], width: int, weights: Tensor) -> Tensor:
    """Mean square of what is lost of W_h x: (H,)."""
    down, up = (basis[..., :width] for basis in axes)
    lost = (vectors - vectors @ down @ up.mT) @ weights.to(vectors).unflatten(1, (HEADS, WIDTH)).permute(1, 2, 0)
    return lost.square().sum(-1).mean(-1)


def test_by_hand_the_larger_of_what_the_projection_sees_comes_first():
    # Mean squares 9 and 4; seen through columns of size 1 and 3 they are 9 and 36.
    moment, w = torch.diag(torch.tensor([9.0, 4.0])).double()[None], torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    down, up = value_axes(moment, projection_gram(w, 1))
    assert down[0, :, 0].abs().argmax() == up[0, :, 0].abs().argmax() == 1
    assert value_axes(moment)[0][0, :, 0].abs().tolist() == [1.0, 0.0]


def test_the_gram_is_that_of_each_head():
    w = weight()
    grams = projection_gram(w, HEADS)
    for head in range(HEADS):
        own = w[:, head * WIDTH : (head + 1) * WIDTH]
        torch.testing.assert_close(grams[head], own.T @ own)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_a_projection_that_changes_no_lengths_gives_the_principal_axes(scale: float):
    vectors, moment = moments()
    rotation = torch.linalg.qr(torch.randn(HEADS * WIDTH, HEADS * WIDTH, generator=torch.Generator().manual_seed(1))).Q
    for w in (scale * torch.eye(HEADS * WIDTH), scale * rotation):
        down, up = value_axes(moment, projection_gram(w, HEADS))
        plain = principal_axes(moment)
        for width in (1, 3, 6):
            expected = plain[..., :width] @ plain[..., :width].mT
            torch.testing.assert_close(down[..., :width] @ up[..., :width].mT, expected, atol=1e-5, rtol=1e-5)
    assert vectors.shape[-1] == WIDTH


@pytest.mark.parametrize("seed", range(4))
def test_the_projected_output_never_misses_more_than_with_plain_axes_and_half_as_much_at_times(seed: int):
    vectors, moment = moments(seed)
    w = weight(seed)
    weighted, plain = value_axes(moment, projection_gram(w, HEADS)), value_axes(moment)
    ratios = [missed(vectors, weighted, r, w) / missed(vectors, plain, r, w) for r in range(1, WIDTH)]
    # The ridge makes the optimum that of a weight that is a little larger.
    assert torch.stack(ratios).max() <= 1.02
    assert torch.stack(ratios).min() < 0.5


def test_the_bound_of_eckart_and_young_is_reached():
    vectors, moment = moments(5)
    w = weight(5)
    seen = vectors @ w.double().unflatten(1, (HEADS, WIDTH)).permute(1, 2, 0)
    bound = torch.linalg.svdvals(seen)[:, 3:].square().sum(-1) / vectors.shape[1]
    found = missed(vectors, value_axes(moment, projection_gram(w, HEADS)), 3, w)
    assert (found >= bound * (1 - 1e-6)).all()
    torch.testing.assert_close(found, bound, rtol=0.02, atol=0.0)


@pytest.mark.parametrize("w", [weight(), torch.zeros(OUTPUTS, HEADS * WIDTH), weight()[:2]])
def test_full_width_is_exact_whatever_the_projection_sees(w: Tensor):
    _, moment = moments()
    down, up = value_axes(moment, projection_gram(w, HEADS))
    identity = torch.eye(WIDTH, dtype=torch.float64).expand(HEADS, -1, -1)
    torch.testing.assert_close(down @ up.mT, identity)


@pytest.mark.parametrize("kind", ["kq_svd", "output_pca"])
def test_attention_at_full_width_is_exact_and_narrower_its_projected_output_is_nearer(kind):
    query, key, value = random_inputs(3)
    w, full = weight(3), F.scaled_dot_product_attention(query, key, value)
    plain, weighted = (fit_bases(query, key, value, kind, projection=w_) for w_ in (None, w))
    torch.testing.assert_close(sliced_attention(query, key, value, weighted, WIDTH), full, atol=1e-3, rtol=1e-3)
    errors = [
        relative_error(projected(sliced_attention(query, key, value, bases, 4), w), projected(full, w)).mean()
        for bases in (plain, weighted)
    ]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_oblique_axes_lose_little_in_half_precision(dtype: torch.dtype):
    query, key, value = (x.to(dtype) for x in random_inputs(3))
    full = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
    bases = fit_bases(query, key, value, "output_pca", projection=weight().to(dtype))
    sliced = sliced_attention(query, key, value, bases, WIDTH)
    plain = sliced_attention(query, key, value, fit_bases(query, key, value, "kq_svd"), WIDTH)
    seen, expected = (relative_error(x.float(), full).max() for x in (sliced, plain))
    assert seen < 2 * expected + torch.finfo(dtype).eps


def test_axes_of_outputs_keep_more_of_them_than_axes_of_values():
    # Values of one large direction that changes sign from token to token, which averaging takes away, and a small one
    # that does not.
    generator = torch.Generator().manual_seed(0)
    query = 3 * torch.randn(1, 1, 64, 2, generator=generator)
    value = torch.stack([torch.tensor([1.5, -1.5]).repeat(32), torch.linspace(-1, 1, 64)], dim=-1)[None, None]
    key = torch.cat([value[..., 1:] * 3, torch.zeros(1, 1, 64, 1)], dim=-1)
    assert fit_bases(query, key, value, "kq_svd").value[0, :, 0].abs().argmax() == 0
    assert fit_bases(query, key, value, "output_pca").value[0, :, 0].abs().argmax() == 1


def test_the_error_that_is_tried_can_be_that_after_the_projection():
    query, key, value = random_inputs(0)
    w, bases = weight(), fit_bases(query, key, value, "kq_svd")
    full = F.scaled_dot_product_attention(query, key, value)
    sliced = sliced_attention(query, key, value, bases, 4)
    found = SlicedCall(plain_call(query, key, value), bases, 4, w).errors([4], rows=query.shape[2])[0]
    side = [x.transpose(1, 2).flatten(2) @ w.T for x in (sliced, full)]
    torch.testing.assert_close(found, relative_error(side[0], side[1]))


def test_a_weight_that_does_not_fit_the_heads_is_refused():
    for bad in (torch.zeros(20, 25), torch.zeros(24)):
        with pytest.raises(InputError):
            projection_gram(bad, HEADS)
