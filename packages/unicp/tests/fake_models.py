"""A fake transformer with known answers, under a class name that the family table knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

Answer = Callable[[Tensor, Tensor, Tensor], Tensor]


class Block(nn.Module):
    """hidden -> factor * hidden; its three units do nothing."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor
        self.calls = 0
        self.attn1, self.attn2, self.ffn = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None) -> Tensor:
        self.calls += 1
        hidden_states = self.attn2(self.attn1(hidden_states))
        return self.ffn(hidden_states) * self.factor


class WanTransformer3DModel(nn.Module):
    """Found by the table because of its name. Puts out `answer(sample, timestep, hidden)`, hidden by default.

    samples: the inputs it was really computed from. Every block multiplies the hidden stream by `factor`.
    """

    def __init__(self, answer: Answer | None = None, blocks: int = 1, factor: float = 2.0):
        super().__init__()
        self.blocks = nn.ModuleList(Block(factor) for _ in range(blocks))
        self.answer = answer
        self.computed: list[Tensor] = []

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | None = None,
        return_dict: bool = False,
    ) -> Any:
        self.computed.append(timestep.detach().clone())
        hidden = hidden_states
        for block in self.blocks:
            hidden = block(hidden, encoder_hidden_states=encoder_hidden_states)
        return (hidden if self.answer is None else self.answer(hidden_states, timestep, hidden),)


FakeTransformer = WanTransformer3DModel


def flow_scheduler(steps: int) -> FlowMatchEulerDiscreteScheduler:
    """Noise levels from 1 downwards in equal steps, timestep = 1000 x level."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1.0 - step / steps for step in range(steps)])
    return scheduler


def noise(seed: int, *shape: int) -> Tensor:
    """The same normal numbers for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
