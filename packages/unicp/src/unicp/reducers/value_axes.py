"""Directions of the values that attention should keep, so that the output projection after it sees least change."""

from __future__ import annotations

import torch
from torch import Tensor

from unicp.errors import InputError

# Of the mean square of a projection's columns. A direction that the projection hardly sees keeps at least this weight:
# else the oblique axes would have large entries, and half precision would round them coarsely.
RIDGE = 1e-2


def projection_gram(weight: Tensor, heads: int) -> Tensor:
    """W_h^T W_h of each head h: (D, H * d) -> (H, d, d), float32. weight: of the linear layer that follows attention.

    Raises InputError where the weight cannot be shared out among the heads.
    """
    if weight.dim() != 2 or weight.shape[1] % heads:
        found = f"a weight of shape {tuple(weight.shape)} for {heads} heads"
        raise InputError("axes for an output projection", found, "pass (outputs, heads x channels)")
    of_heads = weight.detach().to(torch.float32).unflatten(1, (heads, -1)).permute(1, 0, 2)
    return of_heads.mT @ of_heads


def value_axes(moment: Tensor, gram: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Directions A (down) and B (up) such that x B_r^T-lifted coordinates x A_r are nearest to x where it counts.

    moment: E[x x^T] of what is to be kept, (H, d, d). gram: `projection_gram`, None = the identity. Both results:
    (H, d, d), most important column first; x is approximated by (x A_r) B_r^T, for every r at once, and exactly but
    for rounding at full width.

    With W^T W = F^T F (F triangular) and C = L L^T the error E|W (I - P) x|^2 is |F L - F P L|^2, least where F P L is
    the best approximation of rank r to F L (Eckart and Young). With U its left singular vectors, the eigenvectors of
    F C F^T, that is P = F^-1 U_r U_r^T F: an oblique projector, A = F^T U and B = F^-1 U. Without a projection F = I
    and these are the principal axes. F alone needs to be invertible, hence the ridge.
    """
    if gram is None:
        axes = principal_axes(moment)
        return axes, axes
    gram = gram.to(moment)
    size = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    size = torch.where(size > 0, size, torch.ones_like(size))
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor = torch.linalg.cholesky(gram + RIDGE * size[:, None, None] * identity).mT
    axes = principal_axes(factor @ moment @ factor.mT)
    return factor.mT @ axes, torch.linalg.solve_triangular(factor, axes, upper=True)


def principal_axes(moment: Tensor) -> Tensor:
    """Orthonormal eigenvectors as columns, largest eigenvalue first: (H, d, d) -> (H, d, d)."""
    return torch.linalg.eigh(moment).eigenvectors.flip(-1)
