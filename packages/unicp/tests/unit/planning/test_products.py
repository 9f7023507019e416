"""Products of estimates: read between recorded levels, turned into those of outputs, kept in files."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.made_profiles import CUBE, flow_levels, noise_at, products
from unicp.errors import FileFormatError
from unicp.numerics.noise_levels import NoiseLevel, coefficients, estimate_parts
from unicp.planning import prior
from unicp.planning.products import Products, whole_matrix


def test_a_cubic_is_read_exactly_between_recorded_levels():
    known, places = products(flow_levels()[:-1]), [-2.1, 0.3, 1.7]
    rows = np.array([noise_at(place) for place in places])
    assert known.at(places)[:3, :3] == pytest.approx(rows @ rows.T / 3, rel=1e-6)


def test_beyond_the_recorded_levels_the_last_ones_are_taken():
    known = products(flow_levels()[:-1])
    ends = known.at([known.places[0] - 5, known.places[-1] + 5])
    assert ends == pytest.approx(known.at([known.places[0], known.places[-1]]))


def test_noise_alone_is_never_mixed_with_other_levels():
    levels = [NoiseLevel(0.0, 1.0), *flow_levels()[1:-1]]
    rows = np.eye(2 * len(levels))
    known = Products.of(rows, [level.log_snr for level in levels])
    assert known.places[0] == -20
    assert known.at([-20.0])[0, 0] == 1 and known.at([known.places[1] - 1])[0, 0] == 1
    table = known.at([-20.0, known.places[1] - 1])
    assert table[0, 1] == 0


@given(
    prediction=st.sampled_from(["flow", "turned_flow", "epsilon", "v_prediction", "sample"]),
    angle=st.floats(0.05, 1.5),
    eps=st.floats(-2, 2),
    clean=st.floats(-2, 2),
)
def test_an_output_is_the_sum_of_its_estimates(prediction, angle, eps, clean):
    level = NoiseLevel(math.cos(angle), math.sin(angle))
    if "flow" in prediction:
        level = NoiseLevel(1 - angle / 2, angle / 2)
    a, b = estimate_parts(prediction, level)
    sample, output = level.signal * clean + level.noise * eps, a * eps + b * clean
    for quantity, expected in (("noise", eps), ("clean", clean)):
        p, q = coefficients(quantity, prediction, level)
        assert p * sample + q * output == pytest.approx(expected, abs=1e-9)


def test_outputs_of_a_flow_are_noise_less_clean():
    levels = flow_levels(6)[:-1]
    rows = np.random.default_rng(0).normal(size=(12, 50))
    known = Products.of(rows @ rows.T / 50, [level.log_snr for level in levels], digits=17)
    outputs = rows[:6] - rows[6:]
    assert known.outputs("flow", levels) == pytest.approx(outputs @ outputs.T / 50)


def test_files_of_products(tmp_path):
    known = products(flow_levels()[:-1])
    prior.save_products(known, tmp_path / "products.json")
    assert prior.load_products(tmp_path / "products.json") == known


@pytest.mark.parametrize(
    ("places", "rows", "found"),
    [
        ([0.0, 1.0, 2.0, 3.0, 3.0], 10, "do not fall"),
        ([0.0, 1.0], 4, "do not fall"),
        ([0.0, 1.0, 2.0, 3.0, 4.0], 9, "another size"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(places, rows, found):
    with pytest.raises(FileFormatError, match=found):
        Products(places, [[0.0] * (n + 1) for n in range(rows)])


def test_the_built_in_products_are_those_of_models():
    known = prior.prior()
    assert known.places[0] == -20 and len(known.places) == len(prior.GRID)
    # A matrix of mean products has no negative eigenvalues, but for rounding.
    values = np.linalg.eigvalsh(whole_matrix(known.table))
    assert values[0] > -1e-4 * values[-1]


def test_others_stand_in_for_the_built_in_ones_within_a_block():
    other = products(flow_levels()[:-1], 2 * CUBE)
    with prior.standing_in(other):
        assert prior.prior() is other
    assert prior.prior() is not other


def test_pooled_products_are_the_mean_over_models():
    both = [products(flow_levels()[:-1], cube) for cube in (CUBE, 3 * CUBE)]
    at = [-1.0, 0.5]
    mean = (both[0].at(at) + both[1].at(at)) / 2
    assert prior.pooled(both).at(at) == pytest.approx(mean, rel=1e-4)
