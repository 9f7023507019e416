"""The transformers UniCP knows, one table row each.

Data only. Supporting a new model is one more row in `ROWS`; no forward is rewritten.
"""

from __future__ import annotations

from unicp.models.family_form import BlockListRow, Family, UnitRow

_WAN_UNITS = (
    UnitRow("attn1", "self"),
    UnitRow("attn2", "cross", text_keys=True),
    UnitRow("ffn", "feed_forward"),
)
# Those of most models with self- and cross-attention: the text enters as keys and values only, made before the steps.
_CROSS_UNITS = (
    UnitRow("attn1", "self"),
    UnitRow("attn2", "cross", text_keys=True),
    UnitRow("ff", "feed_forward"),
)
_MMDIT_UNITS = (UnitRow("attn", "joint"), UnitRow("ff", "feed_forward"), UnitRow("ff_context", "feed_forward"))

ROWS: tuple[Family, ...] = (
    Family(
        transformer="WanTransformer3DModel",
        block_lists=(BlockListRow("blocks", _WAN_UNITS),),
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
                units=_MMDIT_UNITS,
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
    Family(
        transformer="SkyReelsV2Transformer3DModel",
        block_lists=(BlockListRow("blocks", _WAN_UNITS),),
        notes=(
            "Wan's blocks in classes of their own. With diffusion forcing the timestep has the shape (batch, frames); "
            "a call whose frames are at several noise levels is computed, since no single level describes it: nearly "
            "all calls of an asynchronous run, and those that noise their given frames (addnoise_condition). The "
            "pipelines of diffusion forcing step copies of their scheduler, whose memory is not mended."
        ),
    ),
    Family(
        transformer="WanVACETransformer3DModel",
        block_lists=(
            BlockListRow(
                "vace_blocks",
                _WAN_UNITS,
                returns="other",
                hidden_argument="control_hidden_states",
                refusal="a control block returns a hint for a block of the video, not what it was given",
            ),
            BlockListRow("blocks", _WAN_UNITS),
        ),
        stack_refusal="hints of the control blocks are added between the blocks, and would be added twice",
        notes=(
            "All vace_blocks run before all blocks. With the span block they are computed always; their units are "
            "served like any other."
        ),
    ),
    Family(
        transformer="LTXVideoTransformer3DModel",
        block_lists=(BlockListRow("transformer_blocks", _CROSS_UNITS),),
        notes=(
            "The sample is packed tokens, (batch, tokens, channels). Where a pipeline conditions on given frames the "
            "timestep is one per token: 0 for given ones. A condition of less than full strength is at a noise level "
            "of its own until the rest is below it, and such calls are computed."
        ),
    ),
    Family(
        transformer="MochiTransformer3DModel",
        block_lists=(
            BlockListRow(
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
                returns="hidden_and_text",
                text_argument="encoder_hidden_states",
            ),
        ),
        timestep_scale=-1.0,
        timestep_shift=1000.0,
        noise_refusal="its scheduler counts noise levels from 0 at pure noise to 1, with the output's sign turned",
        notes=(
            "The timestep rises from 0 to 1000. The last block has no ff_context and lets the text pass. Without a "
            "known schedule the number of steps is unknown too, and no last steps are kept from being served."
        ),
    ),
    Family(
        transformer="AllegroTransformer3DModel",
        block_lists=(BlockListRow("transformer_blocks", _CROSS_UNITS),),
    ),
    Family(
        transformer="HunyuanVideo15Transformer3DModel",
        block_lists=(
            BlockListRow(
                "transformer_blocks", _MMDIT_UNITS, returns="hidden_and_text", text_argument="encoder_hidden_states"
            ),
        ),
        notes=(
            "The text stream of a block holds image, glyph and text tokens, valid ones first. Pipelines give the "
            "sample with condition and mask behind its channels, so the output has another shape and is forecast "
            "as it is. The refiner of the text is left alone."
        ),
    ),
    Family(
        transformer="HunyuanVideoFramepackTransformer3DModel",
        block_lists=(
            BlockListRow(
                "transformer_blocks", _MMDIT_UNITS, returns="hidden_and_text", text_argument="encoder_hidden_states"
            ),
            BlockListRow(
                "single_transformer_blocks",
                (UnitRow("attn", "joint"),),
                returns="hidden_and_text",
                text_argument="encoder_hidden_states",
            ),
        ),
        notes=(
            "HunyuanVideo's blocks. The video stream of a block begins with the tokens of earlier sections; errors of "
            "blocks and of the stack are measured over these too. Each section is a run of its own."
        ),
    ),
    Family(
        transformer="ConsisIDTransformer3DModel",
        block_lists=(
            BlockListRow(
                "transformer_blocks",
                (UnitRow("attn1", "joint"), UnitRow("ff", "feed_forward")),
                returns="hidden_and_text",
                text_argument="encoder_hidden_states",
            ),
        ),
        stack_refusal="attention to the face is added between the blocks, and would be added twice",
        notes=(
            "CogVideoX's blocks. The attention to the face (perceiver_cross_attention) is no unit. Pipelines give the "
            "sample with the image behind its channels, so the output has another shape and is forecast as it is."
        ),
    ),
    Family(
        transformer="SanaVideoTransformer3DModel",
        block_lists=(
            BlockListRow(
                "transformer_blocks",
                (
                    UnitRow(
                        "attn1",
                        "self",
                        slice_refusal="linear attention: it forms no scores whose width could be reduced",
                    ),
                    UnitRow("attn2", "cross", text_keys=True),
                    UnitRow("ff", "feed_forward"),
                ),
            ),
        ),
        stack_refusal="a control net may add to the stream between the blocks, which would be added twice",
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
        transformer="ChronoEditTransformer3DModel",
        block_lists=(BlockListRow("blocks", _WAN_UNITS),),
        notes=(
            "Wan's blocks. Pipelines give the sample with the image behind its channels, so the output has another "
            "shape and is forecast as it is. Dropping the frames of the reasoning in mid-run opens a new run."
        ),
    ),
    Family(
        transformer="CosmosTransformer3DModel",
        block_lists=(BlockListRow("transformer_blocks", _CROSS_UNITS),),
        timestep_scale=1000.0,
        noise_refusal="pipelines scale the sample on its way to the model and count its timestep in units of their own",
        notes=(
            "The timestep is noise / (signal + noise) in Cosmos 2 and a logarithm of the noise in Cosmos 1, where it "
            "says little about how much an error matters. Rounded to half precision, neighbouring steps can look like "
            "one: then they are computed. A text with an image context comes as a tuple."
        ),
    ),
    Family(
        transformer="EasyAnimateTransformer3DModel",
        block_lists=(
            BlockListRow(
                "transformer_blocks",
                (
                    UnitRow("attn1", "joint"),
                    UnitRow("ff", "feed_forward", needs="txt_ff"),
                    UnitRow("txt_ff", "feed_forward"),
                ),
                returns="hidden_and_text",
                text_argument="encoder_hidden_states",
            ),
        ),
        notes="Blocks without txt_ff send video and text through ff one after the other: there it is no unit.",
    ),
    Family(
        transformer="FluxTransformer2DModel",
        block_lists=(
            BlockListRow(
                "transformer_blocks", _MMDIT_UNITS, returns="text_and_hidden", text_argument="encoder_hidden_states"
            ),
            BlockListRow(
                "single_transformer_blocks",
                (UnitRow("attn", "joint"),),
                returns="text_and_hidden",
                text_argument="encoder_hidden_states",
            ),
        ),
        timestep_scale=1000.0,
        stack_refusal="a control net may add to the stream between the blocks, which would be added twice",
        notes=(
            "Images. The sample is packed tokens, the timestep runs from 1 to 0. The feed-forward of a single block is "
            "no module of its own, so it is no unit."
        ),
    ),
    Family(
        transformer="QwenImageTransformer2DModel",
        block_lists=(
            BlockListRow(
                "transformer_blocks",
                (
                    UnitRow("attn", "joint"),
                    UnitRow("img_mlp", "feed_forward"),
                    UnitRow("txt_mlp", "feed_forward"),
                ),
                returns="text_and_hidden",
                text_argument="encoder_hidden_states",
            ),
        ),
        timestep_scale=1000.0,
        stack_refusal="a control net may add to the stream between the blocks, which would be added twice",
        notes=(
            "Images. The sample is packed tokens, the timestep runs from 1 to 0. Editing pipelines put the tokens of "
            "given images behind those of the sample; these are not noised, and their forecast is thrown away."
        ),
    ),
    Family(
        transformer="PixArtTransformer2DModel",
        block_lists=(BlockListRow("transformer_blocks", _CROSS_UNITS),),
        notes=(
            "Images. With learned variance the output has twice the sample's channels, prediction first, and is "
            "forecast as it is."
        ),
    ),
)
