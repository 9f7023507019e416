"""What is found in each transformer, by name and role, and what is said when nothing is."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import nn

from tests import tiny_models
from unicp.errors import UnsupportedModelError
from unicp.models.families import FAMILIES
from unicp.models.finder import map_model, transformers_of

UNITS = {
    "wan": [
        (f"blocks.{place}.{unit}", role, place)
        for place in range(2)
        for unit, role in (("attn1", "self"), ("attn2", "cross"), ("ffn", "feed_forward"))
    ],
    "cogvideox": [
        (f"transformer_blocks.{place}.{unit}", role, place)
        for place in range(2)
        for unit, role in (("attn1", "joint"), ("ff", "feed_forward"))
    ],
    "latte": [
        ("transformer_blocks.0.attn1", "spatial", 0),
        ("transformer_blocks.0.attn2", "cross", 0),
        ("transformer_blocks.0.ff", "feed_forward", 0),
        ("temporal_transformer_blocks.0.attn1", "temporal", 1),
        ("temporal_transformer_blocks.0.ff", "feed_forward", 1),
        ("transformer_blocks.1.attn1", "spatial", 2),
        ("transformer_blocks.1.attn2", "cross", 2),
        ("transformer_blocks.1.ff", "feed_forward", 2),
        ("temporal_transformer_blocks.1.attn1", "temporal", 3),
        ("temporal_transformer_blocks.1.ff", "feed_forward", 3),
    ],
    "hunyuan_video": [
        ("transformer_blocks.0.attn", "joint", 0),
        ("transformer_blocks.0.ff", "feed_forward", 0),
        ("transformer_blocks.0.ff_context", "feed_forward", 0),
        ("transformer_blocks.1.attn", "joint", 1),
        ("transformer_blocks.1.ff", "feed_forward", 1),
        ("transformer_blocks.1.ff_context", "feed_forward", 1),
        ("single_transformer_blocks.0.attn", "joint", 2),
        ("single_transformer_blocks.1.attn", "joint", 3),
    ],
}


def _blocks(attribute, units, first=0):
    """The units of two blocks, from execution index `first` on."""
    return [
        (f"{attribute}.{place}.{unit}", role, first + place)
        for place in range(2)
        for unit, role in (pair.split(":") for pair in units.split())
    ]


_CROSS = "attn1:self attn2:cross ff:feed_forward"
_MMDIT = "attn:joint ff:feed_forward ff_context:feed_forward"
UNITS |= {
    "skyreels_v2": UNITS["wan"],
    "wan_vace": _blocks("vace_blocks", "attn1:self attn2:cross ffn:feed_forward")
    + _blocks("blocks", "attn1:self attn2:cross ffn:feed_forward", 2),
    "ltx": _blocks("transformer_blocks", _CROSS),
    # The last block has no feed-forward for the text.
    "mochi": _blocks("transformer_blocks", "attn1:joint ff:feed_forward ff_context:feed_forward")[:-1],
    "allegro": _blocks("transformer_blocks", _CROSS),
    "hunyuan_video15": _blocks("transformer_blocks", _MMDIT),
    "framepack": UNITS["hunyuan_video"],
    "consisid": UNITS["cogvideox"],
    "sana_video": _blocks("transformer_blocks", _CROSS),
    "kandinsky5": _blocks(
        "visual_transformer_blocks", "self_attention:self cross_attention:cross feed_forward:feed_forward"
    ),
    "chrono_edit": UNITS["wan"],
    "cosmos": _blocks("transformer_blocks", _CROSS),
    # The second block sends both streams through one feed-forward.
    "easy_animate": _blocks("transformer_blocks", "attn1:joint ff:feed_forward txt_ff:feed_forward")[:4],
    "flux": UNITS["hunyuan_video"],
    "qwen_image": _blocks("transformer_blocks", "attn:joint img_mlp:feed_forward txt_mlp:feed_forward"),
    "pixart": _blocks("transformer_blocks", _CROSS),
    "wan_animate": UNITS["wan"],
    "helios": UNITS["wan"],
    "anyflow": UNITS["wan"],
    "motif_video": _blocks("transformer_blocks", "attn:joint cross_attn:cross ff:feed_forward ff_context:feed_forward")
    + _blocks("single_transformer_blocks", "attn:joint cross_attn:cross", 2),
    "minimax_h3": _blocks("transformer_blocks", "attn:joint ff:feed_forward"),
    "ltx2": _blocks(
        "transformer_blocks",
        "attn1:self audio_attn1:self attn2:cross audio_attn2:cross audio_to_video_attn:cross "
        "video_to_audio_attn:cross ff:feed_forward audio_ff:feed_forward",
    ),
    "kandinsky6": _blocks(
        "visual_transformer_blocks",
        "video_dec_block.self_attention:self video_dec_block.cross_attention:cross "
        "audio_dec_block.self_attention:self audio_dec_block.cross_attention:cross "
        "va_cross_attention:cross av_cross_attention:cross "
        "video_dec_block.feed_forward:feed_forward audio_dec_block.feed_forward:feed_forward",
    ),
    # The first block has a second attention, the last no feed-forward for the text.
    "sd3": [
        ("transformer_blocks.0.attn", "joint", 0),
        ("transformer_blocks.0.attn2", "self", 0),
        ("transformer_blocks.0.ff", "feed_forward", 0),
        ("transformer_blocks.0.ff_context", "feed_forward", 0),
        ("transformer_blocks.1.attn", "joint", 1),
        ("transformer_blocks.1.ff", "feed_forward", 1),
    ],
    "flux2": UNITS["hunyuan_video"],
    "z_image": _blocks("layers", "attention:joint feed_forward:feed_forward"),
    "sana": _blocks("transformer_blocks", _CROSS),
    "chroma": UNITS["hunyuan_video"],
    "aura_flow": _blocks("joint_transformer_blocks", _MMDIT)
    + _blocks("single_transformer_blocks", "attn:joint ff:feed_forward", 2),
    "cogview4": _blocks("transformer_blocks", "attn1:joint"),
    "hunyuan_image": UNITS["hunyuan_video"],
    "lumina2": _blocks("layers", "attn:joint feed_forward:feed_forward"),
    "stable_audio": _blocks("transformer_blocks", _CROSS),
    "ace_step": _blocks("layers", "self_attn:self cross_attn:cross mlp:feed_forward"),
}
UNSLICEABLE = {
    "mochi": "on its own",
    "sana_video": "linear attention",
    "sana": "linear attention",
    "ace_step": "share one of keys",
}
# diffusers cannot fuse their projections.
UNFUSED = ("mochi", "kandinsky5", "kandinsky6", "anyflow", "ace_step")
# Their text passes blocks that see the step, or is changed by it.
NO_TEXT_KEYS = ("kandinsky5", "kandinsky6", "motif_video", "ltx2")


def _names(found):
    return [unit.name for unit in found]


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_units_are_found_in_execution_order(name):
    transformer = tiny_models.build(name)
    found = map_model(transformer)
    assert [(unit.name, unit.role, unit.block) for unit in found.units] == UNITS[name]
    assert [block.index for block in found.blocks] == list(range(len(found.blocks)))
    for entry in (*found.blocks, *found.units):
        assert transformer.get_submodule(entry.name) is entry.module


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_units_run_in_the_order_found(name):
    transformer = tiny_models.build(name)
    found, called = map_model(transformer), []
    for unit in found.units:
        unit.module.register_forward_hook(lambda module, args, output, unit=unit: called.append(unit.name))
    tiny_models.call(transformer, name, tiny_models.inputs(name))
    assert called == _names(found.units)


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_heads_are_read_and_feed_forwards_refuse_slicing(name):
    for unit in map_model(tiny_models.build(name)).units:
        if unit.role == "feed_forward":
            assert (unit.heads, unit.head_width, unit.sliceable, unit.why_not) == (None, None, False, "no attention")
        else:
            assert (unit.heads, unit.head_width) == (tiny_models.HEADS, tiny_models.HEAD_WIDTH)
            if name in UNSLICEABLE and (unit.role != "cross" or name == "ace_step"):
                assert not unit.sliceable and UNSLICEABLE[name] in unit.why_not
            else:
                assert (unit.sliceable, unit.why_not) == (True, "")


def test_head_width_comes_from_the_projection_when_the_attention_does_not_say():
    transformer = tiny_models.wan()
    del transformer.blocks[0].attn1.inner_dim
    del transformer.blocks[1].attn1.heads
    first, second = map_model(transformer).units_with(["self"])
    assert (first.heads, first.head_width, first.sliceable) == (2, 16, True)
    assert (second.heads, second.sliceable, second.why_not) == (None, False, "its heads cannot be told")


def test_the_output_projection_is_the_layer_after_attention_or_nothing():
    model = tiny_models.build("wan")
    unit = map_model(model).units[0]
    weight = model.blocks[0].attn1.to_out[0].weight
    found = unit.output_projection
    assert found is not None and found.data_ptr() == weight.data_ptr() and not found.requires_grad
    assert map_model(model).units[2].output_projection is None  # a feed-forward
    # No weight of numbers, and none of another shape.
    for layer in (nn.Identity(), nn.Linear(3, 3), nn.Linear(*reversed(weight.shape), device="meta")):
        unit.module.to_out[0] = layer
        assert unit.output_projection is None
    quantised = nn.Linear(*reversed(weight.shape))
    quantised.weight = nn.Parameter(torch.zeros(weight.shape, dtype=torch.int8), requires_grad=False)
    unit.module.to_out[0] = quantised
    assert unit.output_projection is None


def test_only_cross_attention_to_the_text_has_text_keys():
    for name in tiny_models.NAMES:
        found = map_model(tiny_models.build(name))
        expected = [] if name in NO_TEXT_KEYS else _names(found.units_with(["cross"]))
        assert _names(unit for unit in found.units if unit.text_keys) == expected
    assert map_model(tiny_models.cogvideox()).units_with(["cross", "self"]) == ()


def test_image_conditioned_wan_has_the_same_units():
    found = map_model(tiny_models.wan(added_kv_proj_dim=32, image_dim=8))
    assert [(unit.name, unit.role, unit.block) for unit in found.units] == UNITS["wan"]


def test_image_conditioned_hunyuan_has_the_same_units():
    found = map_model(tiny_models.hunyuan_video(image_condition_type="token_replace"))
    assert [(unit.name, unit.role, unit.block) for unit in found.units] == UNITS["hunyuan_video"]


def test_units_that_a_block_holds_as_none_are_skipped():
    transformer = tiny_models.latte(cross_attention_dim=None)
    assert transformer.transformer_blocks[0].attn2 is None
    assert not map_model(transformer).units_with(["cross"])
    assert len(map_model(transformer).units) == 8


def test_no_unit_for_the_missing_cross_attention_of_temporal_blocks():
    transformer = tiny_models.latte()
    assert transformer.temporal_transformer_blocks[0].attn2 is None
    assert "temporal_transformer_blocks.0.attn2" not in _names(map_model(transformer).units)


def test_the_stack_is_refused_where_blocks_differ_or_something_is_added_between_them():
    refusals = {name: map_model(tiny_models.build(name)).stack_refusal for name in tiny_models.NAMES}
    refused = {name: refusal for name, refusal in refusals.items() if refusal}
    assert "token layouts" in refused.pop("latte")
    apart = {"flux2", "chroma", "aura_flow"}
    assert all("different streams" in refused.pop(name) for name in apart)
    assert "start anew" in refused.pop("motif_video") and "may be missing" in refused.pop("kandinsky6")
    added = {"wan_vace", "wan_animate", "consisid", "sana_video", "flux", "qwen_image", "sd3", "z_image", "sana"}
    assert set(refused) == added
    assert all("added twice" in refusal for refusal in refused.values())


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_fused_projections_change_nothing(name):
    transformer = tiny_models.build(name)
    before = [unit.sliceable for unit in map_model(transformer).units]
    for module in transformer.modules():
        if hasattr(module, "fuse_projections"):
            # The attention of some models lacks what diffusers' fusing expects of it.
            with suppress(AttributeError):
                module.fuse_projections()
    fused = any(getattr(module, "fused_projections", False) for module in transformer.modules())
    assert fused is (name not in UNFUSED)
    assert [(unit.name, unit.role, unit.block) for unit in map_model(transformer).units] == UNITS[name]
    assert [unit.sliceable for unit in map_model(transformer).units] == before


def test_subclasses_match():
    class Tuned(WanTransformer3DModel):
        pass

    transformer = tiny_models.wan()
    transformer.__class__ = Tuned
    assert map_model(transformer).family is FAMILIES["WanTransformer3DModel"]


def test_compiled_transformers_are_looked_through():
    transformer = tiny_models.wan()
    found = map_model(torch.compile(transformer))
    assert found.transformer is transformer
    assert [(unit.name, unit.role, unit.block) for unit in found.units] == UNITS["wan"]
    assert found.units[0].module is transformer.blocks[0].attn1


def test_unknown_models_are_refused_with_the_known_ones_named():
    with pytest.raises(UnsupportedModelError) as caught:
        map_model(nn.Linear(2, 2))
    assert caught.value.found == "Linear"
    assert "docs/models.md" in caught.value.do and "unicp.register" in caught.value.do


@pytest.mark.parametrize("thing", [None, "WanTransformer3DModel", WanTransformer3DModel])
def test_what_is_no_module_is_refused(thing):
    with pytest.raises(UnsupportedModelError, match=f"a {type(thing).__name__}, which is no torch module"):
        map_model(thing)


@pytest.mark.parametrize("missing", ["transformer_blocks", "temporal_transformer_blocks"])
def test_a_known_model_without_its_blocks_is_refused(missing):
    transformer = tiny_models.latte()
    delattr(transformer, missing)
    with pytest.raises(UnsupportedModelError) as caught:
        map_model(transformer)
    assert caught.value.asked == f"a list of blocks in {missing} of LatteTransformer3DModel"
    assert caught.value.found == "nothing there"
    assert "table row" in caught.value.do


def test_a_known_model_without_one_of_its_units_is_refused():
    transformer = tiny_models.wan()
    del transformer.blocks[1].ffn
    with pytest.raises(UnsupportedModelError) as caught:
        map_model(transformer)
    assert caught.value.asked == "blocks.1.ffn (feed_forward) of WanTransformer3DModel"
    assert caught.value.found == "a WanTransformerBlock without it"


def test_transformers_of_pipelines_and_modules():
    first, second = tiny_models.wan(), tiny_models.wan()
    assert transformers_of(first) == {"transformer": first}
    assert transformers_of(SimpleNamespace(transformer=first)) == {"transformer": first}
    assert transformers_of(SimpleNamespace(transformer=first, transformer_2=None)) == {"transformer": first}
    both = SimpleNamespace(components={"transformer": first, "transformer_2": second, "vae": nn.Linear(1, 1)})
    assert transformers_of(both) == {"transformer": first, "transformer_2": second}
    assert transformers_of(SimpleNamespace(transformer=None, transformer_2=second)) == {"transformer_2": second}


@pytest.mark.parametrize("thing", [None, {}, SimpleNamespace(components={"unet": nn.Linear(1, 1)})])
def test_transformers_of_anything_else_is_refused(thing):
    with pytest.raises(UnsupportedModelError) as caught:
        transformers_of(thing)
    assert "pipeline" in caught.value.asked
    assert caught.value.found == f"a {type(thing).__name__} without one"
