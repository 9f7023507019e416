"""Bases of queries, keys and values, against answers found by hand and bounds that are known."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from unicp.errors import InputError
from unicp.reducers.bases import Bases, BasisKind, fit_bases

KINDS: tuple[BasisKind, ...] = get_args(BasisKind)


def random_inputs(seed: int, queries: int = 40, keys: int = 50, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Correlated queries, keys with a large mean, and values: 2 samples of 3 heads."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tokens: int) -> Tensor:
        mixing = torch.randn(3, width, width, generator=generator)
        return torch.randn(2, 3, tokens, width, generator=generator) @ mixing

    return draw(queries), draw(keys) + 5.0, draw(keys) - 2.0


def scores(query: Tensor, key: Tensor, bases: Bases) -> Tensor:
    return (query @ bases.query) @ ((key - bases.key_mean[:, None]) @ bases.key).mT


def score_error(query: Tensor, key: Tensor, bases: Bases) -> Tensor:
    """Mean square error of each head's scores over all pairs of a query and a centred key, of all samples."""
    key = key - key.mean(dim=(0, 2), keepdim=True)
    difference = query @ key.mT - (query @ bases.query) @ (key @ bases.key).mT
    return difference.double().square().mean(dim=(0, 2, 3))


def of_heads(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)[None, None]


