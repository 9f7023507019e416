"""Image models, through the same rows."""

from __future__ import annotations

from unicp.models.family_form import BlockListRow, Family, UnitRow
from unicp.models.rows.units import CONTROL_NET, CROSS_UNITS, LINEAR_UNITS, MMDIT_UNITS, OTHER_STREAMS, joint_blocks

IMAGE: tuple[Family, ...] = (
    Family(
        transformer="FluxTransformer2DModel",
        block_lists=(
            joint_blocks("transformer_blocks", MMDIT_UNITS, text_first=True),
            joint_blocks("single_transformer_blocks", (UnitRow("attn", "joint"),), text_first=True),
        ),
        timestep_scale=1000.0,
        stack_refusal=CONTROL_NET,
        notes=(
            "Images. The sample is packed tokens, the timestep runs from 1 to 0. The feed-forward of a single block is "
            "no module of its own, so it is no unit."
        ),
    ),
    Family(
        transformer="QwenImageTransformer2DModel",
        block_lists=(
            joint_blocks(
                "transformer_blocks",
                (
                    UnitRow("attn", "joint"),
                    UnitRow("img_mlp", "feed_forward"),
                    UnitRow("txt_mlp", "feed_forward"),
                ),
                text_first=True,
            ),
        ),
        timestep_scale=1000.0,
        stack_refusal=CONTROL_NET,
        notes=(
            "Images. The sample is packed tokens, the timestep runs from 1 to 0. Editing pipelines put the tokens of "
            "given images behind those of the sample; these are not noised, and their forecast is thrown away."
        ),
    ),
    Family(
        transformer="PixArtTransformer2DModel",
        block_lists=(BlockListRow("transformer_blocks", CROSS_UNITS),),
        notes=(
            "Images. With learned variance the output has twice the sample's channels, prediction first, and is "
            "forecast as it is."
        ),
    ),
    Family(
        transformer="SD3Transformer2DModel",
        block_lists=(
            joint_blocks(
                "transformer_blocks",
                (
                    UnitRow("attn", "joint"),
                    UnitRow("attn2", "self"),
                    UnitRow("ff", "feed_forward"),
                    UnitRow("ff_context", "feed_forward"),
                ),
                text_first=True,
            ),
        ),
        stack_refusal=CONTROL_NET,
        branch_arguments=("skip_layers",),
        notes=(
            "Stable Diffusion 3 and 3.5. The second attention of a block is there in 3.5 medium only. The last block "
            "drops the text. The pipeline's call with skip_layers is a branch of its own."
        ),
    ),
    Family(
        transformer="Flux2Transformer2DModel",
        block_lists=(
            joint_blocks("transformer_blocks", MMDIT_UNITS, text_first=True),
            BlockListRow("single_transformer_blocks", (UnitRow("attn", "joint"),)),
        ),
        timestep_scale=1000.0,
        stack_refusal=OTHER_STREAMS,
        notes=(
            "The sample is packed tokens, the timestep runs from 1 to 0. In a single block feed-forward and attention "
            "are one module."
        ),
    ),
    Family(
        transformer="ZImageTransformer2DModel",
        block_lists=(
            BlockListRow(
                "layers",
                (UnitRow("attention", "joint"), UnitRow("feed_forward", "feed_forward")),
                hidden_argument="x",
            ),
        ),
        sample_argument="x",
        timestep_argument="t",
        text_argument="cap_feats",
        timestep_scale=-1000.0,
        timestep_shift=1000.0,
        stack_refusal=CONTROL_NET,
        output_turned=True,
        notes=(
            "Its timestep rises from 0 at pure noise to 1, and pipelines turn its output's sign. Sample, text and "
            "output are lists of one tensor per sample; samples of several sizes in one call are computed. The "
            "refiners of noise and text are left alone."
        ),
    ),
    Family(
        transformer="SanaTransformer2DModel",
        block_lists=(BlockListRow("transformer_blocks", LINEAR_UNITS),),
        stack_refusal=CONTROL_NET,
        notes="Checkpoints with a timestep_scale of their own (Sprint) count from 1: their noise level is unknown.",
    ),
    Family(
        transformer="ChromaTransformer2DModel",
        block_lists=(
            joint_blocks("transformer_blocks", MMDIT_UNITS, text_first=True),
            BlockListRow("single_transformer_blocks", (UnitRow("attn", "joint"),)),
        ),
        timestep_scale=1000.0,
        stack_refusal=OTHER_STREAMS,
        notes="The sample is packed tokens, the timestep runs from 1 to 0.",
    ),
    Family(
        transformer="AuraFlowTransformer2DModel",
        block_lists=(
            joint_blocks("joint_transformer_blocks", MMDIT_UNITS, text_first=True),
            BlockListRow("single_transformer_blocks", (UnitRow("attn", "joint"), UnitRow("ff", "feed_forward"))),
        ),
        timestep_scale=1000.0,
        stack_refusal=OTHER_STREAMS,
        notes="The timestep runs from 1 to 0.",
    ),
    Family(
        transformer="CogView4Transformer2DModel",
        block_lists=(joint_blocks("transformer_blocks", (UnitRow("attn1", "joint"),)),),
        notes="Image and text pass through ff one after the other: it is no unit.",
    ),
    Family(
        transformer="HunyuanImageTransformer2DModel",
        block_lists=(
            joint_blocks("transformer_blocks", MMDIT_UNITS),
            joint_blocks("single_transformer_blocks", (UnitRow("attn", "joint"),)),
        ),
        notes="HunyuanVideo's blocks. The refiner of the text is left alone.",
    ),
    Family(
        transformer="Lumina2Transformer2DModel",
        block_lists=(BlockListRow("layers", (UnitRow("attn", "joint"), UnitRow("feed_forward", "feed_forward"))),),
        timestep_scale=-1000.0,
        timestep_shift=1000.0,
        output_turned=True,
        notes=(
            "Its timestep rises from 0 at pure noise to 1, and pipelines turn its output's sign. The stream of a block "
            "is text and image in one sequence. The refiners are left alone."
        ),
    ),
)
