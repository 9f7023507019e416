"""Video models whose blocks attend to video and text together."""

from __future__ import annotations

from unicp.models.family_form import BlockListRow, Family, UnitRow
from unicp.models.rows.units import MMDIT_UNITS, joint_blocks

JOINT_VIDEO: tuple[Family, ...] = (
    Family(
        transformer="CogVideoXTransformer3DModel",
        block_lists=(joint_blocks("transformer_blocks", (UnitRow("attn1", "joint"), UnitRow("ff", "feed_forward"))),),
        notes=(
            "The sample is (batch, frames, channels, height, width). attn1 returns (video, text); ff runs once over "
            "text and video together, text first."
        ),
    ),
    Family(
        transformer="ConsisIDTransformer3DModel",
        block_lists=(joint_blocks("transformer_blocks", (UnitRow("attn1", "joint"), UnitRow("ff", "feed_forward"))),),
        stack_refusal="attention to the face is added between the blocks, and would be added twice",
        notes=(
            "CogVideoX's blocks. The attention to the face (perceiver_cross_attention) is no unit. Pipelines give the "
            "sample with the image behind its channels, so the output has another shape and is forecast as it is."
        ),
    ),
    Family(
        transformer="HunyuanVideoTransformer3DModel",
        block_lists=(
            joint_blocks("transformer_blocks", MMDIT_UNITS),
            joint_blocks("single_transformer_blocks", (UnitRow("attn", "joint"),)),
        ),
        notes=(
            "attn returns (video, text) and masks the padding of the text. A double block calls its rotary embedding "
            "freqs_cis, a single block image_rotary_emb. The feed-forward of a single block is no module of its own "
            "(proj_mlp, and part of proj_out), so it is no unit. The refiner of the text is left alone. Pipelines "
            "round the timestep to the dtype of the latents."
        ),
    ),
    Family(
        transformer="HunyuanVideo15Transformer3DModel",
        block_lists=(joint_blocks("transformer_blocks", MMDIT_UNITS),),
        notes=(
            "The text stream of a block holds image, glyph and text tokens, valid ones first. Pipelines give the "
            "sample with condition and mask behind its channels, so the output has another shape and is forecast "
            "as it is. The refiner of the text is left alone."
        ),
    ),
    Family(
        transformer="HunyuanVideoFramepackTransformer3DModel",
        block_lists=(
            joint_blocks("transformer_blocks", MMDIT_UNITS),
            joint_blocks("single_transformer_blocks", (UnitRow("attn", "joint"),)),
        ),
        notes=(
            "HunyuanVideo's blocks. The video stream of a block begins with the tokens of earlier sections; errors of "
            "blocks and of the stack are measured over these too. Each section is a run of its own."
        ),
    ),
    Family(
        transformer="MochiTransformer3DModel",
        block_lists=(
            joint_blocks(
                "transformer_blocks",
                (
                    UnitRow(
                        "attn1",
                        "joint",
                        slice_refusal="each sample attends on its own, with a text of its own length",
                    ),
                    UnitRow("ff", "feed_forward"),
                    UnitRow("ff_context", "feed_forward"),
                ),
            ),
        ),
        timestep_scale=-1.0,
        timestep_shift=1000.0,
        notes=(
            "The timestep rises from 0 to 1000, and so do its scheduler's noise levels, from 0 at pure noise to 1; the "
            "output is clean less noise. The last block has no ff_context and lets the text pass."
        ),
    ),
    Family(
        transformer="EasyAnimateTransformer3DModel",
        block_lists=(
            joint_blocks(
                "transformer_blocks",
                (
                    UnitRow("attn1", "joint"),
                    UnitRow("ff", "feed_forward", needs="txt_ff"),
                    UnitRow("txt_ff", "feed_forward"),
                ),
            ),
        ),
        notes="Blocks without txt_ff send video and text through ff one after the other: there it is no unit.",
    ),
    Family(
        transformer="MotifVideoTransformer3DModel",
        block_lists=(
            joint_blocks(
                "transformer_blocks",
                (
                    UnitRow("attn", "joint"),
                    UnitRow("cross_attn", "cross"),
                    UnitRow("ff", "feed_forward"),
                    UnitRow("ff_context", "feed_forward"),
                ),
            ),
            joint_blocks("single_transformer_blocks", (UnitRow("attn", "joint"), UnitRow("cross_attn", "cross"))),
        ),
        stack_refusal="its last blocks start anew from the video's tokens, and attend to the stream of the others",
        notes=(
            "cross_attn is None where a checkpoint lacks it. The feed-forward of a single block is no module of its "
            "own. The sample comes with condition and mask behind its channels, so the output has another shape and is "
            "forecast as it is."
        ),
    ),
    Family(
        transformer="MiniMaxH3Transformer3DModel",
        block_lists=(BlockListRow("transformer_blocks", (UnitRow("attn", "joint"), UnitRow("ff", "feed_forward"))),),
        more_samples=("audio_hidden_states",),
        timestep_scale=-1000.0,
        timestep_shift=1000.0,
        noise_refusal="video, audio and given rows have noise levels of their own in one call",
        notes=(
            "Video and audio: both outputs are skipped together. The stream of a block is one packed sequence of text, "
            "image, video and audio. The timestep is a list of the distinct levels in the call, which rise from 0 to "
            "1; the lowest is that of the video."
        ),
    ),
)
