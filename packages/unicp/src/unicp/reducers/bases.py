"""The few directions in which the attention of each head lives: bases for attention at reduced width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unicp.errors import InputError
from unicp.numerics.error_measures import coprime_stride
from unicp.reducers.attention_rows import attention_of_rows
from unicp.reducers.value_axes import principal_axes, projection_gram, value_axes

BasisKind = Literal["pca", "centred_pca", "kq_svd", "output_pca"]

FIT_TOKENS = 512  # of each sample; more change the axes little and cost as much as the attention of short sequences
FIT_ROWS = 128  # queries of each sample whose outputs "output_pca" is fitted on; each costs a row of full attention
# Share of the values' own moment in that of the outputs: it sorts the directions that so few rows leave open.
VALUES_SHARE = 0.03


@dataclass(frozen=True)
class Bases:
    """Directions of each of H heads of width d, most important column first, shared by all samples of a batch.

    query, key: (H, d, r), paired: q.k is approximated by (q query) . ((k - key_mean) key), up to a constant for each
    query, which softmax does not see. value, lift: (H, d, r), paired: v is approximated by
    (v - value_mean) value lift^T + value_mean. key_mean, value_mean: (H, d), zero for the kind "pca".
    """

    query: Tensor
    key: Tensor
    value: Tensor
    lift: Tensor
    key_mean: Tensor
    value_mean: Tensor

    @property
    def width(self) -> int:
        """Number of directions, r."""
        return self.query.shape[-1]

    def narrowed(self, width: int) -> Bases:
        """The first `width` directions, as views of the same memory. Raises InputError unless 1 <= width <= r."""
        if not 1 <= width <= self.width:
            raise InputError(f"bases of width {width}", f"a stored width of {self.width}", f"use 1 to {self.width}")
        query, key, value, lift = (basis[..., :width] for basis in (self.query, self.key, self.value, self.lift))
        return Bases(query, key, value, lift, self.key_mean, self.value_mean)


@torch.no_grad()
def fit_bases(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kind: BasisKind,
    *,
    max_tokens: int = FIT_TOKENS,
    projection: Tensor | None = None,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Bases:
    """Bases of full width d from queries (B, H, S, d) and keys and values (B, H, S2, d), as they enter attention.

    Second moments are over the batch and over at most max_tokens evenly spread tokens, always the same ones, so that
    the cost does not grow with S. Computed in float64 (float32 where the device has none), returned in float32.
    At full width every kind gives back the scores exactly but for rounding, whatever the later inputs.

    kind: "pca" (the paper's setting, our reading): principal axes of the keys, not centred, for queries and keys
    alike; those of the values, not centred. "centred_pca": keys and values are centred, axes of the sum of the second
    moments of queries and centred keys. "kq_svd" (KQ-SVD): the rank-r score matrix nearest to the true one in the
    mean square over all pairs of a query and a centred key, for every r at once; values as in "centred_pca".
    "output_pca" (ours): scores as in "kq_svd"; values by the axes of what attention makes of them, its outputs for
    FIT_ROWS queries, because averaging over tokens leaves far fewer directions than single values have.

    projection: weight (D, H * d) of the linear layer that follows attention; value axes are then those that keep the
    error after it small (`value_axes`). attn_mask and scale are those of attention; "output_pca" alone needs them.

    Raises InputError for an unknown kind, shapes that do not fit, no tokens, or inputs that are not finite.
    """
    _check_shapes(query, key, value)
    queries, keys, values = (_tokens(x, max_tokens) for x in (query, key, value))
    key_mean, value_mean = keys.mean(dim=1), values.mean(dim=1)
    if kind == "pca":
        key_mean, value_mean = torch.zeros_like(key_mean), torch.zeros_like(value_mean)
    query_moment = _second_moment(queries)
    key_moment = _second_moment(keys - key_mean[:, None])
    value_moment = _second_moment(values - value_mean[:, None])
    if kind == "output_pca":
        rows = _spread_rows(query.shape[2])
        outputs = _tokens(attention_of_rows(query, key, value, rows, attn_mask, scale), FIT_ROWS)
        value_mean = outputs.mean(dim=1)
        value_moment = _second_moment(outputs - value_mean[:, None]) + VALUES_SHARE * value_moment
    if not bool(torch.isfinite(query_moment + key_moment + value_moment).all()):
        raise InputError(
            "principal axes of attention", "inputs that are not finite", "keep this attention at full width"
        )
    if kind == "pca":
        query_axes = key_axes = principal_axes(key_moment)
    elif kind == "centred_pca":
        query_axes = key_axes = principal_axes(key_moment + query_moment)
    elif kind in ("kq_svd", "output_pca"):
        query_axes, key_axes = _score_axes(query_moment, key_moment, _ridge(query.dtype, query_moment.dtype))
    else:
        raise InputError(f"basis {kind!r}", "an unknown kind", "use pca, centred_pca, kq_svd or output_pca")
    gram = None if projection is None else projection_gram(projection, query.shape[1])
    found = (query_axes, key_axes, *value_axes(value_moment, gram), key_mean, value_mean)
    return Bases(*(x.to(torch.float32) for x in found))


def _spread_rows(queries: int) -> slice:
    """At most FIT_ROWS queries, hardly ever those that slices are tried on, which begin with the first."""
    every = coprime_stride(queries, FIT_ROWS)
    return slice(every // 2, None, every)


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    shapes = f"shapes {tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}"
    fits = query.dim() == key.dim() == 4 and key.shape == value.shape
    fits = fits and query.shape[1] == key.shape[1] and query.shape[3] == key.shape[3]
    if not fits or 0 in (query.numel(), key.numel()):
        raise InputError(
            "principal axes of attention", shapes, "pass (batch, heads, tokens, channels) of one head width"
        )


def _tokens(x: Tensor, max_tokens: int) -> Tensor:
    """(B, H, S, d) -> (H, B * n, d) with n <= max_tokens, in the dtype that moments are computed in."""
    sample = x[:, :, :: coprime_stride(x.shape[2], max_tokens)]
    has_float64 = x.device.type != "mps"
    return sample.transpose(0, 1).flatten(1, 2).to(torch.float64 if has_float64 else torch.float32)


def _second_moment(tokens: Tensor) -> Tensor:
    """E[x x^T] over the tokens: (H, n, d) -> (H, d, d)."""
    return tokens.transpose(1, 2) @ tokens / tokens.shape[1]


def _score_axes(query_moment: Tensor, key_moment: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Axes A of queries and B of keys such that A_r B_r^T is the best rank-r M in E[(q^T k - q^T M k)^2].

    With any factor Cq = L L^T the error is |L^T (I - M) Ck^1/2|, so that M = L^-T U_r U_r^T L^T with U the left
    singular vectors of L^T Ck^1/2: the eigenvectors of L^T Ck L. Singular values S are shared out between both
    sides, A = L^-T U S^1/2 and B = L U S^-1/2, so that coordinates of queries and keys have one size. A B^T = I holds
    at full width whatever S is; Cq alone needs to be of full rank, hence the ridge.
    """
    size = query_moment.diagonal(dim1=-2, dim2=-1).mean(-1)
    size = torch.where(size > 0, size, torch.ones_like(size))
    identity = torch.eye(query_moment.shape[-1], dtype=query_moment.dtype, device=query_moment.device)
    factor = torch.linalg.cholesky(query_moment + ridge * size[:, None, None] * identity)
    energies, axes = torch.linalg.eigh(factor.mT @ key_moment @ factor)
    energies, axes = energies.flip(-1), axes.flip(-1)
    largest = energies[:, :1]
    largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    # Below the rounding of the largest energy the values are noise, and may even be negative.
    energies = torch.maximum(energies, largest * torch.finfo(energies.dtype).eps)
    share = energies.pow(0.25)[:, None, :]
    query_axes = torch.linalg.solve_triangular(factor.mT, axes * share, upper=True)
    return query_axes, factor @ (axes / share)


def _ridge(input_dtype: torch.dtype, moment_dtype: torch.dtype) -> float:
    """Relative variance below which queries are held to be rounding: that of the inputs, or of the factorisation."""
    return max(torch.finfo(input_dtype).eps ** 2, torch.finfo(moment_dtype).eps ** 0.5)
