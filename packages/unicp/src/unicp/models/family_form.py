"""What a table row says of a transformer: where its blocks and units are and what these return.

Data only. The rows are in `family_rows`; `families` finds them by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unicp.settings import Role

BlockReturn = Literal["hidden", "hidden_and_text", "text_and_hidden", "other"]


@dataclass(frozen=True)
class UnitRow:
    """One unit of a block.

    attribute: where the block keeps it, dotted if in a module of its own; a block that holds None there lacks it.
    role: what it does.
    text_keys: its keys and values come from the text (and a conditioning image) alone, and are the same at every step.
    slice_refusal: why attention here cannot be computed at reduced width; "" = it can.
    needs: another attribute without which a block calls this module more than once, so that it is no unit; "" = none.
    """

    attribute: str
    role: Role
    text_keys: bool = False
    slice_refusal: str = ""
    needs: str = ""


@dataclass(frozen=True)
class BlockListRow:
    """One list of blocks of a transformer.

    attribute: where the transformer keeps the list.
    units: in the order in which a block runs them.
    returns: "hidden" = a block returns the video tokens, shape (batch, tokens, channels), as one tensor;
        "hidden_and_text" = a tuple (video tokens, text tokens); "text_and_hidden" = the same the other way round;
        "other" = none of these, which needs a `refusal`.
    hidden_argument, text_argument: names of a block's forward arguments that the returned tensors replace;
        text_argument is None unless the block returns the text too.
    refusal: why a block of this list cannot be skipped as one, "" = it can. Its units can still be skipped.
    """

    attribute: str
    units: tuple[UnitRow, ...]
    returns: BlockReturn = "hidden"
    hidden_argument: str = "hidden_states"
    text_argument: str | None = None
    refusal: str = ""


@dataclass(frozen=True)
class Family:
    """One class of transformer, and its subclasses.

    transformer: name of the class.
    block_lists: lists of blocks, in execution order.
    interleaved: the lists run by turns (first block of each list, second of each, …) instead of one after the other.
    stack_refusal: why all blocks cannot be skipped as one, "" = they can.
    sample_argument, timestep_argument, text_argument: names of the transformer's forward arguments.
    branch_arguments: names of arguments by which a guidance asks for another kind of call with the same text (layers to
        skip, streams to keep apart): a call that has other ones is no continuation of its branch.
    step_arguments: names of arguments that are others at each step by their nature (a state that follows the sample),
        besides those that go by the usual names; any other argument that changes opens a new run.
    more_samples: names of further samples (audio beside video), in the order of the outputs after the first.
    timestep_scale, timestep_shift: shift + scale x the timestep that the model is given is the usual one, which falls
        from about 1000 at pure noise to 0.
    refusal: why the model cannot be used with UniCP at all; "" = it can. A refused model has no block lists.
    noise_refusal: why the noise level of a call cannot be told, so that only the output is forecast; "" = the
        scheduler tells it.
    output_turned: pipelines turn the output's sign before they give it to the scheduler.
    notes: what a reader of the row would otherwise stumble over.
    """

    transformer: str
    block_lists: tuple[BlockListRow, ...] = ()
    interleaved: bool = False
    stack_refusal: str = ""
    sample_argument: str = "hidden_states"
    timestep_argument: str = "timestep"
    text_argument: str = "encoder_hidden_states"
    branch_arguments: tuple[str, ...] = ()
    step_arguments: tuple[str, ...] = ()
    more_samples: tuple[str, ...] = ()
    timestep_scale: float = 1.0
    timestep_shift: float = 0.0
    refusal: str = ""
    noise_refusal: str = ""
    output_turned: bool = False
    notes: str = ""

    @property
    def profile_refusal(self) -> str:
        """Why no profile can be made of the model, nor a target be met with one; "" = it can."""
        rising = self.output_turned or self.timestep_scale < 0
        return self.noise_refusal or ("profiles were not tried with timesteps that rise" if rising else "")