def test_pca_by_hand():
    # Moments: keys diag(2, 8) / 4, values [[5, 4], [4, 5]] / 2 with axes (1, 1) and (1, -1).
    key = of_heads([1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0])
    value = of_heads([2.0, 1.0], [1.0, 2.0], [2.0, 1.0], [1.0, 2.0])
    bases = fit_bases(key, key, value, "pca")
    half = 0.5**0.5
    assert torch.allclose(bases.key[0].abs(), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert torch.equal(bases.query, bases.key)
    assert torch.allclose(bases.value[0, :, 0] * bases.value[0, 0, 0].sign(), torch.tensor([half, half]))
    assert bases.key_mean.tolist() == bases.value_mean.tolist() == [[0.0, 0.0]]


def test_centred_pca_by_hand():
    # The mean of the keys lies along x; centred they vary along y only, and the queries along y too.
    key = of_heads([9.0, 1.0], [9.0, -1.0])
    query = of_heads([0.5, 3.0], [-0.5, 3.0])
    uncentred, centred = (fit_bases(query, key, key, kind) for kind in ("pca", "centred_pca"))
    assert torch.allclose(uncentred.key[0, :, 0].abs(), torch.tensor([1.0, 0.0]))
    assert torch.allclose(centred.key[0, :, 0].abs(), torch.tensor([0.0, 1.0]))
    assert torch.allclose(centred.value[0, :, 0].abs(), torch.tensor([0.0, 1.0]))
    assert centred.key_mean.tolist() == centred.value_mean.tolist() == [[9.0, 0.0]]


def test_kq_svd_by_hand():
    # Diagonal moments Cq = diag(100, 1, 4), Ck = diag(1, 81, 4): singular values 10, 9, 4, so the order is x, y, z;
    # the keys alone would say y, z, x.
    signs = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    query, key = ((signs * torch.tensor(sizes))[None, None] for sizes in ([10.0, 1, 2], [1.0, 9, 2]))
    bases = fit_bases(query, key, key, "kq_svd")
    assert bases.query[0].abs().argmax(dim=0).tolist() == [0, 1, 2]
    assert fit_bases(query, key, key, "pca").key[0].abs().argmax(dim=0).tolist() == [1, 2, 0]
    # Balanced: both sides have coordinates of mean square S.
    expected = torch.tensor([10.0, 9.0, 4.0])
    assert torch.allclose((query[0, 0] @ bases.query[0]).square().mean(0), expected, rtol=1e-4)
    assert torch.allclose((key[0, 0] @ bases.key[0]).square().mean(0), expected, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_full_width_gives_exact_scores_of_unseen_inputs(kind: BasisKind):
    bases = fit_bases(*random_inputs(0), kind)
    query, key, _ = random_inputs(1)
    exact = query @ (key - bases.key_mean[:, None]).mT
    assert torch.allclose(scores(query, key, bases), exact, atol=1e-3)
    assert bases.width == 8
    assert all(x.dtype == torch.float32 for x in vars(bases).values())


def test_scores_of_rank_two_are_recovered_exactly_at_width_two():
    query, key, value = random_inputs(2)
    plane = torch.linalg.qr(torch.randn(8, 2, generator=torch.Generator().manual_seed(3))).Q
    key = key @ plane @ plane.mT + 1.0
    bases = fit_bases(query, key, value, "kq_svd")
    size = float((query @ key.mT).square().mean())
    assert score_error(query, key, bases.narrowed(2)).max() < 1e-8 * size
    assert score_error(query, key, bases.narrowed(1)).min() > 1e-4 * size
    # The axes of centred PCA are drawn to the queries, which fill all directions.
    assert score_error(query, key, fit_bases(query, key, value, "centred_pca").narrowed(2)).max() > 1e-4 * size


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["pca", "centred_pca"])
def test_kq_svd_is_never_worse_at_any_width(seed: int, kind: BasisKind):
    query, key, value = random_inputs(seed)
    best, other = fit_bases(query, key, value, "kq_svd"), fit_bases(query, key, value, kind)
    errors = [score_error(query, key, best.narrowed(width)) for width in range(1, 8)]
    for width, error in enumerate(errors, start=1):
        assert (error <= score_error(query, key, other.narrowed(width)) * 1.0001).all()
    assert all((wider < narrower).all() for narrower, wider in zip(errors, errors[1:], strict=False))


def test_kq_svd_reaches_the_bound_of_eckart_and_young():
    query, key, value = (x[:1, :1] for x in random_inputs(5))
    bases = fit_bases(query, key, value, "kq_svd").narrowed(3)
    singular = torch.linalg.svdvals(query[0, 0] @ (key[0, 0] - key[0, 0].mean(0)).mT)
    bound = singular[3:].square().sum() / (query.shape[2] * key.shape[2])
    assert score_error(query, key, bases).item() == pytest.approx(bound.item(), rel=1e-3)


def test_narrowing_is_a_view():
    bases = fit_bases(*random_inputs(0), "kq_svd")
    narrow = bases.narrowed(3)
    assert narrow.width == 3
    for name in ("query", "key", "value", "key_mean", "value_mean"):
        assert getattr(narrow, name).data_ptr() == getattr(bases, name).data_ptr()
    assert torch.equal(narrow.key, bases.key[..., :3])
    for width in (0, 9):
        with pytest.raises(InputError):
            bases.narrowed(width)


@pytest.mark.parametrize("kind", ["centred_pca", "kq_svd"])
def test_a_constant_added_to_all_keys_changes_no_centred_basis(kind: BasisKind):
    query, key, value = random_inputs(0)
    constant = torch.linspace(-8, 8, 8)
    plain, moved = fit_bases(query, key, value, kind), fit_bases(query, key + constant, value, kind)
    assert torch.allclose(moved.key_mean - constant, plain.key_mean, atol=1e-5)
    for width in (2, 5):
        first = scores(query, key, plain.narrowed(width))
        assert torch.allclose(scores(query, key + constant, moved.narrowed(width)), first, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["few tokens", "no variation", "zero", "zero queries"])
def test_deficient_inputs_keep_full_width_exact(kind: BasisKind, case: str):
    query, key, value = random_inputs(0)
    fit_on = {
        "few tokens": (query[:1, :, :2], key[:1, :, :3], value[:1, :, :3]),
        "no variation": (query, torch.ones_like(key), torch.ones_like(value)),
        "zero": (query * 0, key * 0, value * 0),
        "zero queries": (query * 0, key, value),
    }[case]
    bases = fit_bases(*fit_on, kind)
    exact = query @ (key - bases.key_mean[:, None]).mT
    assert torch.allclose(scores(query, key, bases), exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))


def test_tokens_are_sampled_the_same_way_each_time():
    query, key, value = random_inputs(0)
    first, second = (fit_bases(query, key, value, "kq_svd", max_tokens=10) for _ in range(2))
    assert torch.equal(first.query, second.query)
    # 50 keys, at most 10 of them, a stride without a factor in common with 50: every 7th.
    assert torch.allclose(first.key_mean, key[:, :, ::7].mean(dim=(0, 2)), atol=1e-5)


def test_what_cannot_be_fitted_is_refused():
    query, key, value = random_inputs(0)
    broken = key.clone()
    broken[0, 0, 0, 0] = float("nan")
    cases = [
        (query, key[..., :4], value),
        (query, key[:, :2], value[:, :2]),
        (query[0], key, value),
        (query, key, value[:, :, :5]),
        (query, key[:, :, :0], value[:, :, :0]),
        (query, broken, value),
    ]
    for case in cases:
        with pytest.raises(InputError):
            fit_bases(*case, "kq_svd")
    with pytest.raises(InputError):
        fit_bases(query, key, value, "svd")  # pyright: ignore[reportArgumentType]
