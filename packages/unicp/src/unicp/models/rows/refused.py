"""Denoising transformers of diffusers that UniCP refuses, each with the reason that users read."""

from __future__ import annotations

from unicp.models.family_form import Family

_KEYS_IN_THE_CALL = (
    "it keeps keys and values in a cache that its calls write to: a skipped call would leave that cache as it was"
)

REFUSED: tuple[Family, ...] = (
    Family("AnyFlowFARTransformer3DModel", refusal=_KEYS_IN_THE_CALL),
    Family("WanAnimate2Transformer3DModel", refusal=_KEYS_IN_THE_CALL),
    Family("SanaWMLTX2RefinerTransformer3DModel", refusal=_KEYS_IN_THE_CALL),
    Family("QwenImage21Transformer2DModel", refusal=_KEYS_IN_THE_CALL),
    Family(
        "Cosmos3OmniTransformer",
        refusal="text, video, sound and actions are one packed sequence without a batch: errors per sample are unknown",
    ),
    Family(
        "SanaWMTransformer3DModel",
        refusal="its attention is a scan along the frames with a branch for the camera: UniCP was not tested with it",
    ),
    Family(
        "Kandinsky6SRTransformer3DModel",
        refusal="it denoises tiles of one picture by turns, with attention that needs a compiled kernel",
    ),
)
