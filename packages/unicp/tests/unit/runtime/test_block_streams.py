"""The streams that a block takes and gives, in every family."""

from __future__ import annotations

import pytest

from tests import tiny_models
from tests.fake_models import noise
from unicp.models.finder import map_model
from unicp.runtime.block_streams import BlockCall


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_streams_are_read_from_positional_and_keyword_arguments_alike(name):
    for block in map_model(tiny_models.build(name)).blocks:
        form = BlockCall(block)
        video, text = noise(0, 1, 4, 3), noise(1, 1, 2, 3)
        if block.row.returns == "hidden":
            assert form.streams((video,), {})[0] is video
            assert form.streams((), {block.row.hidden_argument: video})[0] is video
            assert form.to_output((video,)) is video
        elif block.row.returns == "other":
            assert block.row.refusal
        else:
            assert block.row.text_argument is not None
            found = form.streams((), {block.row.hidden_argument: video, block.row.text_argument: text})
            assert found[0] is video and found[1] is text
            output = form.to_output(found)
            assert isinstance(output, tuple) and form.of_output(output, (text, video)) == (video, text)
            # A last block may drop the text: then it is as it entered.
            dropped = tuple(None if one is text else one for one in output)
            assert form.of_output(dropped, (video, text)) == (video, text)
