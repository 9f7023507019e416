"""What a small test-bed is: data, the parts of a pipeline, and how its transformer is called in training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from unicp_testbeds import components
from unicp_testbeds.beds.autoencoder import LinearAutoencoder
from unicp_testbeds.beds.worlds import World
from unicp_testbeds.training_loop import Stage, stratified

TEXT_WIDTH, POOLED_WIDTH, TEXT_LENGTH = components.TEXT_WIDTH, 32, 16


@dataclass(frozen=True)
class Noisy:
    """What a transformer is given in training, and what it should answer.

    Attributes:
        sample: Noisy latents.
        time: As the model is told it, (B,).
        target: The answer.
    """

    sample: Tensor
    time: Tensor
    target: Tensor


class Noising:
    """How noise is put into clean latents."""

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Noisy:
        """Draws noise and a level for each sample of a batch (B, …)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Flow(Noising):
    """Flow matching: (1 - level) clean + level noise, answered by noise - clean (Lipman et al. 2023).

    shift: moves the drawn levels towards noise, as that of a sampler.
    """

    shift: float = 2.0

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Noisy:
        """Levels of a logit-normal distribution (Esser et al. 2024), then moved."""
        level = stratified(len(clean), generator)
        level = torch.sigmoid(1.1 * math.sqrt(2) * torch.erfinv((2 * level - 1).clamp(-0.999, 0.999)))
        level = self.shift * level / (1 + (self.shift - 1) * level)
        noise = torch.randn(clean.shape, generator=generator)
        share = level.view(-1, *[1] * (clean.dim() - 1))
        return Noisy((1 - share) * clean + share * noise, 1000 * level, noise - clean)


@dataclass(frozen=True)
class Diffusion(Noising):
    """The schedule of variances of a scheduler, answered by the noise (Ho et al. 2020)."""

    scheduler: Any

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Noisy:
        """Times evenly spread."""
        time = (1000 * stratified(len(clean), generator)).long().clamp(0, 999)
        noise = torch.randn(clean.shape, generator=generator)
        signal = self.scheduler.alphas_cumprod[time].view(-1, *[1] * (clean.dim() - 1))
        return Noisy(signal.sqrt() * clean + (1 - signal).sqrt() * noise, time, noise)


@dataclass(frozen=True)
class Velocity(Noising):
    """A velocity, with levels and scales of Karras et al. (2022) for data of deviation 1.

    The angle of a level is atan(sigma). With c = cos and s = sin of it the model is given c clean + s noise, which is
    (clean + sigma noise) over sqrt(1 + sigma^2), and answers c noise - s clean (Salimans & Ho 2022). It is told
    log(sigma) / 4.
    """

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Noisy:
        """Angles evenly spread."""
        angle = (0.012 + 0.985 * stratified(len(clean), generator)) * math.pi / 2
        noise = torch.randn(clean.shape, generator=generator)
        c, s = (one.view(-1, *[1] * (clean.dim() - 1)) for one in (angle.cos(), angle.sin()))
        return Noisy(c * clean + s * noise, 0.25 * angle.tan().log(), c * noise - s * clean)


class Bed:
    """A small test-bed. A subclass says what is different.

    Attributes:
        name: Of `NAMES`.
        kind: Name of the pipeline's class in diffusers.
        stages: Of the training.
        defaults: Arguments of the pipeline.
        noising: Of the training.
        is_matrix: Part of the names of weights that Muon trains.
        is_guided_inside: Whether the model is told a guidance weight, and has to learn what it does.
    """

    name: str
    kind: str
    world: World
    stages: tuple[Stage, ...]
    defaults: dict[str, Any]
    noising: Noising
    is_matrix: str = "blocks."
    is_guided_inside: bool = False

    def transformer(self) -> nn.Module:
        """A fresh one."""
        raise NotImplementedError

    def autoencoder(self, data: Tensor) -> LinearAutoencoder:
        """Fitted to data."""
        raise NotImplementedError

    def other_parts(self) -> dict[str, Any]:
        """All parts of the pipeline but transformer and autoencoder, by name."""
        raise NotImplementedError

    def encode(self, pipe: Any, captions: list[str]) -> dict[str, Tensor]:
        """What the pipeline tells its transformer of the captions: tensors with the captions first."""
        raise NotImplementedError

    def call(self, transformer: Any, noisy: Noisy, text: dict[str, Tensor], guidance: Tensor | None) -> Tensor:
        """Calls the transformer as the pipeline does; gives what should be `noisy.target`."""
        raise NotImplementedError

    def data(self, values: Sequence[Sequence[str]], frames: int, generator: torch.Generator) -> Tensor:
        """Draws a batch. frames: 1 = single frames, anywhere in a clip; otherwise all."""
        drawn = torch.stack([self.world.draw(one, generator) for one in values])
        if frames == 1 and drawn.dim() == 5:
            place = int(torch.randint(drawn.shape[2], (), generator=generator))
            return drawn[:, :, place : place + 1]
        return drawn

    def prepare(self, out: Path) -> None:
        """Called before a training: fetches what it needs into its folder."""


def initialised(model: Any, zero: nn.Linear, gates: Sequence[Any] = ()) -> Any:
    """Xavier for matrices, zero for biases and for the head; tables of gates (rows 2 and 5) begin open."""
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    nn.init.zeros_(zero.weight)
    with torch.no_grad():
        for gate in gates:
            gate.view(6, -1)[[2, 5]] += 1.0
    return model


def t5_parts(words: Sequence[str], length: int = TEXT_LENGTH) -> dict[str, Any]:
    """A tokenizer of these words, and a frozen T5 that reads them."""
    tokenizer = components.build_tokenizer(words)
    tokenizer.model_max_length = length
    encoder = components.frozen_encoder(transformers.T5EncoderModel, transformers.T5Config, len(tokenizer))
    return {"tokenizer": tokenizer, "text_encoder": encoder}


def clip_encoder(vocabulary: int, projected: bool = False) -> Any:
    """A frozen one-layer text encoder of CLIP's kind with random weights."""
    config = transformers.CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=POOLED_WIDTH,
        projection_dim=POOLED_WIDTH,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=2,
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return _frozen(lambda: kind(config))


def llama_encoder(vocabulary: int) -> Any:
    """A frozen decoder of Llama's kind with orthogonal word vectors, which is what HunyuanVideo reads of two layers."""
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    model = _frozen(lambda: transformers.LlamaModel(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        components.make_words_orthogonal(model, vocabulary)
    return model


def _frozen(make: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return make().eval().requires_grad_(False)
