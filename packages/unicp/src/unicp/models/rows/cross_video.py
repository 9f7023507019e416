"""Video models whose blocks have self- and cross-attention."""

from __future__ import annotations

from unicp.models.family_form import BlockListRow, Family, UnitRow
from unicp.models.rows.units import CONTROL_NET, CROSS_UNITS, LINEAR_UNITS

CROSS_VIDEO: tuple[Family, ...] = (
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
        transformer="LTXVideoTransformer3DModel",
        block_lists=(BlockListRow("transformer_blocks", CROSS_UNITS),),
        notes=(
            "The sample is packed tokens, (batch, tokens, channels). Where a pipeline conditions on given frames the "
            "timestep is one per token: 0 for given ones. A condition of less than full strength is at a noise level "
            "of its own until the rest is below it, and such calls are computed."
        ),
    ),
    Family(
        transformer="AllegroTransformer3DModel",
        block_lists=(BlockListRow("transformer_blocks", CROSS_UNITS),),
    ),
    Family(
        transformer="SanaVideoTransformer3DModel",
        block_lists=(BlockListRow("transformer_blocks", LINEAR_UNITS),),
        stack_refusal=CONTROL_NET,
        notes="ff is a gated convolution over space and time and takes (batch, frames, height, width, channels).",
    ),
    Family(
        transformer="Kandinsky5Transformer3DModel",
        block_lists=(
            BlockListRow(
                "visual_transformer_blocks",
                (
                    UnitRow("self_attention", "self"),
                    UnitRow("cross_attention", "cross"),
                    UnitRow("feed_forward", "feed_forward"),
                ),
                hidden_argument="visual_embed",
            ),
        ),
        notes=(
            "The sample is (batch, frames, height, width, channels). The text passes blocks of its own that see the "
            "timestep (text_transformer_blocks, left alone), so its keys and values change from step to step. "
            "return_dict=False gives a tensor, not a tuple. Where the sample comes with a condition behind its "
            "channels (visual_cond), the output has another shape and is forecast as it is."
        ),
    ),
    Family(
        transformer="CosmosTransformer3DModel",
        block_lists=(BlockListRow("transformer_blocks", CROSS_UNITS),),
        timestep_scale=1000.0,
        noise_refusal="pipelines scale the sample on its way to the model and count its timestep in units of their own",
        notes=(
            "The timestep is noise / (signal + noise) in Cosmos 2 and a logarithm of the noise in Cosmos 1, where it "
            "says little about how much an error matters. Rounded to half precision, neighbouring steps can look like "
            "one: then they are computed. A text with an image context comes as a tuple."
        ),
    ),
    Family(
        transformer="LTX2VideoTransformer3DModel",
        block_lists=(
            BlockListRow(
                "transformer_blocks",
                (
                    UnitRow("attn1", "self"),
                    UnitRow("audio_attn1", "self"),
                    UnitRow("attn2", "cross"),
                    UnitRow("audio_attn2", "cross"),
                    UnitRow("audio_to_video_attn", "cross"),
                    UnitRow("video_to_audio_attn", "cross"),
                    UnitRow("ff", "feed_forward"),
                    UnitRow("audio_ff", "feed_forward"),
                ),
                returns="hidden_and_text",
                text_argument="audio_hidden_states",
            ),
        ),
        more_samples=("audio_hidden_states",),
        branch_arguments=("isolate_modalities", "spatio_temporal_guidance_blocks", "perturbation_mask"),
        notes=(
            "Video and audio: the second stream of a block is the audio, and both outputs are skipped together. In "
            "LTX-2.3 the text is modulated by the step, so no text keys are kept. A block that guidance perturbs skips "
            "its self-attention's scores and is not sliced there."
        ),
    ),
    Family(
        transformer="Kandinsky6Transformer3DModel",
        block_lists=(
            BlockListRow(
                "visual_transformer_blocks",
                (
                    UnitRow("video_dec_block.self_attention", "self"),
                    UnitRow("video_dec_block.cross_attention", "cross"),
                    UnitRow("audio_dec_block.self_attention", "self"),
                    UnitRow("audio_dec_block.cross_attention", "cross"),
                    UnitRow("va_cross_attention", "cross"),
                    UnitRow("av_cross_attention", "cross"),
                    UnitRow("video_dec_block.feed_forward", "feed_forward"),
                    UnitRow("audio_dec_block.feed_forward", "feed_forward"),
                ),
                returns="other",
                hidden_argument="vis",
                refusal="a block takes and gives a stream of video and one of audio, either of which may be missing",
            ),
        ),
        stack_refusal="a block takes and gives a stream of video and one of audio, either of which may be missing",
        more_samples=("audio_hidden_states",),
        notes=(
            "Video and audio: both outputs are skipped together; without audio its units do not run. The text passes "
            "blocks of its own that see the timestep, so no text keys are kept."
        ),
    ),
)
