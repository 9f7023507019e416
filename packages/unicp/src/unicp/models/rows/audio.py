"""Audio models, through the same rows."""

from __future__ import annotations

from unicp.models.family_form import BlockListRow, Family, UnitRow
from unicp.models.rows.units import CROSS_UNITS

_SHARED_KEYS = "several heads share one of keys and values"

AUDIO: tuple[Family, ...] = (
    Family(
        transformer="StableAudioDiTModel",
        block_lists=(BlockListRow("transformer_blocks", CROSS_UNITS),),
        timestep_scale=1000.0,
        noise_refusal="its scheduler scales the sample on its way to the model, and counts timesteps from 1 to 0",
        notes="The sample is (batch, channels, length). Text and duration come as one sequence.",
    ),
    Family(
        transformer="AceStepTransformer1DModel",
        block_lists=(
            BlockListRow(
                "layers",
                (
                    UnitRow("self_attn", "self", slice_refusal=_SHARED_KEYS),
                    UnitRow("cross_attn", "cross", text_keys=True, slice_refusal=_SHARED_KEYS),
                    UnitRow("mlp", "feed_forward"),
                ),
            ),
        ),
        timestep_scale=1000.0,
        noise_refusal="its scheduler counts timesteps from 1 to 0",
        notes=(
            "The sample is (batch, length, channels). Guidance that starts or stops within the run changes the batch, "
            "and opens a new run."
        ),
    ),
)
