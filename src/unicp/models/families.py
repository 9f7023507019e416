"""The transformers UniCP knows, one table row each: where their blocks and units are and what these return.

Data only. Supporting a new model is one more row in `FAMILIES`; no forward is rewritten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unicp.settings import Role

BlockReturn = Literal["hidden", "hidden_and_text"]


@dataclass(frozen=True)
class UnitRow:
    """One unit of a block.

    attribute: where the block keeps it; a block that holds None there lacks the unit.
    role: what it does.
    text_keys: its keys and values come from the text (and a conditioning image) alone, and are the same at every step.
    slice_refusal: why attention here cannot be computed at reduced width; "" = it can.
    """

    attribute: str
    role: Role
    text_keys: bool = False
    slice_refusal: str = ""


@dataclass(frozen=True)
class BlockListRow:
    """One list of blocks of a transformer.

    attribute: where the transformer keeps the list.
    units: in the order in which a block runs them.
    returns: "hidden" = a block returns the video tokens, shape (batch, tokens, channels), as one tensor;
        "hidden_and_text" = a tuple (video tokens, text tokens).
    hidden_argument, text_argument: names of a block's forward arguments that the returned tensors replace;
        text_argument is None unless the block returns the text too.
    """

    attribute: str
    units: tuple[UnitRow, ...]
    returns: BlockReturn = "hidden"
    hidden_argument: str = "hidden_states"
    text_argument: str | None = None


@dataclass(frozen=True)
class Family:
    """One class of transformer, and its subclasses.

    transformer: name of the class.
    block_lists: lists of blocks, in execution order.
    interleaved: the lists run by turns (first block of each list, second of each, …) instead of one after the other.
    stack_refusal: why all blocks cannot be served as one; "" = they can.
    sample_argument, timestep_argument, text_argument: names of the transformer's forward arguments.
    notes: what a reader of the row would otherwise stumble over.
    """

    transformer: str
    block_lists: tuple[BlockListRow, ...]
    interleaved: bool = False
    stack_refusal: str = ""
    sample_argument: str = "hidden_states"
    timestep_argument: str = "timestep"
    text_argument: str = "encoder_hidden_states"
    notes: str = ""


_ROWS = (
    Family(
        transformer="WanTransformer3DModel",
        block_lists=(
            BlockListRow(
                attribute="blocks",
                units=(
                    UnitRow("attn1", "self"),
                    UnitRow("attn2", "cross", text_keys=True),
                    UnitRow("ffn", "feed_forward"),
                ),
            ),
        ),
        notes=(
            "Image-to-video checkpoints (attn2.add_k_proj is not None) put image tokens before the last 512 tokens of "
            "encoder_hidden_states and attend to them in a second call of the same unit; both are constant over steps. "
            "The timestep of text-image-to-video checkpoints has the shape (batch, tokens)."
        ),
    ),
    Family(
        transformer="CogVideoXTransformer3DModel",
        block_lists=(
            BlockListRow(
                attribute="transformer_blocks",
                units=(UnitRow("attn1", "joint"), UnitRow("ff", "feed_forward")),
                returns="hidden_and_text",
                text_argument="encoder_hidden_states",
            ),
        ),
        notes=(
            "The sample is (batch, frames, channels, height, width). attn1 returns (video, text); ff runs once over "
            "text and video together, text first."
        ),
    ),
    Family(
        transformer="LatteTransformer3DModel",
        block_lists=(
            BlockListRow(
                attribute="transformer_blocks",
                units=(
                    UnitRow("attn1", "spatial"),
                    UnitRow("attn2", "cross", text_keys=True),
                    UnitRow("ff", "feed_forward"),
                ),
            ),
            BlockListRow(
                attribute="temporal_transformer_blocks",
                units=(UnitRow("attn1", "temporal"), UnitRow("ff", "feed_forward")),
            ),
        ),
        interleaved=True,
        stack_refusal=(
            "spatial and temporal blocks alternate with different token layouts, "
            "(batch x frames, patches, channels) and (batch x patches, frames, channels)"
        ),
        notes=(
            "The batch of a block is batch x frames or batch x patches, sample by sample. Temporal blocks have no "
            "cross-attention (their attn2 is None). With learned variance the output has twice the sample's channels, "
            "prediction first. enable_temporal_attentions=False skips the temporal blocks."
        ),
    ),
    Family(
        transformer="HunyuanVideoTransformer3DModel",
        block_lists=(
            BlockListRow(
                attribute="transformer_blocks",
                units=(
                    UnitRow("attn", "joint"),
                    UnitRow("ff", "feed_forward"),
                    UnitRow("ff_context", "feed_forward"),
                ),
                returns="hidden_and_text",
                text_argument="encoder_hidden_states",
            ),
            BlockListRow(
                attribute="single_transformer_blocks",
                units=(UnitRow("attn", "joint"),),
                returns="hidden_and_text",
                text_argument="encoder_hidden_states",
            ),
        ),
        notes=(
            "attn returns (video, text) and masks the padding of the text. A double block calls its rotary embedding "
            "freqs_cis, a single block image_rotary_emb. The feed-forward of a single block is no module of its own "
            "(proj_mlp, and part of proj_out), so it is no unit. The refiner of the text is left alone. Pipelines "
            "round the timestep to the dtype of the latents."
        ),
    ),
)

FAMILIES: dict[str, Family] = {row.transformer: row for row in _ROWS}
