"""Slices in which each head has its own width: the choice of widths, and attention that runs them in groups.

Heads differ in rank, so a mean width may be shared out better than evenly. Heads of one width are one kernel call,
hence at most three widths. UniCP takes one width for all heads (docs/results.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from unicp.errors import InputError
from unicp.reducers.bases import Bases
from unicp.reducers.pca_slices import sliced_attention

GROUPS = 3


def predicted_errors(
    query: Tensor, key: Tensor, output: Tensor, bases: Bases, widths: Sequence[int], scale: float | None = None
) -> Tensor:
    """Mean square that each head's output is predicted to miss at each width, from energies alone.

    Directions left out of the values lose their energy in the output. Directions left out of the scores lose a mean
    square s of them, which changes the output by about s times its energy about its mean (to first order, if the loss
    is independent of the key). Our derivation.

    Args:
        query, key: (B, H, S, d), as they enter attention.
        output: Of attention, (B, H, S, d).
        bases: Of full width.
        widths: To predict for.
        scale: Of the scores; `None` = 1 / sqrt(d).

    Returns:
        (H, len(widths)).
    """
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    queries = _mean_squares(query @ bases.query)
    keys = _mean_squares((key - bases.key_mean[:, None]) @ bases.key)
    outputs = _mean_squares((output - bases.value_mean[:, None]) @ bases.value)
    scores = scale**2 * queries * keys
    return torch.stack([_left(outputs, w) + _left(scores, w) * outputs.sum(-1) for w in widths], dim=-1)


def _mean_squares(coordinates: Tensor) -> Tensor:
    return coordinates.square().mean(dim=(0, 2))


def _left(energies: Tensor, width: int) -> Tensor:
    return energies[:, width:].sum(-1)


def choose_widths(
    errors: Sequence[Sequence[float]], widths: Sequence[int], mean_width: float, groups: int = GROUPS
) -> tuple[int, ...]:
    """Chooses the width of each head for the least sum of errors at a mean width.

    Every set of at most `groups` widths is filled from its narrowest by the largest gain per channel that still fits,
    and the best set wins. Sets of one width count too, so the sum is never above that of equal widths.

    Args:
        errors: By head and by width, in the order of `widths`.
        widths: Possible widths, rising.
        mean_width: Largest mean over heads.
        groups: Most distinct widths.

    Raises:
        InputError: Not even the narrowest width fits.
    """
    fillings = (
        filled
        for count in range(1, groups + 1)
        for chosen in combinations(range(len(widths)), count)
        if (filled := _filled(errors, widths, chosen, mean_width * len(errors))) is not None
    )
    best = min(fillings, key=lambda places: sum(row[place] for row, place in zip(errors, places)), default=None)
    if best is None:
        raise InputError(f"heads of a mean width {mean_width}", f"a narrowest width of {widths[0]}", "ask for more")
    return tuple(widths[place] for place in best)


def _filled(
    errors: Sequence[Sequence[float]], widths: Sequence[int], chosen: Sequence[int], budget: float
) -> list[int] | None:
    """Index into `widths` for each head, of those in `chosen`; None if the narrowest is too wide."""
    levels = [0] * len(errors)
    left = budget - widths[chosen[0]] * len(errors)
    if left < 0:
        return None
    while True:
        steps = [
            ((errors[head][chosen[level]] - errors[head][chosen[level + 1]]) / more, more, head)
            for head, level in enumerate(levels)
            if level + 1 < len(chosen) and (more := widths[chosen[level + 1]] - widths[chosen[level]]) <= left
        ]
        if not steps or max(steps)[0] <= 0:
            return [chosen[level] for level in levels]
        _, more, head = max(steps)
        levels[head] += 1
        left -= more


def sliced_by_head(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bases: Bases,
    widths: Sequence[int],
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """`sliced_attention` with a width for each head, one call for all heads of a width: (B, H, S, d).

    Raises:
        InputError: Widths and heads differ in number; and as `sliced_attention`.
    """
    if len(widths) != query.shape[1]:
        raise InputError("widths by head", f"{len(widths)} widths for {query.shape[1]} heads", "give one for each")
    output = torch.empty_like(query)
    for width in sorted(set(widths)):
        heads = [head for head, own in enumerate(widths) if own == width]
        part = Bases(*(x[heads] for x in vars(bases).values()))
        mask = attn_mask
        if mask is not None and mask.dim() > 2 and mask.shape[-3] == len(widths):
            mask = mask[..., heads, :, :]
        inputs = query[:, heads], key[:, heads], value[:, heads]
        output[:, heads] = sliced_attention(*inputs, part, width, attn_mask=mask, scale=scale)
    return output
