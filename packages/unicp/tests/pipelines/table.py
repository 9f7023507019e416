"""All rows, and the pipelines that are not tested, with the reason."""

from __future__ import annotations

from tests.pipelines.audio import AUDIO
from tests.pipelines.cross_video import CROSS_VIDEO
from tests.pipelines.image import IMAGE
from tests.pipelines.joint_video import JOINT_VIDEO
from tests.pipelines.rows import Row, Unbuilt
from tests.pipelines.wan_like import WAN_LIKE

ROWS: tuple[Row, ...] = (*WAN_LIKE, *JOINT_VIDEO, *CROSS_VIDEO, *IMAGE, *AUDIO)
BY_NAME = {row.name: row for row in ROWS}
assert len(BY_NAME) == len(ROWS)
# In diffusers itself, which a test watches.
BROKEN = Unbuilt(
    "EasyAnimateControlPipeline",
    "EasyAnimateTransformer3DModel",
    "it cannot be called in diffusers 0.42.1: it gives its encode_prompt an argument that this does not take",
)
UNBUILT: tuple[Unbuilt, ...] = (
    Unbuilt("ConsisIDPipeline", "ConsisIDTransformer3DModel", "it needs OpenCV"),
    BROKEN,
    Unbuilt("Kandinsky5I2IPipeline", "Kandinsky5Transformer3DModel", "it needs a processor of text and pictures"),
    Unbuilt("QwenImageEditPipeline", "QwenImageTransformer2DModel", "it needs a processor of text and pictures"),
    Unbuilt("QwenImageEditPlusPipeline", "QwenImageTransformer2DModel", "it needs a processor of text and pictures"),
)
