"""Weights of points in the polynomial through them."""

from __future__ import annotations

import pytest

from unicp.numerics.polynomials import lagrange_weights


def test_hand_solved_weights():
    assert lagrange_weights([2.0], 9.0) == [1.0]
    assert lagrange_weights([0.0, 1.0], 3.0) == [-2.0, 3.0]
    # (x - 1)(x - 3) / 3, -x (x - 3) / 2 and x (x - 1) / 6 at 2.
    assert lagrange_weights([0.0, 1.0, 3.0], 2.0) == pytest.approx([-1 / 3, 1.0, 1 / 3])
