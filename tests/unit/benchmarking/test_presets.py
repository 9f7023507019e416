import math

import pytest
import torch

from unicp.benchmarking.presets import PSNR_CAP, default_methods, parse_method, psnr
from unicp.errors import UniCPError


def test_every_default_method_is_found_by_its_name():
    for method in default_methods():
        assert parse_method(method.name) == method


def test_a_preset_with_changes():
    method = parse_method('fast {"tolerance": 0.5}')
    assert method.settings is not None
    assert method.settings.tolerance == 0.5


def test_fewer_steps():
    assert parse_method("7 steps").steps == 7


@pytest.mark.parametrize("text", ["", "slow", "0 steps", 'slow {"tolerance": 1}', 'fast {"speed": 1}'])
def test_an_unknown_method_is_one_line(text):
    with pytest.raises(UniCPError) as caught:
        parse_method(text)
    assert "\n" not in str(caught.value)


def test_psnr_of_a_known_error():
    assert math.isclose(psnr(torch.full((2, 3), 0.6), torch.full((2, 3), 0.5)), 20.0, abs_tol=1e-4)


def test_psnr_of_equal_clips_is_the_cap():
    assert psnr(torch.ones(4), torch.ones(4)) == PSNR_CAP
