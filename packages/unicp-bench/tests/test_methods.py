import pytest

from unicp.errors import InputError, UniCPError
from unicp_bench import suites
from unicp_bench.methods import parse_method
from unicp_bench.suites import suite
from unicp_testbeds.prompts import SPLITS, prompts_of

SUITES = ("presets", "quick", "peers", "rivals", "leaders", "ablation", "paper", "slices", "seconds")


@pytest.mark.parametrize("name", SUITES)
def test_names_in_a_suite_are_unique_and_found_again(name):
    methods = list(suite(name).methods)
    assert len({method.name for method in methods}) == len(methods)
    for method in methods:
        assert parse_method(method.name, methods) is method


@pytest.mark.parametrize("chosen", [suites._STRONG, suites._LEADERS, suites._AT_TWO])
def test_settings_chosen_by_name_are_settings_of_the_sweep(chosen):
    known = {(method.family, method.setting) for method in suite("peers").methods}
    asked = {(family, setting) for family, settings in chosen.items() for setting in settings}
    assert not asked - known


def test_every_peer_has_a_sweep():
    families: dict[str, int] = {}
    for method in suite("peers").methods:
        families[method.family] = families.get(method.family, 0) + 1
    alone = {name for name, count in families.items() if count < 2}
    assert alone == {"cache-dit DBCache + FoCa"}  # not built in that library; its row says so
    assert len(families) >= 12


@pytest.mark.parametrize(
    ("text", "family", "setting"),
    [
        ("fast", "UniCP", "fast"),
        ('fast {"tolerance": 0.5}', "UniCP", 'fast {"tolerance": 0.5}'),
        ("fixed window 7", "fixed window", "7"),
        ("fewer steps 7", "fewer steps", "7"),
        ("target psnr>=35", "UniCP planned", "psnr>=35"),
        ("policy:fixed_window", "policy:fixed_window", ""),
        ('policy:error_window {"tolerance": 0.1}', "policy:error_window", '{"tolerance": 0.1}'),
        ("predictor:reuse", "predictor:reuse", ""),
        ('reducer:pca_slices {"slicing": {"tolerance": 0.1}}', "reducer:pca_slices", '{"slicing": {"tolerance": 0.1}}'),
    ],
)
def test_methods_by_name(text, family, setting):
    method = parse_method(text, [])
    assert (method.family, method.setting) == (family, setting)


def test_fewer_steps_take_fewer_steps():
    assert parse_method("fewer steps 7", []).steps == 7


@pytest.mark.parametrize(
    "text",
    [
        "",
        "slow",
        "fewer steps 0",
        "fewer steps \u00b2",
        "fewer steps \u0663",
        "fixed window " + "9" * 5000,
        "fast " + "[" * 50_000,
        'slow {"tolerance": 1}',
        'fast {"speed": 1}',
        "fast {",
        "fast 3",
        "target psnr",
        "policy:",
        "policy:nobodys",
        "colour:blue",
        'policy:error_window {"speed": 1}',
        "policy:error_window {",
        "reducer:pca_slices [1]",
        'predictor:line {"slicing": 3}',
    ],
)
def test_an_unknown_method_is_one_line(text):
    with pytest.raises(UniCPError) as caught:
        parse_method(text, [])
    assert "\n" not in str(caught.value)


def test_an_unknown_suite_is_refused():
    with pytest.raises(InputError, match="peers"):
        suite("everything")


def test_prompts_of_tuning_calibration_and_tables_are_disjoint():
    sets = [set(prompts_of(name)) for name in SPLITS]
    assert sum(len(texts) for texts in sets) == len(set.union(*sets))
    assert all(sets)
