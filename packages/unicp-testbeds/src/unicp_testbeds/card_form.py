"""The form of all test-beds' model cards, and sizes and schedules in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DEFAULTS_FILE = "unicp_defaults.json"
ENCODER = "one layer, frozen at random orthogonal word vectors"
TOKENIZER = "the words of the captions, every other word is unknown"

_FORM = """\
---
license: {licence}
library_name: diffusers
pipeline_tag: text-to-video
tags: [{tags}]
---

# {title}

{about}

It loads as any {kind} pipeline does:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("path/to/this/folder")
frames = pipe(
    "{caption}",
{arguments}
).frames[0]
```

These settings are also in `{defaults_file}`{calling}.

## What it knows

{knows}

## Parts

| part | class | size |
|---|---|---|
{parts}

{beside}

## Training

    {command}

{training}

## Scores

{scores}

## Limits

{limits}
- What saves time here shows that a method works; how much it saves on a model a thousand times larger must be measured
  there.

## Licence

{terms}
"""


@dataclass(frozen=True)
class Card:
    """The texts of one test-bed's card, in Markdown.

    Attributes:
        licence: A name that the hub knows; `terms` has it in words.
        calling: Follows the name of the file of defaults.
        parts: Rows of (part, class, size).
        beside: What is no part of the pipeline.
        frames_argument: The pipeline's argument for the number of frames.
    """

    title: str
    tags: str
    kind: str
    about: str
    caption: str
    defaults: dict[str, Any]
    calling: str
    knows: str
    parts: Sequence[tuple[str, str, str]]
    beside: str
    command: str
    training: str
    scores: str
    limits: str
    licence: str
    terms: str
    frames_argument: str = "num_frames"

    def text(self) -> str:
        """The whole card."""
        parts = "\n".join(f"| {' | '.join(row)} |" for row in self.parts)
        renamed = {"num_frames": self.frames_argument}
        given = {renamed.get(name, name): value for name, value in self.defaults.items() if name != "fps"}
        arguments = "\n".join(f"    {name}={value}," for name, value in given.items())
        texts = {**vars(self), "parts": parts, "arguments": arguments}
        return _FORM.format(**texts, defaults_file=DEFAULTS_FILE)


def millions(model: Any) -> str:
    """Number of a model's parameters, in words."""
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters"


def sizes(transformer: Any) -> str:
    """Blocks, heads and parameters of a transformer, in words."""
    config = transformer.config
    heads = f"{config.num_layers} blocks, {config.num_attention_heads} heads of {config.attention_head_dim}"
    return f"{heads}, {millions(transformer)}"


def stages_in_words(stages: Sequence[Any]) -> str:
    """The schedule of a training, in words."""
    return "; ".join(
        f"{stage.name}, {stage.steps:,} steps of {stage.batch} x {stage.frames} frame{'s' if stage.frames > 1 else ''}"
        for stage in stages
    )
