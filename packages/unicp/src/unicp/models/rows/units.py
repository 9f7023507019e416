"""Units that many families share."""

from __future__ import annotations

from unicp.models.family_form import BlockListRow, UnitRow

WAN_UNITS = (
    UnitRow("attn1", "self"),
    UnitRow("attn2", "cross", text_keys=True),
    UnitRow("ffn", "feed_forward"),
)
# Those of most models with self- and cross-attention: the text enters as keys and values only, made before the steps.
CROSS_UNITS = (
    UnitRow("attn1", "self"),
    UnitRow("attn2", "cross", text_keys=True),
    UnitRow("ff", "feed_forward"),
)
LINEAR_UNITS = (
    UnitRow("attn1", "self", slice_refusal="linear attention: it forms no scores whose width could be reduced"),
    UnitRow("attn2", "cross", text_keys=True),
    UnitRow("ff", "feed_forward"),
)
MMDIT_UNITS = (UnitRow("attn", "joint"), UnitRow("ff", "feed_forward"), UnitRow("ff_context", "feed_forward"))
CONTROL_NET = "a control net may add to the stream between the blocks, which would be added twice"
OTHER_STREAMS = "its two lists of blocks have different streams: image and text apart, then both as one"


def joint_blocks(attribute: str, units: tuple[UnitRow, ...], text_first: bool = False) -> BlockListRow:
    """Blocks that take and give the stream and the text; text_first: they return the text first."""
    returns = "text_and_hidden" if text_first else "hidden_and_text"
    return BlockListRow(attribute, units, returns, text_argument="encoder_hidden_states")
