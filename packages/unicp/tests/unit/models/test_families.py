"""The table against the installed diffusers: every attribute and argument name of a row exists there."""

from __future__ import annotations

import inspect
import operator

import diffusers
import pytest
import torch

from tests import tiny_models
from unicp.errors import SettingsError, UnsupportedModelError
from unicp.models.families import FAMILIES, BlockListRow, Family, UnitRow, register
from unicp.models.finder import map_model


def _models():
    return [pytest.param(name, id=name) for name in tiny_models.NAMES]


def test_each_row_has_its_own_name_and_a_tiny_model():
    assert all(name == row.transformer for name, row in FAMILIES.items())
    tested = {type(tiny_models.build(name)).__name__ for name in tiny_models.NAMES}
    assert tested == {name for name, row in FAMILIES.items() if not row.refusal}


def test_refused_models_are_there_and_say_why():
    refused = {name: row for name, row in FAMILIES.items() if row.refusal}
    for name, row in refused.items():
        kind = getattr(diffusers.models.transformers, name, None) or getattr(diffusers, name)
        assert isinstance(kind, type) and not row.block_lists
        with pytest.raises(UnsupportedModelError) as caught:
            map_model(kind.__new__(kind))
        assert caught.value.found == row.refusal and name in caught.value.asked


def test_every_video_transformer_of_diffusers_has_a_row():
    exported = {name for name in dir(diffusers) if name.endswith(("Transformer3DModel", "OmniTransformer"))}
    # Two image models by name, of pipelines that edit pictures.
    images = {"JoyImageEditTransformer3DModel", "JoyImageEditPlusTransformer3DModel"}
    assert exported - images - set(FAMILIES) == set()


@pytest.mark.parametrize("name", _models())
def test_transformer_takes_the_arguments_of_its_row(name):
    transformer = tiny_models.build(name)
    row = FAMILIES[type(transformer).__name__]
    arguments = inspect.signature(type(transformer).forward).parameters
    for argument in (row.sample_argument, row.timestep_argument, row.text_argument, *row.more_samples):
        assert argument in arguments


@pytest.mark.parametrize("name", _models())
def test_blocks_have_the_units_and_take_the_arguments_of_their_row(name):
    transformer = tiny_models.build(name)
    for row in FAMILIES[type(transformer).__name__].block_lists:
        blocks = getattr(transformer, row.attribute)
        assert len(blocks) == tiny_models.LAYERS
        for block in blocks:
            kept = [operator.attrgetter(unit.attribute)(block) for unit in row.units]
            # The last block of Mochi and SD3 has no text feed-forward, and one of SD3 lacks attn2: None, not missing.
            assert all(isinstance(unit, torch.nn.Module) or (unit is None and block is blocks[-1]) for unit in kept)
            arguments = inspect.signature(block.forward).parameters
            assert row.hidden_argument in arguments
            assert row.text_argument is None or row.text_argument in arguments


@pytest.mark.parametrize("name", _models())
def test_blocks_return_what_their_row_says_in_the_order_of_their_row(name):
    transformer = tiny_models.build(name)
    family = FAMILIES[type(transformer).__name__]
    returned = []
    for row in family.block_lists:
        assert ("text" in row.returns) == (row.text_argument is not None)
        for block in getattr(transformer, row.attribute):
            block.register_forward_hook(
                lambda module, args, kwargs, output, row=row: returned.append((row, args, kwargs, output)),
                with_kwargs=True,
            )
    tiny_models.call(transformer, name, tiny_models.inputs(name))

    lists = family.block_lists
    turns = tiny_models.LAYERS
    expected = list(lists) * turns if family.interleaved else [row for row in lists for _ in range(turns)]
    assert [row for row, *_ in returned] == expected
    for row, args, kwargs, output in returned:
        hidden = kwargs.get(row.hidden_argument, args[0] if args else None)
        if row.returns == "hidden":
            assert output.shape == hidden.shape
        elif row.returns in ("hidden_and_text", "text_and_hidden"):
            output = output[::-1] if row.returns == "text_and_hidden" else output
            text = kwargs.get(row.text_argument, args[1] if len(args) > 1 else None)
            assert output[0].shape == hidden.shape
            # SD3's last block drops the text.
            assert output[1] is None or output[1].shape == text.shape
            assert text.shape[1] >= tiny_models.TEXT_TOKENS - 1
        else:
            assert row.refusal and family.stack_refusal


