"""A denoising transformer that is in no table, made known by one call."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unicp
from unicp.errors import UnsupportedModelError
from unicp.models import families

STEPS, TOKENS, WIDTH, HEADS = 8, 96, 32, 2


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        context = tokens if context is None else context
        parts = (self.to_q(tokens), self.to_k(context), self.to_v(context))
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        return nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixer, self.reader = Attention(), Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, tokens: Tensor, words: Tensor, time: Tensor) -> Tensor:
        tokens = tokens + self.mixer(tokens * time)
        tokens = tokens + self.reader(tokens, words)
        return tokens + self.mlp(tokens)


class MyDiT(nn.Module):
    """Names of its own for everything, and no base class of diffusers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, latent: Tensor, time: Tensor, words: Tensor) -> Tensor:
        for layer in self.layers:
            latent = layer(latent, words, 1 + time[:, None, None])
        return self.out(latent)


MY_DIT = unicp.Family(
    transformer="MyDiT",
    block_lists=(
        unicp.BlockListRow(
            "layers",
            units=(
                unicp.UnitRow("mixer", "self"),
                unicp.UnitRow("reader", "cross", text_keys=True),
                unicp.UnitRow("mlp", "feed_forward"),
            ),
            hidden_argument="tokens",
        ),
    ),
    sample_argument="latent",
    timestep_argument="time",
    text_argument="words",
    timestep_scale=1000.0,
)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "_registered", {})
    unicp.register(MY_DIT)


def build() -> MyDiT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MyDiT().eval().requires_grad_(False)


def denoise(model: MyDiT) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(2, TOKENS, WIDTH, generator=generator)
    words = torch.randn(2, 4, WIDTH, generator=generator)
    for step in range(STEPS):
        latent = latent - model(latent, torch.full((2,), 1 - step / STEPS), words) / STEPS
    return latent


def test_the_documents_show_this_very_row():
    text = (Path(__file__).resolve().parents[4] / "docs/models.md").read_text(encoding="utf-8")
    shown = re.search(r"unicp\.register\(\n(    unicp\.Family\(.*?\n    \))\n\)", text, re.DOTALL)
    assert shown is not None
    assert eval(textwrap.dedent(shown[1]), {"unicp": unicp}) == MY_DIT


def test_without_a_row_it_is_refused_with_the_call_that_helps():
    with pytest.raises(UnsupportedModelError) as caught:
        unicp.enable(build())
    assert caught.value.found == "MyDiT" and "unicp.register" in caught.value.do


@pytest.mark.parametrize("level", ["model", "stack", "block", "unit"])
@pytest.mark.usefixtures("registered")
def test_every_kind_of_span_serves_it_and_tolerance_zero_is_exact(level: Any):
    model = build()
    plain = denoise(model)
    settings = unicp.preset("balanced", level=level, tolerance=0.5, weighting="uniform", store_factor=64.0)
    with unicp.enable(model, unicp.preset("balanced", level=level, tolerance=0.0)):
        assert torch.equal(denoise(model), plain)
    with unicp.enable(model, settings) as session:
        output = denoise(model)
    assert any(entry.action == "forecast" for entry in session.trace.entries)
    assert float((output - plain).norm() / plain.norm()) < 0.5 and not torch.equal(output, plain)
    assert torch.equal(denoise(model), plain)


@pytest.mark.usefixtures("registered")
def test_it_is_sliced_and_a_new_row_replaces_the_old_one():
    # Its few tokens are too few for slices to save anything.
    slicing = unicp.Slicing(widths=(8,), tolerance=9.0, min_saving=-1e6)
    with unicp.enable(build(), unicp.preset("paper", slicing=slicing)) as session:
        denoise(session._engines[0].map.transformer)  # type: ignore[arg-type]
    assert any(entry.width == 8 for entry in session.trace.entries)
    reason = "not today"
    unicp.register(unicp.Family("MyDiT", refusal=reason))
    with pytest.raises(UnsupportedModelError) as caught:
        unicp.enable(build())
    assert caught.value.found == reason
