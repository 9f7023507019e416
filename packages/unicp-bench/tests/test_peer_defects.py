"""Defects of peers, each in its smallest form. A test here that begins to fail means that a peer was fixed:
then docs/peers.md and its adapter have to follow."""

from __future__ import annotations

import pytest
import torch
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    HookRegistry,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)

from tests import tiny_models

TIME = torch.tensor([500])


def hooked(model) -> list[str]:
    """Names of the modules that carry a hook of diffusers."""
    return [n for n, m in model.named_modules() if n and getattr(getattr(m, "_diffusers_hook", None), "hooks", None)]


def wan_call(model, sample, text, branch):
    with torch.no_grad(), model.cache_context(branch):
        return model(hidden_states=sample, timestep=TIME, encoder_hidden_states=text, return_dict=False)[0]


def test_pyramid_attention_broadcast_serves_one_branch_to_the_other():
    torch.manual_seed(0)
    model = tiny_models.wan()
    config = model.config
    sample = torch.randn(1, config["in_channels"], 3, 8, 8)
    texts = [torch.randn(1, 7, config["text_dim"]) for _ in range(2)]
    plain = [wan_call(model, sample, text, name) for text, name in zip(texts, ("cond", "uncond"))]
    assert not torch.allclose(plain[0], plain[1])
    model.enable_cache(
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            cross_attention_block_skip_range=2,
            current_timestep_callback=lambda: 500,
        )
    )
    served = [wan_call(model, sample, text, name) for text, name in zip(texts, ("cond", "uncond"))]
    assert torch.equal(served[0], plain[0])
    # The attention outputs of the second branch are those of the first: the prompt has no part in it any more.
    assert torch.allclose(served[1], served[0], atol=1e-5)
    assert not torch.allclose(served[1], plain[1], atol=1e-3)


@pytest.mark.parametrize("name", ["wan", "cogvideox", "latte"])
def test_the_defaults_of_taylor_seer_match_no_module(name):
    model = getattr(tiny_models, name)()
    model.enable_cache(TaylorSeerCacheConfig())
    assert hooked(model) == []


def test_faster_cache_breaks_on_a_model_whose_branches_are_called_one_after_the_other():
    torch.manual_seed(0)
    model = tiny_models.wan()
    config = model.config
    sample, text = torch.randn(1, config["in_channels"], 3, 8, 8), torch.randn(1, 7, config["text_dim"])
    model.enable_cache(FasterCacheConfig(current_timestep_callback=lambda: 500))
    with pytest.raises(IndexError):
        for _ in range(4):
            for branch in ("cond", "uncond"):
                wan_call(model, sample, text, branch)


def test_first_block_cache_needs_a_cache_context_that_latte_never_enters():
    model = tiny_models.latte()
    config = model.config
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    sample = torch.randn(2, config["in_channels"], config["video_length"], config["sample_size"], config["sample_size"])
    text = torch.randn(2, 5, config["caption_channels"])
    with pytest.raises(ValueError, match="context"), torch.no_grad():
        model(sample, timestep=torch.tensor([500, 500]), encoder_hidden_states=text, return_dict=False)


def test_pyramid_attention_broadcast_gives_temporal_blocks_the_spatial_range():
    model = tiny_models.latte()
    model.enable_cache(
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            temporal_attention_block_skip_range=3,
            current_timestep_callback=lambda: 500,
        )
    )
    ranges = {
        name.split(".")[0]: HookRegistry.check_if_exists_or_initialize(model.get_submodule(name))
        .get_hook("pyramid_attention_broadcast")
        .block_skip_range
        for name in hooked(model)
        if name.endswith("attn1")
    }
    assert ranges == {"transformer_blocks": 2, "temporal_transformer_blocks": 2}  # asked for 3 in the latter
