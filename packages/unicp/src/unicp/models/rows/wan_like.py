"""Wan and the video models made of its blocks."""

from __future__ import annotations

from unicp.models.family_form import BlockListRow, Family
from unicp.models.rows.units import WAN_UNITS

WAN_LIKE: tuple[Family, ...] = (
    Family(
        transformer="WanTransformer3DModel",
        block_lists=(BlockListRow("blocks", WAN_UNITS),),
        notes=(
            "Image-to-video checkpoints (attn2.add_k_proj is not None) put image tokens before the last 512 tokens of "
            "encoder_hidden_states and attend to them in a second call of the same unit; both are constant over steps. "
            "The timestep of text-image-to-video checkpoints has the shape (batch, tokens)."
        ),
    ),
    Family(
        transformer="WanVACETransformer3DModel",
        block_lists=(
            BlockListRow(
                "vace_blocks",
                WAN_UNITS,
                returns="other",
                hidden_argument="control_hidden_states",
                refusal="a control block returns a hint for a block of the video, not what it was given",
            ),
            BlockListRow("blocks", WAN_UNITS),
        ),
        stack_refusal="hints of the control blocks are added between the blocks, and would be added twice",
        notes=(
            "All vace_blocks run before all blocks. At level block they are computed always; their units are "
            "skipped like any other."
        ),
    ),
    Family(
        transformer="SkyReelsV2Transformer3DModel",
        block_lists=(BlockListRow("blocks", WAN_UNITS),),
        notes=(
            "Wan's blocks in classes of their own. With diffusion forcing the timestep has the shape (batch, frames); "
            "a call whose frames are at several noise levels is computed, since no single level describes it: nearly "
            "all calls of an asynchronous run, and those that noise their given frames (addnoise_condition). The "
            "pipelines of diffusion forcing step copies of their scheduler, whose memory is not replayed."
        ),
    ),
    Family(
        transformer="ChronoEditTransformer3DModel",
        block_lists=(BlockListRow("blocks", WAN_UNITS),),
        notes=(
            "Wan's blocks. Pipelines give the sample with the image behind its channels, so the output has another "
            "shape and is forecast as it is. Dropping the frames of the reasoning in mid-run opens a new run."
        ),
    ),
    Family(
        transformer="WanAnimateTransformer3DModel",
        block_lists=(BlockListRow("blocks", WAN_UNITS),),
        stack_refusal="attention to the face is added between the blocks, and would be added twice",
        notes=(
            "Wan's blocks. The attention to the face (face_adapter) and the encoders of face and motion are no units. "
            "Pipelines give the sample with the conditions behind its channels, so the output has another shape and "
            "is forecast as it is."
        ),
    ),
    Family(
        transformer="HeliosTransformer3DModel",
        block_lists=(BlockListRow("blocks", WAN_UNITS),),
        notes=(
            "Wan's blocks. The stream of a block begins with the tokens of earlier chunks; errors of blocks and of the "
            "stack are measured over these too. Each chunk, and each stage of a pyramid, is a run of its own."
        ),
    ),
    Family(
        transformer="AnyFlowTransformer3DModel",
        block_lists=(BlockListRow("blocks", WAN_UNITS),),
        notes=(
            "Wan's blocks. The sample is (batch, frames, channels, height, width), the timestep one per frame. A model "
            "for few steps: r_timestep tells where a step leads, and there is little to predict."
        ),
    ),
)
