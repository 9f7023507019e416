"""The transformers UniCP knows, one table row each, in the order of the documents.

Data only. Supporting a new model is one more row in one of the files in `rows`; no forward is rewritten.
"""

from __future__ import annotations

from unicp.models.family_form import Family
from unicp.models.rows.audio import AUDIO
from unicp.models.rows.cross_video import CROSS_VIDEO
from unicp.models.rows.image import IMAGE
from unicp.models.rows.joint_video import JOINT_VIDEO
from unicp.models.rows.refused import REFUSED
from unicp.models.rows.wan_like import WAN_LIKE

VIDEO = (*WAN_LIKE, *JOINT_VIDEO, *CROSS_VIDEO)
ROWS: tuple[Family, ...] = (*VIDEO, *IMAGE, *AUDIO, *REFUSED)

__all__ = ["AUDIO", "IMAGE", "REFUSED", "ROWS", "VIDEO"]
