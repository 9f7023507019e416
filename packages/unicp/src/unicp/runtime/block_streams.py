"""The residual streams that a block takes and gives."""

from __future__ import annotations

import inspect
from typing import Any

from unicp.models.finder import Block
from unicp.predictors.base import Tensors


class BlockCall:
    """Reads the streams out of a block's arguments and puts them back into its kind of output."""

    def __init__(self, block: Block):
        self.row = block.row
        self._names = [name for name in inspect.signature(type(block.module).forward).parameters][1:]

    def streams(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensors:
        """The hidden stream, and the text stream where the block returns one."""
        named = {**dict(zip(self._names, args)), **kwargs}
        found = [named[self.row.hidden_argument]]
        if self.row.text_argument is not None:
            found.append(named[self.row.text_argument])
        return tuple(found)

    def of_output(self, output: Any, entering: Tensors) -> Tensors:
        """The same streams in a block's output. A last block that drops the text leaves it as it entered."""
        streams = tuple(output) if isinstance(output, (tuple, list)) else (output,)
        streams = streams[::-1] if self.row.returns == "text_and_hidden" else streams
        return tuple(before if after is None else after for after, before in zip(streams, entering))

    def to_output(self, streams: Tensors) -> Any:
        """What the block would have returned."""
        if self.row.returns == "text_and_hidden":
            return streams[::-1]
        return streams if self.row.returns == "hidden_and_text" else streams[0]
