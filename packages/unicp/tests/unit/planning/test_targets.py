"""What can be promised, as text."""

from __future__ import annotations

import pytest

from unicp.errors import InputError
from unicp.planning.targets import Target, parse_target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("psnr>=35", Target("psnr", 35.0)),
        (" psnr >= 35.5 dB ", Target("psnr", 35.5)),
        ("speedup>=2", Target("speedup", 2.0)),
        ("speedup>=1.5x", Target("speedup", 1.5)),
        ("seconds<=40", Target("seconds", 40.0)),
    ],
)
def test_targets(text, target):
    assert parse_target(text) == target and parse_target(str(target)) == target


@pytest.mark.parametrize(
    "text", ["", "psnr", "psnr<=35", "seconds>=40", "speed>=2", "psnr>=nan", "psnr>=-3", "psnr>=0", "speedup>=0.5", 35]
)
def test_anything_else_is_refused_in_one_line(text):
    with pytest.raises(InputError) as caught:
        parse_target(text)
    assert "\n" not in str(caught.value) and repr(text) in str(caught.value)
