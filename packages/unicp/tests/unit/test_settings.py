"""What a user may set, what is refused, and that settings survive being written down."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unicp.errors import SettingsError, UniCPError
from unicp.settings import PRESETS, Settings, Slicing, preset

BAD = [
    ("tolerance", -0.1),
    ("tolerance", math.nan),
    ("tolerance", math.inf),
    ("tolerance", True),
    ("tolerance", "0.1"),
    ("tolerance", None),
    ("level", "layer"),
    ("roles", ()),
    ("roles", ("selfish",)),
    ("roles", "self"),
    ("roles", None),
    ("level", ["model"]),
    ("quantity", "x0"),
    ("quantity", ("noise",)),
    ("axis", "time"),
    ("policy", None),
    ("predictor", 1),
    ("weighting", "loud"),
    ("error_scale", "mine"),
    ("max_window", 0),
    ("max_window", True),
    ("max_window", 2.5),
    ("max_reach", -1.0),
    ("max_reach", math.nan),
    ("full_every", 0),
    ("full_every", True),
    ("full_steps", 3),
    ("full_steps", (1, -1)),
    ("full_steps", (1, True)),
    ("first", 0),
    ("last", -1),
    ("store_dtype", "int8"),
    ("store_factor", math.nan),
    ("store_factor", -1.0),
    ("store_bytes", -1),
    ("store_bytes", True),
    ("slicing", {"widths": (32,)}),
    ("slicing", None),
]
BAD_SLICING = [
    ("widths", (12,)),
    ("widths", (0,)),
    ("widths", (-8,)),
    ("widths", (True,)),
    ("widths", (1.0,)),
    ("widths", (1.5,)),
    ("widths", (0.0,)),
    ("widths", (math.nan,)),
    ("widths", ("32",)),
    ("widths", 32),
    ("tolerance", -1),
    ("tolerance", math.nan),
    ("min_saving", 1.0),
    ("min_saving", math.nan),
    ("min_saving", True),
    ("basis", "fourier"),
    ("refresh", 0),
    ("refresh", True),
]


def assert_is_one_line(error: UniCPError) -> None:
    text = str(error)
    assert "\n" not in text
    assert [part.split(": ")[0] for part in text.split("; ")][0] == "asked"
    assert "; found: " in text and "; do: " in text
    assert error.asked and error.found and error.do


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: repr(value))
def test_a_bad_setting_is_refused_in_one_line_that_names_it(name, value):
    with pytest.raises(SettingsError) as caught:
        Settings(**{name: value})
    assert_is_one_line(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(("name", "value"), BAD_SLICING, ids=lambda value: repr(value))
def test_a_bad_slicing_is_refused_in_one_line(name, value):
    with pytest.raises(SettingsError) as caught:
        Slicing(**{name: value})
    assert_is_one_line(caught.value)


@pytest.mark.parametrize("name", ["paper", "quality", "balanced", "fast"])
def test_every_preset_is_there_and_takes_changes(name):
    assert preset(name) == PRESETS[name]
    changed = preset(name, tolerance=0.0, level="block")
    assert (changed.tolerance, changed.level) == (0.0, "block")
    assert PRESETS[name] == preset(name)


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(SettingsError, match="balanced") as caught:
        preset("turbo")
    assert_is_one_line(caught.value)


def test_an_unknown_field_is_refused_by_preset_and_by_from_dict():
    for make in (lambda: preset("fast", threshold=0.1), lambda: Settings.from_dict({"threshold": 0.1})):
        with pytest.raises(SettingsError, match="threshold") as caught:
            make()
        assert_is_one_line(caught.value)


def test_an_unknown_field_of_slicing_is_refused():
    with pytest.raises(SettingsError, match="width_") as caught:
        Settings.from_dict({"slicing": {"width_": [8]}})
    assert_is_one_line(caught.value)


def test_a_change_of_a_preset_is_checked_too():
    with pytest.raises(SettingsError):
        preset("fast", tolerance=-1)


def test_settings_errors_are_value_errors():
    with pytest.raises(ValueError):
        Settings(tolerance=-1)


@pytest.mark.parametrize(
    ("widths", "found"),
    [
        ((), ()),
        ((32,), (32,)),
        ((48, 16), (16, 48)),
        ((0.5,), (32,)),
        ((0.3,), (24,)),
        ((0.25, 16), (16,)),
        ((0.99,), (64,)),
        ((64,), (64,)),
    ],
)
def test_widths_for_a_head_of_64(widths, found):
    assert Slicing(widths=widths).widths_for(64) == found


def test_a_share_is_rounded_up_to_a_multiple_of_8():
    assert Slicing(widths=(0.5,)).widths_for(40) == (24,)


def test_a_width_above_the_head_is_refused_with_both_numbers():
    with pytest.raises(SettingsError, match="72.*64") as caught:
        Slicing(widths=(72,)).widths_for(64)
    assert_is_one_line(caught.value)


def test_lists_are_taken_as_tuples():
    settings = Settings(roles=["self"], slicing=Slicing(widths=[8]))  # type: ignore[arg-type]
    assert (settings.roles, settings.slicing.widths) == (("self",), (8,))
    hash(settings)


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(AttributeError):
        preset("fast").tolerance = 0.2  # type: ignore[misc]


numbers = st.floats(0, 1e6, allow_nan=False)
widths = st.one_of(st.integers(1, 32).map(lambda n: 8 * n), st.floats(0.01, 0.99))
slicings = st.builds(
    Slicing,
    widths=st.lists(widths, max_size=3).map(tuple),
    tolerance=numbers,
    min_saving=st.floats(-1e6, 0.99),
    basis=st.sampled_from(["pca", "centred_pca", "kq_svd"]),
    refresh=st.integers(1, 9),
)


def some(*names: str) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(names), min_size=1, unique=True).map(tuple)


valid_settings = st.builds(
    Settings,
    tolerance=numbers,
    level=st.sampled_from(["model", "stack", "block", "unit"]),
    roles=some("self", "spatial", "temporal", "joint", "cross", "feed_forward"),
    predictor=st.sampled_from(["line", "reuse", "of a plug-in"]),
    quantity=st.sampled_from(["output", "noise", "clean"]),
    axis=st.sampled_from(["sigma", "log_snr", "step"]),
    weighting=st.sampled_from(["impact", "uniform"]),
    error_scale=st.sampled_from(["stream", "own"]),
    max_window=st.integers(1, 50),
    max_reach=numbers,
    full_every=st.one_of(st.none(), st.integers(1, 9)),
    first=st.integers(1, 9),
    last=st.integers(0, 9),
    text_keys_values=st.booleans(),
    slicing=slicings,
    store_bytes=st.one_of(st.none(), st.integers(0, 10**12)),
    store_factor=numbers,
    store_dtype=st.sampled_from(["same", "float32", "bfloat16", "float16"]),
)


@given(valid_settings)
def test_what_is_written_down_reads_back_the_same(settings):
    assert Settings.from_dict(settings.to_dict()) == settings
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_reads_back_the_same(name):
    assert Settings.from_dict(json.loads(json.dumps(preset(name).to_dict()))) == preset(name)