@pytest.mark.parametrize(
    "name",
    [name for name in tiny_models.NAMES if any(unit.text_keys for unit in map_model(tiny_models.build(name)).units)],
)
def test_text_keys_are_the_same_at_every_step(name):
    transformer = tiny_models.build(name)
    row = FAMILIES[type(transformer).__name__].block_lists[0]
    unit = next(unit for unit in row.units if unit.text_keys)
    keys = []
    for block in getattr(transformer, row.attribute):
        getattr(block, unit.attribute).to_k.register_forward_hook(lambda module, args, output: keys.append(output))
    first, second = tiny_models.inputs(name, seed=0, timestep=900.0), tiny_models.inputs(name, seed=1, timestep=100.0)
    tiny_models.call(transformer, name, first)
    tiny_models.call(transformer, name, second | {"encoder_hidden_states": first["encoder_hidden_states"]})
    for early, late in zip(keys[: tiny_models.LAYERS], keys[tiny_models.LAYERS :], strict=True):
        assert torch.equal(early, late)


@pytest.mark.parametrize("name", _models())
def test_tiny_models_answer_to_sample_timestep_and_text(name):
    transformer = tiny_models.build(name)
    plain = tiny_models.inputs(name, batch=2)
    other = tiny_models.inputs(name, batch=2, seed=1)

    def answer(arguments):
        return tiny_models.first(tiny_models.call(tiny_models.build(name), name, arguments))

    with torch.no_grad():
        output = tiny_models.first(tiny_models.call(transformer, name, plain))
        assert output.shape[0] == 2 and torch.isfinite(output).all()
        assert torch.equal(output, answer(plain))
        for change in ("hidden_states", "encoder_hidden_states"):
            assert (answer(plain | {change: other[change]}) - output).std() > 1e-4 * output.std()
        moved = answer(plain | {"timestep": plain["timestep"] / 2})
        assert (moved - output).std() > 1e-3 * output.std()


@pytest.mark.parametrize("name", _models())
def test_tiny_denoising_runs_alike_with_and_without_cache_context(name):
    transformer = tiny_models.build(name)
    plain = tiny_models.denoise(transformer, name, steps=3)
    named = hasattr(transformer, "cache_context")
    assert plain.shape == tiny_models.inputs(name)["hidden_states"].shape
    assert torch.isfinite(plain).all()
    assert torch.equal(plain, tiny_models.denoise(transformer, name, steps=3, use_cache_context=named))
    assert not torch.equal(plain, tiny_models.denoise(transformer, name, steps=3, branches=1))


def test_a_row_that_cannot_work_is_not_registered():
    units = (UnitRow("attn", "self"),)
    bad = {
        "a str": "MyTransformer",
        "My Transformer": Family("My Transformer"),
        "no block_lists": Family("MyTransformer"),
        "no units": Family("MyTransformer", (BlockListRow("blocks", ()),)),
        "text_argument": Family("MyTransformer", (BlockListRow("blocks", units, "hidden_and_text"),)),
        "without a refusal": Family("MyTransformer", (BlockListRow("blocks", units, "other"),)),
        "a class that UniCP knows": Family("WanTransformer3DModel", (BlockListRow("blocks", units),)),
    }
    for found, row in bad.items():
        with pytest.raises(SettingsError) as caught:
            register(row)  # type: ignore[arg-type]
        assert found in caught.value.found and "to register" in caught.value.asked
